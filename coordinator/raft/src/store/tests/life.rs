//! A log over its life: segments come and go, facts stay.

use std::fs;

use std::sync::atomic::Ordering;

use super::*;
use crate::{StoreError, read_stopped, store::segment};

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    assert_eq!(log.read_vote().await?, None);
    let written: Vec<Entry> = (0..50).map(|index| entry(3, index, 500)).collect();
    append(&mut log, written.clone()).await?;
    log.save_vote(&vote(3)).await?;
    log.save_committed(Some(log_id(3, 40))).await?;
    log.close().await;

    let mut log = open(dir.path())?;
    assert_eq!(entries(&mut log).await?, written);
    assert_eq!(log.read_vote().await?, Some(vote(3)));
    assert_eq!(log.read_committed().await?, Some(log_id(3, 40)));
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn how_far_the_log_is_committed_rides_with_the_next_write_and_writes_nothing_by_itself()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    append(&mut log, (0..5).map(|index| entry(3, index, 10)).collect()).await?;
    let syncs = log.shared().fsyncs.load(Ordering::Relaxed);
    log.save_committed(Some(log_id(3, 3))).await?;
    append(&mut log, vec![entry(3, 5, 10)]).await?;
    assert_eq!(
        log.shared().fsyncs.load(Ordering::Relaxed),
        syncs + 1,
        "the append alone is worth a sync"
    );
    // Ahead of what is here, as a follower may be told: it waits for the entries.
    log.save_committed(Some(log_id(3, 7))).await?;
    log.save_vote(&vote(3)).await?;
    let crashed = copy_of(dir.path())?;
    let mut after = open(crashed.path())?;
    assert_eq!(after.read_committed().await?, Some(log_id(3, 3)));
    after.close().await;
    append(&mut log, vec![entry(3, 6, 10), entry(3, 7, 10)]).await?;
    log.close().await;
    let mut after = open(dir.path())?;
    assert_eq!(after.read_committed().await?, Some(log_id(3, 7)));
    after.close().await;
    Ok(())
}

#[tokio::test]
async fn a_vote_is_on_disk_when_it_is_answered() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    for term in 1..20 {
        let cast = Ballot::new(term, term % 3);
        log.save_vote(&cast).await?;
        let crashed = copy_of(dir.path())?;
        let mut after = open(crashed.path())?;
        assert_eq!(after.read_vote().await?, Some(cast));
        after.close().await;
    }
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn a_purge_drops_segments_and_keeps_the_vote_and_the_rest() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    log.save_vote(&vote(5)).await?;
    for index in 0..100 {
        append(&mut log, vec![entry(5, index, 1000)]).await?;
    }
    let before = segments(dir.path()).len();
    log.purge(log_id(5, 89)).await?;
    append(&mut log, vec![entry(5, 100, 10)]).await?;
    log.close().await;
    let after = segments(dir.path());
    assert!(before >= 7, "{before} segments");
    assert!(after.len() <= 2, "{after:?}");
    assert!(!after.contains(&segment::log_name(1)), "the vote was in it");

    let mut log = open(dir.path())?;
    assert_eq!(log.read_vote().await?, Some(vote(5)));
    let state = log.get_log_state().await?;
    assert_eq!(state.last_purged_log_id, Some(log_id(5, 89)));
    assert_eq!(state.last_log_id, Some(log_id(5, 100)));
    let left = entries(&mut log).await?;
    assert_eq!(left.first(), Some(&entry(5, 90, 1000)));
    assert_eq!(left.len(), 11);
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn a_log_that_is_purged_as_it_grows_stays_small() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    for index in 0..400 {
        append(&mut log, vec![entry(1, index, 1000)]).await?;
        if index >= 20 {
            log.purge(log_id(1, index - 20)).await?;
        }
    }
    // 21 entries of 1 KiB need two segments of 16 KiB, and there may be one before and one after.
    assert!(segments(dir.path()).len() <= 4, "{:?}", segments(dir.path()));
    log.close().await;
    let all = fs::read_dir(dir.path().join("log"))?.count();
    assert!(all <= 8, "{all} files with spares");
    Ok(())
}

