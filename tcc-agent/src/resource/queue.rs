//! Calls that wait for a connection: a bounded queue that hands out batches in which no branch occurs twice.
//!
//! A batch costs the database much by itself and little for each call, so batches grow with the load: while one is in hand, what
//! arrives waits for the next. A further one is handed out beside it only when enough wait for it, or when the eldest has waited
//! so long that the one in hand must be slow: then it holds up nobody else. While calls come densely, the next batch waits for most of
//! as many as were answered by the last one and waited at its end: whoever was answered asks again, and whoever missed it goes along.
//! Otherwise callers fall apart into groups that never meet, each in a batch of its own. No call waits longer for company than a bound,
//! nor all of them together longer than another: the more are there, the less it is worth to wait for the rest. What follows a decision
//! holds nobody up, so only what comes before one counts. A lone call does not wait at all.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep_until},
};

use crate::{
    handler::Asked,
    participant::{Gid, Op},
};

/// How far past the size of a batch a worker looks for calls whose branch is not busy.
const LOOK_AHEAD_FACTOR: usize = 4;
/// A batch is handed out beside another when a full one divided by this waits.
const BESIDE_SHARE: usize = 4;
/// Calls come densely when so many are to be expected.
const DENSE_MIN: usize = 8;
/// One of so many that are to be expected is not waited for: there are never as many twice, and the last ones would cost the others
/// the whole of the longest wait.
const MISSING_SHARE: usize = 8;

pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    waiting_max: usize,
    batch_max: AtomicUsize,
    batch_bytes_max: usize,
    patience: Patience,
}

/// How long calls wait for others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The eldest waits no longer than this, nor for the end of a batch while a connection is free.
    pub(crate) of_one: Duration,
    /// Those that hold up a decision wait no longer than this for company, the time of each added up.
    pub(crate) of_all: Duration,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Instant, Asked)>,
    /// Batches that workers have in hand.
    in_hand: usize,
    /// Calls that were answered since no batch was in hand.
    answered: usize,
    /// Calls to be expected next: those that were answered, and those that waited by then.
    expected: usize,
    /// Branches that a worker has in hand. A second call of one waits here and not at the database, where it would hold up
    /// the rest of its batch.
    busy: HashSet<(Gid, u32)>,
    closed: bool,
}

/// Calls that one worker has in hand. Their branches are busy until this is dropped.
pub(crate) struct Batch {
    pub(crate) asked: Vec<Asked>,
    branches: Vec<(Gid, u32)>,
    queue: Arc<Queue>,
}

