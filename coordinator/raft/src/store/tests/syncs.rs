//! Syncs that fail anywhere but in the middle of a log: at a start, at the first start, for a vote, a new segment, a snapshot.
//! Nothing is acknowledged on their word, and once the disk is mended everything is there that was acknowledged before.

use std::process::Command;

use super::*;
use crate::{
    StoreError,
    consensus::{SnapshotMeta, StoredMembership},
    store::durable::planned,
};

/// More syncs than a start makes.
const SYNCS_MAX: usize = 12;

/// Opens with every sync failing behind the first `well`. Whether that was refused, and whether a sync failed at all.
async fn opens(dir: &Path, well: usize) -> (bool, bool) {
    let plan = planned::fail_after(dir, well);
    let opened = LogStore::open(&options(dir));
    let refused = match opened {
        Ok(log) => {
            log.close().await;
            false
        }
        Err(StoreError::Io { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(5), "{source}");
            true
        }
        Err(other) => panic!("not for the disk: {other}"),
    };
    (refused, plan.has_struck())
}

#[tokio::test]
async fn a_start_whose_sync_fails_is_refused_and_the_next_one_finds_everything()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    log.save_vote(&vote(3)).await?;
    let written: Vec<Entry> = (0..40).map(|index| entry(3, index, 1_000)).collect();
    for one in &written {
        append(&mut log, vec![one.clone()]).await?;
    }
    log.close().await;
    assert!(segments(dir.path()).len() >= 3);

    let mut refused = 0;
    for well in 0..SYNCS_MAX {
        let copy = copy_of(dir.path())?;
        let (was_refused, struck) = opens(copy.path(), well).await;
        assert!(struck || !was_refused, "it is refused for nothing else");
        refused += usize::from(was_refused);
        // The disk is mended.
        let mut log = open(copy.path())?;
        assert_eq!(entries(&mut log).await?, written, "after {well} syncs");
        assert_eq!(log.read_vote().await?, Some(vote(3)), "after {well} syncs");
        append(&mut log, vec![entry(3, 40, 10)]).await?;
        log.close().await;
    }
    // The folder of the log, what is left over in it, the segment that was open.
    assert!((3..SYNCS_MAX).contains(&refused), "{refused} starts were refused");
    Ok(())
}

#[tokio::test]
async fn a_first_start_whose_sync_fails_is_refused_and_the_next_one_is_a_first_one()
-> anyhow::Result<()> {
    let mut refused = 0;
    for well in 0..SYNCS_MAX {
        let dir = tempfile::tempdir()?;
        let (was_refused, struck) = opens(dir.path(), well).await;
        assert!(struck || !was_refused, "it is refused for nothing else");
        refused += usize::from(was_refused);
        let mut log = open(dir.path())?;
        assert_eq!(log.read_vote().await?, None);
        assert_eq!(entries(&mut log).await?, []);
        append(&mut log, vec![entry(1, 0, 10)]).await?;
        log.close().await;
        let mut log = open(dir.path())?;
        assert_eq!(entries(&mut log).await?, [entry(1, 0, 10)]);
        log.close().await;
    }
    // Its identity and that one's name, the folder of the log, the first segment and its two names.
    assert!((5..SYNCS_MAX).contains(&refused), "{refused} starts were refused");
    Ok(())
}

