//! A source: one PostgreSQL by name, its servers, and which of them is the primary now.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use crate::{
    config::{Endpoint, SourceConfig},
    counts::Counts,
    health::standing::{Heard, Role},
};

const NONE: usize = usize::MAX;

/// One source, shared by all workers.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) config: SourceConfig,
    clock: Instant,
    /// The last one known; connections to it that stand are good.
    primary: AtomicUsize,
    /// The one that new connections are made to; `None` while that is in doubt.
    sure: watch::Sender<Option<Sure>>,
    /// How often a connection to the primary was lost or could not be made.
    doubts: AtomicU64,
    reachable: AtomicBool,
    servers: Vec<Judged>,
    turn: AtomicUsize,
    /// Since the router's start, microseconds: replicas that have not everything as of then are not used, for rows have come here or left. The
    /// greatest number: none is.
    settled: AtomicU64,
}

/// A primary, as it was when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sure {
    pub(crate) index: usize,
    timeline: u32,
    started: u64,
}

impl Sure {
    /// Whether this is what that primary says of itself: it was neither started again nor left behind since.
    pub(crate) fn is(&self, heard: &Heard) -> bool {
        !heard.recovering && heard.timeline == Some(self.timeline) && heard.started == self.started
    }
}

/// What the last look says of one server.
#[derive(Debug)]
struct Judged {
    role: Mutex<Role>,
    /// Since the router's start, microseconds: as of then it has everything. 0: not known.
    fresh: AtomicU64,
}

