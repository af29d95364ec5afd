//! What a replica keeps on disk: the log with the vote in it, and the last snapshot.
//!
//! ```text
//! LOCK                     locked while a process uses the directory
//! IDENTITY                 whose directory this is
//! log/00000000000000000001.log   a segment, see `segment` for its life and `record` for its content
//! snapshot/<index>-<term>.snap   see `snapshot`
//! ```

pub(crate) mod directory;
mod durable;
pub(crate) mod error;
pub(crate) mod index;
pub(crate) mod record;
pub(crate) mod scan;
pub(crate) mod segment;
pub(crate) mod snapshot;
pub(crate) mod writer;

#[cfg(test)]
mod tests;

use std::{
    fmt::Debug,
    fs::{self, File},
    io,
    ops::{Bound, RangeBounds},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64},
    thread,
};

use bytes::Bytes;
use futures::Stream;
use holdfast_proto::v1;
use openraft::{
    LogState, OptionalSend,
    storage::{IOFlushed, RaftLogReader, RaftLogStorage},
};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::{
    directory::Founding,
    error::{During as _, StoreError},
    index::{Found, Index, RECENT_BYTES_MAX, payload_bytes},
    record::Kind,
    scan::{Held, Located},
    segment::{Preparer, Retired},
    writer::{Command, Disk, Open, RealDisk, Shared, Writer},
};
use crate::{
    consensus::{Ballot, Consensus, Entry, LogId, Opaque, Payload, log_id},
    convert::membership_from_proto,
};

/// Commands that wait for the writer.
const COMMANDS_MAX: usize = 1024;
/// Bytes of entries that wait for the writer.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of entries that one read returns, unless a single entry has more.
const READ_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How a log is opened.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) dir: PathBuf,
    pub(crate) cluster: String,
    pub(crate) node: u64,
    pub(crate) groups: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) entry_bytes_max: usize,
    pub(crate) recent_bytes_max: usize,
}

impl From<&crate::Config> for Options {
    fn from(config: &crate::Config) -> Self {
        Self {
            dir: config.dir.clone(),
            cluster: config.cluster.clone(),
            node: config.node,
            groups: config.groups,
            segment_bytes: config.segment_bytes,
            entry_bytes_max: config.entry_bytes_max(),
            recent_bytes_max: RECENT_BYTES_MAX,
        }
    }
}

#[cfg(not(feature = "simulation"))]
fn start<D: Disk>(writer: Writer<D>, queue: mpsc::Receiver<Command>) -> io::Result<()> {
    let thread = thread::Builder::new().name("raft-log-write".to_owned());
    thread.spawn(move || writer.run(queue)).map(drop)
}

/// Within a simulated host there is a task instead of the thread; elsewhere the thread.
#[cfg(feature = "simulation")]
fn start<D: Disk>(writer: Writer<D>, queue: mpsc::Receiver<Command>) -> io::Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(host) => {
            host.spawn(writer.run_simulated(queue));
            Ok(())
        }
        Err(_) => {
            let thread = thread::Builder::new().name("raft-log-write".to_owned());
            thread.spawn(move || writer.run(queue)).map(drop)
        }
    }
}

/// The log of one group at one node. A handle: clones are the same log. The logs of a node share its segments, its writer and
/// with that its syncs.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    log: u8,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    /// Permits for bytes in the queue.
    room: Arc<Semaphore>,
    entry_bytes_max: usize,
    founding: Founding,
}

impl LogStore {
    /// Opens the log of a node that has one: takes the directory, recovers what is there, starts the writer. Blocks.
    pub(crate) fn open(options: &Options) -> Result<Self, StoreError> {
        Self::open_on(RealDisk, options)
    }

    /// As [`open`](Self::open), on a given disk.
    pub(crate) fn open_on(disk: impl Disk, options: &Options) -> Result<Self, StoreError> {
        Ok(Self::open_all(disk, options)?.remove(0))
    }

