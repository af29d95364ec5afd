//! One look at the cluster, and what two looks say together.

use std::collections::BTreeMap;

use futures::future::join_all;
use holdfast_client::{Client, wire::NodeStatusReply};
use tokio::time::{Duration, Instant, timeout};

use crate::bench::meters::counters;

/// For one node's metrics page.
const PATIENCE: Duration = Duration::from_secs(2);

/// What all nodes said at one moment.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    nodes: Vec<NodeLook>,
}

#[derive(Debug)]
struct NodeLook {
    node: u64,
    grpc: String,
    said: Option<NodeStatusReply>,
    /// Counters by name with labels; empty where the page could not be read.
    counters: BTreeMap<String, f64>,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) nodes: Vec<NodeRow>,
    /// Open transactions by status, as the leader has them.
    pub(super) by_status: BTreeMap<String, u64>,
    /// Name and a number a second, over all nodes.
    pub(super) rates: Vec<(&'static str, f64)>,
    /// From begin to decision, upper bounds in ms: half of the transactions, 99 of 100. `None`: none was decided in between.
    pub(super) decision_ms: Option<(f64, f64)>,
    /// Name and number now, of the leader.
    pub(super) gauges: Vec<(&'static str, f64)>,
}

/// A line of the table of nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NodeRow {
    pub(super) node: u64,
    pub(super) role: String,
    pub(super) term: u64,
    pub(super) applied: u64,
    pub(super) behind: u64,
    pub(super) sessions: f64,
    pub(super) fsyncs_per_second: f64,
    pub(super) grpc: String,
}

impl Look {
    /// Asks one node for the members, then every member for itself and for its counters.
    /// # Errors
    /// No node answers.
    pub(super) async fn take(client: &Client) -> anyhow::Result<Self> {
        let first = client.node_status().await?;
        let nodes = join_all(first.members.iter().map(|member| async {
            let (said, page) = tokio::join!(
                client.node_status_of(&member.grpc, 0),
                timeout(PATIENCE, counters(&member.http))
            );
            NodeLook {
                node: member.node,
                grpc: member.grpc.clone(),
                said: said.ok(),
                counters: page.ok().and_then(Result::ok).unwrap_or_default(),
            }
        }))
        .await;
        Ok(Self { at: Instant::now(), nodes })
    }
}

impl View {
    /// Numbers a second between two looks, and what the second one says.
    pub(super) fn between(first: &Look, second: &Look) -> Self {
        let seconds = second.at.duration_since(first.at).as_secs_f64().max(1e-3);
        let before = |node: u64| first.nodes.iter().find(|look| look.node == node);
        let newest = second.nodes.iter().filter_map(|node| node.said.as_ref());
        let newest = newest.map(|said| said.last_index).max().unwrap_or_default();
        // A node that was started in between counts from 0 again: no rate is better than a negative one.
        let gained = |node: &NodeLook, counts: &dyn Fn(&str) -> bool| {
            let now = sum(&node.counters, counts);
            let then = before(node.node).map_or(now, |look| sum(&look.counters, counts));
            (now - then).max(0.0)
        };
        let all = |prefix: &'static str, label: &'static str| {
            let counts = move |name: &str| name.starts_with(prefix) && name.contains(label);
            second.nodes.iter().map(|node| gained(node, &counts)).sum::<f64>() / seconds
        };
        let nodes = second.nodes.iter().map(|node| {
            let said = node.said.as_ref();
            let fsyncs = gained(node, &|name| name == "holdfast_log_fsyncs_total");
            NodeRow {
                node: node.node,
                role: said.map_or_else(|| "no answer".to_owned(), |said| said.role.clone()),
                term: said.map_or(0, |said| said.term),
                applied: said.map_or(0, |said| said.applied_index),
                behind: said.map_or(0, |said| newest.saturating_sub(said.applied_index)),
                sessions: node.counters.get("holdfast_sessions").copied().unwrap_or_default(),
                fsyncs_per_second: fsyncs / seconds,
                grpc: node.grpc.clone(),
            }
        });
        let leader = second
            .nodes
            .iter()
            .find(|node| node.said.as_ref().is_some_and(|said| said.role == "leader"));
        let gauge = |name: &str| {
            leader.and_then(|node| node.counters.get(name)).copied().unwrap_or_default()
        };
        Self {
            nodes: nodes.collect(),
            by_status: leader
                .and_then(|node| node.said.as_ref())
                .map(|said| said.by_status.iter().map(|(name, n)| (name.clone(), *n)).collect())
                .unwrap_or_default(),
            rates: vec![
                ("begun", all("holdfast_transactions_begun_total", "")),
                ("committed", all("holdfast_transactions_finished_total", "\"committed\"")),
                ("rolled back", all("holdfast_transactions_finished_total", "\"rolled_back\"")),
                ("calls", all("holdfast_calls_total", "")),
                ("asked again", all("holdfast_call_retries_total", "")),
                ("unknown requests", all("holdfast_requests_total", "\"unknown\"")),
            ],
            decision_ms: decision(second, &gained),
            gauges: vec![
                ("calls under way", gauge("holdfast_calls_in_flight")),
                ("calls parked", gauge("holdfast_calls_parked")),
                ("callers waiting", gauge("holdfast_waiters")),
                ("commands queued", gauge("holdfast_proposer_queue_commands")),
            ],
        }
    }
}

