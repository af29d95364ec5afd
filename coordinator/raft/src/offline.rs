//! The entries of a log as they lie on the disk of a node that is stopped: for those who check what it says, not for any node.

use std::path::Path;

use bytes::Bytes;

use crate::{
    Position, StoreError,
    config::GROUPS_MAX,
    consensus::{Payload, log_id},
    store::{
        directory, read_entry,
        scan::{self, OneLog, Recovered},
    },
};

/// One group's log as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoppedLog {
    /// Entries up to this index were given up for a snapshot.
    pub purged: u64,
    /// What this node knew to be on a majority; what stands behind it may still be dropped by a leader of a later term.
    pub committed: u64,
    /// The entries that users proposed, in order; those of Raft itself are left out.
    pub entries: Vec<(Position, Bytes)>,
}

/// Reads the logs in `dir`, one a group. The directory is locked meanwhile; nothing of it changes but a torn tail, which the node
/// would cut as well when it starts. Blocks.
/// # Errors
/// A process uses the directory, or what it holds is damaged.
///
/// # Panics
/// If `groups` is not among 1 to 16.
pub fn read_stopped(dir: &Path, groups: u32) -> Result<Vec<StoppedLog>, StoreError> {
    assert!((1..=GROUPS_MAX).contains(&groups), "{groups} groups");
    let _lock = directory::lock(dir)?;
    let recovered = scan::recover(&dir.join("log"), groups as usize)?;
    recovered.logs.iter().map(|log| read_one(dir, log, &recovered)).collect()
}

fn read_one(dir: &Path, log: &OneLog, recovered: &Recovered) -> Result<StoppedLog, StoreError> {
    let index = |named: &Option<crate::consensus::LogId>| named.as_ref().map_or(0, |id| id.index);
    let mut stopped = StoppedLog {
        purged: index(&log.facts.purged),
        committed: index(&log.facts.committed),
        entries: Vec::new(),
    };
    for (index, located) in (log.first_index..).zip(&log.entries) {
        let damaged = |cause| StoreError::Damaged {
            file: dir.join("log"),
            offset: u64::from(located.place.offset),
            cause,
        };
        let segment = recovered.segments.get(&located.place.life);
        let segment = segment.ok_or_else(|| damaged("its segment is gone".to_owned()))?;
        let named = log_id(located.term, index);
        let entry = read_entry(&segment.file, named, *located).map_err(damaged)?;
        if let Payload::Normal(opaque) = entry.payload {
            stopped.entries.push((Position { index, term: located.term }, opaque.0));
        }
    }
    Ok(stopped)
}
