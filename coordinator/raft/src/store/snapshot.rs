//! The last snapshot: a checksummed file, replaced only by a newer one that is completely on disk, and written into the file of the one before
//! it.
//!
//! ```text
//!  0  "HFSNAP01"
//!  8  length of the head  u32
//! 12  head, a RaftSnapshotHead
//!     the state, opaque
//!     crc                 u32  CRC-32 of every byte before
//! ```
//!
//! The file is also what travels to a follower that is far behind, byte by byte; it is checked again there.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use crc32fast::Hasher;
use holdfast_fault::{Site, reached};
use holdfast_proto::v1;
use prost::Message as _;

use super::{
    create_dir,
    durable::{sync_dir, sync_file},
    error::{During as _, StoreError},
    record::u32_at,
    segment::remove_leftovers,
};
use crate::{
    background::Leisure,
    consensus::SnapshotMeta,
    convert::{
        position_from_proto, position_to_proto, stored_membership_from_proto,
        stored_membership_to_proto,
    },
};

pub(crate) const MAGIC: &[u8; 8] = b"HFSNAP01";
pub(crate) const FIXED_BYTES: usize = 12;
pub(crate) const HEAD_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that are written at a stretch.
const PIECE_BYTES: usize = 64 * 1024;
/// The largest snapshot file.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// A whole snapshot file, readable even when its name is gone.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub(crate) file: Arc<File>,
    pub(crate) bytes: u64,
    path: PathBuf,
    /// Set while the file has no lasting name.
    _unnamed: Option<Arc<Unnamed>>,
}

/// A file under construction. It goes with its last user, unless it was given a lasting name meanwhile.
#[derive(Debug)]
struct Unnamed(PathBuf);

impl Drop for Unnamed {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "cannot remove a snapshot that nobody wants");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl SnapshotFile {
    /// Up to `limit` bytes from `offset` on; none at the end. Blocks.
    pub(crate) fn chunk(&self, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut chunk = vec![0; left.min(limit)];
        self.file.read_exact_at(&mut chunk, offset)?;
        Ok(chunk)
    }
}

/// Where snapshots are kept. A handle: clones are the same place.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotStore {
    place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    cluster: String,
    group: u32,
    current: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    /// The one before, whose file becomes that of the next: its pages lie in the kernel's cache, and a new file takes fresh ones.
    former: Mutex<Option<SnapshotFile>>,
    files_made: AtomicU64,
}

