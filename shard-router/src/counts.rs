//! The router's numbers. Counters are kept as handles, so that counting costs one addition.

use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};

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
        }
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
