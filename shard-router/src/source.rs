//! A source: one PostgreSQL by name, its servers, and which of them is the primary now.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use crate::config::{Endpoint, SourceConfig};

/// A server's last check: nothing heard yet, or heard that it is unreachable.
pub(crate) const LAG_UNKNOWN: u64 = u64::MAX;

/// One source, shared by all workers.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) config: SourceConfig,
    primary: AtomicUsize,
    reachable: AtomicBool,
    /// For each server, how far it was behind at the last check, ms; [`LAG_UNKNOWN`] for a primary or an unreachable one.
    lags_ms: Vec<AtomicU64>,
}

impl Source {
    pub(crate) fn new(config: SourceConfig) -> Arc<Self> {
        let lags_ms = config.addresses.iter().map(|_| AtomicU64::new(LAG_UNKNOWN)).collect();
        Arc::new(Self {
            config,
            primary: AtomicUsize::new(0),
            reachable: AtomicBool::new(true),
            lags_ms,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Which address is the primary's.
    pub(crate) fn primary_index(&self) -> usize {
        self.primary.load(Ordering::Relaxed)
    }

    /// One of its addresses.
    pub(crate) fn endpoint(&self, index: usize) -> Option<&Endpoint> {
        self.config.addresses.get(index)
    }

    /// A check found the primary there.
    pub(crate) fn primary_found(&self, index: usize) {
        let before = self.primary.swap(index, Ordering::Relaxed);
        if before != index {
            tracing::warn!(source = self.name(), from = before, to = index, "another primary");
        }
        if !self.reachable.swap(true, Ordering::Relaxed) {
            tracing::info!(source = self.name(), "the source is reachable again");
        }
    }

    /// A connection was made.
    pub(crate) fn reached(&self) {
        self.reachable.store(true, Ordering::Relaxed);
    }

    /// A connection failed.
    pub(crate) fn not_reached(&self) {
        self.reachable.store(false, Ordering::Relaxed);
    }

    /// Whether the last attempt reached it.
    pub(crate) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// How far a replica was behind at its last check, ms.
    pub(crate) fn set_lag_ms(&self, index: usize, lag_ms: u64) {
        self.lags_ms[index].store(lag_ms, Ordering::Relaxed);
    }
}
