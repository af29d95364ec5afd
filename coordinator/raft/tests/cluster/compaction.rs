//! Snapshots for the sake of a shorter log: one at a time, however long one takes, and nothing goes before it is there.

use std::{
    fs::{self, File},
    path::Path,
    time::Instant,
};

use crate::{
    groups::{alone, propose, start},
    harness::{Cluster, eventually, within},
};

const ENTRY_BYTES: usize = 32 * 1024;
const SEGMENT_BYTES: u64 = 128 * 1024;
/// Entries that a segment of this size holds.
const IN_A_SEGMENT: usize = 3;
/// Of 20 entries between two snapshots half are kept, from the midst of a segment; one is open, four wait or are spare.
const SEGMENTS_MAX: usize = 20 / 2 / IN_A_SEGMENT + 2 + 1 + 4;

fn segments(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("log")).unwrap().count()
}

/// A node that takes a snapshot for 8 entries' bytes, and for 20 entries.
async fn one_node() -> Cluster {
    Cluster::start(1, |config| {
        config.snapshot_bytes = 8 * ENTRY_BYTES as u64;
        config.segment_bytes = SEGMENT_BYTES;
        config.snapshot_every = 20;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_takes_long_is_made_alone_while_the_log_grows_and_nothing_goes_before_it_is_there()
 {
    let mut cluster = one_node().await;
    let dir = cluster.nodes[0].config.dir.clone();
    let seen = cluster.nodes[0].seen.clone();
    seen.hold_builds(true);
    for _ in 0..9 {
        cluster.propose(vec![b'x'; ENTRY_BYTES]).await;
    }
    eventually("one is made for the log's bytes", || (seen.builds().running == 1).then_some(()))
        .await;
    // Meanwhile the log grows, by more than two snapshots' worth of entries and of bytes, and an operator asks for one, too.
    for _ in 9..59 {
        cluster.propose(vec![b'y'; ENTRY_BYTES]).await;
    }
    let log = cluster.nodes[0].log().clone();
    let mut asked = Box::pin(log.snapshot_now());
    assert!(futures::poll!(&mut asked).is_pending());
    // Behind this entry the replica has heard of it.
    cluster.propose(vec![b'y'; ENTRY_BYTES]).await;
    assert_eq!((seen.builds().running, cluster.nodes[0].status().snapshot_index), (1, 0));
    assert!(segments(&dir) >= 60 / IN_A_SEGMENT, "an entry went that no snapshot holds");
    seen.hold_builds(false);
    // It holds all that was there when it was asked for, not only what the one holds that was under way.
    within("the snapshot is there", asked).await.unwrap();
    assert!(cluster.nodes[0].status().snapshot_index >= 59);
    eventually("the log is purged", || (segments(&dir) <= SEGMENTS_MAX).then_some(())).await;
    assert_eq!(seen.builds().most, 1);
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start().await;
    cluster.leader().await;
    let entries = cluster.agree_on(60).await;
    assert_eq!((entries[8][0], entries[9][0]), (b'x', b'y'));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_written_is_tried_again_in_longer_and_longer_turns_while_the_node_serves()
 {
    let mut cluster = one_node().await;
    let dir = cluster.nodes[0].config.dir.clone();
    let seen = cluster.nodes[0].seen.clone();
    // No file can be made below a file, by nobody.
    let (place, aside) = (dir.join("snapshot"), dir.join("aside"));
    fs::rename(&place, &aside).unwrap();
    File::create(&place).unwrap();
    let begun = Instant::now();
    for _ in 0..9 {
        cluster.propose(vec![b'x'; ENTRY_BYTES]).await;
    }
    eventually("one is tried for the log's bytes", || (seen.builds().begun >= 1).then_some(()))
        .await;
    // The log grows on, beyond whatever else asks for a snapshot, and nothing of it goes.
    for _ in 9..60 {
        cluster.propose(vec![b'y'; ENTRY_BYTES]).await;
    }
    eventually("it is tried again", || (seen.builds().begun >= 2).then_some(())).await;
    assert!(segments(&dir) >= 60 / IN_A_SEGMENT, "an entry went that no snapshot holds");
    assert_eq!(cluster.nodes[0].status().snapshot_index, 0);
    fs::remove_file(&place).unwrap();
    fs::rename(&aside, &place).unwrap();
    eventually("one is there", || (cluster.nodes[0].status().snapshot_index >= 60).then_some(()))
        .await;
    eventually("the log is purged", || (segments(&dir) <= SEGMENTS_MAX).then_some(())).await;
    // After one second, and after two more: whoever looks or writes meanwhile asks for none beside it.
    let (tried, took) = (seen.builds().begun, begun.elapsed());
    assert!(took.as_secs() >= (1 << (tried - 1)) - 1, "{tried} attempts in {took:?}");
    assert_eq!(seen.builds().most, 1);
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start().await;
    cluster.leader().await;
    let entries = cluster.agree_on(60).await;
    assert_eq!((entries[8][0], entries[9][0]), (b'x', b'y'));
    cluster.stop().await;
}

/// One segment file holds entries of every group: who is quiet keeps alive what the busy ones have long left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_group_takes_a_snapshot_when_it_holds_back_the_segments_of_a_busy_one() {
    let (cluster, host) = alone(2, |config| {
        config.segment_bytes = SEGMENT_BYTES;
        config.snapshot_every = 20;
    })
    .await;
    let hosts = [Some(host)];
    propose(&hosts, 1, "the only one").await;
    let status = || hosts[0].as_ref().unwrap().logs[1].status();
    let before = status().snapshot_index;
    for _ in 0..60 {
        propose(&hosts, 0, &"x".repeat(ENTRY_BYTES)).await;
    }
    let taken = eventually("the quiet group has a snapshot", || {
        Some(status().snapshot_index).filter(|&index| index > before)
    })
    .await;
    let config = &cluster.nodes[0].config;
    eventually("the segments go", || (segments(&config.dir) <= SEGMENTS_MAX).then_some(())).await;
    let [host] = hosts;
    host.unwrap().stop().await;
    let again = start(config).await;
    for (group, entries) in [(0, 60), (1, 1)] {
        eventually("everything is there after a restart", || {
            (again.seen[group].len() == entries).then_some(())
        })
        .await;
    }
    assert_eq!(again.logs[1].status().snapshot_index, taken);
    again.stop().await;
}
