//! The budget of durable writes: what a transaction costs in proposals, counted where operators see it.

use holdfast_txn::Status;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster, until},
};

fn counted(metrics: &PrometheusHandle, series: &str) -> u64 {
    let rendered = metrics.render();
    let line = rendered.lines().find(|line| line.starts_with(series));
    let value = line.and_then(|line| line.split_whitespace().last());
    value.map_or(0, |value| value.parse::<f64>().expect("a number") as u64)
}

fn proposals(metrics: &PrometheusHandle) -> [u64; 2] {
    ["blocking", "lazy"]
        .map(|kind| counted(metrics, &format!("holdfast_proposals_total{{kind=\"{kind}\"}}")))
}

/// Runs one transaction to its end and counts its proposals.
fn cost(begin: &Begin) -> [u64; 2] {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // One thread, so that the node makes its meters with this recorder and no other test's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let cluster = Cluster::start(1).await;
            let _deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
            let _savings = Agent::start("savings", &cluster.grpc(), |_: &Asked| Say::Done);
            until("both agents are there", || counted(&metrics, "holdfast_sessions") == 2).await;
            cluster.begin(begin).await;
            let gid = holdfast_txn::Gid::parse(begin.gid).unwrap();
            let leader = cluster.leader().await;
            let ended = || async {
                let found = leader.get(&gid, holdfast_coordinator::Freshness::Stale).await;
                found.unwrap().is_some_and(|transaction| transaction.status == Status::Committed)
            };
            crate::cluster::within("the end", async {
                while !ended().await {
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            })
            .await;
        });
    });
    proposals(&metrics)
}

#[test]
fn a_declared_tcc_of_two_branches_costs_two_blocking_proposals_and_a_lazy_one() {
    assert_eq!(cost(&Begin::tcc("g1")), [2, 1]);
}

#[test]
fn a_saga_of_two_steps_costs_one_blocking_proposal_and_a_lazy_one() {
    assert_eq!(cost(&Begin::saga("g1")), [1, 1]);
}

#[test]
fn an_xa_transaction_that_its_caller_prepared_costs_one_blocking_proposal_and_a_lazy_one() {
    assert_eq!(cost(&Begin::xa("g1")), [1, 1]);
}
