//! What a crash, a bad disk or a careless hand does to the files, and what is believed afterwards.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;

use super::*;
use crate::store::{
    record::{self, Place, record_bytes},
    scan::{self, Recovered},
    segment::{self, HEAD_BYTES},
};

/// Where the records of a segment begin, and where the last ends.
fn boundaries(bytes: &[u8], life: u64) -> Vec<usize> {
    let mut at = vec![HEAD_BYTES];
    loop {
        let offset = *at.last().expect("it is never empty");
        let place = Place { life, offset: u32::try_from(offset).expect("a small file") };
        let Ok(record) = record::decode(&bytes[offset..], place) else { return at };
        at.push(offset + record_bytes(record.payload.len()));
    }
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("log").join(segment::log_name(1))
}

/// Fourteen records: a base, a vote, ten entries, a vote, an entry; each but the base in a group of its own.
async fn a_log(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let mut log = open(dir)?;
    log.save_vote(&vote(1)).await?;
    for index in 0..10 {
        append(&mut log, vec![entry(1, index, 10 + usize::try_from(index)? * 3)]).await?;
    }
    log.save_vote(&vote(2)).await?;
    append(&mut log, vec![entry(2, 10, 30)]).await?;
    log.close().await;
    Ok(fs::read(first_segment(dir))?)
}

fn recovered(dir: &Path) -> Result<Recovered, crate::StoreError> {
    scan::recover(&dir.join("log"), 1)
}

/// What must be there when the first `records` of `a_log` are.
fn assert_prefix(found: &Recovered, records: usize, what: &str) {
    let entries = records.saturating_sub(2).min(10) + usize::from(records >= 14);
    assert_eq!(found.logs[0].entries.len(), entries, "{what}");
    let ballot = match records {
        0 | 1 => None,
        2..=12 => Some(vote(1)),
        _ => Some(vote(2)),
    };
    assert_eq!(found.logs[0].facts.ballot, ballot, "{what}");
}

