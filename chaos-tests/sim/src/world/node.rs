//! A coordinator node: its own machine, the entries it proposes, the callers who wait at its door; it dies and comes back.

use std::{collections::BTreeMap, rc::Rc};

use holdfast_txn::{Command, Gid, Machine, Outcome, Rejection, Snapshot, Status};

use super::{
    End, Event, World,
    dispatcher::Open,
    network::{Message, Told},
    witness,
};
use crate::{
    happening::Happening,
    invariant::{bounds, equal::Prefixes},
    mutant::Mutant,
};

/// Entries under way at once.
const IN_FLIGHT_MAX: usize = 4;
/// Commands in one entry.
const BATCH_MAX: usize = 16;

/// How far a node believes to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    Not,
    /// Until everything of former terms is applied.
    Catching {
        term: u64,
        until: usize,
    },
    Leads(u64),
}

impl Lead {
    pub(crate) fn term(self) -> Option<u64> {
        match self {
            Self::Not => None,
            Self::Catching { term, .. } | Self::Leads(term) => Some(term),
        }
    }
}

/// Who waits for the result of a command.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Caller { client: usize, turn: u64, wait: bool, command: Command },
    Dispatcher(Gid),
}

/// A caller who waits for a decision.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) gid: Gid,
    pub(crate) client: usize,
    pub(crate) turn: u64,
    pub(crate) command: Command,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) paused: bool,
    /// Counts its starts.
    pub(crate) life: u64,
    /// Counts its times of leadership, and its starts: what belongs to another one is forgotten.
    pub(crate) stint: u64,
    pub(crate) machine: Machine,
    pub(crate) applied: usize,
    /// On its disk.
    snapshot: Option<(usize, Snapshot)>,
    pub(crate) skew_ms: i64,
    pub(crate) clock_ms: u64,
    pub(crate) lead: Lead,
    pub(crate) waiting: Vec<(Command, Reply)>,
    /// Entries without a result, by their number.
    pub(crate) pending: BTreeMap<u64, Vec<Reply>>,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) opens: BTreeMap<Gid, Open>,
    pub(crate) next_ticket: u64,
    /// What waits for a paused node.
    pub(crate) stalled: Vec<Event>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            up: true,
            paused: false,
            life: 0,
            stint: 0,
            machine: Machine::new(),
            applied: 0,
            snapshot: None,
            skew_ms: 0,
            clock_ms: 0,
            lead: Lead::Not,
            waiting: Vec::new(),
            pending: BTreeMap::new(),
            waiters: Vec::new(),
            opens: BTreeMap::new(),
            next_ticket: 0,
            stalled: Vec::new(),
        }
    }
}

impl World {
    // === the door ===

    pub(super) fn asked(
        &mut self,
        node: usize,
        client: usize,
        turn: u64,
        command: Command,
        wait: bool,
    ) {
        let leads = matches!(self.nodes[node].lead, Lead::Leads(_));
        if !leads || self.nodes[node].waiting.len() >= bounds::COMMANDS_MAX {
            self.tell(node, client, turn, &command, Told::NotLeading);
            return;
        }
        if self.mutates(Mutant::BeginAcknowledgedEarly)
            && !wait
            && matches!(command, Command::Begin { .. })
        {
            self.tell(node, client, turn, &command, Told::Known);
        }
        let reply = Reply::Caller { client, turn, wait, command: command.clone() };
        self.nodes[node].waiting.push((command, reply));
        self.flush(node);
    }

    /// Answers a caller. What the log must already know of it is checked here, whether or not the answer arrives.
    pub(super) fn tell(
        &mut self,
        node: usize,
        client: usize,
        turn: u64,
        command: &Command,
        told: Told,
    ) {
        let told = match told {
            Told::Unknown if self.mutates(Mutant::UnknownToldAsFailure) => {
                Told::Decided(holdfast_txn::Decision::RollBack)
            }
            told => told,
        };
        let gid = witness::gid_of(command);
        self.note(|| format!("node {node} tells client {client} of {gid}: {told:?}"));
        match told {
            Told::Decided(_) => self.count(Happening::DecisionTold),
            Told::Unknown => self.count(Happening::ClientToldUnknown),
            Told::Refused("HF2002") => self.count(Happening::OtherContentRefused),
            Told::Refused(_) | Told::Known | Told::NotLeading => {}
        }
        let checked = self.witness.told(command, &told);
        self.check(checked);
        self.send(End::Node(node), End::Client(client), Message::Told { turn, told });
    }

