//! A plan in words, for `EXPLAIN (ROUTE)`.

use super::{Plan, Reason, SourceIndex, Target};
use crate::{ShardId, Topology};

/// One line of an explained plan.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explained {
    /// The source, or none when any would do.
    pub source: Option<String>,
    /// The shards of the group on that source that are meant.
    pub shards: Vec<String>,
    /// The slot, if it is exactly one.
    pub slot: Option<u16>,
    /// Why this source.
    pub reason: &'static str,
    /// What is sent there instead of the client's text.
    pub rewritten: Option<String>,
    /// The epoch of the rules.
    pub epoch: u64,
}

impl Reason {
    /// In a few words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::OnlySource => "there is one source only",
            Self::Everywhere => "every source has the same answer",
            Self::SinglePlacement => "the table lies on one source",
            Self::Key => "the key's value",
            Self::Keys => "the keys' values",
            Self::NoRowMatches => "no row can match",
            Self::Scatter => "nothing narrows the sources; the rules permit to ask all",
            Self::EveryCopy => "every source has a copy to write",
            Self::EachRow => "each row by its key",
        }
    }
}

impl Plan {
    /// The plan in words: a line for each source.
    #[must_use]
    pub fn explain(&self, topology: &Topology) -> Vec<Explained> {
        let line = |source: Option<SourceIndex>, rewritten: Option<String>| {
            let named = source.and_then(|source| topology.source_at(source));
            Explained {
                source: named.map(|(name, _)| name.to_string()),
                shards: self.shards(topology, source),
                slot: self.slot.map(crate::Slot::number),
                reason: self.reason.words(),
                rewritten,
                epoch: self.epoch,
            }
        };
        match &self.target {
            Target::Any => vec![line(None, None)],
            Target::One(source) => vec![line(Some(*source), None)],
            Target::Several(parts) => parts
                .iter()
                .map(|part| {
                    let sql = part.rewritten.as_ref().map(|rewritten| rewritten.sql.clone());
                    line(Some(part.source), sql)
                })
                .collect(),
        }
    }

    fn shards(&self, topology: &Topology, source: Option<SourceIndex>) -> Vec<String> {
        let group = self.group.as_ref().and_then(|name| topology.groups().get(name));
        let source = source.and_then(|source| topology.source_at(source));
        let (Some(group), Some((source, _))) = (group, source) else { return Vec::new() };
        if let Some(slot) = self.slot {
            return vec![group.shard_of(slot).to_string()];
        }
        let here = topology.shards().iter().filter(|(_, shard)| shard.source() == source);
        here.map(|(name, _)| name)
            .filter(|name| !group.slots_of(name).is_empty())
            .map(ShardId::to_string)
            .collect()
    }
}
