//! One client's session: its messages in order, the server that it uses now, and what it may expect next.
//!
//! A session holds a server for one transaction, and no buffer while nothing moves. It is one task: [`consume`] takes the client's
//! messages as far as that is possible without waiting, [`deliver`] takes the server's, and [`traffic`] moves bytes both ways. Every
//! message that goes to a server leaves an [`Expect`] behind, so each answer finds whom it is for: the client, or the router itself.

mod act;
mod ask;
mod chain;
mod consume;
mod copy;
mod deliver;
mod ending;
mod expect;
mod extended;
mod global;
mod lookups;
mod old_rows;
mod opening;
mod planned;
mod prepared;
mod savepoint;
mod scatter;
mod scatter_within;
mod second_phase;
mod sequence;
mod settings;
mod simple;
mod traffic;

use std::{collections::HashMap, collections::VecDeque, io, rc::Rc};

use self::{
    ask::Question,
    ending::Pending,
    expect::Expect,
    global::{Global, Span},
    opening::Opening,
    planned::Held,
    prepared::Portal,
    scatter::{Running, Stopped},
    sequence::Sequence,
};
pub(crate) use self::{
    global::within,
    prepared::{Statement, Statements},
    scatter::Scatter,
    second_phase::{Ended, end_prepared},
    settings::Statuses,
};
use crate::{
    backend::{Pool, Server, Settings},
    buffer::Buffer,
    cancel::Ticket,
    frame,
    frontend::Identity,
    haste::Haste,
    ledger::Planned,
    refusal::Refusal,
    wire::Wire,
    worker::Worker,
};

/// Status of a session outside of a transaction, as `ReadyForQuery` says it.
pub(crate) const IDLE: u8 = b'I';
/// Inside.
pub(crate) const IN_TRANSACTION: u8 = b'T';
/// Inside one that can only be rolled back.
pub(crate) const FAILED: u8 = b'E';
/// Statements that wait for a server with `BEGIN`.
const DEFERRED_MAX: usize = 64;
/// Bytes of them.
const DEFERRED_BYTES_MAX: usize = 64 * 1024;

/// Why a session ends before its client wants it to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// It said goodbye, or its connection did.
    #[error("the client is gone: {0}")]
    Client(io::Error),
    /// It broke the protocol or a limit; it is told.
    #[error("{0}")]
    Refused(Refusal),
    /// The router stops.
    #[error("the router stops")]
    Drained,
    #[error("goodbye")]
    Goodbye,
}

/// What has to happen before more messages can be taken.
enum Next {
    /// Bytes must move.
    Traffic,
    /// A server of this pool is needed, and none is idle.
    Server(usize),
    /// A server of this source is to join the transaction, or to be at work in it.
    Join(usize),
    /// The statement at hand would touch slots that are on their way.
    Held,
    /// What this session has committed must be carried out before its next statement.
    Settle,
    /// A statement about a transaction on several sources.
    Span(Box<Span>),
    /// A question that the router answers after it has asked others; whether it came as a simple query.
    Ask(Question, bool),
    /// A simple query over several sources.
    Scatter(Box<Scatter>),
    /// A portal over several sources: its name, whether it is described or executed, and rows at most.
    Portal(Box<[u8]>, bool, u64),
    /// The statements of a query, one behind the other.
    Sequence(Vec<Box<str>>),
    /// The last of them was answered, or one has failed.
    SequenceEnds,
}

/// A server in use.
struct Bound {
    server: Box<Server>,
    pool: Rc<Pool>,
    /// The source's place in the configuration.
    source: usize,
    /// It bears the tag of a transaction on several sources.
    tagged: bool,
}

/// A bound statement over several sources.
struct ScatterPortal {
    scatter: Scatter,
    running: Option<Running>,
}

