//! How a statement is answered in parts: what every source is asked, and how its rows become one answer.

use sqlparser::ast::{
    Distinct, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
    GroupByExpr, LimitClause, OrderBy, OrderByExpr, OrderByKind, OrderBySort, Query, Select,
    SelectItem, SetExpr, Statement, Value, WindowType,
};

use super::{
    condition::{ParameterUses, constant},
    function::{self, Nature},
    render::{Rendered, render},
    scope::{Scope, Scopes, folded},
    seat::Lies,
    set_operation,
    walk::Walk,
};
use crate::{
    RefusalClass, Refused, Values,
    merge::{Column, Having, Position, SortKey},
    plan::{Constant, Place},
};

/// How a statement is answered in parts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gather {
    pub(crate) sort: Vec<SortKey>,
    pub(crate) distinct: bool,
    pub(crate) columns: Vec<Column>,
    /// Columns with what stands there when they are NULL.
    pub(crate) defaults: Vec<(u16, u16)>,
    pub(crate) having: Option<Having<Constant>>,
    pub(crate) always_a_row: bool,
    /// Only how many rows there are is told, under this name.
    pub(crate) counted: Option<String>,
    /// Literals, counted from 1, that must be the same for this to hold.
    pub(crate) alike: Vec<(usize, usize)>,
    pub(crate) hidden: u16,
    pub(crate) limit: Option<Constant>,
    pub(crate) offset: Option<Constant>,
    /// What the sources are asked instead, and whether `LIMIT limit + offset` is put behind it.
    pub(crate) rewritten: Option<(Rendered, bool)>,
}

impl Gather {
    /// Refuses values by which two expressions that were taken for the same are not.
    pub(super) fn ensure_alike(&self, values: &Values<'_>) -> Result<(), Refused> {
        let raw = |place: usize| {
            let literal = values.literals.get(place.wrapping_sub(1));
            literal.map(|literal| literal.raw(values.sql))
        };
        if self.alike.iter().all(|(one, other)| raw(*one) == raw(*other)) {
            return Ok(());
        }
        Err(refused("an expression that is neither group nor plain aggregate"))
    }
}

pub(crate) fn refused(why: &str) -> Refused {
    let cause =
        format!("the statement needs several sources, and cannot be answered in parts: {why}");
    let remedy = "Give a value for the group's key, or send it to each source";
    Refused::new(RefusalClass::NotMergeable, cause, remedy)
}

/// LIMIT, or FETCH FIRST, and OFFSET.
pub(super) fn limits(query: &Query) -> Result<(Option<Constant>, Option<Constant>), Refused> {
    let (limit, offset) = match &query.limit_clause {
        None => (None, None),
        Some(LimitClause::LimitOffset { limit, offset, limit_by }) if limit_by.is_empty() => {
            (limit.as_ref(), offset.as_ref().map(|offset| &offset.value))
        }
        Some(_) => return Err(refused("a LIMIT in another dialect")),
    };
    // A parameter of LIMIT is a bigint whatever else is said of it.
    let uses = ParameterUses::default();
    let value = |expr: Option<&Expr>| {
        let value = expr.map(|expr| constant(expr, &uses));
        match value {
            None => Ok(None),
            Some(Some(constant)) if constant.cast.is_none() => Ok(Some(constant)),
            Some(_) => Err(refused("a LIMIT or OFFSET that is computed")),
        }
    };
    let (limit, offset) = (value(limit)?, value(offset)?);
    match &query.fetch {
        None => Ok((limit, offset)),
        Some(fetch) if fetch.with_ties || fetch.percent || limit.is_some() => {
            Err(refused("FETCH FIRST ... WITH TIES"))
        }
        Some(fetch) => match &fetch.quantity {
            Some(quantity) => Ok((value(Some(quantity))?, offset)),
            None => {
                let place = Place::Number("1".to_owned());
                Ok((Some(Constant { place, negative: false, cast: None }), offset))
            }
        },
    }
}

/// What the sources are asked of a query that sorts and limits: the same without the OFFSET, and with LIMIT for all of them put behind it.
pub(super) fn without_limits(asked: &mut Query) {
    asked.limit_clause = None;
    asked.fetch = None;
}

pub(super) fn passed_on() -> Gather {
    Gather {
        sort: Vec::new(),
        distinct: false,
        columns: Vec::new(),
        defaults: Vec::new(),
        having: None,
        always_a_row: false,
        counted: None,
        alike: Vec::new(),
        hidden: 0,
        limit: None,
        offset: None,
        rewritten: None,
    }
}

