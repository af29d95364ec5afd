//! What all workers share: the configuration, the rules, the sources, the clients' count, and nothing that a statement waits for.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use holdfast_route::Topology;

use crate::{
    cancel::Cancels, config::RouterConfig, counts::Counts, deadlock::Deadlocks, source::Source,
};

/// Connections that may be on their way in beside those that have a place.
const ARRIVING_MAX: usize = 1024;

/// One router's common ground.
pub(crate) struct Shared {
    pub(crate) config: Arc<RouterConfig>,
    /// In the order of their names, which is the rules' order.
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) rules: Option<Arc<Topology>>,
    /// Rules that came after the first, and how many there were.
    later_rules: Mutex<Option<Arc<Topology>>>,
    rules_version: AtomicU64,
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
        self.before < self.shared.config.limits.clients_max
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let left = self.shared.clients.fetch_sub(1, Ordering::Relaxed) - 1;
        self.shared.counts.clients(left);
    }
}

impl Shared {
    pub(crate) fn new(config: RouterConfig, rules: Option<Arc<Topology>>) -> Self {
        let mut sources = config.sources.clone();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let sources: Vec<_> = sources.into_iter().map(Source::new).collect();
        let counts = Counts::new(sources.iter().map(|source| source.name()));
        Self {
            config: Arc::new(config),
            sources,
            rules,
            later_rules: Mutex::new(None),
            rules_version: AtomicU64::new(0),
            cancels: Arc::default(),
            deadlocks: Deadlocks::default(),
            counts,
            clients: AtomicUsize::new(0),
        }
    }

    /// From here on these rules count, for every statement that is not planned yet.
    pub(crate) fn publish(&self, rules: Arc<Topology>) {
        *self.later_rules.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
        self.rules_version.fetch_add(1, Ordering::Release);
    }

    /// How often rules were published.
    pub(crate) fn rules_version(&self) -> u64 {
        self.rules_version.load(Ordering::Acquire)
    }

    /// The rules that were published last.
    pub(crate) fn later_rules(&self) -> Option<Arc<Topology>> {
        self.later_rules.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a client in, unless there are so many that not even a word to it can be afforded.
    pub(crate) fn welcome(self: &Arc<Self>) -> Option<Visitor> {
        let before = self.clients.fetch_add(1, Ordering::Relaxed);
        let visitor = Visitor { shared: Arc::clone(self), before };
        self.counts.clients(before + 1);
        (before < self.config.limits.clients_max + ARRIVING_MAX).then_some(visitor)
    }
}
