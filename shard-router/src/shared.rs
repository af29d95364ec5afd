//! What all workers share: the configuration, the rules, the sources, the clients' count, and nothing that a statement waits for.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::watch;

use crate::{
    cancel::Cancels,
    config::{Limits, Live, RouterConfig},
    counts::Counts,
    deadlock::Deadlocks,
    follow::{Follower, watch_file},
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
        let counts = Counts::new(sources.iter().map(|source| source.name()));
        Self {
            live: watch::Sender::new(Live::of(&config)),
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

    /// Keeps the rules as new as the log or the file that they come from.
    pub(crate) async fn follow_rules(&self) {
        match (&self.rules, &self.follower, &self.config.rules) {
            (Some(rules), Some(follower), _) => follower.follow(rules).await,
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
