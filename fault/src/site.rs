//! The registry of kill points: every place at which a process can be told to die.

macro_rules! sites {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal @ $role:ident,)*) => {
        /// A kill point. The matrix of the chaos tests goes through all of them, so a site that is never reached fails it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Site { $($(#[doc = $doc])+ $variant,)* }

        impl Site {
            /// Every site.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name, as the environment and the matrix say it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whose process reaches it.
            #[must_use]
            pub const fn role(self) -> Role {
                match self { $(Self::$variant => Role::$role,)* }
            }
        }
    };
}

/// The process in which a site lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The coordinator that leads.
    Leader,
    /// Any coordinator.
    Coordinator,
    /// A coordinator that comes back far behind the others.
    Laggard,
    /// The coordinator that leads while a member is replaced.
    Changing,
    /// An agent with its participant, here a bank.
    Agent,
    /// A router.
    Router,
    /// The relay of an outbox.
    Relay,
    /// The command that moves slots.
    Mover,
}

sites! {
    /// A batch of commands is gathered, and not proposed yet.
    ProposerBeforePropose = "proposer-before-propose" @ Leader,
    /// An entry is committed and applied; nobody who waits for it was told.
    ProposerCommittedUntold = "proposer-committed-untold" @ Leader,
    /// An entry is committed, and not applied here yet.
    ReplicaBeforeApply = "replica-before-apply" @ Coordinator,
    /// An entry is applied; neither the dispatcher nor a waiter has heard of it.
    ReplicaAppliedUntold = "replica-applied-untold" @ Coordinator,
    /// A new leader is about to ask what is due.
    DispatcherTakesUp = "dispatcher-takes-up" @ Laggard,
    /// A call is owed, and not made yet.
    DispatcherBeforeCall = "dispatcher-before-call" @ Leader,
    /// Calls are on their way.
    DispatcherCalled = "dispatcher-called" @ Leader,
    /// An answer was heard, and is in the leader's memory alone.
    DispatcherHeard = "dispatcher-heard" @ Leader,
    /// A confirm was heard, of one branch of several.
    DispatcherConfirmHeard = "dispatcher-confirm-heard" @ Leader,
    /// The decision, or the finish, is about to be proposed.
    DispatcherBeforeReport = "dispatcher-before-report" @ Leader,
    /// The decision, or the finish, is applied; nothing that follows from it was done.
    DispatcherReportApplied = "dispatcher-report-applied" @ Leader,
    /// Deadlines have passed, and the log does not know yet.
    DispatcherBeforeExpire = "dispatcher-before-expire" @ Leader,
    /// Entries are gathered for the disk.
    LogBeforeWrite = "log-before-write" @ Coordinator,
    /// They are written, and not synced.
    LogWrittenUnsynced = "log-written-unsynced" @ Coordinator,
    /// They are synced, and nobody was told.
    LogSyncedUntold = "log-synced-untold" @ Coordinator,
    /// A file or a folder is about to be synced.
    DiskBeforeSync = "disk-before-sync" @ Coordinator,
    /// A segment is sealed; the next has no name yet.
    LogSealed = "log-sealed" @ Coordinator,
    /// A purge is on disk; the segments behind it are still there.
    LogPurged = "log-purged" @ Coordinator,
    /// A snapshot is written, and has no lasting name.
    SnapshotUnnamed = "snapshot-unnamed" @ Coordinator,
    /// A snapshot has its name; the one before it is still there.
    SnapshotNamed = "snapshot-named" @ Coordinator,
    /// A snapshot has arrived from the leader, and is not this node's own yet.
    SnapshotReceived = "snapshot-received" @ Laggard,
    /// It is this node's own on disk, and not in memory.
    SnapshotInstalled = "snapshot-installed" @ Laggard,
    /// A change of the membership is half done: the former members and the next ones decide together.
    MembershipJoint = "membership-joint" @ Changing,
    /// A change of the membership is done; who asked for it does not know.
    MembershipUniform = "membership-uniform" @ Changing,
    /// Calls have arrived at the agent.
    AgentCallsReceived = "agent-calls-received" @ Agent,
    /// The barrier's rows are there, in a local transaction that is open.
    AgentBarrierEntered = "agent-barrier-entered" @ Agent,
    /// The participant has done its part, in a local transaction that is open; what goes with the commit is not sent.
    AgentBeforeCommit = "agent-before-commit" @ Agent,
    /// The local transaction is committed; no answer was given.
    AgentCommittedUntold = "agent-committed-untold" @ Agent,
    /// Answers were handed to the stream.
    AgentAnswered = "agent-answered" @ Agent,
    /// The bank has decided on a batch, and written nothing.
    BankDecided = "bank-decided" @ Agent,
    /// A transaction has written to several sources, and none is prepared.
    RouterBeforePrepare = "router-before-prepare" @ Router,
    /// A source is about to be told to prepare; the n-th time, those before it have been told.
    RouterPreparing = "router-preparing" @ Router,
    /// All are prepared; the coordinator was not told.
    RouterPrepared = "router-prepared" @ Router,
    /// The coordinator has decided; neither client nor source knows.
    RouterDecided = "router-decided" @ Router,
    /// A source is about to be told the decision; the n-th time, those before it have been told.
    RouterCommitting = "router-committing" @ Router,
    /// Every source has carried the decision out; the coordinator was not told.
    RouterCommitted = "router-committed" @ Router,
    /// A message was read, and is not submitted yet.
    RelayBeforeSubmit = "relay-before-submit" @ Relay,
    /// A message has taken effect; its row is still there.
    RelayBeforeDelete = "relay-before-delete" @ Relay,
    /// Rows of the slots that move are staged; none is compared.
    MoverCopied = "mover-copied" @ Mover,
    /// The slots of a step are frozen.
    MoverFrozen = "mover-frozen" @ Mover,
    /// Its rows are prepared to leave, and not to arrive.
    MoverHalfPrepared = "mover-half-prepared" @ Mover,
    /// Both is prepared, and nothing decided.
    MoverPrepared = "mover-prepared" @ Mover,
    /// It is decided; no source knows.
    MoverDecided = "mover-decided" @ Mover,
    /// The rows have left for good, and have not arrived.
    MoverHalfCommitted = "mover-half-committed" @ Mover,
    /// A step is done, and another is to come.
    MoverStepped = "mover-stepped" @ Mover,
}

impl Site {
    /// The site of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|site| site.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_site_has_a_name_of_its_own_by_which_it_is_found() {
        let names: BTreeSet<_> = Site::ALL.iter().map(|site| site.name()).collect();
        assert_eq!(names.len(), Site::ALL.len());
        for site in Site::ALL {
            assert_eq!(Site::named(site.name()), Some(*site));
        }
        assert_eq!(Site::named("nowhere"), None);
    }
}
