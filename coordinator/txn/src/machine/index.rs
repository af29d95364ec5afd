//! The index: who owes calls, whose deadline comes, how many are where. Follows from the transactions and is never replicated.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use crate::{Gid, GlobalTransaction, Status, Timestamp};

/// Kept by every change, so that a question costs by its answer.
#[derive(Debug, Default)]
pub(super) struct Index {
    owing: BTreeSet<Gid>,
    deadlines: BTreeSet<(Timestamp, Gid)>,
    counts: BTreeMap<Status, usize>,
}

/// What the index holds of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    status: Status,
    deadline: Option<Timestamp>,
    owing: bool,
}

impl Standing {
    /// `owing`: whether the rules have calls for it.
    pub(super) fn of(transaction: &GlobalTransaction, owing: bool) -> Self {
        let undecided = match transaction.status {
            Status::Active | Status::Trying | Status::Running => true,
            Status::Committing
            | Status::RollingBack
            | Status::Compensating
            | Status::Committed
            | Status::RolledBack
            | Status::NeedsAttention => false,
        };
        let ends = undecided && transaction.mode.rules().heeds_deadline(transaction);
        let deadline = ends.then_some(transaction.deadline);
        Self { status: transaction.status, deadline, owing }
    }

    /// When it ends by itself, if it does.
    pub(super) fn deadline(self) -> Option<Timestamp> {
        self.deadline
    }
}

impl Index {
    /// Of these, as if each had been told of by [`Self::update`]; put in place together.
    pub(super) fn of(standings: Vec<(Gid, Standing)>) -> Self {
        let mut counts = BTreeMap::new();
        for (_, standing) in &standings {
            *counts.entry(standing.status).or_default() += 1;
        }
        let deadlines = standings
            .iter()
            .filter_map(|(gid, standing)| standing.deadline.map(|at| (at, gid.clone())));
        let deadlines = deadlines.collect();
        let owing = standings.into_iter().filter(|(_, standing)| standing.owing);
        Self { deadlines, owing: owing.map(|(gid, _)| gid).collect(), counts }
    }

    /// Replaces what it holds of `gid`.
    pub(super) fn update(&mut self, gid: &Gid, before: Option<Standing>, after: Option<Standing>) {
        if before == after {
            return;
        }
        let deadline = |standing: Option<Standing>| standing.and_then(|standing| standing.deadline);
        if deadline(before) != deadline(after) {
            if let Some(at) = deadline(before) {
                self.deadlines.remove(&(at, gid.clone()));
            }
            if let Some(at) = deadline(after) {
                self.deadlines.insert((at, gid.clone()));
            }
        }
        let owes = |standing: Option<Standing>| standing.is_some_and(|standing| standing.owing);
        if owes(before) != owes(after) {
            if owes(after) {
                self.owing.insert(gid.clone());
            } else {
                self.owing.remove(gid);
            }
        }
        if let Some(Standing { status, .. }) = before {
            let count = self.counts.get_mut(&status).expect("it was counted where it was");
            *count -= 1;
        }
        if let Some(Standing { status, .. }) = after {
            *self.counts.entry(status).or_default() += 1;
        }
    }

    /// What `gid` was last said to be.
    pub(super) fn is_owing(&self, transaction: &GlobalTransaction) -> bool {
        self.owing.contains(&transaction.gid)
    }

    pub(super) fn owing<'a>(
        &'a self,
        after: Option<&Gid>,
    ) -> impl Iterator<Item = &'a Gid> + use<'a> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.owing.range((start, Bound::Unbounded))
    }

    /// Earliest first.
    pub(super) fn expired(&self, now: Timestamp) -> impl Iterator<Item = &Gid> {
        self.deadlines.iter().take_while(move |(at, _)| *at <= now).map(|(_, gid)| gid)
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn census(&self) -> BTreeMap<Status, usize> {
        let counted = self.counts.iter().filter(|(_, count)| **count > 0);
        counted.map(|(status, count)| (*status, *count)).collect()
    }
}