pub(super) fn gather(statement: &Statement, walk: &Walk<'_>) -> Result<Gather, Refused> {
    let Statement::Query(query) = statement else { return Ok(passed_on()) };
    let select = match &*query.body {
        SetExpr::Select(select) => select,
        SetExpr::SetOperation { .. } => return set_operation::gather(query),
        _ => return Err(refused("VALUES, or a query in parentheses")),
    };
    if select.selection.is_none() && select.from.is_empty() {
        return Err(refused("a query without a table"));
    }
    let mut gatherer = Gatherer {
        walk,
        query,
        select,
        scope: outermost(query, select, walk),
        asked: (**query).clone(),
        changed: false,
        gather: passed_on(),
    };
    (gatherer.gather.limit, gatherer.gather.offset) = limits(query)?;
    if gatherer.is_grouped() && !gatherer.is_grouped_by_key() {
        gatherer.groups()?;
    } else {
        gatherer.rows()?;
    }
    gatherer.finish()
}

/// The names of the outermost block, told again: its seats were the last to be taken down under these names.
fn outermost(query: &Query, select: &Select, walk: &Walk<'_>) -> Scope {
    let mut scope = Scope::default();
    let plain = query.with.is_none()
        && select.from.iter().all(|item| {
            item.joins.is_empty()
                && matches!(item.relation, sqlparser::ast::TableFactor::Table { .. })
        });
    if let ([item], true) = (select.from.as_slice(), plain)
        && let sqlparser::ast::TableFactor::Table { name, alias, .. } = &item.relation
    {
        let known = name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
        let shown = alias.as_ref().map_or(known, |alias| folded(&alias.name));
        // The walk takes down FROM before anything else, and a plain table is one seat.
        if walk.seats.0.first().is_some_and(|seat| matches!(seat.lies, Lies::Sharded { .. })) {
            scope.tables.push((shown, 0));
        }
    }
    scope
}

pub(super) struct Gatherer<'g> {
    pub(super) walk: &'g Walk<'g>,
    query: &'g Query,
    pub(super) select: &'g Select,
    /// Enough of the block's names to know its key; empty when that is not sure.
    scope: Scope,
    /// What the sources are asked.
    pub(super) asked: Query,
    pub(super) changed: bool,
    pub(super) gather: Gather,
}