    /// What waits goes as one entry, if not too many are under way.
    pub(super) fn flush(&mut self, node: usize) {
        while !self.nodes[node].waiting.is_empty() && self.nodes[node].pending.len() < IN_FLIGHT_MAX
        {
            let count = self.nodes[node].waiting.len().min(BATCH_MAX);
            let (commands, replies) = self.nodes[node].waiting.drain(..count).unzip();
            let proposal = self.propose(node, commands);
            self.nodes[node].pending.insert(proposal, replies);
        }
        let bound =
            bounds::within("commands", self.nodes[node].waiting.len(), bounds::COMMANDS_MAX);
        self.check(bound);
    }

    // === the log ===

    pub(super) fn apply(&mut self, node: usize, to: usize) {
        if !self.nodes[node].up {
            return;
        }
        let to = to.min(self.cluster.log.len());
        if to > self.nodes[node].applied + self.settings.log_kept && self.install(node) {
            self.caught_up(node);
        }
        while self.nodes[node].applied < to && self.broken.is_none() {
            let entry = Rc::clone(&self.cluster.log[self.nodes[node].applied]);
            let mut results = Vec::with_capacity(entry.commands.len());
            let mut touched = Vec::new();
            for command in &entry.commands {
                let result = self.nodes[node].machine.apply(entry.at, command.clone());
                if let Ok(outcome) = &result
                    && !outcome.repeated
                {
                    let from = outcome.moved.and_then(|moved| moved.from);
                    let anew = from == Some(Status::NeedsAttention);
                    touched.push((witness::gid_of(command).clone(), anew));
                }
                results.push(result);
            }
            self.nodes[node].applied += 1;
            let applied = self.nodes[node].applied;
            if Prefixes::is_compared(applied) {
                self.compare(node);
            }
            for (gid, anew) in touched {
                self.wake(node, &gid);
                if anew && let Some(open) = self.nodes[node].opens.get_mut(&gid) {
                    open.begin_anew();
                }
                self.examine(node, &gid);
            }
            if let Some(replies) = self.nodes[node].pending.remove(&entry.proposal) {
                for (reply, result) in replies.into_iter().zip(results) {
                    self.resolved(node, reply, Some(result));
                }
            }
        }
        self.caught_up(node);
        self.flush(node);
    }

    /// Compares the node's state with that of its peers behind the same entry.
    pub(super) fn compare(&mut self, node: usize) {
        let (applied, hash) = (self.nodes[node].applied, self.nodes[node].machine.state_hash());
        let equal = self.witness.prefixes.at(node, applied, hash);
        self.check(equal);
    }

    /// A command has its result; `None`: nobody knows.
    fn resolved(&mut self, node: usize, reply: Reply, result: Option<Result<Outcome, Rejection>>) {
        match reply {
            Reply::Dispatcher(gid) => self.reported(node, &gid, result),
            Reply::Caller { client, turn, wait, command } => match result {
                None => self.tell(node, client, turn, &command, Told::Unknown),
                Some(Err(Rejection::GidTaken { .. }))
                    if self.mutates(Mutant::OtherContentAccepted) =>
                {
                    self.tell(node, client, turn, &command, Told::Known);
                }
                Some(Err(rejection)) => {
                    self.tell(node, client, turn, &command, Told::Refused(rejection.code()));
                }
                Some(Ok(_)) if !wait => self.tell(node, client, turn, &command, Told::Known),
                Some(Ok(_)) => {
                    let gid = witness::gid_of(&command).clone();
                    self.nodes[node].waiters.push(Waiter {
                        gid: gid.clone(),
                        client,
                        turn,
                        command,
                    });
                    let count = self.nodes[node].waiters.len();
                    self.check(bounds::within("waiters", count, bounds::WAITERS_MAX));
                    self.wake(node, &gid);
                }
            },
        }
    }

    /// Callers whose wait is over are told.
    fn wake(&mut self, node: usize, gid: &Gid) {
        let Some(known) = self.nodes[node].machine.get(gid) else { return };
        let told = match (known.decision, known.status) {
            (Some(decision), _) => Told::Decided(decision),
            (None, Status::NeedsAttention) => Told::Unknown,
            (None, _) => return,
        };
        let waiters = std::mem::take(&mut self.nodes[node].waiters);
        let (over, waiting) = waiters.into_iter().partition(|waiter| waiter.gid == *gid);
        self.nodes[node].waiters = waiting;
        let over: Vec<Waiter> = over;
        for Waiter { client, turn, command, .. } in over {
            self.tell(node, client, turn, &command, told.clone());
        }
    }

    // === leadership ===

    pub(super) fn elected(&mut self, node: usize, term: u64) {
        let overtaken = self.nodes[node].lead.term().is_some_and(|known| known >= term);
        if !self.nodes[node].up || overtaken || self.cluster.term != term {
            return;
        }
        self.step_down(node);
        let until = self.cluster.log.len();
        self.nodes[node].lead = Lead::Catching { term, until };
        self.apply(node, until);
    }

