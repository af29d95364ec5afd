//! A query around another that adds nothing, or only counts its rows: `SELECT * FROM (...) s`, `SELECT count(*) FROM (...) s`. Paging libraries
//! write these around whatever they are given. What cannot be answered in parts as it stands may be answered by its inner query.

use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Query, Select, SelectItem,
    SetExpr, TableFactor,
};

use super::{derived::is_plain, gather::aggregate, scope::folded};

/// What is said of the inner rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// They are passed on.
    All,
    /// How many they are, under this name.
    Count(String),
}

/// The inner query, and what is said of its rows.
pub(super) fn around(query: &Query) -> Option<(&Query, Told)> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let [item] = select.from.as_slice() else { return None };
    let TableFactor::Derived { lateral: false, subquery, alias, .. } = &item.relation else {
        return None;
    };
    let bare = query.with.is_none() && is_plain(query) && item.joins.is_empty();
    let renames = alias.as_ref().is_none_or(|alias| !alias.columns.is_empty());
    let told = told(select)?;
    // The form in which the count is told is that of the inner columns.
    let columnless =
        matches!(&*subquery.body, SetExpr::Select(inner) if inner.projection.is_empty());
    if columnless {
        return None;
    }
    (bare && is_bare(select) && !renames).then_some((&**subquery, told))
}

/// Whether nothing is left out, sorted or made of the rows.
fn is_bare(select: &Select) -> bool {
    let ungrouped = matches!(&select.group_by, GroupByExpr::Expressions(list, with)
        if list.is_empty() && with.is_empty());
    ungrouped
        && select.distinct.is_none()
        && select.selection.is_none()
        && select.having.is_none()
        && select.into.is_none()
        && select.named_window.is_empty()
}

fn told(select: &Select) -> Option<Told> {
    let (expr, name) = match select.projection.as_slice() {
        [SelectItem::Wildcard(options)] if *options == Default::default() => {
            return Some(Told::All);
        }
        [SelectItem::UnnamedExpr(expr)] => (expr, "count".to_owned()),
        [SelectItem::ExprWithAlias { expr, alias }] => (expr, folded(alias)),
        _ => return None,
    };
    let Expr::Function(function) = expr else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    let all = matches!(list.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]);
    let plain = all && function.filter.is_none();
    (plain && aggregate(function).ok()? == ("count".to_owned(), false)).then_some(Told::Count(name))
}
