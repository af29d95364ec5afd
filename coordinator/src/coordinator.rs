//! The coordinator as its doors see it: propose a command, read a transaction, wait for its fate.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_proto::v1;
use holdfast_raft::{Leadership, Log, Member, MemberStatus, Role};
use holdfast_txn::{Books, Command, Digest, Gid, GlobalTransaction, Outcome, Rejection, Status};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    clock::{self, Clock},
    config::limit,
    dispatcher::{Dispatcher, Event, Surroundings},
    endpoints::Endpoints,
    fault::{ProposeError, StartError},
    history::History,
    meters::Meters,
    proposer::Proposer,
    record,
    registry::{spread::Spread, store::Registry},
    replica::{Replica, SharedState, Touched},
    waiters::{self, Waiters},
    watchers::Watchers,
};

/// One coordinator node. A handle: clones are the same node.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    log: Arc<Log<Replica>>,
    clock: Arc<Clock>,
    state: SharedState,
    waiters: Arc<Waiters>,
    proposer: Proposer,
    events: mpsc::Sender<Event>,
    calling_term: Arc<AtomicU64>,
    leadership: watch::Receiver<Leadership>,
    /// The doors close; what is under way goes on.
    stopping: CancellationToken,
    /// The tasks end.
    stop: CancellationToken,
    dispatcher: std::sync::Mutex<Option<JoinHandle<()>>>,
    registry: Arc<Registry>,
    spread: Arc<Spread>,
    history: Arc<History>,
    watchers: Arc<Watchers>,
    metrics: OnceLock<PrometheusHandle>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("node", &self.inner.config.node.id)
            .finish_non_exhaustive()
    }
}

/// Messages of sessions that wait for the dispatcher; a full channel slows the sessions down.
const EVENTS_MAX: usize = 4_096;
/// Answers to entries of reports that wait for the dispatcher.
const PROPOSED_MAX: usize = 64;

/// A command that is in the log and was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What it did, or why it was refused: alike on every node, and final.
    pub result: Result<Outcome, Rejection>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Everything acknowledged before the read began is seen.
    Linearizable,
    /// This node's own state, which may lag behind.
    Stale,
}

/// What a caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitUntil {
    /// That this node knows the transaction.
    Applied,
    /// The decision to commit or to roll back.
    Decision,
    /// Committed or rolled back, every branch finished.
    End,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// What was waited for is there.
    Reached,
    /// The time is up; the transaction goes on.
    TimedOut,
    /// It needs people, so waiting is of no use.
    NeedsAttention,
    /// This node does not lead, or no longer: ask the leader by gid.
    NotLeading,
    /// Too many wait here already; ask again by gid.
    Overloaded,
    /// This node knows no such transaction.
    NotFound,
}

/// What a wait found.
#[derive(Clone, Debug)]
pub struct Waited {
    /// The transaction as this node knows it.
    pub transaction: Option<Arc<GlobalTransaction>>,
    /// Why the wait ended. Anything but [`WaitEnd::Reached`] is told as *unknown*, never as failure.
    pub end: WaitEnd,
}

/// What a node knows of itself.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// This node.
    pub node: u64,
    /// `follower`, `candidate`, `leader`, `learner` or `stopped`.
    pub role: &'static str,
    /// The term.
    pub term: u64,
    /// The leader, where it is known.
    pub leader: Option<Member>,
    /// The last entry that was applied.
    pub applied_index: u64,
    /// The last entry in the log.
    pub last_index: u64,
    /// Every member: whether it votes, how far it is, what it reads.
    pub members: Vec<MemberStatus>,
    /// The highest format of entries that **every** member reads, as the membership in the log says. A command whose record needs
    /// a higher format must not be proposed before: a member that cannot read an applied entry stops. It rises by itself
    /// once the last member runs the new version, and falls when an older one comes back. [`Coordinator::cluster_format`]
    /// gives it cheaply.
    pub cluster_format: u32,
    /// Which founding of the cluster this node belongs to; 0: none yet.
    pub founding: u64,
    /// The last entry in the snapshot; 0: none yet.
    pub snapshot_index: u64,
    /// Whether one set of voters is being replaced by another.
    pub joint: bool,
    /// Hash of the machine after `applied_index`.
    pub state_hash: Digest,
    /// How many transactions are in each status.
    pub by_status: BTreeMap<Status, usize>,
}

