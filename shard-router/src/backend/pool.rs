//! A pool: the connections of one worker to one source for one user and database. The last used one is given first.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time};

use super::{
    connect::{self, Account},
    server::{Server, Settings},
};
use crate::{config::Endpoint, refusal::Refusal, session::Statuses, source::Source};

/// Clients that may wait for one pool; more are refused at once.
const WAITING_MAX: usize = 10_000;

/// Connections to one source.
pub(crate) struct Pool {
    pub(crate) source: Arc<Source>,
    account: Account,
    size: usize,
    wait_timeout: Duration,
    connect_timeout: Duration,
    #[expect(clippy::vec_box, reason = "a server moves between pool and session by its box")]
    idle: RefCell<Vec<Box<Server>>>,
    open: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<Option<Box<Server>>>>>,
    /// What servers say of themselves under settings that sessions began with.
    statuses: RefCell<Vec<(Option<Rc<Settings>>, Statuses)>>,
}

/// Kinds of beginnings whose statuses are remembered.
const STATUSES_MAX: usize = 64;

/// A place in a pool that has no connection yet; given back when dropped.
pub(crate) struct Reserved {
    pool: Rc<Pool>,
    used: bool,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.used {
            self.pool.closed();
        }
    }
}

impl Pool {
    pub(crate) fn new(
        source: Arc<Source>,
        account: Account,
        size: usize,
        wait_timeout: Duration,
        connect_timeout: Duration,
    ) -> Self {
        Self {
            source,
            account,
            size,
            wait_timeout,
            connect_timeout,
            idle: RefCell::default(),
            open: Cell::new(0),
            waiting: RefCell::default(),
            statuses: RefCell::default(),
        }
    }

    /// Whether this pool serves that source and account.
    pub(crate) fn serves(&self, source: &Arc<Source>, account: &Account) -> bool {
        Arc::ptr_eq(&self.source, source) && self.account == *account
    }

