//! A worker: one thread with its own sessions and its own share of every pool, so that nothing on the way of a statement is shared.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::LocalSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{Account, Bounds, Pool, Settings},
    buffer::Shelf,
    config::{Limits, RouterConfig},
    frontend::{self, Greeted, Identity},
    global_write::Decider,
    haste::{Haste, Pace},
    ledger::{Ledger, Planned, Turn},
    meaning::Meanings,
    orphans::View,
    refusal::Refusal,
    session::{End, Session, Statements},
    shared::{Shared, Visitor},
    source::Source,
};

/// Names and values, sorted.
type Pairs = Vec<(String, String)>;

/// The source for what every source answers alike.
pub(crate) const HOME: usize = 0;

/// Between two looks whether what was planned by older rules is finished.
const WORK_LOOK: Duration = Duration::from_millis(10);

/// What one thread has.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// Its own copy of those that count.
    limits: Cell<Limits>,
    pub(crate) shelf: RefCell<Shelf>,
    pub(crate) statements: RefCell<Statements>,
    pub(crate) meanings: RefCell<Meanings>,
    pools: RefCell<Vec<Rc<Pool>>>,
    /// Pools for those who hold a connection of another source already. They must not wait behind those who hold none, for those may be
    /// waiting for them.
    joining: RefCell<Vec<Rc<Pool>>>,
    /// Pools to replicas.
    reading: RefCell<Vec<Rc<Pool>>>,
    decider: Option<Decider>,
    pub(crate) in_doubt: View,
    settings: RefCell<HashMap<Pairs, std::rc::Weak<Settings>>>,
    sessions: RefCell<HashMap<u64, Waker>>,
    last_session: Cell<u64>,
    last_change: Cell<u64>,
    draining: Cell<bool>,
    rules_version: Cell<u64>,
    keeps_since: Cell<u64>,
    unfrozen: Cell<u64>,
    settled_since: Cell<u64>,
    ledger: Ledger,
    pace: Rc<Pace>,
}

