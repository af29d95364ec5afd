//! Is a data directory fit for the log: writable, on a disk that keeps what it acknowledges, with room.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{statfs, statvfs};

use super::finding::{Finding, State, state};

/// Syncs that are measured.
const SYNCS: usize = 32;
/// A transaction waits for two.
const SYNC_SLOW: Duration = Duration::from_millis(10);
const SYNC_TOO_SLOW: Duration = Duration::from_millis(100);
const FREE_WANTED_MIB: u64 = 4_096;
const FREE_LEAST_MIB: u64 = 512;
const INODES_LEAST: u64 = 10_000;
/// Magic numbers of file systems, from statfs(2).
const MEMORY_ONLY: [i64; 2] = [0x0102_1994, 0x8584_58f6u32 as i64];
const OVER_A_NETWORK: [i64; 3] = [0x6969, 0xff53_4d42u32 as i64, 0x517b];

/// Looks at `directory`, which need not exist yet: then at the nearest one above it.
pub(super) fn check(directory: &Path) -> Vec<Finding> {
    let subject = directory.display().to_string();
    let Some(place) = nearest(directory) else {
        let remedy = "Name a directory on this machine.";
        return vec![Finding::new(
            "disk.writable",
            subject,
            State::Failed,
            "no such place",
            remedy,
        )];
    };
    let mut found = Vec::new();
    match measure(&place) {
        Ok(mut syncs) => {
            syncs.sort_unstable();
            found.push(Finding::new(
                "disk.writable",
                &subject,
                State::Ok,
                "a file was written",
                "",
            ));
            found.push(syncs_of(&subject, syncs[SYNCS / 2], syncs[SYNCS - 1]));
        }
        Err(error) => {
            let remedy = "Create the directory and give it to the role's user, with mode 0700.";
            let cause = format!("nothing can be written below {}: {error}", place.display());
            found.push(Finding::new("disk.writable", &subject, State::Failed, cause, remedy));
        }
    }
    if let Ok(stat) = statfs::statfs(&place) {
        found.push(file_system(&subject, stat.filesystem_type().0));
    }
    if let Ok(stat) = statvfs::statvfs(&place) {
        let free = stat.blocks_available() * stat.fragment_size() / (1 << 20);
        found.push(free_room(&subject, free));
        // Some file systems count no inodes.
        if stat.files() > 0 {
            found.push(inodes(&subject, stat.files_available()));
        }
    }
    found.extend(private(&subject, directory));
    found
}

fn nearest(directory: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(directory).ok()?;
    absolute.ancestors().find(|path| path.is_dir()).map(Path::to_path_buf)
}

/// Appends as the log does, and times each sync. The file is gone afterwards, however this ends.
fn measure(place: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = tempfile::Builder::new().prefix(".holdfast-check-").tempfile_in(place)?;
    let block = [0x5a; 4_096];
    let mut syncs = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&block)?;
        let begun = Instant::now();
        file.as_file().sync_data()?;
        syncs.push(begun.elapsed());
    }
    Ok(syncs)
}

fn syncs_of(subject: &str, median: Duration, slowest: Duration) -> Finding {
    let state = match median {
        _ if median > SYNC_TOO_SLOW => State::Failed,
        _ if median > SYNC_SLOW => State::Warning,
        _ => State::Ok,
    };
    let found = format!(
        "fdatasync of 4 KiB takes {:.2} ms (median of {SYNCS}), at most {:.2} ms",
        median.as_secs_f64() * 1e3,
        slowest.as_secs_f64() * 1e3
    );
    let remedy = "Put the log on a local SSD with power-loss protection: every decision waits for two syncs.";
    Finding::new("disk.sync", subject, state, found, remedy)
}

fn file_system(subject: &str, kind: i64) -> Finding {
    let remedy = "Put the log on a local file system on a disk (ext4, XFS): what is acknowledged must outlive this machine's power.";
    let (state, found) = match kind {
        _ if MEMORY_ONLY.contains(&kind) => (State::Failed, "it lives in memory only"),
        _ if OVER_A_NETWORK.contains(&kind) => (State::Failed, "it lies behind a network"),
        _ => (State::Ok, "on a local file system"),
    };
    Finding::new("disk.file_system", subject, state, found, remedy)
}

fn free_room(subject: &str, free: u64) -> Finding {
    let state = match free {
        FREE_WANTED_MIB.. => State::Ok,
        FREE_LEAST_MIB.. => State::Warning,
        _ => State::Failed,
    };
    let remedy =
        "Make room: a node that cannot write its log stops. Segments and snapshots take a few GiB.";
    Finding::new("disk.free", subject, state, format!("{free} MiB free"), remedy)
}

fn inodes(subject: &str, left: u64) -> Finding {
    let remedy = "Remove files: no inode, no new segment.";
    let state = state(left >= INODES_LEAST, State::Failed);
    Finding::new("disk.inodes", subject, state, format!("{left} free"), remedy)
}

/// Payloads are in the log, so nobody else reads it.
fn private(subject: &str, directory: &Path) -> Option<Finding> {
    let metadata = fs::metadata(directory).ok()?;
    let mode = metadata.permissions().mode() & 0o777;
    let found = format!("mode {mode:04o}, owner {}", metadata.uid());
    let remedy = "chmod 0700: the log holds what callers sent.";
    Some(Finding::new(
        "disk.private",
        subject,
        state(mode & 0o007 == 0, State::Warning),
        found,
        remedy,
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::finding::assert_told, *};

    fn state_of(found: &[Finding], check: &str) -> State {
        found.iter().find(|finding| finding.check == check).unwrap().state
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_is_judged_by_the_one_above_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let found = check(&dir.path().join("not/yet"));
        assert_eq!(state_of(&found, "disk.writable"), State::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_fails_where_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let found = check(dir.path());
        assert_eq!(state_of(&found, "disk.private"), State::Warning);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(state_of(&check(dir.path()), "disk.private"), State::Ok);
    }

    #[test]
    fn a_place_where_nothing_can_be_written_is_told() {
        let found = check(Path::new("/proc/holdfast"));
        let writable = found.iter().find(|finding| finding.check == "disk.writable").unwrap();
        assert_eq!(writable.state, State::Failed, "{writable:?}");
        assert_told(writable);
    }

    #[test]
    fn room_inodes_and_the_kind_of_a_disk_are_judged_at_their_bounds() {
        for (at, past) in [
            (free_room("", FREE_WANTED_MIB), free_room("", FREE_WANTED_MIB - 1)),
            (inodes("", INODES_LEAST), inodes("", INODES_LEAST - 1)),
            (file_system("", 0xef53), file_system("", MEMORY_ONLY[0])),
            (file_system("", 0xef53), file_system("", OVER_A_NETWORK[0])),
        ] {
            assert_eq!(at.state, State::Ok, "{at:?}");
            assert_told(&past);
        }
        assert_eq!(free_room("", FREE_LEAST_MIB - 1).state, State::Failed);
    }

    #[test]
    fn slow_syncs_are_told_at_their_bounds() {
        let judged = |ms| syncs_of("", Duration::from_millis(ms), Duration::ZERO).state;
        assert_eq!(
            [judged(10), judged(11), judged(100), judged(101)],
            [State::Ok, State::Warning, State::Warning, State::Failed]
        );
    }
}
