//! What all workers share: the configuration, the rules, the sources, the clients' count, and nothing that a statement waits for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use holdfast_route::{MoveFate, MoveId};
use tokio::sync::watch;

use crate::{
    cancel::Cancels,
    config::{Limits, Live, RouterConfig},
    counts::Counts,
    deadlock::Deadlocks,
    follow::{Follower, watch_file},
    ledger::Turn,
    rules::Rules,
    source::Source,
};

/// Connections that may be on their way in beside those that have a place.
const ARRIVING_MAX: usize = 1024;

/// One router's common ground.
pub(crate) struct Shared {
    /// What the router began with: of what may change, `live` has what counts.
    pub(crate) config: Arc<RouterConfig>,
    pub(crate) live: watch::Sender<Live>,
    /// In the order of their names.
    pub(crate) sources: Vec<Arc<Source>>,
    /// `None`: everything goes to the only source.
    pub(crate) rules: Option<Rules>,
    /// `None`: there are no coordinators, or no rules.
    follower: Option<Follower>,
    pub(crate) cancels: Arc<Cancels>,
    pub(crate) deadlocks: Deadlocks,
    pub(crate) counts: Counts,
    /// Connections of clients, logged in or not.
    clients: AtomicUsize,
    /// For each worker the oldest by which something that it has planned may be unfinished.
    oldest: Box<[Oldest]>,
}

/// A [`Turn`] that a worker has told.
#[derive(Debug, Default)]
struct Oldest {
    epoch: AtomicU64,
    version: AtomicU64,
}

/// A client's connection, counted until it is dropped.
pub(crate) struct Visitor {
    shared: Arc<Shared>,
    /// How many there were when it came.
    before: usize,
}

impl Visitor {
    /// Whether it may have a session.
    pub(crate) fn has_room(&self) -> bool {
        self.before < self.shared.limits().clients_max
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let left = self.shared.clients.fetch_sub(1, Ordering::Relaxed) - 1;
        self.shared.counts.clients(left);
    }
}

impl Shared {
    pub(crate) fn new(
        config: Arc<RouterConfig>,
        rules: Option<Rules>,
        follower: Option<Follower>,
    ) -> Self {
        let mut sources = config.sources.clone();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let sources: Vec<_> = sources.into_iter().map(Source::new).collect();
        let rules = rules.map(|rules| rules.over(&sources));
        let counts = Counts::new(sources.iter().map(|source| source.name()));
        Self {
            live: watch::Sender::new(Live::of(&config)),
            oldest: (0..config.workers).map(|_| Oldest::default()).collect(),
            config,
            sources,
            rules,
            follower,
            cancels: Arc::default(),
            deadlocks: Deadlocks::default(),
            counts,
            clients: AtomicUsize::new(0),
        }
    }

    /// The bounds that count now. Not for the way of a statement: a worker has its own copy.
    pub(crate) fn limits(&self) -> Limits {
        self.live.borrow().limits
    }

    /// A worker says by what something that it has planned may be unfinished. It has taken what is new itself, so that what it will plan is no
    /// older.
    pub(crate) fn tell_oldest(&self, worker: usize, turn: Turn) {
        self.oldest[worker].epoch.store(turn.epoch, Ordering::Release);
        self.oldest[worker].version.store(turn.version, Ordering::Release);
    }

    /// A worker has ended, and left nothing unfinished.
    pub(crate) fn tell_end(&self, worker: usize) {
        self.tell_oldest(worker, Turn { epoch: u64::MAX, version: u64::MAX });
    }

    /// The oldest epoch by which something may be unfinished in this router.
    pub(crate) fn oldest(&self) -> u64 {
        let told = self.oldest.iter().map(|oldest| oldest.epoch.load(Ordering::Acquire));
        told.min().unwrap_or(0)
    }

    /// The same of versions.
    pub(crate) fn oldest_version(&self) -> u64 {
        let told = self.oldest.iter().map(|oldest| oldest.version.load(Ordering::Acquire));
        told.min().unwrap_or(0)
    }

    /// Whether all workers but the first have ended, and left nothing unfinished.
    pub(crate) fn others_left(&self) -> bool {
        let mut others = self.oldest.iter().skip(1);
        others.all(|oldest| oldest.epoch.load(Ordering::Acquire) == u64::MAX)
    }

    /// Tells the coordinators that this router has nothing open and will plan nothing any more.
    pub(crate) async fn leave(&self) {
        if let (Some(rules), Some(follower)) = (&self.rules, &self.follower) {
            follower.leave(rules).await;
        }
    }

    /// What becomes of what a move has prepared: by the versions of the rules that were in force here, or else by those that the coordinators keep.
    pub(crate) async fn move_fate(&self, id: &MoveId) -> MoveFate {
        let Some(rules) = self.rules.as_ref().filter(|rules| !rules.is_held()) else {
            return MoveFate::Unknown;
        };
        match (rules.fate(id), &self.follower) {
            (MoveFate::Unknown, Some(follower)) => {
                follower.fate(id).await.unwrap_or_else(|error| {
                    tracing::info!(%id, %error, "the coordinators cannot be asked about a move");
                    MoveFate::Unknown
                })
            }
            (known, _) => known,
        }
    }

    /// Keeps the rules as new as the log or the file that they come from.
    pub(crate) async fn follow_rules(&self) {
        match (&self.rules, &self.follower, &self.config.rules) {
            (Some(rules), Some(follower), _) => follower.follow(rules, || self.oldest()).await,
            // Each change of the file is one epoch.
            (Some(rules), None, Some(path)) => {
                watch_file(path, rules, &self.config, |epoch| epoch + 1).await;
            }
            _ => {}
        }
    }

    /// Counts a client in, unless there are so many that not even a word to it can be afforded.
    pub(crate) fn welcome(self: &Arc<Self>) -> Option<Visitor> {
        let before = self.clients.fetch_add(1, Ordering::Relaxed);
        let visitor = Visitor { shared: Arc::clone(self), before };
        self.counts.clients(before + 1);
        (before < self.limits().clients_max + ARRIVING_MAX).then_some(visitor)
    }
}