#[tokio::test]
async fn a_recycled_segment_never_resurrects_a_record_of_its_former_life() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    // Enough rounds that files are used again and again, each time filled less than the time before.
    let mut next = 0;
    for round in 0..12u64 {
        for _ in 0..30 {
            append(&mut log, vec![entry(round + 1, next, 900)]).await?;
            next += 1;
        }
        log.purge(log_id(round + 1, next - 2)).await?;
        append(&mut log, vec![entry(round + 1, next, 10)]).await?;
        next += 1;

        let crashed = copy_of(dir.path())?;
        let mut after = open(crashed.path())?;
        let found = entries(&mut after).await?;
        assert_eq!(found, [entry(round + 1, next - 2, 900), entry(round + 1, next - 1, 10)]);
        after.close().await;
    }
    // The last segment does hold old bytes; otherwise this test would prove nothing.
    let last = segments(dir.path()).pop().expect("there is a segment");
    log.close().await;
    let bytes = fs::read(dir.path().join("log").join(last))?;
    let stale = bytes.windows(8).filter(|window| window == b"........").count();
    assert!(stale > 4000, "{stale} stale bytes: no file was recycled");
    Ok(())
}

#[tokio::test]
async fn truncated_entries_stay_away_and_their_successors_stay() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    append(&mut log, (0..60).map(|index| entry(1, index, 700)).collect()).await?;
    log.truncate_after(Some(log_id(1, 9))).await?;
    append(&mut log, (10..15).map(|index| entry(2, index, 700)).collect()).await?;
    let mut expected: Vec<Entry> = (0..10).map(|index| entry(1, index, 700)).collect();
    expected.extend((10..15).map(|index| entry(2, index, 700)));
    assert_eq!(entries(&mut log).await?, expected);
    log.close().await;
    let mut log = open(dir.path())?;
    assert_eq!(entries(&mut log).await?, expected);
    log.truncate_after(None).await?;
    assert_eq!(entries(&mut log).await?, []);
    append(&mut log, vec![entry(3, 0, 1)]).await?;
    log.close().await;
    let mut log = open(dir.path())?;
    assert_eq!(entries(&mut log).await?, [entry(3, 0, 1)]);
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn a_purge_beyond_the_end_begins_the_log_anew_behind_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    append(&mut log, (0..5).map(|index| entry(1, index, 10)).collect()).await?;
    log.purge(log_id(4, 100)).await?;
    append(&mut log, vec![entry(4, 101, 10)]).await?;
    log.close().await;
    let mut log = open(dir.path())?;
    assert_eq!(log.get_log_state().await?.last_purged_log_id, Some(log_id(4, 100)));
    assert_eq!(entries(&mut log).await?, [entry(4, 101, 10)]);
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn an_entry_that_does_not_follow_or_is_too_large_is_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    append(&mut log, vec![entry(1, 0, 8 * 1024)]).await?;
    assert!(append(&mut log, vec![entry(1, 2, 1)]).await.is_err());
    assert!(append(&mut log, vec![entry(1, 1, 8 * 1024 + 1)]).await.is_err());
    append(&mut log, vec![entry(1, 1, 8 * 1024)]).await?;
    log.close().await;
    Ok(())
}

#[tokio::test]
async fn a_second_opener_and_a_strangers_directory_are_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = open(dir.path())?;
    let error = LogStore::open(&options(dir.path())).expect_err("it is in use");
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    log.close().await;
    for (cluster, node) in [("bank", 2), ("other bank", 1)] {
        let stranger = Options { cluster: cluster.to_owned(), node, ..options(dir.path()) };
        let error = LogStore::open(&stranger).expect_err("it is another's");
        assert!(matches!(error, StoreError::AnotherNodes { .. }), "{error}");
    }
    open(dir.path())?.close().await;
    Ok(())
}

#[tokio::test]
async fn a_stopped_log_is_read_as_it_was_written_and_a_running_one_is_not() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    append(&mut log, (1..=300).map(|index| entry(1 + index / 200, index, 100)).collect()).await?;
    log.truncate_after(Some(log_id(2, 290))).await?;
    log.purge(log_id(1, 100)).await?;
    log.save_committed(Some(log_id(2, 280))).await?;
    let busy = read_stopped(dir.path(), 1).unwrap_err();
    assert!(matches!(busy, StoreError::InUse { .. }), "{busy}");
    log.close().await;

    let read = read_stopped(dir.path(), 1)?.remove(0);
    assert_eq!((read.purged, read.committed), (100, 280));
    let expected: Vec<(Position, Bytes)> = (101..=290)
        .map(|index| {
            let Payload::Normal(content) = entry(1 + index / 200, index, 100).payload else {
                unreachable!("it has content")
            };
            (Position { index, term: 1 + index / 200 }, content.0)
        })
        .collect();
    assert!(read.entries == expected, "{} entries", read.entries.len());
    Ok(())
}
