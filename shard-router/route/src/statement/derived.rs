//! Subqueries in FROM: which pass their rows on one by one, and under what names they pass on a key.

use sqlparser::ast::{Expr, GroupByExpr, Query, Select, SelectItem, SetExpr};

use super::{
    function,
    scope::{Scopes, folded},
    seat::Seats,
    walk::Block,
};
use crate::KeyColumn;

/// The SELECT of a query that is nothing but that SELECT, and makes each of its rows from one row of FROM.
fn row_by_row(query: &Query) -> Option<&Select> {
    let SetExpr::Select(select) = &*query.body else { return None };
    (query.with.is_none() && is_plain(query) && selects_row_by_row(select)).then_some(select)
}

/// Whether nothing is sorted, limited or locked.
pub(super) fn is_plain(query: &Query) -> bool {
    query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty()
}

/// Whether each row is made from one row of FROM.
pub(super) fn selects_row_by_row(select: &Select) -> bool {
    let ungrouped = matches!(&select.group_by, GroupByExpr::Expressions(list, with)
        if list.is_empty() && with.is_empty());
    select.distinct.is_none()
        && select.having.is_none()
        && ungrouped
        && !function::gathers(&select.projection)
}

/// Whether the rows of `query` on several sources together are the rows of all.
pub(super) fn is_row_by_row(query: &Query) -> bool {
    row_by_row(query).is_some()
}

/// The seat whose key columns `query` passes on, and under what names.
pub(super) fn passes_on(
    query: &Query,
    block: &Block,
    seats: &Seats,
) -> Option<(usize, Vec<KeyColumn>)> {
    let select = row_by_row(query)?;
    let scopes = Scopes { inner: &block.scope, outer: None };
    let mut found: Option<usize> = None;
    let mut columns: Vec<KeyColumn> = Vec::new();
    let mut add = |seat: usize, columns_of: Vec<KeyColumn>| {
        if found.is_none_or(|known| known == seat) {
            found = Some(seat);
            columns.extend(columns_of);
        }
    };
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => {
                if let Some((seat, column)) = scopes.column(expr, seats) {
                    add(seat, vec![seats.0[seat].columns[column].clone()]);
                }
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                if let Some((seat, column)) = scopes.column(expr, seats) {
                    let name = folded(alias).into();
                    add(seat, vec![KeyColumn { name, ..seats.0[seat].columns[column].clone() }]);
                }
            }
            SelectItem::Wildcard(_) => {
                // Of several tables, two may have a column of the same name.
                if let [(_, seat)] = block.scope.tables.as_slice() {
                    add(*seat, seats.0[*seat].columns.clone());
                }
            }
            SelectItem::QualifiedWildcard(..) | SelectItem::ExprWithAliases { .. } => {}
        }
    }
    let seat = found.filter(|seat| seats.group_of(*seat).is_some())?;
    // A name that another item has too is nobody's.
    let names = output_names(select);
    columns.retain(|column| names.iter().filter(|name| **name == *column.name).count() <= 1);
    (!columns.is_empty()).then_some((seat, columns))
}

fn output_names(select: &Select) -> Vec<String> {
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
        SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(folded(ident)),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(folded),
        SelectItem::UnnamedExpr(_)
        | SelectItem::ExprWithAliases { .. }
        | SelectItem::QualifiedWildcard(..)
        | SelectItem::Wildcard(_) => None,
    };
    select.projection.iter().filter_map(name).collect()
}