impl Gatherer<'_> {
    pub(super) fn asked_select(&mut self) -> &mut Select {
        match &mut *self.asked.body {
            SetExpr::Select(select) => select,
            _ => unreachable!("the body was a SELECT a moment ago"),
        }
    }

    fn is_grouped(&self) -> bool {
        let grouped = match &self.select.group_by {
            GroupByExpr::All(_) => true,
            GroupByExpr::Expressions(list, with) => !list.is_empty() || !with.is_empty(),
        };
        grouped || self.select.having.is_some() || calls_aggregate(&self.select.projection)
    }

    pub(super) fn is_key(&self, expr: &Expr) -> bool {
        let scopes = Scopes { inner: &self.scope, outer: None };
        scopes.column(expr, &self.walk.seats).is_some()
    }

    fn is_grouped_by_key(&self) -> bool {
        matches!(&self.select.group_by, GroupByExpr::Expressions(list, with)
            if with.is_empty()
                && list.iter().all(|expr| !is_grouping_set(expr))
                && list.iter().any(|expr| self.is_key(self.output_or(expr))))
    }

    /// What a position or an output's name stands for; the expression itself otherwise.
    fn output_or<'e>(&'e self, expr: &'e Expr) -> &'e Expr {
        let at = position(expr).or_else(|| self.named_output(expr));
        let item = at.and_then(|at| self.select.projection.get(at));
        match item {
            // GROUP BY takes a name as a column first, and as an output only if there is none.
            Some(SelectItem::UnnamedExpr(item)) => item,
            Some(SelectItem::ExprWithAlias { expr: item, .. }) if position(expr).is_some() => item,
            _ => expr,
        }
    }

    /// The output that `expr` names, in ORDER BY.
    pub(super) fn named_output(&self, expr: &Expr) -> Option<usize> {
        named_output(self.select, expr)
    }

    /// The output with the same expression.
    pub(super) fn same_output(&self, expr: &Expr) -> Option<usize> {
        self.select.projection.iter().position(|item| match item {
            SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. } => {
                item == expr
            }
            _ => false,
        })
    }

    pub(super) fn order(&self) -> Result<Vec<OrderByExpr>, Refused> {
        match &self.query.order_by {
            None => Ok(Vec::new()),
            Some(OrderBy { kind: OrderByKind::Expressions(list), interpolate: None }) => {
                Ok(list.clone())
            }
            Some(_) => Err(refused("an ORDER BY in another dialect")),
        }
    }

    /// Rows that are passed on one by one, perhaps sorted, perhaps each once.
    fn rows(&mut self) -> Result<(), Refused> {
        self.windows()?;
        match &self.select.distinct {
            None | Some(Distinct::All) => {}
            Some(Distinct::Distinct) => {
                let has_key = self.select.projection.iter().any(|item| match item {
                    SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                        self.is_key(expr)
                    }
                    _ => false,
                });
                self.gather.distinct = !has_key;
            }
            Some(Distinct::On(list)) => {
                if !list.iter().any(|expr| self.is_key(self.output_or(expr))) {
                    return Err(refused("DISTINCT ON without the group's key"));
                }
            }
        }
        let order = self.order()?;
        let mut hidden: Vec<Expr> = Vec::new();
        let mut keys = Vec::new();
        for item in &order {
            let (bare, collate_c) = collated(&item.expr)?;
            let output = position(&item.expr)
                .or_else(|| self.named_output(&item.expr))
                .or_else(|| self.same_output(bare))
                .filter(|at| *at < self.select.projection.len() && !has_wildcard(self.select));
            if is_constant(bare) && position(bare).is_none() {
                return Err(refused("an ORDER BY of a constant"));
            }
            if output.is_none() && position(&item.expr).is_some() {
                return Err(refused("an ORDER BY of a position behind *"));
            }
            if output.is_none() && self.select.distinct.is_some() {
                return Err(refused("a DISTINCT with an ORDER BY of something else"));
            }
            let place = match output {
                Some(at) => Err(at),
                None => {
                    hidden.push(self.hidden_expression(&item.expr, bare)?);
                    Ok(hidden.len() - 1)
                }
            };
            keys.push((place, item, collate_c));
        }
        let count = hidden.len();
        for (place, item, collate_c) in keys {
            let column = match place {
                Err(at) => Position::At(narrow(at)?),
                Ok(at) => Position::FromEnd(narrow(count - 1 - at)?),
            };
            self.gather.sort.push(sort_key(column, item, collate_c)?);
        }
        self.gather.hidden = narrow(count)?;
        if count > 0 {
            self.changed = true;
            let items = hidden.into_iter().map(SelectItem::UnnamedExpr);
            self.asked_select().projection.extend(items);
        }
        Ok(())
    }

    /// An expression of ORDER BY as an output of its own. An output's alias means nothing there.
    fn hidden_expression(&self, written: &Expr, bare: &Expr) -> Result<Expr, Refused> {
        if let Expr::Identifier(ident) = written
            && self.select.projection.iter().any(|item| {
                matches!(item, SelectItem::ExprWithAlias { alias, .. } if folded(alias) == folded(ident))
            })
        {
            return Err(refused("an ORDER BY of a name that stands for several outputs"));
        }
        Ok(bare.clone())
    }

    /// Window functions must look at rows of one key only.
    pub(super) fn windows(&self) -> Result<(), Refused> {
        if !self.select.named_window.is_empty() {
            return Err(refused("a WINDOW clause"));
        }
        let mut windows = Vec::new();
        collect_windows(&self.select.projection, &mut windows);
        if let Some(order_by) = &self.query.order_by {
            collect_windows(order_by, &mut windows);
        }
        for window in windows {
            let keyed = matches!(&window, WindowType::WindowSpec(spec)
                if spec.window_name.is_none() && spec.partition_by.iter().any(|expr| self.is_key(expr)));
            if !keyed {
                return Err(refused("a window function without PARTITION BY the group's key"));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Gather, Refused> {
        let limited = self.gather.limit.is_some();
        let offset = self.gather.offset.is_some();
        let grouped = !self.gather.columns.is_empty();
        if offset && !grouped {
            without_limits(&mut self.asked);
            self.changed = true;
        }
        if self.changed {
            let append = limited && !grouped;
            if append {
                without_limits(&mut self.asked);
            }
            let rendered = render(&Statement::Query(Box::new(self.asked)))?;
            self.gather.rewritten = Some((rendered, append));
        }
        Ok(self.gather)
    }
}

pub(super) fn narrow(number: usize) -> Result<u16, Refused> {
    u16::try_from(number).map_err(|_| refused("more columns than a row can have"))
}

/// A position in ORDER BY or GROUP BY, counted from 0.
pub(super) fn position(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(text, false) => text.parse::<usize>().ok()?.checked_sub(1),
            _ => None,
        },
        _ => None,
    }
}

