//! Planted bugs: each breaks one promise of the shell, in the model of it, and must be found.

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant { $($(#[$doc])* $variant,)* }

        impl Mutant {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name, as `--mutant` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

mutants! {
    /// The dispatcher confirms a branch as soon as its try is done.
    ConfirmBeforeDecision = "confirm-before-decision",
    /// A timeout is taken for a refusal.
    UnknownAsRefused = "unknown-as-refused",
    /// A timeout is taken for success.
    UnknownAsDone = "unknown-as-done",
    /// A compensation is reported as done without a call.
    CompensationLost = "compensation-lost",
    /// A branch whose try has no answer is reported as cancelled without a call.
    CancelSkipped = "cancel-skipped",
    /// The pivot is called before the log says that it is reached.
    PivotUnrecorded = "pivot-unrecorded",
    /// The leader rolls back by its own clock, without asking the log's.
    ExpiresByOwnClock = "expires-by-own-clock",
    /// The caller hears the decision when its report is proposed, not when it is applied.
    DecisionToldEarly = "decision-told-early",
    /// A proposal with an unknown outcome is told to the caller as rolled back.
    UnknownToldAsFailure = "unknown-told-as-failure",
    /// A begin is acknowledged before its entry is in the log.
    BeginAcknowledgedEarly = "begin-acknowledged-early",
    /// A known gid with other content is answered as a repeat.
    OtherContentAccepted = "other-content-accepted",
    /// A deposed leader carries out its own entries, which its term no longer carries.
    OldTermApplied = "old-term-applied",
    /// A restart skips the first entry behind the snapshot.
    ReplaySkipsOne = "replay-skips-one",
    /// A snapshot leaves the finished transactions out.
    SnapshotDropsFinished = "snapshot-drops-finished",
    /// The barrier's rows are gone when the agent restarts.
    BarrierForgotten = "barrier-forgotten",
    /// A late try is carried out.
    LateTryAccepted = "late-try-accepted",
    /// The barrier's row is committed, the effect is not.
    RowBeforeEffect = "row-before-effect",
    /// The effect is committed, the barrier's row is not.
    EffectBeforeRow = "effect-before-row",
    /// The agent answers before its local transaction is committed.
    AnswerBeforeCommit = "answer-before-commit",
    /// A cancel captures the hold instead of letting it go.
    ReleaseCaptures = "release-captures",
    /// A new leader does not ask what is due.
    DueNotAsked = "due-not-asked",
    /// A call without an answer is never made again.
    RetryForgotten = "retry-forgotten",
    /// Nobody looks at deadlines.
    ExpiryForgotten = "expiry-forgotten",
    /// A confirm is reported as done without a call.
    ConfirmLost = "confirm-lost",
    /// What was carried out is carried out again when it is asked for again.
    RepeatCarriedOut = "repeat-carried-out",
    /// A cancel before its try leaves no row.
    EmptyCancelUnrecorded = "empty-cancel-unrecorded",
    /// The dispatcher cancels a branch as soon as it refuses, before the log has decided.
    CancelBeforeDecision = "cancel-before-decision",
    /// *Working* is taken for done.
    WorkingAsDone = "working-as-done",
    /// A late try is turned away and answered as done.
    LateAsDone = "late-as-done",
    /// Each posting is written twice.
    PostingWrittenTwice = "posting-written-twice",
    /// A compensation is answered as done and undoes nothing.
    CompensationEmpty = "compensation-empty",
    /// A snapshot says that it stands one entry before where it stands.
    SnapshotCountsShort = "snapshot-counts-short",
    /// An answer is taken for that of the transaction's first branch.
    AnswerToAnotherBranch = "answer-to-another-branch",
    /// Who looks is answered by a leader that does not ask whether it still leads.
    LookWithoutQuorum = "look-without-quorum",
    /// People mark a branch done that they have not done.
    MarkedDoneUndone = "marked-done-undone",
    /// A branch that people mark refused is not undone.
    RefusedBelieved = "refused-believed",
    /// A door has an act carried out without writing down who asked for it.
    ActWithoutName = "act-without-name",
    /// A snapshot leaves rules and audit records out.
    SnapshotDropsBooks = "snapshot-drops-books",
    /// Whoever exports audit records goes on behind the newest one instead of the last that it has.
    ExportSkips = "export-skips",
    /// A router takes the rules of whichever node it asks, older ones too.
    RulesGoBack = "rules-go-back",
    /// A proposal of new rules is stamped with the epoch that is there, not the one that its author has read.
    RulesReadBlindly = "rules-read-blindly",
    /// A confirm that carries an amount captures the whole hold.
    CaptureIgnored = "capture-ignored",
    /// A door has the approval of whoever proposed carried out under another name.
    OnePersonTwice = "one-person-twice",
    /// A router commits each of two writers in one phase.
    XaOnePhaseWithTwoWriters = "xa-one-phase-with-two-writers",
    /// A router tells its client that it is committed when it submits.
    XaToldBeforeDecision = "xa-told-before-decision",
    /// Whoever sweeps rolls back what is old, without asking what is decided.
    XaSweeperWithoutProof = "xa-sweeper-without-proof",
    /// A router that hears no answer to its submit rolls back, without a fence.
    XaUnknownAsRolledBack = "xa-unknown-as-rolled-back",
    /// A relay reads messages whose local transactions have not ended.
    PublishedBeforeCommit = "published-before-commit",
    /// A relay deletes a message's row and then submits it.
    MarkedBeforeSubmitted = "marked-before-submitted",
    /// A relay takes each message for a lane of its own.
    OrderIgnored = "order-ignored",
}

impl Mutant {
    /// The mutant of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}
