//! A cluster of one node: what it says is durable is there after a restart.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_raft::{ProposeError, Role};

use crate::harness::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_is_answered_by_its_own_state_machine_and_survives_a_restart() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    let mut last = None;
    for nth in 1..=20 {
        let (position, count) = cluster.propose(format!("entry {nth}")).await;
        assert_eq!(count, nth);
        assert!(last < Some(position), "{last:?} then {position}");
        last = Some(position);
    }
    let before = cluster.nodes[0].seen.entries();
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start().await;
    assert_eq!(cluster.leader().await, 0);
    assert_eq!(cluster.agree_on(20).await, before);
    let (position, count) = cluster.propose("entry 21").await;
    assert_eq!(count, 21);
    assert!(position.term > last.unwrap().term, "a restart takes a new term");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposers_share_few_syncs() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    cluster.leader().await;
    let log = cluster.nodes[0].log().clone();
    let before = log.status();
    let entries = 2_000;
    let answers = join_all((0..entries).map(|nth| {
        let log = log.clone();
        tokio::spawn(async move { log.propose(Bytes::from(format!("entry {nth}"))).await })
    }))
    .await;
    let mut counts: Vec<usize> =
        answers.into_iter().map(|answer| answer.unwrap().unwrap().1).collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=entries).collect::<Vec<_>>(), "each has an answer of its own");
    let after = log.status();
    let fsyncs = after.fsyncs - before.fsyncs;
    assert!(fsyncs >= 1, "nothing was made durable");
    assert!(fsyncs < entries as u64 / 4, "{fsyncs} syncs for {entries} entries");
    assert!(after.bytes_written - before.bytes_written > entries as u64 * 40);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_begins_with_the_snapshot_and_goes_on_with_the_log() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    for nth in 0..30 {
        cluster.propose(format!("entry {nth}")).await;
    }
    cluster.nodes[0].log().snapshot_now().await.unwrap();
    let snapshot = cluster.nodes[0].status().snapshot_index;
    assert!(snapshot >= 30, "{snapshot}");
    for nth in 30..40 {
        cluster.propose(format!("entry {nth}")).await;
    }
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start().await;
    cluster.leader().await;
    let entries = cluster.agree_on(40).await;
    assert_eq!(cluster.nodes[0].seen.restored(), 1);
    assert_eq!(entries[39], b"entry 39");
    assert_eq!(cluster.nodes[0].status().snapshot_index, snapshot);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_come_by_themselves_and_the_log_is_purged_behind_them() {
    let mut cluster = Cluster::start(1, |config| {
        config.snapshot_every = 50;
        config.segment_bytes = 64 * 1024;
    })
    .await;
    let log_dir = cluster.nodes[0].config.dir.join("log");
    for _ in 0..400 {
        cluster.propose(vec![b'x'; 2_000]).await;
    }
    // 400 entries of 2 kB are thirteen segments; 50 to 100 of them are two to four, one is open, four wait or are spare.
    eventually("the log is purged", || {
        (std::fs::read_dir(&log_dir).unwrap().count() <= 9).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_few_large_entries_is_bounded_by_its_bytes_and_a_restart_reads_the_rest() {
    const ENTRY_BYTES: usize = 32 * 1024;
    const GROWN_MAX: u64 = 16 * ENTRY_BYTES as u64;
    let mut cluster = Cluster::start(1, |config| {
        config.snapshot_bytes = GROWN_MAX;
        config.segment_bytes = 128 * 1024;
    })
    .await;
    let dir = cluster.nodes[0].config.dir.clone();
    let held = || std::fs::read_dir(dir.join("log")).unwrap().count();
    for _ in 0..15 {
        cluster.propose(vec![b'x'; ENTRY_BYTES]).await;
    }
    assert_eq!(cluster.nodes[0].status().snapshot_index, 0);
    // What was written before a restart counts behind it.
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start().await;
    cluster.leader().await;
    for _ in 0..2 {
        cluster.propose(vec![b'y'; ENTRY_BYTES]).await;
    }
    let first = eventually("a snapshot", || {
        Some(cluster.nodes[0].status().snapshot_index).filter(|&index| index > 0)
    })
    .await;
    // Of 256 KiB that are kept, a segment holds 96; one is open, four wait or are spare.
    eventually("the log is purged", || (held() <= 4 + 1 + 4).then_some(())).await;
    // The state has grown, and the log may grow by as much.
    for _ in 0..40 {
        cluster.propose(vec![b'z'; ENTRY_BYTES]).await;
    }
    let second = eventually("another snapshot", || {
        Some(cluster.nodes[0].status().snapshot_index).filter(|&index| index > first)
    })
    .await;
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start().await;
    cluster.leader().await;
    assert_eq!(cluster.agree_on(57).await.len(), 57);
    assert_eq!(cluster.nodes[0].seen.restored(), 1, "the snapshot, and what is behind it");
    assert!(cluster.nodes[0].status().snapshot_index >= second);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_too_late_is_told_that_nothing_happened() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    cluster.leader().await;
    let log = cluster.nodes[0].log().clone();
    let limit = cluster.nodes[0].config.entry_bytes_max();
    let error = log.propose(Bytes::from(vec![0; limit + 1])).await.unwrap_err();
    assert_eq!(error, ProposeError::TooLarge { bytes: limit + 1, bytes_max: limit });
    assert_eq!(log.propose(Bytes::from(vec![0; limit])).await.unwrap().1, 1);
    cluster.nodes[0].stop().await;
    assert_eq!(log.propose(Bytes::new()).await.unwrap_err(), ProposeError::Stopped);
    assert_eq!(log.read_barrier().await.unwrap_err(), ProposeError::Stopped);
    assert_eq!(log.status().role, Role::Stopped);
    assert!(!log.leadership().borrow().leads_here);
    log.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_too_many_proposals_are_turned_away_and_nothing_happens_to_them() {
    let mut cluster = Cluster::start_slow(1, std::time::Duration::from_millis(1), |_| {}).await;
    cluster.leader().await;
    let log = Arc::new(cluster.nodes[0].log().clone());
    // 80 entries of 1 MiB at once are more than may be under way.
    let mut config = cluster.nodes[0].config.clone();
    config.segment_bytes = 64 * 1024 * 1024;
    cluster.nodes[0].stop().await;
    cluster.nodes[0].config = config;
    cluster.nodes[0].start().await;
    cluster.leader().await;
    drop(log);
    let log = cluster.nodes[0].log().clone();
    let answers = join_all((0..80).map(|_| log.propose(Bytes::from(vec![1; 1024 * 1024])))).await;
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    let turned_away =
        answers.iter().filter(|answer| matches!(answer, Err(ProposeError::Overloaded))).count();
    assert_eq!((taken, turned_away), (64, 16));
    assert_eq!(cluster.nodes[0].seen.len(), 64);
    cluster.stop().await;
}