/// Whether outputs have no known places.
pub(super) fn has_wildcard(select: &Select) -> bool {
    let wild = |item: &SelectItem| {
        matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..))
    };
    select.projection.iter().any(wild)
}

/// The only output of the name that `expr` is.
pub(super) fn named_output(select: &Select, expr: &Expr) -> Option<usize> {
    let Expr::Identifier(wanted) = expr else { return None };
    let wanted = folded(wanted);
    let mut found = select.projection.iter().enumerate().filter(|(_, item)| match item {
        SelectItem::ExprWithAlias { alias, .. } => folded(alias) == wanted,
        SelectItem::UnnamedExpr(Expr::Identifier(name)) => folded(name) == wanted,
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => {
            parts.last().is_some_and(|last| folded(last) == wanted)
        }
        _ => false,
    });
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Some(at),
        _ => None,
    }
}

pub(super) fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Value(_) => true,
        Expr::Nested(inner)
        | Expr::Cast { expr: inner, .. }
        | Expr::UnaryOp { expr: inner, .. } => is_constant(inner),
        _ => false,
    }
}

pub(super) fn is_grouping_set(expr: &Expr) -> bool {
    matches!(expr, Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) | Expr::Tuple(_))
}

/// The expression without its collation, and whether that is `C`.
pub(super) fn collated(expr: &Expr) -> Result<(&Expr, bool), Refused> {
    match expr {
        Expr::Collate { expr, collation } => {
            let name = collation.0.last().and_then(|part| part.as_ident()).map(folded);
            match name.as_deref() {
                Some("C" | "POSIX") => Ok((expr, true)),
                _ => Err(refused("an ORDER BY of a collation other than \"C\"")),
            }
        }
        other => Ok((other, false)),
    }
}

pub(super) fn sort_key(
    column: Position,
    item: &OrderByExpr,
    collate_c: bool,
) -> Result<SortKey, Refused> {
    let descending = match &item.options.sort {
        None | Some(OrderBySort::Asc) => false,
        Some(OrderBySort::Desc) => true,
        Some(_) => return Err(refused("ORDER BY ... USING")),
    };
    let nulls_first = item.options.nulls_first.unwrap_or(descending);
    Ok(SortKey { column, descending, nulls_first, collate_c })
}

/// The name of an aggregate that is called plainly, and whether it takes each value once.
pub(super) fn aggregate(function: &Function) -> Result<(String, bool), Refused> {
    let plain = function.over.is_none()
        && function.within_group.is_empty()
        && function.null_treatment.is_none()
        && function::nature(function) == Nature::Aggregate;
    let FunctionArguments::List(list) = &function.args else {
        return Err(refused("an expression that is neither group nor aggregate"));
    };
    let whole = list.clauses.is_empty()
        && list.args.iter().all(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => !calls_aggregate(expr),
            FunctionArg::Unnamed(FunctionArgExpr::Wildcard) => true,
            _ => false,
        });
    if !plain || !whole {
        return Err(refused("an expression that is neither group nor plain aggregate"));
    }
    let name = function.name.0.last().and_then(|part| part.as_ident()).map(folded);
    let distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
    Ok((name.unwrap_or_default(), distinct))
}

pub(super) fn calls_aggregate<V: sqlparser::ast::Visit>(node: &V) -> bool {
    struct Calls(usize);
    impl sqlparser::ast::Visitor for Calls {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> std::ops::ControlFlow<()> {
            self.0 += 1;
            std::ops::ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> std::ops::ControlFlow<()> {
            self.0 -= 1;
            std::ops::ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> std::ops::ControlFlow<()> {
            match expr {
                Expr::Function(function)
                    if self.0 == 0
                        && function.over.is_none()
                        && function::nature(function) == Nature::Aggregate =>
                {
                    std::ops::ControlFlow::Break(())
                }
                _ => std::ops::ControlFlow::Continue(()),
            }
        }
    }
    node.visit(&mut Calls(0)).is_break()
}

fn collect_windows<V: sqlparser::ast::Visit>(node: &V, found: &mut Vec<WindowType>) {
    struct Windows<'f>(&'f mut Vec<WindowType>);
    impl sqlparser::ast::Visitor for Windows<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> std::ops::ControlFlow<()> {
            if let Expr::Function(function) = expr {
                self.0.extend(function.over.clone());
            }
            std::ops::ControlFlow::Continue(())
        }
    }
    let _ = node.visit(&mut Windows(found));
}
