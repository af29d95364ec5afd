//! Callers that wait for a transaction's decision or end: registered before they look, woken by the replica.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use holdfast_txn::{Gid, GlobalTransaction, Status};
use tokio::sync::oneshot;

use crate::coordinator::{WaitEnd, WaitUntil};

type ByGid = HashMap<Gid, Vec<Entry>, foldhash::fast::RandomState>;

/// Everybody who waits on this node.
#[derive(Debug)]
pub(crate) struct Waiters {
    by_gid: Mutex<ByGid>,
    count: AtomicUsize,
    next_id: AtomicU64,
    count_max: usize,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    until: WaitUntil,
    wake: oneshot::Sender<WaitEnd>,
}

/// One wait. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Waiting {
    waiters: Arc<Waiters>,
    gid: Gid,
    id: u64,
    woken: oneshot::Receiver<WaitEnd>,
    /// It was woken: whoever did that has taken it off the list.
    ended: bool,
}

/// Whether waiting `until` is over for a transaction in this state.
pub(crate) fn end_of(transaction: &GlobalTransaction, until: WaitUntil) -> Option<WaitEnd> {
    let reached = match until {
        WaitUntil::Applied => true,
        WaitUntil::Decision => transaction.decision.is_some() || transaction.status.is_final(),
        WaitUntil::End => transaction.status.is_final(),
    };
    match (reached, transaction.status) {
        (true, _) => Some(WaitEnd::Reached),
        (false, Status::NeedsAttention) => Some(WaitEnd::NeedsAttention),
        (false, _) => None,
    }
}

impl Waiters {
    pub(crate) fn new(count_max: usize) -> Arc<Self> {
        Arc::new(Self {
            by_gid: Mutex::default(),
            count: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
            count_max,
        })
    }

    /// Takes a place; `None` when all are taken.
    pub(crate) fn register(self: &Arc<Self>, gid: &Gid, until: WaitUntil) -> Option<Waiting> {
        let taken = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < self.count_max).then_some(count + 1)
        });
        taken.ok()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (wake, woken) = oneshot::channel();
        let entries = &mut *self.held();
        let entries = entries.entry(gid.clone()).or_insert_with(|| Vec::with_capacity(1));
        entries.push(Entry { id, until, wake });
        Some(Waiting { waiters: Arc::clone(self), gid: gid.clone(), id, woken, ended: false })
    }

    /// Wakes those whose wait is over now that `transaction` is as it is.
    pub(crate) fn moved(&self, transaction: &GlobalTransaction) {
        if self.count() == 0 {
            return;
        }
        let mut held = self.held();
        let Some(entries) = held.get_mut(&transaction.gid) else { return };
        let mut index = 0;
        while index < entries.len() {
            match end_of(transaction, entries[index].until) {
                Some(end) => {
                    // Who has gone does not hear it.
                    let _gone = entries.swap_remove(index).wake.send(end);
                }
                None => index += 1,
            }
        }
        if entries.is_empty() {
            held.remove(&transaction.gid);
        }
    }

    /// Wakes everybody, since this node cannot tell any more.
    pub(crate) fn end_all(&self, end: WaitEnd) {
        let everybody = std::mem::take(&mut *self.held());
        for entry in everybody.into_values().flatten() {
            let _gone = entry.wake.send(end);
        }
    }

    /// Whether somebody waits for `gid`.
    pub(crate) fn anyone_for(&self, gid: &Gid) -> bool {
        self.count() > 0 && self.held().contains_key(gid)
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn held(&self) -> MutexGuard<'_, ByGid> {
        self.by_gid.lock().expect("nobody panics while holding the waiters")
    }
}

impl Waiting {
    /// Until somebody wakes this wait.
    pub(crate) async fn woken(&mut self) -> WaitEnd {
        let woken = (&mut self.woken).await;
        self.ended |= woken.is_ok();
        woken.unwrap_or(WaitEnd::NotLeading)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.ended {
            let mut held = self.waiters.held();
            if let Some(entries) = held.get_mut(&self.gid) {
                entries.retain(|entry| entry.id != self.id);
                if entries.is_empty() {
                    held.remove(&self.gid);
                }
            }
        }
        self.waiters.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(text: &str) -> Gid {
        Gid::parse(text).unwrap()
    }

    #[test]
    fn the_last_place_is_given_and_one_more_is_not() {
        let waiters = Waiters::new(2);
        let first = waiters.register(&gid("g1"), WaitUntil::End).unwrap();
        let _second = waiters.register(&gid("g1"), WaitUntil::End).unwrap();
        assert!(waiters.register(&gid("g2"), WaitUntil::End).is_none());
        drop(first);
        assert!(waiters.register(&gid("g2"), WaitUntil::End).is_some());
    }

    #[test]
    fn a_place_that_is_given_back_leaves_nothing_behind() {
        let waiters = Waiters::new(2);
        let waiting = waiters.register(&gid("g1"), WaitUntil::Decision).unwrap();
        assert!(waiters.anyone_for(&gid("g1")));
        assert!(!waiters.anyone_for(&gid("g2")));
        drop(waiting);
        assert!(!waiters.anyone_for(&gid("g1")));
        assert!(waiters.held().is_empty());
        assert_eq!(waiters.count(), 0);
    }

    #[tokio::test]
    async fn the_loss_of_leadership_wakes_everybody() {
        let waiters = Waiters::new(8);
        let mut waiting = waiters.register(&gid("g1"), WaitUntil::Decision).unwrap();
        waiters.end_all(WaitEnd::NotLeading);
        assert_eq!(waiting.woken().await, WaitEnd::NotLeading);
        drop(waiting);
        assert_eq!(waiters.count(), 0);
    }
}