/// A session in its worker's list; off it when dropped.
pub(crate) struct Listed {
    worker: Rc<Worker>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.worker.sessions.borrow_mut().remove(&self.number);
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, pace: Rc<Pace>) -> Self {
        let limits = shared.limits();
        let decider = shared.config.coordinator.as_ref().and_then(|c| Decider::new(c).ok());
        Self {
            limits: Cell::new(limits),
            shelf: RefCell::default(),
            statements: RefCell::new(Statements::new(limits.plan_bytes_max)),
            meanings: RefCell::new(Meanings::new(&shared)),
            pools: RefCell::default(),
            joining: RefCell::default(),
            reading: RefCell::default(),
            decider,
            in_doubt: View::default(),
            settings: RefCell::default(),
            sessions: RefCell::default(),
            last_session: Cell::new(0),
            last_change: Cell::new(0),
            draining: Cell::new(false),
            // Whatever the version is, the first look takes the rules.
            rules_version: Cell::new(u64::MAX),
            keeps_since: Cell::new(0),
            unfrozen: Cell::new(0),
            settled_since: Cell::new(0),
            ledger: Ledger::new(),
            pace,
            shared,
        }
    }

    pub(crate) fn config(&self) -> &RouterConfig {
        &self.shared.config
    }

    /// The bounds that count now.
    pub(crate) fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Goes by other limits from now on.
    fn take_over(&self, limits: Limits) {
        self.limits.set(limits);
        self.statements.borrow_mut().bound(limits.plan_bytes_max);
        self.meanings.borrow_mut().bound(limits.plan_bytes_max);
        for pool in self.pools() {
            pool.bound(self.pool_bounds());
        }
    }

    /// This worker's share of every pool.
    fn pool_bounds(&self) -> Bounds {
        let limits = self.limits();
        Bounds {
            size: limits.pool_size.div_ceil(self.shared.config.workers).max(1),
            wait_timeout: limits.wait_timeout,
            connect_timeout: limits.connect_timeout,
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn sources(&self) -> &[Arc<Source>] {
        &self.shared.sources
    }

    /// Takes newer rules, if there are any. Costs one look.
    pub(crate) fn follow_rules(&self) {
        let Some(rules) = &self.shared.rules else { return };
        let version = rules.version();
        if self.rules_version.replace(version) != version {
            let now = rules.in_force();
            self.keeps_since.set(now.keeps_since);
            self.unfrozen.set(now.unfrozen);
            self.settled_since.set(now.settled_since);
            self.ledger.turn_to(Turn { epoch: now.placed.rules.epoch(), version });
            self.meanings.borrow_mut().follow(now);
        }
    }

    /// Whether there are rules that this worker has not taken yet.
    pub(crate) fn has_news(&self) -> bool {
        let rules = self.shared.rules.as_ref();
        rules.is_some_and(|rules| rules.version() != self.rules_version.get())
    }

    /// Whether what was planned so may go on by the rules that count now.
    pub(crate) fn keeps(&self, planned: &Planned) -> bool {
        planned.turn().epoch >= self.keeps_since.get()
    }

    /// The epoch whose rules say, against those that are in force when it is decided, whether what was planned so may commit. Of what is kept
    /// that is the newest one under which no slot was frozen that it may have touched: by one under which slots are frozen, work that
    /// began before would pass for such as has not touched them.
    pub(crate) fn commits_by(&self, planned: &Planned) -> u64 {
        planned.turn().epoch.max(self.unfrozen.get())
    }

    /// Whether a snapshot that was taken for what was planned so may be older than the end of a move, so that it has rows where they were.
    pub(crate) fn may_see_before_moves(&self, planned: &Planned) -> bool {
        planned.turn().version < self.settled_since.get()
    }

    /// An entry for what is planned now, until it is finished.
    pub(crate) fn plan(&self) -> Planned {
        self.ledger.enter()
    }

    /// Whether there are no rules, so that everything goes to the only source.
    pub(crate) fn passes_everything(&self) -> bool {
        self.shared.rules.is_none()
    }

    /// Whether the router stops: sessions end with their transaction.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether several sources may be written to in one transaction: a coordinator is known, and every source has an account of its own,
    /// with which any router can end what is prepared there.
    pub(crate) fn decides(&self) -> bool {
        self.decider.is_some()
            && self.sources().iter().all(|source| crate::health::account(source).is_some())
    }

    /// Every pool of this worker.
    pub(crate) fn pools(&self) -> Vec<Rc<Pool>> {
        let (pools, joining) = (self.pools.borrow(), self.joining.borrow());
        pools.iter().chain(&*joining).chain(&*self.reading.borrow()).cloned().collect()
    }

    /// Who decides about transactions on several sources.
    pub(crate) fn decider(&self) -> Option<&Decider> {
        self.decider.as_ref()
    }

    /// The pool to `source` for this client, for a transaction that another source takes part in.
    pub(crate) fn joining_pool(&self, source: usize, identity: &Identity) -> Rc<Pool> {
        self.pool_among(&self.joining, source, None, identity)
    }

    /// The pool to `source` for this client.
    pub(crate) fn pool(&self, source: usize, identity: &Identity) -> Rc<Pool> {
        self.pool_among(&self.pools, source, None, identity)
    }

    /// The pool to a replica of `source` for this client.
    pub(crate) fn reading_pool(
        &self,
        source: usize,
        replica: usize,
        identity: &Identity,
    ) -> Rc<Pool> {
        self.pool_among(&self.reading, source, Some(replica), identity)
    }

    fn pool_among(
        &self,
        pools: &RefCell<Vec<Rc<Pool>>>,
        source: usize,
        replica: Option<usize>,
        identity: &Identity,
    ) -> Rc<Pool> {
        let source = &self.shared.sources[source];
        let config = &source.config;
        let account = Account {
            user: config.user.clone().unwrap_or_else(|| identity.user.clone()),
            database: config.database.clone().unwrap_or_else(|| identity.database.clone()),
            password: config.password.clone(),
            weak_authentication: config.weak_authentication,
            tls: config.tls.clone(),
            by_keys: self.shared.sources.len() > 1,
        };
        let mut pools = pools.borrow_mut();
        if let Some(pool) = pools.iter().find(|pool| pool.serves(source, replica, &account)) {
            return Rc::clone(pool);
        }
        let pool = Pool::new(Arc::clone(source), replica, account, self.pool_bounds());
        let pool = Rc::new(pool);
        pools.push(Rc::clone(&pool));
        pool
    }

    /// The one value that stands for these settings; `None` for none.
    pub(crate) fn intern(&self, pairs: Vec<(String, String)>) -> Option<Rc<Settings>> {
        if pairs.is_empty() {
            return None;
        }
        let mut known = self.settings.borrow_mut();
        if let Some(settings) = known.get(&pairs).and_then(std::rc::Weak::upgrade) {
            return Some(settings);
        }
        if known.len() >= 1024 {
            known.retain(|_, settings| settings.strong_count() > 0);
        }
        let settings = Rc::new(Settings { pairs: pairs.clone() });
        known.insert(pairs, Rc::downgrade(&settings));
        Some(settings)
    }

    /// A number for a change of settings that no change had before.
    pub(crate) fn next_change(&self) -> u64 {
        let number = self.last_change.get() + 1;
        self.last_change.set(number);
        number
    }

    /// Has this thread woken at once as long as the answer is kept: locks are held.
    pub(crate) fn hurry(&self) -> Haste {
        self.pace.hurry()
    }

    /// Puts a session on the list of those that are woken when the router stops.
    pub(crate) fn list(self: &Rc<Self>, waker: Waker) -> Listed {
        let number = self.last_session.get() + 1;
        self.last_session.set(number);
        self.sessions.borrow_mut().insert(number, waker);
        Listed { worker: Rc::clone(self), number }
    }

    fn drain(&self) {
        self.draining.set(true);
        for waker in self.sessions.borrow().values() {
            waker.wake_by_ref();
        }
        for pool in self.pools() {
            pool.close_idle();
        }
    }
}

/// What a client is told when the router stops.
pub(crate) fn stopping() -> Refusal {
    Refusal::new("HF3212", "57P01", "the router stops", "Connect again, to another router or later")
}

/// Runs one worker until the router stops and its sessions have ended, or the time for that is over.
pub(crate) fn run(
    shared: &Arc<Shared>,
    number: usize,
    mut clients: mpsc::Receiver<(std::net::TcpStream, SocketAddr, Visitor)>,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let pace = Pace::start(number);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut live = shared.live.subscribe();
        if number == 0 {
            let rules = Arc::clone(shared);
            tokio::task::spawn_local(async move { rules.follow_rules().await });
            for source in &shared.sources {
                let watched = crate::health::watch(Arc::clone(source), Arc::clone(shared));
                tokio::task::spawn_local(watched);
                let swept = crate::orphans::sweep(Arc::clone(shared), Arc::clone(source));
                tokio::task::spawn_local(swept);
            }
            if shared.sources.len() > 1 {
                tokio::task::spawn_local(crate::deadlock::watch(Arc::clone(shared)));
            }
        }
        let worker = Rc::new(Worker::new(Arc::clone(shared), pace));
        tokio::task::spawn_local(keep_ledger(Rc::clone(&worker), number));
        loop {
            tokio::select! {
                client = clients.recv() => {
                    let Some((stream, peer, visitor)) = client else { break };
                    let worker = Rc::clone(&worker);
                    tokio::task::spawn_local(async move {
                        attend(worker, stream, peer, visitor).await;
                    });
                }
                Ok(()) = live.changed() => worker.take_over(live.borrow_and_update().limits),
                () = stop.cancelled() => break,
            }
        }
        worker.drain();
        let end = Instant::now() + worker.limits().drain_timeout;
        let done = || worker.sessions.borrow().is_empty();
        // The first one follows the rules for all, to the end of the last one.
        let all_done = || done() && (number > 0 || shared.others_left());
        while !all_done() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if all_done() && number == 0 {
            shared.leave().await;
        }
        if done() {
            shared.tell_end(number);
        }
    });
    Ok(())
}

