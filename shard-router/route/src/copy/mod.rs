//! COPY over several sources: what its text says of the form, which source each row from the client belongs to, and whether rows of several
//! sources are one answer when they are put behind each other.
//!
//! A [`CopyIn`] is planned; its [`Divider`] is fed whatever bytes arrive, in pieces of any size, and says of each row which source it is for.
//! A row goes on as it came, byte for byte: only where it ends and what its key is are understood, by PostgreSQL's own rules. What those rules
//! leave open to the server's settings is refused, and so is every row whose key is not known: none is ever sent to a source by guess.

mod divider;
mod field;
mod line;
mod options;
mod written;

use std::sync::Arc;

pub use divider::{Divider, Row};
pub(crate) use options::Text;
pub use written::CopyOut;

use crate::{KeyColumn, RefusalClass, Refused};

/// How the rows of a COPY are written. Each mark is one byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) csv: bool,
    pub(crate) delimiter: u8,
    pub(crate) quote: u8,
    pub(crate) escape: u8,
    /// What NULL is written as.
    pub(crate) null: Vec<u8>,
    /// What stands for a column's default, if anything does.
    pub(crate) default: Option<Vec<u8>>,
    /// The first row is no row.
    pub(crate) header: bool,
    /// Whether NULL is told from its quotes in some columns otherwise than in others.
    pub(crate) forces_null: bool,
    /// Which values of a csv are quoted though they need not be.
    pub(crate) quoted: Quoted,
}

/// Which values are quoted beside those that must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Quoted {
    #[default]
    None,
    All,
    /// Those of some columns.
    Some,
}

/// What is copied over several sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copy {
    /// Rows of the client, each for the source of its key or for all.
    In(Arc<CopyIn>),
    /// Rows of the sources, those of one behind those of another; `header`: each begins with one row that is none, of which one is told.
    Out {
        /// Whether a line of column names is before the rows.
        header: bool,
    },
    /// Rows of a query that is sent by itself, whose answers are merged and then written.
    Written(Arc<CopyOut>),
}

/// A COPY from the client into a table whose rows lie on several sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyIn {
    /// As the client wrote it, to ask a server about it.
    pub(crate) table: String,
    pub(crate) named: Option<Vec<String>>,
    pub(crate) form: Form,
    pub(crate) keys: Vec<KeyColumn>,
    /// For each slot, the part of the plan that has it. Empty for a table of which every source has a copy.
    pub(crate) parts: Box<[u16]>,
}

impl CopyIn {
    /// The table, as the client wrote its name.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The columns in the order of a row's fields; `None` if the client named none, so that the table's own order counts.
    #[must_use]
    pub fn named(&self) -> Option<&[String]> {
        self.named.as_deref()
    }

    /// Whether a row's place depends on what is in it.
    #[must_use]
    pub fn by_key(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Divides one stream of rows with these `columns`. A row has at most `row_bytes_max` bytes. `csv_ends`: a line `\.` ends a CSV too, as it does
    /// for servers before version 18.
    /// # Errors
    /// None of the columns leads to a slot.
    pub fn divider(
        self: &Arc<Self>,
        columns: &[String],
        row_bytes_max: usize,
        csv_ends: bool,
    ) -> Result<Divider, Refused> {
        let mut places = Vec::new();
        for (key, column) in self.keys.iter().enumerate() {
            if let Some(place) = columns.iter().position(|name| **name == *column.name) {
                places.push((key, place));
            }
        }
        if places.is_empty() && self.by_key() {
            let keys: Vec<&str> = self.keys.iter().map(|column| &*column.name).collect();
            let cause = format!(
                "COPY into {}: no value for its key {}: it is none of the columns that are copied",
                self.table,
                keys.join(" or ")
            );
            let remedy = "Name the column, and give it a value in every row";
            return Err(Refused::new(RefusalClass::NoKey, cause, remedy));
        }
        Ok(Divider::new(Arc::clone(self), places, row_bytes_max, csv_ends))
    }
}
