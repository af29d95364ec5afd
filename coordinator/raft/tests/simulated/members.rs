//! Changes of the membership during a run: what is wanted, one thing after the other, and the leader that goes after it.
//!
//! A wish is met when the leader that sees it met has had an entry acknowledged afterwards: then the change before it is on a
//! majority as well, and no later leader forgets it.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use holdfast_raft::{Log, LogStatus};
use rand::{Rng as _, rngs::StdRng};

use crate::world::{Journal, PATIENCE, PORT, Seen, name};

/// Between two attempts at a wish.
const PAUSE: Duration = Duration::from_millis(150);

/// Something that the membership shall become. Nodes are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The node is a voter: first a learner, then promoted.
    Joins(usize),
    /// The node is no member.
    Leaves(usize),
    /// The node loses its disk, and comes back empty under its old number.
    Renewed(usize),
}

/// What a seed wishes. The node `nodes` is one that is no member at first.
pub(crate) fn wishes(chance: &mut StdRng, nodes: usize) -> VecDeque<Wish> {
    let leaving = chance.random_range(0..nodes);
    let lost = chance.random_range(0..nodes);
    match chance.random_range(0..4) {
        0 => VecDeque::new(),
        1 => VecDeque::from([Wish::Joins(nodes), Wish::Leaves(leaving)]),
        // A disk is lost: the number is taken out, and the empty node let in anew.
        2 => VecDeque::from([Wish::Renewed(lost), Wish::Leaves(lost), Wish::Joins(lost)]),
        _ => VecDeque::from([
            Wish::Joins(nodes),
            Wish::Leaves(leaving),
            Wish::Renewed(leaving),
            Wish::Joins(leaving),
        ]),
    }
}

fn is_met(wish: Wish, status: &LogStatus) -> bool {
    let of = |node: usize| status.members.iter().find(|one| one.member.node == node as u64 + 1);
    !status.joint
        && match wish {
            Wish::Joins(node) => of(node).is_some_and(|member| member.voter),
            Wish::Leaves(node) => of(node).is_none(),
            // The run itself sees to it.
            Wish::Renewed(_) => false,
        }
}

/// While this node lives: as its leader, goes after what is wished.
pub(crate) async fn pursue(log: Log<Journal>, seen: Seen) {
    loop {
        tokio::time::sleep(PAUSE).await;
        if !log.leadership().borrow().leads_here {
            continue;
        }
        let Some(wish) = seen.lock().expect("no holder panics").wishes.front().copied() else {
            continue;
        };
        if !is_met(wish, &log.status()) {
            // What is refused now is tried again; what is unknown is seen in the status.
            drop(tokio::time::timeout(PATIENCE, attempt(&log, wish)).await);
            continue;
        }
        let proof = log.propose(Bytes::from(format!("met {wish:?} {:?}", log.status().last_index)));
        if matches!(tokio::time::timeout(PATIENCE, proof).await, Ok(Ok(_))) {
            let mut seen = seen.lock().expect("no holder panics");
            if seen.wishes.front() == Some(&wish) && is_met(wish, &log.status()) {
                seen.wishes.pop_front();
                seen.met.push(wish);
            }
        }
    }
}

async fn attempt(log: &Log<Journal>, wish: Wish) {
    let status = log.status();
    let is_member =
        |node: usize| status.members.iter().any(|one| one.member.node == node as u64 + 1);
    match wish {
        Wish::Joins(node) if is_member(node) => drop(log.promote(node as u64 + 1).await),
        Wish::Joins(node) => {
            drop(log.add_learner(node as u64 + 1, &format!("{}:{PORT}", name(node))).await);
        }
        Wish::Leaves(node) if status.node == node as u64 + 1 => {
            let heir =
                status.members.iter().find(|one| one.voter && one.member.node != status.node);
            if let Some(heir) = heir {
                drop(log.hand_over(heir.member.node).await);
            }
        }
        Wish::Leaves(node) => drop(log.remove(node as u64 + 1).await),
        Wish::Renewed(_) => {}
    }
}
