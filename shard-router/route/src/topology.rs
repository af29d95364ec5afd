//! A topology: where every key of every data group lives, as of one epoch.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Algorithm, BadKey, GroupName, Key, OutsideDomain, RuleMistake, ShardId, Slot, SlotRange,
    SourceId, SourceIndex, TableName, plan, rules,
};

/// Groups, tables, shards and data sources that fit together: whoever holds one needs to check nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub(crate) epoch: u64,
    pub(crate) groups: BTreeMap<GroupName, Group>,
    pub(crate) tables: BTreeMap<TableName, Placement>,
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    pub(crate) sources: BTreeMap<SourceId, DataSource>,
    pub(crate) collation_is_c: bool,
    pub(crate) lookups: BTreeMap<GroupName, crate::Lookup>,
    /// For each group, the source of each slot by its place in `sources`.
    pub(crate) homes: BTreeMap<GroupName, Box<[SourceIndex]>>,
    pub(crate) moving: Option<crate::Moving>,
    pub(crate) awaited: Vec<Arc<crate::Moving>>,
}

/// Where the rows of a table lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Spread over the shards of a data group, each row by its key.
    Sharded(Sharded),
    /// A copy on every source.
    Reference,
    /// All on one source.
    Single(SourceId),
}

/// A table that joined a data group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharded {
    /// The group.
    pub group: GroupName,
    /// The columns that lead to a row's slot: the group's key, and columns that carry the slot as a gene. At least one.
    pub columns: Vec<KeyColumn>,
    /// The table's columns in their order, if the rules tell them; an INSERT without a column list needs them.
    pub order: Vec<Arc<str>>,
    /// What may go to several sources.
    pub scatter: Scatter,
}

/// A column by which a row's slot is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name, as PostgreSQL folds it.
    pub name: Arc<str>,
    /// From its value to the slot.
    pub function: Algorithm,
    /// What its values are.
    pub key_type: KeyType,
}

/// The type of a key column, as far as equality needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// `smallint`, `integer` or `bigint`.
    Integer,
    /// `text`: equal when its bytes are equal.
    Text,
    /// `varchar(n)`: like `text`, but what is too long by blanks is cut, so that a key that ends in a blank is not written.
    Varchar,
    /// `char(n)`: blanks at the end mean nothing.
    Char,
    /// `uuid`.
    Uuid,
    /// `date`, of the years 0001 to 9999.
    Date,
}

impl KeyType {
    /// Every type there is.
    pub const ALL: [Self; 6] =
        [Self::Integer, Self::Text, Self::Varchar, Self::Char, Self::Uuid, Self::Date];

    /// Its name in the rules.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Text => "text",
            Self::Varchar => "varchar",
            Self::Char => "char",
            Self::Uuid => "uuid",
            Self::Date => "date",
        }
    }

    /// Whether a key of this type is ever written as `key`: slot functions are asked for one form of each value.
    pub(crate) fn writes(self, key: &str) -> bool {
        match self {
            Self::Integer => key.parse::<i64>().is_ok_and(|number| number.to_string() == key),
            Self::Text | Self::Varchar => true,
            Self::Char => !key.ends_with(' '),
            Self::Uuid => {
                let form = |(at, byte): (usize, u8)| match at {
                    8 | 13 | 18 | 23 => byte == b'-',
                    _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                };
                key.len() == 36 && key.bytes().enumerate().all(form)
            }
            Self::Date => crate::calendar::Date::parse(key).is_some(),
        }
    }
}

/// What statements on a table may go to several sources at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scatter {
    /// Nothing.
    #[default]
    Refuse,
    /// Reads.
    Read,
    /// Reads and writes.
    Write,
}