impl Coordinator {
    /// Opens the log and starts the proposer and the dispatcher. Nothing listens for callers yet: [`Self::serve`] does.
    /// Install the metrics recorder before: handles are made here.
    /// # Errors
    /// [`StartError`], before anything is written if the configuration is at fault.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.check().map_err(StartError::Config)?;
        let meters = Arc::new(Meters::new());
        let clock = Arc::new(Clock::new());
        let (state, touched) = (SharedState::new(), Touched::new());
        let waiters = Waiters::new(limit::WAITERS_MAX);
        std::fs::create_dir_all(&config.node.data_dir).map_err(|fault| {
            let dir = config.node.data_dir.display().to_string();
            StartError::Log { dir, cause: fault.to_string() }
        })?;
        let history = History::start(&config, state.clone());
        let watchers = Watchers::new();
        let replica = Replica {
            state: state.clone(),
            touched: Arc::clone(&touched),
            waiters: Arc::clone(&waiters),
            meters: Arc::clone(&meters),
            watchers: Arc::clone(&watchers),
            history: Some(Arc::clone(&history)),
        };
        let log = Log::open(config.log_config(), replica).await.map_err(|fault| {
            let dir = config.node.data_dir.display().to_string();
            StartError::Log { dir, cause: fault.to_string() }
        })?;
        let log = Arc::new(log);
        let registry = Arc::new(Registry::open(&config.node.data_dir));
        let stop = CancellationToken::new();
        let (proposed_sender, proposed) = mpsc::channel(PROPOSED_MAX);
        let proposer = Proposer::start(
            Arc::clone(&log),
            Arc::clone(&clock),
            config.limits,
            Arc::clone(&meters),
            proposed_sender,
            stop.clone(),
        );
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let calling_term = Arc::new(AtomicU64::new(0));
        let leadership = log.leadership();
        let surroundings = Surroundings {
            state: state.clone(),
            touched,
            waiters: Arc::clone(&waiters),
            proposer: proposer.clone(),
            clock: Arc::clone(&clock),
            meters,
            log: Arc::clone(&log),
            calling_term: Arc::clone(&calling_term),
            policies: registry.watch(),
            history: Arc::clone(&history),
        };
        let dispatcher =
            Dispatcher::new(surroundings, leadership.clone(), (&events, heard), proposed);
        let dispatcher = tokio::spawn(dispatcher.run(stop.clone()));
        let (node, log_of_spread) = (config.node.id, Arc::clone(&log));
        let options_of_spread = config.security.client();
        let inner = Inner {
            config,
            log,
            clock,
            state,
            waiters,
            proposer,
            events,
            calling_term,
            leadership,
            stopping: CancellationToken::new(),
            stop,
            dispatcher: std::sync::Mutex::new(Some(dispatcher)),
            spread: Spread::new(
                node,
                Arc::clone(&registry),
                Arc::clone(&log_of_spread),
                options_of_spread,
            ),
            registry,
            history,
            watchers,
            metrics: OnceLock::new(),
        };
        tokio::spawn(Arc::clone(&inner.spread).keep(inner.stop.clone()));
        let endpoints = Endpoints {
            policies: inner.registry.watch(),
            events: inner.events.clone(),
            calling_term: Arc::clone(&inner.calling_term),
        };
        tokio::spawn(endpoints.keep(inner.stop.clone()));
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Has the HTTP door show the metrics that this handle renders.
    #[must_use]
    pub fn with_metrics(self, metrics: PrometheusHandle) -> Self {
        // A second handle would show the same numbers.
        let _first = self.inner.metrics.set(metrics);
        self
    }

