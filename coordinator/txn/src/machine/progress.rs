//! How one transaction moves: the only writer of statuses, branch states and decisions.

use bytes::Bytes;

use crate::{
    BranchState, Captures, Decision, GlobalTransaction, Next, Status, Timestamp, limit,
    mode::{Heard, View},
};

impl GlobalTransaction {
    /// Goes as far as the rules let it, beginning with `next`; `reason` belongs to the first move. Answers whether calls
    /// are owed then. Ends: the moves have no circle without a command in it.
    pub(super) fn settle(
        &mut self,
        mut next: Next,
        clock: Timestamp,
        mut reason: Option<String>,
    ) -> bool {
        loop {
            match next {
                Next::Become(status, decision) => {
                    self.become_status(status, decision, clock, reason.take());
                }
                Next::Record => {
                    assert!(!self.pivot_reached, "{}: a pivot is reached once", self.gid);
                    self.pivot_reached = true;
                }
                Next::Call(_) => return true,
                Next::Wait => return false,
            }
            next = View::of(self).next();
        }
    }

    /// Writes down what was heard; the view it comes from was taken of this transaction as it is.
    pub(super) fn record(&mut self, heard: Heard) {
        for (index, state) in heard.states {
            self.branch_becomes(index, state);
        }
        for (index, mut words) in heard.words {
            cut(&mut words.code);
            cut(&mut words.message);
            self.branches[index].refusal = Some(Box::new(words));
        }
    }

    pub(super) fn branch_becomes(&mut self, index: usize, state: BranchState) {
        let before = self.branches[index].state;
        assert!(
            before.may_become(state),
            "{}: branch {} is {} and cannot become {}",
            self.gid,
            index + 1,
            before.as_str(),
            state.as_str(),
        );
        self.branches[index].state = state;
    }

    pub(super) fn become_status(
        &mut self,
        status: Status,
        decision: Option<Decision>,
        clock: Timestamp,
        reason: Option<String>,
    ) {
        assert!(
            self.status.may_become(status),
            "{}: {} cannot become {status}",
            self.gid,
            self.status
        );
        if let Some(decision) = decision {
            assert!(
                self.decision.is_none_or(|before| before == decision),
                "{}: a decision never changes",
                self.gid
            );
            if self.decision.is_none() {
                self.decision = Some(decision);
                self.decided_at = Some(clock);
            }
        }
        if let Some(reason) = reason {
            self.add_reason(reason);
        }
        if status == Status::NeedsAttention {
            self.interrupted = Some(self.status);
        } else {
            self.interrupted = None;
            // Refusals that waited for people are answered by this move: these branches are asked again, or undone.
            for branch in &mut self.branches {
                if branch.state.may_hold_refusal() {
                    branch.refusal = None;
                }
            }
        }
        self.status = status;
        if status.is_final() {
            self.finished_at = Some(clock);
            self.captures = Captures::default();
            for branch in &mut self.branches {
                // A new one: clearing would keep the bytes alive.
                branch.spec.payload = Bytes::new();
            }
        }
    }

    /// Newest first, so that cutting loses the oldest.
    fn add_reason(&mut self, mut reason: String) {
        if let Some(before) = &self.reason {
            reason.push_str("; ");
            reason.push_str(before);
        }
        cut(&mut reason);
        self.reason = Some(reason);
    }
}

/// Cuts words for people to the length that is kept, at a character.
pub(crate) fn cut(words: &mut String) {
    words.truncate(words.floor_char_boundary(limit::REASON_BYTES_MAX));
}