/// One client.
pub(crate) struct Session {
    worker: Rc<Worker>,
    identity: Rc<Identity>,
    ticket: Ticket,
    client: Wire,
    inbox: Buffer,
    /// Set while the inbox holds the statements of one query.
    sequence: Option<Box<Sequence>>,
    /// Bytes of a client's COPY data that go straight on.
    passing: usize,
    to_client: Vec<u8>,
    to_client_done: usize,
    to_server: Vec<u8>,
    to_server_done: usize,
    /// Messages wait in the inbox until what is there for the server is written.
    held_back: bool,
    bound: Option<Bound>,
    pools: Vec<Option<Rc<Pool>>>,
    expected: VecDeque<Expect>,
    status: u8,
    /// While a transaction is open at a server.
    haste: Option<Haste>,
    /// Everything up to the next `Sync` is dropped: an error came before it.
    skipping: bool,
    /// Extended messages went to the server since the last `Sync`.
    batch_open: bool,
    /// One of them was more than a question what a statement looks like.
    batch_ran: bool,
    /// The server takes COPY data.
    copying_in: bool,
    /// The session keeps its server until it ends; why.
    pinned: Option<&'static str>,
    /// `BEGIN` and what followed it, as long as no statement has said where.
    deferred: Vec<Box<str>>,
    deferred_bytes: usize,
    opening: Opening,
    /// Whether the server at work may have written or locked in this transaction.
    wrote: bool,
    /// The entry of what is under way; as of when the first of it was planned.
    planned: Option<Planned>,
    /// Whether each statement of the transaction has a snapshot of its own, once that was asked.
    read_committed: Option<bool>,
    /// While the statement at hand waits for slots that are on their way.
    held: Option<Box<Held>>,
    /// Set while more than one source takes part.
    global: Option<Box<Global>>,
    /// The transaction has failed at one source, and the others do not know.
    dooming: bool,
    /// A second phase behind the last COMMIT.
    pending: Option<Pending>,
    /// Which source the named portals of a transaction are at, where there are several.
    portal_homes: HashMap<Box<[u8]>, usize>,
    statements: HashMap<Box<[u8]>, Rc<Statement>>,
    unnamed: Option<Rc<Statement>>,
    /// Taken from the client and known to no server yet.
    unsent: Vec<Rc<Statement>>,
    portals: HashMap<Box<[u8]>, Portal>,
    /// Portals over several sources.
    scatters: HashMap<Box<[u8]>, ScatterPortal>,
    settings: Option<Rc<Settings>>,
    /// How old rows may be that it reads, if it says so; by its settings.
    age_max: Option<std::time::Duration>,
    /// The replica of its source that the statement at hand is read from.
    replica: Option<usize>,
    /// Settings that the server may have changed for this session; read back before it is released.
    touched: Vec<String>,
    /// Differs with each change of settings since the server was taken; 0 without one.
    changes: u64,
    /// What was read back so far; `Some` while reading.
    read_back: Option<Vec<(String, String)>>,
    /// A server was lost in the middle of a message that the client has the beginning of: nothing can be said behind it.
    torn: bool,
    /// What a server said before it closed, and the SQLSTATE by which its transaction is told.
    last_words: Option<(&'static str, String)>,
    /// A server was lost while nobody waited for an answer: the next statement is told.
    untold: Option<Refusal>,
}

impl Session {
    /// A session of a client that has logged in.
    pub(crate) fn new(
        worker: Rc<Worker>,
        client: Wire,
        identity: Identity,
        ticket: Ticket,
    ) -> Self {
        let pools = (0..worker.sources().len()).map(|_| None).collect();
        let settings = worker.intern(identity.settings.clone());
        Self {
            worker,
            identity: Rc::new(identity),
            ticket,
            client,
            inbox: Buffer::default(),
            sequence: None,
            passing: 0,
            to_client: Vec::new(),
            to_client_done: 0,
            to_server: Vec::new(),
            to_server_done: 0,
            held_back: false,
            bound: None,
            pools,
            expected: VecDeque::new(),
            status: IDLE,
            haste: None,
            skipping: false,
            batch_open: false,
            batch_ran: false,
            copying_in: false,
            pinned: None,
            deferred: Vec::new(),
            deferred_bytes: 0,
            opening: Opening::default(),
            wrote: false,
            planned: None,
            read_committed: None,
            held: None,
            global: None,
            dooming: false,
            pending: None,
            portal_homes: HashMap::new(),
            statements: HashMap::new(),
            unnamed: None,
            unsent: Vec::new(),
            portals: HashMap::new(),
            scatters: HashMap::new(),
            age_max: old_rows::age_max(settings.as_ref()),
            settings,
            replica: None,
            touched: Vec::new(),
            changes: 0,
            read_back: None,
            torn: false,
            last_words: None,
            untold: None,
        }
    }

