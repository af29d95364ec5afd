//! The coordinator as its doors see it: propose a command, read a transaction, wait for its fate.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use holdfast_history::{Figures, Page, Query};
use holdfast_proto::v1;
use holdfast_raft::{Leadership, Log, Member, MemberStatus};
use holdfast_txn::{Books, Command, Gid, GlobalTransaction, Outcome, Rejection, Status};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    attendance::Attendance,
    clock::{self, Clock},
    config::{self, limit},
    dispatcher::{Event, Events, Lane},
    endpoints::Endpoints,
    fault::{ProposeError, StartError},
    group::{Group, Machinery, Shared},
    history::{History, HistoryFault, merged},
    hold::Holder,
    leaders,
    listing::{self, Wanted},
    live::{Live, Now, Reread},
    registry::{spread::Spread, store::Registry},
    replica::Replica,
    services_seen,
    state_hash::StateHash,
    thaw, waiters,
    watchers::Watchers,
};

/// One coordinator node. A handle: clones are the same node.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    clock: Arc<Clock>,
    /// In the order of their numbers; at least one.
    groups: Vec<Arc<Group>>,
    events: Events,
    /// The doors close; what is under way goes on.
    stopping: CancellationToken,
    /// The tasks end.
    stop: CancellationToken,
    registry: Arc<Registry>,
    spread: Arc<Spread>,
    watchers: Arc<Watchers>,
    metrics: OnceLock<PrometheusHandle>,
    holder: Holder,
    attendance: Arc<Attendance>,
    live: Arc<Now>,
    reread: OnceLock<Arc<dyn Reread>>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("node", &self.inner.config.node.id)
            .finish_non_exhaustive()
    }
}

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
    /// The Raft group that this is about, from 0.
    pub group: u32,
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
    /// Of this node's directory: what the membership records for it, unless the directory was lost and made anew.
    pub incarnation: u64,
    /// The last entry in the snapshot; 0: none yet.
    pub snapshot_index: u64,
    /// Whether one set of voters is being replaced by another.
    pub joint: bool,
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
        let count = config.cluster.groups;
        std::fs::create_dir_all(&config.node.data_dir).map_err(|fault| {
            let dir = config.node.data_dir.display().to_string();
            StartError::Log { dir, cause: fault.to_string() }
        })?;
        let machinery: Vec<Machinery> =
            (0..count).map(|number| Machinery::new(number, &config)).collect();
        let watchers = Watchers::new();
        let replicas = machinery.iter().map(|group| group.replica(&watchers)).collect();
        let logs = Log::open_groups(config.log_config(), replicas).await.map_err(|fault| {
            let dir = config.node.data_dir.display().to_string();
            StartError::Log { dir, cause: fault.to_string() }
        })?;
        let registry = Arc::new(Registry::open(&config.node.data_dir));
        let stop = CancellationToken::new();
        let live = Now::of(&config);
        let clock = Arc::new(Clock::new());
        let shared = Shared { config, live, clock, registry, stop };
        let (mut groups, mut dispatchers) = (Vec::new(), Vec::new());
        for ((machinery, log), lane) in machinery.into_iter().zip(logs).zip(Lane::all(count)) {
            let (group, events) = Group::start(machinery, log, lane, &shared);
            groups.push(Arc::new(group));
            dispatchers.push(events);
        }
        let Shared { config, live, clock, registry, stop } = shared;
        let spread = Spread::new(
            config.node.id,
            Arc::clone(&registry),
            Arc::clone(&groups[0].log),
            config.security.client(),
        );
        tokio::spawn(Arc::clone(&spread).keep(stop.clone()));
        let keeping =
            leaders::keep(config.node.id, groups.clone(), Arc::clone(&clock), stop.clone());
        tokio::spawn(keeping);
        tokio::spawn(thaw::keep(Arc::clone(&groups[0]), watchers.epochs(), stop.clone()));
        let events = Events::to(dispatchers);
        let endpoints = Endpoints { policies: registry.watch(), events: events.clone() };
        tokio::spawn(endpoints.keep(stop.clone()));
        let attendance = Attendance::start(&config.limits, groups[0].leadership(), stop.clone());
        let inner = Inner {
            config,
            clock,
            groups,
            events,
            stopping: CancellationToken::new(),
            stop,
            registry,
            spread,
            watchers,
            metrics: OnceLock::new(),
            holder: Holder::default(),
            attendance,
            live,
            reread: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Has the HTTP door show the metrics that this handle renders.
    #[must_use]
    pub fn with_metrics(self, metrics: PrometheusHandle) -> Self {
        // A second handle would show the same numbers.
        let _first = self.inner.metrics.set(metrics);
        self
    }

    /// Has operators read this node's configuration again by way of the doors.
    #[must_use]
    pub fn with_reread(self, reread: Arc<dyn Reread>) -> Self {
        // Its first word counts.
        let _first = self.inner.reread.set(reread);
        self
    }

    pub(crate) fn reread(&self) -> Option<Arc<dyn Reread>> {
        self.inner.reread.get().cloned()
    }

    /// The values that may change while the node runs, as they count now.
    #[must_use]
    pub fn live(&self) -> Live {
        self.inner.live.get()
    }

    /// The timeouts as they count now.
    pub(crate) fn timeouts(&self) -> config::Timeouts {
        self.inner.live.timeouts(self.inner.config.timeouts)
    }

    /// Goes by these values from now on: the next request, the next entry, the next time that the history looks what is too old.
    /// # Errors
    /// They are out of range, each with its remedy; nothing changes.
    pub fn adjust(&self, live: Live) -> Result<(), String> {
        let config = live.over(&self.inner.config);
        config.check()?;
        self.inner.live.set(live);
        self.each_group().for_each(|group| group.history.keep(&config));
        Ok(())
    }

    /// Has `command` carried out by the group of its gid; a command without one, by group 0. Returns when it is durable on a majority
    /// and applied here.
    /// # Errors
    /// [`ProposeError`]; a refusal by the machine is no error but part of [`Applied`].
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let group = command.gid().map_or(0, |gid| self.group_number(gid));
        self.propose_in(group, command).await
    }

    /// As [`Self::propose`], by this group: for what is about the group itself.
    pub(crate) async fn propose_in(
        &self,
        group: u32,
        command: Command,
    ) -> Result<Applied, ProposeError> {
        if self.inner.stopping.is_cancelled() {
            return Err(ProposeError::Stopped);
        }
        let group = self.group(group);
        if !group.leads() {
            return Err(ProposeError::NotLeader { leader: group.leader() });
        }
        group.propose(command).await
    }

    /// The transaction, open or recently finished.
    /// # Errors
    /// [`ProposeError`], only if it must be linearizable and this node cannot tell.
    pub async fn get(
        &self,
        gid: &Gid,
        freshness: Freshness,
    ) -> Result<Option<Arc<GlobalTransaction>>, ProposeError> {
        let group = self.group_of(gid);
        if freshness == Freshness::Linearizable {
            group.log.read_barrier().await?;
        }
        Ok(group.state.get(gid))
    }

    /// What this node says of group 0 behind it is as new as everything acknowledged before. The term in which it leads: the last entry
    /// before the barrier is of it, since a leader begins with one of its own.
    pub(crate) async fn barrier(&self) -> Result<u64, ProposeError> {
        Ok(self.group(0).log.read_barrier().await?.term)
    }

    /// Which routers go by which rules.
    pub(crate) fn attendance(&self) -> &Attendance {
        &self.inner.attendance
    }

    /// Shard rules, and the audit trail of what belongs to no transaction, as this node has applied them.
    pub(crate) fn books(&self) -> Arc<Books> {
        self.group(0).books()
    }

    /// How many Raft groups the cluster has.
    #[must_use]
    pub fn groups(&self) -> u32 {
        self.inner.config.cluster.groups
    }

    /// The number of the group in which the transaction lives.
    #[must_use]
    pub fn group_number(&self, gid: &Gid) -> u32 {
        gid.group(self.groups())
    }

    /// Group `number`, which must be there; group 0 keeps what belongs to no transaction.
    pub(crate) fn group(&self, number: u32) -> &Group {
        &self.inner.groups[number as usize]
    }

    /// Every group.
    pub(crate) fn each_group(&self) -> impl Iterator<Item = &Group> {
        self.inner.groups.iter().map(|group| &**group)
    }

    /// The group in which the transaction lives.
    pub(crate) fn group_of(&self, gid: &Gid) -> &Group {
        self.group(self.group_number(gid))
    }

    /// What would become of a known transaction by `command`.
    pub(crate) fn foresee(
        &self,
        gid: &Gid,
        command: Command,
    ) -> Result<(Outcome, Arc<GlobalTransaction>), Rejection> {
        self.group_of(gid).foresee(gid, command, &self.inner.clock)
    }

    /// The transaction as this node knows it now.
    pub(crate) fn known(&self, gid: &Gid) -> Option<Arc<GlobalTransaction>> {
        self.group_of(gid).state.get(gid)
    }

    /// At most `limit` of the wanted transactions (never above [`limit::LIST_MAX`]) in gid order behind `after`, and the gid to go
    /// on behind if there may be more. From this node's own state.
    ///
    /// A page looks at a bounded number of transactions, so it may be short, or empty, and yet not be the last.
    /// # Errors
    /// [`ProposeError`] if the node is stopping.
    pub(crate) async fn list(
        &self,
        wanted: &Wanted,
        after: Option<&Gid>,
        limit: usize,
    ) -> Result<(Vec<GlobalTransaction>, Option<Gid>), ProposeError> {
        if self.inner.stopping.is_cancelled() {
            return Err(ProposeError::Stopped);
        }
        let limit = limit.clamp(1, limit::LIST_MAX);
        let pages = self.each_group().map(|group| group.page(wanted, after, limit)).collect();
        Ok(listing::merged(pages, limit))
    }

    /// Waits at most `at_most` until the transaction is as far as `until`. On a node that does not lead it does not wait.
    pub async fn wait(&self, gid: &Gid, until: WaitUntil, at_most: Duration) -> Waited {
        let group = self.group_of(gid);
        let until_instant = Instant::now() + at_most;
        // Registered before looking, so that no move falls between the two.
        let mut waiting = group.waiters.register(gid, until);
        let end = {
            let state = group.state.held();
            state.machine.get(gid).map(|known| waiters::end_of(known, until))
        };
        let Some(end) = end else {
            let end = if group.leads() { WaitEnd::NotFound } else { WaitEnd::NotLeading };
            return Waited { transaction: None, end };
        };
        if let Some(end) = end {
            return Waited { transaction: group.state.get(gid), end };
        }
        let end = match &mut waiting {
            None => WaitEnd::Overloaded,
            Some(_) if !group.leads() => WaitEnd::NotLeading,
            Some(waiting) => {
                timeout_at(until_instant, waiting.woken()).await.unwrap_or(WaitEnd::TimedOut)
            }
        };
        // Not kept meanwhile: what somebody keeps is copied when it changes.
        let transaction = group.state.get(gid);
        // Whatever ended the wait, what is known by now counts.
        let end = transaction.as_ref().and_then(|now| waiters::end_of(now, until)).unwrap_or(end);
        Waited { transaction, end }
    }

    /// A new gid, a ULID, for callers that bring none.
    #[must_use]
    pub fn new_gid(&self) -> Gid {
        clock::new_gid()
    }

    /// Who leads group 0, which keeps the rules and sends the policies, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.group(0).leadership()
    }

    /// Who leads a group, as it changes. `None`: there is no such group.
    #[must_use]
    pub fn leadership_in(&self, group: u32) -> Option<watch::Receiver<Leadership>> {
        self.inner.groups.get(group as usize).map(|group| group.leadership())
    }

    /// Whether requests can be served: a leader of each group is known and the node is not stopping.
    /// # Errors
    /// Why not, for people.
    pub fn is_ready(&self) -> Result<(), String> {
        if self.inner.stopping.is_cancelled() {
            return Err("this node is stopping".to_owned());
        }
        self.each_group().try_for_each(|group| {
            group.is_ready().map_err(|why| match self.groups() {
                1 => why,
                _ => format!("group {}: {why}", group.number()),
            })
        })
    }

    /// Whether the node should go on living. False only after a fault that a restart may heal.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.stopping.is_cancelled() || self.each_group().all(Group::is_alive)
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

    /// Lets other nodes lead what this one leads, so that nobody has to wait for an election. Takes two election timeouts at most.
    pub(crate) async fn hand_over(&self) {
        futures::future::join_all(self.each_group().map(Group::hand_over)).await;
    }

    /// Stops calling and proposing, then the log. What is under way is answered as far as the log still can.
    pub async fn stop(&self) {
        self.begin_stop();
        self.inner.stop.cancel();
        for group in self.each_group() {
            group.stop().await;
        }
    }

    /// Moves as they happen.
    pub(crate) fn watchers(&self) -> Arc<Watchers> {
        Arc::clone(&self.inner.watchers)
    }

    /// Finished transactions of the group in which `gid` lives.
    pub(crate) fn history_of(&self, gid: &Gid) -> Arc<History> {
        Arc::clone(&self.group_of(gid).history)
    }

    /// A page of finished transactions, newest first, and what all histories of this node hold together.
    pub(crate) async fn search(&self, query: Query) -> Result<(Page, Figures, u64), HistoryFault> {
        let searches = self.each_group().map(|group| group.history.search(query.clone()));
        let pages = futures::future::try_join_all(searches).await?;
        let held = self.each_group().map(|group| group.history.figures()).collect();
        Ok(merged(pages, held, query.limit))
    }

    /// What the leader saw of the calls of an open transaction; nothing on a node that makes none.
    pub(crate) async fn attempts(&self, gid: &Gid) -> (Vec<v1::Attempt>, u32) {
        let (tell, told) = oneshot::channel();
        let group = self.group_number(gid);
        match self.inner.events.send(group, Event::TellAttempts(gid.clone(), tell)).await {
            Ok(()) => told.await.unwrap_or_default(),
            Err(_) => (Vec::new(), 0),
        }
    }

    /// Who holds commits here.
    pub(crate) fn holder(&self) -> &Holder {
        &self.inner.holder
    }

    /// The policies of services.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.inner.registry)
    }

    pub(crate) fn spread(&self) -> Arc<Spread> {
        Arc::clone(&self.inner.spread)
    }

    /// Services, one or all (empty), as this node sees them: what its groups see of each, together. Empty while the node stops.
    pub(crate) async fn services(&self, only: String) -> v1::ListServicesReply {
        let mut seen = Vec::new();
        for group in 0..self.groups() {
            let (tell, told) = oneshot::channel();
            let asked = self.inner.events.send(group, Event::TellServices(only.clone(), tell));
            if asked.await.is_ok() {
                seen.extend(told.await);
            }
        }
        services_seen::together(seen)
    }

    /// The log of group 0, for operators.
    pub(crate) fn log(&self) -> &Log<Replica> {
        &self.group(0).log
    }

    /// gRPC addresses of all nodes, for callers and agents: those that the log records, and those of the configuration where it
    /// records none yet.
    pub(crate) fn doors(&self) -> Vec<String> {
        let recorded = self.log().members();
        if recorded.is_empty() {
            let configured = self.inner.config.cluster.members.iter();
            return configured.map(|member| member.grpc.clone()).collect();
        }
        recorded.into_iter().map(|member| member.grpc).filter(|grpc| !grpc.is_empty()).collect()
    }

    /// The highest format of entries that every member reads, in every group: a command whose record needs a higher one must not be
    /// proposed.
    #[must_use]
    pub fn cluster_format(&self) -> u32 {
        let formats = self.each_group().map(|group| group.log.cluster_format());
        formats.min().expect("there is at least one group")
    }

    pub(crate) fn events(&self) -> Events {
        self.inner.events.clone()
    }

    pub(crate) fn metrics(&self) -> Option<PrometheusHandle> {
        self.inner.metrics.get().cloned()
    }

    /// What this node knows of itself in group 0. Hashes the whole state, beside the work: not for every request.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.group(0).status(self.inner.config.node.id)
    }

    /// What this node knows of itself in a group. `None`: there is no such group.
    #[must_use]
    pub fn status_in(&self, group: u32) -> Option<NodeStatus> {
        let group = self.inner.groups.get(group as usize)?;
        Some(group.status(self.inner.config.node.id))
    }

    /// The hash of a group's whole state on this node: equal after an equal prefix of the log, on every node. Reads every
    /// transaction, beside the work: about a second where a million are open. `None`: there is no such group.
    pub async fn state_hash_in(&self, group: u32) -> Option<StateHash> {
        let group = self.inner.groups.get(group as usize)?;
        Some(group.state_hash().await)
    }
}
