//! Which branches may be called: forward, when all that they wait for are done; backward, when all behind them are undone.

use crate::{BranchId, BranchSpec, Order};

use super::View;

/// The branches that the one at `index` waits for, as positions.
pub fn waits_for(spec: &BranchSpec, index: usize, order: Order) -> impl Iterator<Item = usize> {
    let named = spec.after.as_deref().unwrap_or_default();
    let implied = match order {
        Order::Sequential if spec.after.is_none() => index.checked_sub(1),
        Order::Sequential | Order::Concurrent => None,
    };
    named.iter().filter_map(|id| (id.0 as usize).checked_sub(1)).chain(implied)
}

/// Whether everything that the branch at `index` waits for is done.
#[must_use]
pub fn is_ready(view: &View<'_>, index: usize) -> bool {
    let transaction = view.transaction();
    waits_for(&transaction.branches[index].spec, index, transaction.options.order)
        .all(|before| view.is_done(before))
}

/// Marks every branch that comes behind one of `marked`, at any distance.
#[must_use]
pub fn behind(view: &View<'_>, marked: impl Fn(usize) -> bool) -> Vec<bool> {
    let transaction = view.transaction();
    let count = transaction.branches.len();
    let mut behind = vec![false; count];
    // Branches mostly name earlier ones, so one pass upward settles nearly every order; the pass downward is for
    // orders that are declared from the end. Each round marks at least one branch, so there are at most `count`.
    loop {
        let mut settled = true;
        for index in (0..count).chain((0..count).rev()) {
            if behind[index] {
                continue;
            }
            let spec = &transaction.branches[index].spec;
            if waits_for(spec, index, transaction.options.order)
                .any(|before| marked(before) || behind[before])
            {
                behind[index] = true;
                settled = false;
            }
        }
        if settled {
            return behind;
        }
    }
}

/// Marks those of `remaining` that have none of `remaining` behind them, at any distance: the next to be undone.
#[must_use]
pub fn backward(view: &View<'_>, remaining: &[bool]) -> Vec<bool> {
    let transaction = view.transaction();
    let count = remaining.len();
    // From each remaining branch, walk to all that it waits for: they have something behind them.
    let mut blocked = vec![false; count];
    let mut walk: Vec<usize> = (0..count).filter(|&index| remaining[index]).collect();
    while let Some(index) = walk.pop() {
        let spec = &transaction.branches[index].spec;
        for before in waits_for(spec, index, transaction.options.order) {
            // A remaining one starts its own walk.
            if !blocked[before] && !remaining[before] {
                walk.push(before);
            }
            blocked[before] = true;
        }
    }
    (0..count).map(|index| remaining[index] && !blocked[index]).collect()
}

/// A branch that waits for itself through others, if there is one.
#[must_use]
pub fn find_circle(branches: &[BranchSpec], order: Order) -> Option<BranchId> {
    let count = branches.len();
    let mut placed = vec![false; count];
    loop {
        let mut settled = true;
        for index in (0..count).chain((0..count).rev()) {
            if !placed[index]
                && waits_for(&branches[index], index, order).all(|before| placed[before])
            {
                placed[index] = true;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    // What cannot be placed waits for a circle or is in one. Going back from it, from unplaced to unplaced, must enter
    // the circle within `count` steps.
    let mut index = placed.iter().position(|placed| !placed)?;
    for _ in 0..count {
        index = waits_for(&branches[index], index, order).find(|&before| !placed[before])?;
    }
    u32::try_from(index + 1).ok().map(BranchId)
}
