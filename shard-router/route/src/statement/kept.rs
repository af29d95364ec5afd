//! An UPDATE that sets a key: refused, unless all its rows stay in their slot. That is what applications send that write a whole row back:
//! `SET id = 7, name = 'x' WHERE id = 7`.

use sqlparser::ast::{Assignment, AssignmentTarget};

use super::{
    condition::constant,
    scope::{Scope, Scopes, folded},
    seat::Seat,
    walk::Walk,
    write::stored,
};
use crate::{KeyColumn, RefusalClass, Refused, Values, key::Key, plan::SlotSet};

impl Walk<'_> {
    /// Refuses to change a key column. A constant is taken down where `by_value`: whether it changes the slot is told when it is known.
    pub(super) fn keeps_key(
        &mut self,
        target: usize,
        assignments: &[Assignment],
        scope: &Scope,
        by_value: bool,
    ) -> Result<(), Refused> {
        for assignment in assignments {
            let names = match &assignment.target {
                AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
                AssignmentTarget::Tuple(names) => names.as_slice(),
            };
            let alone = matches!(assignment.target, AssignmentTarget::ColumnName(_));
            for name in names {
                let column = name.0.first().and_then(|part| part.as_ident()).map(folded);
                let seat = &self.seats.0[target];
                let is_key = |known: &KeyColumn| Some(&*known.name) == column.as_deref();
                let Some(key) = seat.columns.iter().position(is_key) else { continue };
                let scopes = Scopes { inner: scope, outer: None };
                if alone && scopes.column(&assignment.value, &self.seats) == Some((target, key)) {
                    continue;
                }
                match constant(&assignment.value, &self.uses).filter(|_| alone && by_value) {
                    Some(value) => self.seats.0[target].kept.push((key, value)),
                    None => return Err(changed(seat, &seat.columns[key])),
                }
            }
        }
        Ok(())
    }
}

/// Whether the rows of an UPDATE, which lie in `slots`, are there still behind it.
/// # Errors
/// They may not be.
pub(super) fn stays(seat: &Seat, slots: &SlotSet, values: &Values<'_>) -> Result<(), Refused> {
    for (column, value) in &seat.kept {
        let column = &seat.columns[*column];
        let slot =
            || column.function.slot(Key::parse(&stored(value, column, values).ok()?).ok()?).ok();
        let Some(slot) = slot() else { return Err(changed(seat, column)) };
        if slots.slots().any(|other| other != slot) {
            return Err(changed(seat, column));
        }
    }
    Ok(())
}

fn changed(seat: &Seat, column: &KeyColumn) -> Refused {
    let cause = format!("UPDATE of {} would change its key {}", seat.table, column.name);
    let remedy = "Insert the row under its new key and delete the old one, in one transaction";
    Refused::new(RefusalClass::KeyChange, cause, remedy)
}
