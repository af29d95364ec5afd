//! Deadlocks across sources: transactions that wait for each other on several servers, of which no server sees the whole circle.
//!
//! A server of a transaction on several sources bears a tag in its `application_name` before it is put to work for it; the one that the
//! transaction began with, which is quiet then, only once another is seen waiting. While this router has such transactions open, it asks
//! each source who waits for whom, and looks for circles in all answers together. Answers of several servers are not of one moment,
//! so a circle counts when it stands in two looks. The youngest transaction of a circle gives way: its router cancels it, and its client
//! is told 40P01. Every router sees the tags of all, and ends only its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    backend::{Server, connect},
    health::account,
    refusal::Refusal,
    shared::Shared,
    source::Source,
};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(300);
/// Entries from which on those that ended are dropped before another one is kept.
const ENDED_MAX: usize = 1_024;
/// For one source to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Of a tag; behind it stands the gid. Both fit into PostgreSQL's 63 bytes.
const TAG: &str = "holdfast/";
/// Who waits for whom: names of applications and process ids of both.
const ASK: &str = "SELECT w.application_name, w.pid, b.application_name, b.pid \
    FROM pg_catalog.pg_stat_activity w \
    CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) AS p(pid) \
    JOIN pg_catalog.pg_stat_activity b ON b.pid = p.pid \
    WHERE w.wait_event_type = 'Lock' AND w.datname = pg_catalog.current_database()";

/// The statement that tags a server until its transaction ends.
pub(crate) fn tag(gid: &str) -> String {
    format!("SET LOCAL application_name = '{TAG}{gid}'")
}

/// One transaction on several sources of this router.
#[derive(Debug)]
pub(crate) struct Entry {
    gid: String,
    /// By which its session is canceled.
    key: (i32, i32),
    /// It was chosen; the others of its circle.
    chosen: Mutex<Option<String>>,
    was_chosen: AtomicBool,
    /// One of its servers was seen waiting.
    waits: AtomicBool,
    /// Of its session.
    waker: AtomicWaker,
}

impl Entry {
    /// Whether one of its servers was seen waiting.
    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Who is woken when that happens.
    pub(crate) fn wakes(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// One of its servers waits, so that the others must bear its tag.
    fn is_waiting(&self) {
        if !self.waits.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// What its client is told, if it was chosen and has not been told yet.
    pub(crate) fn take_verdict(&self) -> Option<Refusal> {
        let others = self.chosen.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let cause = format!(
            "deadlock detected across sources: transaction {} waits in a circle with {others}. It gives way, being the youngest",
            self.gid
        );
        Some(Refusal::new("HF3221", "40P01", cause, "ROLLBACK, then begin it again"))
    }
}

/// The transactions on several sources of one router.
#[derive(Debug, Default)]
pub(crate) struct Deadlocks {
    open: Mutex<HashMap<String, Weak<Entry>>>,
}

impl Deadlocks {
    /// One more, until its entry is dropped.
    pub(crate) fn enter(&self, gid: &str, key: (i32, i32)) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            gid: gid.to_owned(),
            key,
            chosen: Mutex::new(None),
            was_chosen: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= ENDED_MAX {
            open.retain(|_, entry| entry.strong_count() > 0);
        }
        open.insert(gid.to_owned(), Arc::downgrade(&entry));
        entry
    }

    fn entry(&self, gid: &str) -> Option<Arc<Entry>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(gid).and_then(Weak::upgrade)
    }

    /// Whether any is open.
    fn any(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, entry| entry.strong_count() > 0);
        !open.is_empty()
    }
}

/// One who waits: a transaction on several sources, or a session that only one server knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Global(String),
    Local(usize, String),
}

impl Node {
    fn of(source: usize, application: &str, pid: &str) -> Self {
        match application.strip_prefix(TAG) {
            Some(gid) => Self::Global(gid.to_owned()),
            None => Self::Local(source, pid.to_owned()),
        }
    }
}

/// Who waits for whom.
type Waits = BTreeMap<Node, BTreeSet<Node>>;

/// The transactions on several sources in a circle that begins with the youngest of them; every such circle once.
fn circles(waits: &Waits) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for start in waits.keys().filter(|node| matches!(node, Node::Global(_))) {
        let Some(path) = path_back(waits, start) else { continue };
        let mut gids: Vec<String> = path
            .into_iter()
            .filter_map(|node| match node {
                Node::Global(gid) => Some(gid),
                Node::Local(..) => None,
            })
            .collect();
        gids.sort_unstable_by(|one, two| two.cmp(one));
        gids.dedup();
        // A circle of one's own is none that several servers make.
        if gids.len() > 1 {
            found.insert(gids);
        }
    }
    found
}

/// The shortest way from `start` back to itself.
fn path_back(waits: &Waits, start: &Node) -> Option<Vec<Node>> {
    let mut came_from: BTreeMap<&Node, &Node> = BTreeMap::new();
    let mut front: Vec<&Node> = vec![start];
    while !front.is_empty() {
        let mut next = Vec::new();
        for node in front {
            for other in waits.get(node).into_iter().flatten() {
                if other == start {
                    let mut path = vec![node.clone()];
                    let mut at = node;
                    while let Some(before) = came_from.get(at) {
                        path.push((*before).clone());
                        at = before;
                    }
                    return Some(path);
                }
                if other != start && !came_from.contains_key(other) {
                    came_from.insert(other, node);
                    next.push(other);
                }
            }
        }
        front = next;
    }
    None
}