fn sum(counters: &BTreeMap<String, f64>, counts: &dyn Fn(&str) -> bool) -> f64 {
    counters.iter().filter(|(name, _)| counts(name)).map(|(_, value)| value).sum()
}

type Gained<'a> = dyn Fn(&NodeLook, &dyn Fn(&str) -> bool) -> f64 + 'a;

/// Upper bounds, in ms, of the histogram's buckets in which the median and the 99th of 100 lie.
fn decision(look: &Look, gained: &Gained<'_>) -> Option<(f64, f64)> {
    let mut bounds: Vec<(f64, f64)> = Vec::new();
    let names = look.nodes.iter().flat_map(|node| node.counters.keys());
    let mut les: Vec<&str> = names
        .filter(|name| name.starts_with("holdfast_decision_seconds_bucket"))
        .filter_map(|name| name.split("le=\"").nth(1)?.split('"').next())
        .collect();
    les.sort_unstable();
    les.dedup();
    for le in les {
        let Ok(bound) = le.replace("+Inf", "inf").parse::<f64>() else { continue };
        let label = format!("le=\"{le}\"");
        let counts = |name: &str| {
            name.starts_with("holdfast_decision_seconds_bucket") && name.contains(&label)
        };
        bounds.push((bound, look.nodes.iter().map(|node| gained(node, &counts)).sum()));
    }
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = bounds.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let at = |share: f64| {
        bounds.iter().find(|(_, count)| *count >= total * share).map(|(bound, _)| bound * 1e3)
    };
    Some((at(0.5)?, at(0.99)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, counters: &[(&str, f64)]) -> Look {
        let said =
            NodeStatusReply { node: 1, role: "leader".into(), last_index: 7, ..Default::default() };
        let counters = counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Look {
            at,
            nodes: vec![NodeLook { node: 1, grpc: "a:1".into(), said: Some(said), counters }],
        }
    }

    #[test]
    fn rates_are_what_was_gained_a_second_and_never_negative() {
        let now = Instant::now();
        let begun = "holdfast_transactions_begun_total{mode=\"tcc\"}";
        let (first, second) =
            (look(now, &[(begun, 10.0)]), look(now + Duration::from_secs(2), &[(begun, 30.0)]));
        let rate = |view: View| view.rates[0].1;
        assert!((rate(View::between(&first, &second)) - 10.0).abs() < 1e-9);
        let restarted = look(now + Duration::from_secs(2), &[(begun, 3.0)]);
        assert!(rate(View::between(&first, &restarted)).abs() < 1e-9);
    }

    #[test]
    fn latencies_are_bounds_of_the_buckets_that_grew() {
        let bucket =
            |le: &str| format!("holdfast_decision_seconds_bucket{{mode=\"tcc\",le=\"{le}\"}}");
        let (low, high, all) = (bucket("0.005"), bucket("0.01"), bucket("+Inf"));
        let now = Instant::now();
        let at = |n: [f64; 3]| look(now, &[(&low, n[0]), (&high, n[1]), (&all, n[2])]);
        let view = View::between(&at([5.0, 5.0, 5.0]), &at([65.0, 105.0, 105.0]));
        assert_eq!(view.decision_ms, Some((5.0, 10.0)));
        assert_eq!(View::between(&at([5.0; 3]), &at([5.0; 3])).decision_ms, None);
    }
}
