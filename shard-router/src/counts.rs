//! The router's numbers. Counters are kept as handles, so that counting costs one addition.

use metrics::{Counter, Gauge, counter, gauge};

/// Handles of everything that is counted.
pub(crate) struct Counts {
    clients: Gauge,
    pub(crate) logins_failed: Counter,
    pub(crate) routed: Vec<Counter>,
    pub(crate) scattered: Counter,
    pub(crate) plan_hits: Counter,
    pub(crate) plan_misses: Counter,
    pub(crate) deadlocks: Counter,
}

impl Counts {
    pub(crate) fn new<'n>(sources: impl Iterator<Item = &'n str>) -> Self {
        Self {
            clients: gauge!("holdfast_router_clients"),
            logins_failed: counter!("holdfast_router_logins_failed_total"),
            routed: sources
                .map(|source| counter!("holdfast_router_routed_total", "source" => source.to_owned()))
                .collect(),
            scattered: counter!("holdfast_router_scattered_total"),
            plan_hits: counter!("holdfast_router_plan_hits_total"),
            plan_misses: counter!("holdfast_router_plan_misses_total"),
            deadlocks: counter!("holdfast_router_deadlocks_total"),
        }
    }

    /// So many client connections there are.
    pub(crate) fn clients(&self, count: usize) {
        self.clients.set(count as f64);
    }

    /// A transaction that wrote to several sources came to this.
    pub(crate) fn global(result: &'static str) {
        counter!("holdfast_router_global_total", "result" => result).increment(1);
    }

    /// So many names are prepared on a source.
    pub(crate) fn in_doubt(source: &str, count: usize) {
        gauge!("holdfast_router_in_doubt", "source" => source.to_owned()).set(count as f64);
    }

    /// An orphan was ended.
    pub(crate) fn swept(committed: bool) {
        let result = if committed { "committed" } else { "rolled_back" };
        counter!("holdfast_router_swept_total", "result" => result).increment(1);
    }

    /// A statement was refused with this code.
    pub(crate) fn refused(code: &'static str) {
        counter!("holdfast_router_refused_total", "code" => code).increment(1);
    }
}
