//! INSERT, UPDATE and DELETE: their target, its rows' keys, and what may not change.

use sqlparser::ast::{
    ConflictTarget, Delete, Expr, FromTable, Insert, OnConflict, OnConflictAction, OnInsert, Query,
    SelectItem, SetExpr, TableObject, Update, UpdateTableFromKind,
};

use super::{
    condition::constant,
    scope::{Scopes, folded},
    walk::{Block, Ctes, Walk, unsupported},
};
use crate::{
    KeyColumn, Placement, RefusalClass, Refused, Topology,
    plan::{Constant, Known, known},
};

/// The rows of an INSERT into a sharded table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rows {
    /// VALUES: for each row, the constants of the key columns by their place in the seat's list.
    Listed(Vec<Vec<(usize, Constant)>>),
    /// A query whose rows keep the key of a seat, and so its slot.
    Following(usize),
    /// A query whose rows all have these keys.
    Fixed(Vec<(usize, Constant)>),
}

/// An INSERT.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inserted {
    pub(crate) target: usize,
    /// `None` for a target that is not sharded.
    pub(crate) rows: Option<Rows>,
    /// Whether the order of RETURNING can be told from that of the rows: no row is left out.
    pub(crate) in_order: bool,
}

/// Whether the source of the row can tell the conflicts that an INSERT into `table` is to pass over. That a value of a lookup is taken says its
/// entry alone, on another source and behind the row: too late for ON CONFLICT.
pub(super) fn knows_its_conflicts(
    conflict: &OnConflict,
    table: &str,
    rules: &Topology,
) -> Result<(), Refused> {
    let names = |column: &str| match &conflict.conflict_target {
        Some(ConflictTarget::Columns(named)) => named.iter().any(|name| folded(name) == column),
        // Any constraint, or one of which no column is known.
        Some(ConflictTarget::OnConstraint(_)) | None => true,
    };
    let mut owned = rules.lookups().values().filter(|lookup| lookup.table().as_str() == table);
    let Some(lookup) = owned.find(|lookup| names(lookup.column())) else { return Ok(()) };
    let column = lookup.column();
    let cause = format!(
        "INSERT into {table}: ON CONFLICT would have to know that a value of {column} is taken, on whatever source its lookup has it"
    );
    let remedy =
        format!("Name its columns without {column}, and expect 23505 for a {column} that is taken");
    Err(Refused::new(RefusalClass::Unsupported, cause, remedy))
}

