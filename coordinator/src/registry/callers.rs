//! What each caller that operators decided about may still ask of this node: so many requests in a second, so many at once, and
//! none for a while when its requests are mistaken in a row.
//!
//! Each node counts what comes in at its own doors; what a member hands on is not counted again. A caller without a policy costs
//! one look at a map and is never remembered, so that nobody fills memory by having many names.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use holdfast_proto::v1;
use tokio::time::Instant;

use super::{
    breaker::Breaker,
    bucket::Bucket,
    policy::{BreakerPolicy, Policies},
};

/// The callers with a policy, as this node has seen them.
#[derive(Debug)]
pub(crate) struct Callers {
    since: Instant,
    /// By name. At most those with a policy, and those with a request under way whose policy was just taken away.
    known: Mutex<BTreeMap<String, Known>>,
}

/// One of them.
#[derive(Debug)]
struct Known {
    policy: v1::CallerPolicy,
    bucket: Bucket,
    breaker: Breaker,
    /// Numbers the mistakes: each is one of its own to the breaker.
    mistakes: u64,
    under_way: u32,
    taken: u64,
    turned_away: [u64; 3],
}

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Requests in a second.
    Rate,
    /// Requests under way at once.
    Concurrency,
    /// Mistaken requests in a row.
    Breaker,
}

/// A request that was turned away: by which bound, how much that is, and when another attempt is worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnedAway {
    pub(crate) bound: Bound,
    pub(crate) most: u32,
    pub(crate) after_ms: u64,
}

/// A request of such a caller that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    callers: Arc<Callers>,
    caller: String,
}

/// When another attempt is worth it for who has too much under way: nobody knows, so soon.
const SOON_MS: u64 = 100;

impl Bound {
    /// Every one, in the order of the counts.
    pub(crate) const ALL: [Self; 3] = [Self::Rate, Self::Concurrency, Self::Breaker];

    /// Counts what this bound turns away.
    pub(crate) fn counter(self) -> metrics::Counter {
        let reason = match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Breaker => "breaker",
        };
        metrics::counter!("holdfast_caller_refusals_total", "reason" => reason)
    }
}

impl Callers {
    /// Install the metrics recorder before: what is never counted is there as 0.
    pub(crate) fn new() -> Self {
        for bound in Bound::ALL {
            bound.counter().increment(0);
        }
        Self { since: Instant::now(), known: Mutex::default() }
    }

    /// Lets a request of `caller` in; `None`: nothing was decided about it, so nothing is counted.
    /// # Errors
    /// [`TurnedAway`]: it is one past a bound.
    pub(crate) fn admit(
        self: &Arc<Self>,
        policies: &Policies,
        caller: &str,
    ) -> Result<Option<Pass>, TurnedAway> {
        self.admit_at(policies, caller, self.now_ms())
    }

    fn admit_at(
        self: &Arc<Self>,
        policies: &Policies,
        caller: &str,
        now_ms: u64,
    ) -> Result<Option<Pass>, TurnedAway> {
        let Some(policy) = policies.callers.get(caller) else { return Ok(None) };
        let mut all = self.lock();
        if !all.contains_key(caller) {
            all.retain(|name, one| one.under_way > 0 || policies.callers.contains_key(name));
        }
        let known =
            all.entry(caller.to_owned()).or_insert_with(|| Known::new(policy.clone(), now_ms));
        known.obey(policy, now_ms);
        known.admit(now_ms)?;
        Ok(Some(Pass { callers: Arc::clone(self), caller: caller.to_owned() }))
    }

