//! The log store under crashes and damage: helpers of its tests, and the suite that openraft asks every store to pass.

mod concurrency;
mod crash;
mod life;
mod model;
mod syncs;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{
    storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt as _,
};
use tempfile::TempDir;

use super::{
    LogStore, Options,
    snapshot::SnapshotStore,
    writer::{Disk, RealDisk},
};
use crate::{
    Position, StateMachine, StoreError,
    consensus::{Ballot, Consensus, Entry, Opaque, Payload, log_id},
    machine::Replica,
};

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        cluster: "bank".to_owned(),
        node: 1,
        groups: 1,
        segment_bytes: 16 * 1024,
        entry_bytes_max: 8 * 1024,
        // Nearly every read goes to the disk.
        recent_bytes_max: 500,
    }
}

/// For a process to become another program.
const EXEC_MAX: Duration = Duration::from_secs(10);

/// Opens a log that nobody else has open. A test beside this one may be starting a process, which holds whatever this one had locked until
/// it has become another program (flock(2)).
fn open(dir: &Path) -> anyhow::Result<LogStore> {
    let until = Instant::now() + EXEC_MAX;
    loop {
        match LogStore::open(&options(dir)) {
            Err(StoreError::InUse { .. }) if Instant::now() < until => std::thread::yield_now(),
            opened => return Ok(opened?),
        }
    }
}

fn open_on(disk: impl Disk, dir: &Path) -> anyhow::Result<LogStore> {
    Ok(LogStore::open_on(disk, &options(dir))?)
}

/// An entry whose content says which one it is.
fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let mut content = format!("{index}@{term} ").into_bytes();
    content.resize(content.len().max(bytes), b'.');
    Entry { log_id: log_id(term, index), payload: Payload::Normal(Opaque(Bytes::from(content))) }
}

/// Appends, and waits until the entries are on disk.
async fn append(log: &mut LogStore, entries: Vec<Entry>) -> anyhow::Result<()> {
    let (done, told) = Consensus::oneshot();
    log.append(entries, IOFlushed::signal(done)).await?;
    Ok(told.await??)
}

async fn entries(log: &mut LogStore) -> anyhow::Result<Vec<Entry>> {
    Ok(log.try_get_log_entries(..).await?)
}

fn vote(term: u64) -> Ballot {
    Ballot::new_committed(term, 2)
}

/// The names of the segments that hold records.
fn segments(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir.join("log")).expect("it was opened");
    let mut names: Vec<String> = listed
        .map(|entry| entry.expect("it is listed").file_name().into_string().expect("ASCII"))
        .filter(|name| name.ends_with(".log"))
        .collect();
    names.sort();
    names
}

/// The directory as a crash would leave it now, were everything written also on disk. The writer may be retiring
/// segments meanwhile, so that it takes two looks to have seen one moment.
fn copy_of(dir: &Path) -> anyhow::Result<TempDir> {
    loop {
        let copy = tempfile::tempdir()?;
        fs::copy(dir.join("IDENTITY"), copy.path().join("IDENTITY"))?;
        fs::create_dir(copy.path().join("log"))?;
        let names = segments(dir);
        let copied = names.iter().all(|name| {
            fs::copy(dir.join("log").join(name), copy.path().join("log").join(name)).is_ok()
        });
        if copied && segments(dir) == names {
            return Ok(copy);
        }
    }
}

/// A state machine for the suite, which proposes nothing with content.
struct Nothing;

impl StateMachine for Nothing {
    type Response = ();

    fn apply(&mut self, _position: Position, _entry: &Bytes) {}

    fn snapshot(&self) -> crate::Capture {
        Box::new(|_| b"nothing".to_vec())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        if snapshot == b"nothing" { Ok(()) } else { Err("it is something".to_owned()) }
    }
}

struct Builder;

impl StoreBuilder<Consensus, LogStore, Replica<Nothing>, TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(TempDir, LogStore, Replica<Nothing>), openraft::StorageError<Consensus>> {
        let dir = tempfile::tempdir().expect("a directory");
        let log = LogStore::open_on(RealDisk, &options(dir.path())).expect("a log");
        let snapshots = SnapshotStore::open(dir.path(), "bank", 0).expect("snapshots");
        Ok((dir, log, Replica::new(Nothing, snapshots)))
    }
}

#[test]
fn the_store_keeps_what_openraft_asks_of_every_store() {
    Consensus::run(async {
        Suite::test_all(Builder).await.expect("the suite passes");
    });
}