    /// Opens every log of a node, one a group in their order. Blocks.
    pub(crate) fn open_all(disk: impl Disk, options: &Options) -> Result<Vec<Self>, StoreError> {
        let claim = directory::claim(&options.dir, &options.cluster, options.node, options.groups)?;
        let logs = options.groups as usize;
        let dir = options.dir.join("log");
        create_dir(&dir)?;
        segment::remove_leftovers(&dir).during("remove leftovers in", &dir)?;
        let recovered = scan::recover(&dir, logs)?;
        let mut segments = recovered.segments;
        if segments.is_empty() && claim.founding.number() != 0 {
            // The first segment is there before a founding is.
            let cause =
                "the log is gone, while the identity says that this node belonged to a cluster";
            return Err(StoreError::Damaged { file: dir, offset: 0, cause: cause.to_owned() });
        }

        let retired = Retired::default();
        let next_life = segments.last_key_value().map_or(1, |(&life, _)| life + 1);
        let preparer =
            Preparer::start(dir.clone(), next_life, options.segment_bytes, retired.clone())
                .during("start preparing segments in", &dir)?;
        let open = if let Some((life, end, size)) = recovered.open {
            Open::new(Arc::clone(&segments[&life].file), life, end, size)
        } else {
            let (life, file) = preparer
                .take()
                .and_then(|spare| spare.enlist(&dir))
                .during("make a segment in", &dir)?;
            let size = u32::try_from(options.segment_bytes).expect("a segment is at most a GiB");
            let start = u32::try_from(segment::HEAD_BYTES).expect("it is 64");
            let file = Arc::new(file);
            segments.insert(life, Held::new(&file, logs));
            Open::new(file, life, start, size)
        };

        let files = segments.iter().map(|(&life, held)| (life, Arc::clone(&held.file))).collect();
        let facts = recovered.logs.iter().map(|log| log.facts.clone()).collect();
        let indexes = recovered.logs.into_iter().map(|log| {
            let recent_bytes_max = options.recent_bytes_max / logs;
            Mutex::new(Index::new(log.facts, log.first_index, log.entries, recent_bytes_max))
        });
        let shared = Arc::new(Shared {
            indexes: indexes.collect(),
            held_back: (0..logs).map(|_| AtomicU64::new(0)).collect(),
            files: Mutex::new(files),
            fsyncs: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        });
        let writer = Writer {
            disk,
            dir: dir.clone(),
            shared: Arc::clone(&shared),
            facts,
            segments,
            preparer,
            retired,
            open,
            _lock: claim.lock,
        };
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        start(writer, queue).during("start the writer of", &dir)?;
        let first = Self {
            log: 0,
            commands,
            shared,
            room: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
            entry_bytes_max: options.entry_bytes_max,
            founding: claim.founding,
        };
        let of = |log| Self { log, ..first.clone() };
        Ok((0..).take(logs).map(of).collect())
    }

    /// Which founding of the cluster this log belongs to.
    pub(crate) fn founding(&self) -> &Founding {
        &self.founding
    }

    /// Writes what is queued, then lets go of the directory. Later writes fail.
    pub(crate) async fn close(&self) {
        let (done, told) = oneshot::channel();
        if self.commands.send(Command::Close { done }).await.is_ok() {
            // The writer answers, or is gone, which is as good.
            let _ = told.await;
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.shared.indexes[usize::from(self.log)].lock().expect("no holder panics")
    }

    /// How many segments behind the open one the oldest entry of this log stands: so many are kept for it.
    pub(crate) fn held_back(&self) -> u64 {
        self.shared.held_back[usize::from(self.log)].load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Bytes of the records behind the entry `after`, as far as they are held, up to that of `upto`.
    pub(crate) fn bytes_between(&self, after: Option<u64>, upto: u64) -> u64 {
        self.index().bytes_between(after, upto)
    }

    /// The last entry that may go if of those up to `upto` no more than so many, and no more than so many bytes, are kept. `None`: all
    /// of them may stay.
    pub(crate) fn last_beyond(&self, upto: u64, entries: u64, bytes: u64) -> Option<u64> {
        self.index().last_beyond(upto, entries, bytes)
    }

    async fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).await.map_err(|_| io::Error::other("the log is closed"))
    }

    /// At least one of the entries in `[start, end)` if there is any, and not many more bytes than a limit.
    async fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let found = self.index().find(start, end, READ_BYTES_MAX);
        if found.iter().all(|one| matches!(one, Found::Recent(_))) {
            return Ok(found
                .into_iter()
                .map(|one| match one {
                    Found::Recent(entry) => entry,
                    Found::OnDisk(..) => unreachable!("all are recent"),
                })
                .collect());
        }
        let log = self.clone();
        tokio::task::spawn_blocking(move || read_found(&log, found)).await.map_err(io::Error::other)
    }
}

pub(crate) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(dir).during("create the directory", dir)?;
    let parent = dir.parent().expect("it lies in the replica's directory");
    durable::sync_dir(parent).during("sync the directory", parent)
}

