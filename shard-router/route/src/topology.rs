//! A topology: where every key of every data group lives, as of one epoch.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Algorithm, BadKey, GroupName, Key, OutsideDomain, RuleMistake, ShardId, Slot, SlotRange,
    SourceId, TableName, rules,
};

/// Groups, tables, shards and data sources that fit together: whoever holds one needs to check nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub(crate) epoch: u64,
    pub(crate) groups: BTreeMap<GroupName, Group>,
    pub(crate) tables: BTreeMap<TableName, GroupName>,
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    pub(crate) sources: BTreeMap<SourceId, DataSource>,
}

/// A data group: its key, its slot function, and the shard of each slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub(crate) key: Arc<str>,
    pub(crate) function: Algorithm,
    /// One for each slot, in order; exactly [`crate::SLOTS`] of them.
    pub(crate) shards: Box<[ShardId]>,
}

/// A shard: a set of slots, kept on one data source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    pub(crate) source: SourceId,
}

/// A data source: one PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSource {
    pub(crate) address: Arc<str>,
}

/// Where a key lives. True as of `epoch`; a newer topology may have moved it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Located {
    /// The data group that was asked.
    pub group: GroupName,
    /// The slot of the key, the same for ever.
    pub slot: Slot,
    /// The shard that the slot is on.
    pub shard: ShardId,
    /// The data source that keeps the shard.
    pub source: SourceId,
    /// Where the data source listens, host:port.
    #[serde(serialize_with = "as_text")]
    pub address: Arc<str>,
    /// The topology's epoch.
    pub epoch: u64,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Why a key was not located. Always final: the same question to the same topology has the same answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// The topology has no such group.
    #[error("HF3020 no data group is called {group:?}. {remedy}")]
    UnknownGroup {
        /// The beginning of what was asked for.
        group: String,
        /// What there is.
        remedy: String,
    },
    /// The group's slot function has no answer for this key.
    #[error(
        "HF3021 data group {group}: {cause}. Check the value; it must be the group's key, {column}"
    )]
    OutsideDomain {
        /// The group that was asked.
        group: GroupName,
        /// The column or payload field that holds the group's key.
        column: Arc<str>,
        /// What the function takes, and what it was given.
        cause: OutsideDomain,
    },
    /// The text can be no key at all.
    #[error(transparent)]
    BadKey(#[from] BadKey),
}

impl LocateError {
    /// The page that explains it: `docs/reference/errors/<code>.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownGroup { .. } => "HF3020",
            Self::OutsideDomain { .. } => "HF3021",
            Self::BadKey(_) => "HF3022",
        }
    }
}

impl Topology {
    /// Reads rules. A file is epoch 1; only a replicated change makes a later one.
    /// # Errors
    /// All mistakes at once, in the order of the file, at most 100. Nothing of a wrong file is ever used.
    pub fn parse(text: &str) -> Result<Self, Vec<RuleMistake>> {
        rules::read(text)
    }

    /// Where `key` of `group` lives.
    /// # Errors
    /// [`LocateError`] for a group that is not there and a key that the group's slot function has no answer for.
    /// A key in the function's domain always has exactly one shard.
    pub fn locate(&self, group: &str, key: &str) -> Result<Located, LocateError> {
        let key = Key::parse(key)?;
        let Some((name, group)) = self.groups.get_key_value(group) else {
            return Err(LocateError::UnknownGroup {
                group: group.chars().take(63).collect(),
                remedy: rules::suggest(group, self.groups.keys().map(GroupName::as_str)),
            });
        };
        let slot = group.function.slot(key).map_err(|cause| LocateError::OutsideDomain {
            group: name.clone(),
            column: group.key.clone(),
            cause,
        })?;
        let shard = group.shard_of(slot);
        let source = &self.shards[shard].source;
        Ok(Located {
            group: name.clone(),
            slot,
            shard: shard.clone(),
            source: source.clone(),
            address: self.sources[source].address.clone(),
            epoch: self.epoch,
        })
    }

    /// Which version of the rules this is; 1 for a file.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The data groups, by name.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<GroupName, Group> {
        &self.groups
    }

    /// The tables and the group that each joined, by name.
    #[must_use]
    pub fn tables(&self) -> &BTreeMap<TableName, GroupName> {
        &self.tables
    }

    /// The shards, by name; also those that have no slot yet.
    #[must_use]
    pub fn shards(&self) -> &BTreeMap<ShardId, Shard> {
        &self.shards
    }

    /// The data sources, by name; also those that keep no shard yet.
    #[must_use]
    pub fn sources(&self) -> &BTreeMap<SourceId, DataSource> {
        &self.sources
    }
}

impl Group {
    /// The column, or payload field, whose value is the key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The slot function.
    #[must_use]
    pub fn function(&self) -> Algorithm {
        self.function
    }

    /// The shard that `slot` is on. Every slot is on exactly one.
    #[must_use]
    pub fn shard_of(&self, slot: Slot) -> &ShardId {
        &self.shards[usize::from(slot.number())]
    }

    /// The slots on `shard`, as few ranges as possible; none for a shard that holds nothing of this group.
    #[must_use]
    pub fn slots_of(&self, shard: &ShardId) -> Vec<SlotRange> {
        SlotRange::gather(Slot::all().filter(|slot| self.shard_of(*slot) == shard))
    }
}

impl Shard {
    /// The data source that keeps it.
    #[must_use]
    pub fn source(&self) -> &SourceId {
        &self.source
    }
}

impl DataSource {
    /// Where it listens, host:port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}
