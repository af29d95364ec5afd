//! Groups whose rows lie on several sources: which partial aggregates the sources are asked for, and what is made of them.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, SelectItem, UnaryOperator, Value,
    ValueWithSpan, VisitMut as _, VisitorMut,
};

use super::{
    condition::{conjuncts, constant},
    gather::{
        Gatherer, aggregate, calls_aggregate, collated, is_constant, is_grouping_set, narrow,
        position, refused, sort_key,
    },
    scope::folded,
};
use crate::{
    Refused,
    merge::{Column, Distinct, Having, Operand, Position},
    plan::Constant,
};

/// Which comparisons are true of a left side that is less, equal, greater.
type Holds = [bool; 3];
const EQUAL: Holds = [false, true, false];
const AT_LEAST: Holds = [false, true, true];
const AT_MOST: Holds = [true, true, false];

impl Gatherer<'_> {
    /// Groups whose rows lie on several sources.
    pub(super) fn groups(&mut self) -> Result<(), Refused> {
        self.windows()?;
        let group_by = match &self.select.group_by {
            GroupByExpr::Expressions(list, with) if with.is_empty() => list.clone(),
            _ => return Err(refused("GROUP BY ALL, ROLLUP or CUBE")),
        };
        if group_by.iter().any(is_grouping_set) {
            return Err(refused("ROLLUP, CUBE or GROUPING SETS"));
        }
        // The sources are asked for other outputs, at other positions.
        let group_by = group_by.iter().map(|expr| self.meant(expr)).collect::<Result<_, _>>()?;
        let mut grouping = Grouping {
            gatherer: self,
            group_by,
            asked: Vec::new(),
            columns: Vec::new(),
            defaults: Vec::new(),
            values: Vec::new(),
            alike: Vec::new(),
        };
        for (at, item) in grouping.gatherer.select.projection.iter().enumerate() {
            grouping.output(at, item)?;
        }
        let visible = narrow(grouping.columns.len())?;
        grouping.hidden_groups()?;
        let (having, asked_having) = grouping.having()?;
        let sort = grouping.sort(visible)?;
        let ungrouped = grouping.group_by.is_empty();
        let Grouping { group_by, asked, columns, defaults, values, alike, .. } = grouping;
        self.gather.alike = alike;
        if !values.is_empty() && ungrouped {
            let told = columns.iter().any(|column| matches!(column, Column::Group(_)));
            if told || !defaults.is_empty() {
                return Err(refused("an aggregate of DISTINCT values beside what is none"));
            }
            self.gather.always_a_row = true;
        }
        // Equal numerics may be written with more or fewer zeros; which of them stays is PostgreSQL's own affair.
        let varies = columns.iter().any(|column| {
            let average = Distinct::Average;
            matches!(column, Column::Avg { .. })
                || matches!(column, Column::Distinct { how, .. } if *how == average)
        });
        if self.select.distinct.is_some() && (varies || !defaults.is_empty()) {
            return Err(refused("DISTINCT of an average or a default over groups"));
        }
        self.gather.hidden = narrow(columns.len())? - visible;
        self.gather.distinct = self.select.distinct.is_some();
        self.gather.sort = sort;
        self.gather.columns = columns;
        self.gather.defaults = defaults;
        self.gather.having = having;
        let select = self.asked_select();
        select.projection = asked;
        select.having = asked_having;
        select.distinct = None;
        select.group_by =
            GroupByExpr::Expressions(group_by.into_iter().chain(values).collect(), Vec::new());
        self.asked.order_by = None;
        super::gather::without_limits(&mut self.asked);
        self.changed = true;
        Ok(())
    }

    /// What an item of GROUP BY means: a position, the expression there.
    fn meant(&self, expr: &Expr) -> Result<Expr, Refused> {
        let Some(at) = position(expr) else { return Ok(expr.clone()) };
        match self.select.projection.get(at) {
            Some(SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. })
                if !is_constant(item) =>
            {
                Ok(item.clone())
            }
            _ => Err(refused("a GROUP BY of a position behind *")),
        }
    }
}

/// What is asked, and what is made of it, as far as it is known.
struct Grouping<'a, 'g> {
    gatherer: &'a Gatherer<'g>,
    group_by: Vec<Expr>,
    asked: Vec<SelectItem>,
    columns: Vec<Column>,
    defaults: Vec<(u16, u16)>,
    /// Expressions whose different values are gathered, by which the sources group as well.
    values: Vec<Expr>,
    /// Literals that must be the same, for expressions that are taken for the same.
    alike: Vec<(usize, usize)>,
}

