//! Moves of slots as this router has seen them: which ones statements wait for, and which are settled but not for work that began before.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use holdfast_route::{MoveFate, MoveId, Moving, SourceId, Topology};

/// Versions of the rules that are remembered, so that the fate of a move can be told from them: as many as the coordinators keep.
pub(super) const REMEMBERED_MAX: usize = 8;

/// What is known of moves.
#[derive(Debug)]
pub(super) struct Moves {
    /// The versions of the rules that were in force here, the newest last.
    versions: VecDeque<Arc<Topology>>,
    /// Frozen, or decided and not seen settled.
    awaited: Vec<Arc<Moving>>,
    /// Sources of decided ones that have not been seen without what the move prepared there.
    ends: BTreeSet<(MoveId, SourceId)>,
    /// Settled ones, each with the version as of which that is known here: a snapshot may be older.
    settled: Vec<(Arc<Moving>, u64)>,
}

/// What other rules have made of moves.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// They are decided, as far as was not known before.
    pub(super) decided: Vec<Arc<Moving>>,
    /// They were decided, and rows have other places once more: nobody will say that they are settled.
    pub(super) dropped: Vec<Arc<Moving>>,
}

impl Moves {
    pub(super) fn new(first: &Arc<Topology>) -> Self {
        let mut moves = Self {
            versions: VecDeque::new(),
            awaited: Vec::new(),
            ends: BTreeSet::new(),
            settled: Vec::new(),
        };
        moves.follow(first);
        moves
    }

    /// Other rules are in force. Waited for is the move that is under way by them, and each that is decided and was not seen settled, though they
    /// may say no more of it.
    pub(super) fn follow(&mut self, now: &Arc<Topology>) -> Change {
        if self.versions.len() == REMEMBERED_MAX {
            self.versions.pop_front();
        }
        self.versions.push_back(Arc::clone(now));
        let before = std::mem::take(&mut self.awaited);
        let own = now.moving().cloned().map(Arc::new);
        let others = before.iter().filter(|step| {
            now.moving().is_none_or(|moving| moving.id != step.id) && step.is_done_in(now)
        });
        let others = others.map(|step| Arc::new(step.decided()));
        self.awaited = own.into_iter().chain(others).collect();
        let decided = |steps: &[Arc<Moving>]| {
            let decided = steps.iter().filter(|step| !step.is_frozen());
            decided.cloned().collect::<Vec<_>>()
        };
        let is_among = |step: &Moving, steps: &[Arc<Moving>]| {
            steps.iter().any(|other| other.id == step.id && !other.is_frozen())
        };
        let mut change = Change { decided: decided(&self.awaited), dropped: decided(&before) };
        change.decided.retain(|step| !is_among(step, &before));
        change.dropped.retain(|step| !is_among(step, &self.awaited));
        self.ends.retain(|(id, _)| self.awaited.iter().any(|step| step.id == *id));
        for step in &change.decided {
            let ends = [&step.from, &step.to].map(|end| (step.id.clone(), end.clone()));
            self.ends.extend(ends);
        }
        change
    }

    /// Nothing of this move is prepared at this source any more, as of `version`. The move, if that is so at both by now.
    pub(super) fn ended_at(
        &mut self,
        id: &MoveId,
        source: &SourceId,
        version: u64,
    ) -> Option<Arc<Moving>> {
        let known = self.ends.remove(&(id.clone(), source.clone()));
        if !known || self.ends.iter().any(|(other, _)| other == id) {
            return None;
        }
        let at = self.awaited.iter().position(|step| step.id == *id)?;
        let step = self.awaited.remove(at);
        self.settled.push((Arc::clone(&step), version));
        Some(step)
    }

    /// Everything that is open was planned as of `version` or later. Whether that makes a settled move one that is over.
    pub(super) fn forget(&mut self, version: u64) -> bool {
        let before = self.settled.len();
        self.settled.retain(|(_, since)| *since > version);
        self.settled.len() < before
    }

    /// Those that statements wait for.
    pub(super) fn awaited(&self) -> &[Arc<Moving>] {
        &self.awaited
    }

    /// Those, and behind them the settled ones that are not over.
    pub(super) fn all(&self) -> Vec<Arc<Moving>> {
        self.awaited.iter().chain(self.settled.iter().map(|(step, _)| step)).cloned().collect()
    }

    /// The version as of which all settled ones are; 0 without any.
    pub(super) fn settled_since(&self) -> u64 {
        self.settled.iter().map(|(_, since)| *since).max().unwrap_or(0)
    }

    /// Sources at which something of a decided move may still be prepared.
    pub(super) fn ends(&self) -> &BTreeSet<(MoveId, SourceId)> {
        &self.ends
    }

    /// Whether anything that a move has prepared may be left of what was in force here.
    pub(super) fn are_remembered(&self) -> bool {
        self.versions.iter().any(|version| version.moving().is_some())
    }

    /// What becomes of what a move has prepared, by the versions that were in force here.
    pub(super) fn fate(&self, id: &MoveId) -> MoveFate {
        id.fate(self.versions.iter().map(Arc::as_ref))
    }
}