    /// Connections that exist, that are idle, and clients that wait.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.open.get(), self.idle.borrow().len(), self.waiting.borrow().len())
    }

    /// What a server with these settings says of itself, if it was asked before.
    pub(crate) fn statuses_of(&self, settings: Option<&Rc<Settings>>) -> Option<Statuses> {
        let statuses = self.statuses.borrow();
        let mut known = statuses.iter().filter(|(known, _)| match (known, settings) {
            (None, None) => true,
            (Some(known), Some(settings)) => Rc::ptr_eq(known, settings),
            _ => false,
        });
        known.next().map(|(_, statuses)| Rc::clone(statuses))
    }

    /// Keeps what this server said.
    pub(crate) fn remember_statuses(
        &self,
        settings: Option<Rc<Settings>>,
        server: &Server,
    ) -> Statuses {
        let learned = Rc::new(server.statuses.clone());
        let mut statuses = self.statuses.borrow_mut();
        if statuses.len() >= STATUSES_MAX {
            statuses.remove(0);
        }
        statuses.push((settings, Rc::clone(&learned)));
        learned
    }

    /// Names for people: user and database there.
    pub(crate) fn account(&self) -> (&str, &str) {
        (&self.account.user, &self.account.database)
    }

    /// An idle connection that stands, without waiting.
    pub(crate) fn take_idle(&self) -> Option<Box<Server>> {
        if !self.waiting.borrow().is_empty() {
            return None;
        }
        let primary = self.source.primary_index();
        loop {
            let mut server = self.idle.borrow_mut().pop()?;
            // A connection to what was the primary would only answer that it cannot write.
            if server.stands() && self.source.endpoint(primary) == Some(&server.endpoint) {
                return Some(server);
            }
            self.open.set(self.open.get() - 1);
        }
    }

    /// A connection, within the pool's timeouts.
    /// # Errors
    /// HF3204: none came free. HF3205: the server cannot be reached or turns us away.
    pub(crate) async fn take(self: &Rc<Self>) -> Result<Box<Server>, Refusal> {
        if let Some(server) = self.take_idle() {
            return Ok(server);
        }
        let end = time::Instant::now() + self.wait_timeout;
        loop {
            if self.open.get() < self.size {
                return self.connect().await;
            }
            let (sender, receiver) = oneshot::channel();
            if self.waiting.borrow().len() >= WAITING_MAX {
                return Err(self.full(Duration::ZERO));
            }
            self.waiting.borrow_mut().push_back(sender);
            match time::timeout_at(end, receiver).await {
                Ok(Ok(Some(server))) => return Ok(server),
                // A place came free, without a connection.
                Ok(_) => {}
                Err(_) => return Err(self.full(self.wait_timeout)),
            }
        }
    }

    fn full(&self, waited: Duration) -> Refusal {
        let (open, _, waiting) = self.counts();
        let cause = format!(
            "source {}: all {open} server connections are in use after {} ms, {waiting} clients wait",
            self.source.name(),
            waited.as_millis()
        );
        Refusal::new(
            "HF3204",
            "53300",
            cause,
            "Try again, raise limits.pool_size, or look for long transactions",
        )
    }

    async fn connect(self: &Rc<Self>) -> Result<Box<Server>, Refusal> {
        self.open.set(self.open.get() + 1);
        let mut reserved = Reserved { pool: Rc::clone(self), used: false };
        let primary = self.source.primary_index();
        let endpoint = self.source.endpoint(primary).expect("a source has an address").clone();
        let connected = self.connect_to(&endpoint).await?;
        reserved.used = true;
        Ok(Box::new(connected))
    }

    /// A connection beyond the pool's count: to a replica, or for a check.
    pub(crate) async fn connect_to(&self, endpoint: &Endpoint) -> Result<Server, Refusal> {
        let connected = connect::connect(endpoint, &self.account);
        let why = match time::timeout(self.connect_timeout, connected).await {
            Ok(Ok(server)) => {
                self.source.reached();
                return Ok(server);
            }
            Ok(Err(why)) => why,
            Err(_) => connect::NoServer::Unreachable(format!(
                "no connection within {} ms",
                self.connect_timeout.as_millis()
            )),
        };
        self.source.not_reached();
        let sqlstate = match &why {
            connect::NoServer::Told { sqlstate, .. } if sqlstate == "3D000" => "3D000",
            connect::NoServer::Told { sqlstate, .. } if sqlstate.starts_with("28") => "28000",
            connect::NoServer::Told { sqlstate, .. } if sqlstate == "53300" => "53300",
            _ => "08001",
        };
        let cause = format!("source {} at {endpoint}: {why}", self.source.name());
        tracing::warn!(source = self.source.name(), %endpoint, %why, "no server connection");
        let remedy = "Check the server, and its address and account in the configuration";
        Err(Refusal::new("HF3205", sqlstate, cause, remedy))
    }

    /// Takes a connection back: for whoever waits longest, or on top of the idle ones.
    pub(crate) fn give_back(&self, mut server: Box<Server>) {
        if server.broken || !server.inbox.is_empty() {
            drop(server);
            self.closed();
            return;
        }
        while let Some(waiting) = self.waiting.borrow_mut().pop_front() {
            match waiting.send(Some(server)) {
                Ok(()) => return,
                // That client has left or waited too long.
                Err(back) => server = back.expect("it was sent"),
            }
        }
        self.idle.borrow_mut().push(server);
    }

    /// A connection of this pool is no more.
    pub(crate) fn closed(&self) {
        self.open.set(self.open.get() - 1);
        while let Some(waiting) = self.waiting.borrow_mut().pop_front() {
            if waiting.send(None).is_ok() {
                return;
            }
        }
    }

    /// Closes idle connections.
    pub(crate) fn close_idle(&self) {
        let idle = self.idle.take();
        self.open.set(self.open.get() - idle.len());
    }
}