#[tokio::test]
async fn a_log_cut_after_any_byte_keeps_every_whole_record_and_invents_nothing()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = a_log(dir.path()).await?;
    let at = boundaries(&whole, 1);
    assert_eq!(at.len(), 15);
    let path = first_segment(dir.path());
    let from = at[6];
    let to = *at.last().expect("it has an end");
    for cut in from..=to + 20 {
        for rest in ["zeros", "ones", "nothing"] {
            let mut bytes = whole[..cut].to_vec();
            match rest {
                "zeros" => bytes.resize(whole.len(), 0),
                "ones" => bytes.resize(whole.len(), 0xff),
                _ => {}
            }
            fs::write(&path, &bytes)?;
            // The end of a record may be zeros, and then is there again.
            let records =
                at.iter().filter(|&&end| bytes.get(..end) == Some(&whole[..end])).count() - 1;
            let what = format!("cut at {cut}, then {rest}");
            let found = recovered(dir.path()).map_err(|e| anyhow::anyhow!("{what}: {e}"))?;
            assert_prefix(&found, records, &what);
            assert_eq!(fs::metadata(&path)?.len(), whole.len() as u64, "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_log_goes_on_after_any_cut_as_if_the_lost_had_never_been() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = a_log(dir.path()).await?;
    let at = boundaries(&whole, 1);
    for cut in at[11]..=at[14] {
        let mut bytes = whole[..cut].to_vec();
        bytes.resize(whole.len(), 0);
        fs::write(first_segment(dir.path()), &bytes)?;
        let there = |record: usize| bytes[..at[record]] == whole[..at[record]];
        let mut log = open(dir.path())?;
        let kept = entries(&mut log).await?;
        let next = kept.len() as u64;
        assert_eq!(next, 9 + u64::from(there(12)) + u64::from(there(14)), "cut at {cut}");
        append(&mut log, vec![entry(9, next, 1)]).await?;
        log.close().await;
        let mut log = open(dir.path())?;
        let found = entries(&mut log).await?;
        assert_eq!(found[..found.len() - 1], kept[..], "cut at {cut}");
        assert_eq!(found.last(), Some(&entry(9, next, 1)), "cut at {cut}");
        log.close().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_bit_in_the_last_record_is_cut_and_anywhere_before_it_is_refused()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = a_log(dir.path()).await?;
    let at = boundaries(&whole, 1);
    let path = first_segment(dir.path());
    for bit in 0..at[14] * 8 {
        // One bit of each byte is as good as any; all eight in the last two records.
        if bit / 8 < at[12] && bit % 8 != (bit / 8) % 8 {
            continue;
        }
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes)?;
        let begin = at.iter().copied().filter(|&begin| begin <= bit / 8).max();
        match recovered(dir.path()) {
            Ok(found) => {
                assert!(bit / 8 >= at[13], "bit {bit} of a durable record went unnoticed");
                assert_prefix(&found, 13, &format!("bit {bit}"));
                // Without its mark a record is not even a torn one; it can never be taken for a record again.
                assert!(found.bytes_cut > 0 || bit / 8 < at[13] + 4, "bit {bit}");
            }
            Err(crate::StoreError::Damaged { file, offset, cause }) => {
                assert!(bit / 8 < at[13], "bit {bit} of the last group: {cause}");
                assert_eq!(file, path);
                assert_eq!(offset, begin.unwrap_or(0) as u64, "bit {bit}: {cause}");
            }
            Err(other) => anyhow::bail!("bit {bit}: {other}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_log_does_not_open_and_says_which_file_and_where() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut bytes = a_log(dir.path()).await?;
    let at = boundaries(&bytes, 1);
    bytes[at[5] + 45] ^= 4;
    fs::write(first_segment(dir.path()), bytes)?;
    let error = LogStore::open(&options(dir.path())).expect_err("it is damaged").to_string();
    let path = first_segment(dir.path());
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(error.contains(&format!("at byte {}", at[5])), "{error}");
    assert!(error.contains("checksum"), "{error}");
    assert!(error.contains("holdfast cluster replace"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_lost_segment_is_refused_wherever_it_stood() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    for index in 0..20 {
        append(&mut log, vec![entry(1, index, 4000)]).await?;
    }
    log.close().await;
    let lives = recovered(dir.path())?.segments.into_keys().collect::<Vec<_>>();
    assert!(lives.len() >= 5, "{lives:?}");
    for &lost in &lives[..lives.len() - 1] {
        let copy = copy_of(dir.path())?;
        fs::remove_file(copy.path().join("log").join(segment::log_name(lost)))?;
        assert!(LogStore::open(&options(copy.path())).is_err(), "segment {lost}");
    }
    Ok(())
}

/// Three sizes, so that records and sectors do not keep step.
fn size(index: u64) -> usize {
    150 + 40 * usize::try_from(index % 3).expect("it is below 3")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    // A disk may write the sectors of an unsynced group in any order, and lose any of them.
    #[test]
    fn a_group_of_which_any_sectors_are_lost_is_torn_and_never_damage(
        lost in proptest::collection::vec(any::<prop::sample::Index>(), 1..12),
        sector in prop::sample::select(vec![64usize, 512]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let mut log = open(dir.path()).expect("a log");
            append(&mut log, vec![entry(1, 0, 100)]).await.expect("it is written");
            let before = fs::read(first_segment(dir.path())).expect("it is there");
            let group = (1..=12).map(|index| entry(1, index, size(index)));
            append(&mut log, group.collect()).await.expect("it is written");
            log.close().await;

            let path = first_segment(dir.path());
            let after = fs::read(&path).expect("it is there");
            let mut bytes = after.clone();
            // The group ends within the first 3 KiB.
            for lost in lost {
                let at = lost.index(3072 / sector) * sector;
                bytes[at..at + sector].copy_from_slice(&before[at..at + sector]);
            }
            fs::write(&path, &bytes).expect("it is written");
            let mut log = open(dir.path()).expect("a torn group is no damage");
            let found = entries(&mut log).await.expect("it is read");
            assert!(!found.is_empty(), "the first was durable");
            for (index, found) in found.iter().enumerate() {
                assert_eq!(found.log_id.index, index as u64);
            }

            // Whatever was cut stays away, though its records stood whole behind the gap.
            // The new record ends where the lost one did, so that nothing but zeros keeps the next one away.
            let next = found.len() as u64;
            append(&mut log, vec![entry(7, next, size(next))]).await.expect("it is written");
            log.close().await;
            let mut log = open(dir.path()).expect("it is sound");
            let again = entries(&mut log).await.expect("it is read");
            assert_eq!(again.len() as u64, next + 1);
            assert_eq!(again.last(), Some(&entry(7, next, size(next))));
            log.close().await;
        });
    }
}

/// Fails from a certain call on.
struct BadDisk {
    writes_left: u32,
    syncs_left: u32,
}

impl Disk for BadDisk {
    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.writes_left == 0 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.writes_left -= 1;
        RealDisk.write(file, bytes, offset)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        if self.syncs_left == 0 {
            return Err(io::Error::other("input/output error"));
        }
        self.syncs_left -= 1;
        RealDisk.sync(file)
    }
}

const FAULT: &str = "HOLDFAST_TEST_FAULT";

/// The process that the next test starts; by itself it does nothing.
#[tokio::test]
async fn a_process_with_a_bad_disk() -> anyhow::Result<()> {
    let Ok(fault) = std::env::var(FAULT) else { return Ok(()) };
    let (fault, dir) = fault.split_once(':').expect("fault:dir");
    let mut disk = BadDisk { writes_left: u32::MAX, syncs_left: u32::MAX };
    match fault {
        "write" => disk.writes_left = 3,
        _ => disk.syncs_left = 3,
    }
    let mut log = open_on(disk, Path::new(dir))?;
    for index in 0..100 {
        append(&mut log, vec![entry(1, index, 50)]).await?;
        fs::write(Path::new(dir).join("acknowledged"), (index + 1).to_string())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_write_or_sync_aborts_the_process_and_nothing_more_is_acknowledged()
-> anyhow::Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    for fault in ["write", "sync"] {
        let dir = tempfile::tempdir()?;
        let output = Command::new(std::env::current_exe()?)
            .args(["--exact", "store::tests::crash::a_process_with_a_bad_disk"])
            .env(FAULT, format!("{fault}:{}", dir.path().display()))
            .output()?;
        const SIGABRT: i32 = 6;
        assert_eq!(output.status.signal(), Some(SIGABRT), "{fault}: {output:?}");
        let acknowledged: usize = fs::read_to_string(dir.path().join("acknowledged"))?.parse()?;
        assert_eq!(acknowledged, 3, "{fault}");
        let mut log = open(dir.path())?;
        let found = entries(&mut log).await?;
        assert!(found.len() >= acknowledged, "{fault}: {} entries", found.len());
        assert_eq!(found[0], entry(1, 0, 50));
        log.close().await;
    }
    Ok(())
}