impl SnapshotStore {
    /// Opens the place and checks the newest snapshot; older ones are removed. Blocks.
    pub(crate) fn open(replica_dir: &Path, cluster: &str, group: u32) -> Result<Self, StoreError> {
        // A cluster of one group has the name that it always had.
        let name = if group == 0 { "snapshot".to_owned() } else { format!("snapshot-{group:02}") };
        let dir = replica_dir.join(name);
        create_dir(&dir)?;
        remove_leftovers(&dir).during("remove leftovers in", &dir)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).during("list the snapshots", &dir)? {
            let path = entry.during("list the snapshots", &dir)?.path();
            if path.extension().is_some_and(|extension| extension == "snap") {
                names.push(path);
            }
        }
        // Names are padded numbers, so the newest is the greatest.
        names.sort();
        let newest = names.pop();
        let current = newest.map(|path| Self::check(&path, cluster, group)).transpose()?;
        for older in names {
            fs::remove_file(&older).during("remove the older snapshot", &older)?;
        }
        let place = Place {
            dir,
            cluster: cluster.to_owned(),
            group,
            current: Mutex::new(current),
            former: Mutex::default(),
            files_made: AtomicU64::new(0),
        };
        Ok(Self { place: Arc::new(place) })
    }

    fn check(
        path: &Path,
        cluster: &str,
        group: u32,
    ) -> Result<(SnapshotMeta, SnapshotFile), StoreError> {
        let file = File::open(path).during("open the snapshot", path)?;
        match check(&file, cluster, group).during("read the snapshot", path)? {
            Ok((meta, bytes)) => {
                let file = Arc::new(file);
                Ok((meta, SnapshotFile { file, bytes, path: path.to_owned(), _unnamed: None }))
            }
            Err(cause) => Err(StoreError::Damaged { file: path.to_owned(), offset: 0, cause }),
        }
    }

    fn current_slot(&self) -> MutexGuard<'_, Option<(SnapshotMeta, SnapshotFile)>> {
        self.place.current.lock().expect("no holder panics")
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.current_slot().clone()
    }

    fn begin_file(&self) -> io::Result<SnapshotFile> {
        // Never the same name twice, so that the last user of one file cannot remove another.
        let made = self.place.files_made.fetch_add(1, Ordering::Relaxed);
        let path = self.place.dir.join(format!("{made}.tmp"));
        let mut options = File::options();
        options.read(true).write(true);
        let file = match self.take_former()? {
            Some(former) => {
                fs::rename(former, &path)?;
                options.open(&path)?
            }
            None => options.create(true).truncate(true).open(&path)?,
        };
        let unnamed = Some(Arc::new(Unnamed(path.clone())));
        Ok(SnapshotFile { file: Arc::new(file), bytes: 0, path, _unnamed: unnamed })
    }

    /// The file of the snapshot before the current one, if nobody reads it any more.
    fn take_former(&self) -> io::Result<Option<PathBuf>> {
        let former = self.place.former.lock().expect("no holder panics").take();
        let Some(SnapshotFile { file, path, .. }) = former else { return Ok(None) };
        if Arc::into_inner(file).is_some() {
            return Ok(Some(path));
        }
        // A peer is being sent it, and needs its bytes as they are. They last as long as somebody reads them.
        fs::remove_file(path)?;
        Ok(None)
    }

    /// Keeps the file of a snapshot that is not the current one any more.
    fn keep_former(&self, former: SnapshotFile) -> io::Result<()> {
        let path = former.path.with_extension("old");
        fs::rename(&former.path, &path)?;
        let former = SnapshotFile { path, ..former };
        match self.place.former.lock().expect("no holder panics").replace(former) {
            Some(older) => fs::remove_file(older.path),
            None => Ok(()),
        }
    }

    /// Writes a snapshot and makes it the current one, unless a newer one came first. Blocks.
    pub(crate) fn write(
        &self,
        meta: SnapshotMeta,
        state: &[u8],
    ) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let snapshot = self.draft(&meta, state, Leisure::none())?;
        self.adopt(meta, snapshot)
    }

    /// Writes a snapshot that nobody has before it is [adopted](Self::adopt); if it cannot be written, nothing stays on disk. Blocks.
    pub(crate) fn draft(
        &self,
        meta: &SnapshotMeta,
        state: &[u8],
        leisure: Leisure,
    ) -> io::Result<SnapshotFile> {
        let head = v1::RaftSnapshotHead {
            cluster: self.place.cluster.clone(),
            last: meta.last_log_id.as_ref().map(position_to_proto),
            membership: Some(stored_membership_to_proto(&meta.last_membership)),
            state_bytes: state.len() as u64,
            group: self.place.group,
        }
        .encode_to_vec();
        let mut front = MAGIC.to_vec();
        let length = u32::try_from(head.len()).map_err(io::Error::other)?;
        front.extend_from_slice(&length.to_le_bytes());
        front.extend_from_slice(&head);
        let mut hasher = Hasher::new();
        hasher.update(&front);

        let mut snapshot = self.begin_file()?;
        let mut file = &*snapshot.file;
        file.write_all(&front)?;
        for piece in state.chunks(PIECE_BYTES) {
            hasher.update(piece);
            file.write_all(piece)?;
            leisure.leave_way();
        }
        file.write_all(&hasher.finalize().to_le_bytes())?;
        snapshot.bytes = (front.len() + state.len() + 4) as u64;
        // The file may have held a longer one.
        file.set_len(snapshot.bytes)?;
        Ok(snapshot)
    }

    /// Makes a complete file the current snapshot, durably, unless a newer one came first. Returns what is current.
    /// Blocks.
    pub(crate) fn adopt(
        &self,
        meta: SnapshotMeta,
        mut snapshot: SnapshotFile,
    ) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let mut current = self.current_slot();
        if let Some((other, held)) = &*current
            && (held.path == snapshot.path || other.last_log_id > meta.last_log_id)
        {
            return Ok((other.clone(), held.clone()));
        }
        sync_file(&snapshot.file, &snapshot.path)?;
        let (index, term) = meta
            .last_log_id
            .map_or((0, 0), |log_id| (log_id.index, **log_id.committed_leader_id()));
        let path = self.place.dir.join(format!("{index:020}-{term:020}.snap"));
        reached(Site::SnapshotUnnamed);
        fs::rename(&snapshot.path, &path)?;
        sync_dir(&self.place.dir)?;
        reached(Site::SnapshotNamed);
        snapshot.path.clone_from(&path);
        snapshot._unnamed = None;
        let former = current.replace((meta.clone(), snapshot.clone()));
        if let Some((_, former)) = former
            && former.path != path
        {
            self.keep_former(former)?;
        }
        Ok((meta, snapshot))
    }

    /// Begins to take in a snapshot of `bytes_total` bytes. Blocks.
    pub(crate) fn receive(&self, bytes_total: u64) -> io::Result<Incoming> {
        if bytes_total > SNAPSHOT_BYTES_MAX {
            let cause = format!(
                "a snapshot of {bytes_total} bytes is above the limit of {SNAPSHOT_BYTES_MAX}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
        }
        let cluster = self.place.cluster.clone();
        let group = self.place.group;
        Ok(Incoming { snapshot: self.begin_file()?, bytes_total, cluster, group })
    }
}

