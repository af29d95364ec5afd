//! What a program asks for: the terms of a global transaction and its branches.

use bytes::Bytes;
use holdfast_proto::Pairs;

use crate::wire;

/// When an answer is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wait {
    /// As soon as the transaction is durable. The outcome is then usually still unknown.
    None,
    /// At the decision; the second phase goes on behind the answer.
    #[default]
    Decision,
    /// At the end: every branch finished.
    End,
}

/// Whether branches wait for each other, where they do not say so themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Each starts when the one before it is done.
    Sequential,
    /// All at once.
    Concurrent,
}

/// Where a Saga goes when a step cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// It compensates.
    Backward,
    /// Only forward; a refusal needs attention.
    Forward,
}

/// The terms of a global transaction. What is not said is filled in by the coordinator's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    pub(crate) gid: Option<String>,
    pub(crate) mode: wire::Mode,
    pub(crate) options: wire::Options,
}

impl Terms {
    fn of(mode: wire::Mode) -> Self {
        Self { gid: None, mode, options: wire::Options::default() }
    }

    /// Try, confirm, cancel.
    #[must_use]
    pub fn tcc() -> Self {
        Self::of(wire::Mode::Tcc)
    }

    /// Actions in order, compensated in reverse.
    #[must_use]
    pub fn saga() -> Self {
        Self::of(wire::Mode::Saga)
    }

    /// Prepared local transactions: the program has prepared every branch, and the submit decides to commit them.
    #[must_use]
    pub fn xa() -> Self {
        Self::of(wire::Mode::Xa)
    }

    /// The caller's own id, at most 35 characters of `[A-Za-z0-9-]`; otherwise the client makes a ULID.
    #[must_use]
    pub fn gid(mut self, gid: impl Into<String>) -> Self {
        self.gid = Some(gid.into());
        self
    }

    /// From begin to decision, ms, at most 86,400,000.
    #[must_use]
    pub fn timeout_ms(mut self, ms: u64) -> Self {
        self.options.timeout_ms = ms;
        self
    }

    /// For one call to a participant, ms, not above the timeout.
    #[must_use]
    pub fn call_timeout_ms(mut self, ms: u64) -> Self {
        self.options.call_timeout_ms = ms;
        self
    }

    /// Pauses between calls without an answer, ms, and how many calls before people must look (0 = never give up).
    #[must_use]
    pub fn retry(mut self, first_ms: u64, ceiling_ms: u64, attempts_max: u32) -> Self {
        self.options.retry = Some(wire::RetryPolicy { first_ms, ceiling_ms, attempts_max });
        self
    }

    /// Whether branches wait for each other.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.options.order = match order {
            Order::Sequential => wire::Order::Sequential,
            Order::Concurrent => wire::Order::Concurrent,
        }
        .into();
        self
    }

    /// Where a Saga goes when a step cannot be done.
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.options.recovery = match recovery {
            Recovery::Backward => wire::Recovery::Backward,
            Recovery::Forward => wire::Recovery::Forward,
        }
        .into();
        self
    }

    /// TCC, enlisted: the program makes the tries itself; its submit is its word that all were made.
    #[must_use]
    pub fn tried_by_caller(mut self) -> Self {
        self.options.tries = wire::CalledBy::Caller.into();
        self
    }

    /// XA: the coordinator asks the participants to prepare, instead of the program.
    #[must_use]
    pub fn tried_by_coordinator(mut self) -> Self {
        self.options.tries = wire::CalledBy::Coordinator.into();
        self
    }

    /// XA: for so long after the decision, ms, at most 10,000, the program carries out the second phase itself and says
    /// [`crate::Client::finish`]; only then does the coordinator call the branches.
    #[must_use]
    pub fn second_phase_grace_ms(mut self, ms: u64) -> Self {
        self.options.second_phase_grace_ms = ms;
        self
    }

    /// A header that every branch call carries, also after a failover; its name counts in any case.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let mut headers = Pairs::from(std::mem::take(&mut self.options.headers));
        headers.set(name.as_ref(), value.as_ref());
        self.options.headers = headers.into();
        self
    }

    /// A business tag to search by.
    #[must_use]
    pub fn tag(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let (name, value) = (name.as_ref(), value.as_ref());
        let mut tags = Pairs::from(std::mem::take(&mut self.options.tags));
        tags.replace(name, value, |known| known == name);
        self.options.tags = tags.into();
        self
    }
}

/// One participant's part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BranchSpec {
    pub(crate) spec: wire::BranchSpec,
}

impl BranchSpec {
    /// `payload` is handed to `participant` as it is, at most 64 KiB.
    #[must_use]
    pub fn new(participant: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        let (participant, payload) = (participant.into(), payload.into());
        Self { spec: wire::BranchSpec { participant, payload, ..Default::default() } }
    }

    /// Starts when these branches, numbered from 1, are done; overrides the order of the transaction.
    #[must_use]
    pub fn after(mut self, branches: impl IntoIterator<Item = u32>) -> Self {
        self.spec.after = branches.into_iter().collect();
        self
    }

    /// Saga: once this step is done, only forward.
    #[must_use]
    pub fn pivot(mut self) -> Self {
        self.spec.pivot = true;
        self
    }
}

/// A whole global transaction, declared in one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub(crate) terms: Terms,
    pub(crate) branches: Vec<wire::BranchSpec>,
    pub(crate) wait: Wait,
    pub(crate) patience_ms: Option<u64>,
    pub(crate) rules_epoch: Option<u64>,
}

impl Submission {
    /// On these terms, without branches yet; the answer is due at the decision.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        let (branches, wait) = (Vec::new(), Wait::Decision);
        Self { terms, branches, wait, patience_ms: None, rules_epoch: None }
    }

    /// A TCC transaction on default terms.
    #[must_use]
    pub fn tcc() -> Self {
        Self::new(Terms::tcc())
    }

    /// A Saga on default terms.
    #[must_use]
    pub fn saga() -> Self {
        Self::new(Terms::saga())
    }

    /// An XA transaction on default terms.
    #[must_use]
    pub fn xa() -> Self {
        Self::new(Terms::xa())
    }

    /// The caller's own id; see [`Terms::gid`].
    #[must_use]
    pub fn gid(mut self, gid: impl Into<String>) -> Self {
        self.terms.gid = Some(gid.into());
        self
    }

    /// Adds the next branch.
    #[must_use]
    pub fn branch(self, participant: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        self.branch_spec(BranchSpec::new(participant, payload))
    }

    /// Adds the next branch, with what else it needs.
    #[must_use]
    pub fn branch_spec(mut self, branch: BranchSpec) -> Self {
        self.branches.push(branch.spec);
        self
    }

    /// When the answer is due.
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// The epoch of the shard rules by which the caller has placed what it wrote. If newer ones are in force the transaction is refused
    /// with HF2410, and nothing happened.
    #[must_use]
    pub fn rules_epoch(mut self, epoch: u64) -> Self {
        self.rules_epoch = Some(epoch);
        self
    }

    /// How long to pursue an answer before saying *unknown*, ms; otherwise as the client's options say.
    #[must_use]
    pub fn patience_ms(mut self, ms: u64) -> Self {
        self.patience_ms = Some(ms);
        self
    }
}

impl From<Wait> for wire::Wait {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::None => Self::None,
            Wait::Decision => Self::Decision,
            Wait::End => Self::End,
        }
    }
}
