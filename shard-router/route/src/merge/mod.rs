//! Merging: rows of several sources become the rows that one PostgreSQL would give. Bytes in, bytes out.
//!
//! A [`Merge`] says how; a [`Merger`] does it for one execution. What it cannot do exactly as PostgreSQL does, it refuses: a sort by a text whose
//! collation is not known to be `C`, a sum of floats (which depends on the order), a type that is not in its list.

mod decimal;
mod group;
mod having;
mod merger;
mod row;
mod value;

pub use having::{Having, Number, Operand};
pub use merger::{Merger, Outcome};
pub(crate) use row::cells;
pub use row::{Field, Fields};

/// How rows of several sources become one answer. Columns are those of the sources' rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    /// The order of the answer; the sources' rows are in this order already unless `columns` is set.
    pub sort: Vec<SortKey>,
    /// Equal rows are one.
    pub distinct: bool,
    /// What each column of the answer is made of; empty when rows are passed on as they are.
    pub columns: Vec<Column>,
    /// Columns of the answer with what stands there when they are NULL: a column of the sources' rows, which has the answer's type too.
    pub defaults: Vec<(u16, u16)>,
    /// Which groups are told, by their whole values.
    pub having: Option<Having<Number>>,
    /// Without any group there is a row all the same: nothing was grouped by.
    pub always_a_row: bool,
    /// One row is told in place of all: how many they would be, under this name.
    pub counted: Option<String>,
    /// Rows to leave out at the beginning.
    pub offset: u64,
    /// The most rows to give.
    pub limit: Option<u64>,
    /// Columns at the end of the sources' rows, or of `columns` if there are any, that are not the client's.
    pub hidden: u16,
    /// For rows of an INSERT that was divided: which part each row of the answer comes from, in order. Empty otherwise.
    pub dealt: Vec<u16>,
    /// Texts without another collation sort by their bytes.
    pub collation_is_c: bool,
}

/// A column of an answer that is gathered from groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The same in all rows of a group.
    Group(u16),
    /// The sum of partial sums.
    Sum(u16),
    /// The sum of partial counts.
    Count(u16),
    /// The least of partial minima.
    Min(u16),
    /// The greatest of partial maxima.
    Max(u16),
    /// A sum divided by a count.
    Avg {
        /// The column of partial sums.
        sum: u16,
        /// The column of partial counts.
        count: u16,
    },
    /// An aggregate of the different values among the sources' rows, which are grouped by the value too.
    Distinct {
        /// Which aggregate.
        how: Distinct,
        /// The column of values.
        of: u16,
        /// A column whose name and type the answer has.
        shape: u16,
    },
}

/// An aggregate of different values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distinct {
    /// How many they are.
    Count,
    /// Their sum.
    Sum,
    /// Their sum divided by their number.
    Average,
}

/// One key of a sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SortKey {
    /// Which column: of the sources' rows, or of the answer when it is gathered.
    pub column: Position,
    /// Greatest first.
    pub descending: bool,
    /// NULL before everything else.
    pub nulls_first: bool,
    /// The statement itself says `COLLATE "C"`.
    pub collate_c: bool,
}

/// A column's place in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Counted from the first, 0.
    At(u16),
    /// Counted from the last, 0. For rows whose width the statement does not tell.
    FromEnd(u16),
}