    /// Every caller with a policy, by name, as it goes here.
    pub(crate) fn seen(&self, policies: &Policies) -> Vec<v1::CallerState> {
        let now_ms = self.now_ms();
        let all = self.lock();
        let state = |(caller, policy): (&String, &v1::CallerPolicy)| {
            let mut state = v1::CallerState {
                caller: caller.clone(),
                policy: Some(policy.clone()),
                breaker: "closed".to_owned(),
                ..Default::default()
            };
            if let Some(known) = all.get(caller) {
                known.tell(&mut state, now_ms);
            }
            state
        };
        policies.callers.iter().map(state).collect()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn ended_at(&self, caller: &str, mistaken: bool, now_ms: u64) {
        let mut all = self.lock();
        let Some(known) = all.get_mut(caller) else { return };
        if !mistaken {
            known.breaker.answered();
            return;
        }
        let Some(policy) = &known.policy.breaker else { return };
        known.mistakes += 1;
        if known.breaker.silent(BreakerPolicy::of(Some(policy)), known.mistakes, now_ms) {
            tracing::warn!(caller, "its requests are mistaken in a row: none is taken for a while");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().expect("nobody panics while holding it")
    }
}

impl Known {
    fn new(policy: v1::CallerPolicy, now_ms: u64) -> Self {
        Self {
            bucket: Bucket::new(policy.requests_per_s, policy.burst, now_ms),
            policy,
            breaker: Breaker::default(),
            mistakes: 0,
            under_way: 0,
            taken: 0,
            turned_away: [0; 3],
        }
    }

    /// Goes by `policy` from now on. What is under way stays counted.
    fn obey(&mut self, policy: &v1::CallerPolicy, now_ms: u64) {
        if self.policy == *policy {
            return;
        }
        if self.policy.breaker != policy.breaker {
            self.breaker = Breaker::default();
        }
        self.bucket = Bucket::new(policy.requests_per_s, policy.burst, now_ms);
        self.policy = policy.clone();
    }

    fn admit(&mut self, now_ms: u64) -> Result<(), TurnedAway> {
        let refused = |bound, most, after_ms| TurnedAway { bound, most, after_ms };
        let most = self.policy.concurrency_max;
        let verdict = if !self.breaker.lets_through(now_ms) {
            let until_ms = self.breaker.until_ms().unwrap_or(now_ms);
            let failures = self.policy.breaker.map_or(0, |breaker| breaker.failures);
            Err(refused(Bound::Breaker, failures, until_ms.saturating_sub(now_ms).max(1)))
        } else if most > 0 && self.under_way >= most {
            Err(refused(Bound::Concurrency, most, SOON_MS))
        } else if !self.bucket.take(now_ms) {
            let after_ms = self.bucket.next_ms(now_ms).saturating_sub(now_ms).max(1);
            Err(refused(Bound::Rate, self.policy.requests_per_s, after_ms))
        } else {
            Ok(())
        };
        match verdict {
            Ok(()) => {
                self.breaker.asked(now_ms);
                self.under_way += 1;
                self.taken += 1;
            }
            Err(TurnedAway { bound, .. }) => self.turned_away[bound as usize] += 1,
        }
        verdict
    }

    fn tell(&self, state: &mut v1::CallerState, now_ms: u64) {
        let [by_rate, by_concurrency, by_breaker] = self.turned_away;
        state.in_flight = u64::from(self.under_way);
        state.taken = self.taken;
        state.turned_away = self.turned_away.iter().sum();
        (state.by_rate, state.by_concurrency, state.by_breaker) =
            (by_rate, by_concurrency, by_breaker);
        self.breaker.word(now_ms).clone_into(&mut state.breaker);
    }
}

impl Pass {
    /// The request has its answer: that it was mistaken (malformed, or not allowed), or anything else.
    pub(crate) fn ended(self, mistaken: bool) {
        self.callers.ended_at(&self.caller, mistaken, self.callers.now_ms());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(known) = self.callers.lock().get_mut(&self.caller) {
            known.under_way = known.under_way.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(policy: v1::CallerPolicy) -> Policies {
        Policies::default().with_caller(policy).unwrap()
    }

    fn alice() -> v1::CallerPolicy {
        v1::CallerPolicy { caller: "user/alice".into(), ..Default::default() }
    }

    fn turned_away(callers: &Arc<Callers>, policies: &Policies, now_ms: u64) -> TurnedAway {
        callers.admit_at(policies, "user/alice", now_ms).expect_err("it is one past a bound")
    }

    #[test]
    fn as_many_in_a_second_as_allowed_pass_and_one_more_is_told_when_to_come_again() {
        let policies = policies(v1::CallerPolicy { requests_per_s: 10, burst: 3, ..alice() });
        let callers = Arc::new(Callers::new());
        for _ in 0..3 {
            assert!(callers.admit_at(&policies, "user/alice", 0).unwrap().is_some());
        }
        let away = turned_away(&callers, &policies, 0);
        assert_eq!(away, TurnedAway { bound: Bound::Rate, most: 10, after_ms: 100 });
        assert!(callers.admit_at(&policies, "user/alice", 100).is_ok());
        assert!(callers.admit_at(&policies, "user/bob", 0).unwrap().is_none(), "he has no policy");
    }

    #[test]
    fn as_many_at_once_as_allowed_pass_and_the_next_when_one_has_ended() {
        let policies = policies(v1::CallerPolicy { concurrency_max: 2, ..alice() });
        let callers = Arc::new(Callers::new());
        let first = callers.admit_at(&policies, "user/alice", 0).unwrap();
        let _second = callers.admit_at(&policies, "user/alice", 0).unwrap();
        let away = turned_away(&callers, &policies, 0);
        assert_eq!((away.bound, away.most), (Bound::Concurrency, 2));
        drop(first);
        let _third = callers.admit_at(&policies, "user/alice", 0).unwrap();
        assert_eq!(turned_away(&callers, &policies, 0).bound, Bound::Concurrency);
        let state = &callers.seen(&policies)[0];
        assert_eq!((state.in_flight, state.taken, state.by_concurrency), (2, 3, 2));
    }

    #[test]
    fn mistakes_in_a_row_shut_a_caller_out_until_one_request_was_sound() {
        let breaker = v1::BreakerPolicy { failures: 3, open_ms: 1_000, open_ms_max: 4_000 };
        let policies = policies(v1::CallerPolicy { breaker: Some(breaker), ..alice() });
        let callers = Arc::new(Callers::new());
        let ask = |mistaken, now_ms| {
            let pass = callers.admit_at(&policies, "user/alice", now_ms);
            pass.map(|pass| {
                callers.ended_at("user/alice", mistaken, now_ms);
                drop(pass);
            })
        };
        for mistaken in [true, true, false, true, true, true] {
            assert!(ask(mistaken, 0).is_ok(), "two in a row, then three");
        }
        let away = ask(false, 1).unwrap_err();
        assert_eq!(away, TurnedAway { bound: Bound::Breaker, most: 3, after_ms: 999 });
        assert!(ask(true, 1_000).is_ok(), "one probe, which is mistaken again");
        assert!(ask(false, 2_999).is_err(), "so the pause has doubled");
        assert!(ask(false, 3_000).is_ok());
        assert!(ask(false, 3_000).is_ok(), "a sound request closes it");
        assert_eq!(callers.seen(&policies)[0].breaker, "closed");
    }

    #[test]
    fn a_changed_policy_counts_from_the_next_request_and_one_that_is_gone_is_forgotten() {
        let tight = policies(v1::CallerPolicy { requests_per_s: 1, burst: 1, ..alice() });
        let callers = Arc::new(Callers::new());
        drop(callers.admit_at(&tight, "user/alice", 0).unwrap());
        assert!(callers.admit_at(&tight, "user/alice", 0).is_err());
        let wide = policies(v1::CallerPolicy { requests_per_s: 1_000, burst: 50, ..alice() });
        for _ in 0..50 {
            assert!(callers.admit_at(&wide, "user/alice", 0).is_ok());
        }
        assert!(callers.admit_at(&wide, "user/alice", 0).is_err());
        assert!(callers.admit_at(&Policies::default(), "user/alice", 0).unwrap().is_none());
        let bob = v1::CallerPolicy { caller: "user/bob".into(), concurrency_max: 1, ..alice() };
        let _bob = callers.admit_at(&policies(bob), "user/bob", 0).unwrap();
        assert_eq!(callers.lock().keys().collect::<Vec<_>>(), ["user/bob"]);
    }

    #[test]
    fn callers_without_a_policy_take_no_room() {
        let policies = policies(alice_at_once());
        let callers = Arc::new(Callers::new());
        for n in 0..10_000 {
            assert!(callers.admit_at(&policies, &format!("user/{n}"), 0).unwrap().is_none());
        }
        assert!(callers.lock().is_empty());
    }

    fn alice_at_once() -> v1::CallerPolicy {
        v1::CallerPolicy { concurrency_max: 1, ..alice() }
    }
}
