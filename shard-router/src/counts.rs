//! The router's numbers. Counters are kept as handles, so that counting costs one addition.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::health::standing::Role;

/// Handles of everything that is counted.
pub(crate) struct Counts {
    clients: Gauge,
    pub(crate) logins_failed: Counter,
    pub(crate) routed: Vec<Counter>,
    /// Of them, answered by a replica.
    pub(crate) by_replica: Vec<Counter>,
    pub(crate) scattered: Counter,
    pub(crate) plan_hits: Counter,
    pub(crate) plan_misses: Counter,
    pub(crate) deadlocks: Counter,
    waiting: Arc<Waits>,
}

/// Statements that wait for slots which are being moved.
struct Waits {
    count: AtomicUsize,
    gauge: Gauge,
    seconds: Histogram,
}

/// One of them, until it is dropped.
pub(crate) struct Waiting {
    waits: Arc<Waits>,
    since: Instant,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let left = self.waits.count.fetch_sub(1, Ordering::Relaxed) - 1;
        self.waits.gauge.set(left as f64);
        self.waits.seconds.record(self.since.elapsed().as_secs_f64());
    }
}

impl Counts {
    pub(crate) fn new<'n>(sources: impl Iterator<Item = &'n str> + Clone) -> Self {
        let by_replica = sources.clone().map(
            |source| counter!("holdfast_router_replica_reads_total", "source" => source.to_owned()),
        );
        Self {
            by_replica: by_replica.collect(),
            clients: gauge!("holdfast_router_clients"),
            logins_failed: counter!("holdfast_router_logins_failed_total"),
            routed: sources
                .map(|source| counter!("holdfast_router_routed_total", "source" => source.to_owned()))
                .collect(),
            scattered: counter!("holdfast_router_scattered_total"),
            plan_hits: counter!("holdfast_router_plan_hits_total"),
            plan_misses: counter!("holdfast_router_plan_misses_total"),
            deadlocks: counter!("holdfast_router_deadlocks_total"),
            waiting: Arc::new(Waits {
                count: AtomicUsize::new(0),
                gauge: gauge!("holdfast_router_waiting_for_slots"),
                seconds: histogram!("holdfast_router_slot_wait_seconds"),
            }),
        }
    }

    /// One more statement waits for slots.
    pub(crate) fn waits(&self) -> Waiting {
        let count = self.waiting.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.waiting.gauge.set(count as f64);
        Waiting { waits: Arc::clone(&self.waiting), since: Instant::now() }
    }

    /// How many there are.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.count.load(Ordering::Relaxed)
    }

    /// What a move has prepared at a source was ended.
    pub(crate) fn move_ended(committed: bool) {
        let result = if committed { "committed" } else { "rolled_back" };
        counter!("holdfast_router_move_ends_total", "result" => result).increment(1);
    }

    /// So many client connections there are.
    pub(crate) fn clients(&self, count: usize) {
        self.clients.set(count as f64);
    }

    /// A source has another primary.
    pub(crate) fn primary_changed(source: &str) {
        counter!("holdfast_router_primary_changes_total", "source" => source.to_owned())
            .increment(1);
    }

    /// What a server is, of a source that has several; `age`: of its rows, where it is a replica and that is known.
    pub(crate) fn server(source: &str, address: &str, role: Role, age: Option<Duration>) {
        let labels = [("source", source.to_owned()), ("address", address.to_owned())];
        let primary = f64::from(u8::from(role == Role::Primary));
        gauge!("holdfast_router_server_primary", &labels).set(primary);
        let age = age.map_or(f64::INFINITY, |age| age.as_secs_f64());
        let age = if role == Role::Primary { 0.0 } else { age };
        gauge!("holdfast_router_server_age_seconds", &labels).set(age);
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
