//! What a node counts and measures. Names are in docs/reference/metrics; labels are closed sets, never a gid.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{dispatcher::Held, proposer::Kind};
use holdfast_txn::{GlobalTransaction, Mode, Moved, Op, Status};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

/// Handles of every series, made when the node starts: the recorder must be installed before.
pub(crate) struct Meters {
    leads: AtomicBool,
    group: Option<u32>,
    proposals_blocking: Counter,
    proposals_lazy: Counter,
    pub(crate) overloaded: Counter,
    pub(crate) commands_per_entry: Histogram,
    pub(crate) queue: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) waiters: Gauge,
    pub(crate) retries: Counter,
    pub(crate) calls_in_flight: Gauge,
    pub(crate) calls_parked: Gauge,
    begun: [Counter; MODES.len()],
    finished: [[Counter; 3]; MODES.len()],
    decision_seconds: [Histogram; MODES.len()],
    calls: [[Counter; 4]; OPS.len()],
    held: [Counter; Held::ALL.len()],
    breakers_opened: [Counter; 2],
    open: [Gauge; 9],
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Done,
    Refused,
    Working,
    Unknown,
}

/// What came of calls, counted by whoever hears of many at once: a counter that others read costs as much as the rest of an answer.
#[derive(Debug, Default)]
pub(crate) struct Tally([[u64; HEARD.len()]; OPS.len()]);

impl Tally {
    pub(crate) fn add(&mut self, op: Op, heard: Heard) {
        let op = OPS.iter().position(|one| *one == op).unwrap_or(0);
        let heard = HEARD.iter().position(|one| *one == heard).unwrap_or(0);
        self.0[op][heard] += 1;
    }
}

const MODES: [Mode; 3] = Mode::ALL;
const ENDS: [Status; 3] = [Status::Committed, Status::RolledBack, Status::NeedsAttention];
const OPS: [Op; 8] = Op::ALL;
const HEARD: [Heard; 4] = [Heard::Done, Heard::Refused, Heard::Working, Heard::Unknown];

impl Heard {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Working => "working",
            Self::Unknown => "unknown",
        }
    }
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Active => "active",
        Status::Trying => "trying",
        Status::Running => "running",
        Status::Committing => "committing",
        Status::RollingBack => "rolling_back",
        Status::Compensating => "compensating",
        Status::Committed => "committed",
        Status::RolledBack => "rolled_back",
        Status::NeedsAttention => "needs_attention",
    }
}

