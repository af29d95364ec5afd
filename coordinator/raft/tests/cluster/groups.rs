//! More than one group in a cluster: logs of their own, one writer and one address a node.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use holdfast_raft::{Config, Log, OpenError, ProposeError, StoreError};

use crate::harness::{Cluster, Journal, PATIENCE, Seen, eventually};

const GROUPS: u32 = 2;

/// One node with its groups.
pub(crate) struct Host {
    pub(crate) logs: Vec<Log<Journal>>,
    pub(crate) seen: Vec<Seen>,
}

pub(crate) async fn start(config: &Config) -> Host {
    let seen: Vec<Seen> = (0..config.groups).map(|_| Seen::default()).collect();
    let journals = seen.iter();
    let journals = journals.map(|seen| Journal { seen: seen.clone(), apply_takes: Duration::ZERO });
    let logs = Log::open_groups(config.clone(), journals.collect()).await.unwrap();
    Host { logs, seen }
}

/// A node that is a cluster by itself, of so many groups.
pub(crate) async fn alone(groups: u32, adjust: impl Fn(&mut Config)) -> (Cluster, Host) {
    // A configuration whose own log is not used.
    let mut cluster = Cluster::start(1, adjust).await;
    cluster.stop().await;
    cluster.wipe(0);
    cluster.nodes[0].config.groups = groups;
    let host = start(&cluster.nodes[0].config).await;
    (cluster, host)
}

impl Host {
    pub(crate) async fn stop(self) {
        for log in &self.logs {
            log.shutdown().await;
        }
    }
}

fn leader_of(hosts: &[Option<Host>], group: usize) -> Option<usize> {
    hosts.iter().position(|host| {
        host.as_ref().is_some_and(|host| host.logs[group].leadership().borrow().leads_here)
    })
}

pub(crate) async fn propose(hosts: &[Option<Host>], group: usize, entry: &str) -> usize {
    let begun = Instant::now();
    loop {
        if let Some(leader) = leader_of(hosts, group) {
            let host = hosts[leader].as_ref().expect("it leads");
            match host.logs[group].propose(Bytes::from(entry.to_owned())).await {
                Ok((_, count)) => return count,
                Err(ProposeError::Unknown { cause }) => panic!("{cause}"),
                Err(_) => {}
            }
        }
        assert!(begun.elapsed() < PATIENCE, "group {group} takes no entry");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_costs_only_the_groups_that_it_led_and_each_group_agrees() {
    // The configurations of three nodes whose own logs are not used.
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.stop().await;
    for at in 0..3 {
        cluster.wipe(at);
        cluster.nodes[at].config.groups = GROUPS;
    }
    let mut hosts = Vec::new();
    for node in &cluster.nodes {
        hosts.push(Some(start(&node.config).await));
    }
    for group in 0..2 {
        assert_eq!(propose(&hosts, group, "first").await, 1);
    }
    // Group 1 is led by another node than group 0.
    let first = eventually("group 0 is led", || leader_of(&hosts, 0)).await;
    let second = eventually("group 1 is led", || leader_of(&hosts, 1)).await;
    if first == second {
        let log = &hosts[second].as_ref().expect("it leads").logs[1];
        let begun = Instant::now();
        while log.hand_over((first as u64 + 1) % 3 + 1).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "no hand-over");
            if leader_of(&hosts, 1).is_some_and(|leader| leader != first) {
                break;
            }
        }
    }
    let second = eventually("another node leads group 1", || {
        leader_of(&hosts, 1).filter(|leader| *leader != first)
    })
    .await;
    let term = hosts[first].as_ref().expect("it runs").logs[0].status().term;

    // The node that leads group 1 dies; group 0 does not notice.
    hosts[second].take().expect("it runs").stop().await;
    assert_eq!(propose(&hosts, 0, "second").await, 2);
    assert_eq!(leader_of(&hosts, 0), Some(first));
    assert_eq!(hosts[first].as_ref().expect("it runs").logs[0].status().term, term);
    assert_eq!(propose(&hosts, 1, "second").await, 2);
    hosts[second] = Some(start(&cluster.nodes[second].config).await);
    for group in 0..2 {
        assert_eq!(propose(&hosts, group, "third").await, 3);
        eventually("the node that came back catches up", || {
            let all = hosts.iter().flatten();
            let entries: Vec<_> = all.map(|host| host.seen[group].entries()).collect();
            (entries.iter().all(|one| one.len() == 3)
                && entries.windows(2).all(|pair| pair[0] == pair[1]))
            .then_some(())
        })
        .await;
    }
    for host in hosts.into_iter().flatten() {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_a_node_share_its_syncs_and_its_directory_remembers_their_number() {
    let (cluster, host) = alone(4, |_| {}).await;
    let config = cluster.nodes[0].config.clone();
    let hosts = [Some(host)];
    for group in 0..4 {
        propose(&hosts, group, "first").await;
    }
    let host = hosts[0].as_ref().expect("it runs");
    let before = host.logs[0].status().fsyncs;
    let entries = 400;
    let answers = join_all((0..entries).map(|nth| {
        let log = host.logs[nth % 4].clone();
        tokio::spawn(async move { log.propose(Bytes::from(format!("entry {nth}"))).await })
    }))
    .await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().is_ok()));
    // One counter, since there is one writer. How well groups share its syncs is held where the writer can be held up: in the
    // store's own tests.
    let fsyncs = host.logs[3].status().fsyncs - before;
    assert!((1..entries as u64).contains(&fsyncs), "{fsyncs} syncs for {entries} entries");
    let [host] = hosts;
    host.expect("it runs").stop().await;

    let mut other = config.clone();
    other.groups = 1;
    let journal = Journal { seen: Seen::default(), apply_takes: Duration::ZERO };
    let refused = Log::open(other, journal).await.expect_err("it has four groups");
    assert!(
        matches!(refused, OpenError::Store(StoreError::OtherGroups { found: 4, .. })),
        "{refused}"
    );
    let again = start(&config).await;
    for group in 0..4 {
        eventually("everything is there after a restart", || {
            (again.seen[group].len() == 101).then_some(())
        })
        .await;
    }
    again.stop().await;
}
