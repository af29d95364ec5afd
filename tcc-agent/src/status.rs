//! How an agent is doing, for its health and metrics door.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// A handle on how an agent is doing; clones look at the same agent. Give it to [`crate::serve`] in its configuration.
#[derive(Clone, Default)]
pub struct Status {
    numbers: Arc<Numbers>,
}

#[derive(Default)]
struct Numbers {
    connected: AtomicUsize,
    under_way: AtomicUsize,
    draining: AtomicBool,
}

impl Status {
    /// Coordinator nodes that have welcomed this agent and whose session is alive.
    #[must_use]
    pub fn connected_coordinators(&self) -> usize {
        self.numbers.connected.load(Ordering::Relaxed)
    }

    /// Calls that came over live sessions and are not answered yet.
    #[must_use]
    pub fn calls_under_way(&self) -> usize {
        self.numbers.under_way.load(Ordering::Relaxed)
    }

    /// Shutdown was asked for: no further calls are wanted.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.numbers.draining.load(Ordering::Relaxed)
    }

    /// Ready: at least one coordinator can make calls here, and calls are wanted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connected_coordinators() > 0 && !self.is_draining()
    }

    pub(crate) fn drain(&self) {
        self.numbers.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn connect(&self) -> Connected {
        let connected = self.numbers.connected.fetch_add(1, Ordering::Relaxed) + 1;
        gauge_connected(connected);
        Connected { status: self.clone() }
    }

    pub(crate) fn begin(&self) -> UnderWay {
        UnderWay { status: self.clone(), open: 0 }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("connected_coordinators", &self.connected_coordinators())
            .field("calls_under_way", &self.calls_under_way())
            .field("is_draining", &self.is_draining())
            .finish()
    }
}

/// One welcomed session; it counts until it is dropped.
pub(crate) struct Connected {
    status: Status,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let before = self.status.numbers.connected.fetch_sub(1, Ordering::Relaxed);
        gauge_connected(before.saturating_sub(1));
    }
}

fn gauge_connected(connected: usize) {
    metrics::gauge!("holdfast_agent_coordinators_connected")
        .set(u32::try_from(connected).unwrap_or(u32::MAX));
}

/// The calls under way of one session; they count until they are answered or the session ends.
pub(crate) struct UnderWay {
    status: Status,
    open: usize,
}

impl UnderWay {
    pub(crate) const fn open(&self) -> usize {
        self.open
    }

    pub(crate) fn add(&mut self, calls: usize) {
        self.open += calls;
        self.status.numbers.under_way.fetch_add(calls, Ordering::Relaxed);
        metrics::gauge!("holdfast_agent_calls_under_way")
            .increment(u32::try_from(calls).unwrap_or(u32::MAX));
    }

    pub(crate) fn remove(&mut self, calls: usize) {
        self.open -= calls;
        self.status.numbers.under_way.fetch_sub(calls, Ordering::Relaxed);
        metrics::gauge!("holdfast_agent_calls_under_way")
            .decrement(u32::try_from(calls).unwrap_or(u32::MAX));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.remove(self.open);
    }
}
