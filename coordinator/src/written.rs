//! What the log of a stopped node says, command by command: for those who check the cluster's word against it.

use std::path::Path;

use holdfast_raft::read_stopped;
use holdfast_txn::{Command, Timestamp};

use crate::record::decode_entry;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its place in the log.
    pub index: u64,
    /// What its proposer stamped.
    pub at: Timestamp,
    /// In order.
    pub commands: Vec<Command>,
}

/// Reads the log of the Raft group `group` of `groups` in a coordinator's data directory, which no process may use meanwhile. Nothing
/// is changed. Blocks.
/// # Errors
/// A process uses the directory, it is damaged, entries were given up for a snapshot already, or one is not readable by this
/// version.
///
/// # Panics
/// If there is no such group.
pub fn read_written(dir: &Path, group: u32, groups: u32) -> Result<Vec<Written>, String> {
    let mut logs = read_stopped(dir, groups).map_err(|error| error.to_string())?;
    let log = logs.swap_remove(group as usize);
    if log.purged > 0 {
        return Err(format!("entries up to {} were given up for a snapshot", log.purged));
    }
    let written = log.entries.into_iter().map(|(position, bytes)| {
        let index = position.index;
        let (at, commands) = decode_entry(&bytes).map_err(|bad| format!("entry {index}: {bad}"))?;
        Ok(Written { index, at, commands })
    });
    written.collect()
}