impl Walk<'_> {
    pub(super) fn update<'q>(
        &mut self,
        update: &'q Update,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(usize, Block), Refused> {
        if !update.order_by.is_empty() || update.limit.is_some() || update.or.is_some() {
            return Err(unsupported("UPDATE with ORDER BY or LIMIT"));
        }
        let mut block = Block::default();
        self.joined(&update.table, &mut block, outer, ctes)?;
        let target = Self::target(&block)?;
        if let Some(from) = &update.from {
            let (UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) = from;
            for item in from {
                self.joined(item, &mut block, outer, ctes)?;
            }
        }
        if let Some(condition) = &update.selection {
            self.condition(condition, &mut block, outer, ctes)?;
        }
        self.keeps_key(target, &update.assignments, &block.scope, true)?;
        let mut found = self.nested(&update.assignments, &block.scope, outer, ctes)?;
        found.extend(self.nested(&update.returning, &block.scope, outer, ctes)?);
        block.sharded.extend(found);
        self.one_class(&block, target);
        Ok((target, block))
    }

    pub(super) fn delete<'q>(
        &mut self,
        delete: &'q Delete,
        outer: Option<&Scopes<'_>>,
        ctes: &Ctes<'q>,
    ) -> Result<(usize, Block), Refused> {
        if !delete.order_by.is_empty() || delete.limit.is_some() || !delete.tables.is_empty() {
            return Err(unsupported("DELETE with ORDER BY, LIMIT or several targets"));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let [item] = from.as_slice() else {
            return Err(unsupported("DELETE of several targets"));
        };
        let mut block = Block::default();
        self.joined(item, &mut block, outer, ctes)?;
        let target = Self::target(&block)?;
        for item in delete.using.iter().flatten() {
            self.joined(item, &mut block, outer, ctes)?;
        }
        if let Some(condition) = &delete.selection {
            self.condition(condition, &mut block, outer, ctes)?;
        }
        let found = self.nested(&delete.returning, &block.scope, outer, ctes)?;
        block.sharded.extend(found);
        self.one_class(&block, target);
        Ok((target, block))
    }

    /// The one table that stands where the target is named.
    fn target(block: &Block) -> Result<usize, Refused> {
        match block.scope.tables.as_slice() {
            [(_, seat)] => Ok(*seat),
            _ => Err(unsupported("a write with a join where its target is named")),
        }
    }

    fn one_class(&mut self, block: &Block, target: usize) {
        if block.sharded.is_empty() {
            return;
        }
        if self.seats.group_of(target).is_none() {
            self.not_apart("a write to one table by the rows of a sharded one");
        }
        let class = self.seats.class_of(target);
        if block.sharded.iter().any(|seat| self.seats.class_of(*seat) != class) {
            self.not_apart("tables that are not joined by their group's key");
        }
    }

    pub(super) fn insert(&mut self, insert: &Insert) -> Result<Inserted, Refused> {
        let TableObject::TableName(name) = &insert.table else {
            return Err(unsupported("INSERT into what is no table"));
        };
        if !insert.assignments.is_empty() || insert.replace_into || insert.or.is_some() {
            return Err(unsupported("INSERT in another dialect"));
        }
        let table = name.0.last().and_then(|part| part.as_ident()).map(folded);
        let table = table.ok_or_else(|| unsupported("a table's name that is computed"))?;
        self.relations.insert(name.to_string());
        let target = self.table(name, &table, false)?;
        let alias = insert.table_alias.as_ref().map(|alias| folded(&alias.alias));
        let mut block = Block::default();
        block.scope.tables.push((alias.unwrap_or(table), target));
        let sharded = self.seats.is_sharded(target);
        let mut in_order = true;
        match &insert.on {
            None => {}
            Some(OnInsert::OnConflict(conflict)) => {
                in_order = false;
                knows_its_conflicts(conflict, &self.seats.0[target].table, self.rules)?;
                if let OnConflictAction::DoUpdate(update) = &conflict.action {
                    self.keeps_key(target, &update.assignments, &block.scope, false)?;
                    let mut found =
                        self.nested(&update.assignments, &block.scope, None, &Vec::new())?;
                    found.extend(self.nested(
                        &update.selection,
                        &block.scope,
                        None,
                        &Vec::new(),
                    )?);
                    if !found.is_empty() {
                        self.not_apart("a subquery in ON CONFLICT");
                    }
                }
            }
            Some(_) => return Err(unsupported("INSERT in another dialect")),
        }
        if !self.nested(&insert.returning, &block.scope, None, &Vec::new())?.is_empty() {
            self.not_apart("a subquery in RETURNING");
        }
        let Some(source) = &insert.source else {
            if sharded {
                return Err(self.no_key(target, "DEFAULT VALUES gives it none"));
            }
            return Ok(Inserted { target, rows: None, in_order });
        };
        let listed = matches!(&*source.body, SetExpr::Values(_));
        let inner = self.query(source, None, &Vec::new())?;
        if !sharded {
            if !inner.sharded.is_empty() {
                self.not_apart("a write to one table by the rows of a sharded one");
            }
            return Ok(Inserted { target, rows: None, in_order });
        }
        let columns = self.insert_columns(target, insert)?;
        let rows = if listed {
            self.listed(target, source, &columns)?
        } else {
            self.selected(target, source, &columns, &inner)?
        };
        Ok(Inserted { target, rows: Some(rows), in_order })
    }

    /// For each key column of the target, its place in a row of the INSERT. At least one is there.
    fn insert_columns(
        &self,
        target: usize,
        insert: &Insert,
    ) -> Result<Vec<(usize, usize)>, Refused> {
        let seat = &self.seats.0[target];
        let names: Vec<String> = if insert.columns.is_empty() {
            match self.rules.placement(&seat.table) {
                Some((_, Placement::Sharded(sharded))) if !sharded.order.is_empty() => {
                    sharded.order.iter().map(|name| (**name).to_owned()).collect()
                }
                _ => {
                    let why = "the INSERT names no columns, and the rules do not tell their order";
                    return Err(self.no_key(target, why));
                }
            }
        } else {
            let name = |name: &sqlparser::ast::ObjectName| {
                name.0.first().and_then(|part| part.as_ident()).map(folded).unwrap_or_default()
            };
            insert.columns.iter().map(name).collect()
        };
        let mut places = Vec::new();
        for (column, known) in seat.columns.iter().enumerate() {
            if let Some(place) = names.iter().position(|name| **name == *known.name) {
                places.push((column, place));
            }
        }
        if places.is_empty() {
            return Err(self.no_key(target, "the INSERT does not set it"));
        }
        Ok(places)
    }

    fn no_key(&self, target: usize, why: &str) -> Refused {
        let seat = &self.seats.0[target];
        let keys: Vec<&str> = seat.columns.iter().map(|column| &*column.name).collect();
        let cause = format!(
            "INSERT into {}: no value for its key {}: {why}",
            seat.table,
            keys.join(" or ")
        );
        Refused::new(RefusalClass::NoKey, cause, "Name the column, and give it a value")
    }

    fn unknown(&self, target: usize, why: &str) -> Refused {
        let cause = format!("INSERT into {}: its key is {why}", self.seats.0[target].table);
        let remedy = "Give the key as a literal or a parameter";
        Refused::new(RefusalClass::UnknownValue, cause, remedy)
    }

    fn listed(
        &self,
        target: usize,
        source: &Query,
        columns: &[(usize, usize)],
    ) -> Result<Rows, Refused> {
        let plain =
            source.with.is_none() && source.order_by.is_none() && source.limit_clause.is_none();
        let SetExpr::Values(values) = &*source.body else {
            return Err(self.unknown(target, "not a constant"));
        };
        if !plain {
            return Err(unsupported("VALUES with ORDER BY, LIMIT or WITH"));
        }
        let mut rows = Vec::with_capacity(values.rows.len());
        for row in &values.rows {
            let mut keys = Vec::with_capacity(columns.len());
            for (column, place) in columns {
                let value = row.content.get(*place);
                let value = value
                    .ok_or_else(|| self.no_key(target, "a row is shorter than its columns"))?;
                let constant = constant(value, &self.uses)
                    .ok_or_else(|| self.unknown(target, "an expression"))?;
                keys.push((*column, constant));
            }
            rows.push(keys);
        }
        Ok(Rows::Listed(rows))
    }

    /// INSERT ... SELECT: the key must be a constant, or the key of a table that the rows come from.
    fn selected(
        &mut self,
        target: usize,
        source: &Query,
        columns: &[(usize, usize)],
        inner: &Block,
    ) -> Result<Rows, Refused> {
        let SetExpr::Select(select) = &*source.body else {
            return Err(self.unknown(target, "that of a set operation"));
        };
        let expressions: Option<Vec<&Expr>> = select
            .projection
            .iter()
            .map(|item| match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                    Some(expr)
                }
                SelectItem::ExprWithAliases { .. }
                | SelectItem::QualifiedWildcard(..)
                | SelectItem::Wildcard(_) => None,
            })
            .collect();
        let expressions = expressions
            .ok_or_else(|| self.unknown(target, "hidden behind *, which tells no columns"))?;
        let mut fixed = Vec::new();
        for (column, place) in columns {
            let value = expressions.get(*place);
            let value = value
                .ok_or_else(|| self.no_key(target, "the SELECT is shorter than its columns"))?;
            if let Some(constant) = constant(value, &self.uses) {
                fixed.push((*column, constant));
                continue;
            }
            let scopes = Scopes { inner: &inner.scope, outer: None };
            let Some((seat, its)) = scopes.column(value, &self.seats) else {
                return Err(
                    self.unknown(target, "neither a constant nor the key of a table that is read")
                );
            };
            let (own, other) =
                (&self.seats.0[target].columns[*column], &self.seats.0[seat].columns[its]);
            let alike = own.function == other.function
                && own.key_type == other.key_type
                && self.seats.same_group(target, seat);
            if !alike {
                return Err(self.unknown(target, "the key of another group"));
            }
            // Every other key column of the target would have to agree; it is the same row's.
            if columns.len() > 1 {
                return Err(unsupported("INSERT ... SELECT with two columns that carry the slot"));
            }
            self.seats.unite(target, seat);
            self.seats.tie(target, seat);
            let gathers = select.distinct.is_some() || source.limit_clause.is_some();
            if gathers || super::function::gathers(&select.projection) {
                self.not_apart("INSERT from a SELECT that gathers or limits");
            }
            return Ok(Rows::Following(seat));
        }
        if !inner.sharded.is_empty() {
            self.not_apart("INSERT under one key from a sharded table");
        }
        Ok(Rows::Fixed(fixed))
    }
}

/// Whether `constant`, which is about to be written as a key, is what will be stored.
pub(crate) fn stored<'v>(
    constant: &'v Constant,
    column: &KeyColumn,
    values: &crate::Values<'v>,
) -> Result<std::borrow::Cow<'v, str>, &'static str> {
    match known(constant, column.key_type, values) {
        Known::Key(key) => {
            if column.key_type == crate::KeyType::Varchar && key.ends_with(' ') {
                return Err("ends in a blank, which varchar(n) may cut");
            }
            Ok(key)
        }
        Known::NoKey => Err("would be rounded"),
        Known::Null => Err("NULL"),
        Known::Unknown(why) => Err(why),
    }
}
