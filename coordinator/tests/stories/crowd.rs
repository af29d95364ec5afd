//! Many transactions at once: each ends, each operation is asked once, and nothing is left behind.

use std::collections::HashMap;

use holdfast_coordinator::{WaitEnd, WaitUntil};
use holdfast_proto::v1::Op;
use holdfast_txn::{Command, Gid, Status};
use tokio::time::Instant;

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster, PATIENCE, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_transactions_commits_with_each_operation_asked_once() {
    const COUNT: usize = 5_000;
    let cluster = Cluster::start(1).await;
    // One in ten is refused, decided by its number and not by chance.
    let refuses = |asked: &Asked| {
        let refused = asked.op == Op::Try && asked.gid.ends_with('7');
        if refused { Say::Refused } else { Say::Done }
    };
    let deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    let savings = Agent::start("savings", &cluster.grpc(), refuses);
    let leader = cluster.leader().await;
    let since = Instant::now();
    let all: Vec<_> = (0..COUNT)
        .map(|number| {
            let leader = leader.clone();
            let begin = Begin::tcc("g").options(|options| {
                (options.timeout_ms, options.call_timeout_ms) = (600_000, 600_000);
            });
            tokio::spawn(async move {
                let Command::Begin { mode, options, branches, enlisted, .. } = begin.command()
                else {
                    unreachable!("it is a begin")
                };
                let gid = Gid::parse(&format!("g{number}")).unwrap();
                let command = Command::Begin {
                    gid: gid.clone(),
                    mode,
                    options,
                    branches,
                    enlisted,
                    content: None,
                };
                leader.propose(command).await.unwrap().result.unwrap();
                let waited = leader.wait(&gid, WaitUntil::End, PATIENCE).await;
                assert_eq!(waited.end, WaitEnd::Reached);
                waited.transaction.unwrap().status
            })
        })
        .collect();
    let mut ends: HashMap<Status, usize> = HashMap::new();
    for one in all {
        *ends.entry(one.await.unwrap()).or_default() += 1;
    }
    println!("{COUNT} transactions in {:?}", since.elapsed());
    assert_eq!(ends[&Status::RolledBack], COUNT / 10);
    assert_eq!(ends[&Status::Committed], COUNT - COUNT / 10);
    let mut asked: HashMap<_, usize> = HashMap::new();
    for one in deposit.asked().into_iter().chain(savings.asked()) {
        *asked.entry((one.gid, one.branch, one.op)).or_default() += 1;
    }
    assert!(asked.values().all(|times| *times == 1), "nothing was asked twice");
    assert_eq!(asked.keys().filter(|(_, _, op)| *op == Op::Confirm).count(), COUNT * 9 / 10 * 2);
    until("nothing is open", || {
        let by_status = leader.status().by_status;
        by_status.iter().all(|(status, count)| status.is_final() || *count == 0)
    })
    .await;
}
