//! One service as the dispatcher sees it: whether a call may be made now, and which of its sessions gets it.
//!
//! Sessions take turns by *virtual time*: a call moves its session's time on by the inverse of its weight, and the session
//! whose time is earliest is next. So shares follow the weights however few calls are under way, and a session that had no credit for a
//! while does not get all of it back at once: its time is never behind the service's.

use holdfast_proto::v1;

use super::{announced::SessionId, lanes::Lane, sessions::Session};
use crate::registry::{breaker::Breaker, bucket::Bucket, policy::BreakerPolicy};

/// Virtual time of one call at weight 1 in thousandths.
const SCALE: u64 = 1 << 40;
/// Calls under way of transactions that a new leader took up, if nobody decided.
pub(super) const RECOVERY_MAX: usize = 1_024;
/// A session counts as fallen behind only above so many calls under way.
const BEHIND_MIN: u64 = 16;
/// And if it has so many times as many under way for its weight as the one with the fewest.
const BEHIND_TIMES: u64 = 4;

/// A service with sessions, or with a policy.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) ids: Vec<SessionId>,
    pub(super) policy: v1::ServicePolicy,
    pub(super) breaker: Breaker,
    bucket: Bucket,
    /// This group's part of the policy's; 0: none is set.
    concurrency_max: u32,
    recovery_max: usize,
    pub(super) in_flight: usize,
    pub(super) recovering: usize,
    /// Virtual time.
    turn: u64,
    pub(super) asked: u64,
    pub(super) answered: u64,
    pub(super) silent: u64,
    /// When calls that wait for a token or a breaker are looked at again.
    pub(super) wake_ms: Option<u64>,
}

/// Of a session, what its turn depends on. Weights are set anew whenever one of them changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// Virtual time.
    pass: u64,
    /// What a call costs; 0: it gets none.
    stride: u64,
    /// Place of its zone among those that are preferred.
    rank: usize,
}

impl Served {
    pub(super) fn new(policy: Option<&v1::ServicePolicy>, lane: &Lane, now_ms: u64) -> Self {
        let mut served = Self {
            ids: Vec::new(),
            policy: v1::ServicePolicy::default(),
            breaker: Breaker::default(),
            bucket: Bucket::new(0, 0, now_ms),
            concurrency_max: 0,
            recovery_max: 0,
            in_flight: 0,
            recovering: 0,
            turn: 0,
            asked: 0,
            answered: 0,
            silent: 0,
            wake_ms: None,
        };
        served.obey(policy, lane, now_ms);
        served
    }

    /// From now on by this policy.
    pub(super) fn obey(&mut self, policy: Option<&v1::ServicePolicy>, lane: &Lane, now_ms: u64) {
        let policy = policy.cloned().unwrap_or_default();
        let rate = |of: &v1::ServicePolicy| (of.calls_per_s, of.burst);
        if rate(&policy) != rate(&self.policy) {
            self.bucket =
                Bucket::new(lane.part(policy.calls_per_s), lane.part(policy.burst), now_ms);
        }
        self.concurrency_max = lane.part(policy.concurrency_max);
        self.recovery_max = match lane.part(policy.recovery_max) {
            0 => RECOVERY_MAX,
            most => most as usize,
        };
        self.policy = policy;
    }

    pub(super) fn breaker_policy(&self) -> BreakerPolicy {
        BreakerPolicy::of(self.policy.breaker.as_ref())
    }

    /// Calls that may be made now beside those under way, whatever the sessions' credit is.
    pub(super) fn room(&mut self, now_ms: u64) -> usize {
        if self.policy.paused || !self.breaker.lets_through(now_ms) {
            return 0;
        }
        let most = self.concurrency_left();
        let probe = if self.breaker.until_ms().is_some() { 1 } else { usize::MAX };
        most.min(probe).min(self.bucket.tokens(now_ms))
    }

    /// Calls that may be under way beside those that are.
    pub(super) fn concurrency_left(&self) -> usize {
        match self.concurrency_max {
            0 => usize::MAX,
            most => (most as usize).saturating_sub(self.in_flight),
        }
    }

    /// Whether one more call may be made.
    pub(super) fn may_ask(&mut self, recovering: bool, now_ms: u64) -> bool {
        let turn = !recovering || self.recovering < self.recovery_max;
        turn && self.room(now_ms) > 0
    }