/// A snapshot on its way in. Dropped before it is complete, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Incoming {
    snapshot: SnapshotFile,
    bytes_total: u64,
    cluster: String,
    group: u32,
}

impl Incoming {
    /// Takes the next chunk in. Blocks.
    pub(crate) fn add(&mut self, chunk: &[u8]) -> io::Result<()> {
        let bytes = self.snapshot.bytes + chunk.len() as u64;
        if bytes > self.bytes_total {
            let cause = format!("more than the announced {} bytes arrived", self.bytes_total);
            return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
        }
        self.snapshot.file.write_all_at(chunk, self.snapshot.bytes)?;
        self.snapshot.bytes = bytes;
        Ok(())
    }

    /// Checks the whole file. Blocks.
    pub(crate) fn finish(self) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        if self.snapshot.bytes != self.bytes_total {
            let cause = format!("{} of {} bytes arrived", self.snapshot.bytes, self.bytes_total);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause));
        }
        // The file may have held a longer one.
        self.snapshot.file.set_len(self.bytes_total)?;
        let invalid = |cause| io::Error::new(io::ErrorKind::InvalidData, cause);
        let (meta, _) = check(&self.snapshot.file, &self.cluster, self.group)?.map_err(invalid)?;
        Ok((meta, self.snapshot))
    }
}

/// Where the state stands in a file.
struct Layout {
    meta: SnapshotMeta,
    state_at: u64,
    state_bytes: u64,
    file_bytes: u64,
}