/// Reads from disk what is not in memory. A damaged entry ends the process: it must neither be sent nor applied, and
/// answering with an error has made followers of other logs diverge.
fn read_found(log: &LogStore, found: Vec<Found>) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(found.len());
    for one in found {
        let (named, located) = match one {
            Found::Recent(entry) => {
                entries.push(entry);
                continue;
            }
            Found::OnDisk(named, located) => (named, located),
        };
        let life = located.place.life;
        let file = log.shared.files.lock().expect("no holder panics").get(&life).map(Arc::clone);
        let outcome = file.map_or_else(
            || Err("its segment is gone".to_owned()),
            |file| read_entry(&file, named, located),
        );
        match outcome {
            Ok(entry) => entries.push(entry),
            Err(cause) => {
                if log.index().holds(named.index) {
                    tracing::error!(
                        entry = %named, segment = life, offset = located.place.offset, cause,
                        "HF1202 cannot read an entry that was durable; aborting rather than spread damage. Check the disk; \
                         keep the directory, and replace this node: holdfast cluster replace"
                    );
                    std::process::abort();
                }
                // Purged while it was being read: missing at the beginning is as if it was asked for later.
                entries.clear();
            }
        }
    }
    entries
}

pub(crate) fn read_entry(file: &File, named: LogId, located: Located) -> Result<Entry, String> {
    let mut bytes = vec![0; record::record_bytes(located.payload_bytes as usize)];
    file.read_exact_at(&mut bytes, u64::from(located.place.offset))
        .map_err(|error| error.to_string())?;
    let record = record::decode(&bytes, located.place).map_err(|flaw| flaw.to_string())?;
    if log_id(record.term, record.index) != named {
        return Err(format!("found the entry {}@{}", record.index, record.term));
    }
    let payload = match record.kind {
        Kind::Blank => Payload::Blank,
        Kind::Normal => Payload::Normal(Opaque(Bytes::copy_from_slice(record.payload))),
        Kind::Membership => {
            let membership =
                v1::RaftMembership::decode(record.payload).map_err(|error| error.to_string())?;
            let membership =
                membership_from_proto(membership).map_err(|error| error.to_string())?;
            Payload::Membership(membership)
        }
        Kind::Vote | Kind::Truncate | Kind::Purge | Kind::Committed | Kind::Base | Kind::Seal => {
            return Err(format!("found a record of kind {:?}", record.kind));
        }
    };
    Ok(Entry { log_id: named, payload })
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Consensus> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut start, end) = bounds(&range);
        let mut entries = Vec::new();
        loop {
            let some = self.read(start, end).await?;
            let Some(last) = some.last() else { return Ok(entries) };
            start = last.log_id.index + 1;
            if entries.is_empty() {
                entries = some;
            } else {
                entries.extend(some);
            }
        }
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // A node that catches up applies many entries at once; they need not be in memory all at once.
        let (start, end) = bounds(&range);
        let begin = (self.clone(), start, Vec::new().into_iter());
        futures::stream::unfold(begin, move |(log, start, mut batch)| async move {
            if let Some(entry) = batch.next() {
                return Some((Ok(entry), (log, start, batch)));
            }
            match log.read(start, end).await {
                Ok(some) => {
                    let next = some.last()?.log_id.index + 1;
                    batch = some.into_iter();
                    let first = batch.next().expect("there is a last, so there is a first");
                    Some((Ok(first), (log, next, batch)))
                }
                Err(error) => Some((Err(error), (log, end, batch))),
            }
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Ballot>> {
        Ok(self.index().facts.ballot)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end).await
    }
}

impl RaftLogStorage<Consensus> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Consensus>> {
        let index = self.index();
        Ok(LogState { last_purged_log_id: index.facts.purged, last_log_id: index.facts.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Ballot) -> io::Result<()> {
        let (done, told) = oneshot::channel();
        self.send(Command::Vote { log: self.log, ballot: *vote, done }).await?;
        told.await.map_err(|_| io::Error::other("the log is closed"))?;
        self.index().facts.ballot = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // The writer takes it from here with what it writes next.
        self.index().facts.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let index = self.index();
        // The mark may be ahead of entries that a crash took.
        Ok(index.facts.committed.min(index.facts.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Consensus>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let largest = entries.iter().map(payload_bytes).max().unwrap_or(0);
        if largest > self.entry_bytes_max {
            let limit = self.entry_bytes_max;
            let cause = format!("an entry of {largest} bytes is above the limit of {limit}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
        }
        let bytes: usize = entries.iter().map(payload_bytes).sum();
        let permits = u32::try_from(bytes.min(QUEUED_BYTES_MAX)).expect("at most 64 MiB");
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let room = room.map_err(io::Error::other)?;
        {
            let mut index = self.index();
            for entry in &entries {
                index.append(entry.clone()).map_err(io::Error::other)?;
            }
        }
        self.send(Command::Append { log: self.log, entries, done: callback, room }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        {
            let mut index = self.index();
            if !index.reaches_beyond(last_log_id.as_ref()) {
                return Ok(());
            }
            index.truncate(last_log_id);
        }
        self.send(Command::Truncate { log: self.log, after: last_log_id }).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.index().purge(log_id);
        self.send(Command::Purge { log: self.log, upto: log_id }).await
    }
}