    /// Serves the client until it leaves.
    pub(crate) async fn serve(mut self) -> End {
        let _listed = self.worker.list(
            std::future::poll_fn(|context| std::task::Poll::Ready(context.waker().clone())).await,
        );
        let end = match self.greet().await {
            Ok(()) => self.serve_on().await,
            Err(end) => end,
        };
        self.part(&end).await;
        end
    }

    async fn serve_on(&mut self) -> End {
        loop {
            self.hurry_within_transactions();
            if self.dooming {
                Box::pin(self.doom()).await;
            }
            if self.must_tag() {
                Box::pin(self.tag_parked()).await;
            }
            let next = match self.consume() {
                Ok(next) => next,
                Err(end) => return end,
            };
            let done = match next {
                Next::Traffic => self.traffic().await,
                Next::Held => Box::pin(self.hold()).await,
                Next::Join(source) => Box::pin(self.join(source)).await,
                Next::Settle => Box::pin(self.settle()).await,
                Next::Span(span) => Box::pin(self.span(*span)).await,
                Next::Ask(question, simple) => Box::pin(self.ask(question, simple)).await,
                Next::Scatter(scatter) => Box::pin(self.scatter(*scatter)).await,
                Next::Portal(name, describe, rows_max) => {
                    Box::pin(self.scatter_portal(&name, describe, rows_max)).await
                }
                Next::Server(source) => Box::pin(self.wait_for_server(source)).await,
                Next::Sequence(statements) => {
                    self.begin_sequence(&statements);
                    Ok(())
                }
                Next::SequenceEnds => Box::pin(self.end_sequence()).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Others may wait for what a transaction has locked, and with it for this worker.
    fn hurry_within_transactions(&mut self) {
        let open = self.status != IDLE && self.bound.is_some() && !self.is_visiting();
        if open != self.haste.is_some() {
            self.haste = open.then(|| self.worker.hurry());
        }
    }

    /// What follows a login: what the server says of itself, the key for cancel requests, ready.
    async fn greet(&mut self) -> Result<(), End> {
        let statuses = match Box::pin(self.learn_statuses()).await {
            Ok(statuses) => statuses,
            Err(refusal) => return Err(End::Refused(refusal)),
        };
        let mut out = Vec::new();
        for (name, value) in &*statuses {
            frame::put_parameter(&mut out, name, value);
        }
        let (pid, secret) = self.ticket.key();
        frame::put(&mut out, b'K', |out| {
            out.extend_from_slice(&pid.to_be_bytes());
            out.extend_from_slice(&secret.to_be_bytes());
        });
        frame::put_ready(&mut out, IDLE);
        self.client.write_all(&out).await.map_err(End::Client)
    }

    async fn wait_for_server(&mut self, source: usize) -> Result<(), End> {
        // Nothing may wait behind a full pool that could be told now.
        if !self.to_client.is_empty() {
            self.flush_client().await?;
        }
        let pool = self.pool_to_use(source);
        match pool.take().await {
            Ok(server) => {
                self.attach(Bound { server, pool, source, tagged: false });
                Ok(())
            }
            Err(_) if let Some(replica) = pool.replica() => {
                // Looked at again it goes to another, or to the primary.
                self.worker.sources()[source].forget_age(replica);
                Ok(())
            }
            Err(refusal) => {
                self.refuse_current(&refusal)?;
                Ok(())
            }
        }
    }

    /// The pool of a source, for this client.
    fn pool(&mut self, source: usize) -> Rc<Pool> {
        let (worker, identity) = (&self.worker, &self.identity);
        let pool = self.pools[source].get_or_insert_with(|| worker.pool(source, identity));
        Rc::clone(pool)
    }

    /// From here on the server belongs to this session: its settings are made ours. A waiting `BEGIN` still waits: see [`Self::begin_deferred`].
    fn attach(&mut self, bound: Bound) {
        self.ticket.points_to(&bound.server);
        self.bound = Some(bound);
        self.make_settings_ours();
    }

    /// Whether the server was only asked what a statement looks like: the transaction is not bound to it and has not begun there.
    fn is_visiting(&self) -> bool {
        self.bound.is_some() && !self.deferred.is_empty()
    }

    /// The server in use is the one for this transaction: what waited goes there in front of the message at hand.
    fn begin_deferred(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let deferred = std::mem::take(&mut self.deferred);
        self.put_opening(&deferred);
        self.deferred_bytes = 0;
        self.opening.begin(deferred);
    }

    /// What opens a transaction goes to the server in use, by messages that share the end of the one at hand: should it fail, the server
    /// skips that one too, and nothing runs outside of the transaction.
    fn put_opening(&mut self, statements: &[Box<str>]) {
        for sql in statements {
            frame::put(&mut self.to_server, b'P', |out| {
                out.push(0);
                frame::put_text(out, sql.as_bytes());
                out.extend_from_slice(&[0; 2]);
            });
            // Bound and executed without a name, a parameter, a format, or a limit.
            frame::put(&mut self.to_server, b'B', |out| out.extend_from_slice(&[0; 8]));
            frame::put(&mut self.to_server, b'E', |out| out.extend_from_slice(&[0; 5]));
            self.expected.push_back(Expect::Opening);
        }
        if let Some(bound) = &mut self.bound {
            bound.server.unnamed = None;
        }
    }

    /// Gives the server back, unless the session still needs it.
    fn release_if_settled(&mut self) {
        let visiting = self.is_visiting();
        let settled = self.expected.is_empty()
            && (self.status == IDLE || visiting)
            && !self.batch_open
            && !self.copying_in
            && self.unsent.is_empty()
            && self.to_server.is_empty();
        if !settled || self.bound.is_none() {
            return;
        }
        if visiting {
            self.release();
        } else if !self.touched.is_empty() {
            self.begin_read_back();
        } else if self.pinned.is_none() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(mut bound) = self.bound.take() {
            if self.deferred.is_empty() {
                self.changes = 0;
            }
            // A cancel on its way could hit the next user.
            if self.ticket.points_nowhere() {
                bound.server.broken = true;
            }
            self.worker.shelf.borrow_mut().take_back(&mut bound.server.inbox);
            bound.pool.give_back(bound.server);
        }
    }

    /// Ends the session: tells the client why, and leaves the server clean.
    async fn part(&mut self, end: &End) {
        let mut out = std::mem::take(&mut self.to_client);
        out.drain(..self.to_client_done);
        match end {
            End::Refused(refusal) => refusal.put_fatal(&mut out),
            End::Drained => crate::worker::stopping().put_fatal(&mut out),
            End::Client(_) | End::Goodbye => out.clear(),
        }
        if !out.is_empty() {
            let told = self.client.write_all(&out);
            let _gone_or_told = tokio::time::timeout(std::time::Duration::from_secs(1), told).await;
        }
        self.close_parked();
        let Some(mut bound) = self.bound.take() else { return };
        // Whatever is under way ends with the connection; PostgreSQL rolls back what was not committed.
        let clean = self.expected.is_empty()
            && self.status == IDLE
            && !self.batch_open
            && self.to_server.is_empty()
            && !self.ticket.points_nowhere();
        if clean && self.pinned.is_some() {
            self.discard(&mut bound.server).await;
        } else {
            bound.server.broken |= !clean;
        }
        bound.pool.give_back(bound.server);
    }

    /// `DISCARD ALL`, so that nothing of the session is left.
    async fn discard(&self, server: &mut Server) {
        let mut out = Vec::new();
        frame::put_query(&mut out, b"DISCARD ALL");
        let discarded = async {
            server.wire.write_all(&out).await?;
            loop {
                let (tag, _) = server.wire.read_frame(64 * 1024).await?;
                match tag {
                    b'Z' => return Ok::<bool, io::Error>(true),
                    b'E' => return Ok(false),
                    _ => {}
                }
            }
        };
        let within = std::time::Duration::from_secs(5);
        let clean = matches!(tokio::time::timeout(within, discarded).await, Ok(Ok(true)));
        server.broken |= !clean;
        server.settings = None;
        server.known.clear();
        server.unnamed = None;
    }
}
