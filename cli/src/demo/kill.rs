//! When something is killed, and how long it takes until money moves again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::args::KillTarget;

/// The kills of a run, evenly spread over it.
#[derive(Debug)]
pub(crate) struct Plan {
    targets: Vec<KillTarget>,
}

impl Plan {
    /// In this order.
    pub(crate) fn new(targets: Vec<KillTarget>) -> Self {
        Self { targets }
    }

    /// Where in a run of `whole` each target falls: one of one in the middle, two of two at a third and two thirds.
    pub(crate) fn points(&self, whole: u64) -> Vec<(KillTarget, u64)> {
        let parts = self.targets.len() as u64 + 1;
        let point = |at: usize| u128::from(whole) * (at as u128 + 1) / u128::from(parts);
        let points = self.targets.iter().enumerate();
        points
            .map(|(at, target)| (*target, u64::try_from(point(at)).expect("a part of a u64")))
            .collect()
    }
}

/// Hands out the numbers of transfers, and holds them back where a kill must come first.
///
/// A run of so many transfers could be over before the process that was to be killed in its middle is dead. So the
/// number at which a kill is planned is handed out only once the kill was made.
#[derive(Debug)]
pub(crate) struct Tickets {
    next: AtomicU64,
    end: u64,
    stopped: AtomicBool,
    /// Numbers below this one may be handed out.
    gate: watch::Sender<u64>,
}

impl Tickets {
    /// Numbers 0 to `end - 1`, all of which may be handed out until [`Self::hold_back_from`] says otherwise.
    pub(crate) fn new(end: u64) -> Self {
        Self {
            next: AtomicU64::new(0),
            end,
            stopped: AtomicBool::new(false),
            gate: watch::Sender::new(u64::MAX),
        }
    }

    /// Nothing from `number` on is handed out until this is called again.
    pub(crate) fn hold_back_from(&self, number: u64) {
        self.gate.send_replace(number);
    }

    /// No further numbers.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.gate.send_replace(u64::MAX);
    }

    /// The next number, or `None` at the end.
    pub(crate) async fn next(&self) -> Option<u64> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.end {
            return None;
        }
        let mut gate = self.gate.subscribe();
        let opened = gate.wait_for(|from| number < *from).await;
        opened.expect("the gate lives as long as self");
        (!self.stopped.load(Ordering::Relaxed)).then_some(number)
    }

    /// How many were asked for; at most the end.
    pub(crate) fn taken(&self) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.end)
    }
}

/// Waits for the first commit behind a kill. Clients tell it of every commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recovery {
    waiting: Arc<Mutex<Option<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    killed_at: Instant,
    dead_at: Instant,
    shard: Option<usize>,
    recovered: watch::Sender<Option<Duration>>,
}

/// The answer to one kill, when there is one.
#[derive(Debug)]
pub(crate) struct Recovered(watch::Receiver<Option<Duration>>);

impl Recovery {
    /// What was told to die at `killed_at` is dead since `dead_at`. The first commit of a transfer that is submitted after that
    /// counts; with `shard`, of one that touches it. An earlier kill that still waits is forgotten.
    pub(crate) fn dead(
        &self,
        killed_at: Instant,
        dead_at: Instant,
        shard: Option<usize>,
    ) -> Recovered {
        let (recovered, receiver) = watch::channel(None);
        let waiting = Waiting { killed_at, dead_at, shard, recovered };
        *self.waiting.lock().expect("no holder panics") = Some(waiting);
        Recovered(receiver)
    }

    /// A transfer between `shards` that was submitted at `submitted_at` was told committed at `told_at`.
    pub(crate) fn committed(&self, submitted_at: Instant, told_at: Instant, shards: [usize; 2]) {
        let mut slot = self.waiting.lock().expect("no holder panics");
        let counts = slot.as_ref().is_some_and(|waiting| {
            submitted_at > waiting.dead_at
                && waiting.shard.is_none_or(|shard| shards.contains(&shard))
        });
        if counts && let Some(waiting) = slot.take() {
            waiting.recovered.send_replace(Some(told_at.duration_since(waiting.killed_at)));
        }
    }
}

impl Recovered {
    /// Waits for it, at most so long.
    pub(crate) async fn within(&mut self, longest: Duration) -> Option<Duration> {
        // The sender goes away once it has told; what it told stays readable.
        let _ = tokio::time::timeout(longest, self.0.wait_for(Option::is_some)).await;
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_spread_evenly() {
        let plan = Plan::new(vec![KillTarget::Leader]);
        assert_eq!(plan.points(20_000), [(KillTarget::Leader, 10_000)]);
        let plan = Plan::new(vec![KillTarget::Leader, KillTarget::Agent, KillTarget::Leader]);
        let at: Vec<u64> = plan.points(100).into_iter().map(|(_, at)| at).collect();
        assert_eq!(at, [25, 50, 75]);
        assert_eq!(Plan::new(Vec::new()).points(100), []);
    }

    #[tokio::test]
    async fn a_number_behind_a_kill_is_held_back_until_the_kill_was_made() {
        let tickets = Arc::new(Tickets::new(3));
        tickets.hold_back_from(1);
        assert_eq!(tickets.next().await, Some(0));
        let behind = tokio::spawn({
            let tickets = Arc::clone(&tickets);
            async move { tickets.next().await }
        });
        while tickets.taken() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!behind.is_finished());
        tickets.hold_back_from(u64::MAX);
        assert_eq!(behind.await.unwrap(), Some(1));
        assert_eq!(tickets.next().await, Some(2));
        assert_eq!(tickets.next().await, None);
        assert_eq!(tickets.taken(), 3);
    }

    #[tokio::test]
    async fn after_a_stop_nobody_gets_a_number_not_even_who_waits_for_one() {
        let tickets = Arc::new(Tickets::new(10));
        tickets.hold_back_from(0);
        let waiting = tokio::spawn({
            let tickets = Arc::clone(&tickets);
            async move { tickets.next().await }
        });
        while tickets.taken() < 1 {
            tokio::task::yield_now().await;
        }
        tickets.stop();
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(tickets.next().await, None);
    }

    #[tokio::test]
    async fn only_a_transfer_submitted_after_the_kill_shows_recovery() {
        let recovery = Recovery::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut recovered = recovery.dead(at(100), at(110), Some(2));
        recovery.committed(at(105), at(300), [2, 0]);
        assert_eq!(recovered.within(Duration::ZERO).await, None);
        recovery.committed(at(120), at(310), [0, 1]);
        assert_eq!(recovered.within(Duration::ZERO).await, None);
        recovery.committed(at(200), at(600), [0, 2]);
        recovery.committed(at(201), at(900), [0, 2]);
        assert_eq!(recovered.within(Duration::ZERO).await, Some(Duration::from_millis(500)));
    }
}
