//! Where the rows of an INSERT go: each by its key, those of one source together.

use super::{
    gather, render,
    route::{Router, plan},
    seat::Lies,
    write::stored,
};
use crate::{
    Access, GroupName, Merge, Part, Plan, Reason, RefusalClass, Refused, Rewritten, Scatter, Slot,
    SourceIndex, Target,
    key::Key,
    plan::{Constant, SlotSet, SourceSet, split},
};

impl Router<'_, '_> {
    /// The slot of one row, by all its key columns, which must agree.
    fn slot_of_row(&self, target: usize, keys: &[(usize, Constant)]) -> Result<Slot, Refused> {
        let seat = &self.tables.seats.0[target];
        let mut found: Option<(Slot, &str)> = None;
        for (column, constant) in keys {
            let column = &seat.columns[*column];
            let refuse = |why: &str| {
                let cause = format!("INSERT into {}: key {} {why}", seat.table, column.name);
                Refused::new(RefusalClass::UnknownValue, cause, "Give it a value of the key's type")
            };
            let key = stored(constant, column, self.values)
                .map_err(|why| refuse(&format!("is not known: {why}")))?;
            let key = Key::parse(&key).map_err(|bad| refuse(&format!("is none: {bad}")))?;
            let slot = column
                .function
                .slot(key)
                .map_err(|outside| refuse(&format!("has no slot: {outside}")))?;
            match found {
                Some((other, name)) if other != slot => {
                    return Err(refuse(&format!(
                        "leads to slot {slot}, and {name} to slot {other}"
                    )));
                }
                _ => found = Some((slot, &column.name)),
            }
        }
        let none =
            || Refused::new(RefusalClass::NoKey, "a row without a key", "Name the key's column");
        found.map(|(slot, _)| slot).ok_or_else(none)
    }

    fn group_of(&self, target: usize) -> Result<(&GroupName, &[SourceIndex], Scatter), Refused> {
        match &self.tables.seats.0[target].lies {
            Lies::Sharded { group, scatter } => Ok((group, self.homes(group)?, *scatter)),
            Lies::Single(_) | Lies::Everywhere | Lies::Derived(_) => {
                unreachable!("only a sharded target has keys")
            }
        }
    }

    pub(super) fn listed(
        &self,
        target: usize,
        rows: &[Vec<(usize, Constant)>],
        in_order: bool,
    ) -> Result<Plan, Refused> {
        let (group, homes, scatter) = self.group_of(target)?;
        let mut at: Vec<SourceIndex> = Vec::with_capacity(rows.len());
        let mut sources = SourceSet::default();
        let mut slots = SlotSet::EMPTY;
        for row in rows {
            let slot = self.slot_of_row(target, row)?;
            slots.insert(slot);
            let source = homes[usize::from(slot.number())];
            sources.insert(source);
            at.push(source);
        }
        self.also(target, &mut sources)?;
        let awaits = self.topology.awaits(group, &slots);
        let mut numbers = slots.slots();
        let slot = match (numbers.next(), numbers.next()) {
            (Some(slot), None) => Some(slot),
            _ => None,
        };
        if let [source] = sources.as_slice() {
            let reason = if slot.is_some() { Reason::Key } else { Reason::Keys };
            let one = plan(self.topology, Target::One(*source), Access::Write, reason);
            return Ok(Plan { slot, group: Some(group.clone()), awaits, ..one });
        }
        if scatter < Scatter::Write {
            let cause = format!(
                "the rows of one INSERT lie on {} sources, and group {group} does not permit that",
                sources.as_slice().len()
            );
            let remedy =
                format!("Insert them one by one, or set scatter = \"write\" in [group.{group}]");
            return Err(Refused::new(RefusalClass::ScatterNotAllowed, cause, remedy));
        }
        if let Some(name) = &self.tables.wandering {
            return Err(gather::refused(&format!(
                "{name}, whose answer may differ from source to source"
            )));
        }
        self.tables.gather.get(self.topology)?;
        let texts = split::rows(self.values.sql, rows.len())
            .ok_or_else(|| gather::refused("an INSERT whose rows cannot be told apart"))?;
        let parts = self.parts(&sources, &at, &texts)?;
        let mut merge =
            Merge { collation_is_c: self.topology.collation_is_c(), ..Merge::default() };
        if in_order {
            let place = |source: &SourceIndex| {
                sources.as_slice().iter().position(|known| known == source).unwrap_or(0)
            };
            merge.dealt =
                at.iter().map(|source| u16::try_from(place(source)).unwrap_or(0)).collect();
        }
        let all = plan(self.topology, Target::Several(parts), Access::Write, Reason::Keys);
        Ok(Plan { group: Some(group.clone()), merge, awaits, ..all })
    }

    /// An INSERT's other tables must lie where its rows go.
    fn also(&self, target: usize, sources: &mut SourceSet) -> Result<(), Refused> {
        let others = self.tables.seats.0.iter().enumerate().filter(|(index, _)| *index != target);
        if others.clone().any(|(_, seat)| matches!(seat.lies, Lies::Sharded { .. })) {
            return Err(gather::refused(
                "a subquery on a sharded table among the rows of an INSERT",
            ));
        }
        for (_, seat) in others {
            if let Lies::Single(source) = &seat.lies
                && let Some(source) = self.topology.index_of(source)
            {
                sources.insert(source);
                if sources.as_slice().len() > 1 {
                    return Err(gather::refused(
                        "a table on another source among the rows of an INSERT",
                    ));
                }
            }
        }
        Ok(())
    }

    fn parts(
        &self,
        sources: &SourceSet,
        at: &[SourceIndex],
        texts: &split::InsertText<'_>,
    ) -> Result<Vec<Part>, Refused> {
        let part = |source: &SourceIndex| {
            let rows = texts.rows.iter().zip(at).filter(|(_, row)| *row == source);
            let rows: Vec<&str> = rows.map(|(text, _)| *text).collect();
            let sql = format!("{}{}{}", texts.before, rows.join(", "), texts.behind);
            let rewritten: Rewritten = render::cut(&sql)
                .ok_or_else(|| gather::refused("an INSERT that cannot be divided"))?
                .with(self.values, "");
            Ok(Part { source: *source, rewritten: Some(rewritten) })
        };
        sources.as_slice().iter().map(part).collect()
    }

    /// INSERT ... SELECT under one key.
    pub(super) fn fixed(&self, target: usize, keys: &[(usize, Constant)]) -> Result<Plan, Refused> {
        let (group, homes, _) = self.group_of(target)?;
        let slot = self.slot_of_row(target, keys)?;
        let source = homes[usize::from(slot.number())];
        // The tables that are read must lie there too.
        let found = self.found_without(Some(target))?;
        if found.sources.as_slice().iter().any(|other| *other != source) {
            let cause = format!(
                "INSERT into {} under a key on one source, from rows on another",
                self.tables.seats.0[target].table
            );
            let remedy = "Read the rows first, and insert them in a second statement";
            return Err(Refused::new(RefusalClass::NotColocated, cause, remedy));
        }
        let one = plan(self.topology, Target::One(source), Access::Write, Reason::Key);
        let awaits = found.awaits || self.topology.awaits_slot(group, slot);
        Ok(Plan { slot: Some(slot), group: Some(group.clone()), awaits, ..one })
    }
}