impl Scatter {
    /// Its name in the rules.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// A data group: its key, its slot function, and the shard of each slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub(crate) key: Arc<str>,
    pub(crate) function: Algorithm,
    pub(crate) key_type: KeyType,
    pub(crate) scatter: Scatter,
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
    /// No value of the key's type is written so.
    #[error(
        "HF3021 data group {group}: {key:?} is no key of type {kind}: {cause}. Check the value; it must be the group's key, {column}"
    )]
    OtherType {
        /// The group that was asked.
        group: GroupName,
        /// The column or payload field that holds the group's key.
        column: Arc<str>,
        /// The type of this column, as the rules name it.
        kind: &'static str,
        /// What was asked for.
        key: String,
        /// What it lacks.
        cause: &'static str,
    },
    /// What was named is a lookup: the owner's key stands in its entry, and only a source has that.
    #[error(
        "HF3025 {lookup} is a lookup: the entry of this value lies on shard {shard} (source {at}), and says whose it is. Ask a router: SELECT holdfast.locate('{lookup}', '...')"
    )]
    ByLookup {
        /// The lookup that was asked.
        lookup: GroupName,
        /// Where the entry lies, if there is one.
        shard: ShardId,
        /// The source of this shard.
        at: SourceId,
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
            Self::OutsideDomain { .. } | Self::OtherType { .. } => "HF3021",
            Self::ByLookup { .. } => "HF3025",
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

    /// Where `key` of `group` lives. Read as PostgreSQL reads a value of the key's type: whatever it takes for equal has one place.
    /// # Errors
    /// [`LocateError`] for a group that is not there, a text that is no value of the key's type, and a key that the group's slot function has
    /// no answer for.
    /// A key in the function's domain always has exactly one shard.
    pub fn locate(&self, group: &str, key: &str) -> Result<Located, LocateError> {
        let key = Key::parse(key)?;
        let Some((name, group)) = self.groups.get_key_value(group) else {
            if let Some(entry) = self.entry_place(group, key.as_str())
                && let Some((lookup, _)) = self.lookups.get_key_value(group)
                && let Some((at, _)) = self.source_at(entry.source)
            {
                let (lookup, at) = (lookup.clone(), at.clone());
                return Err(LocateError::ByLookup { lookup, shard: entry.shard, at });
            }
            return Err(LocateError::UnknownGroup {
                group: group.chars().take(63).collect(),
                remedy: rules::suggest(group, self.groups.keys().map(GroupName::as_str)),
            });
        };
        let read = plan::of_text(key.as_str(), group.key_type).map_err(|cause| {
            LocateError::OtherType {
                group: name.clone(),
                column: group.key.clone(),
                kind: group.key_type.name(),
                key: key.as_str().to_owned(),
                cause,
            }
        })?;
        let slot = group.function.slot(Key::parse(&read)?).map_err(|cause| {
            LocateError::OutsideDomain { group: name.clone(), column: group.key.clone(), cause }
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

    /// The tables and where each lies, by name.
    #[must_use]
    pub fn tables(&self) -> &BTreeMap<TableName, Placement> {
        &self.tables
    }

    /// The shards, by name; also those that have no slot yet.
    #[must_use]
    pub fn shards(&self) -> &BTreeMap<ShardId, Shard> {
        &self.shards
    }

    /// Where a table lies, by its name as PostgreSQL folds it; one in a schema other than `public` has it before its name.
    pub(crate) fn placement(&self, table: &str) -> Option<(&TableName, &Placement)> {
        self.tables.get_key_value(table)
    }

    /// What may have been meant by a table that is not there.
    pub(crate) fn suggest_table(&self, table: &str) -> String {
        rules::suggest(table, self.tables.keys().map(TableName::as_str))
    }

    /// The source with this index, which a plan of the same epoch named.
    #[must_use]
    pub fn source_at(&self, index: SourceIndex) -> Option<(&SourceId, &DataSource)> {
        self.sources.iter().nth(usize::from(index.0))
    }

    /// The index of a source.
    #[must_use]
    pub fn index_of(&self, source: &SourceId) -> Option<SourceIndex> {
        let index = self.sources.keys().position(|name| name == source)?;
        u16::try_from(index).ok().map(SourceIndex)
    }

    /// Whether all tables can be treated as lying on one source, because there is no other.
    #[must_use]
    pub fn only_source(&self) -> Option<SourceIndex> {
        (self.sources.len() == 1).then_some(SourceIndex(0))
    }

    /// Whether the rules say that texts without another collation sort by their bytes on every source.
    #[must_use]
    pub fn collation_is_c(&self) -> bool {
        self.collation_is_c
    }

    /// The same rules as of another epoch.
    #[must_use]
    pub fn at_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Whether shapes read by `other` are right by these rules too: only placements differ, at most.
    #[must_use]
    pub fn reads_like(&self, other: &Self) -> bool {
        let meaning = |group: &Group| (group.key.clone(), group.function.clone(), group.key_type);
        self.tables == other.tables
            && self.lookups == other.lookups
            && self.collation_is_c == other.collation_is_c
            && self.sources.len().min(2) == other.sources.len().min(2)
            && self.groups.len() == other.groups.len()
            && self
                .groups
                .iter()
                .zip(&other.groups)
                .all(|((name, group), (same, its))| name == same && meaning(group) == meaning(its))
    }

    /// Whether every row lies where it lies by `other`: nothing has moved, whatever else was changed. A table that only one of them knows
    /// has not moved either.
    #[must_use]
    pub fn places_like(&self, other: &Self) -> bool {
        self.places_like_but(other, |_, _| false)
    }

    /// As [`Self::places_like`], leaving out slots whose rows nobody touched.
    pub(crate) fn places_like_but(
        &self,
        other: &Self,
        untouched: impl Fn(&GroupName, Slot) -> bool,
    ) -> bool {
        let groups = self.groups.iter().all(|(name, group)| match other.groups.get(name) {
            Some(its) => {
                (&group.key, &group.function, group.key_type)
                    == (&its.key, &its.function, its.key_type)
                    && Slot::all().all(|slot| {
                        let here = &self.shards[group.shard_of(slot)].source;
                        here == &other.shards[its.shard_of(slot)].source || untouched(name, slot)
                    })
            }
            None => true,
        });
        let tables = self.tables.iter().all(|(name, here)| match (here, other.tables.get(name)) {
            (_, None) => true,
            (Placement::Sharded(here), Some(Placement::Sharded(there))) => {
                here.group == there.group && here.columns.first() == there.columns.first()
            }
            // A copy on a source that only one of them knows is a copy that was not written.
            (Placement::Reference, Some(Placement::Reference)) => {
                self.sources.keys().eq(other.sources.keys())
            }
            (here, Some(there)) => here == there,
        });
        groups && tables
    }

    /// What rules that follow these would look for elsewhere: each with where it was and where it would be. What only one of them knows is
    /// looked for nowhere, or lies nowhere yet.
    #[must_use]
    pub fn strays(&self, after: &Self) -> Vec<String> {
        let mut strays = Vec::new();
        for (name, was) in &self.groups {
            let Some(is) = after.groups.get(name) else { continue };
            let told =
                |group: &Group| format!("{} of {}", group.function.shown(), group.key_type.name());
            if (&was.function, was.key_type) != (&is.function, is.key_type) {
                strays.push(format!("group {name} was by {}, would be by {}", told(was), told(is)));
            }
            let mut moved: BTreeMap<(&SourceId, &SourceId), Vec<Slot>> = BTreeMap::new();
            for slot in Slot::all() {
                let (from, to) = (self.source_of(was, slot), after.source_of(is, slot));
                if from != to {
                    moved.entry((from, to)).or_default().push(slot);
                }
            }
            for ((from, to), slots) in moved {
                let ranges = SlotRange::gather(slots);
                let more = if ranges.len() > 1 { " and others" } else { "" };
                strays.push(format!(
                    "group {name}: slots {}{more} were on source {from}, would be on {to}",
                    ranges[0]
                ));
            }
        }
        for (name, was) in &self.tables {
            let Some(is) = after.tables.get(name) else { continue };
            let told = |placement: &Placement| match placement {
                Placement::Sharded(sharded) => {
                    let key = sharded.columns.first().map_or("", |column| &column.name);
                    format!("in group {} by {key}", sharded.group)
                }
                Placement::Reference => "on every source".to_owned(),
                Placement::Single(source) => format!("on source {source}"),
            };
            let (was, is) = (told(was), told(is));
            if was != is {
                strays.push(format!("table {name} was {was}, would be {is}"));
            }
        }
        strays
    }

    /// Where a slot of one of these rules' groups lies.
    pub(crate) fn source_of(&self, group: &Group, slot: Slot) -> &SourceId {
        &self.shards[group.shard_of(slot)].source
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

    /// What the key's values are.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// What statements on its tables may go to several sources, where a table does not say otherwise.
    #[must_use]
    pub fn scatter(&self) -> Scatter {
        self.scatter
    }

    /// The slot function.
    #[must_use]
    pub fn function(&self) -> &Algorithm {
        &self.function
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