impl Grouping<'_, '_> {
    fn ask(&mut self, item: SelectItem) -> Result<u16, Refused> {
        let place = narrow(self.asked.len())?;
        self.asked.push(item);
        Ok(place)
    }

    fn add(&mut self, column: Column) -> Result<u16, Refused> {
        let place = narrow(self.columns.len())?;
        self.columns.push(column);
        Ok(place)
    }

    fn is_group(&mut self, expr: &Expr) -> bool {
        let found = self.group_by.iter().find_map(|group| alike(group, expr));
        self.takes_for_same(found).is_some()
    }

    /// The output with the same expression.
    fn same_output(&mut self, expr: &Expr) -> Option<usize> {
        let projection = self.gatherer.select.projection.iter().enumerate();
        let found = projection.filter_map(|(at, item)| match item {
            SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. } => {
                alike(item, expr).map(|literals| (at, literals))
            }
            _ => None,
        });
        let (at, literals) = found.min_by_key(|(_, literals)| literals.len())?;
        self.takes_for_same(Some(literals)).map(|()| at)
    }

    fn takes_for_same(&mut self, literals: Option<Vec<(usize, usize)>>) -> Option<()> {
        self.alike.extend(literals?);
        Some(())
    }

    /// An output of the client's.
    fn output(&mut self, at: usize, item: &SelectItem) -> Result<(), Refused> {
        let (expr, alias) = match item {
            SelectItem::UnnamedExpr(expr) => (expr, None),
            SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias)),
            _ => return Err(refused("* over groups")),
        };
        if self.is_group(expr) || is_constant(expr) {
            let place = self.ask(item.clone())?;
            self.add(Column::Group(place))?;
            return Ok(());
        }
        debug_assert_eq!(at, self.columns.len(), "outputs come first");
        self.gathered(expr, alias)?;
        Ok(())
    }

    /// A column that is made of partial aggregates. Gives its place.
    fn gathered(&mut self, expr: &Expr, alias: Option<&Ident>) -> Result<u16, Refused> {
        let Expr::Function(function) = expr else {
            return Err(refused("an expression of aggregates"));
        };
        if let Some(inner) = coalesced(function) {
            let column = self.gathered(inner, alias)?;
            let default = self.ask(named(expr.clone(), alias))?;
            self.defaults.push((column, default));
            return Ok(column);
        }
        let (name, distinct) = aggregate(function)?;
        let as_function = |name: &str| {
            let mut function = function.clone();
            function.name = vec![Ident::new(name)].into();
            if let FunctionArguments::List(list) = &mut function.args {
                list.duplicate_treatment = None;
            }
            Expr::Function(function)
        };
        let how = match name.as_str() {
            "count" => Distinct::Count,
            "sum" => Distinct::Sum,
            "avg" => Distinct::Average,
            // Once or more makes no difference to these.
            "min" | "max" => {
                let place = self.ask(named(expr.clone(), alias))?;
                let column = if name == "min" { Column::Min(place) } else { Column::Max(place) };
                return self.add(column);
            }
            other => return Err(refused(&format!("the aggregate {other}"))),
        };
        if distinct {
            return self.distinct(how, function, &as_function, alias);
        }
        match how {
            Distinct::Count => {
                let place = self.ask(named(expr.clone(), alias))?;
                self.add(Column::Count(place))
            }
            Distinct::Sum => {
                let place = self.ask(named(expr.clone(), alias))?;
                self.add(Column::Sum(place))
            }
            Distinct::Average => {
                let average = Ident::new("avg");
                let sum = self.ask(named(as_function("sum"), alias.or(Some(&average))))?;
                let count = self.ask(SelectItem::UnnamedExpr(as_function("count")))?;
                self.add(Column::Avg { sum, count })
            }
        }
    }

    /// An aggregate of different values: the sources group by the value too, and the router counts each once.
    fn distinct(
        &mut self,
        how: Distinct,
        function: &Function,
        as_function: &impl Fn(&str) -> Expr,
        alias: Option<&Ident>,
    ) -> Result<u16, Refused> {
        let FunctionArguments::List(FunctionArgumentList { args, .. }) = &function.args else {
            return Err(refused("an aggregate of DISTINCT values"));
        };
        let [FunctionArg::Unnamed(FunctionArgExpr::Expr(value))] = args.as_slice() else {
            return Err(refused("an aggregate of DISTINCT values of several columns"));
        };
        if function.filter.is_some() || is_constant(value) || matches!(value, Expr::Tuple(_)) {
            return Err(refused("an aggregate of DISTINCT values with FILTER, or of a constant"));
        }
        let (shape, name) = match how {
            Distinct::Count => ("count", "count"),
            Distinct::Sum => ("sum", "sum"),
            Distinct::Average => ("sum", "avg"),
        };
        let name = Ident::new(name);
        let shape = self.ask(named(as_function(shape), alias.or(Some(&name))))?;
        let of = self.ask(SelectItem::UnnamedExpr(value.clone()))?;
        if !self.values.contains(value) && !self.is_group(value) {
            self.values.push(value.clone());
        }
        self.add(Column::Distinct { how, of, shape })
    }

    /// Groups that the client does not see, and which are told apart all the same.
    fn hidden_groups(&mut self) -> Result<(), Refused> {
        for expr in self.group_by.clone() {
            if self.same_output(&expr).is_none() {
                self.group_place(&expr)?;
            }
        }
        Ok(())
    }

    fn group_place(&mut self, expr: &Expr) -> Result<u16, Refused> {
        let place = self.ask(SelectItem::UnnamedExpr(expr.clone()))?;
        self.add(Column::Group(place))
    }

    /// The place of an expression that is a group or an aggregate; a hidden column where it is no output.
    fn place_of(&mut self, expr: &Expr) -> Result<u16, Refused> {
        match self.same_output(expr) {
            Some(at) => narrow(at),
            None if self.is_group(expr) => self.group_place(expr),
            None => self.gathered(expr, None),
        }
    }

    // === ORDER BY ===

    fn sort(&mut self, visible: u16) -> Result<Vec<crate::merge::SortKey>, Refused> {
        let mut sort = Vec::new();
        for item in &self.gatherer.order()? {
            let (bare, collate_c) = collated(&item.expr)?;
            let output = position(&item.expr)
                .or_else(|| self.gatherer.named_output(&item.expr))
                .or_else(|| self.same_output(bare));
            let at = match output {
                Some(at) => narrow(at)?,
                None if self.gatherer.select.distinct.is_some() || is_constant(bare) => {
                    return Err(refused("an ORDER BY of what is no output, over groups"));
                }
                None => self.place_of(bare)?,
            };
            if position(&item.expr).is_some() && at >= visible {
                return Err(refused("an ORDER BY of a position that is not there"));
            }
            sort.push(sort_key(Position::At(at), item, collate_c)?);
        }
        Ok(sort)
    }

    // === HAVING ===

    /// What is judged of whole groups, and what the sources are asked already: conditions without aggregates are the same in each part.
    fn having(&mut self) -> Result<(Option<Having<Constant>>, Option<Expr>), Refused> {
        let Some(having) = &self.gatherer.select.having else { return Ok((None, None)) };
        let mut parts = Vec::new();
        conjuncts(having, &mut parts);
        let (whole, part): (Vec<&Expr>, Vec<&Expr>) =
            parts.into_iter().partition(|part| calls_aggregate(*part));
        // Without groups a part's only row stands for all of it, whatever the condition says of another part.
        if !part.is_empty() && self.group_by.is_empty() {
            return Err(refused("HAVING without an aggregate, where nothing is grouped by"));
        }
        let asked = part.into_iter().cloned().reduce(|left, right| Expr::BinaryOp {
            left: Box::new(left),
            op: BinaryOperator::And,
            right: Box::new(right),
        });
        let judged: Vec<_> =
            whole.into_iter().map(|part| self.judged(part)).collect::<Result<_, _>>()?;
        Ok(((!judged.is_empty()).then_some(Having::And(judged)), asked))
    }

    fn judged(&mut self, expr: &Expr) -> Result<Having<Constant>, Refused> {
        let negated =
            |having, negated| if negated { Having::Not(Box::new(having)) } else { having };
        match expr {
            Expr::Nested(inner) => self.judged(inner),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
                Ok(Having::Not(Box::new(self.judged(expr)?)))
            }
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                Ok(Having::And(vec![self.judged(left)?, self.judged(right)?]))
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                Ok(Having::Or(vec![self.judged(left)?, self.judged(right)?]))
            }
            Expr::BinaryOp { left, op, right } => {
                let holds = holds(op)
                    .ok_or_else(|| refused("HAVING with an operator that compares no numbers"))?;
                self.compared(left, holds, right)
            }
            Expr::Between { expr, negated: not, low, high } => {
                let ends = [(AT_LEAST, low), (AT_MOST, high)];
                let both = ends
                    .into_iter()
                    .map(|(holds, end)| self.compared(expr, holds, end))
                    .collect::<Result<_, _>>()?;
                Ok(negated(Having::And(both), *not))
            }
            Expr::InList { expr, list, negated: not } => {
                let any = list
                    .iter()
                    .map(|item| self.compared(expr, EQUAL, item))
                    .collect::<Result<_, _>>()?;
                Ok(negated(Having::Or(any), *not))
            }
            Expr::IsNull(expr) => Ok(Having::IsNull(self.place_of(bare(expr))?)),
            Expr::IsNotNull(expr) => {
                Ok(Having::Not(Box::new(Having::IsNull(self.place_of(bare(expr))?))))
            }
            _ => Err(refused(
                "HAVING with more than comparisons of numbers, over groups that span sources",
            )),
        }
    }

    fn compared(
        &mut self,
        left: &Expr,
        holds: Holds,
        right: &Expr,
    ) -> Result<Having<Constant>, Refused> {
        Ok(Having::Compare { left: self.operand(left)?, holds, right: self.operand(right)? })
    }

    fn operand(&mut self, expr: &Expr) -> Result<Operand<Constant>, Refused> {
        let expr = bare(expr);
        match constant(expr, &self.gatherer.walk.uses) {
            Some(constant) => Ok(Operand::Constant(constant)),
            None => Ok(Operand::Column(self.place_of(expr)?)),
        }
    }
}

