//! What all workers share: the configuration, the rules, the sources, the clients' count, and nothing that a statement waits for.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use holdfast_route::Topology;

use crate::{cancel::Cancels, config::RouterConfig, counts::Counts, source::Source};

/// Connections that may be on their way in beside those that have a place.
const ARRIVING_MAX: usize = 1024;

/// One router's common ground.
pub(crate) struct Shared {
    pub(crate) config: RouterConfig,
    /// In the order of their names, which is the rules' order.
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) rules: Option<Arc<Topology>>,
    pub(crate) cancels: Arc<Cancels>,
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
            config,
            sources,
            rules,
            cancels: Arc::default(),
            counts,
            clients: AtomicUsize::new(0),
        }
    }

    /// Counts a client in, unless there are so many that not even a word to it can be afforded.
    pub(crate) fn welcome(self: &Arc<Self>) -> Option<Visitor> {
        let before = self.clients.fetch_add(1, Ordering::Relaxed);
        let visitor = Visitor { shared: Arc::clone(self), before };
        self.counts.clients(before + 1);
        (before < self.config.limits.clients_max + ARRIVING_MAX).then_some(visitor)
    }
}
