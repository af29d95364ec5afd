//! Moves as they happen, for those who watch: a bounded broadcast that costs nothing while nobody does.

use std::sync::Arc;

use holdfast_proto::v1;
use holdfast_txn::GlobalTransaction;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

use crate::{config::limit, rpc::show};

/// Everybody who watches on this node.
#[derive(Debug)]
pub(crate) struct Watchers {
    told: broadcast::Sender<Arc<v1::Transaction>>,
    places: Arc<Semaphore>,
    /// The epoch of the shard rules here.
    epoch: watch::Sender<u64>,
}

/// One who watches. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Watching {
    pub(crate) moves: broadcast::Receiver<Arc<v1::Transaction>>,
    _place: OwnedSemaphorePermit,
}

impl Watchers {
    pub(crate) fn new() -> Arc<Self> {
        let places = Arc::new(Semaphore::new(limit::WATCHERS_MAX));
        Arc::new(Self {
            told: broadcast::Sender::new(limit::MOVES_BEHIND_MAX),
            places,
            epoch: watch::Sender::new(0),
        })
    }

    /// Tells those who watch. Never waits: who is too slow finds that it missed some.
    pub(crate) fn moved(&self, transaction: &GlobalTransaction) {
        if self.told.receiver_count() > 0 {
            // The last one may just have gone.
            let _gone = self.told.send(Arc::new(show::transaction(transaction)));
        }
    }

    /// Whether anybody watches moves.
    pub(crate) fn anyone(&self) -> bool {
        self.told.receiver_count() > 0
    }

    /// The shard rules have this epoch now.
    pub(crate) fn rules_at(&self, epoch: u64) {
        self.epoch.send_if_modified(|known| std::mem::replace(known, epoch) != epoch);
    }

    /// The epoch of the shard rules, as it changes, for the node itself.
    pub(crate) fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// The epoch of the shard rules, as it changes, and a place; `None` when all are taken.
    pub(crate) fn watch_rules(&self) -> Option<(watch::Receiver<u64>, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some((self.epochs(), place))
    }

    /// Takes a place; `None` when all are taken.
    pub(crate) fn watch(&self) -> Option<Watching> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Watching { moves: self.told.subscribe(), _place: place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_may_be_as_far_behind_as_allowed_and_one_move_further_misses_one() {
        let moves = Watchers::new();
        let mut watching = moves.watch().unwrap();
        let tell = |count: usize| (0..count).for_each(|_| drop(moves.told.send(Arc::default())));
        tell(limit::MOVES_BEHIND_MAX);
        assert!(watching.moves.try_recv().is_ok(), "the first of them is there");
        tell(2);
        let missed = watching.moves.try_recv().unwrap_err();
        assert_eq!(missed, broadcast::error::TryRecvError::Lagged(1));
    }

    #[test]
    fn the_last_place_is_given_and_one_more_is_not() {
        let moves = Watchers::new();
        let mut watching: Vec<_> = (0..limit::WATCHERS_MAX).map(|_| moves.watch()).collect();
        assert!(watching.iter().all(Option::is_some));
        assert!(moves.watch().is_none());
        watching.pop();
        assert!(moves.watch().is_some());
    }

    #[test]
    fn who_watches_the_rules_takes_a_place_of_the_same_and_one_more_gets_none() {
        let moves = Watchers::new();
        let _watching: Vec<_> = (1..limit::WATCHERS_MAX).map(|_| moves.watch()).collect();
        let rules = moves.watch_rules();
        assert!(rules.is_some(), "the last place");
        assert!(moves.watch_rules().is_none() && moves.watch().is_none());
        drop(rules);
        assert!(moves.watch_rules().is_some());
    }
}