    /// Has `command` carried out. Returns when it is durable on a majority and applied here.
    /// # Errors
    /// [`ProposeError`]; a refusal by the machine is no error but part of [`Applied`].
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.must_lead()?;
        let needs = record::format_of(&command);
        // What every version reads costs no look at the members.
        if needs > 1 {
            let reads = self.cluster_format();
            if needs > reads {
                return Err(ProposeError::TooNew { needs, reads });
            }
        }
        self.inner.proposer.propose(&command).await
    }

    /// The transaction, open or recently finished.
    /// # Errors
    /// [`ProposeError`], only if it must be linearizable and this node cannot tell.
    pub async fn get(
        &self,
        gid: &Gid,
        freshness: Freshness,
    ) -> Result<Option<Arc<GlobalTransaction>>, ProposeError> {
        if freshness == Freshness::Linearizable {
            self.barrier().await?;
        }
        Ok(self.inner.state.get(gid))
    }

    /// What this node says behind it is as new as everything acknowledged before.
    pub(crate) async fn barrier(&self) -> Result<(), ProposeError> {
        self.inner.log.read_barrier().await?;
        Ok(())
    }

    /// Shard rules, audit trail and proposals as this node has applied them.
    pub(crate) fn books(&self) -> Arc<Books> {
        Arc::clone(self.inner.state.held().machine.books())
    }

    /// What would become of a known transaction by `command`.
    pub(crate) fn foresee(
        &self,
        gid: &Gid,
        command: Command,
    ) -> Result<(Outcome, Arc<GlobalTransaction>), Rejection> {
        self.inner.state.foresee(gid, command, self.inner.clock.now())
    }

    /// The transaction as this node knows it now.
    pub(crate) fn known(&self, gid: &Gid) -> Option<Arc<GlobalTransaction>> {
        self.inner.state.get(gid)
    }

    /// At most `limit` transactions (never above [`limit::LIST_MAX`]) in gid order behind `after`, of `statuses` (none:
    /// all), and the gid to go on behind if there may be more. From this node's own state.
    ///
    /// A page looks at a bounded number of transactions, so it may be short, or empty, and yet not be the last.
    /// # Errors
    /// [`ProposeError`] if the node is stopping.
    pub async fn list(
        &self,
        statuses: &[Status],
        after: Option<&Gid>,
        limit: usize,
    ) -> Result<(Vec<GlobalTransaction>, Option<Gid>), ProposeError> {
        /// Transactions looked at for one page, while the machine is held.
        const LOOKED_AT_MAX: usize = 20_000;
        if self.inner.stopping.is_cancelled() {
            return Err(ProposeError::Stopped);
        }
        let limit = limit.clamp(1, limit::LIST_MAX);
        let state = self.inner.state.held();
        let mut found = Vec::with_capacity(limit.min(128));
        for (looked_at, transaction) in state.machine.list(after).enumerate() {
            if statuses.is_empty() || statuses.contains(&transaction.status) {
                found.push(transaction.clone());
            }
            if found.len() == limit || looked_at + 1 == LOOKED_AT_MAX {
                return Ok((found, Some(transaction.gid.clone())));
            }
        }
        Ok((found, None))
    }

    /// Waits at most `at_most` until the transaction is as far as `until`. On a node that does not lead it does not wait.
    pub async fn wait(&self, gid: &Gid, until: WaitUntil, at_most: Duration) -> Waited {
        let until_instant = Instant::now() + at_most;
        // Registered before looking, so that no move falls between the two.
        let mut waiting = self.inner.waiters.register(gid, until);
        let end = {
            let state = self.inner.state.held();
            state.machine.get(gid).map(|known| waiters::end_of(known, until))
        };
        let Some(end) = end else {
            let end = if self.leads() { WaitEnd::NotFound } else { WaitEnd::NotLeading };
            return Waited { transaction: None, end };
        };
        if let Some(end) = end {
            return Waited { transaction: self.inner.state.get(gid), end };
        }
        let end = match &mut waiting {
            None => WaitEnd::Overloaded,
            Some(_) if !self.leads() => WaitEnd::NotLeading,
            Some(waiting) => {
                timeout_at(until_instant, waiting.woken()).await.unwrap_or(WaitEnd::TimedOut)
            }
        };
        // Not kept meanwhile: what somebody keeps is copied when it changes.
        let transaction = self.inner.state.get(gid);
        // Whatever ended the wait, what is known by now counts.
        let end = transaction.as_ref().and_then(|now| waiters::end_of(now, until)).unwrap_or(end);
        Waited { transaction, end }
    }

    /// A new gid, a ULID, for callers that bring none.
    #[must_use]
    pub fn new_gid(&self) -> Gid {
        clock::new_gid()
    }

    /// Who leads, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Whether requests can be served: a leader is known and the node is not stopping.
    /// # Errors
    /// Why not, for people.
    pub fn is_ready(&self) -> Result<(), String> {
        if self.inner.stopping.is_cancelled() {
            return Err("this node is stopping".to_owned());
        }
        let now = self.inner.leadership.borrow();
        match (&now.leader, now.leads_here) {
            (None, _) => {
                Err("no leader is known; most nodes must be up and reach each other".to_owned())
            }
            (Some(_), true) if self.inner.calling_term.load(Ordering::Acquire) != now.term => {
                Err("this node leads and still applies what its predecessors left".to_owned())
            }
            (Some(_), _) => Ok(()),
        }
    }

    /// Whether the node should go on living. False only after a fault that a restart may heal.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        if self.inner.stopping.is_cancelled() {
            return true;
        }
        let dispatcher = self.inner.dispatcher.lock().expect("nobody panics while holding it");
        let dispatches = dispatcher.as_ref().is_some_and(|task| !task.is_finished());
        dispatches && !self.inner.proposer.is_gone()
    }

    /// What the node was told.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Cancelled when the node begins to stop: streams that never end by themselves should then.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    /// From now on nothing new is taken in, and sessions end.
    pub(crate) fn begin_stop(&self) {
        self.inner.stopping.cancel();
    }

    /// Lets another node lead, so that nobody has to wait for an election. Takes two election timeouts at most.
    pub(crate) async fn hand_over(&self) {
        if !self.leads() {
            return;
        }
        // Alone, or the last one up: there is nobody to wait for.
        let Some(next) = self.inner.log.successor() else { return };
        if let Err(fault) = self.inner.log.hand_over(next).await {
            tracing::info!(%fault, "leadership was not handed over; the others will elect");
        }
    }

    /// Stops calling and proposing, then the log. What is under way is answered as far as the log still can.
    pub async fn stop(&self) {
        self.begin_stop();
        self.inner.stop.cancel();
        let dispatcher =
            self.inner.dispatcher.lock().expect("nobody panics while holding it").take();
        if let Some(dispatcher) = dispatcher
            && let Err(fault) = dispatcher.await
        {
            tracing::error!(%fault, "the dispatcher broke");
        }
        self.inner.log.shutdown().await;
        let history = Arc::clone(&self.inner.history);
        // It writes what it holds; its thread says itself what goes wrong.
        let _stopped = tokio::task::spawn_blocking(move || history.stop()).await;
    }

    /// Moves as they happen.
    pub(crate) fn watchers(&self) -> Arc<Watchers> {
        Arc::clone(&self.inner.watchers)
    }

    /// Finished transactions.
    pub(crate) fn history(&self) -> Arc<History> {
        Arc::clone(&self.inner.history)
    }

    /// What the leader saw of the calls of an open transaction; nothing on a node that makes none.
    pub(crate) async fn attempts(&self, gid: &Gid) -> (Vec<v1::Attempt>, u32) {
        let (tell, told) = oneshot::channel();
        match self.inner.events.send(Event::TellAttempts(gid.clone(), tell)).await {
            Ok(()) => told.await.unwrap_or_default(),
            Err(_) => (Vec::new(), 0),
        }
    }

    /// The policies of services.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.inner.registry)
    }

    pub(crate) fn spread(&self) -> Arc<Spread> {
        Arc::clone(&self.inner.spread)
    }

    /// Services, one or all (empty), as this node sees them. Empty while the node stops.
    pub(crate) async fn services(&self, only: String) -> v1::ListServicesReply {
        let (tell, told) = oneshot::channel();
        match self.inner.events.send(Event::TellServices(only, tell)).await {
            Ok(()) => told.await.unwrap_or_default(),
            Err(_) => v1::ListServicesReply::default(),
        }
    }

    /// The log, for operators.
    pub(crate) fn log(&self) -> &Log<Replica> {
        &self.inner.log
    }

    /// gRPC addresses of all nodes, for callers and agents: those that the log records, and those of the configuration where it
    /// records none yet.
    pub(crate) fn doors(&self) -> Vec<String> {
        let recorded = self.inner.log.members();
        if recorded.is_empty() {
            let configured = self.inner.config.cluster.members.iter();
            return configured.map(|member| member.grpc.clone()).collect();
        }
        recorded.into_iter().map(|member| member.grpc).filter(|grpc| !grpc.is_empty()).collect()
    }

    /// The highest format of entries that every member reads: a command whose record needs a higher one must not be proposed.
    #[must_use]
    pub fn cluster_format(&self) -> u32 {
        self.inner.log.cluster_format()
    }

    pub(crate) fn events(&self) -> mpsc::Sender<Event> {
        self.inner.events.clone()
    }

    pub(crate) fn calling_term(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.inner.calling_term)
    }

    pub(crate) fn metrics(&self) -> Option<PrometheusHandle> {
        self.inner.metrics.get().cloned()
    }

    /// Whether this node leads and has applied all that its predecessors left.
    pub(crate) fn leads(&self) -> bool {
        self.inner.leadership.borrow().leads_here
    }

    fn must_lead(&self) -> Result<(), ProposeError> {
        if self.inner.stopping.is_cancelled() {
            return Err(ProposeError::Stopped);
        }
        let now = self.inner.leadership.borrow();
        if now.leads_here {
            Ok(())
        } else {
            Err(ProposeError::NotLeader { leader: now.leader.clone() })
        }
    }

    /// What this node knows of itself. Hashes the whole state, beside the work: not for every request.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let log = self.inner.log.status();
        let leadership = self.inner.leadership.borrow().clone();
        // The copy shares its transactions with the machine, so that hashing them holds nobody up.
        let state = self.inner.state.held();
        let (machine, applied_index) = (state.machine.clone(), state.applied_index);
        drop(state);
        NodeStatus {
            node: self.inner.config.node.id,
            role: role_word(log.role),
            term: log.term,
            leader: leadership.leader,
            applied_index,
            last_index: log.last_index,
            members: log.members,
            cluster_format: log.cluster_format,
            founding: log.founding,
            snapshot_index: log.snapshot_index,
            joint: log.joint,
            state_hash: machine.state_hash(),
            by_status: machine.census(),
        }
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "stopped",
    }
}