/// Looks for circles as long as the router runs.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut connections: Vec<Option<Server>> = shared.sources.iter().map(|_| None).collect();
    let mut before = BTreeSet::new();
    let mut look = interval(EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if !shared.deadlocks.any() {
            before.clear();
            continue;
        }
        let asked =
            connections.iter_mut().zip(&shared.sources).map(async |(connection, source)| {
                match timeout(ANSWER_MAX, ask(source, connection)).await {
                    Ok(Some(rows)) => rows,
                    _ => {
                        *connection = None;
                        Vec::new()
                    }
                }
            });
        let answers = futures::future::join_all(asked).await;
        let mut waits = Waits::new();
        for (source, rows) in answers.into_iter().enumerate() {
            for [waiter, waiter_pid, holder, holder_pid] in rows {
                let waiter = Node::of(source, &waiter, &waiter_pid);
                waits.entry(waiter).or_default().insert(Node::of(source, &holder, &holder_pid));
            }
        }
        for waiter in waits.keys() {
            if let Node::Global(gid) = waiter
                && let Some(entry) = shared.deadlocks.entry(gid)
            {
                entry.is_waiting();
            }
        }
        let found = circles(&waits);
        for circle in found.intersection(&before) {
            choose(&shared, circle).await;
        }
        before = found;
    }
}

/// Ends the youngest of a circle, if it is ours.
async fn choose(shared: &Shared, circle: &[String]) {
    let [youngest, others @ ..] = circle else { return };
    let Some(entry) = shared.deadlocks.entry(youngest) else { return };
    if entry.was_chosen.swap(true, Ordering::Relaxed) {
        return;
    }
    let others = others.join(", ");
    tracing::warn!(gid = youngest, others, "a deadlock across sources; it gives way");
    shared.counts.deadlocks.increment(1);
    *entry.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(others);
    shared.cancels.cancel(entry.key.0, entry.key.1).await;
}

async fn ask(source: &Source, connection: &mut Option<Server>) -> Option<Vec<[String; 4]>> {
    connection.take_if(|server| !source.is_primary(&server.endpoint));
    let server = match connection {
        Some(server) => server,
        None => {
            let endpoint = source.endpoint(source.primary_index()?)?;
            connection.insert(connect(endpoint, &account(source)?).await.ok()?)
        }
    };
    let reply = server.run(&[ASK]).await.ok()?;
    let rows = reply.rows.into_iter().filter_map(|row| {
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        row.try_into().ok()
    });
    reply.error.is_none().then(|| rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(edges: &[(&str, &str)]) -> Waits {
        let node = |name: &str| match name.strip_prefix('l') {
            Some(pid) => Node::of(1, "psql", pid),
            None => Node::of(0, &format!("{TAG}{name}"), "7"),
        };
        let mut waits = Waits::new();
        for (waiter, holder) in edges {
            waits.entry(node(waiter)).or_default().insert(node(holder));
        }
        waits
    }

    fn found(edges: &[(&str, &str)]) -> Vec<Vec<String>> {
        circles(&waits(edges)).into_iter().collect()
    }

    #[test]
    fn a_circle_is_found_once_and_its_youngest_gives_way() {
        assert_eq!(found(&[("g1", "g2"), ("g2", "g1")]), [["g2", "g1"]]);
        let three = [("g1", "g2"), ("g2", "g3"), ("g3", "g1"), ("g4", "g1")];
        assert_eq!(found(&three), [["g3", "g2", "g1"]]);
        // By way of a session that only one server knows.
        assert_eq!(found(&[("g1", "l5"), ("l5", "g2"), ("g2", "g1")]), [["g2", "g1"]]);
    }

    #[test]
    fn a_queue_is_no_circle_and_what_one_server_sees_whole_is_left_to_it() {
        assert!(found(&[]).is_empty());
        assert!(found(&[("g1", "g2"), ("g2", "g3"), ("g4", "g2")]).is_empty());
        assert!(found(&[("l1", "l2"), ("l2", "l1")]).is_empty());
        assert!(found(&[("g1", "l2"), ("l2", "g1")]).is_empty(), "one transaction alone");
    }

    #[test]
    fn an_entry_is_open_until_it_is_dropped_and_tells_its_verdict_once() {
        let deadlocks = Deadlocks::default();
        let entry = deadlocks.enter("g1", (1, 2));
        assert!(deadlocks.any() && deadlocks.entry("g1").is_some());
        assert!(entry.take_verdict().is_none() && !entry.waits());
        entry.is_waiting();
        assert!(entry.waits());
        *entry.chosen.lock().expect("nobody panics") = Some("g0".to_owned());
        assert_eq!(entry.take_verdict().map(|refusal| refusal.sqlstate), Some("40P01"));
        assert!(entry.take_verdict().is_none());
        drop(entry);
        assert!(!deadlocks.any());
    }
}
