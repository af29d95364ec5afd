//! What a call waits for that could not be made at once.

use holdfast_txn::Participant;

use super::{served::Served, sessions::Sessions};

/// Why no session was found for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nobody serves it, or everybody who does is drained.
    Session,
    /// An operator paused the service.
    Paused,
    /// The breaker of the service is open, or of every instance.
    Breaker,
    /// As many are under way as the service may have.
    Concurrency,
    /// As many were made as the service may have in this time.
    Rate,
    /// As many of former leaders' are under way as may be.
    Recovery,
    /// The sessions have no credit left.
    Credit,
}

impl Held {
    /// Every one, in the order of the counts.
    pub(crate) const ALL: [Self; 7] = [
        Self::Session,
        Self::Paused,
        Self::Breaker,
        Self::Concurrency,
        Self::Rate,
        Self::Recovery,
        Self::Credit,
    ];

    /// One word, for people and labels.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Paused => "paused",
            Self::Breaker => "breaker",
            Self::Concurrency => "concurrency",
            Self::Rate => "rate",
            Self::Recovery => "recovery",
            Self::Credit => "credit",
        }
    }
}

impl Sessions {
    /// What the next call of `service` waits for, where [`Sessions::choose`] found no session for it.
    pub(super) fn held(&mut self, service: &Participant, recovering: bool, now_ms: u64) -> Held {
        match self.served(service).map(|served| served.held(recovering, now_ms)) {
            None => Held::Session,
            Some(Some(held)) => held,
            Some(None) => self.held_by_sessions(service, now_ms),
        }
    }

    /// The service would let it through: its sessions do not.
    fn held_by_sessions(&self, service: &Participant, now_ms: u64) -> Held {
        let mut able = self.of(service).filter(|one| !one.is_draining()).peekable();
        if able.peek().is_none() {
            Held::Session
        } else if able.all(|one| !one.lets_through(now_ms)) {
            Held::Breaker
        } else {
            Held::Credit
        }
    }
}

impl Served {
    /// What the service itself waits for, its sessions left aside.
    fn held(&mut self, recovering: bool, now_ms: u64) -> Option<Held> {
        if self.policy.paused {
            return Some(Held::Paused);
        }
        if !self.breaker.lets_through(now_ms) {
            return Some(Held::Breaker);
        }
        if self.concurrency_left() == 0 {
            return Some(Held::Concurrency);
        }
        if self.room(now_ms) == 0 {
            return Some(Held::Rate);
        }
        (recovering && !self.may_ask(true, now_ms)).then_some(Held::Recovery)
    }
}