    /// When time alone may change that [`Self::may_ask`] said no.
    pub(super) fn next_ms(&mut self, now_ms: u64) -> Option<u64> {
        let breaker_ms = self.breaker.until_ms().filter(|until_ms| *until_ms > now_ms);
        let next_ms = breaker_ms.unwrap_or_else(|| self.bucket.next_ms(now_ms));
        (!self.policy.paused && next_ms > now_ms).then_some(next_ms)
    }

    pub(super) fn wake(&mut self, at_ms: u64) {
        self.wake_ms = Some(self.wake_ms.map_or(at_ms, |wake_ms| wake_ms.min(at_ms)));
    }

    /// A call goes to the session of `turn`.
    pub(super) fn ask(&mut self, turn: &mut Turn, recovering: bool, now_ms: u64) {
        self.turn = self.turn.max(turn.pass);
        turn.pass = self.turn.saturating_add(turn.stride);
        self.breaker.asked(now_ms);
        self.bucket.take(now_ms);
        self.asked += 1;
        self.in_flight += 1;
        self.recovering += usize::from(recovering);
    }

    /// A call is under way no more.
    pub(super) fn gone(&mut self, recovering: bool) {
        self.in_flight -= 1;
        self.recovering -= usize::from(recovering);
    }

    /// It did not even go out.
    pub(super) fn unsent(&mut self) {
        self.asked -= 1;
        self.bucket.give_back();
    }

    /// The session that should get the next call, of those that can take one.
    pub(super) fn choose<'a>(
        &self,
        free: impl Iterator<Item = &'a Session> + Clone,
    ) -> Option<SessionId> {
        let least = free.clone().map(Session::load).min()?;
        let behind = |one: &Session| {
            one.in_flight() > BEHIND_MIN && one.load() > least.saturating_mul(BEHIND_TIMES)
        };
        let by_load = self.policy.balance() == v1::Balance::LeastLoad;
        let place = |one: &Session| {
            if by_load {
                (one.turn.rank, false, one.load(), one.turn.pass.max(self.turn))
            } else {
                (one.turn.rank, behind(one), one.turn.pass.max(self.turn), one.load())
            }
        };
        free.min_by_key(|one| place(one)).map(|one| one.id)
    }

    /// Sets the turns of all `sessions` of this service anew: weights, warm-up, colors and zones, as they are now.
    pub(super) fn reweigh(&self, sessions: &mut [&mut Session], now_ms: u64) {
        let policy = &self.policy;
        // The share belongs to the color, however many sessions wear it.
        let color_of = |one: &Session| policy.colors.iter().position(|c| c.color == one.color);
        let mut of_color = vec![0_u64; policy.colors.len()];
        for one in sessions.iter() {
            if let Some(color) = color_of(one) {
                of_color[color] += one.weight_now(policy, now_ms);
            }
        }
        for one in sessions {
            let mut weight = one.weight_now(policy, now_ms);
            if !policy.colors.is_empty() {
                weight = color_of(one).map_or(0, |color| {
                    let share = u64::from(policy.colors[color].share);
                    share * 1_000_000 * weight / of_color[color].max(1)
                });
            }
            let stride = SCALE.checked_div(weight).map_or(0, |stride| stride.max(1));
            one.turn.costs(stride, self.turn);
            let zone = policy.zones.iter().position(|zone| *zone == one.zone);
            one.turn.rank = zone.unwrap_or(policy.zones.len());
        }
    }
}

impl Turn {
    /// From now on a call costs `stride`. What is left of its wait shrinks or grows with that: it was measured in the old one, and
    /// a session that weighed 1 would get nothing for a thousand calls after it was made to weigh 1,000.
    fn costs(&mut self, stride: u64, turn: u64) {
        let wait = self.pass.saturating_sub(turn);
        if wait > 0 && self.stride > 0 && stride > 0 && stride != self.stride {
            let wait = u128::from(wait) * u128::from(stride) / u128::from(self.stride);
            self.pass = turn.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX));
        }
        self.stride = stride;
    }

    /// Whether it gets calls at all.
    pub(super) fn has_weight(self) -> bool {
        self.stride > 0
    }

    /// What `under_way` calls and one more weigh on it.
    pub(super) fn load(self, under_way: usize) -> u64 {
        (under_way as u64 + 1).saturating_mul(self.stride)
    }
}
