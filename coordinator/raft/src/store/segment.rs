//! A segment: one file of the log, its head, its names over a life, and how it is made ahead of need.
//!
//! A file is `*.new` while it is filled with zeros, `*.spare` once its head is on disk, `*.log` while it holds records,
//! and `*.old` when all of them are purged; then it is given a new life as a spare, or removed. Each step is a rename
//! that is on disk before the next, so that a crash leaves files of which the name says enough.
//!
//! ```text
//!  0  "HFRAFTL1"
//!  8  life     u64  counts the segments of this log from 1
//! 16  bytes    u64  of the file
//! 24  zeros
//! 60  crc      u32  of the bytes before
//! 64  records
//! ```

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{
    durable::{sync_dir, sync_file},
    record::{u32_at, u64_at},
};

/// Bytes before the first record.
pub(crate) const HEAD_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"HFRAFTL1";
/// Purged files kept for another life; more are removed. A snapshot frees two or three at once under load, and a file made anew has to be filled
/// with zeros first.
const RETIRED_MAX: usize = 3;

/// The name of a segment's file while it holds records.
pub(crate) fn log_name(life: u64) -> String {
    format!("{life:020}.log")
}

/// The life in such a name.
pub(crate) fn life_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

fn head(life: u64, bytes: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..16].copy_from_slice(&life.to_le_bytes());
    head[16..24].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32fast::hash(&head[..60]);
    head[60..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Checks the head of a segment that should have this life; returns the bytes that the file should have.
pub(crate) fn check_head(head: &[u8], life: u64) -> Result<u64, String> {
    if head.len() < HEAD_BYTES {
        return Err(format!("the file has {} bytes, less than a head", head.len()));
    }
    if &head[..8] != MAGIC {
        return Err("the head is not that of a segment of this format".to_owned());
    }
    if u32_at(head, 60) != crc32fast::hash(&head[..60]) {
        return Err("the checksum of the head does not match".to_owned());
    }
    let found = u64_at(head, 8);
    if found != life {
        return Err(format!(
            "the head is that of segment {found}, the name that of segment {life}"
        ));
    }
    Ok(u64_at(head, 16))
}

/// A file that is ready to hold records: on disk, named `*.spare`, with the head of its life.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) life: u64,
    pub(crate) file: File,
    path: PathBuf,
}

impl Spare {
    /// Gives the file its name as a part of the log, durably.
    pub(crate) fn enlist(self, dir: &Path) -> io::Result<(u64, File)> {
        fs::rename(&self.path, dir.join(log_name(self.life)))?;
        sync_dir(dir)?;
        Ok((self.life, self.file))
    }
}

/// Purged files that wait for another life.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired(Arc<Mutex<Vec<PathBuf>>>);

impl Retired {
    /// Takes a segment out of the log, durably; its file is kept for another life if `reusable` (nobody reads it any
    /// more) and few enough wait, and is removed otherwise.
    pub(crate) fn retire(&self, dir: &Path, life: u64, reusable: bool) -> io::Result<()> {
        let name = dir.join(log_name(life));
        let mut waiting = self.0.lock().expect("no holder panics");
        if reusable && waiting.len() < RETIRED_MAX {
            let old = dir.join(format!("{life:020}.old"));
            fs::rename(name, &old)?;
            waiting.push(old);
        } else {
            fs::remove_file(name)?;
        }
        sync_dir(dir)
    }

    fn take(&self) -> Option<PathBuf> {
        self.0.lock().expect("no holder panics").pop()
    }
}

/// Removes what a crash may have left half made. Spares go too: a file once prepared for a life that never came is not
/// worth the thought.
pub(crate) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("new" | "spare" | "old" | "tmp")) {
            fs::remove_file(path)?;
        }
    }
    sync_dir(dir)
}

/// Makes one spare: from a retired file, or from nothing.
pub(crate) fn prepare(dir: &Path, life: u64, bytes: u64, retired: &Retired) -> io::Result<Spare> {
    let path = dir.join(format!("{life:020}.spare"));
    let (file, made) = match retired.take() {
        Some(old) => {
            let file = File::options().read(true).write(true).open(&old)?;
            // A size that was configured anew since: the rest of the file is zeros, as in a new one.
            file.set_len(bytes)?;
            (file, old)
        }
        None => {
            let made = dir.join(format!("{life:020}.new"));
            let mut file =
                File::options().read(true).write(true).create(true).truncate(true).open(&made)?;
            let zeros = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX).min(1024 * 1024)];
            let mut left = bytes;
            while left > 0 {
                let step = left.min(zeros.len() as u64);
                file.write_all(&zeros[..usize::try_from(step).expect("at most a MiB")])?;
                left -= step;
            }
            (file, made)
        }
    };
    file.write_all_at(&head(life, bytes), 0)?;
    sync_file(&file, &made)?;
    fs::rename(made, &path)?;
    sync_dir(dir)?;
    Ok(Spare { life, file, path })
}

/// Keeps one spare ahead of need on a thread of its own, since filling a file with zeros takes tens of milliseconds.
#[derive(Debug)]
pub(crate) struct Preparer {
    spares: Option<Receiver<io::Result<Spare>>>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// Starts with the given life; each further spare has the next.
    pub(crate) fn start(
        dir: PathBuf,
        first_life: u64,
        bytes: u64,
        retired: Retired,
    ) -> io::Result<Self> {
        // A rendezvous: the spare that waits to be handed over is the one that is kept ahead.
        let (sender, spares) = sync_channel(0);
        let thread = thread::Builder::new()
            .name("raft-log-prepare".to_owned())
            .spawn(move || prepare_ahead(&dir, first_life, bytes, &retired, &sender))?;
        Ok(Self { spares: Some(spares), thread: Some(thread) })
    }

    /// The next spare; waits for it if it is not ready.
    pub(crate) fn take(&self) -> io::Result<Spare> {
        let stopped = || io::Error::other("the thread that prepares segments stopped");
        self.spares.as_ref().ok_or_else(stopped)?.recv().map_err(|_| stopped())?
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        // Without a receiver the thread ends at its next hand-over.
        self.spares = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that prepares segments of the log panicked");
        }
    }
}

fn prepare_ahead(
    dir: &Path,
    first_life: u64,
    bytes: u64,
    retired: &Retired,
    spares: &SyncSender<io::Result<Spare>>,
) {
    let mut life = first_life;
    loop {
        let spare = prepare(dir, life, bytes, retired);
        let made = spare.is_ok();
        if spares.send(spare).is_err() {
            return;
        }
        // A failure was handed over, and was final for the writer; another call may find more room.
        life += u64::from(made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_its_life_and_size_and_notices_any_wrong_bit() {
        let sound = head(7, 4096);
        assert_eq!(check_head(&sound, 7), Ok(4096));
        assert!(check_head(&sound, 8).is_err());
        for bit in 0..HEAD_BYTES * 8 {
            let mut damaged = sound;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check_head(&damaged, 7).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn names_of_segments_read_back() {
        assert_eq!(life_of(&log_name(42)), Some(42));
        assert_eq!(life_of("00000000000000000042.spare"), None);
        assert_eq!(life_of("42.log"), None);
    }

    #[test]
    fn a_new_spare_is_zeros_behind_its_head() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (life, _) = prepare(dir.path(), 3, 16_384, &Retired::default())?.enlist(dir.path())?;
        let bytes = fs::read(dir.path().join(log_name(life)))?;
        assert_eq!(bytes.len(), 16_384);
        assert!(bytes[HEAD_BYTES..].iter().all(|&byte| byte == 0));
        Ok(())
    }
}
