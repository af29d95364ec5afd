//! A follower that is far behind is caught up by snapshot, and the log goes on meanwhile.

use crate::harness::{Cluster, eventually};

/// Waits until so few files are left of the leader's log that entries which the other one lacks are gone.
async fn purged(cluster: &Cluster, leader: usize, files_max: usize) {
    let log = cluster.nodes[leader].config.dir.join("log");
    eventually("the log is purged", || {
        (std::fs::read_dir(&log).unwrap().count() <= files_max).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_purged_entries_is_caught_up_by_snapshot() {
    let mut cluster = Cluster::start(3, |config| {
        config.snapshot_every = 60;
        config.segment_bytes = 64 * 1024;
    })
    .await;
    for nth in 0..30 {
        cluster.propose(format!("entry {nth}")).await;
    }
    cluster.agree_on(30).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.nodes[behind].stop().await;
    for nth in 30..400 {
        cluster.propose(format!("entry {nth} {}", "x".repeat(2_000))).await;
    }
    eventually("the leader has a snapshot of late", || {
        (cluster.nodes[leader].status().snapshot_index > 300).then_some(())
    })
    .await;
    // 370 entries of 2 kB are eleven segments; up to 130 of them are four or five, one is open, four wait or are spare.
    purged(&cluster, leader, 10).await;

    cluster.nodes[behind].start().await;
    let entries = cluster.agree_on(400).await;
    assert!(entries[399].starts_with(b"entry 399 "));
    assert!(cluster.nodes[behind].seen.restored() >= 1, "it was caught up entry by entry");
    let applied = cluster.nodes[behind].seen.positions();
    assert!(applied.len() < 300, "{} entries were applied one by one", applied.len());

    // It keeps the snapshot, and goes on with the log.
    cluster.nodes[behind].stop().await;
    cluster.nodes[behind].start().await;
    cluster.propose("entry 400").await;
    cluster.agree_on(401).await;
    assert!(cluster.nodes[behind].seen.restored() >= 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_a_little_is_caught_up_from_the_log() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.nodes[behind].stop().await;
    for nth in 0..300 {
        cluster.propose(vec![u8::try_from(nth % 256).unwrap(); 5_000]).await;
    }
    cluster.nodes[behind].start().await;
    cluster.agree_on(300).await;
    assert_eq!(cluster.nodes[behind].seen.restored(), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_many_chunks_arrives_whole() {
    let mut cluster = Cluster::start(3, |config| {
        config.snapshot_every = 40;
        config.segment_bytes = 1024 * 1024;
    })
    .await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.nodes[behind].stop().await;
    for nth in 0..120u8 {
        cluster.propose(vec![nth; 100_000]).await;
    }
    // 120 entries of 100 kB are twelve segments.
    purged(&cluster, leader, 11).await;
    cluster.nodes[behind].start().await;
    let entries = cluster.agree_on(120).await;
    assert!(cluster.nodes[behind].seen.restored() >= 1);
    assert!(entries.iter().zip(0u8..).all(|(entry, nth)| *entry == vec![nth; 100_000]));
    cluster.stop().await;
}
