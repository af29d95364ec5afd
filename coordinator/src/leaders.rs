//! Spreads the leaders of the groups over the nodes, and keeps them spread.
//!
//! Each node looks at what it leads. If another voter that is well leads at least two groups fewer, one group is handed over to it. So
//! the leaderships of a cluster whose nodes are all up differ by one at most, a node that comes back gets its part again, and nothing
//! moves to and fro. A hand-over that an operator asked for is in the audit trail, which every node has: for [`REST_MS`] nobody
//! moves anything, so that a node can be emptied before it is stopped.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use holdfast_txn::AuditRecord;
use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, group::Group};

/// Between two looks. A hand-over takes a few ms, and each node moves one group at a time.
const LOOK: Duration = Duration::from_millis(500);
/// How long an operator's word counts, ms.
pub(crate) const REST_MS: u64 = 600_000;
/// What the audit trail calls it.
pub(crate) const TRANSFER: &str = "cluster.transfer";
/// A voter that answered longer ago is not well, ms.
const ANSWERED_MAX_MS: u64 = 1_000;
/// Entries that a voter may lack.
const LAG_MAX: u64 = 1_000;

/// Of one group that this node leads: the voters that could lead it as well.
type Able = BTreeMap<usize, Vec<u64>>;

/// Until `stop`. Does nothing where there is one group.
pub(crate) async fn keep(
    node: u64,
    groups: Vec<Arc<Group>>,
    clock: Arc<Clock>,
    stop: CancellationToken,
) {
    if groups.len() < 2 {
        return;
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let leaders: Option<Vec<u64>> =
            groups.iter().map(|group| group.leader().map(|leader| leader.node)).collect();
        // While a group elects, nobody knows who leads how much.
        let Some(leaders) = leaders else { continue };
        if !leaders.contains(&node) || groups.iter().any(|group| rests(group, clock.now().0)) {
            continue;
        }
        let led = groups.iter().enumerate().filter(|(_, group)| group.leads());
        let offers = led.map(|(number, group)| (number, able(node, group))).collect();
        let Some((number, to)) = hand_over(node, &leaders, &offers) else { continue };
        tracing::info!(group = number, to, "a leadership is handed over, so that nodes lead alike");
        if let Err(fault) = groups[number].log.hand_over(to).await {
            tracing::info!(group = number, to, %fault, "it was not handed over; tried again");
        }
    }
}

/// Whether an operator moved the leadership of this group lately.
fn rests(group: &Group, now_ms: u64) -> bool {
    counts(&group.books().trail.kept, now_ms)
}

/// Whether one of `kept`, which are in the order of their times, is an operator's word that still counts. Looks at what was written
/// since such a word would be over, however much that is; the machine bounds how many records are kept.
fn counts(kept: &VecDeque<Arc<AuditRecord>>, now_ms: u64) -> bool {
    let mut lately =
        kept.iter().rev().take_while(|record| record.at.0.saturating_add(REST_MS) > now_ms);
    lately.any(|record| record.deed.act == TRANSFER)
}

/// The other voters that answer and have the log.
fn able(node: u64, group: &Group) -> Vec<u64> {
    let status = group.log.status();
    let others = status.members.iter().filter(|one| one.voter && one.member.node != node);
    let well = others.filter(|one| {
        let lag = one.matched_index.map(|index| status.last_index.saturating_sub(index));
        one.answered_ms_ago.is_some_and(|ms| ms <= ANSWERED_MAX_MS)
            && lag.is_some_and(|lag| lag <= LAG_MAX)
    });
    well.map(|one| one.member.node).collect()
}

/// Which group `node` should hand over, and to whom: to the one that leads the fewest, if that is at least two fewer.
fn hand_over(node: u64, leaders: &[u64], able: &Able) -> Option<(usize, u64)> {
    let count = |of: u64| leaders.iter().filter(|leader| **leader == of).count();
    let own = count(node);
    // The highest first: group 0 also keeps the rules and sends the policies, and stays where it is as long as possible.
    let offers = able.iter().rev().flat_map(|(number, to)| to.iter().map(|to| (*number, *to)));
    let fewer = offers.filter(|(_, to)| count(*to) + 2 <= own);
    fewer.min_by_key(|(_, to)| (count(*to), *to))
}