/// Reads and judges the head. The outer error is the system's, the inner says what is wrong with the file.
fn layout(file: &File, cluster: &str, group: u32) -> io::Result<Result<Layout, String>> {
    let file_bytes = file.metadata()?.len();
    let mut fixed = [0; FIXED_BYTES];
    if file_bytes < (FIXED_BYTES + 4) as u64 {
        return Ok(Err(format!("the snapshot has {file_bytes} bytes, less than a head")));
    }
    file.read_exact_at(&mut fixed, 0)?;
    let head_bytes = u32_at(&fixed, 8) as usize;
    if &fixed[..8] != MAGIC {
        return Ok(Err("the file is no snapshot of this format".to_owned()));
    }
    let state_at = (FIXED_BYTES + head_bytes) as u64;
    if head_bytes > HEAD_BYTES_MAX || state_at + 4 > file_bytes {
        return Ok(Err(format!("the head of the snapshot announces {head_bytes} bytes")));
    }
    let mut head = vec![0; head_bytes];
    file.read_exact_at(&mut head, FIXED_BYTES as u64)?;
    let Ok(head) = v1::RaftSnapshotHead::decode(&head[..]) else {
        return Ok(Err("the head of the snapshot cannot be read".to_owned()));
    };
    if head.cluster != cluster {
        return Ok(Err(format!("the snapshot is of cluster {:?}", head.cluster)));
    }
    if head.group != group {
        return Ok(Err(format!("the snapshot is of Raft group {}, not of {group}", head.group)));
    }
    if state_at.checked_add(head.state_bytes).and_then(|end| end.checked_add(4)) != Some(file_bytes)
    {
        let announced = head.state_bytes;
        return Ok(Err(format!(
            "the snapshot has {file_bytes} bytes, its head speaks of {announced}"
        )));
    }
    let membership = match head.membership.map(stored_membership_from_proto).transpose() {
        Ok(membership) => membership.unwrap_or_default(),
        Err(malformed) => return Ok(Err(malformed.to_string())),
    };
    let meta = SnapshotMeta {
        last_log_id: head.last.as_ref().map(position_from_proto),
        last_membership: membership,
    };
    Ok(Ok(Layout { meta, state_at, state_bytes: head.state_bytes, file_bytes }))
}

fn check(
    file: &File,
    cluster: &str,
    group: u32,
) -> io::Result<Result<(SnapshotMeta, u64), String>> {
    let layout = match layout(file, cluster, group)? {
        Ok(layout) => layout,
        Err(cause) => return Ok(Err(cause)),
    };
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1024 * 1024];
    let covered = layout.file_bytes - 4;
    let mut offset = 0;
    while offset < covered {
        let step = usize::try_from(covered - offset).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..step], offset)?;
        hasher.update(&buffer[..step]);
        offset += step as u64;
    }
    let mut crc = [0; 4];
    file.read_exact_at(&mut crc, covered)?;
    if u32::from_le_bytes(crc) != hasher.finalize() {
        return Ok(Err("the checksum of the snapshot does not match".to_owned()));
    }
    Ok(Ok((layout.meta, layout.file_bytes)))
}

impl SnapshotFile {
    /// The state in it, to be restored. The file was checked when it was opened or received. Blocks.
    pub(crate) fn state(&self, cluster: &str, group: u32) -> io::Result<Vec<u8>> {
        let layout = layout(&self.file, cluster, group)?.map_err(io::Error::other)?;
        let bytes = usize::try_from(layout.state_bytes).map_err(io::Error::other)?;
        let mut state = vec![0; bytes];
        self.file.read_exact_at(&mut state, layout.state_at)?;
        Ok(state)
    }
}

impl SnapshotStore {
    pub(crate) fn cluster(&self) -> &str {
        &self.place.cluster
    }

    pub(crate) fn group(&self) -> u32 {
        self.place.group
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::consensus::{StoredMembership, log_id};

    fn meta(term: u64, index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(log_id(term, index)),
            last_membership: StoredMembership::default(),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir.join("snapshot")).expect("it was opened");
        entries
            .map(|entry| entry.expect("it is listed").file_name().into_string().expect("ASCII"))
            .collect()
    }

