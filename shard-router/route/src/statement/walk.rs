//! Walks a query and takes down its seats, what is said of their keys, and whether its parts can be answered apart.

use std::{collections::BTreeSet, ops::ControlFlow};

use sqlparser::ast::{
    Expr, JoinOperator, ObjectName, Query, Select, SetExpr, Statement, TableFactor, TableWithJoins,
    Visit, Visitor,
};

use super::{
    condition::{ParameterUses, conjuncts, equal_keys, keys},
    derived,
    join::JoinKind,
    scope::{Scope, Scopes, folded},
    seat::{Lies, Seats},
    set_operation::Side,
};
use crate::{Placement, RefusalClass, Refused, Topology, limit::SEATS_MAX};

/// Common table expressions in sight, innermost last.
pub(super) type Ctes<'q> = Vec<(String, CteBody<'q>)>;

/// What a common table expression stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum CteBody<'q> {
    /// A query, taken down anew wherever it is named.
    Query(&'q Query, &'q [sqlparser::ast::TableAliasColumnDef]),
    /// Rows that a write returns, or a recursion: taken down once, where it stands.
    Opaque,
}

/// What a walk has found so far.
#[derive(Debug)]
pub(crate) struct Walk<'r> {
    pub(crate) rules: &'r Topology,
    pub(crate) uses: ParameterUses,
    pub(crate) seats: Seats,
    /// The first reason why the parts cannot be answered apart.
    pub(crate) apart: Result<(), String>,
    /// Relations met, to be compared with what the parser's own visitor meets.
    pub(crate) relations: BTreeSet<String>,
    /// Derived seats with sharded tables behind them.
    spread: BTreeSet<usize>,
    /// Whether something is written in a common table expression.
    pub(crate) writes: bool,
    /// Targets of writes within common table expressions.
    pub(crate) targets: Vec<usize>,
}

/// What a block is, seen from around it.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The sharded seats of the block itself and of what is nested in it.
    pub(crate) sharded: Vec<usize>,
    pub(crate) scope: Scope,
    /// What it is as a side of a set operation.
    pub(super) side: Side,
}

impl<'r> Walk<'r> {
    pub(crate) fn new(rules: &'r Topology, uses: ParameterUses) -> Self {
        Self {
            rules,
            uses,
            seats: Seats::default(),
            apart: Ok(()),
            relations: BTreeSet::new(),
            spread: BTreeSet::new(),
            writes: false,
            targets: Vec::new(),
        }
    }

    /// Takes down that the statement cannot be answered in parts, unless a reason stands already.
    pub(crate) fn not_apart(&mut self, why: &str) {
        if self.apart.is_ok() {
            self.apart = Err(why.to_owned());
        }
    }

