//! One Raft group of a node: its log, its machine, its way into the log, and its hand.
//!
//! A transaction lives in one group, chosen by its gid ([`holdfast_txn::Gid::group`]); groups know nothing of each other. What a node has
//! once, however many groups it has, is the rest: the directory and its syncs, the sessions of agents, the policies.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use holdfast_raft::{Leadership, Log, Member};
use holdfast_txn::{Books, Command, Gid, GlobalTransaction, Outcome, Rejection};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    clock::Clock,
    config::limit,
    coordinator::{Applied, NodeStatus},
    dispatcher::{Dispatcher, Event, Lane, Surroundings},
    fault::ProposeError,
    history::History,
    live::Now,
    meters::Meters,
    proposer::{Proposer, Shut},
    record,
    registry::store::Registry,
    replica::{Replica, SharedState, Touched},
    state_hash::{StateHash, StateHasher},
    waiters::Waiters,
    watchers::Watchers,
};

/// Messages of sessions that wait for the dispatcher; a full channel slows the sessions down.
const EVENTS_MAX: usize = 4_096;
/// Answers to entries of reports that wait for the dispatcher.
const PROPOSED_MAX: usize = 64;

/// A group before its log is open: what the replica and the dispatcher share.
pub(crate) struct Machinery {
    number: u32,
    state: SharedState,
    touched: Arc<Touched>,
    waiters: Arc<Waiters>,
    meters: Arc<Meters>,
    history: Arc<History>,
}

/// What all groups of a node work with.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) live: Arc<Now>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) stop: CancellationToken,
}

/// One group on one node.
pub(crate) struct Group {
    number: u32,
    pub(crate) log: Arc<Log<Replica>>,
    pub(crate) state: SharedState,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) history: Arc<History>,
    proposer: Proposer,
    calling_term: Arc<AtomicU64>,
    leadership: watch::Receiver<Leadership>,
    dispatcher: std::sync::Mutex<Option<JoinHandle<()>>>,
    state_hasher: StateHasher,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Machinery {
    /// Of group `number` of the node. Its history begins to be written.
    pub(crate) fn new(number: u32, config: &Config) -> Self {
        let groups = config.cluster.groups;
        let label = (groups > 1).then_some(number);
        let state = SharedState::new();
        Self {
            number,
            history: History::start(config, number, state.clone()),
            state,
            touched: Touched::new(),
            waiters: Waiters::new((limit::WAITERS_MAX / groups as usize).max(1)),
            meters: Arc::new(Meters::of_group(label)),
        }
    }

    pub(crate) fn replica(&self, watchers: &Arc<Watchers>) -> Replica {
        Replica {
            group: self.number,
            state: self.state.clone(),
            touched: Arc::clone(&self.touched),
            waiters: Arc::clone(&self.waiters),
            meters: Arc::clone(&self.meters),
            watchers: Arc::clone(watchers),
            history: Some(Arc::clone(&self.history)),
        }
    }
}

impl Group {
    /// Starts the proposer and the dispatcher of the group whose `log` is open; gives the way to the dispatcher.
    pub(crate) fn start(
        machinery: Machinery,
        log: Log<Replica>,
        lane: Lane,
        shared: &Shared,
    ) -> (Self, mpsc::Sender<Event>) {
        let Machinery { number, state, touched, waiters, meters, history } = machinery;
        let log = Arc::new(log);
        let (proposed_sender, proposed) = mpsc::channel(PROPOSED_MAX);
        let proposer = Proposer::start(
            Arc::clone(&log),
            Arc::clone(&shared.clock),
            shared.config.limits,
            Arc::clone(&shared.live),
            Arc::clone(&meters),
            proposed_sender,
            shared.stop.clone(),
        );
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let calling_term = Arc::new(AtomicU64::new(0));
        let leadership = log.leadership();
        let surroundings = Surroundings {
            state: state.clone(),
            touched,
            waiters: Arc::clone(&waiters),
            proposer: proposer.clone(),
            clock: Arc::clone(&shared.clock),
            meters,
            log: Arc::clone(&log),
            lane,
            calling_term: Arc::clone(&calling_term),
            policies: shared.registry.watch(),
            history: Arc::clone(&history),
        };
        let dispatcher =
            Dispatcher::new(surroundings, leadership.clone(), (&events, heard), proposed);
        let dispatcher = tokio::spawn(dispatcher.run(shared.stop.clone()));
        let dispatcher = std::sync::Mutex::new(Some(dispatcher));
        let group = Self {
            number,
            log,
            state,
            waiters,
            history,
            proposer,
            calling_term,
            leadership,
            dispatcher,
            state_hasher: StateHasher::default(),
        };
        (group, events)
    }