    fn caught_up(&mut self, node: usize) {
        let Lead::Catching { term, until } = self.nodes[node].lead else { return };
        if self.nodes[node].applied < until {
            return;
        }
        self.nodes[node].lead = Lead::Leads(term);
        self.note(|| format!("node {node} leads in term {term}"));
        self.begin_calling(node);
    }

    pub(super) fn deposed(&mut self, node: usize, term: u64) {
        if self.nodes[node].lead.term().is_some_and(|believed| believed < term) {
            self.note(|| format!("node {node} learns of term {term}"));
            self.step_down(node);
        }
    }

    /// Everything of this time of leadership is forgotten, and whoever waits is told that nobody knows.
    fn step_down(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if this.lead == Lead::Not {
            return;
        }
        this.lead = Lead::Not;
        this.stint += 1;
        this.opens.clear();
        let waiting = std::mem::take(&mut this.waiting);
        let pending = std::mem::take(&mut this.pending);
        let waiters = std::mem::take(&mut this.waiters);
        for (_, reply) in waiting {
            // These never left the node.
            if let Reply::Caller { client, turn, command, .. } = reply {
                self.tell(node, client, turn, &command, Told::NotLeading);
            }
        }
        for reply in pending.into_values().flatten() {
            if let Reply::Caller { .. } = reply {
                self.count(Happening::OutcomeUnknown);
                self.resolved(node, reply, None);
            }
        }
        for Waiter { client, turn, command, .. } in waiters {
            self.tell(node, client, turn, &command, Told::Unknown);
        }
    }

    // === life and death ===

    pub(super) fn crash(&mut self, node: usize) {
        let old = std::mem::replace(&mut self.nodes[node], Node::new());
        let this = &mut self.nodes[node];
        this.up = false;
        this.life = old.life + 1;
        this.stint = old.stint + 1;
        this.snapshot = old.snapshot;
        this.skew_ms = old.skew_ms;
        this.next_ticket = old.next_ticket;
        // What was on its way to a node that stood still is lost with it.
        let lost =
            old.stalled.iter().filter(|event| matches!(event, Event::Deliver { .. })).count();
        self.in_air -= lost;
        self.count(Happening::NodeCrashed);
        self.note(|| format!("node {node} dies"));
    }

    pub(super) fn restart(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].up = true;
        let happening = match self.nodes[node].snapshot.clone() {
            Some((applied, mut snapshot)) => {
                if self.mutates(Mutant::SnapshotDropsFinished) {
                    snapshot.finished.clear();
                }
                self.nodes[node].machine = Machine::restore(snapshot);
                self.nodes[node].applied = applied;
                self.compare(node);
                Happening::RestartFromSnapshot
            }
            None => Happening::RestartFromNothing,
        };
        self.count(happening);
        if self.mutates(Mutant::ReplaySkipsOne) && self.nodes[node].applied < self.cluster.log.len()
        {
            self.nodes[node].applied += 1;
        }
        let applied = self.nodes[node].applied;
        self.note(|| format!("node {node} is back, with {applied} entries"));
    }

    pub(super) fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
        }
        self.note(|| format!("node {node} goes on"));
        for event in std::mem::take(&mut self.nodes[node].stalled) {
            self.queue.at(self.now_ms, event);
        }
    }

    pub(super) fn take_snapshot(&mut self, node: usize) {
        if self.nodes[node].up && !self.nodes[node].paused {
            let snapshot = self.nodes[node].machine.snapshot();
            self.compare(node);
            let applied = self.nodes[node].applied;
            let short = usize::from(self.mutates(Mutant::SnapshotCountsShort));
            self.nodes[node].snapshot = Some((applied.saturating_sub(short), snapshot));
            self.note(|| format!("node {node} takes a snapshot behind entry {applied}"));
        }
    }

    /// A node that is far behind gets the leader's snapshot.
    fn install(&mut self, node: usize) -> bool {
        let Some(leader) = self.cluster.leader.filter(|&leader| {
            leader != node
                && self.nodes[leader].up
                && !self.nodes[leader].paused
                && self.nodes[leader].applied > self.nodes[node].applied
        }) else {
            return false;
        };
        self.compare(leader);
        let mut snapshot = self.nodes[leader].machine.snapshot();
        if self.mutates(Mutant::SnapshotDropsFinished) {
            snapshot.finished.clear();
        }
        let applied = self.nodes[leader].applied;
        self.nodes[node].machine = Machine::restore(snapshot);
        self.nodes[node].applied = applied;
        self.count(Happening::SnapshotInstalled);
        self.note(|| format!("node {node} installs a snapshot behind entry {applied}"));
        self.compare(node);
        true
    }
}
