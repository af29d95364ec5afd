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
    /// A replica's place among the source's servers; `None`: whichever is the primary.
    replica: Option<usize>,
    account: Account,
    bounds: Cell<Bounds>,
    #[expect(clippy::vec_box, reason = "a server moves between pool and session by its box")]
    idle: RefCell<Vec<Box<Server>>>,
    open: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<Handed>>>,
    /// What servers say of themselves under settings that sessions began with.
    statuses: RefCell<Vec<(Option<Rc<Settings>>, Statuses)>>,
}

/// What a pool goes by; may change while it is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections; at least 1.
    pub(crate) size: usize,
    /// For one to come free.
    pub(crate) wait_timeout: Duration,
    /// For a new one.
    pub(crate) connect_timeout: Duration,
}

/// Kinds of beginnings whose statuses are remembered.
const STATUSES_MAX: usize = 64;

/// One of a pool's places, counted as open: passed on when dropped, so that it is never lost on its way to a client that has left.
struct Place {
    pool: Rc<Pool>,
    /// Whether it is accounted for in another way.
    spent: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.spent {
            self.pool.closed();
        }
    }
}

/// What a waiting client is handed: a connection, or the place for one. Whoever drops it unread gives it to the next.
struct Handed {
    /// Taken before the place by a drop.
    server: Option<Box<Server>>,
    place: Place,
}

impl Handed {
    fn read(mut self) -> Result<Box<Server>, Place> {
        let place = Place { pool: Rc::clone(&self.place.pool), spent: false };
        self.place.spent = true;
        match self.server.take() {
            Some(server) => {
                let mut place = place;
                place.spent = true;
                Ok(server)
            }
            None => Err(place),
        }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.place.spent = true;
            self.place.pool.give_back(server);
        }
    }
}

impl Pool {
    pub(crate) fn new(
        source: Arc<Source>,
        replica: Option<usize>,
        account: Account,
        bounds: Bounds,
    ) -> Self {
        Self {
            source,
            replica,
            account,
            bounds: Cell::new(bounds),
            idle: RefCell::default(),
            open: Cell::new(0),
            waiting: RefCell::default(),
            statuses: RefCell::default(),
        }
    }

    /// Goes by other bounds from now on. What is too much goes at once if it is idle, and else when it comes back; new places are for those
    /// who wait.
    pub(crate) fn bound(self: &Rc<Self>, bounds: Bounds) {
        self.bounds.set(bounds);
        while self.has_too_many() && self.idle.borrow_mut().pop().is_some() {
            self.open.set(self.open.get() - 1);
        }
        while self.open.get() < bounds.size && !self.waiting.borrow().is_empty() {
            self.open.set(self.open.get() + 1);
            self.closed();
        }
    }

    fn has_too_many(&self) -> bool {
        self.open.get() > self.bounds.get().size
    }

    /// Whether this pool serves that source (one of its replicas, or its primary) and account.
    pub(crate) fn serves(
        &self,
        source: &Arc<Source>,
        replica: Option<usize>,
        account: &Account,
    ) -> bool {
        Arc::ptr_eq(&self.source, source) && self.replica == replica && self.account == *account
    }

    /// The replica that it leads to; `None`: to the primary.
    pub(crate) fn replica(&self) -> Option<usize> {
        self.replica
    }

    /// Where it leads to now, for people.
    pub(crate) fn address(&self) -> String {
        let index = self.replica.or_else(|| self.source.primary_index());
        let endpoint = index.and_then(|index| self.source.endpoint(index));
        endpoint.map_or_else(|| "not known".to_owned(), ToString::to_string)
    }