fn holds(op: &BinaryOperator) -> Option<Holds> {
    match op {
        BinaryOperator::Lt => Some([true, false, false]),
        BinaryOperator::LtEq => Some(AT_MOST),
        BinaryOperator::Eq => Some(EQUAL),
        BinaryOperator::GtEq => Some(AT_LEAST),
        BinaryOperator::Gt => Some([false, false, true]),
        BinaryOperator::NotEq => Some([true, false, true]),
        _ => None,
    }
}

/// Whether two expressions are the same but for literals that the template left out: these by their places, which must be the same, too.
fn alike(one: &Expr, other: &Expr) -> Option<Vec<(usize, usize)>> {
    let (mut one, mut other) = (one.clone(), other.clone());
    let (mut left, mut right) = (Literals::default(), Literals::default());
    let _ = one.visit(&mut left);
    let _ = other.visit(&mut right);
    let places = left.0.into_iter().zip(right.0).filter(|(left, right)| left != right);
    (one == other).then(|| places.collect())
}

/// Takes the literals out of an expression, and keeps their places.
#[derive(Default)]
struct Literals(Vec<usize>);

impl VisitorMut for Literals {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        if let Value::Placeholder(name) = &mut value.value
            && let Some(place) = name.strip_prefix("$h").and_then(|place| place.parse().ok())
        {
            self.0.push(place);
            "$h".clone_into(name);
        }
        ControlFlow::Continue(())
    }
}

/// Without the parentheses around it.
fn bare(mut expr: &Expr) -> &Expr {
    while let Expr::Nested(inner) = expr {
        expr = inner;
    }
    expr
}

fn named(expr: Expr, alias: Option<&Ident>) -> SelectItem {
    match alias {
        None => SelectItem::UnnamedExpr(expr),
        Some(alias) => SelectItem::ExprWithAlias { expr, alias: alias.clone() },
    }
}

/// The aggregate of `coalesce(aggregate, constant)`.
fn coalesced(function: &Function) -> Option<&Expr> {
    let name: Vec<String> =
        function.name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
    let FunctionArguments::List(list) = &function.args else { return None };
    let plain = function.over.is_none()
        && function.filter.is_none()
        && function.within_group.is_empty()
        && list.clauses.is_empty()
        && list.duplicate_treatment != Some(DuplicateTreatment::Distinct);
    match (name.as_slice(), list.args.as_slice()) {
        (
            [name],
            [
                FunctionArg::Unnamed(FunctionArgExpr::Expr(inner @ Expr::Function(_))),
                FunctionArg::Unnamed(FunctionArgExpr::Expr(default)),
            ],
        ) if plain && name == "coalesce" && is_constant(default) => Some(inner),
        _ => None,
    }
}
