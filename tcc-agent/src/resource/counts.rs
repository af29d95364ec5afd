//! What an executor has done, for its owner and for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_branch::Verdict;

use crate::participant::{Answer, Call};

/// What an executor has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Local transactions that were committed.
    pub local_transactions: u64,
    /// Calls that they answered.
    pub branches: u64,
    /// Calls that had ended before and were answered from their row.
    pub repeats: u64,
    /// Undos of what never took effect.
    pub empty_cancels: u64,
    /// Tries and actions behind their undo.
    pub late_tries: u64,
    /// Calls that the participant refused.
    pub refusals: u64,
    /// Calls that no coordinator should make.
    pub disorders: u64,
    /// Batches that were carried out again one call at a time.
    pub splits: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    local_transactions: AtomicU64,
    branches: AtomicU64,
    repeats: AtomicU64,
    empty_cancels: AtomicU64,
    late_tries: AtomicU64,
    refusals: AtomicU64,
    disorders: AtomicU64,
    splits: AtomicU64,
}

/// Adds to a counter here and to the metric of that name.
fn count(counter: &AtomicU64, metric: &'static str, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
        metrics::counter!(metric).increment(by);
    }
}

impl Counters {
    pub(super) fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            local_transactions: read(&self.local_transactions),
            branches: read(&self.branches),
            repeats: read(&self.repeats),
            empty_cancels: read(&self.empty_cancels),
            late_tries: read(&self.late_tries),
            refusals: read(&self.refusals),
            disorders: read(&self.disorders),
            splits: read(&self.splits),
        }
    }

    /// A batch is carried out again one call at a time.
    pub(super) fn split(&self) {
        count(&self.splits, "holdfast_agent_splits_total", 1);
    }

    /// A local transaction with these calls was committed.
    pub(super) fn add(&self, calls: &[Call], verdicts: &[Verdict], answers: &[Answer]) {
        let of = |wanted: fn(&Verdict) -> bool| {
            verdicts.iter().filter(|verdict| wanted(verdict)).count() as u64
        };
        let branches = calls.len() as u64;
        count(&self.local_transactions, "holdfast_agent_local_transactions_total", 1);
        count(&self.branches, "holdfast_agent_branches_total", branches);
        metrics::histogram!("holdfast_agent_branches_per_local_transaction")
            .record(u32::try_from(branches).unwrap_or(u32::MAX));
        let repeats = of(|verdict| matches!(verdict, Verdict::Repeat(_)));
        count(&self.repeats, "holdfast_agent_repeats_total", repeats);
        let empty = of(|verdict| matches!(verdict, Verdict::Empty));
        count(&self.empty_cancels, "holdfast_agent_empty_cancels_total", empty);
        let late = of(|verdict| matches!(verdict, Verdict::Late));
        count(&self.late_tries, "holdfast_agent_late_tries_total", late);
        let disorders = of(|verdict| matches!(verdict, Verdict::Disorder(_)));
        count(&self.disorders, "holdfast_agent_disorders_total", disorders);
        let refused = verdicts.iter().zip(answers).filter(|(verdict, answer)| {
            matches!((verdict, answer), (Verdict::Proceed, Answer::Refused { .. }))
        });
        count(&self.refusals, "holdfast_agent_refusals_total", refused.count() as u64);
        for (call, verdict) in calls.iter().zip(verdicts) {
            if let Verdict::Disorder(disorder) = verdict {
                let code = disorder.code();
                tracing::error!(gid = %call.gid, branch = call.branch, op = %call.op, code, "{disorder}");
            }
        }
    }
}
