//! Makes files and names durable, wherever it is not the writer of the log that does: at a start, for a new segment, for a snapshot.
//!
//! One door, so that tests can make any sync fail, the first as well as the last.

use std::{fs::File, io, path::Path};

use holdfast_fault::{Site, kill_point::may_fail};

/// Makes what was written to the file at `path` durable.
pub(crate) fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    planned::pass(path)?;
    #[cfg(not(test))]
    let _ = path;
    may_fail(Site::DiskBeforeSync)?;
    file.sync_all()
}

/// Makes created, renamed and removed names durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(test)]
    planned::pass(dir)?;
    may_fail(Site::DiskBeforeSync)?;
    File::open(dir)?.sync_all()
}

/// Syncs that fail because a test says so.
#[cfg(test)]
pub(crate) mod planned {
    use std::{
        io,
        path::{Path, PathBuf},
        sync::Mutex,
    };

    /// The folder, how many of its syncs go well still, and whether one has failed.
    static PLANS: Mutex<Vec<(PathBuf, usize, bool)>> = Mutex::new(Vec::new());

    /// From one sync below a folder on, all fail, until this is dropped.
    #[derive(Debug)]
    pub(crate) struct Plan(PathBuf);

    /// `well` syncs at or below `dir` go well, on whatever thread; each one after them fails.
    pub(crate) fn fail_after(dir: &Path, well: usize) -> Plan {
        PLANS.lock().expect("no holder panics").push((dir.to_owned(), well, false));
        Plan(dir.to_owned())
    }

    impl Plan {
        /// Whether a sync has failed.
        pub(crate) fn has_struck(&self) -> bool {
            let plans = PLANS.lock().expect("no holder panics");
            plans.iter().any(|(dir, _, struck)| *dir == self.0 && *struck)
        }
    }

    impl Drop for Plan {
        fn drop(&mut self) {
            PLANS.lock().expect("no holder panics").retain(|(dir, ..)| *dir != self.0);
        }
    }

    pub(super) fn pass(path: &Path) -> io::Result<()> {
        let mut plans = PLANS.lock().expect("no holder panics");
        let plan = plans.iter_mut().find(|(dir, ..)| path.starts_with(dir));
        let Some((_, well, struck)) = plan else { return Ok(()) };
        if *well > 0 {
            *well -= 1;
            return Ok(());
        }
        *struck = true;
        // EIO
        Err(io::Error::from_raw_os_error(5))
    }
}