impl Source {
    pub(crate) fn new(config: SourceConfig) -> Arc<Self> {
        let servers = config
            .addresses
            .iter()
            .map(|_| Judged { role: Mutex::new(Role::Silent), fresh: AtomicU64::new(0) });
        let servers: Vec<_> = servers.collect();
        // The only server is taken as it is; among several none is used before all were asked.
        let only = servers.len() == 1;
        let sure = only.then_some(Sure { index: 0, timeline: 0, started: 0 });
        Arc::new(Self {
            config,
            clock: Instant::now(),
            primary: AtomicUsize::new(if only { 0 } else { NONE }),
            sure: watch::Sender::new(sure),
            doubts: AtomicU64::new(0),
            reachable: AtomicBool::new(true),
            servers,
            turn: AtomicUsize::new(0),
            settled: AtomicU64::new(0),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether it has one server only, which is the primary whatever it says.
    pub(crate) fn has_one_server(&self) -> bool {
        self.servers.len() == 1
    }

    /// Which address is the primary's; `None` before one was found.
    pub(crate) fn primary_index(&self) -> Option<usize> {
        Some(self.primary.load(Ordering::Relaxed)).filter(|index| *index != NONE)
    }

    /// Whether a connection to `endpoint` leads to the primary.
    pub(crate) fn is_primary(&self, endpoint: &Endpoint) -> bool {
        self.has_one_server()
            || self.primary_index().and_then(|index| self.endpoint(index)) == Some(endpoint)
    }

    /// The primary that a new connection may be made to, as soon as that is known.
    pub(crate) async fn primary(&self, within: Duration) -> Option<Sure> {
        let mut sure = self.sure.subscribe();
        match timeout(within, sure.wait_for(Option::is_some)).await {
            Ok(Ok(sure)) => *sure,
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// One of its addresses.
    pub(crate) fn endpoint(&self, index: usize) -> Option<&Endpoint> {
        self.config.addresses.get(index)
    }

    /// Since the router's start.
    pub(crate) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// To be taken before servers are asked, and given to [`Self::primary_found`].
    pub(crate) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Relaxed)
    }

    /// A look found the primary there. Doubts that came while it looked stay until the next one.
    pub(crate) fn primary_found(&self, index: usize, timeline: u32, started: u64, doubts: u64) {
        let before = self.primary.swap(index, Ordering::Relaxed);
        if before != index && before != NONE {
            Counts::primary_changed(self.name());
            tracing::warn!(
                source = self.name(),
                from = before,
                to = index,
                timeline,
                "another primary"
            );
        }
        if !self.has_one_server() {
            self.sure.send_if_modified(|sure| {
                // Looked at in here: a doubt is counted before it comes in, so that none slips in between.
                let found = (self.doubts() == doubts).then_some(Sure { index, timeline, started });
                std::mem::replace(sure, found) != found
            });
        }
        if !self.reachable.swap(true, Ordering::Relaxed) {
            tracing::info!(source = self.name(), "the source is reachable again");
        }
    }

    /// A look found no server that takes writes.
    pub(crate) fn no_primary(&self) {
        if !self.has_one_server() {
            self.sure.send_if_modified(|sure| sure.take().is_some());
        }
        self.not_reached();
    }

    /// A connection to the primary was lost, or is not what it was: no new one is made until all servers were asked again.
    pub(crate) fn doubt(&self) {
        if !self.has_one_server() {
            self.doubts.fetch_add(1, Ordering::Relaxed);
            self.sure.send_if_modified(|sure| sure.take().is_some());
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

    /// What a look says of a server; `fresh`: as of when it has everything.
    pub(crate) fn judged(&self, index: usize, role: Role, fresh: Option<Duration>) {
        let server = &self.servers[index];
        let before = std::mem::replace(
            &mut *server.role.lock().unwrap_or_else(PoisonError::into_inner),
            role,
        );
        if before != role && matches!(role, Role::Former | Role::Stranger) {
            let address = self.endpoint(index).map(ToString::to_string);
            tracing::error!(
                source = self.name(),
                address,
                is = role.name(),
                "a server is not used"
            );
        }
        server.fresh.store(fresh.map_or(0, micros), Ordering::Relaxed);
        if self.has_one_server() {
            return;
        }
        let address = self.endpoint(index).map(ToString::to_string).unwrap_or_default();
        Counts::server(self.name(), &address, role, self.age(index));
    }

    /// What a server was at the last look.
    pub(crate) fn role(&self, index: usize) -> Role {
        *self.servers[index].role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How old the rows of a replica may be now; `None`: not known.
    pub(crate) fn age(&self, index: usize) -> Option<Duration> {
        let fresh = self.servers[index].fresh.load(Ordering::Relaxed);
        let known = fresh > 0 && fresh >= self.settled.load(Ordering::Relaxed);
        known.then(|| self.now().saturating_sub(Duration::from_micros(fresh)))
    }

    /// Rows are moved here or away, and nobody knows yet since when: no replica is used.
    pub(crate) fn distrust_replicas(&self) {
        self.settled.store(u64::MAX, Ordering::Relaxed);
    }

    /// As of now all rows are where they belong: a replica that has everything as of now is used again.
    pub(crate) fn trust_replicas(&self) {
        self.settled.store(micros(self.now()), Ordering::Relaxed);
    }

    /// A replica whose rows are at most so old, each in its turn.
    pub(crate) fn replica_within(&self, age_max: Duration) -> Option<usize> {
        let count = self.servers.len();
        let from = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut indexes = (0..count).map(|step| from.wrapping_add(step) % count);
        indexes.find(|index| self.age(*index).is_some_and(|age| age <= age_max))
    }

    /// A replica could not be reached: its age is unknown until the next look.
    pub(crate) fn forget_age(&self, index: usize) {
        self.servers[index].fresh.store(0, Ordering::Relaxed);
    }
}

/// At least 1.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(addresses: &[&str]) -> Arc<Source> {
        Source::new(SourceConfig {
            name: "s".into(),
            addresses: addresses.iter().map(|address| Endpoint::parse(address)).collect(),
            database: None,
            user: None,
            password: None,
            weak_authentication: false,
            tls: None,
        })
    }

    const SOON: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn among_several_none_is_used_before_they_were_asked_nor_after_a_doubt() {
        let source = source(&["a:1", "b:2"]);
        assert_eq!(source.primary(SOON).await, None);
        source.primary_found(1, 1, 5, source.doubts());
        assert_eq!(source.primary(SOON).await.map(|sure| sure.index), Some(1));
        assert!(source.is_primary(&Endpoint::parse("b:2")));
        let before = source.doubts();
        source.doubt();
        source.primary_found(1, 1, 5, before);
        assert_eq!(source.primary(SOON).await, None, "it was asked before the doubt");
        assert_eq!(source.primary_index(), Some(1), "connections that stand are good");
        source.primary_found(0, 2, 6, source.doubts());
        assert_eq!(source.primary(SOON).await.map(|sure| sure.index), Some(0));
        source.no_primary();
        assert_eq!(source.primary(SOON).await, None);
    }

    #[tokio::test]
    async fn the_only_server_is_used_as_it_is() {
        let source = source(&["a:1"]);
        source.doubt();
        source.no_primary();
        assert_eq!(source.primary(SOON).await.map(|sure| sure.index), Some(0));
        assert!(!source.is_reachable());
    }

    #[test]
    fn a_replica_is_read_from_while_its_age_is_known_and_within_the_bound() {
        let source = source(&["a:1", "b:2", "c:3"]);
        let minute = Duration::from_secs(60);
        assert_eq!(source.replica_within(minute), None, "none is known");
        source.judged(1, Role::Replica, Some(source.now()));
        assert_eq!(source.replica_within(minute), Some(1));
        assert_eq!(source.replica_within(Duration::ZERO), None);
        source.judged(2, Role::Replica, Some(source.now()));
        let found: std::collections::BTreeSet<_> =
            (0..6).map(|_| source.replica_within(minute)).collect();
        assert_eq!(found, [Some(1), Some(2)].into(), "each in its turn");
        source.forget_age(1);
        source.judged(2, Role::Replica, None);
        assert_eq!(source.replica_within(minute), None);
    }

    #[test]
    fn while_rows_move_no_replica_is_read_from_and_then_only_one_that_has_them() {
        let source = source(&["a:1", "b:2"]);
        let minute = Duration::from_secs(60);
        let before = source.now();
        source.judged(1, Role::Replica, Some(before));
        source.distrust_replicas();
        assert_eq!((source.replica_within(minute), source.age(1)), (None, None));
        std::thread::sleep(Duration::from_micros(2));
        source.trust_replicas();
        assert_eq!(source.replica_within(minute), None, "it may not have them yet");
        source.judged(1, Role::Replica, Some(source.now()));
        assert_eq!(source.replica_within(minute), Some(1));
    }

    #[test]
    fn a_primary_that_was_started_again_is_not_the_one_that_was_asked() {
        let sure = Sure { index: 0, timeline: 2, started: 7 };
        let heard =
            Heard { recovering: false, system: 1, timeline: Some(2), position: 9, started: 7 };
        assert!(sure.is(&heard));
        assert!(!sure.is(&Heard { started: 8, ..heard.clone() }));
        assert!(!sure.is(&Heard { timeline: Some(1), ..heard.clone() }));
        assert!(!sure.is(&Heard { recovering: true, ..heard }));
    }
}