#[cfg(test)]
mod tests {
    use holdfast_txn::{Deed, Digest, Timestamp, limit::AUDIT_KEPT_MAX};

    use super::*;

    #[test]
    fn an_operators_word_counts_for_its_time_whatever_is_written_behind_it() {
        let record = |act: &str, at: u64| {
            let deed = Deed { act: act.to_owned(), ..Deed::default() };
            Arc::new(AuditRecord { number: 1, at: Timestamp(at), deed, before: Digest([0; 32]) })
        };
        let at = 5_000;
        let mut kept = VecDeque::from([record("tx.retry", 1), record(TRANSFER, at)]);
        kept.resize(AUDIT_KEPT_MAX, record("tx.retry", at + 1));
        assert!(super::counts(&kept, at));
        assert!(super::counts(&kept, at + REST_MS - 1));
        assert!(!super::counts(&kept, at + REST_MS), "its time is over");
        kept.remove(1);
        assert!(!super::counts(&kept, at), "nobody moved anything");
        assert!(!super::counts(&VecDeque::new(), at));
    }

    /// Moves until nobody wants to; all nodes are well but those in `down`.
    fn settle(mut leaders: Vec<u64>, nodes: &[u64], down: &[u64]) -> Vec<u64> {
        for _ in 0..100 {
            let mut moved = false;
            for node in nodes.iter().filter(|node| !down.contains(node)) {
                let led = leaders.iter().enumerate().filter(|(_, leader)| *leader == node);
                let others = nodes.iter().filter(|one| *one != node && !down.contains(one));
                let others: Vec<u64> = others.copied().collect();
                let able = led.map(|(number, _)| (number, others.clone())).collect();
                if let Some((group, to)) = hand_over(*node, &leaders, &able) {
                    leaders[group] = to;
                    moved = true;
                }
            }
            if !moved {
                return leaders;
            }
        }
        panic!("leaderships move for ever: {leaders:?}");
    }

    fn counts(leaders: &[u64], nodes: &[u64]) -> Vec<usize> {
        nodes.iter().map(|node| leaders.iter().filter(|one| *one == node).count()).collect()
    }

    #[test]
    fn wherever_they_begin_leaders_end_up_spread_and_stay() {
        let nodes = [1, 2, 3];
        for groups in 1..=16_usize {
            for first in nodes {
                let settled = settle(vec![first; groups], &nodes, &[]);
                let counts = counts(&settled, &nodes);
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                assert!(most - least <= 1, "{groups} groups: {counts:?}");
                assert_eq!(settled[0], first, "group 0 moves last");
                assert_eq!(settle(settled.clone(), &nodes, &[]), settled);
            }
        }
    }

    #[test]
    fn a_node_that_is_down_is_given_nothing_and_one_that_comes_back_its_part() {
        let nodes = [1, 2, 3];
        let without = settle(vec![1, 1, 1, 2], &nodes, &[3]);
        assert_eq!(counts(&without, &nodes), [2, 2, 0]);
        let again = settle(without, &nodes, &[]);
        assert_eq!(counts(&again, &nodes).iter().max(), Some(&2));
        assert_eq!(counts(&again, &nodes)[2], 1);
    }

    #[test]
    fn one_group_more_is_no_reason_to_move() {
        let able = Able::from([(0, vec![2]), (1, vec![2])]);
        assert_eq!(hand_over(1, &[1, 1, 2], &able), None);
        assert_eq!(hand_over(1, &[1, 1, 3], &able), Some((1, 2)));
        assert_eq!(hand_over(1, &[1, 1, 3], &Able::new()), None, "nobody is able");
    }
}