/// Takes new rules as soon as there are any, and tells how old the oldest work is until it is as new as they are.
async fn keep_ledger(worker: Rc<Worker>, number: usize) {
    let Some(rules) = &worker.shared.rules else { return };
    let mut news = rules.news();
    loop {
        news.borrow_and_update();
        worker.follow_rules();
        let oldest = worker.ledger.oldest();
        worker.shared.tell_oldest(number, oldest);
        let settled = worker.settled_since.get() > 0;
        if settled {
            rules.forget(worker.shared.oldest_version());
        }
        let now = worker.ledger.now();
        if now.epoch > oldest.epoch || settled {
            let _news_or_not = timeout(WORK_LOOK, news.changed()).await;
        } else if news.changed().await.is_err() {
            return;
        }
    }
}

/// One connection from its first byte to its last.
async fn attend(
    worker: Rc<Worker>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    visitor: Visitor,
) {
    // The login is boxed: what it needs is gone when the session begins.
    let Some((wire, identity, ticket)) = Box::pin(enter(&worker, stream, peer, &visitor)).await
    else {
        return;
    };
    let session = Session::new(worker, wire, identity, ticket);
    match session.serve().await {
        End::Goodbye | End::Drained => {}
        End::Client(error) => tracing::debug!(%peer, %error, "a client is gone"),
        End::Refused(refusal) => tracing::info!(%peer, %refusal, "a session was ended"),
    }
    drop(visitor);
}

async fn enter(
    worker: &Rc<Worker>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    visitor: &Visitor,
) -> Option<(crate::wire::Wire, Identity, crate::cancel::Ticket)> {
    let shared = &worker.shared;
    let end = Instant::now() + worker.limits().login_timeout;
    let entered = timeout_at(end, async {
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
        let stream = TcpStream::from_std(stream).ok()?;
        let mut startup = match frontend::greet(stream, shared.config.tls.as_ref()).await {
            Ok(Greeted::Startup(startup)) => startup,
            Ok(Greeted::Cancel { pid, secret }) => {
                shared.cancels.cancel(pid, secret).await;
                return None;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "no session");
                return None;
            }
        };
        if !visitor.has_room() {
            let cause = format!("{} clients are connected", worker.limits().clients_max);
            let refusal =
                Refusal::new("HF3203", "53300", cause, "Close some, or raise limits.clients_max");
            let mut out = Vec::new();
            refusal.put_fatal(&mut out);
            startup.wire.write_all(&out).await.ok()?;
            return None;
        }
        match frontend::login(&mut startup, Some(peer.ip()), shared).await {
            Ok(identity) => Some((startup.wire, identity, shared.cancels.ticket())),
            Err(error) => {
                shared.counts.logins_failed.increment(1);
                tracing::debug!(%peer, %error, "no login");
                None
            }
        }
    });
    entered.await.ok().flatten()
}