impl Queue {
    pub(crate) fn new(
        waiting_max: usize,
        batch_max: usize,
        batch_bytes_max: usize,
        patience: Patience,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Notify::new(),
            waiting_max,
            batch_max: AtomicUsize::new(batch_max.max(1)),
            batch_bytes_max,
            patience,
        })
    }

    /// Calls in one batch, from the next one on.
    pub(crate) fn set_batch_max(&self, batch_max: usize) {
        self.batch_max.store(batch_max.max(1), Ordering::Relaxed);
    }

    fn batch_max(&self) -> usize {
        self.batch_max.load(Ordering::Relaxed)
    }

    /// Puts calls behind those that wait. Gives back what there is no room for.
    pub(crate) fn put(&self, asked: Vec<Asked>) -> Vec<Asked> {
        let mut state = self.state();
        let room =
            if state.closed { 0 } else { self.waiting_max.saturating_sub(state.waiting.len()) };
        let mut asked = asked;
        let left_over = asked.split_off(room.min(asked.len()));
        let now = Instant::now();
        state.waiting.extend(asked.into_iter().map(|asked| (now, asked)));
        drop(state);
        self.changed.notify_one();
        left_over
    }

    /// Waits for calls and takes as many as one batch may have. `None`: the queue is closed and empty.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<Batch> {
        loop {
            let changed = self.changed.notified();
            let look_again_at = {
                let mut state = self.state();
                let due_at = self.due_at(&state);
                if due_at.is_none_or(|at| at <= Instant::now())
                    && let Some(batch) = self.pick(&mut state)
                {
                    if !state.waiting.is_empty() {
                        // There may be enough for another worker.
                        self.changed.notify_one();
                    }
                    return Some(batch);
                }
                if state.closed && state.waiting.is_empty() {
                    self.changed.notify_one();
                    return None;
                }
                due_at.filter(|at| *at > Instant::now())
            };
            match look_again_at {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(at) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Takes no more calls; those that wait are still handed out.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// When the next batch may be handed out, if calls wait and not enough of them; `None`: at once.
    fn due_at(&self, state: &State) -> Option<Instant> {
        let (eldest, _) = state.waiting.front()?;
        let beside = (self.batch_max() / BESIDE_SHARE).max(1);
        let enough = match state.expected {
            _ if state.in_hand > 0 => beside,
            expected if expected >= DENSE_MIN => {
                (expected - expected / MISSING_SHARE).min(self.batch_max())
            }
            _ => 1,
        };
        if state.waiting.len() >= enough {
            return None;
        }
        let latest = *eldest + self.patience.of_one;
        let impatient = if state.in_hand == 0 { self.impatient_at(state) } else { None };
        Some(impatient.map_or(latest, |at| at.min(latest)))
    }

    /// When the calls that hold up a decision will have waited long enough for company, the time of each added up. `None`: there
    /// is no such call.
    fn impatient_at(&self, state: &State) -> Option<Instant> {
        let now = Instant::now();
        let holding_up = || state.waiting.iter().filter(|(_, asked)| holds_up(asked.call.op));
        let count = u32::try_from(holding_up().count()).ok().filter(|count| *count > 0)?;
        let waited = holding_up().map(|(since, _)| now - *since).sum();
        Some(now + self.patience.of_all.saturating_sub(waited) / count)
    }

    fn pick(self: &Arc<Self>, state: &mut State) -> Option<Batch> {
        let mut asked = Vec::new();
        let mut branches = Vec::new();
        let mut passed_over = Vec::new();
        let mut bytes = 0_usize;
        let batch_max = self.batch_max();
        for _ in 0..batch_max.saturating_mul(LOOK_AHEAD_FACTOR) {
            if asked.len() == batch_max {
                break;
            }
            let Some((since, next)) = state.waiting.pop_front() else { break };
            let branch = (next.call.gid.clone(), next.call.branch);
            bytes = bytes.saturating_add(next.call.payload.len());
            if bytes > self.batch_bytes_max && !asked.is_empty() {
                state.waiting.push_front((since, next));
                break;
            }
            if state.busy.contains(&branch) {
                bytes = bytes.saturating_sub(next.call.payload.len());
                passed_over.push((since, next));
                continue;
            }
            state.busy.insert(branch.clone());
            branches.push(branch);
            asked.push(next);
        }
        // Back to the front in their old order, so that the calls of a branch stay in line.
        for next in passed_over.into_iter().rev() {
            state.waiting.push_front(next);
        }
        if asked.is_empty() {
            return None;
        }
        if state.in_hand == 0 {
            state.answered = 0;
        }
        state.in_hand += 1;
        Some(Batch { asked, branches, queue: Arc::clone(self) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a decision waits for this call. What follows one goes on when its turn comes.
const fn holds_up(op: Op) -> bool {
    match op {
        Op::Try | Op::Action | Op::Prepare => true,
        Op::Confirm | Op::Cancel | Op::Compensate | Op::Commit | Op::Rollback => false,
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        for branch in &self.branches {
            state.busy.remove(branch);
        }
        state.in_hand -= 1;
        state.answered += self.branches.len();
        state.expected = state.answered + state.waiting.len();
        drop(state);
        self.queue.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::participant::Call;

    /// Longer than a test takes, on any machine.
    const LONG: Duration = Duration::from_secs(3_600);
    const PATIENT: Patience = Patience { of_one: LONG, of_all: LONG };

    fn calls(numbers: std::ops::Range<u32>) -> Vec<Asked> {
        calls_to(Op::Try, numbers)
    }

    fn calls_to(op: Op, numbers: std::ops::Range<u32>) -> Vec<Asked> {
        let call = |branch| Call {
            gid: Gid::parse("g1").unwrap(),
            branch,
            op,
            payload: Bytes::new(),
            deadline_ms: 0,
            headers: Default::default(),
            attempt: 1,
            repeat: false,
            refusal_waits: false,
        };
        numbers.map(|number| Asked::alone(call(number)).0).collect()
    }

    async fn at_once(queue: &Arc<Queue>) -> Option<Batch> {
        let taken = tokio::time::timeout(Duration::ZERO, queue.take()).await;
        taken.ok().flatten()
    }

    #[tokio::test]
    async fn what_arrives_beside_a_batch_waits_for_the_next_until_there_is_enough() {
        let queue = Queue::new(100, 16, 1 << 20, PATIENT);
        queue.put(calls(1..2));
        let first = queue.take().await.unwrap();
        queue.put(calls(2..5));
        assert!(at_once(&queue).await.is_none(), "three are not a quarter of sixteen");
        queue.put(calls(5..6));
        let second = at_once(&queue).await.unwrap();
        assert_eq!(second.asked.len(), 4);
        queue.put(calls(6..7));
        drop(first);
        assert!(at_once(&queue).await.is_none(), "the second is still in hand");
        drop(second);
        assert!(at_once(&queue).await.is_some());
    }

    #[tokio::test]
    async fn a_slow_batch_holds_up_the_calls_behind_it_for_a_moment_only() {
        const SHORT: Duration = Duration::from_millis(20);
        let queue = Queue::new(100, 16, 1 << 20, Patience { of_one: SHORT, ..PATIENT });
        queue.put(calls(1..2));
        let _slow = queue.take().await.unwrap();
        let begun = Instant::now();
        queue.put(calls(2..3));
        assert_eq!(queue.take().await.unwrap().asked.len(), 1);
        assert!(begun.elapsed() >= SHORT);
    }

    #[tokio::test]
    async fn while_calls_come_densely_the_next_batch_waits_for_most_of_as_many_as_the_last_had() {
        let queue = Queue::new(100, 64, 1 << 20, PATIENT);
        queue.put(calls(0..16));
        drop(queue.take().await.unwrap());
        queue.put(calls(0..13));
        assert!(at_once(&queue).await.is_none(), "three of sixteen are missing");
        queue.put(calls(13..14));
        assert_eq!(at_once(&queue).await.unwrap().asked.len(), 14);
    }

    #[tokio::test]
    async fn callers_that_missed_a_batch_are_together_with_those_that_did_not_in_the_next() {
        let queue = Queue::new(100, 64, 1 << 20, PATIENT);
        queue.put(calls(0..10));
        let first = queue.take().await.unwrap();
        queue.put(calls(10..16));
        drop(first);
        queue.put(calls(0..7));
        assert!(at_once(&queue).await.is_none(), "three of the ten that were answered are missing");
        queue.put(calls(7..8));
        assert_eq!(at_once(&queue).await.unwrap().asked.len(), 14);
    }

    #[tokio::test]
    async fn nobody_waits_for_more_company_than_a_batch_may_have() {
        let queue = Queue::new(100, 40, 1 << 20, PATIENT);
        queue.put(calls(0..60));
        assert_eq!(queue.take().await.unwrap().asked.len(), 40);
        queue.put(calls(0..19));
        assert!(at_once(&queue).await.is_none(), "one less than a full one");
        queue.put(calls(19..20));
        assert_eq!(at_once(&queue).await.unwrap().asked.len(), 40);
    }

    #[tokio::test]
    async fn a_call_waits_for_company_for_a_moment_only_and_where_calls_are_few_not_at_all() {
        const SHORT: Duration = Duration::from_millis(20);
        let queue = Queue::new(100, 64, 1 << 20, Patience { of_one: SHORT, ..PATIENT });
        let few = u32::try_from(DENSE_MIN).unwrap() - 1;
        queue.put(calls(0..few));
        drop(queue.take().await.unwrap());
        queue.put(calls(0..1));
        drop(at_once(&queue).await.expect("seven are few"));
        queue.put(calls(0..few + 1));
        drop(queue.take().await.unwrap());
        let begun = Instant::now();
        queue.put(calls(0..1));
        assert!(at_once(&queue).await.is_none(), "eight are many");
        drop(queue.take().await.unwrap());
        assert!(begun.elapsed() >= SHORT);
        queue.put(calls(0..1));
        assert!(at_once(&queue).await.is_some(), "now there was a lone one");
    }

    #[tokio::test]
    async fn the_more_calls_wait_the_sooner_they_go_without_the_rest() {
        const OF_ALL: Duration = Duration::from_millis(120);
        for (there, each_waits) in [(4, OF_ALL / 4), (12, OF_ALL / 12)] {
            let patience = Patience { of_all: OF_ALL, ..PATIENT };
            let queue = Queue::new(100, 64, 1 << 20, patience);
            queue.put(calls(0..16));
            drop(queue.take().await.unwrap());
            let begun = Instant::now();
            queue.put(calls(0..there));
            assert_eq!(queue.take().await.unwrap().asked.len(), there as usize);
            assert!(begun.elapsed() >= each_waits, "{there} waited {:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn what_follows_a_decision_waits_for_company_and_goes_with_what_holds_one_up() {
        let patience = Patience { of_all: Duration::ZERO, ..PATIENT };
        let queue = Queue::new(100, 64, 1 << 20, patience);
        queue.put(calls(0..16));
        drop(queue.take().await.unwrap());
        queue.put(calls_to(Op::Confirm, 0..8));
        assert!(at_once(&queue).await.is_none(), "nobody is held up");
        queue.put(calls(16..17));
        assert_eq!(at_once(&queue).await.unwrap().asked.len(), 9);
    }

    #[tokio::test]
    async fn another_size_of_batches_counts_from_the_next_one_on() {
        let queue = Queue::new(100, 2, 1 << 20, PATIENT);
        queue.put(calls(1..10));
        let first = queue.take().await.unwrap();
        queue.set_batch_max(5);
        drop(first);
        assert_eq!(queue.take().await.unwrap().asked.len(), 5);
    }

    #[tokio::test]
    async fn the_end_of_a_batch_hands_out_what_waits_together() {
        let queue = Queue::new(100, 16, 1 << 20, PATIENT);
        queue.put(calls(1..2));
        let first = queue.take().await.unwrap();
        queue.put(calls(2..4));
        drop(first);
        assert_eq!(queue.take().await.unwrap().asked.len(), 2);
    }
}
