//! The routing mind: data group, key, slot, shard, data source.
//!
//! A *data group* is a family of rows that belong together (an account, its journal, its holds). Each row carries the group's
//! *key*; the group's slot function maps the key to one of 1,024 *slots*, and the rules say on which *shard* a slot lives and
//! which *data source* (one PostgreSQL) holds that shard. Slots are never re-numbered: data moves by giving a slot to another
//! shard. Tables *join* a group, so two tables of one group cannot disagree about where a key lives.
//!
//! [`Topology::parse`] reads the rules and is strict: an unknown key, a slot without a shard or with two, a name that leads
//! nowhere are all refused, and all mistakes of a file are reported at once, each with its line and its remedy.
//! [`Topology::locate`] then never fails for a key in the domain of the group's slot function.
//!
//! ```
//! # let rules = include_str!("../testscripts/rules/two-shards.toml");
//! let topology = holdfast_route::Topology::parse(rules).expect("the rules are right");
//! let located = topology.locate("account", "A-1").expect("any text has a slot under crc32c");
//! assert_eq!(located.slot.number(), 638);
//! assert_eq!(located.shard.as_str(), "shard-2");
//! ```
//!
//! Deliberately absent: no network, no disk, no clock; nothing here knows how to reach a data source.

#![warn(clippy::wildcard_enum_match_arm)]

mod account_number;
mod algorithm;
mod calendar;
mod copy;
mod home;
mod key;
mod lookup;
pub mod merge;
mod mistake;
mod moving;
mod name;
mod plan;
mod refusal;
mod rules;
mod slot;
mod statement;
mod template;
mod topology;
mod turn;

pub use account_number::{AccountNumbers, BadNumber, LENGTH_MAX as ACCOUNT_NUMBER_LENGTH_MAX};
pub use algorithm::{Algorithm, Bounds, Listed, OutsideDomain, Part as KeyPart, Period};
pub use copy::{Copy, CopyIn, CopyOut, Divider, Row as CopyRow};
pub use home::Home;
pub use key::{BadKey, Key};
pub use lookup::{EntryPlace, Lookup};
pub use merge::Merge;
pub use mistake::{RuleMistake, RuleMistakes};
pub use moving::{MoveFate, MoveState, Moving};
pub use name::{BadName, GroupName, MoveId, ShardId, SourceId, TableName};
pub use plan::{
    Access, Explained, Format, Parameter, Part, Plan, Reason, Rewritten, SourceIndex, Tag, Target,
    Values,
};
pub use refusal::{RefusalClass, Refused};
pub use slot::{SLOTS, Slot, SlotRange};
pub use statement::{CopyDirection, Discarded, Kind, Shape, explained, only_reads};
pub use template::{Literal, LiteralKind, Template, statements};
pub use topology::{
    DataSource, Group, KeyColumn, KeyType, LocateError, Located, Placement, Scatter, Shard,
    Sharded, Topology,
};
pub use turn::OutOfTurn;

/// The most that rules may hold. Each is tested at the limit and one past it.
pub mod limit {
    /// Bytes of one rules file.
    pub const RULES_BYTES_MAX: usize = 1024 * 1024;
    /// Mistakes reported of one file; the last one says how many more there are.
    pub const MISTAKES_MAX: usize = 100;
    /// Bytes of one key.
    pub const KEY_BYTES_MAX: usize = 256;
    /// Bounds of one `range`: with the keys below the first, as many ranges as slots.
    pub const BOUNDS_MAX: usize = 1023;
    /// Keys that one `list` names.
    pub const LISTED_KEYS_MAX: usize = 16_384;
    /// Keys of an interval (`BETWEEN`) whose slots are told one by one, where the slot function does not keep the keys' order.
    pub const INTERVAL_KEYS_MAX: usize = 1024;
    /// Data groups of one topology.
    pub const GROUPS_MAX: usize = 256;
    /// Bytes of one statement.
    pub const STATEMENT_BYTES_MAX: usize = 1024 * 1024;
    /// Parentheses and brackets open at once in one statement.
    pub const NESTING_MAX: usize = 40;
    /// Operators in a row, without a comma or a parenthesis between them.
    pub const CHAIN_MAX: usize = 400;
    /// How deep the parser follows a statement.
    pub const PARSER_DEPTH_MAX: usize = 50;
    /// References to tables in one statement.
    pub const SEATS_MAX: usize = 64;
    /// Keys in one list or array.
    pub const KEYS_MAX: usize = 32_768;
    /// Parameters of one statement.
    pub const PARAMETERS_MAX: usize = 65_535;
}
