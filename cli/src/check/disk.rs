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
    found.extend(file_system(&subject, &place));
    found.extend(room(&subject, &place));
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

fn file_system(subject: &str, place: &Path) -> Option<Finding> {
    let kind = statfs::statfs(place).ok()?.filesystem_type().0;
    let remedy = "Put the log on a local file system on a disk (ext4, XFS): what is acknowledged must outlive this machine's power.";
    let (state, found) = match kind {
        _ if MEMORY_ONLY.contains(&kind) => (State::Failed, "it lives in memory only"),
        _ if OVER_A_NETWORK.contains(&kind) => (State::Failed, "it lies behind a network"),
        _ => (State::Ok, "on a local file system"),
    };
    Some(Finding::new("disk.file_system", subject, state, found, remedy))
}

fn room(subject: &str, place: &Path) -> Vec<Finding> {
    let Ok(stat) = statvfs::statvfs(place) else { return Vec::new() };
    let free = stat.blocks_available() * stat.fragment_size() / (1 << 20);
    let state_of_room = match free {
        FREE_WANTED_MIB.. => State::Ok,
        FREE_LEAST_MIB.. => State::Warning,
        _ => State::Failed,
    };
    let remedy =
        "Make room: a node that cannot write its log stops. Segments and snapshots take a few GiB.";
    let mut found =
        vec![Finding::new("disk.free", subject, state_of_room, format!("{free} MiB free"), remedy)];
    // Some file systems count no inodes.
    if stat.files() > 0 {
        let inodes = stat.files_available();
        let remedy = "Remove files: no inode, no new segment.";
        let state = state(inodes >= INODES_LEAST, State::Failed);
        found.push(Finding::new("disk.inodes", subject, state, format!("{inodes} free"), remedy));
    }
    found
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
    use super::*;

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
    fn slow_syncs_are_told_at_their_bounds() {
        let judged = |ms| syncs_of("", Duration::from_millis(ms), Duration::ZERO).state;
        assert_eq!(
            [judged(10), judged(11), judged(100), judged(101)],
            [State::Ok, State::Warning, State::Warning, State::Failed]
        );
    }
}
