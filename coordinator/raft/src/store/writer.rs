//! The one thread that writes the log: take everything queued, write it, sync once, then tell everyone.
//!
//! A write or sync error is never retried and never answered: after a failed sync the kernel may have dropped the dirty
//! pages and report success the next time. The process aborts; what was not acknowledged may be lost, which is fine.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_fault::{Held as Drilled, Site, held, kill_point::may_fail, reached};
use openraft::storage::IOFlushed;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    index::{self, Index},
    record::{self, HEAD_BYTES as RECORD_HEAD_BYTES, Kind, Place, Record, record_bytes},
    scan::{Facts, Held, Located},
    segment::{HEAD_BYTES, Preparer, Retired},
};
use crate::{
    consensus::{Ballot, Consensus, Entry, LogId, Opaque, Payload},
    convert::membership_to_proto,
};

/// Bytes that go into one group, unless a single command has more.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The two calls that make bytes durable; tests put faults in their place.
pub(crate) trait Disk: Send + 'static {
    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&mut self, file: &File) -> io::Result<()>;
}

/// The operating system's.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        if let Some(longer_ms) = held::measure(Drilled::SlowDisk) {
            std::thread::sleep(Duration::from_millis(longer_ms.unsigned_abs()));
        }
        if held::measure(Drilled::SyncFails).is_some() {
            // EIO
            return Err(io::Error::from_raw_os_error(5));
        }
        may_fail(Site::DiskBeforeSync)?;
        file.sync_data()
    }
}

