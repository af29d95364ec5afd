//! A circuit breaker: when so many transactions in a row had no answer it opens, and lets one probe through after a pause.
//!
//! Told the time, and nothing else. An answer of any kind (done, refused, working) is health; only silence and *unknown* are not.
//! Transactions are counted, not calls: one poisoned branch that is asked again and again must not stop its service.

use super::policy::BreakerPolicy;

/// Where a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Calls go through.
    Closed,
    /// None go through until then.
    Open { until_ms: u64, pause_ms: u64 },
    /// One probe is under way since then; it counts as lost at `until_ms`.
    Probing { until_ms: u64, pause_ms: u64 },
}

/// Of one service or of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breaker {
    state: State,
    /// While closed: whose calls had no answer since the last one, at most as many as open it.
    silent: Vec<u64>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, silent: Vec::new() }
    }
}

impl Breaker {
    /// Whether a call may go at `now_ms`. Open and over its pause: one may.
    pub(crate) fn lets_through(&self, now_ms: u64) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until_ms, .. } | State::Probing { until_ms, .. } => until_ms <= now_ms,
        }
    }

    /// When [`Self::lets_through`] may change by itself; `None` while closed.
    pub(crate) fn until_ms(&self) -> Option<u64> {
        match self.state {
            State::Closed => None,
            State::Open { until_ms, .. } | State::Probing { until_ms, .. } => Some(until_ms),
        }
    }

    /// A call goes out: from an open breaker it is the probe.
    pub(crate) fn asked(&mut self, now_ms: u64) {
        if let State::Open { until_ms, pause_ms } | State::Probing { until_ms, pause_ms } =
            self.state
            && until_ms <= now_ms
        {
            self.state = State::Probing { until_ms: now_ms + pause_ms, pause_ms };
        }
    }

    /// An answer came. True: that closed the breaker, so that what waits may go at once.
    pub(crate) fn answered(&mut self) -> bool {
        let was_shut = !matches!(self.state, State::Closed);
        self.state = State::Closed;
        self.silent.clear();
        was_shut
    }

    /// A call of the transaction with this hash had no answer. True: that opened the breaker.
    pub(crate) fn silent(&mut self, policy: BreakerPolicy, whose: u64, now_ms: u64) -> bool {
        match self.state {
            State::Closed => {
                if policy.failures == 0 {
                    return false;
                }
                if !self.silent.contains(&whose) {
                    self.silent.push(whose);
                }
                if self.silent.len() < policy.failures as usize {
                    return false;
                }
                self.silent = Vec::new();
                let pause_ms = policy.open_ms.max(1);
                self.state = State::Open { until_ms: now_ms + pause_ms, pause_ms };
                true
            }
            State::Probing { pause_ms, .. } => {
                // Each probe in vain doubles the pause, up to its ceiling.
                let ceiling_ms = policy.open_ms_max.max(policy.open_ms).max(1);
                let pause_ms = pause_ms.saturating_mul(2).min(ceiling_ms);
                self.state = State::Open { until_ms: now_ms + pause_ms, pause_ms };
                true
            }
            // Calls that were under way when it opened say nothing new.
            State::Open { .. } => false,
        }
    }

    /// `closed`, `open` or `half_open`.
    pub(crate) fn word(&self, now_ms: u64) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { until_ms, .. } if until_ms > now_ms => "open",
            State::Open { .. } | State::Probing { .. } => "half_open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, open_ms: 1_000, open_ms_max: 3_000 };

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        assert!(!breaker.silent(POLICY, 1, 0));
        assert!(!breaker.silent(POLICY, 2, 0));
        assert!(breaker.silent(POLICY, 3, 0), "the third in a row opens it");
        breaker
    }

    #[test]
    fn an_answer_between_silences_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        breaker.silent(POLICY, 1, 0);
        breaker.silent(POLICY, 2, 0);
        assert!(!breaker.answered(), "it was closed");
        breaker.silent(POLICY, 3, 0);
        breaker.silent(POLICY, 4, 0);
        assert!(breaker.lets_through(0));
    }

    #[test]
    fn an_open_breaker_lets_one_probe_through_after_its_pause_and_an_answer_closes_it() {
        let mut breaker = opened();
        assert!(!breaker.lets_through(999));
        assert_eq!(breaker.word(999), "open");
        assert!(breaker.lets_through(1_000));
        breaker.asked(1_000);
        assert!(!breaker.lets_through(1_001), "one probe, not two");
        assert_eq!(breaker.word(1_001), "half_open");
        assert!(breaker.answered());
        assert!(breaker.lets_through(1_001));
        assert_eq!((breaker.word(1_001), breaker.until_ms()), ("closed", None));
    }

    #[test]
    fn probes_in_vain_double_the_pause_up_to_its_ceiling() {
        let mut breaker = opened();
        let mut now_ms = 1_000;
        for pause_ms in [2_000, 3_000, 3_000] {
            breaker.asked(now_ms);
            assert!(breaker.silent(POLICY, 9, now_ms));
            assert_eq!(breaker.until_ms(), Some(now_ms + pause_ms));
            now_ms += pause_ms;
        }
    }

    #[test]
    fn a_probe_that_is_never_heard_of_is_replaced() {
        let mut breaker = opened();
        breaker.asked(1_000);
        assert!(!breaker.lets_through(1_999));
        assert!(breaker.lets_through(2_000));
    }

    #[test]
    fn calls_that_were_under_way_when_it_opened_change_nothing() {
        let mut breaker = opened();
        assert!(!breaker.silent(POLICY, 9, 500));
        assert_eq!(breaker.until_ms(), Some(1_000));
    }

    #[test]
    fn one_poisoned_transaction_never_opens_it() {
        let mut breaker = Breaker::default();
        assert!((0..1_000).all(|_| !breaker.silent(POLICY, 7, 0)));
        assert_eq!(breaker.silent.len(), 1, "and takes no room");
    }

    #[test]
    fn a_breaker_that_is_switched_off_never_opens() {
        let off = BreakerPolicy { failures: 0, ..POLICY };
        let mut breaker = Breaker::default();
        assert!((0..1_000).all(|whose| !breaker.silent(off, whose, 0)));
    }
}
