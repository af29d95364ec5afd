//! The shelf that ships: sled, with a sync of our own behind every write, and moved aside when it cannot be opened.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::shelf::{Change, Pair, Shelf, ShelfError};

/// Bytes of pages that sled keeps in memory.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// What sled 0.34 says of a file that is locked; it has no kind of error for it.
const HELD: &str = "could not acquire lock";
/// How long somebody else may hold the database when it is opened. sled's own threads do for a moment, behind a handle that was dropped.
const HELD_MAX: Duration = Duration::from_secs(10);
/// Between two looks at whether they still do.
const HELD_LOOK: Duration = Duration::from_millis(20);

/// How the name of a snapshot ends that sled 0.34 still writes. It takes one for the newest snapshot when it opens, however much of it a process
/// that died meanwhile had written, and says that the database is corrupt. What a snapshot says stands in the database as well.
const HALF_MADE: &str = ".generating";

/// A sled database in a folder of its own.
#[derive(Debug)]
pub struct SledShelf {
    db: sled::Db,
    folder: PathBuf,
}

impl SledShelf {
    /// Opens the database in `folder`, made if missing. One that cannot be opened is moved aside to `folder` + `.unreadable`
    /// (an older one there is removed) and begun anew: true in the answer.
    /// # Errors
    /// [`ShelfError`] if a new one cannot be made either.
    pub fn open(folder: &Path) -> Result<(Self, bool), ShelfError> {
        let opened = match Self::open_when_free(folder) {
            // What is held is being written by whoever holds it.
            Err(ShelfError(why))
                if !why.contains(HELD) && removed_half_made(folder).is_ok_and(|any| any) =>
            {
                Self::open_when_free(folder)
            }
            opened => opened,
        };
        match opened {
            Ok(shelf) => Ok((shelf, false)),
            Err(fault) => {
                let aside = folder.with_extension("unreadable");
                tracing::error!(folder = %folder.display(), aside = %aside.display(), %fault, "HF2403 the history cannot be opened; it is moved aside and begun anew from what the machine remembers");
                if aside.exists() {
                    fs::remove_dir_all(&aside).map_err(io_fault)?;
                }
                fs::rename(folder, &aside).map_err(io_fault)?;
                Self::try_open(folder).map(|shelf| (shelf, true))
            }
        }
    }

    /// What is held is no reason to begin anew: whoever holds it can read it.
    fn open_when_free(folder: &Path) -> Result<Self, ShelfError> {
        let until = Instant::now() + HELD_MAX;
        loop {
            match Self::try_open(folder) {
                Err(ShelfError(why)) if why.contains(HELD) && Instant::now() < until => {
                    sleep(HELD_LOOK);
                }
                opened => return opened,
            }
        }
    }

    fn try_open(folder: &Path) -> Result<Self, ShelfError> {
        // It may panic on files that a crash left behind.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                // Every write is flushed and synced by us.
                .flush_every_ms(None)
                .open()
        }));
        match opened {
            Ok(Ok(db)) => Ok(Self { db, folder: folder.to_owned() }),
            Ok(Err(fault)) => Err(sled_fault(fault)),
            Err(_) => Err(ShelfError("opening it panicked".to_owned())),
        }
    }
}

impl Shelf for SledShelf {
    fn write(&self, changes: Vec<Change>) -> Result<(), ShelfError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(sled_fault)?;
        self.db.flush().map_err(sled_fault)?;
        // Its flush hands the bytes to the kernel and no further: neither their place in the file nor the disk's cache.
        let file = fs::File::open(self.folder.join("db")).map_err(io_fault)?;
        file.sync_data().map_err(io_fault)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ShelfError> {
        Ok(self.db.get(key).map_err(sled_fault)?.map(|value| value.to_vec()))
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, ShelfError> {
        let pairs = self.db.scan_prefix(prefix);
        pairs
            .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect::<Result<_, _>>()
            .map_err(sled_fault)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.db.size_on_disk().unwrap_or_default()
    }
}

/// Removes snapshots that nobody finished; says whether there were any.
fn removed_half_made(folder: &Path) -> io::Result<bool> {
    let mut removed = false;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(HALF_MADE) {
            fs::remove_file(&path)?;
            tracing::info!(path = %path.display(), "a snapshot of the history that nobody finished is removed");
            removed = true;
        }
    }
    Ok(removed)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn sled_fault(fault: sled::Error) -> ShelfError {
    ShelfError(fault.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn io_fault(fault: io::Error) -> ShelfError {
    ShelfError(fault.to_string())
}
