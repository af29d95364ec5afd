//! A leader goes, another comes: nothing that was acknowledged is lost, and nobody leads who has not caught up.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::{join_all, select_all};
use holdfast_raft::{ControlError, ProposeError, Role};

use crate::harness::{Cluster, Node, eventually, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_has_everything_and_the_old_one_catches_up() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    for nth in 0..50 {
        cluster.propose(format!("entry {nth}")).await;
    }
    cluster.agree_on(50).await;
    let old = cluster.leader().await;
    let term = cluster.nodes[old].status().term;
    cluster.nodes[old].stop().await;
    let begun = Instant::now();
    let (position, count) = cluster.propose("entry 50").await;
    let took = begun.elapsed();
    assert_eq!(count, 51);
    assert!(position.term > term);
    // The rule is twice the longest election wait; the rest is for a busy machine.
    assert!(took < Duration::from_secs(5), "the failover took {took:?}");
    let new = cluster.leader().await;
    assert_ne!(new, old);

    cluster.nodes[old].start().await;
    let entries = cluster.agree_on(51).await;
    let expected: Vec<Vec<u8>> = (0..51).map(|nth| format!("entry {nth}").into_bytes()).collect();
    assert_eq!(entries, expected);
    eventually("the old leader follows", || {
        (cluster.nodes[old].status().role == Role::Follower).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_says_that_nothing_happened_and_who_leads() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster.propose("one").await;
    cluster.agree_on(1).await;
    let expected = cluster.nodes[leader].config.members[leader].clone();
    let follower = (leader + 1) % 3;
    let log = cluster.nodes[follower].log();
    eventually("the follower knows the leader", || {
        (log.leadership().borrow().leader == Some(expected.clone())).then_some(())
    })
    .await;
    let not_leader = ProposeError::NotLeader { leader: Some(expected.clone()) };
    assert_eq!(log.propose(Bytes::from_static(b"two")).await.unwrap_err(), not_leader);
    assert_eq!(log.read_barrier().await.unwrap_err(), not_leader);
    let not_leader = ControlError::NotLeader { leader: Some(expected.clone()) };
    assert_eq!(log.hand_over(1).await.unwrap_err(), not_leader);
    assert!(!log.leadership().borrow().leads_here);
    let status = log.status();
    assert_eq!(status.leader, Some(expected));
    assert_eq!(status.members.len(), 3);
    assert!(status.members.iter().all(|member| member.voter));
    cluster.propose("three").await;
    assert_eq!(cluster.agree_on(2).await, [b"one".to_vec(), b"three".to_vec()]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leads_here_before_everything_acknowledged_is_applied_here() {
    // Applying is slow, so that a new leader has much to catch up with.
    let mut cluster = Cluster::start_slow(3, Duration::from_millis(3), |_| {}).await;
    let leader = cluster.leader().await;
    for _round in 0..3 {
        let leader_log = cluster.nodes[leader].log().clone();
        let answers = join_all((0..60).map(|nth| {
            let log = leader_log.clone();
            tokio::spawn(async move { log.propose(Bytes::from(format!("entry {nth}"))).await })
        }))
        .await;
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().is_ok()));
    }
    let acknowledged = 180;
    let watched: Vec<_> = cluster
        .nodes
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != leader)
        .map(|(_, node)| {
            let mut leadership = node.log().leadership();
            let (seen, log) = (node.seen.clone(), node.log().clone());
            tokio::spawn(async move {
                let now = leadership.wait_for(|now| now.leads_here).await.unwrap().clone();
                (now, seen.len(), log.status())
            })
        })
        .collect();
    cluster.nodes[leader].stop().await;
    let (first, _, rest) = within("somebody leads", select_all(watched)).await;
    let (now, applied, status) = first.unwrap();
    for one in rest {
        one.abort();
    }
    assert!(applied >= acknowledged, "leads after {applied} of {acknowledged}");
    assert_eq!(now.term, status.applied.term, "its own first entry is applied");
    assert_eq!(now.leader.as_ref().map(|leader| leader.node), Some(status.node));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_while_leaders_fall_one_after_another() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let first = cluster.leader().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    let logs: Arc<std::sync::Mutex<Vec<Option<_>>>> = Arc::new(std::sync::Mutex::new(
        cluster.nodes.iter().map(|node| node.log.clone()).collect(),
    ));
    for writer in 0..4 {
        let (logs, stop) = (Arc::clone(&logs), Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
            let mut nth = 0;
            while !stop.load(Ordering::Acquire) {
                let entry = format!("writer {writer} entry {nth}").into_bytes();
                let candidates: Vec<_> = logs.lock().unwrap().iter().flatten().cloned().collect();
                let mut answered = false;
                for log in candidates {
                    match log.propose(Bytes::from(entry.clone())).await {
                        Ok(_) => acknowledged.push(entry.clone()),
                        Err(ProposeError::Unknown { .. }) => unknown.push(entry.clone()),
                        Err(_) => continue,
                    }
                    answered = true;
                    break;
                }
                if answered {
                    nth += 1;
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            (acknowledged, unknown)
        }));
    }
    let mut leader = first;
    for round in 0..3 {
        let before = cluster.nodes[leader].seen.len();
        eventually("the writers get on", || {
            (cluster.nodes[leader].seen.len() > before + 20).then_some(())
        })
        .await;
        logs.lock().unwrap()[leader] = None;
        cluster.nodes[leader].stop().await;
        let next = cluster.leader().await;
        assert_ne!(next, leader, "round {round}");
        cluster.nodes[leader].start().await;
        logs.lock().unwrap()[leader].clone_from(&cluster.nodes[leader].log);
        leader = next;
    }
    stop.store(true, Ordering::Release);
    let (mut acknowledged, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for writer in writers {
        let (sure, unsure) = within("a writer ends", writer).await.unwrap();
        acknowledged.extend(sure);
        unknown.extend(unsure);
    }
    cluster.propose("the end").await;
    eventually("every node has the end", || {
        let end = |node: &Node| node.seen.entries().last() == Some(&b"the end".to_vec());
        cluster.nodes.iter().all(end).then_some(())
    })
    .await;
    let entries = cluster.nodes[0].seen.entries();
    assert!(cluster.nodes.iter().all(|node| node.seen.entries() == entries), "the nodes differ");
    let found: BTreeSet<_> = entries.iter().cloned().collect();
    assert_eq!(found.len(), entries.len(), "an entry was applied twice");
    assert!(acknowledged.len() > 60, "only {} entries were acknowledged", acknowledged.len());
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{lost:?}");
    for entry in found.iter().filter(|entry| entry.as_slice() != b"the end") {
        assert!(
            acknowledged.contains(entry) || unknown.contains(entry),
            "{} was told that nothing happened, and did",
            String::from_utf8_lossy(entry)
        );
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_stops_leading_and_promises_nothing() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster.propose("one").await;
    assert!(cluster.nodes[leader].log().read_barrier().await.is_ok());
    for node in (0..3).filter(|&node| node != leader) {
        cluster.nodes[node].stop().await;
    }
    let log = cluster.nodes[leader].log().clone();
    let mut leadership = log.leadership();
    within("it notices", leadership.wait_for(|now| !now.leads_here)).await.unwrap();
    let refused = within("a proposal is refused", log.propose(Bytes::from_static(b"two"))).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let refused = within("a read is refused", log.read_barrier()).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");

    for node in (0..3).filter(|&node| node != leader) {
        cluster.nodes[node].start().await;
    }
    cluster.propose("three").await;
    assert_eq!(cluster.agree_on(2).await, [b"one".to_vec(), b"three".to_vec()]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_that_loses_its_leader_on_the_way_is_unknown() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster.propose("one").await;
    // One after the other, until one fails: however long the others take to stop, the first that no quorum answers is proposed
    // within the lease.
    let log = cluster.nodes[leader].log().clone();
    let proposals = tokio::spawn(async move {
        loop {
            if let Err(error) = log.propose(Bytes::from_static(b"two")).await {
                return error;
            }
        }
    });
    for node in (0..3).filter(|&node| node != leader) {
        cluster.nodes[node].stop().await;
    }
    let mut leadership = cluster.nodes[leader].log().leadership();
    within("it notices", leadership.wait_for(|now| !now.leads_here)).await.unwrap();
    cluster.nodes[leader].stop().await;
    let error = within("the proposals end", proposals).await.unwrap();
    assert!(matches!(error, ProposeError::Unknown { .. }), "{error:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_back() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster.propose("one").await;
    cluster.agree_on(1).await;
    let to = (leader + 1) % 3;
    let node = cluster.nodes[to].config.node;
    let log = cluster.nodes[leader].log();
    assert_eq!(log.hand_over(9).await.unwrap_err(), ControlError::NotVoter { node: 9 });
    eventually("both others answer", || log.successor()).await;
    log.hand_over(node).await.unwrap();
    eventually("the other leads", || cluster.nodes[to].leads().then_some(())).await;
    assert!(!cluster.nodes[leader].leads());
    cluster.propose("two").await;
    cluster.agree_on(2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_to_a_node_that_is_gone_ends_in_time_and_a_better_one_is_known() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    cluster.propose("one").await;
    cluster.agree_on(1).await;
    let (gone, left) = ((leader + 1) % 3, (leader + 2) % 3);
    let (gone_node, left_node) = (cluster.nodes[gone].config.node, cluster.nodes[left].config.node);
    cluster.nodes[gone].stop().await;
    assert_eq!(cluster.nodes[left].log().successor(), None, "a follower hands nothing over");
    let log = cluster.nodes[leader].log().clone();
    // The one that is gone still counts as present until it has been silent for an election.
    eventually("only the other is left", || {
        let others = (0..50).map(|_| log.successor()).all(|next| next == Some(left_node));
        others.then_some(())
    })
    .await;
    let after_ms = 2 * cluster.nodes[leader].config.election_max_ms;
    let asked = Instant::now();
    match log.hand_over(gone_node).await {
        // The two that are left elected meanwhile, since a leader that hands over is silent.
        Ok(()) => {}
        Err(error) => assert_eq!(error, ControlError::TimedOut { what: "the hand-over", after_ms }),
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    cluster.nodes[gone].start().await;
    cluster.propose("two").await;
    cluster.agree_on(2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_gone_is_dialed_with_pauses() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.propose("one").await;
    cluster.agree_on(1).await;
    let gone = (cluster.leader().await + 1) % 3;
    cluster.nodes[gone].stop().await;
    // In its place sits somebody who hangs up on every caller, and counts them.
    let address = cluster.nodes[gone].config.members[gone].raft.clone();
    let stranger = tokio::net::TcpListener::bind(address).await.unwrap();
    let begun = Instant::now();
    let mut dialed = 0_u32;
    while begun.elapsed() < Duration::from_secs(3) {
        if let Ok(caller) =
            tokio::time::timeout(Duration::from_millis(100), stranger.accept()).await
        {
            drop(caller);
            dialed += 1;
        }
        if dialed.is_multiple_of(16) {
            cluster.propose("more").await;
        }
    }
    // Ten attempts a second for entries and one for each heartbeat, from the leader; without pauses it is thousands.
    assert!(dialed > 3, "nobody dialed the peer that is gone");
    assert!(dialed < 300, "the peer that is gone was dialed {dialed} times in three seconds");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whom_nobody_answers_names_no_leader() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.propose("one").await;
    let leader = cluster.leader().await;
    for node in (0..3).filter(|node| *node != leader) {
        cluster.nodes[node].stop().await;
    }
    let log = cluster.nodes[leader].log();
    eventually("the leader notices that it is alone", || {
        let now = log.leadership().borrow().clone();
        (!now.leads_here && now.leader.is_none()).then_some(())
    })
    .await;
    cluster.stop().await;
}
