//! What a campaign must have seen, so that no clean result is an empty one: faults, statuses, verdicts.

use std::collections::BTreeMap;

macro_rules! happenings {
    ($($variant:ident = $name:literal,)*) => {
        /// A fault that was installed, or a state that was reached.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "the name says it, and the reference page explains it")]
        pub enum Happening { $($variant,)* }

        impl Happening {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

happenings! {
    MessageLost = "message_lost",
    MessageDuplicated = "message_duplicated",
    MessageStale = "message_stale",
    MessageBlocked = "message_blocked",
    PartitionTwoWay = "partition_two_way",
    PartitionOneWay = "partition_one_way",
    LeaderIsolated = "leader_isolated",
    NodeCrashed = "node_crashed",
    NodePaused = "node_paused",
    RestartFromSnapshot = "restart_from_snapshot",
    RestartFromNothing = "restart_from_nothing",
    SnapshotInstalled = "snapshot_installed",
    Election = "election",
    LeadershipMoved = "leadership_moved",
    ProposalCommittedLate = "proposal_committed_late",
    ProposalLost = "proposal_lost",
    ProposalByDeposed = "proposal_by_deposed",
    CallByDeposed = "call_by_deposed",
    OutcomeUnknown = "outcome_unknown",
    ClockJumped = "clock_jumped",
    AgentCrashedBeforeCommit = "agent_crashed_before_commit",
    AgentCrashedAfterCommit = "agent_crashed_after_commit",
    LocalTransactionFailed = "local_transaction_failed",
    ExecutedSaidTimeout = "executed_said_timeout",
    SaidWorking = "said_working",
    RefusedSecondPhase = "refused_second_phase",
    CallTimedOut = "call_timed_out",
    GivenUp = "given_up",
    Expired = "expired",
    ClientVanished = "client_vanished",
    ClientTwin = "client_twin",
    ClientResubmitted = "client_resubmitted",
    ClientOtherContent = "client_other_content",
    OtherContentRefused = "other_content_refused",
    ClientLooks = "client_looks",
    Looked = "looked",
    ClientRollBack = "client_roll_back",
    ClientToldUnknown = "client_told_unknown",
    OperatorActed = "operator_acted",
    OperatorMarkedDone = "operator_marked_done",
    OperatorMarkedRefused = "operator_marked_refused",
    OperatorAbandoned = "operator_abandoned",
    AbandonedSettled = "abandoned_settled",
    SecondPersonRefused = "second_person_refused",
    RulesApplied = "rules_applied",
    RulesRefused = "rules_refused",
    RouterReadRules = "router_read_rules",
    RouterReadOlderRules = "router_read_older_rules",
    AuditNoted = "audit_noted",
    AuditExported = "audit_exported",
    Nested = "nested",
    OperatorRetry = "operator_retry",
    OperatorMended = "operator_mended",
    OneShard = "one_shard",
    CrossShard = "cross_shard",
    Enlisted = "enlisted",
    TriedByCaller = "tried_by_caller",
    PartialCapture = "partial_capture",
    RouterCrashed = "router_crashed",
    RouterStalled = "router_stalled",
    RowLocked = "row_locked",
    OpenLost = "open_lost",
    OnePhase = "one_phase",
    Prepared = "prepared",
    PrepareFailed = "prepare_failed",
    Fenced = "fenced",
    Swept = "swept",
    EndedByAgent = "ended_by_agent",
    OutboxWritten = "outbox_written",
    OutboxRolledBack = "outbox_rolled_back",
    OutboxSubmittedAgain = "outbox_submitted_again",
    OutboxPublished = "outbox_published",
    RelayCrashed = "relay_crashed",
    Pivot = "pivot",
    PivotReached = "pivot_reached",
    ForwardRecovery = "forward_recovery",
    PartialOrder = "partial_order",
    VerdictProceed = "verdict_proceed",
    VerdictRepeat = "verdict_repeat",
    VerdictEmpty = "verdict_empty",
    VerdictLate = "verdict_late",
    RefusedFunds = "refused_funds",
    RefusedClosed = "refused_closed",
    StatusActive = "status_active",
    StatusTrying = "status_trying",
    StatusRunning = "status_running",
    StatusCommitting = "status_committing",
    StatusRollingBack = "status_rolling_back",
    StatusCompensating = "status_compensating",
    StatusCommitted = "status_committed",
    StatusRolledBack = "status_rolled_back",
    StatusNeedsAttention = "status_needs_attention",
    DecisionTold = "decision_told",
}

/// How often each happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<Happening, u64>);

impl Counts {
    pub(crate) fn count(&mut self, happening: Happening) {
        *self.0.entry(happening).or_default() += 1;
    }

    /// How often `happening` happened.
    #[must_use]
    pub fn of(&self, happening: Happening) -> u64 {
        self.0.get(&happening).copied().unwrap_or(0)
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (&happening, count) in &other.0 {
            *self.0.entry(happening).or_default() += count;
        }
    }
}
