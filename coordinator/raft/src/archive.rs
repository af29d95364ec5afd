//! Snapshots that leave the log: to be kept elsewhere, to be read without a running node, and to make a directory of.

use std::io;

use crc32fast::Hasher;
use holdfast_proto::v1;
use openraft::storage::RaftLogStorage as _;
use prost::Message as _;

use crate::{
    Config, ControlError, Log, OpenError, Position, StateMachine, StoreError,
    consensus::{Addresses, Ballot, Membership, SnapshotMeta, StoredMembership, log_id, position},
    store::{
        LogStore, Options, directory,
        snapshot::{FIXED_BYTES, HEAD_BYTES_MAX, MAGIC, SnapshotFile, SnapshotStore},
    },
};

/// A snapshot that stays readable as long as this is held, whatever comes after it.
#[derive(Clone, Debug)]
pub struct SavedSnapshot {
    file: SnapshotFile,
    /// The last entry in it.
    pub position: Position,
    /// Of the file.
    pub bytes: u64,
}

impl SavedSnapshot {
    /// Up to `bytes_max` bytes from `offset` on; none at the end. Blocks.
    /// # Errors
    /// What the disk says.
    pub fn chunk(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        self.file.chunk(offset, bytes_max)
    }
}

/// What a snapshot file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotContent<'a> {
    /// The Raft group.
    pub group: u32,
    /// The last entry in it.
    pub position: Position,
    /// The state, as its machine wrote it.
    pub state: &'a [u8],
}

impl<S: StateMachine> Log<S> {
    /// Takes a snapshot now and holds on to it.
    /// # Errors
    /// As [`snapshot_now`](Self::snapshot_now); also if nothing was ever applied here.
    pub async fn save(&self) -> Result<SavedSnapshot, ControlError> {
        self.snapshot_now().await?;
        let current = self.inner.snapshots.current();
        let (meta, file) = current.ok_or(ControlError::Empty)?;
        let position = meta.last_log_id.as_ref().map(position).unwrap_or_default();
        let bytes = file.bytes;
        Ok(SavedSnapshot { file, position, bytes })
    }
}

/// Reads and checks the bytes of a snapshot file. Allocates nothing for the state.
/// # Errors
/// What is wrong with it, for people.
pub fn parse_snapshot(bytes: &[u8]) -> Result<SnapshotContent<'_>, String> {
    let fixed = bytes.get(..FIXED_BYTES).filter(|fixed| &fixed[..8] == MAGIC);
    let fixed = fixed.ok_or("it is no snapshot of this format")?;
    let (covered, crc) = bytes.split_last_chunk::<4>().ok_or("it is shorter than a head")?;
    let mut hasher = Hasher::new();
    hasher.update(covered);
    if hasher.finalize() != u32::from_le_bytes(*crc) {
        return Err("the checksum of the snapshot does not match".to_owned());
    }
    let head_bytes = crate::store::record::u32_at(fixed, 8) as usize;
    if head_bytes > HEAD_BYTES_MAX {
        return Err(format!("the head of the snapshot announces {head_bytes} bytes"));
    }
    let head = covered.get(FIXED_BYTES..FIXED_BYTES + head_bytes);
    let head = head.ok_or("the snapshot ends within its head")?;
    let head = v1::RaftSnapshotHead::decode(head).map_err(|error| error.to_string())?;
    let state = &covered[FIXED_BYTES + head_bytes..];
    if head.state_bytes != state.len() as u64 {
        let (found, announced) = (state.len(), head.state_bytes);
        return Err(format!(
            "the snapshot holds {found} bytes of state, its head says {announced}"
        ));
    }
    let last = head.last.unwrap_or_default();
    let position = Position { index: last.index, term: last.term };
    Ok(SnapshotContent { group: head.group, position, state })
}

/// Makes a directory for the node of `config` with these states, one a group in their order: the beginning of a new founding of
/// the cluster, of which this node is the only member. Returns the founding.
/// # Errors
/// [`OpenError`]; the directory must be empty or missing. After another error it may be half made: remove it.
pub async fn found_from(config: &Config, states: &[SnapshotContent<'_>]) -> Result<u64, OpenError> {
    let mistakes = config.mistakes();
    if !mistakes.is_empty() {
        return Err(OpenError::Config(mistakes));
    }
    let in_use = std::fs::read_dir(&config.dir).is_ok_and(|mut entries| entries.next().is_some());
    if in_use {
        return Err(StoreError::NotEmpty { dir: config.dir.clone() }.into());
    }
    let options = Options::from(config);
    let founding = directory::draw();
    let stores = LogStore::open_all(crate::store::writer::RealDisk, &options)?;
    let mut own = Addresses::of(&config.own());
    own.incarnation = stores[0].founding().incarnation();
    own.reads_format = config.reads_format;
    for ((group, mut store), content) in (0..).zip(stores.clone()).zip(states) {
        let at = content.position;
        let last = log_id(at.term, at.index);
        let membership = membership_of(config.node, &own);
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: StoredMembership::new(Some(last), membership),
        };
        let failed = |error: io::Error| OpenError::recover(config, &error);
        SnapshotStore::open(&config.dir, &config.cluster, group)?
            .write(meta, content.state)
            .map_err(failed)?;
        // The terms of the new founding begin where those of the former ended.
        store.save_vote(&Ballot::new(at.term, config.node)).await.map_err(failed)?;
        store.purge(last).await.map_err(failed)?;
    }
    stores[0].founding().keep(founding)?;
    stores[0].close().await;
    Ok(founding)
}

fn membership_of(node: u64, own: &Addresses) -> Membership {
    let voters = vec![std::collections::BTreeSet::from([node])];
    let nodes = std::collections::BTreeMap::from([(node, own.clone())]);
    Membership::new(voters, nodes).expect("the voter is among the nodes")
}