    /// Its number, from 0.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Has `command` carried out.
    pub(crate) async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let (needs, reads) = (record::format_of(&command), self.log.cluster_format());
        if needs > reads {
            return Err(ProposeError::TooNew { needs, reads });
        }
        // One node hashes for all, as soon as all read it.
        let command = if reads >= record::HASHED_BEGINS { command.hashed() } else { command };
        self.proposer.propose(&command).await
    }

    /// Waits until no entry of its proposer is under way, and lets none begin while what is given lives.
    pub(crate) async fn shut(&self) -> Shut {
        self.proposer.shut().await
    }

    /// What would become of a known transaction by `command`.
    pub(crate) fn foresee(
        &self,
        gid: &Gid,
        command: Command,
        clock: &Clock,
    ) -> Result<(Outcome, Arc<GlobalTransaction>), Rejection> {
        self.state.foresee(gid, command, clock.now())
    }

    /// Rules, audit trail and proposals of this group.
    pub(crate) fn books(&self) -> Arc<Books> {
        Arc::clone(self.state.held().machine.books())
    }

    /// Who leads it, as it changes.
    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Who leads it, as far as is known here.
    pub(crate) fn leader(&self) -> Option<Member> {
        self.leadership.borrow().leader.clone()
    }

    /// Whether this node leads it and has applied all that its predecessors left.
    pub(crate) fn leads(&self) -> bool {
        self.leadership.borrow().leads_here
    }

    /// Why requests for it cannot be served, for people.
    pub(crate) fn is_ready(&self) -> Result<(), String> {
        let now = self.leadership.borrow();
        match (&now.leader, now.leads_here) {
            (None, _) => {
                Err("no leader is known; most nodes must be up and reach each other".to_owned())
            }
            (Some(_), true) if self.calling_term.load(Ordering::Acquire) != now.term => {
                Err("this node leads and still applies what its predecessors left".to_owned())
            }
            (Some(_), _) => Ok(()),
        }
    }

    /// False only after a fault that a restart may heal.
    pub(crate) fn is_alive(&self) -> bool {
        let dispatcher = self.dispatcher.lock().expect("nobody panics while holding it");
        let dispatches = dispatcher.as_ref().is_some_and(|task| !task.is_finished());
        dispatches && !self.proposer.is_gone()
    }

    /// Lets another node lead, so that nobody has to wait for an election. Takes two election timeouts at most.
    pub(crate) async fn hand_over(&self) {
        if !self.leads() {
            return;
        }
        // Alone, or the last one up: there is nobody to wait for.
        let Some(next) = self.log.successor() else { return };
        if let Err(fault) = self.log.hand_over(next).await {
            tracing::info!(group = self.number, %fault, "leadership was not handed over; the others will elect");
        }
    }

    /// Waits until the dispatcher, which was told to stop, has ended, then stops the log.
    pub(crate) async fn stop(&self) {
        let dispatcher = self.dispatcher.lock().expect("nobody panics while holding it").take();
        if let Some(dispatcher) = dispatcher
            && let Err(fault) = dispatcher.await
        {
            tracing::error!(%fault, "the dispatcher broke");
        }
        self.log.shutdown().await;
        let history = Arc::clone(&self.history);
        // It writes what it holds; its thread says itself what goes wrong.
        let _stopped = tokio::task::spawn_blocking(move || history.stop()).await;
    }

    /// What `node` knows of itself in this group. Cheap, whatever is open.
    pub(crate) fn status(&self, node: u64) -> NodeStatus {
        let log = self.log.status();
        let leadership = self.leadership.borrow().clone();
        let (by_status, applied_index) = {
            let state = self.state.held();
            (state.machine.census(), state.applied_index)
        };
        NodeStatus {
            node,
            group: self.number,
            role: log.role.word(),
            term: log.term,
            leader: leadership.leader,
            applied_index,
            last_index: log.last_index,
            members: log.members,
            cluster_format: log.cluster_format,
            founding: log.founding,
            incarnation: log.incarnation,
            snapshot_index: log.snapshot_index,
            joint: log.joint,
            by_status,
        }
    }

    /// The hash of the whole state, computed beside the work.
    pub(crate) async fn state_hash(&self) -> StateHash {
        self.state_hasher.hash(&self.state).await
    }
}