/// What the writer is asked to do, in this order.
pub(crate) enum Command {
    Append {
        log: u8,
        entries: Vec<Entry>,
        done: IOFlushed<Consensus>,
        /// Given back when the entries are on disk.
        room: OwnedSemaphorePermit,
    },
    Vote {
        log: u8,
        ballot: Ballot,
        done: oneshot::Sender<()>,
    },
    Truncate {
        log: u8,
        after: Option<LogId>,
    },
    Purge {
        log: u8,
        upto: LogId,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// What the writer shares with readers.
#[derive(Debug)]
pub(crate) struct Shared {
    /// One a Raft group.
    pub(crate) indexes: Vec<Mutex<Index>>,
    /// For each Raft group, how many segments behind the open one its oldest entry stands.
    pub(crate) held_back: Vec<AtomicU64>,
    /// Files that may be read. A file leaves this map before it is given another life.
    pub(crate) files: Mutex<BTreeMap<u64, Arc<File>>>,
    pub(crate) fsyncs: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
}

enum Done {
    Appended(IOFlushed<Consensus>, OwnedSemaphorePermit),
    Told(oneshot::Sender<()>),
}

pub(crate) struct Writer<D> {
    pub(crate) disk: D,
    pub(crate) dir: PathBuf,
    pub(crate) shared: Arc<Shared>,
    /// One a Raft group.
    pub(crate) facts: Vec<Facts>,
    pub(crate) segments: BTreeMap<u64, Held>,
    pub(crate) preparer: Preparer,
    pub(crate) retired: Retired,
    pub(crate) open: Open,
    /// Held as long as something may be written.
    pub(crate) _lock: File,
}

/// The segment that is written to.
pub(crate) struct Open {
    file: Arc<File>,
    life: u64,
    /// Bytes of the file.
    size: u32,
    /// Up to here, everything is on disk.
    synced: u32,
    /// What follows and is not written yet.
    buffer: Vec<u8>,
    /// Entries in `buffer`.
    written: Vec<(u8, u64, Located)>,
}

impl Open {
    pub(crate) fn new(file: Arc<File>, life: u64, synced: u32, size: u32) -> Self {
        Self { file, life, size, synced, buffer: Vec::new(), written: Vec::new() }
    }

    fn end(&self) -> u32 {
        self.synced + u32::try_from(self.buffer.len()).expect("a segment is at most a GiB")
    }

    /// Whether a record fits, and a seal behind it.
    fn has_room(&self, payload_bytes: usize) -> bool {
        let needed = record_bytes(payload_bytes) + RECORD_HEAD_BYTES;
        self.end() as usize + needed <= self.size as usize
    }
}

/// Tells everyone whose bytes are on disk.
fn tell(done: &mut Vec<Done>) {
    for one in done.drain(..) {
        match one {
            Done::Appended(flushed, room) => {
                flushed.io_completed(Ok(()));
                drop(room);
            }
            // Whoever asked may have stopped waiting.
            Done::Told(told) => {
                let _ = told.send(());
            }
        }
    }
}

/// A planted bug: tells before anything is written.
#[cfg(feature = "simulation")]
async fn tell_early(done: &mut Vec<Done>) {
    use crate::planted::{Planted, is_planted};
    if !is_planted(Planted::FsyncSkipped) {
        return;
    }
    tell(done);
    // A cache that is written back some time later.
    for _ in 0..20 {
        crate::network::wire::disk_pause().await;
    }
}

/// The end of a process that can no longer keep its word.
fn abort(action: &str, path: &Path, error: &io::Error) -> ! {
    tracing::error!(
        path = %path.display(), %error,
        "HF1202 cannot {action}; aborting, since what is not durable must not be acknowledged. Check the disk and its \
         space, then start again: the log recovers by itself"
    );
    std::process::abort()
}

impl<D: Disk> Writer<D> {
    /// Runs until it is told to close or every handle is gone.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut done = Vec::new();
        while let Some(first) = commands.blocking_recv() {
            let close = self.gather(first, &mut commands, &mut done);
            self.flush();
            tell(&mut done);
            self.drop_purged();
            if let Some(told) = close {
                // The preparer's thread, the files and the lock end before the answer.
                drop(self);
                drop(commands);
                let _ = told.send(());
                return;
            }
        }
    }

    /// As [`run`](Self::run), as a task of a simulated host: it takes simulated time, and ends wherever the host is crashed.
    #[cfg(feature = "simulation")]
    pub(crate) async fn run_simulated(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut done = Vec::new();
        while let Some(first) = commands.recv().await {
            // What is gathered here and not written is lost in a crash; what is written is synced, and may be untold.
            crate::network::wire::disk_pause().await;
            let close = self.gather(first, &mut commands, &mut done);
            tell_early(&mut done).await;
            self.flush();
            crate::network::wire::disk_pause().await;
            tell(&mut done);
            self.drop_purged();
            if let Some(told) = close {
                drop(self);
                drop(commands);
                let _ = told.send(());
                return;
            }
        }
    }

    /// Puts everything queued into the buffer, up to a group. Returns whom to tell when it is the last.
    fn gather(
        &mut self,
        first: Command,
        commands: &mut mpsc::Receiver<Command>,
        done: &mut Vec<Done>,
    ) -> Option<oneshot::Sender<()>> {
        let mut close = self.take(first, done);
        while close.is_none()
            && self.open.buffer.len() < GROUP_BYTES_MAX
            && let Ok(next) = commands.try_recv()
        {
            close = self.take(next, done);
        }
        if close.is_some() || !done.is_empty() || !self.open.buffer.is_empty() {
            self.put_committed();
        }
        close
    }

    /// Puts a command into the buffer. Returns whom to tell when it is the last.
    fn take(&mut self, command: Command, done: &mut Vec<Done>) -> Option<oneshot::Sender<()>> {
        match command {
            Command::Append { log, entries, done: flushed, room } => {
                for entry in entries {
                    self.put_entry(log, &entry);
                }
                done.push(Done::Appended(flushed, room));
            }
            Command::Vote { log, ballot, done: told } => {
                let payload = [u8::from(ballot.committed)];
                let (term, node) = (ballot.leader_id.term, ballot.leader_id.voted_for);
                self.put(log, Kind::Vote, term, node, &payload);
                self.facts[usize::from(log)].ballot = Some(ballot);
                done.push(Done::Told(told));
            }
            Command::Truncate { log, after } => {
                self.put_marked(log, Kind::Truncate, after);
                self.facts[usize::from(log)].truncate(after);
            }
            Command::Purge { log, upto } => {
                self.put(log, Kind::Purge, **upto.committed_leader_id(), upto.index, &[]);
                self.facts[usize::from(log)].purge(upto);
            }
            Command::Close { done } => return Some(done),
        }
        None
    }

    /// How far each log is committed rides with whatever is written. By itself it is not worth a sync, nor a waking of this thread, so
    /// nobody sends it: it is read where [`LogStore`](super::LogStore) notes it. One that is ahead of what was put here waits for it.
    fn put_committed(&mut self) {
        for log in 0..self.logs() {
            let at = usize::from(log);
            let upto = self.shared.indexes[at].lock().expect("no holder panics").facts.committed;
            if upto != self.facts[at].committed && upto <= self.facts[at].last {
                self.put_marked(log, Kind::Committed, upto);
                self.facts[at].committed = upto;
            }
        }
    }

    /// How many logs share the segments.
    fn logs(&self) -> u8 {
        u8::try_from(self.facts.len()).expect("at most sixteen")
    }

    fn put_marked(&mut self, log: u8, kind: Kind, position: Option<LogId>) {
        let (term, index, there) =
            position.map_or((0, 0, 0), |log_id| (**log_id.committed_leader_id(), log_id.index, 1));
        self.put(log, kind, term, index, &[there]);
    }

    fn put_entry(&mut self, log: u8, entry: &Entry) {
        let (kind, payload) = match &entry.payload {
            Payload::Blank => (Kind::Blank, Bytes::new()),
            Payload::Normal(Opaque(bytes)) => (Kind::Normal, bytes.clone()),
            Payload::Membership(membership) => {
                let bytes = membership_to_proto(membership).encode_to_vec();
                (Kind::Membership, Bytes::from(bytes))
            }
        };
        let index = entry.log_id.index;
        let term = **entry.log_id.committed_leader_id();
        let place = self.put(log, kind, term, index, &payload);
        self.open.written.push((log, index, index::located(term, place, payload.len())));
        let held = self.segments.get_mut(&self.open.life).expect("the open segment is held");
        let index_max = &mut held.index_max[usize::from(log)];
        *index_max = (*index_max).max(Some(index));
        self.facts[usize::from(log)].append(entry.log_id);
    }

    /// Puts a record into the buffer, behind the bases if it is the first of its segment; rolls over if it does not fit.
    fn put(&mut self, log: u8, kind: Kind, term: u64, index: u64, payload: &[u8]) -> Place {
        if self.open.end() as usize == HEAD_BYTES {
            self.put_bases();
        }
        if !self.open.has_room(payload.len()) {
            self.roll_over();
            self.put_bases();
        }
        self.encode(log, kind, term, index, payload)
    }

    /// What was true of each log before the segment.
    fn put_bases(&mut self) {
        for log in 0..self.logs() {
            let base = self.facts[usize::from(log)].to_base();
            self.encode(log, Kind::Base, 0, 0, &base);
        }
    }

    fn encode(&mut self, log: u8, kind: Kind, term: u64, index: u64, payload: &[u8]) -> Place {
        let place = Place { life: self.open.life, offset: self.open.end() };
        let record = Record { kind, log, group: self.open.synced, term, index, payload };
        record::encode(&mut self.open.buffer, place, record);
        place
    }

    /// Seals the segment and goes on in the next. The seal is on disk before the next has its name.
    fn roll_over(&mut self) {
        self.encode(0, Kind::Seal, self.open.life + 1, 0, &[]);
        self.flush();
        reached(Site::LogSealed);
        let enlisted = self.preparer.take().and_then(|spare| spare.enlist(&self.dir));
        let (life, file) =
            enlisted.unwrap_or_else(|error| abort("make a segment of the log", &self.dir, &error));
        assert_eq!(life, self.open.life + 1, "segments follow one another");
        let size = file.metadata().map(|metadata| metadata.len());
        let size = size.unwrap_or_else(|error| abort("examine a segment", &self.dir, &error));
        let file = Arc::new(file);
        self.segments.insert(life, Held::new(&file, self.facts.len()));
        self.shared.files.lock().expect("no holder panics").insert(life, Arc::clone(&file));
        let start = u32::try_from(HEAD_BYTES).expect("it is 64");
        let size = u32::try_from(size).expect("a segment is at most a GiB");
        self.open = Open::new(file, life, start, size);
    }

    /// Makes the buffer durable: one write, one sync.
    fn flush(&mut self) {
        if self.open.buffer.is_empty() {
            return;
        }
        let bytes = self.open.buffer.len() as u64;
        let path = || self.dir.join(super::segment::log_name(self.open.life));
        let offset = u64::from(self.open.synced);
        reached(Site::LogBeforeWrite);
        if let Err(error) = self.disk.write(&self.open.file, &self.open.buffer, offset) {
            abort("write the log", &path(), &error);
        }
        reached(Site::LogWrittenUnsynced);
        let begun = Instant::now();
        if let Err(error) = self.disk.sync(&self.open.file) {
            abort("sync the log", &path(), &error);
        }
        reached(Site::LogSyncedUntold);
        metrics::histogram!("holdfast_log_fsync_seconds").record(begun.elapsed().as_secs_f64());
        metrics::counter!("holdfast_log_fsyncs_total").increment(1);
        metrics::counter!("holdfast_log_bytes_total").increment(bytes);
        self.shared.fsyncs.fetch_add(1, Ordering::Relaxed);
        self.shared.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        self.open.synced = self.open.end();
        self.open.buffer.clear();
        self.open.buffer.shrink_to(2 * GROUP_BYTES_MAX);
        let written = &mut self.open.written;
        for (log, index) in (0..).zip(&self.shared.indexes) {
            if !written.iter().any(|(of, ..)| *of == log) {
                continue;
            }
            let mut index = index.lock().expect("no holder panics");
            for &(_, at, located) in written.iter().filter(|(of, ..)| *of == log) {
                index.written(at, located);
            }
            index.make_room();
        }
        written.clear();
    }

    /// Takes segments out of the log from the oldest on, while all their entries are purged. The purge itself is on
    /// disk by now, in a younger segment or in this one's successors.
    fn drop_purged(&mut self) {
        while let Some((&life, held)) = self.segments.first_key_value()
            && life < self.open.life
            && held.is_purged(&self.facts)
        {
            reached(Site::LogPurged);
            self.shared.files.lock().expect("no holder panics").remove(&life);
            let held = self.segments.remove(&life).expect("it is the first");
            // Readers hold the file; one that is read now must keep its bytes.
            let unread = Arc::into_inner(held.file).is_some();
            if let Err(error) = self.retired.retire(&self.dir, life, unread) {
                abort("retire a segment of the log", &self.dir, &error);
            }
        }
        for (log, held_back) in self.shared.held_back.iter().enumerate() {
            let needs = |held: &&Held| !held.is_purged_of(log, &self.facts[log]);
            let behind = self.segments.values().position(|held| needs(&held));
            let behind = behind.map_or(0, |oldest| self.segments.len() - 1 - oldest);
            held_back.store(behind as u64, Ordering::Relaxed);
        }
    }
}
