//! What joins say: USING, NATURAL, and the conditions of outer joins, which narrow only the side whose rows may be missing.

use sqlparser::ast::{Expr, JoinConstraint, ObjectName};

use super::{
    condition::{conjuncts, equal_keys, keys},
    scope::{Scope, Scopes, folded},
    seat::Seats,
    walk::{Block, Ctes, Walk},
};
use crate::Refused;

/// Which side of a join keeps its rows without a partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
}

impl Walk<'_> {
    pub(super) fn constraint<'q>(
        &mut self,
        constraint: &'q JoinConstraint,
        kind: JoinKind,
        before: usize,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(), Refused> {
        match constraint {
            JoinConstraint::None => {}
            JoinConstraint::Natural => block.scope.natural = true,
            JoinConstraint::Using(columns) => {
                for column in columns {
                    self.using(column, kind, before, block);
                }
            }
            JoinConstraint::On(condition) if kind == JoinKind::Inner => {
                self.condition(condition, block, outer, ctes)?;
            }
            JoinConstraint::On(condition) => {
                self.outer_condition(condition, kind, before, block, outer, ctes)?;
            }
        }
        Ok(())
    }

    /// `USING (k)`: the column of both sides, which is one of the block from then on.
    fn using(&mut self, column: &ObjectName, kind: JoinKind, before: usize, block: &mut Block) {
        let Some(ident) = column.0.last().and_then(|part| part.as_ident()) else {
            block.scope.natural = true;
            return;
        };
        let name = folded(ident);
        let having = |seats: &Seats, tables: &[(String, usize)]| {
            let mut found = tables
                .iter()
                .map(|(_, seat)| *seat)
                .filter(|seat| seats.0[*seat].columns.iter().any(|known| *known.name == *name));
            (found.next(), found.next())
        };
        let (left, right) = block.scope.tables.split_at(before);
        if let ((Some(one), None), (Some(other), None)) =
            (having(&self.seats, left), having(&self.seats, right))
            && self.seats.same_group(one, other)
            && self.key_alike(one, other, &name)
        {
            self.equal(one, other, kind, before, &block.scope);
        }
        block.scope.merged.push(name);
    }

    fn key_alike(&self, one: usize, other: usize, name: &str) -> bool {
        let find =
            |seat: usize| self.seats.0[seat].columns.iter().find(|known| *known.name == *name);
        matches!((find(one), find(other)), (Some(one), Some(other))
            if one.function == other.function && one.key_type == other.key_type)
    }

    /// The keys of two seats are equal wherever both are there.
    fn equal(&mut self, one: usize, other: usize, kind: JoinKind, before: usize, scope: &Scope) {
        let is_right = |seat: usize| scope.tables[before..].iter().any(|(_, known)| *known == seat);
        // Of two tables on one side, the condition of an outer join says nothing.
        if kind != JoinKind::Inner && is_right(one) == is_right(other) {
            return;
        }
        self.seats.unite(one, other);
        for (seat, by) in [(one, other), (other, one)] {
            let ties = match kind {
                JoinKind::Inner => true,
                JoinKind::Left => is_right(seat),
                JoinKind::Right => !is_right(seat),
                JoinKind::Full => false,
            };
            if ties {
                self.seats.tie(seat, by);
            }
        }
    }

    /// The condition of an outer join: it narrows the side whose rows may be missing, and no other.
    fn outer_condition<'q>(
        &mut self,
        condition: &'q Expr,
        kind: JoinKind,
        before: usize,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(), Refused> {
        let scopes = Scopes { inner: &block.scope, outer };
        let narrowed = match kind {
            JoinKind::Left => before..block.scope.tables.len(),
            JoinKind::Right => 0..before,
            JoinKind::Inner | JoinKind::Full => 0..0,
        };
        for (_, seat) in &block.scope.tables[narrowed] {
            if self.seats.group_of(*seat).is_some() {
                let keys = keys(condition, *seat, &scopes, &self.seats, &self.uses);
                self.seats.narrow(*seat, keys);
            }
        }
        let mut parts = Vec::new();
        conjuncts(condition, &mut parts);
        let mut equal = Vec::new();
        for part in parts {
            equal.extend(equal_keys(part, &scopes, &self.seats));
        }
        for (one, other) in equal {
            let inner = |seat| block.scope.tables.iter().any(|(_, known)| *known == seat);
            if inner(one) && inner(other) {
                self.equal(one, other, kind, before, &block.scope);
            }
        }
        let found = self.nested(condition, &block.scope, outer, ctes)?;
        block.sharded.extend(found);
        Ok(())
    }
}
