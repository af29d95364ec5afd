//! Who is in the cluster, and how that changes while it works.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use holdfast_raft::{ChangeError, ProposeError, Role, found_from, parse_snapshot};

use crate::harness::{Change, Cluster, Seen, eventually, open};

fn code(answer: Result<(), ChangeError>) -> &'static str {
    match answer {
        Err(ChangeError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

/// Writes without end to whoever leads among `logs`, until it is told to stop; counts what was acknowledged.
fn writer(
    cluster: &Cluster,
    stop: &Arc<AtomicBool>,
    written: &Arc<AtomicU64>,
) -> tokio::task::JoinHandle<()> {
    let logs: Vec<_> = cluster.nodes.iter().filter_map(|node| node.log.clone()).collect();
    let (stop, written) = (Arc::clone(stop), Arc::clone(written));
    tokio::spawn(async move {
        let mut nth = 0u64;
        while !stop.load(Ordering::Acquire) {
            let mut taken = false;
            for log in &logs {
                match log.propose(Bytes::from(format!("entry {nth}"))).await {
                    Ok(_) => {
                        written.fetch_add(1, Ordering::AcqRel);
                        taken = true;
                        nth += 1;
                    }
                    Err(ProposeError::Unknown { cause }) => panic!("{cause}"),
                    Err(_) => {}
                }
            }
            if !taken {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_added_caught_up_and_swapped_for_another_while_entries_are_written() {
    let mut cluster = Cluster::start(3, |config| config.snapshot_every = 200).await;
    cluster.leader().await;
    let fourth = cluster.newcomer(|config| config.snapshot_every = 200).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = writer(&cluster, &stop, &written);
    eventually("entries are written", || (written.load(Ordering::Acquire) > 50).then_some(()))
        .await;

    let raft = cluster.nodes[fourth].config.bind.to_string();
    cluster.change(Change::Add(4, raft)).await.unwrap();
    eventually("the learner learns", || {
        (cluster.nodes[fourth].status().role == Role::Learner
            && cluster.nodes[fourth].seen.len() > 0)
            .then_some(())
    })
    .await;
    cluster.change(Change::Promote(4)).await.unwrap();
    let leader = cluster.leader().await;
    assert_eq!(cluster.voters(leader), [1, 2, 3, 4]);

    let leaving = (0..3).find(|&at| at != leader).expect("two of three follow");
    cluster.change(Change::Remove(leaving as u64 + 1)).await.unwrap();
    assert_eq!(cluster.voters(cluster.leader().await).len(), 3);
    let before = written.load(Ordering::Acquire);
    eventually("writing goes on", || (written.load(Ordering::Acquire) > before + 50).then_some(()))
        .await;
    stop.store(true, Ordering::Release);
    writer.await.unwrap();
    cluster.nodes[leaving].stop().await;
    let acknowledged = usize::try_from(written.load(Ordering::Acquire)).unwrap();
    assert_eq!(cluster.agree_on(acknowledged).await.len(), acknowledged);
    cluster.stop().await;
}

/// Removing a voter takes two steps. What another operator asks between them waits, so that both are made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_changes_asked_at_once_none_is_left_without_an_outcome() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    for _ in 0..2 {
        let at = cluster.newcomer(|_| {}).await;
        let raft = cluster.nodes[at].config.bind.to_string();
        cluster.change(Change::Add(at as u64 + 1, raft)).await.unwrap();
        cluster.change(Change::Promote(at as u64 + 1)).await.unwrap();
    }
    for _ in 0..10 {
        let leader = cluster.leader().await;
        let followers: Vec<usize> = (0..5).filter(|&at| at != leader).take(2).collect();
        let remove = |at: usize| cluster.change(Change::Remove(at as u64 + 1));
        let (one, other) = tokio::join!(remove(followers[0]), remove(followers[1]));
        one.unwrap();
        other.unwrap();
        assert_eq!(cluster.voters(cluster.leader().await).len(), 3);
        for &at in &followers {
            cluster.nodes[at].stop().await;
            cluster.wipe(at);
            cluster.nodes[at].start().await;
            let raft = cluster.nodes[at].config.bind.to_string();
            cluster.change(Change::Add(at as u64 + 1, raft)).await.unwrap();
            cluster.change(Change::Promote(at as u64 + 1)).await.unwrap();
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_under_a_known_number_is_let_in_only_when_it_replaces_the_former() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    for nth in 0..20 {
        cluster.propose(format!("entry {nth}")).await;
    }
    cluster.agree_on(20).await;
    let leader = cluster.leader().await;
    eventually("every member is recorded", || {
        let members = cluster.nodes[leader].status().members;
        members.iter().all(|member| member.incarnation != 0).then_some(())
    })
    .await;
    let lost = (leader + 1) % 3;
    let number = lost as u64 + 1;
    cluster.nodes[lost].stop().await;
    cluster.wipe(lost);
    cluster.nodes[lost].start().await;
    for nth in 20..60 {
        cluster.propose(format!("entry {nth}")).await;
    }
    // It is spoken to all the time, and takes nothing.
    let raft = cluster.nodes[lost].config.bind.to_string();
    assert_eq!(code(cluster.change(Change::Add(number, raft.clone())).await), "HF2510");
    let status = cluster.nodes[lost].status();
    assert_eq!((status.founding, status.last_index, status.term), (0, 0, 0));
    assert_eq!(cluster.nodes[lost].seen.len(), 0);

    cluster.change(Change::Remove(number)).await.unwrap();
    cluster.change(Change::Add(number, raft)).await.unwrap();
    cluster.change(Change::Promote(number)).await.unwrap();
    assert_eq!(cluster.agree_on(60).await.len(), 60);
    assert_eq!(cluster.voters(leader), [1, 2, 3]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_founder_with_an_empty_directory_founds_nothing_while_others_remember() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.propose("one").await;
    cluster.agree_on(1).await;
    cluster.nodes[0].stop().await;
    cluster.wipe(0);
    cluster.propose("two").await;
    cluster.nodes[0].start().await;
    for nth in 0..10 {
        cluster.propose(format!("entry {nth}")).await;
    }
    let status = cluster.nodes[0].status();
    assert_eq!((status.founding, status.members.len()), (0, 0), "it belongs to nothing");
    assert_eq!(cluster.nodes[0].seen.len(), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_harm_the_cluster_is_refused_with_its_reason() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster.propose("one").await;
    let number = leader as u64 + 1;
    let followers = [(leader + 1) % 3, (leader + 2) % 3].map(|at| at as u64 + 1);
    let own = cluster.nodes[leader].config.bind.to_string();
    assert_eq!(code(cluster.change(Change::Remove(7)).await), "HF2509");
    assert_eq!(code(cluster.change(Change::Promote(7)).await), "HF2509");
    assert_eq!(code(cluster.change(Change::Promote(followers[0])).await), "HF2504");
    assert_eq!(code(cluster.change(Change::Remove(number)).await), "HF2512");
    assert_eq!(code(cluster.change(Change::Add(4, "127.0.0.1:1".into())).await), "HF2503");
    assert_eq!(code(cluster.change(Change::Add(4, "no address".into())).await), "HF2503");
    assert_eq!(code(cluster.change(Change::Add(number, own)).await), "HF2504");
    // Another cluster of the same name.
    let stranger = cluster.newcomer(|config| config.join = false).await;
    eventually("the stranger leads itself", || cluster.nodes[stranger].leads().then_some(())).await;
    let raft = cluster.nodes[stranger].config.bind.to_string();
    let answer = cluster.nodes[leader].log().add_learner(4, &raft).await.map(drop);
    assert_eq!(code(answer), "HF2505");
    let alone = cluster.nodes[stranger].log().remove(4).await;
    assert_eq!(code(alone), "HF2501");
    cluster.nodes[stranger].stop().await;
    let stranger = cluster.nodes.pop();
    drop(stranger);
    // With one of three silent, neither of the others can go. It counts as silent after two of the longest waits for an election.
    let silent = usize::try_from(followers[0]).unwrap() - 1;
    let silence_ms = 2 * cluster.nodes[silent].config.election_max_ms + 250;
    cluster.nodes[silent].stop().await;
    let refused = eventually("its silence is noticed", || {
        let status = cluster.nodes[leader].status();
        let member = status.members.iter().find(|one| one.member.node == followers[0])?;
        (member.answered_ms_ago? > silence_ms).then_some(())
    });
    refused.await;
    assert_eq!(code(cluster.change(Change::Remove(followers[1])).await), "HF2502");
    assert_eq!(cluster.voters(leader), [1, 2, 3]);
    cluster.propose("still well").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_format_is_written_only_when_every_member_reads_it() {
    let mut cluster = Cluster::start(3, |config| {
        config.reads_format = if config.node == 3 { 1 } else { 2 };
    })
    .await;
    cluster.propose("one").await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.nodes[leader].log().cluster_format(), 1);
    cluster.nodes[2].stop().await;
    cluster.nodes[2].config.reads_format = 2;
    cluster.nodes[2].start().await;
    eventually("the newer version is recorded", || {
        cluster.nodes.iter().all(|node| node.log().cluster_format() == 2).then_some(())
    })
    .await;
    // From now on, one that does not read it is not let in.
    let old = cluster.newcomer(|_| {}).await;
    let raft = cluster.nodes[old].config.bind.to_string();
    assert_eq!(code(cluster.change(Change::Add(4, raft)).await), "HF2507");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_made_of_a_snapshot_is_another_cluster_with_the_same_state() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    for nth in 0..25 {
        cluster.propose(format!("entry {nth}")).await;
    }
    let entries = cluster.agree_on(25).await;
    let follower = (cluster.leader().await + 1) % 3;
    let saved = cluster.nodes[follower].log().save().await.unwrap();
    let bytes = saved.chunk(0, usize::MAX).unwrap();
    let content = parse_snapshot(&bytes).unwrap();
    assert_eq!(content.position, saved.position);

    let dir = tempfile::tempdir().unwrap();
    let mut config = cluster.nodes[follower].config.clone();
    config.dir = dir.path().join("restored");
    config.bind.set_port(17_555);
    for member in &mut config.members {
        if member.node == config.node {
            member.raft = config.bind.to_string();
        }
    }
    let founding = found_from(&config, &[content]).await.unwrap();
    assert_ne!(founding, cluster.nodes[follower].status().founding);
    let again = found_from(&config, &[content]).await.unwrap_err();
    assert!(again.to_string().contains("not empty"), "{again}");

    let seen = Seen::default();
    let restored = open(&config, &seen, Duration::ZERO).await.unwrap();
    let mut leadership = restored.leadership();
    let led =
        tokio::time::timeout(crate::harness::PATIENCE, leadership.wait_for(|now| now.leads_here));
    led.await.unwrap().unwrap();
    assert_eq!(seen.entries(), entries);
    let (position, count) = restored.propose(Bytes::from_static(b"entry 25")).await.unwrap();
    assert_eq!(count, 26);
    assert!(position > content.position, "{position} follows {}", content.position);
    // Its former fellows do not meet it.
    let raft = cluster.nodes[(follower + 1) % 3].config.bind.to_string();
    let stranger = (follower as u64 + 1) % 3 + 1;
    assert_eq!(code(restored.add_learner(stranger, &raft).await.map(drop)), "HF2505");
    restored.shutdown().await;
    // What was acknowledged by the restored node is there after a restart.
    let seen = Seen::default();
    let restored = open(&config, &seen, Duration::ZERO).await.unwrap();
    eventually("it recovers", || (seen.len() == 26).then_some(())).await;
    restored.shutdown().await;
    cluster.stop().await;
}

#[test]
fn any_wrong_bit_of_a_snapshot_that_left_the_log_is_noticed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let bytes = runtime.block_on(async {
        let mut cluster = Cluster::start(1, |_| {}).await;
        cluster.propose("one").await;
        let saved = cluster.nodes[0].log().save().await.unwrap();
        let bytes = saved.chunk(0, usize::MAX).unwrap();
        cluster.stop().await;
        bytes
    });
    assert!(parse_snapshot(&bytes).is_ok());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(parse_snapshot(&damaged).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(parse_snapshot(&bytes[..length]).is_err(), "cut to {length}");
    }
}
