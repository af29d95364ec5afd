//! Planted bugs: each breaks one promise of the shell, in the model of it, and must be found.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// The dispatcher confirms a branch as soon as its try is done.
    ConfirmBeforeDecision,
    /// A timeout is taken for a refusal.
    UnknownAsRefused,
    /// A timeout is taken for success.
    UnknownAsDone,
    /// A compensation is reported as done without a call.
    CompensationLost,
    /// A branch whose try has no answer is reported as cancelled without a call.
    CancelSkipped,
    /// The pivot is called before the log says that it is reached.
    PivotUnrecorded,
    /// The leader rolls back by its own clock, without asking the log's.
    ExpiresByOwnClock,
    /// The caller hears the decision when its report is proposed, not when it is applied.
    DecisionToldEarly,
    /// A proposal with an unknown outcome is told to the caller as rolled back.
    UnknownToldAsFailure,
    /// A begin is acknowledged before its entry is in the log.
    BeginAcknowledgedEarly,
    /// A known gid with other content is answered as a repeat.
    OtherContentAccepted,
    /// A deposed leader carries out its own entries, which its term no longer carries.
    OldTermApplied,
    /// A restart skips the first entry behind the snapshot.
    ReplaySkipsOne,
    /// A snapshot leaves the finished transactions out.
    SnapshotDropsFinished,
    /// The barrier's rows are gone when the agent restarts.
    BarrierForgotten,
    /// A late try is carried out.
    LateTryAccepted,
    /// The barrier's row is committed, the effect is not.
    RowBeforeEffect,
    /// The effect is committed, the barrier's row is not.
    EffectBeforeRow,
    /// The agent answers before its local transaction is committed.
    AnswerBeforeCommit,
    /// A cancel captures the hold instead of letting it go.
    ReleaseCaptures,
    /// A new leader does not ask what is due.
    DueNotAsked,
    /// A call without an answer is never made again.
    RetryForgotten,
    /// Nobody looks at deadlines.
    ExpiryForgotten,
    /// A confirm is reported as done without a call.
    ConfirmLost,
    /// What was carried out is carried out again when it is asked for again.
    RepeatCarriedOut,
    /// A cancel before its try leaves no row.
    EmptyCancelUnrecorded,
    /// The dispatcher cancels a branch as soon as it refuses, before the log has decided.
    CancelBeforeDecision,
    /// *Working* is taken for done.
    WorkingAsDone,
    /// A late try is turned away and answered as done.
    LateAsDone,
    /// Each posting is written twice.
    PostingWrittenTwice,
    /// A compensation is answered as done and undoes nothing.
    CompensationEmpty,
    /// A snapshot says that it stands one entry before where it stands.
    SnapshotCountsShort,
    /// An answer is taken for that of the transaction's first branch.
    AnswerToAnotherBranch,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: [Self; 33] = [
        Self::ConfirmBeforeDecision,
        Self::UnknownAsRefused,
        Self::UnknownAsDone,
        Self::CompensationLost,
        Self::CancelSkipped,
        Self::PivotUnrecorded,
        Self::ExpiresByOwnClock,
        Self::DecisionToldEarly,
        Self::UnknownToldAsFailure,
        Self::BeginAcknowledgedEarly,
        Self::OtherContentAccepted,
        Self::OldTermApplied,
        Self::ReplaySkipsOne,
        Self::SnapshotDropsFinished,
        Self::BarrierForgotten,
        Self::LateTryAccepted,
        Self::RowBeforeEffect,
        Self::EffectBeforeRow,
        Self::AnswerBeforeCommit,
        Self::ReleaseCaptures,
        Self::DueNotAsked,
        Self::RetryForgotten,
        Self::ExpiryForgotten,
        Self::ConfirmLost,
        Self::RepeatCarriedOut,
        Self::EmptyCancelUnrecorded,
        Self::CancelBeforeDecision,
        Self::WorkingAsDone,
        Self::LateAsDone,
        Self::PostingWrittenTwice,
        Self::CompensationEmpty,
        Self::SnapshotCountsShort,
        Self::AnswerToAnotherBranch,
    ];

    /// Its name, as `--mutant` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfirmBeforeDecision => "confirm-before-decision",
            Self::UnknownAsRefused => "unknown-as-refused",
            Self::UnknownAsDone => "unknown-as-done",
            Self::CompensationLost => "compensation-lost",
            Self::CancelSkipped => "cancel-skipped",
            Self::PivotUnrecorded => "pivot-unrecorded",
            Self::ExpiresByOwnClock => "expires-by-own-clock",
            Self::DecisionToldEarly => "decision-told-early",
            Self::UnknownToldAsFailure => "unknown-told-as-failure",
            Self::BeginAcknowledgedEarly => "begin-acknowledged-early",
            Self::OtherContentAccepted => "other-content-accepted",
            Self::OldTermApplied => "old-term-applied",
            Self::ReplaySkipsOne => "replay-skips-one",
            Self::SnapshotDropsFinished => "snapshot-drops-finished",
            Self::BarrierForgotten => "barrier-forgotten",
            Self::LateTryAccepted => "late-try-accepted",
            Self::RowBeforeEffect => "row-before-effect",
            Self::EffectBeforeRow => "effect-before-row",
            Self::AnswerBeforeCommit => "answer-before-commit",
            Self::ReleaseCaptures => "release-captures",
            Self::DueNotAsked => "due-not-asked",
            Self::RetryForgotten => "retry-forgotten",
            Self::ExpiryForgotten => "expiry-forgotten",
            Self::ConfirmLost => "confirm-lost",
            Self::RepeatCarriedOut => "repeat-carried-out",
            Self::EmptyCancelUnrecorded => "empty-cancel-unrecorded",
            Self::CancelBeforeDecision => "cancel-before-decision",
            Self::WorkingAsDone => "working-as-done",
            Self::LateAsDone => "late-as-done",
            Self::PostingWrittenTwice => "posting-written-twice",
            Self::CompensationEmpty => "compensation-empty",
            Self::SnapshotCountsShort => "snapshot-counts-short",
            Self::AnswerToAnotherBranch => "answer-to-another-branch",
        }
    }

    /// The mutant of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name)
    }
}