    /// Whether a connection still leads where this pool leads. One to what was the primary must not be written to.
    fn leads_to(&self, endpoint: &Endpoint) -> bool {
        self.replica.is_some() || self.source.is_primary(endpoint)
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
        loop {
            let mut server = self.idle.borrow_mut().pop()?;
            if self.leads_to(&server.endpoint) {
                if server.stands() {
                    return Some(server);
                }
                self.lost();
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
        let Bounds { size, wait_timeout, .. } = self.bounds.get();
        let end = time::Instant::now() + wait_timeout;
        if self.open.get() < size {
            self.open.set(self.open.get() + 1);
            return self.connect(Place { pool: Rc::clone(self), spent: false }).await;
        }
        let (sender, receiver) = oneshot::channel();
        if self.waiting.borrow().len() >= WAITING_MAX {
            return Err(self.full(Duration::ZERO));
        }
        self.waiting.borrow_mut().push_back(sender);
        match time::timeout_at(end, receiver).await {
            Ok(handed) => match handed.expect("a pool outlives those who wait for it").read() {
                Ok(server) => Ok(server),
                Err(place) => self.connect(place).await,
            },
            Err(_) => {
                self.forget_those_who_left();
                Err(self.full(wait_timeout))
            }
        }
    }

    /// All wait equally long, so those who have waited in vain stand in front.
    fn forget_those_who_left(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(oneshot::Sender::is_closed) {
            waiting.pop_front();
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

    /// What a session is told whose server is not the primary any more.
    pub(crate) fn left_behind(&self, server: &Server) -> Option<Refusal> {
        if self.leads_to(&server.endpoint) {
            return None;
        }
        let cause = format!(
            "source {}: {} is not its primary any more. What is open there is not committed",
            self.source.name(),
            server.endpoint
        );
        let remedy =
            "Roll back and begin again; a session that is tied to its server connects again";
        Some(Refusal::new("HF3226", "40001", cause, remedy))
    }

    /// A connection to the server was lost: whether it is still the primary is to be asked.
    pub(crate) fn lost(&self) {
        if self.replica.is_none() {
            self.source.doubt();
        }
    }

    async fn connect(&self, mut place: Place) -> Result<Box<Server>, Refusal> {
        let connected = match self.replica {
            Some(index) => {
                let endpoint = self.source.endpoint(index).expect("one of its servers").clone();
                self.connect_to(&endpoint).await?
            }
            None => self.connect_to_primary().await?,
        };
        place.spent = true;
        Ok(Box::new(connected))
    }

    /// Where there are several servers, the one that takes writes is asked for, and once more when it was reached: it may have been started
    /// again since, as something else.
    async fn connect_to_primary(&self) -> Result<Server, Refusal> {
        let Some(primary) = self.source.primary(self.bounds.get().connect_timeout).await else {
            return Err(self.no_primary("none of its servers says that it is the primary"));
        };
        let endpoint = self.source.endpoint(primary.index).expect("one of its servers").clone();
        let mut server = self.connect_to(&endpoint).await?;
        if self.source.has_one_server() {
            return Ok(server);
        }
        let heard =
            time::timeout(self.bounds.get().connect_timeout, crate::health::hear(&mut server))
                .await;
        if matches!(&heard, Ok(Ok(heard)) if primary.is(heard)) && self.leads_to(&endpoint) {
            return Ok(server);
        }
        self.source.doubt();
        Err(self.no_primary(&format!("{endpoint} is not what it was when it was asked last")))
    }

    fn no_primary(&self, why: &str) -> Refusal {
        let cause = format!(
            "source {}: its primary is not known: {why}, waited at most {} ms",
            self.source.name(),
            self.bounds.get().connect_timeout.as_millis()
        );
        Refusal::new("HF3227", "08001", cause, "Try again; SHOW HOLDFAST SERVERS says what each is")
    }

    async fn connect_to(&self, endpoint: &Endpoint) -> Result<Server, Refusal> {
        let Bounds { connect_timeout, .. } = self.bounds.get();
        let connected = connect::connect(endpoint, &self.account);
        let why = match time::timeout(connect_timeout, connected).await {
            Ok(Ok(server)) => {
                if self.replica.is_none() {
                    self.source.reached();
                }
                return Ok(server);
            }
            Ok(Err(why)) => why,
            Err(_) => connect::NoServer::Unreachable(format!(
                "no connection within {} ms",
                connect_timeout.as_millis()
            )),
        };
        if self.replica.is_none() {
            self.source.not_reached();
            self.source.doubt();
        }
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
    pub(crate) fn give_back(self: &Rc<Self>, server: Box<Server>) {
        let stays = !self.has_too_many() && self.leads_to(&server.endpoint);
        if server.broken || !server.inbox.is_empty() || !stays {
            drop(server);
            self.closed();
            return;
        }
        if let Err(server) = self.hand_over(Some(server)) {
            self.idle.borrow_mut().push(server.expect("it came back as it went"));
        }
    }

    /// A connection of this pool is no more. Its place goes to whoever waits longest, and stays counted, unless there are too many.
    pub(crate) fn closed(self: &Rc<Self>) {
        if self.has_too_many() || self.hand_over(None).is_err() {
            self.open.set(self.open.get() - 1);
        }
    }

    /// Hands a connection, or the place for one, to the first client that still waits.
    fn hand_over(self: &Rc<Self>, server: Option<Box<Server>>) -> Result<(), Option<Box<Server>>> {
        let place = Place { pool: Rc::clone(self), spent: false };
        let mut handed = Handed { server, place };
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(next) = next else {
                handed.place.spent = true;
                return Err(handed.server.take());
            };
            match next.send(handed) {
                Ok(()) => return Ok(()),
                // That client has left or waited too long.
                Err(back) => handed = back,
            }
        }
    }

    /// Closes idle connections.
    pub(crate) fn close_idle(&self) {
        let idle = self.idle.take();
        self.open.set(self.open.get() - idle.len());
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use tokio::net::UnixStream;

    use super::*;
    use crate::{config::SourceConfig, wire::Wire};

    const WAIT: Duration = Duration::from_millis(20);

    fn endpoint() -> Endpoint {
        Endpoint::Unix("/nowhere/at/all".into())
    }

    impl Pool {
        /// Of a source that nobody reaches.
        pub(crate) fn to_nobody() -> Rc<Self> {
            pool(1)
        }
    }

    fn pool(size: usize) -> Rc<Pool> {
        let source = Source::new(SourceConfig {
            name: "s".into(),
            addresses: vec![endpoint()],
            database: None,
            user: None,
            password: None,
            weak_authentication: false,
            tls: None,
        });
        let account = Account {
            user: "u".to_owned(),
            database: "d".to_owned(),
            password: None,
            weak_authentication: false,
            tls: None,
            by_keys: false,
        };
        let bounds = Bounds { size, wait_timeout: WAIT, connect_timeout: WAIT };
        Rc::new(Pool::new(source, None, account, bounds))
    }

    /// A pool of one place whose connection is in use.
    fn full() -> (Rc<Pool>, Box<Server>, UnixStream) {
        let pool = pool(1);
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        pool.open.set(1);
        (pool, Box::new(Server::new(Wire::Unix(ours), endpoint())), theirs)
    }

    async fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        let mut future = future;
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_it_is_handed_a_connection_loses_it_for_nobody() {
        let (pool, server, _theirs) = full();
        {
            let mut first = Box::pin(pool.take());
            let mut second = pin!(pool.take());
            assert!(poll_once(first.as_mut()).await.is_pending());
            assert!(poll_once(second.as_mut()).await.is_pending());
            pool.give_back(server);
            assert_eq!(pool.counts(), (1, 0, 1), "it is on its way to the first");
            drop(first);
            let Poll::Ready(Ok(server)) = poll_once(second.as_mut()).await else {
                panic!("the second one has it now")
            };
            pool.give_back(server);
        }
        assert_eq!(pool.counts(), (1, 1, 0));
        let mut alone = Box::pin(async {
            let server = pool.take_idle().expect("it is idle");
            let mut waits = Box::pin(pool.take());
            assert!(poll_once(waits.as_mut()).await.is_pending());
            pool.give_back(server);
        });
        assert!(poll_once(alone.as_mut()).await.is_ready());
        drop(alone);
        assert_eq!(pool.counts(), (1, 1, 0), "nobody waits, so it is idle again");
    }

    #[tokio::test]
    async fn a_pool_that_becomes_smaller_lets_go_and_one_that_grows_serves_who_waits() {
        let bounds = |size| Bounds { size, wait_timeout: WAIT, connect_timeout: WAIT };
        let connection = || {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            (Box::new(Server::new(Wire::Unix(ours), endpoint())), theirs)
        };
        let pool = pool(3);
        let (first, second, third) = (connection(), connection(), connection());
        pool.open.set(3);
        pool.give_back(third.0);
        assert_eq!(pool.counts(), (3, 1, 0));
        pool.bound(bounds(1));
        assert_eq!(pool.counts(), (2, 0, 0), "the idle one goes at once, those in use stay");
        let mut waits = pin!(pool.take());
        assert!(poll_once(waits.as_mut()).await.is_pending());
        pool.give_back(first.0);
        assert_eq!(pool.counts(), (1, 0, 1), "one too many is not handed on");
        pool.bound(bounds(2));
        let refused = waits.await.expect_err("the new place is its, but nothing listens there");
        assert_eq!(refused.code, "HF3205");
        pool.give_back(second.0);
        assert_eq!(pool.counts(), (1, 1, 0));
    }

    #[tokio::test]
    async fn a_place_that_comes_free_goes_to_who_waits_and_on_from_who_has_left() {
        let (pool, mut server, _theirs) = full();
        {
            let mut first = Box::pin(pool.take());
            let mut second = pin!(pool.take());
            assert!(poll_once(first.as_mut()).await.is_pending());
            assert!(poll_once(second.as_mut()).await.is_pending());
            server.broken = true;
            pool.give_back(server);
            assert_eq!(pool.counts(), (1, 0, 1), "the place stays counted on its way");
            let mut newcomer = pin!(pool.take());
            assert!(poll_once(newcomer.as_mut()).await.is_pending(), "no one overtakes");
            drop(first);
            let refused = second.await.expect_err("nothing listens there");
            assert_eq!(refused.code, "HF3205");
            let refused = newcomer.await.expect_err("nor for the next one");
            assert_eq!(refused.code, "HF3205");
        }
        assert_eq!(pool.counts(), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_connection_that_comes_at_the_very_end_of_the_wait_is_taken_or_kept() {
        let (pool, server, _theirs) = full();
        let mut waits = pin!(pool.take());
        assert!(poll_once(waits.as_mut()).await.is_pending());
        time::sleep(2 * WAIT).await;
        pool.give_back(server);
        let server = match poll_once(waits.as_mut()).await {
            Poll::Ready(Ok(server)) => server,
            other => panic!("both at once: the connection counts, not {:?}", other.is_ready()),
        };
        let mut late = pin!(pool.take());
        assert!(poll_once(late.as_mut()).await.is_pending());
        time::sleep(2 * WAIT).await;
        let Poll::Ready(Err(refused)) = poll_once(late.as_mut()).await else {
            panic!("its time is over")
        };
        assert_eq!(refused.code, "HF3204");
        assert_eq!(pool.counts(), (1, 0, 0), "who has left does not stand in the way");
        pool.give_back(server);
        assert_eq!(pool.counts(), (1, 1, 0));
    }
}