#[test]
fn a_snapshot_whose_sync_fails_does_not_count_and_the_one_before_it_does() -> anyhow::Result<()> {
    let meta = |index| SnapshotMeta {
        last_log_id: Some(log_id(1, index)),
        last_membership: StoredMembership::default(),
    };
    // The file's; that of its name, which may have got through all the same.
    for well in 0..2 {
        let dir = tempfile::tempdir()?;
        let snapshots = SnapshotStore::open(dir.path(), "bank", 0)?;
        snapshots.write(meta(5), b"five")?;
        let plan = planned::fail_after(dir.path(), well);
        let error = snapshots.write(meta(9), b"nine").expect_err("it is not on disk");
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
        drop(plan);
        let (current, file) = snapshots.current().expect("five is there");
        assert_eq!((current, file.state("bank", 0)?.as_slice()), (meta(5), &b"five"[..]));
        drop((snapshots, file));

        let snapshots = SnapshotStore::open(dir.path(), "bank", 0)?;
        let (current, file) = snapshots.current().expect("one is there");
        let state = file.state("bank", 0)?;
        let whole = [(meta(5), b"five".to_vec()), (meta(9), b"nine".to_vec())];
        assert!(whole.contains(&(current, state)), "after {well} syncs");
        snapshots.write(meta(12), b"twelve")?;
    }
    Ok(())
}

/// A disk that syncs nothing.
struct Unsynced;

impl Disk for Unsynced {
    fn write(&mut self, file: &fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        RealDisk.write(file, bytes, offset)
    }

    fn sync(&mut self, _file: &fs::File) -> std::io::Result<()> {
        Err(std::io::Error::from_raw_os_error(5))
    }
}

const FAULT: &str = "HOLDFAST_TEST_SYNC_FAULT";

/// The process that the next test starts; by itself it does nothing.
#[tokio::test]
async fn a_process_whose_syncs_fail() -> anyhow::Result<()> {
    let Ok(fault) = std::env::var(FAULT) else { return Ok(()) };
    let (fault, dir) = fault.split_once(':').expect("fault:dir");
    let (dir, acknowledged) = (Path::new(dir), Path::new(dir).join("acknowledged"));
    if fault == "vote" {
        let mut log = open_on(Unsynced, dir)?;
        log.save_vote(&vote(7)).await?;
        fs::write(acknowledged, "vote")?;
        return Ok(());
    }
    let mut log = open(dir)?;
    // The writer's own syncs are not meant: only those that make a new segment.
    let _plan = planned::fail_after(&dir.join("log"), 0);
    for index in 0..200 {
        append(&mut log, vec![entry(1, index, 1_000)]).await?;
        fs::write(&acknowledged, (index + 1).to_string())?;
    }
    Ok(())
}

fn ends(fault: &str, dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    const SIGABRT: i32 = 6;
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "store::tests::syncs::a_process_whose_syncs_fail"])
        .env(FAULT, format!("{fault}:{}", dir.display()))
        .output()?;
    assert_eq!(output.status.signal(), Some(SIGABRT), "{fault}: {output:?}");
    Ok(())
}

#[tokio::test]
async fn a_vote_that_is_not_synced_ends_the_process_and_is_never_answered() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    open(dir.path())?.close().await;
    ends("vote", dir.path())?;
    assert!(!dir.path().join("acknowledged").exists(), "the vote was answered");
    // It may be there or not, as after any crash; the log opens and takes another.
    let mut log = open(dir.path())?;
    log.save_vote(&vote(8)).await?;
    log.close().await;
    let mut log = open(dir.path())?;
    assert_eq!(log.read_vote().await?, Some(vote(8)));
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn a_segment_that_cannot_be_made_durable_ends_the_process_and_nothing_more_is_acknowledged()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    open(dir.path())?.close().await;
    ends("segment", dir.path())?;
    let acknowledged: usize = fs::read_to_string(dir.path().join("acknowledged"))?.parse()?;
    assert!((1..200).contains(&acknowledged), "{acknowledged}");
    let mut log = open(dir.path())?;
    let found = entries(&mut log).await?;
    assert!(found.len() >= acknowledged, "{} of {acknowledged} entries", found.len());
    let first: Vec<Entry> = (0..found.len() as u64).map(|index| entry(1, index, 1_000)).collect();
    assert_eq!(found, first);
    append(&mut log, vec![entry(1, found.len() as u64, 10)]).await?;
    log.close().await;
    Ok(())
}
