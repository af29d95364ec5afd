//! Finished transactions, searchable: an embedded store that is written behind the work, can be rebuilt, and decides nothing.
//!
//! Records arrive in the order in which transactions finished and are gathered into **sheets** of some thousands:
//!
//! ```text
//! sheet = head     count, first and last time, fences, and a filter of all terms (kept in memory)
//!       + blocks   the records, 64 each, compressed
//!       + pages    term -> places of the records that have it, sorted by term
//! ```
//!
//! A *term* is a hash of something to search by: the gid, a tag with its value, a participant, a status, a mode, a currency
//! with the size class of an amount. A search goes from the newest sheet to the oldest, passes over those whose filter knows no such term,
//! and checks every record that the pages name: a hash decides nothing, it only saves reading. So a transaction costs no
//! random write, and a search for what is rare touches few sheets, however many there are.
//!
//! The sheet that is being filled is memory too and is written anew from time to time; what a crash takes of it comes again
//! from the machine, which remembers the recently finished. A repeat is known by its gid and changes nothing.
//!
//! Below stands a [`Shelf`], an ordered map of bytes; [`SledShelf`] is the one that ships. It is synced by us after every write,
//! because its own `flush` is not enough on Linux (docs/adr). What cannot be opened is moved aside and begun anew.
//!
//! Deliberately absent: a decision, a payload, a way to change a record, and an order other than that of finishing.

mod amount;
mod archive;
mod filter;
mod keys;
mod open_sheet;
mod pages;
mod recorded;
mod search;
mod sheet;
mod shelf;
mod sled_shelf;
mod term;

pub use amount::{Amount, AmountRange};
pub use archive::{Archive, Figures, Retention};
pub use recorded::Recorded;
pub use search::{Cursor, Page, Query};
pub use shelf::{Change, MemoryShelf, Pair, Shelf, ShelfError};
pub use sled_shelf::SledShelf;
pub use term::{Terms, terms_of};

/// Bounds. Each is tested at the limit and one past it.
pub mod limit {
    /// Records after which a sheet is full, at the next change of time.
    pub const SHEET_RECORDS: usize = 4_096;
    /// Records after which a sheet is full in any case.
    pub const SHEET_RECORDS_MAX: usize = 16_384;
    /// Records in a block.
    pub const BLOCK_RECORDS: usize = 64;
    /// Terms of one record; further tags cannot be searched by.
    pub const TERMS_MAX: usize = 256;
    /// Bytes of a sheet's filter in memory.
    pub const FILTER_BYTES_MAX: usize = 64 * 1024;
    /// Records on a page of a search.
    pub const PAGE_MAX: usize = 1_000;
    /// Blocks that are read for one page; then it may be short, and yet not the last.
    pub const BLOCKS_READ_MAX: usize = 1_024;
    /// Attempts that are kept of one transaction: the first and the last half of so many.
    pub const ATTEMPTS_MAX: usize = 64;
    /// Tags that one search may name.
    pub const TAGS_MAX: usize = 8;
}