    #[test]
    fn the_newest_snapshot_survives_a_restart_and_older_ones_go() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        store.write(meta(1, 5), b"five")?;
        store.write(meta(1, 9), b"nine")?;
        store.write(meta(1, 7), b"seven, late")?;
        assert_eq!(names(dir.path()).len(), 1, "{:?}", names(dir.path()));
        drop(store);
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        let (found, file) = store.current().expect("nine is there");
        assert_eq!(found, meta(1, 9));
        assert_eq!(file.state("bank", 0)?, b"nine");
        Ok(())
    }

    #[test]
    fn a_snapshot_of_any_number_of_pieces_reads_as_it_was_written() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        for (index, bytes) in
            (1..).zip([0, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
        {
            let state: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let (_, file) = store.write(meta(1, index), &state)?;
            assert!(file.state("bank", 0)? == state, "{bytes} bytes");
        }
        Ok(())
    }

    #[test]
    fn a_snapshot_is_written_into_the_file_of_the_one_before_the_last_however_long_that_was()
    -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        let file_of = |index, state: &[u8]| -> anyhow::Result<u64> {
            let (_, file) = store.write(meta(1, index), state)?;
            assert_eq!(file.state("bank", 0)?, state);
            Ok(file.file.metadata()?.ino())
        };
        let first = file_of(1, &[b'1'; 9_000])?;
        let second = file_of(2, b"two")?;
        assert_ne!(first, second, "the last one stays as it is until the next is on disk");
        assert_eq!(file_of(3, b"three")?, first, "shorter");
        assert_eq!(file_of(4, &[b'4'; 20_000])?, second, "longer");
        assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));
        drop(store);
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        let (found, file) = store.current().expect("the fourth is there");
        assert_eq!((found, file.state("bank", 0)?), (meta(1, 4), vec![b'4'; 20_000]));
        assert_eq!(names(dir.path()).len(), 1, "{:?}", names(dir.path()));
        Ok(())
    }

    #[test]
    fn whoever_reads_a_snapshot_reads_it_to_the_end_whatever_is_written_meanwhile()
    -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        let (_, read) = store.write(meta(1, 1), b"one")?;
        for index in 2..5 {
            store.write(meta(1, index), b"another")?;
            assert_eq!(read.state("bank", 0)?, b"one", "behind snapshot {index}");
        }
        let mut incoming = store.receive(read.bytes)?;
        incoming.add(&read.chunk(0, usize::MAX)?)?;
        let (found, file) = incoming.finish()?;
        assert_eq!((found, file.state("bank", 0)?), (meta(1, 1), b"one".to_vec()), "shorter");
        Ok(())
    }

    #[test]
    fn any_wrong_bit_in_a_snapshot_is_refused_with_the_name_of_the_file() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = SnapshotStore::open(dir.path(), "bank", 0)?;
        store.write(meta(1, 5), b"the state")?;
        drop(store);
        let path = dir.path().join("snapshot").join(&names(dir.path())[0]);
        let sound = fs::read(&path)?;
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged)?;
            let error = SnapshotStore::open(dir.path(), "bank", 0).expect_err("it is damaged");
            assert!(
                matches!(&error, StoreError::Damaged { file, .. } if *file == path),
                "bit {bit}: {error}"
            );
        }
        for length in 0..sound.len() {
            fs::write(&path, &sound[..length])?;
            assert!(SnapshotStore::open(dir.path(), "bank", 0).is_err(), "cut to {length} bytes");
        }
        fs::write(&path, &sound)?;
        assert!(SnapshotStore::open(dir.path(), "other", 0).is_err(), "it is another cluster's");
        SnapshotStore::open(dir.path(), "bank", 0)?;
        Ok(())
    }

    #[test]
    fn a_received_snapshot_counts_only_when_it_is_whole() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let sender = SnapshotStore::open(&dir.path().join("a"), "bank", 0)?;
        let (_, sent) = sender.write(meta(2, 8), b"a state to carry over")?;
        let bytes = sent.chunk(0, usize::MAX)?;
        let receiver = SnapshotStore::open(&dir.path().join("b"), "bank", 0)?;

        let mut short = receiver.receive(sent.bytes)?;
        short.add(&bytes[..10])?;
        assert!(short.finish().is_err());
        let mut long = receiver.receive(sent.bytes)?;
        long.add(&bytes)?;
        assert!(long.add(b"more").is_err());
        drop(long);
        assert_eq!(names(&dir.path().join("b")), Vec::<String>::new());
        assert!(receiver.receive(SNAPSHOT_BYTES_MAX + 1).is_err());

        let mut whole = receiver.receive(sent.bytes)?;
        for chunk in bytes.chunks(7) {
            whole.add(chunk)?;
        }
        let (found, file) = whole.finish()?;
        assert_eq!(found, meta(2, 8));
        receiver.adopt(found, file)?;
        let (_, file) = receiver.current().expect("it was adopted");
        assert_eq!(file.state("bank", 0)?, b"a state to carry over");
        Ok(())
    }
}
