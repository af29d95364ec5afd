//! UNION, INTERSECT and EXCEPT over several sources: when the sources' answers together are the whole one, or become it by telling equal
//! rows once.
//!
//! `UNION ALL` of rows that are passed on one by one is exact as it is; `UNION` is, once equal rows are told once. INTERSECT and EXCEPT are
//! where both sides tell the group's key at the same place: rows that are equal then lie together.

use sqlparser::ast::{
    Expr, OrderBy, OrderByKind, Query, Select, SelectItem, SetExpr, SetOperator, SetQuantifier,
    Statement,
};

use super::{
    derived,
    gather::{
        self, Gather, collated, has_wildcard, limits, named_output, narrow, passed_on, position,
        refused, sort_key,
    },
    render::render,
    scope::{Scope, Scopes},
    seat::Seats,
};
use crate::{GroupName, KeyColumn, Refused, merge::Position};

/// What one side of a set operation is, for the answer in parts.
#[derive(Debug, Default)]
pub(crate) struct Side {
    /// Its rows are passed on one by one, so that the parts' rows together are its rows.
    row_by_row: bool,
    /// The parts' rows together, equal ones told once, are its rows.
    told_once: bool,
    /// It reads a sharded table; otherwise every source has all of its rows.
    is_spread: bool,
    /// The outputs that are a group's key.
    keys: Vec<(usize, GroupName, KeyColumn)>,
}

impl Side {
    pub(super) fn of_select(
        select: &Select,
        scope: &Scope,
        seats: &Seats,
        is_spread: bool,
    ) -> Self {
        let scopes = Scopes { inner: scope, outer: None };
        let key = |(at, item): (usize, &SelectItem)| {
            let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item
            else {
                return None;
            };
            let (seat, column) = scopes.column(expr, seats)?;
            let group = seats.group_of(seat)?.clone();
            Some((at, group, seats.0[seat].columns[column].clone()))
        };
        let starred = select.projection.iter().any(|item| {
            matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..))
        });
        let keys = if starred {
            Vec::new()
        } else {
            select.projection.iter().enumerate().filter_map(key).collect()
        };
        // What every source has, it has whole, however it is made.
        let row_by_row = !is_spread || derived::selects_row_by_row(select);
        Self { row_by_row, told_once: false, is_spread, keys }
    }

    /// A query that sorts or limits.
    pub(super) fn limited(is_spread: bool) -> Self {
        Self { row_by_row: !is_spread, is_spread, ..Self::default() }
    }

    /// What both sides together are, or why their parts' rows are not the rows of the whole.
    pub(super) fn combined(
        &self,
        op: SetOperator,
        quantifier: SetQuantifier,
        other: &Self,
    ) -> Result<Self, &'static str> {
        let same = |one: &(usize, GroupName, KeyColumn), two: &(usize, GroupName, KeyColumn)| {
            (one.0, &one.1) == (two.0, &two.1)
                && (&one.2.function, one.2.key_type) == (&two.2.function, two.2.key_type)
        };
        let keys: Vec<_> = self
            .keys
            .iter()
            .filter(|key| other.keys.iter().any(|its| same(key, its)))
            .cloned()
            .collect();
        let is_spread = self.is_spread || other.is_spread;
        if !is_spread {
            return Ok(Self::limited(false));
        }
        let once = op == SetOperator::Union && quantifier != SetQuantifier::All;
        let whole = |side: &Self| side.row_by_row || (once && side.told_once);
        if !whole(self) || !whole(other) {
            return Err("a set operation on what is grouped or limited");
        }
        match (op, quantifier) {
            (SetOperator::Union, SetQuantifier::All) if self.is_spread && other.is_spread => {
                Ok(Self { row_by_row: true, told_once: false, is_spread, keys })
            }
            // Equal rows of several sources are told once in the end, and only there.
            (SetOperator::Union, SetQuantifier::None | SetQuantifier::Distinct) => {
                Ok(Self { row_by_row: !keys.is_empty(), told_once: true, is_spread, keys })
            }
            (SetOperator::Union, _) => Err("a UNION ALL with rows that every source has"),
            (SetOperator::Intersect | SetOperator::Except, _)
                if !keys.is_empty() && self.is_spread && other.is_spread =>
            {
                Ok(Self { row_by_row: true, told_once: false, is_spread, keys })
            }
            _ => Err("INTERSECT or EXCEPT without the group's key"),
        }
    }
}

/// How a set operation whose sides [`Side::combined`] allows is answered in parts.
pub(super) fn gather(query: &Query) -> Result<Gather, Refused> {
    let SetExpr::SetOperation { op, set_quantifier, .. } = &*query.body else {
        return Err(refused("a query in parentheses"));
    };
    let mut gather = passed_on();
    (gather.limit, gather.offset) = limits(query)?;
    gather.distinct = *op == SetOperator::Union && *set_quantifier != SetQuantifier::All;
    let first = first_select(&query.body)?;
    match &query.order_by {
        None => {}
        Some(OrderBy { kind: OrderByKind::Expressions(list), interpolate: None }) => {
            for item in list {
                let (bare, collate_c) = collated(&item.expr)?;
                let at = position(bare).or_else(|| output(first, bare));
                let at = at.ok_or_else(|| refused("a set operation ordered by no output"))?;
                gather.sort.push(sort_key(Position::At(narrow(at)?), item, collate_c)?);
            }
        }
        Some(_) => return Err(refused("an ORDER BY in another dialect")),
    }
    if gather.offset.is_some() {
        let mut asked = query.clone();
        gather::without_limits(&mut asked);
        let rendered = render(&Statement::Query(Box::new(asked)))?;
        gather.rewritten = Some((rendered, gather.limit.is_some()));
    }
    Ok(gather)
}

/// The SELECT that names the outputs.
fn first_select(body: &SetExpr) -> Result<&Select, Refused> {
    match body {
        SetExpr::SetOperation { left, .. } => first_select(left),
        SetExpr::Select(select) => Ok(select),
        _ => Err(refused("a set operation that begins with no SELECT")),
    }
}

/// The only output of this name.
fn output(select: &Select, expr: &Expr) -> Option<usize> {
    // Behind `*` no output's place is known.
    if has_wildcard(select) { None } else { named_output(select, expr) }
}
