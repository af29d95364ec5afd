//! One look at the cluster, and what two looks say together.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use holdfast_client::{Client, ClientOptions, wire::NodeStatusReply};
use serde::Serialize;
use tokio::time::{Duration, Instant, timeout};

use crate::bench::meters::counters_as;

/// For one node's metrics page.
const PATIENCE: Duration = Duration::from_secs(2);

/// What all nodes said at one moment.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    /// Raft groups.
    groups: u32,
    nodes: Vec<NodeLook>,
}

#[derive(Debug)]
struct NodeLook {
    node: u64,
    grpc: String,
    /// In the order of the Raft groups; empty where it does not answer.
    said: Vec<NodeStatusReply>,
    /// Counters by name with labels; empty where the page could not be read.
    counters: BTreeMap<String, f64>,
    /// Whether it was read.
    counted: bool,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) nodes: Vec<NodeRow>,
    /// How many Raft groups there are.
    pub(super) groups: u32,
    /// Open transactions by status, as the leaders have them.
    pub(super) by_status: BTreeMap<String, u64>,
    /// Name and a number a second, over all nodes.
    pub(super) rates: Vec<(&'static str, f64)>,
    /// From begin to decision, upper bounds in ms: half of the transactions, 99 of 100. `None`: none was decided in between.
    pub(super) decision_ms: Option<(f64, f64)>,
    /// Name and number now, of those who lead.
    pub(super) gauges: Vec<(&'static str, f64)>,
}

/// A line of the table of nodes: one in one Raft group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct NodeRow {
    pub(super) group: u32,
    pub(super) node: u64,
    pub(super) role: String,
    pub(super) term: u64,
    pub(super) applied: u64,
    pub(super) behind: u64,
    /// `None`, as the next: its metrics could not be read.
    pub(super) sessions: Option<f64>,
    pub(super) fsyncs_per_second: Option<f64>,
    pub(super) grpc: String,
}

impl Look {
    /// Asks one node for the members, then every member for itself and for its counters.
    /// # Errors
    /// No node answers.
    pub(super) async fn take(client: &Client, who: &ClientOptions) -> anyhow::Result<Self> {
        let first = client.node_status().await?;
        let groups = first.groups.max(1);
        let nodes = join_all(first.members.iter().map(|member| async {
            let said = (0..groups).map(|group| client.node_status_of(&member.grpc, group));
            let (said, page) =
                tokio::join!(try_join_all(said), timeout(PATIENCE, counters_as(&member.http, who)));
            let page = page.ok().and_then(Result::ok);
            NodeLook {
                node: member.node,
                grpc: member.grpc.clone(),
                said: said.unwrap_or_default(),
                counted: page.is_some(),
                counters: page.unwrap_or_default(),
            }
        }))
        .await;
        Ok(Self { at: Instant::now(), groups, nodes })
    }
}

impl View {
    /// Numbers a second between two looks, and what the second one says.
    pub(super) fn between(first: &Look, second: &Look) -> Self {
        let seconds = second.at.duration_since(first.at).as_secs_f64().max(1e-3);
        let before = |node: u64| first.nodes.iter().find(|look| look.node == node);
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
        let rows = (0..second.groups).flat_map(|group| {
            let said = move |node: &NodeLook| node.said.get(group as usize).cloned();
            let newest = second.nodes.iter().filter_map(said).map(|said| said.last_index).max();
            second.nodes.iter().map(move |node| (node, said(node), newest.unwrap_or_default()))
        });
        let nodes = rows.enumerate().map(|(row, (node, said, newest))| {
            let fsyncs = gained(node, &|name| name == "holdfast_log_fsyncs_total");
            NodeRow {
                group: u32::try_from(row / second.nodes.len()).unwrap_or_default(),
                node: node.node,
                role: said
                    .as_ref()
                    .map_or_else(|| "no answer".to_owned(), |said| said.role.clone()),
                term: said.as_ref().map_or(0, |said| said.term),
                applied: said.as_ref().map_or(0, |said| said.applied_index),
                behind: said.map_or(0, |said| newest.saturating_sub(said.applied_index)),
                sessions: node
                    .counted
                    .then(|| node.counters.get("holdfast_sessions").copied().unwrap_or_default()),
                fsyncs_per_second: node.counted.then_some(fsyncs / seconds),
                grpc: node.grpc.clone(),
            }
        });
        // Of each group, who leads it: what is measured there is the cluster's.
        let leading: Vec<(&NodeLook, &NodeStatusReply)> = second
            .nodes
            .iter()
            .flat_map(|node| node.said.iter().map(move |said| (node, said)))
            .filter(|(_, said)| said.role == "leader")
            .collect();
        let gauge = |name: &'static str| {
            let of_group = |(node, said): &(&NodeLook, &NodeStatusReply)| {
                let labeled = format!("{name}{{group=\"{}\"}}", said.group);
                let series = if second.groups == 1 { name } else { labeled.as_str() };
                node.counters.get(series).copied().unwrap_or_default()
            };
            leading.iter().map(of_group).sum::<f64>()
        };
        let mut by_status = BTreeMap::new();
        for (status, count) in leading.iter().flat_map(|(_, said)| &said.by_status) {
            *by_status.entry(status.clone()).or_default() += *count;
        }
        Self {
            nodes: nodes.collect(),
            groups: second.groups,
            by_status,
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
            groups: 1,
            nodes: vec![NodeLook {
                node: 1,
                grpc: "a:1".into(),
                said: vec![said],
                counters,
                counted: true,
            }],
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
    fn each_group_has_a_row_for_each_node_and_what_its_leader_measures_is_added() {
        let said = |group: u32, leads: bool, last_index: u64| NodeStatusReply {
            group,
            role: if leads { "leader" } else { "follower" }.into(),
            last_index,
            applied_index: 5,
            by_status: [("trying".to_owned(), 2 + u64::from(group))].into(),
            ..Default::default()
        };
        let node = |node: u64, leads: [bool; 2], parked: [f64; 2]| NodeLook {
            node,
            grpc: format!("n:{node}"),
            said: vec![said(0, leads[0], 7), said(1, leads[1], 9)],
            counters: (0..2)
                .map(|g| (format!("holdfast_calls_parked{{group=\"{g}\"}}"), parked[g]))
                .collect(),
            counted: true,
        };
        let silent = NodeLook {
            node: 3,
            grpc: "n:3".into(),
            said: Vec::new(),
            counters: BTreeMap::new(),
            counted: false,
        };
        let nodes = vec![
            node(1, [true, false], [3.0, 100.0]),
            node(2, [false, true], [100.0, 4.0]),
            silent,
        ];
        let look = Look { at: Instant::now(), groups: 2, nodes };
        let view = View::between(&look, &look);
        let rows: Vec<_> = view.nodes.iter().map(|row| (row.group, row.node, row.behind)).collect();
        assert_eq!(rows, [(0, 1, 2), (0, 2, 2), (0, 3, 0), (1, 1, 4), (1, 2, 4), (1, 3, 0)]);
        assert_eq!(view.nodes[5].role, "no answer");
        assert_eq!((view.nodes[5].sessions, view.nodes[0].sessions), (None, Some(0.0)));
        assert_eq!(view.by_status, [("trying".to_owned(), 5)].into());
        assert_eq!(view.gauges[1], ("calls parked", 7.0));
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
