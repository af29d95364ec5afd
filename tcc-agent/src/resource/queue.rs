//! Calls that wait for a connection: a bounded queue that hands out batches in which no branch occurs twice.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{handler::Asked, participant::Gid};

/// How far past the size of a batch a worker looks for calls whose branch is not busy.
const LOOK_AHEAD_FACTOR: usize = 4;

pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    waiting_max: usize,
    batch_max: usize,
    batch_bytes_max: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Asked>,
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
    pub(crate) fn new(waiting_max: usize, batch_max: usize, batch_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Notify::new(),
            waiting_max,
            batch_max: batch_max.max(1),
            batch_bytes_max,
        })
    }

    /// Puts calls behind those that wait. Gives back what there is no room for.
    pub(crate) fn put(&self, asked: Vec<Asked>) -> Vec<Asked> {
        let mut state = self.state();
        let room =
            if state.closed { 0 } else { self.waiting_max.saturating_sub(state.waiting.len()) };
        let mut asked = asked;
        let left_over = asked.split_off(room.min(asked.len()));
        state.waiting.extend(asked);
        drop(state);
        self.changed.notify_one();
        left_over
    }

    /// Waits for calls and takes as many as one batch may have. `None`: the queue is closed and empty.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<Batch> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(batch) = self.pick(&mut state) {
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
            }
            changed.await;
        }
    }

    /// Takes no more calls; those that wait are still handed out.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    fn pick(self: &Arc<Self>, state: &mut State) -> Option<Batch> {
        let mut asked = Vec::new();
        let mut branches = Vec::new();
        let mut passed_over = Vec::new();
        let mut bytes = 0_usize;
        for _ in 0..self.batch_max.saturating_mul(LOOK_AHEAD_FACTOR) {
            if asked.len() == self.batch_max {
                break;
            }
            let Some(next) = state.waiting.pop_front() else { break };
            let branch = (next.call.gid.clone(), next.call.branch);
            bytes = bytes.saturating_add(next.call.payload.len());
            if bytes > self.batch_bytes_max && !asked.is_empty() {
                state.waiting.push_front(next);
                break;
            }
            if state.busy.contains(&branch) {
                bytes = bytes.saturating_sub(next.call.payload.len());
                passed_over.push(next);
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
        (!asked.is_empty()).then(|| Batch { asked, branches, queue: Arc::clone(self) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        for branch in &self.branches {
            state.busy.remove(branch);
        }
        drop(state);
        self.queue.changed.notify_one();
    }
}
