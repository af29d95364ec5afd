//! A coordinator node: its own machine, the entries it proposes, the callers who wait at its door; it dies and comes back.

use std::{collections::BTreeMap, rc::Rc};

use holdfast_txn::{Act, Books, Command, Gid, Machine, Outcome, Rejection, Snapshot, Status};

use super::{
    End, Event, World,
    dispatcher::Open,
    network::{Message, Told},
    operator, witness,
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
    Caller { asker: Box<Asker>, wait: bool },
    Dispatcher(Gid),
}

/// A caller, and what it wants.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) client: usize,
    pub(crate) turn: u64,
    pub(crate) gid: Gid,
    /// None: to look.
    pub(crate) command: Option<Command>,
    /// When the node was asked.
    pub(crate) asked_ms: u64,
}

/// What a command did, and where it stands in the log.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) result: Result<Outcome, Rejection>,
    pub(crate) index: u64,
    pub(crate) place: usize,
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
    /// Who waits for a decision.
    pub(crate) waiters: Vec<Asker>,
    /// Who looks, and how far the log must be applied first.
    lookers: Vec<(Asker, usize)>,
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
            lookers: Vec::new(),
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
        let gid = witness::gid_of(&command);
        let asked_ms = self.now_ms;
        let asker = Asker { client, turn, gid, command: Some(command.clone()), asked_ms };
        if !leads || self.nodes[node].waiting.len() >= bounds::COMMANDS_MAX {
            self.tell(node, &asker, Told::NotLeading);
            return;
        }
        if self.mutates(Mutant::BeginAcknowledgedEarly)
            && !wait
            && matches!(command, Command::Begin { .. })
        {
            self.tell(node, &asker, Told::Known);
        }
        let command = match command {
            Command::Operate { gid, act: Act::Retry, reason, .. }
                if self.mutates(Mutant::ActWithoutName) =>
            {
                Command::Retry { gid, reason }
            }
            Command::SetRules { text, by, reason, .. }
                if self.mutates(Mutant::RulesReadBlindly) =>
            {
                let expected = self.nodes[node].machine.books().epoch();
                Command::SetRules { text, expected, by, reason }
            }
            Command::Operate { gid, act: Act::Approve, by, reason }
                if self.mutates(Mutant::OnePersonTwice) =>
            {
                Command::Operate { gid, act: Act::Approve, by: operator::another(&by), reason }
            }
            command => command,
        };
        // As a leader does whose members all read it.
        let reply = Reply::Caller { asker: Box::new(asker), wait };
        self.nodes[node].waiting.push((command.hashed(), reply));
        self.flush(node);
    }

    /// Somebody looks. Only who leads and still hears a quorum knows what is there, once it has applied all that it knows of.
    pub(super) fn looked(&mut self, node: usize, client: usize, turn: u64, gid: Gid) {
        let asker = Asker { client, turn, gid, command: None, asked_ms: self.now_ms };
        let leads = matches!(self.nodes[node].lead, Lead::Leads(_));
        let knows = self.is_true_leader(node) && self.hears_quorum(node);
        let full = self.nodes[node].lookers.len() >= bounds::WAITERS_MAX;
        if self.mutates(Mutant::LookWithoutQuorum) && leads && !full {
            self.nodes[node].lookers.push((asker, 0));
        } else if leads && knows && !full {
            let until = self.cluster.log.len();
            self.nodes[node].lookers.push((asker, until));
        } else {
            self.tell(node, &asker, Told::NotLeading);
        }
        self.show(node);
    }

    /// Answers those who look, as far as the log is applied.
    fn show(&mut self, node: usize) {
        let applied = self.nodes[node].applied;
        let lookers = std::mem::take(&mut self.nodes[node].lookers);
        let (ready, waiting) = lookers.into_iter().partition(|(_, until)| *until <= applied);
        self.nodes[node].lookers = waiting;
        let ready: Vec<(Asker, usize)> = ready;
        for (asker, _) in ready {
            let seen = self.nodes[node].machine.get(&asker.gid).map(|known| known.status);
            self.tell(node, &asker, Told::Seen(seen));
        }
    }

    /// Answers a caller. What the log must already know of it is checked here, whether or not the answer arrives.
    pub(super) fn tell(&mut self, node: usize, asker: &Asker, told: Told) {
        let told = match told {
            Told::Unknown if self.mutates(Mutant::UnknownToldAsFailure) => {
                Told::Decided(holdfast_txn::Decision::RollBack)
            }
            told => told,
        };
        let Asker { client, turn, gid, .. } = asker;
        self.note(|| format!("node {node} tells client {client} of {gid}: {told:?}"));
        match told {
            Told::Decided(_) => self.count(Happening::DecisionTold),
            Told::Unknown => self.count(Happening::ClientToldUnknown),
            Told::Refused { code: "HF2002", .. } => self.count(Happening::OtherContentRefused),
            Told::Seen(_) => self.count(Happening::Looked),
            Told::Refused { .. } | Told::Known | Told::NotLeading => {}
        }
        let checked = self.witness.told(asker, &told, self.now_ms);
        self.check(checked);
        let (to, turn) = (End::Client(*client), *turn);
        self.send(End::Node(node), to, Message::Told { turn, told });
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
                    touched.extend(command.gid().map(|gid| (gid.clone(), anew)));
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
                let index = applied as u64;
                for (place, (reply, result)) in replies.into_iter().zip(results).enumerate() {
                    self.resolved(node, reply, Some(Settled { result, index, place }));
                }
            }
        }
        self.caught_up(node);
        self.show(node);
        self.flush(node);
    }

    /// Compares the node's state with that of its peers behind the same entry.
    pub(super) fn compare(&mut self, node: usize) {
        let (applied, hash) = (self.nodes[node].applied, self.nodes[node].machine.state_hash());
        let equal = self.witness.prefixes.at(node, applied, hash);
        self.check(equal);
    }

    /// A command has its result; `None`: nobody knows.
    fn resolved(&mut self, node: usize, reply: Reply, settled: Option<Settled>) {
        match reply {
            Reply::Dispatcher(gid) => {
                self.reported(node, &gid, settled.map(|settled| settled.result));
            }
            Reply::Caller { asker, wait } => match settled {
                None => self.tell(node, &asker, Told::Unknown),
                Some(Settled { result: Err(Rejection::GidTaken { .. }), .. })
                    if self.mutates(Mutant::OtherContentAccepted) =>
                {
                    self.tell(node, &asker, Told::Known);
                }
                Some(Settled { result: Err(rejection), index, place }) => {
                    let code = rejection.code();
                    self.tell(node, &asker, Told::Refused { code, index, place });
                }
                Some(Settled { result: Ok(outcome), .. }) if !wait => {
                    if let (Some(command), false) = (&asker.command, outcome.repeated) {
                        self.witness.deeds.acknowledged(command);
                    }
                    self.tell(node, &asker, Told::Known);
                }
                Some(Settled { result: Ok(_), .. }) => {
                    let gid = asker.gid.clone();
                    self.nodes[node].waiters.push(*asker);
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
        let over: Vec<Asker> = over;
        for asker in over {
            self.tell(node, &asker, told.clone());
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
        let lookers = std::mem::take(&mut this.lookers);
        // These never left the node.
        let unheard = waiting.into_iter().filter_map(|(_, reply)| match reply {
            Reply::Caller { asker, .. } => Some(*asker),
            Reply::Dispatcher(_) => None,
        });
        for asker in unheard.chain(lookers.into_iter().map(|(asker, _)| asker)) {
            self.tell(node, &asker, Told::NotLeading);
        }
        for reply in pending.into_values().flatten() {
            if let Reply::Caller { .. } = reply {
                self.count(Happening::OutcomeUnknown);
                self.resolved(node, reply, None);
            }
        }
        for asker in waiters {
            self.tell(node, &asker, Told::Unknown);
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
        let queued = old.waiting.iter().map(|(_, reply)| reply);
        let replies = queued.chain(old.pending.values().flatten());
        let asking = replies.filter_map(|reply| match reply {
            Reply::Caller { asker, .. } => Some(&**asker),
            Reply::Dispatcher(_) => None,
        });
        for asker in asking.chain(&old.waiters) {
            self.witness.untold(asker, self.now_ms);
        }
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
                self.spoil(&mut snapshot);
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

    /// Mutants that lose a part of a snapshot.
    fn spoil(&self, snapshot: &mut Snapshot) {
        if self.mutates(Mutant::SnapshotDropsFinished) {
            snapshot.finished.clear();
        }
        if self.mutates(Mutant::SnapshotDropsBooks) {
            snapshot.books = Books::default().into();
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
        self.spoil(&mut snapshot);
        let applied = self.nodes[leader].applied;
        self.nodes[node].machine = Machine::restore(snapshot);
        self.nodes[node].applied = applied;
        self.count(Happening::SnapshotInstalled);
        self.note(|| format!("node {node} installs a snapshot behind entry {applied}"));
        self.compare(node);
        true
    }
}