impl Meters {
    /// Of a node with one group.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::of_group(None)
    }

    /// Of one group of a node. Where a node has more than one, each measures its own, with the label `group`; what is counted is counted
    /// together.
    pub(crate) fn of_group(group: Option<u32>) -> Self {
        describe();
        let gauge = |name: &'static str| match group {
            None => gauge!(name),
            Some(group) => gauge!(name, "group" => group.to_string()),
        };
        Self {
            leads: AtomicBool::new(false),
            group,
            proposals_blocking: counter!("holdfast_proposals_total", "kind" => "blocking"),
            proposals_lazy: counter!("holdfast_proposals_total", "kind" => "lazy"),
            overloaded: counter!("holdfast_proposals_overloaded_total"),
            commands_per_entry: histogram!("holdfast_entry_commands"),
            queue: gauge("holdfast_proposer_queue_commands"),
            sessions: gauge!("holdfast_sessions"),
            waiters: gauge("holdfast_waiters"),
            retries: counter!("holdfast_call_retries_total"),
            calls_in_flight: gauge("holdfast_calls_in_flight"),
            calls_parked: gauge("holdfast_calls_parked"),
            begun: MODES
                .map(|mode| counter!("holdfast_transactions_begun_total", "mode" => mode.as_str())),
            finished: MODES.map(|mode| {
                ENDS.map(|end| {
                    counter!("holdfast_transactions_finished_total",
                        "mode" => mode.as_str(), "status" => status_word(end))
                })
            }),
            decision_seconds: MODES
                .map(|mode| histogram!("holdfast_decision_seconds", "mode" => mode.as_str())),
            calls: OPS.map(|op| {
                HEARD.map(|heard| {
                    counter!("holdfast_calls_total", "op" => op.as_str(), "verdict" => heard.word())
                })
            }),
            held: Held::ALL
                .map(|held| counter!("holdfast_calls_held_total", "reason" => held.word())),
            breakers_opened: ["service", "instance"]
                .map(|whose| counter!("holdfast_breakers_opened_total", "of" => whose)),
            open: Status::ALL.map(|status| {
                let (name, status) = ("holdfast_transactions_open", status_word(status));
                match group {
                    None => gauge!(name, "status" => status),
                    Some(group) => {
                        gauge!(name, "status" => status, "group" => group.to_string())
                    }
                }
            }),
        }
    }

    /// Whether this node leads: only a leader counts moves, so that the cluster's sum counts each once.
    pub(crate) fn lead(&self, leads: bool) {
        self.leads.store(leads, Ordering::Relaxed);
    }

    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    pub(crate) fn moved(&self, transaction: &GlobalTransaction, moved: Moved) {
        if !self.leads() {
            return;
        }
        let mode = MODES.iter().position(|mode| *mode == transaction.mode).unwrap_or(0);
        // A fence is no begin: it is over at once.
        if moved.from.is_none() && !moved.to.is_final() {
            self.begun[mode].increment(1);
        }
        if let Some(end) = ENDS.iter().position(|end| *end == moved.to) {
            self.finished[mode][end].increment(1);
        }
        let decided_now = transaction.decided_at.filter(|_| is_decision(moved));
        if let Some(decided_at) = decided_now {
            let ms = decided_at.0.saturating_sub(transaction.begun_at.0);
            self.decision_seconds[mode].record(ms as f64 / 1_000.0);
        }
    }

    pub(crate) fn proposed(&self, kind: Kind) {
        match kind {
            Kind::Blocking => self.proposals_blocking.increment(1),
            Kind::Lazy => self.proposals_lazy.increment(1),
        }
    }

    pub(crate) fn heard(&self, heard: &Tally) {
        for (calls, counts) in self.calls.iter().zip(&heard.0) {
            let counted = calls.iter().zip(counts).filter(|(_, count)| **count > 0);
            counted.for_each(|(calls, count)| calls.increment(*count));
        }
    }

    /// A call could not be made at once.
    pub(crate) fn held(&self, held: Held) {
        self.held[held as usize].increment(1);
    }

    /// The breaker of a service, of an instance, or of both opened.
    pub(crate) fn breakers_opened(&self, service: bool, instance: bool) {
        let [of_services, of_instances] = &self.breakers_opened;
        of_services.increment(u64::from(service));
        of_instances.increment(u64::from(instance));
    }

    /// The group that is measured; `None`: the node's only one.
    pub(crate) fn group(&self) -> Option<u32> {
        self.group
    }

    pub(crate) fn census(&self, by_status: &std::collections::BTreeMap<Status, usize>) {
        for (status, gauge) in Status::ALL.iter().zip(&self.open) {
            if !status.is_final() {
                gauge.set(by_status.get(status).copied().unwrap_or(0) as f64);
            }
        }
    }
}

/// Whether this move is the one that decided: it comes from an undecided status, or begins with the decision.
fn is_decision(moved: Moved) -> bool {
    let undecided =
        |status: Status| matches!(status, Status::Active | Status::Trying | Status::Running);
    moved.from.is_none_or(undecided) && !undecided(moved.to)
}

fn describe() {
    describe_counter!("holdfast_proposals_total", "Commands proposed, by whether somebody waits.");
    describe_counter!("holdfast_proposals_overloaded_total", "Commands turned away: queue full.");
    describe_histogram!("holdfast_entry_commands", "Commands in one log entry.");
    describe_gauge!("holdfast_proposer_queue_commands", "Commands waiting for an entry.");
    describe_gauge!("holdfast_sessions", "Agent sessions on this node.");
    describe_gauge!("holdfast_waiters", "Callers waiting for a decision or an end.");
    describe_counter!("holdfast_call_retries_total", "Branch calls that were asked again.");
    describe_gauge!("holdfast_calls_in_flight", "Branch calls without an answer yet.");
    describe_gauge!("holdfast_calls_parked", "Branch calls waiting for a session or its credit.");
    describe_counter!("holdfast_transactions_begun_total", "Transactions begun, by mode.");
    describe_counter!("holdfast_transactions_finished_total", "Ends reached, by mode and status.");
    describe_histogram!(
        "holdfast_decision_seconds",
        Unit::Seconds,
        "From begin to decision, by the log's time."
    );
    describe_counter!("holdfast_calls_total", "Branch calls, by operation and verdict.");
    describe_counter!(
        "holdfast_calls_held_total",
        "Branch calls that could not be made at once, by what they waited for."
    );
    describe_counter!("holdfast_breakers_opened_total", "Breakers that opened, by whose they are.");
    describe_gauge!(
        "holdfast_service_breaker",
        "Breaker of a service: 0 closed, 1 half open, 2 open."
    );
    describe_gauge!(
        "holdfast_service_instances_broken",
        "Instances of a service whose own breaker is not closed."
    );
    describe_gauge!("holdfast_transactions_open", "Transactions in each status that is no end.");
}