    /// Walks a query. The block returned is that of its only SELECT, or what all its parts hold.
    pub(super) fn query<'q>(
        &mut self,
        query: &'q Query,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Block, Refused> {
        let mut inner = ctes.clone();
        if let Some(with) = &query.with {
            for cte in &with.cte_tables {
                let name = folded(&cte.alias.name);
                let simple = !with.recursive && matches!(*cte.query.body, SetExpr::Select(_));
                let is_write = Self::is_write(&cte.query.body);
                if simple || (!with.recursive && !is_write) {
                    inner.push((name, CteBody::Query(&cte.query, &cte.alias.columns)));
                    // Named nowhere, it is still there: its tables must exist and its functions run.
                    if cte.materialized.is_some() {
                        self.not_apart("a materialized common table expression");
                    }
                } else {
                    if with.recursive {
                        inner.push((name.clone(), CteBody::Opaque));
                    }
                    let block = self.query(&cte.query, outer, &inner)?;
                    if !block.sharded.is_empty() || is_write {
                        self.not_apart("a common table expression that writes or recurs");
                    }
                    inner.push((name, CteBody::Opaque));
                }
            }
        }
        let mut block = self.set(&query.body, outer, &inner)?;
        let mut behind = self.nested(&query.order_by, &block.scope, outer, &inner)?;
        behind.extend(self.nested(&query.limit_clause, &block.scope, outer, &inner)?);
        if !behind.is_empty() {
            self.not_apart("a subquery in ORDER BY or LIMIT");
            block.sharded.extend(behind);
        }
        Ok(block)
    }

    fn is_write(body: &SetExpr) -> bool {
        matches!(
            body,
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)
        )
    }

    fn set<'q>(
        &mut self,
        body: &'q SetExpr,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Block, Refused> {
        match body {
            SetExpr::Select(select) => self.select(select, outer, ctes),
            SetExpr::Query(query) => {
                let block = self.query(query, outer, ctes)?;
                if query.with.is_none() && derived::is_plain(query) {
                    return Ok(block);
                }
                let side = Side::limited(!block.sharded.is_empty());
                Ok(Block { side, ..block })
            }
            SetExpr::Values(values) => {
                let scope = Scope::default();
                for row in &values.rows {
                    for value in &row.content {
                        self.nested(value, &scope, outer, ctes)?;
                    }
                }
                Ok(Block::default())
            }
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                let left = self.set(left, outer, ctes)?;
                let right = self.set(right, outer, ctes)?;
                let sharded = [left.sharded, right.sharded].concat();
                let side = left.side.combined(*op, *set_quantifier, &right.side);
                let side = side.unwrap_or_else(|why| {
                    self.not_apart(why);
                    Side::default()
                });
                Ok(Block { sharded, scope: Scope::default(), side })
            }
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement) => self.written(statement, outer, ctes),
            SetExpr::Merge(_) => Err(unsupported("MERGE")),
            SetExpr::Table(_) => Err(unsupported("TABLE, which can be written SELECT * FROM")),
        }
    }

    fn written<'q>(
        &mut self,
        statement: &'q Statement,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Block, Refused> {
        self.writes = true;
        self.not_apart("a common table expression that writes");
        match statement {
            Statement::Update(update) => {
                let (target, block) = self.update(update, outer, ctes)?;
                self.targets.push(target);
                Ok(block)
            }
            Statement::Delete(delete) => {
                let (target, block) = self.delete(delete, outer, ctes)?;
                self.targets.push(target);
                Ok(block)
            }
            _ => Err(unsupported("INSERT in a common table expression")),
        }
    }

    fn select<'q>(
        &mut self,
        select: &'q Select,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Block, Refused> {
        if select.into.is_some() {
            return Err(unsupported("SELECT INTO"));
        }
        let mut block = Block::default();
        for item in &select.from {
            self.joined(item, &mut block, outer, ctes)?;
        }
        if let Some(condition) = &select.selection {
            self.condition(condition, &mut block, outer, ctes)?;
        }
        let scope = &block.scope;
        let mut found = self.nested(&select.projection, scope, outer, ctes)?;
        found.extend(self.nested(&select.group_by, scope, outer, ctes)?);
        found.extend(self.nested(&select.having, scope, outer, ctes)?);
        found.extend(self.nested(&select.distinct, scope, outer, ctes)?);
        block.sharded.extend(found);
        if let Some(&first) = block.sharded.first() {
            let own: Vec<usize> = block.scope.tables.iter().map(|(_, seat)| *seat).collect();
            if !own.iter().any(|seat| self.is_spread(*seat)) {
                self.not_apart("a sharded table within a query on rows that every source has");
            }
            let class = self.seats.class_of(first);
            if block.sharded.iter().any(|seat| self.seats.class_of(*seat) != class) {
                self.not_apart("tables that are not joined by their group's key");
            }
        }
        let is_spread = !block.sharded.is_empty();
        block.side = Side::of_select(select, &block.scope, &self.seats, is_spread);
        Ok(block)
    }

    /// One item of FROM with its joins.
    pub(super) fn joined<'q>(
        &mut self,
        item: &'q TableWithJoins,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(), Refused> {
        // What stands beside this item in FROM is not in sight of its conditions.
        let around = std::mem::take(&mut block.scope);
        let walked = self.chain(item, block, outer, ctes);
        let own = std::mem::replace(&mut block.scope, around);
        block.scope.tables.extend(own.tables);
        block.scope.merged.extend(own.merged);
        block.scope.natural |= own.natural;
        walked
    }

    fn chain<'q>(
        &mut self,
        item: &'q TableWithJoins,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(), Refused> {
        let first = self.factor(&item.relation, block, outer, ctes)?;
        // Sharded tables on the left so far: what an outer join to the right keeps must be theirs.
        let mut left_is_sharded = self.holds_sharded(&first);
        for join in &item.joins {
            let before = block.scope.tables.len();
            let right = self.factor(&join.relation, block, outer, ctes)?;
            let right_is_sharded = self.holds_sharded(&right);
            let (constraint, kind) = match &join.join_operator {
                JoinOperator::Join(on) | JoinOperator::Inner(on) | JoinOperator::CrossJoin(on) => {
                    (on, JoinKind::Inner)
                }
                JoinOperator::Left(on) | JoinOperator::LeftOuter(on) => (on, JoinKind::Left),
                JoinOperator::Right(on) | JoinOperator::RightOuter(on) => (on, JoinKind::Right),
                JoinOperator::FullOuter(on) => (on, JoinKind::Full),
                _ => return Err(unsupported("a join that PostgreSQL does not have")),
            };
            self.constraint(constraint, kind, before, block, outer, ctes)?;
            let kept = match kind {
                JoinKind::Inner => true,
                JoinKind::Left => left_is_sharded || !right_is_sharded,
                JoinKind::Right => right_is_sharded || !left_is_sharded,
                JoinKind::Full => left_is_sharded == right_is_sharded,
            };
            if !kept {
                self.not_apart("an outer join that keeps rows which every source has");
            }
            // Behind a right or full join, rows of the left side may be missing from a row that stays.
            left_is_sharded = match kind {
                JoinKind::Inner => left_is_sharded || right_is_sharded,
                JoinKind::Left => left_is_sharded,
                JoinKind::Right => right_is_sharded,
                JoinKind::Full => left_is_sharded && right_is_sharded,
            };
        }
        Ok(())
    }

    fn holds_sharded(&self, seats: &[usize]) -> bool {
        seats.iter().any(|seat| self.is_spread(*seat))
    }

    /// Whether a seat's rows differ from source to source.
    fn is_spread(&self, seat: usize) -> bool {
        self.spread.contains(&seat) || self.seats.group_of(seat).is_some()
    }

    /// A condition that every row of the block fulfills.
    pub(super) fn condition<'q>(
        &mut self,
        condition: &'q Expr,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(), Refused> {
        let scopes = Scopes { inner: &block.scope, outer };
        for (_, seat) in &block.scope.tables {
            if self.seats.group_of(*seat).is_some() {
                let keys = keys(condition, *seat, &scopes, &self.seats, &self.uses);
                self.seats.narrow(*seat, keys);
            }
        }
        let mut parts = Vec::new();
        conjuncts(condition, &mut parts);
        for part in parts {
            if let Some((one, other)) = equal_keys(part, &scopes, &self.seats) {
                let inner = |seat| block.scope.tables.iter().any(|(_, known)| *known == seat);
                self.seats.unite(one, other);
                // A row of an outer block bears on those within, and never the other way round.
                if inner(one) {
                    self.seats.tie(one, other);
                }
                if inner(other) {
                    self.seats.tie(other, one);
                }
            }
        }
        let found = self.nested(condition, &block.scope, outer, ctes)?;
        block.sharded.extend(found);
        Ok(())
    }

    /// One item of FROM. Gives the seats that it added to the scope.
    fn factor<'q>(
        &mut self,
        factor: &'q TableFactor,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Vec<usize>, Refused> {
        match factor {
            TableFactor::Table { name, alias, args: None, sample: None, version: None, .. } => {
                let known = name.0.last().and_then(|part| part.as_ident()).map(folded);
                let known = known.ok_or_else(|| unsupported("a table's name that is computed"))?;
                self.relations.insert(name.to_string());
                let shown =
                    alias.as_ref().map_or_else(|| known.clone(), |alias| folded(&alias.name));
                let renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                let cte = ctes.iter().rev().find(|(cte, _)| name.0.len() == 1 && *cte == known);
                let seat = match cte.map(|(_, body)| *body) {
                    None => self.table(name, &known, renamed)?,
                    Some(CteBody::Opaque) => {
                        self.seats.add(&known, Lies::Derived(None), Vec::new())
                    }
                    Some(CteBody::Query(query, columns)) => {
                        // A name in its own body means what it meant before.
                        let at = ctes.iter().rposition(|(cte, _)| *cte == known).unwrap_or(0);
                        let renamed = renamed || !columns.is_empty();
                        self.derive(&known, query, renamed, None, &ctes[..at].to_vec(), block)?
                    }
                };
                if self.seats.is_sharded(seat) {
                    block.sharded.push(seat);
                }
                block.scope.tables.push((shown, seat));
                self.bounded()?;
                Ok(vec![seat])
            }
            TableFactor::Derived { lateral, subquery, alias, sample: None } => {
                let name = alias.as_ref().map_or_else(String::new, |alias| folded(&alias.name));
                let renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                let seat = if *lateral {
                    // Without a scope around it, no name within it is taken for a key of ours.
                    let found = self.query(subquery, None, ctes)?;
                    block.sharded.extend(found.sharded);
                    self.not_apart("LATERAL");
                    self.seats.add(&name, Lies::Derived(None), Vec::new())
                } else {
                    self.derive(&name, subquery, renamed, outer, ctes, block)?
                };
                block.scope.tables.push((name, seat));
                self.bounded()?;
                Ok(vec![seat])
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } => {
                let before = block.scope.tables.len();
                self.joined(table_with_joins, block, outer, ctes)?;
                Ok(block.scope.tables[before..].iter().map(|(_, seat)| *seat).collect())
            }
            TableFactor::Function { alias, .. } | TableFactor::UNNEST { alias, .. } => {
                self.function(factor, alias.as_ref(), block, outer, ctes)
            }
            TableFactor::Table { name, args: Some(_), alias, sample: None, .. } => {
                self.relations.insert(name.to_string());
                self.function(factor, alias.as_ref(), block, outer, ctes)
            }
            _ => Err(unsupported("an item of FROM that is neither table, subquery nor function")),
        }
    }

    fn function<'q>(
        &mut self,
        factor: &'q TableFactor,
        alias: Option<&sqlparser::ast::TableAlias>,
        block: &mut Block,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Vec<usize>, Refused> {
        let name = alias.map_or_else(String::new, |alias| folded(&alias.name));
        let scope = std::mem::take(&mut block.scope);
        let found = self.nested(factor, &scope, outer, ctes);
        block.scope = scope;
        block.sharded.extend(found?);
        let seat = self.seats.add(&name, Lies::Everywhere, Vec::new());
        block.scope.tables.push((name, seat));
        self.bounded()?;
        Ok(vec![seat])
    }

    fn bounded(&self) -> Result<(), Refused> {
        if self.seats.0.len() <= SEATS_MAX {
            return Ok(());
        }
        let cause = format!("a statement that names more than {SEATS_MAX} tables");
        Err(Refused::new(RefusalClass::TooLarge, cause, "Divide it"))
    }

    /// A table by its name in the rules.
    pub(super) fn table(
        &mut self,
        name: &ObjectName,
        known: &str,
        renamed: bool,
    ) -> Result<usize, Refused> {
        let schema = match name.0.as_slice() {
            [_] => None,
            [schema, _] => schema.as_ident().map(folded),
            _ => return Err(unsupported("a table's name of three parts")),
        };
        let catalog = schema.as_deref().is_some_and(|schema| {
            matches!(schema, "pg_catalog" | "information_schema" | "pg_toast")
        });
        // A table of the rules may be called so as well; it is not the catalog's.
        let named = schema.is_none() && known.starts_with("pg_");
        if catalog || (named && self.rules.placement(known).is_none()) {
            return Ok(self.seats.add(known, Lies::Everywhere, Vec::new()));
        }
        let full = match schema.as_deref() {
            None | Some("public") => known.to_owned(),
            Some(schema) => format!("{schema}.{known}"),
        };
        let Some((_, placement)) = self.rules.placement(&full) else {
            if self.rules.only_source().is_some() {
                return Ok(self.seats.add(known, Lies::Everywhere, Vec::new()));
            }
            let remedy = self.rules.suggest_table(&full);
            let cause = format!("the rules place no table {full:?}");
            let remedy = format!("{remedy}. Add [table.{full}] to the rules");
            return Err(Refused::new(RefusalClass::UnknownTable, cause, remedy));
        };
        let (lies, columns) = match placement {
            Placement::Reference => (Lies::Everywhere, Vec::new()),
            Placement::Single(source) => (Lies::Single(source.clone()), Vec::new()),
            Placement::Sharded(sharded) => {
                let lies = Lies::Sharded { group: sharded.group.clone(), scatter: sharded.scatter };
                // With other names for its columns, none is known to be the key.
                (lies, if renamed { Vec::new() } else { sharded.columns.clone() })
            }
        };
        Ok(self.seats.add(&full, lies, columns))
    }

    /// A subquery in FROM, or a common table expression where it is named.
    fn derive<'q>(
        &mut self,
        name: &str,
        query: &'q Query,
        renamed: bool,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
        block: &mut Block,
    ) -> Result<usize, Refused> {
        let found = self.query(query, outer, ctes)?;
        let passed = if renamed { None } else { derived::passes_on(query, &found, &self.seats) };
        let sharded = !found.sharded.is_empty();
        block.sharded.extend(&found.sharded);
        let Some((inner, columns)) = passed else {
            if sharded && !derived::is_row_by_row(query) {
                self.not_apart("a subquery in FROM that groups, sorts or limits");
            }
            let seat = self.seats.add(name, Lies::Derived(None), Vec::new());
            if sharded {
                self.spread.insert(seat);
            }
            return Ok(seat);
        };
        let group = self.seats.group_of(inner).cloned();
        let seat = self.seats.add(name, Lies::Derived(group), columns);
        self.seats.unite(seat, inner);
        self.seats.tie(seat, inner);
        self.seats.tie(inner, seat);
        Ok(seat)
    }

    /// Walks the subqueries in something that is no FROM. Gives the sharded seats in them.
    pub(super) fn nested<'q, V: Visit>(
        &mut self,
        node: &'q V,
        scope: &Scope,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<Vec<usize>, Refused> {
        let mut subqueries = Subqueries {
            walk: self,
            scopes: Scopes { inner: scope, outer },
            ctes,
            depth: 0,
            sharded: Vec::new(),
        };
        match node.visit(&mut subqueries) {
            ControlFlow::Continue(()) => Ok(subqueries.sharded),
            ControlFlow::Break(refused) => Err(refused),
        }
    }
}

/// Meets the subqueries of an expression, and walks each in the scope around it.
struct Subqueries<'w, 'r, 's, 'q> {
    walk: &'w mut Walk<'r>,
    scopes: Scopes<'s>,
    ctes: &'w Ctes<'q>,
    depth: usize,
    sharded: Vec<usize>,
}

impl Visitor for Subqueries<'_, '_, '_, '_> {
    type Break = Refused;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Refused> {
        self.depth += 1;
        if self.depth > 1 {
            return ControlFlow::Continue(());
        }
        // The names in sight are those of the statement, which outlives this visit; a copy has a life of its own.
        let ctes: Ctes<'_> = self.ctes.clone();
        match self.walk.query(query, Some(&self.scopes), &ctes) {
            Err(refused) => ControlFlow::Break(refused),
            Ok(block) => {
                self.sharded.extend(block.sharded);
                ControlFlow::Continue(())
            }
        }
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Refused> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

pub(super) fn unsupported(what: &str) -> Refused {
    let remedy = "Write it another way, or send it to the source itself";
    Refused::new(RefusalClass::Unsupported, format!("{what} is not routed"), remedy)
}
