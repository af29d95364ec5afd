//! Names: which seat a column belongs to.

use sqlparser::ast::{Expr, Ident};

use super::seat::Seats;

/// The tables that one query block can name.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// Names and seats, in order.
    pub(crate) tables: Vec<(String, usize)>,
    /// Columns whose names say nothing of their table: merged by USING or NATURAL in other than inner joins.
    pub(crate) merged: Vec<String>,
    /// Whether any column may be merged.
    pub(crate) natural: bool,
}

/// A block's scope and those around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scopes<'s> {
    pub(crate) inner: &'s Scope,
    pub(crate) outer: Option<&'s Self>,
}

/// A name as PostgreSQL folds it.
pub(crate) fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

impl Scopes<'_> {
    /// The seat and the key column that `expr` names, if it is a key column beyond doubt.
    pub(crate) fn column(&self, expr: &Expr, seats: &Seats) -> Option<(usize, usize)> {
        match expr {
            Expr::Nested(inner) => self.column(inner, seats),
            Expr::Identifier(ident) => self.unqualified(&folded(ident), seats),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] => self.qualified(&folded(table), &folded(column), seats),
                _ => None,
            },
            _ => None,
        }
    }

    fn qualified(&self, table: &str, column: &str, seats: &Seats) -> Option<(usize, usize)> {
        let mut named = self.inner.tables.iter().filter(|(name, _)| name == table);
        match (named.next(), named.next()) {
            (Some((_, seat)), None) => {
                let columns = &seats.0[*seat].columns;
                let found = columns.iter().position(|known| &*known.name == column)?;
                Some((*seat, found))
            }
            (Some(_), Some(_)) => None,
            (None, _) => self.outer?.qualified(table, column, seats),
        }
    }

    /// A bare name is a seat's key column if no other table of the block can have a column of that name.
    fn unqualified(&self, column: &str, seats: &Seats) -> Option<(usize, usize)> {
        if self.inner.natural || self.inner.merged.iter().any(|merged| merged == column) {
            return None;
        }
        let mut having = self.inner.tables.iter().filter_map(|(_, seat)| {
            let columns = &seats.0[*seat].columns;
            columns.iter().position(|known| &*known.name == column).map(|found| (*seat, found))
        });
        match (having.next(), having.next()) {
            // Another table with such a column would make the name ambiguous, which PostgreSQL refuses itself.
            (Some(found), None) => Some(found),
            (Some(_), Some(_)) => None,
            // A table of this block may have it without the rules knowing, so the outer block is asked only if there is none.
            (None, _) if self.inner.tables.is_empty() => self.outer?.unqualified(column, seats),
            (None, _) => None,
        }
    }
}
