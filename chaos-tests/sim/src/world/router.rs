//! Routers: global SQL transactions that write to sources, are prepared, submitted once to the real machine in mode XA, and carried out;
//! a router dies or stands still at any step, and a sweeper ends what it left, behind a fence.
//!
//! Written after the shell's router, step by step: one writer commits in one phase; several are prepared, and the begin of a declared
//! XA transaction is the word that they are; no answer is fenced before anything is rolled back. The pools, the wire and the plans of
//! statements are not modelled: a session speaks to its sources without a network, and a lost connection is its death.

use holdfast_txn::{
    BranchId, BranchSpec, Command, Decision, Gid, Labels, Mode, Options, Participant,
};
use holdfast_txn::{RetryPolicy, Status};

use super::{
    End, Event, World,
    network::{Message, Told},
    source::{self, NotWritten, ROWS, Xact},
};
use crate::{chance::Chance, happening::Happening, mutant::Mutant, workload::VARIANT};

/// Sessions answer to numbers from here on; people have the very last one.
pub(super) const FIRST: usize = 1 << 32;
/// Attempts at a row that somebody else holds.
const WRITES_MAX: u32 = 40;
/// Attempts of the sweeper at an answer to its fence, and of the most patient session to its submit.
const ASKS_MAX: u32 = 6;
/// From this age on the sweeper takes up what is prepared, ms.
const ORPHAN_MS: u64 = 1_200;
/// Between two looks of the sweeper, ms.
const SWEEP_MS: u64 = 400;

/// A branch: what is written on one source.
#[derive(Clone, Debug)]
struct Leg {
    shard: usize,
    branch: u32,
    changes: Vec<(usize, i64)>,
    /// None: not written, or found by the sweeper, which knows no number.
    xact: Option<Xact>,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Writing(usize),
    Preparing(usize),
    Submitting,
    /// It makes sure that something is decided.
    Fencing,
    /// The fence was refused: it asks what is there.
    Looking,
    Ending {
        leg: usize,
        commit: bool,
    },
    Over,
}

/// A session of a router, or one look of the sweeper at something prepared.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    gid: Gid,
    legs: Vec<Leg>,
    stage: Stage,
    tries: u32,
    turn: u64,
    sweeps: bool,
    grace_ms: u64,
    attempts_max: u32,
    /// Attempts at an answer to the submit, and then to the fence.
    asks_max: u32,
}

impl Session {
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    fn begin(&self) -> Command {
        let mut options = Options::of(Mode::Xa);
        options.call_timeout_ms = 250;
        options.retry =
            RetryPolicy { first_ms: 60, ceiling_ms: 500, attempts_max: self.attempts_max };
        options.second_phase_grace_ms = self.grace_ms;
        options.tags = Labels::from_iter([(VARIANT, "first")]);
        let branch = |leg: &Leg| BranchSpec {
            participant: Participant::parse(&format!("source@shard-{}", leg.shard))
                .expect("it is short and plain"),
            payload: source::payload(leg.xact.expect("it is prepared")).into_bytes().into(),
            after: None,
            pivot: false,
        };
        let branches = self.legs.iter().map(branch).collect();
        Command::Begin {
            gid: self.gid.clone(),
            mode: Mode::Xa,
            options,
            branches,
            enlisted: false,
            content: None,
        }
    }
}

/// Draws the session with this number: rows of one source or of several, which together gain nothing.
fn draw(number: usize, shards: usize, chance: &mut Chance) -> Session {
    let minor = i64::try_from(chance.between(1, 40)).expect("a small sum");
    let (row, other) = (chance.index(ROWS), chance.index(ROWS));
    let first = chance.index(shards);
    let leg = |shard, branch, changes| Leg { shard, branch, changes, xact: None };
    let legs = if chance.permille(200) {
        vec![leg(first, 1, vec![(row, -minor), ((row + 1) % ROWS, minor)])]
    } else {
        let second = (first + 1) % shards;
        vec![leg(first, 1, vec![(row, -minor)]), leg(second, 2, vec![(other, minor)])]
    };
    Session {
        gid: Gid::parse(&format!("sql-{number}")).expect("a short gid"),
        legs,
        stage: Stage::Writing(0),
        tries: 0,
        turn: 0,
        sweeps: false,
        grace_ms: chance.pick(&[0, 300, 800]),
        attempts_max: chance.pick(&[0, 0, 4]),
        asks_max: chance.pick(&[1, 2, ASKS_MAX]),
    }
}

impl World {
    /// The sessions of a run, and the sweeper.
    pub(super) fn open_sessions(&mut self) {
        for number in 0..self.routing.index(5) + 1 {
            let session = draw(number, self.settings.shards, &mut self.routing);
            let at_ms = self.routing.between(10, self.settings.arrivals_ms);
            self.sessions.push(session);
            self.queue.at(at_ms, Event::Session { session: number, turn: 0 });
        }
        self.queue.at(SWEEP_MS, Event::Sweep);
    }

    /// A session goes on, unless it has gone on since.
    pub(super) fn session_turn(&mut self, session: usize, turn: u64) {
        let this = &mut self.sessions[session];
        if this.turn != turn || this.is_over() {
            return;
        }
        this.turn += 1;
        if self.routing.permille(self.settings.router_dies) {
            self.session_dies(session);
            return;
        }
        if self.routing.permille(self.settings.router_stalls) {
            self.count(Happening::RouterStalled);
            let stall_ms = self.routing.between(1_000, 6_000);
            self.go_on_in(session, stall_ms);
            return;
        }
        match self.sessions[session].stage {
            Stage::Writing(leg) => self.writes(session, leg),
            Stage::Preparing(leg) => self.prepares(session, leg),
            Stage::Submitting => self.submits(session),
            Stage::Fencing => self.fences(session),
            Stage::Looking => self.looks(session),
            Stage::Ending { leg, commit } => self.ends(session, leg, commit),
            Stage::Over => {}
        }
    }

    fn go_on_in(&mut self, session: usize, pause_ms: u64) {
        let turn = self.sessions[session].turn;
        self.queue.at(self.now_ms + pause_ms, Event::Session { session, turn });
    }

    fn becomes(&mut self, session: usize, stage: Stage) {
        self.sessions[session].stage = stage;
        self.sessions[session].tries = 0;
        let pause_ms = self.routing.between(1, 12);
        self.go_on_in(session, pause_ms);
    }

    /// Its connections are lost: what is open there is rolled back, what is prepared stays.
    fn session_dies(&mut self, session: usize) {
        self.count(Happening::RouterCrashed);
        let Session { gid, legs, .. } = self.sessions[session].clone();
        self.note(|| format!("the router of {gid} dies"));
        self.sessions[session].stage = Stage::Over;
        self.roll_back_open(&gid, &legs);
    }

    fn roll_back_open(&mut self, gid: &Gid, legs: &[Leg]) {
        for leg in legs {
            if let Some(xact) = leg.xact
                && self.sources[leg.shard].end_open(xact, false)
            {
                self.local_ended((gid, leg.branch), legs.len(), false);
            }
        }
    }

    /// A local transaction of a global one of so many ended.
    pub(super) fn local_ended(&mut self, branch: (&Gid, u32), sources: usize, commit: bool) {
        self.note(|| format!("{} b{} is ended, committed: {commit}", branch.0, branch.1));
        self.trace.fold(u64::from(branch.1) ^ u64::from(commit));
        let checked = self.witness.local_ends.ended(&self.witness.log, branch, sources, commit);
        self.check(checked);
    }

    fn writes(&mut self, session: usize, number: usize) {
        let Session { gid, legs, tries, .. } = self.sessions[session].clone();
        let leg = &legs[number];
        match self.sources[leg.shard].write(&gid, leg.branch, &leg.changes) {
            Ok(xact) => {
                self.sessions[session].legs[number].xact = Some(xact);
                let next = if number + 1 < legs.len() {
                    Stage::Writing(number + 1)
                } else {
                    Stage::Preparing(0)
                };
                self.becomes(session, next);
            }
            Err(NotWritten::Locked) if tries < WRITES_MAX => {
                self.count(Happening::RowLocked);
                self.sessions[session].tries += 1;
                let pause_ms = self.routing.between(20, 60);
                self.go_on_in(session, pause_ms);
            }
            Err(_) => {
                self.sessions[session].stage = Stage::Over;
                self.roll_back_open(&gid, &legs);
            }
        }
    }

    /// Prepares its writers; one alone commits in one phase.
    fn prepares(&mut self, session: usize, number: usize) {
        let Session { gid, legs, .. } = self.sessions[session].clone();
        let leg = &legs[number];
        let xact = leg.xact.expect("it is written");
        if legs.len() == 1 || self.mutates(Mutant::XaOnePhaseWithTwoWriters) {
            self.count(Happening::OnePhase);
            if self.sources[leg.shard].end_open(xact, true) {
                self.local_ended((&gid, leg.branch), legs.len(), true);
            }
            let is_last = number + 1 == legs.len();
            self.becomes(session, if is_last { Stage::Over } else { Stage::Preparing(number + 1) });
            return;
        }
        let fails = self.routing.permille(self.settings.local_fails);
        if fails || !self.sources[leg.shard].prepare(xact, self.now_ms) {
            self.count(Happening::PrepareFailed);
            // Nobody has submitted it, and nobody else ever would.
            self.roll_back_open(&gid, &legs);
            self.becomes(session, Stage::Ending { leg: 0, commit: false });
            return;
        }
        self.count(Happening::Prepared);
        self.note(|| format!("{gid} b{} is prepared", leg.branch));
        let is_last = number + 1 == legs.len();
        self.becomes(
            session,
            if is_last { Stage::Submitting } else { Stage::Preparing(number + 1) },
        );
    }

    fn submits(&mut self, session: usize) {
        if self.mutates(Mutant::XaToldBeforeDecision) {
            self.client_hears(session, Decision::Commit);
        }
        let begin = self.sessions[session].begin();
        self.asks(session, Stage::Fencing, begin);
    }

    fn fences(&mut self, session: usize) {
        if self.sessions[session].sweeps && self.mutates(Mutant::XaSweeperWithoutProof) {
            self.becomes(session, Stage::Ending { leg: 0, commit: false });
            return;
        }
        self.count(Happening::Fenced);
        let gid = self.sessions[session].gid.clone();
        let reason = "nobody ended what is prepared".to_owned();
        self.asks(session, Stage::Over, Command::Fence { gid, reason });
    }

    /// Asks a node, and another one without an answer; after so many attempts it goes over to `then`.
    fn asks(&mut self, session: usize, then: Stage, command: Command) {
        self.sessions[session].tries += 1;
        if self.sessions[session].tries > self.sessions[session].asks_max {
            if then == Stage::Fencing && self.mutates(Mutant::XaUnknownAsRolledBack) {
                self.becomes(session, Stage::Ending { leg: 0, commit: false });
            } else if then == Stage::Over {
                // What is prepared stays prepared. Whoever sweeps takes it up.
                self.sessions[session].stage = Stage::Over;
            } else {
                self.becomes(session, then);
            }
            return;
        }
        let node = self.some_node();
        let (client, turn) = (FIRST + session, self.sessions[session].turn);
        let ask = Message::Ask { client, turn, command, wait: true };
        self.send(End::Client(client), End::Node(node), ask);
        let patience_ms = self.routing.between(200, 900);
        self.go_on_in(session, patience_ms);
    }

    fn looks(&mut self, session: usize) {
        self.sessions[session].tries += 1;
        if self.sessions[session].tries > self.sessions[session].asks_max {
            self.sessions[session].stage = Stage::Over;
            return;
        }
        let (client, turn) = (FIRST + session, self.sessions[session].turn);
        let gid = self.sessions[session].gid.clone();
        let node = self.some_node();
        self.send(End::Client(client), End::Node(node), Message::Look { client, turn, gid });
        let patience_ms = self.routing.between(200, 900);
        self.go_on_in(session, patience_ms);
    }

    /// Mostly the leader.
    fn some_node(&mut self) -> usize {
        let leader = self.cluster.leader.filter(|_| self.routing.permille(700));
        leader.unwrap_or_else(|| self.routing.index(self.nodes.len()))
    }

    /// A node has answered this session.
    pub(super) fn session_told(&mut self, session: usize, turn: u64, told: &Told) {
        let this = &self.sessions[session];
        if this.turn != turn || this.is_over() {
            return;
        }
        self.sessions[session].turn += 1;
        let decided = match told {
            Told::Decided(decision) => Some(*decision),
            Told::Seen(Some(Status::Committing | Status::Committed)) => Some(Decision::Commit),
            Told::Seen(Some(Status::RollingBack | Status::RolledBack)) => Some(Decision::RollBack),
            _ => None,
        };
        match (decided, told) {
            (Some(decision), _) => {
                self.client_hears(session, decision);
                let commit = decision == Decision::Commit;
                self.becomes(session, Stage::Ending { leg: 0, commit });
            }
            // Something is decided already; what, the transaction itself says.
            (None, Told::Refused { .. }) => self.becomes(session, Stage::Looking),
            _ => {
                let pause_ms = self.routing.between(20, 120);
                self.go_on_in(session, pause_ms);
            }
        }
    }

    /// The router's client is told, and its router too: what was told is in the log.
    fn client_hears(&mut self, session: usize, decision: Decision) {
        let gid = self.sessions[session].gid.clone();
        let told = self.witness.router_told(&gid, decision);
        self.check(told);
    }

    fn ends(&mut self, session: usize, number: usize, commit: bool) {
        let Session { gid, legs, sweeps, .. } = self.sessions[session].clone();
        let Some(leg) = legs.get(number) else {
            self.finishes(session, commit);
            return;
        };
        if self.routing.permille(self.settings.local_fails) {
            let pause_ms = self.routing.between(20, 200);
            self.go_on_in(session, pause_ms);
            return;
        }
        let source = &mut self.sources[leg.shard];
        if source.end_prepared(&gid, leg.branch, commit).is_some() {
            if sweeps {
                self.count(Happening::Swept);
            }
            let sources = self.sources_of(&gid);
            self.local_ended((&gid, leg.branch), sources, commit);
        } else if commit && let Some(xact) = leg.xact {
            // That nothing is prepared proves nothing about a commit; the number does.
            let end = source.locals[&xact].end;
            self.check(crate::invariant::hold(end == source::End::Committed, "I4", || {
                format!("{gid} b{} was to commit, and it is {end:?}", leg.branch)
            }));
        }
        self.becomes(session, Stage::Ending { leg: number + 1, commit });
    }

    /// On how many sources it wrote.
    pub(super) fn sources_of(&self, gid: &Gid) -> usize {
        let locals = self.sources.iter().flat_map(|source| source.locals.values());
        locals.filter(|local| local.gid == *gid).count()
    }

    /// Says so to the coordinator. Nobody waits for it, and nothing is lost with it.
    fn finishes(&mut self, session: usize, commit: bool) {
        let this = &mut self.sessions[session];
        this.stage = Stage::Over;
        if !commit {
            return;
        }
        let branches: Vec<BranchId> = match this.sweeps {
            true => this.legs.iter().map(|leg| BranchId(leg.branch)).collect(),
            false => Vec::new(),
        };
        let (gid, turn) = (this.gid.clone(), this.turn);
        let command = Command::Finish { gid, branches, decision: Decision::Commit };
        let (client, node) = (FIRST + session, self.some_node());
        let ask = Message::Ask { client, turn, command, wait: false };
        self.send(End::Client(client), End::Node(node), ask);
    }

    /// Somebody takes up what is prepared for too long.
    pub(super) fn sweep(&mut self) {
        self.queue.at(self.now_ms + SWEEP_MS, Event::Sweep);
        let mut orphans = Vec::new();
        for (shard, source) in self.sources.iter().enumerate() {
            for (gid, branch, since_ms) in source.in_doubt() {
                if self.now_ms >= since_ms + ORPHAN_MS {
                    orphans.push((gid.clone(), shard, branch));
                }
            }
        }
        for (gid, shard, branch) in orphans {
            let is_swept = self.sessions.iter().any(|session| {
                session.sweeps
                    && !session.is_over()
                    && (&session.gid, session.legs[0].branch) == (&gid, branch)
            });
            if !is_swept {
                let leg = Leg { shard, branch, changes: Vec::new(), xact: None };
                let (stage, tries, turn) = (Stage::Fencing, 0, 0);
                let (grace_ms, attempts_max) = (0, 0);
                let legs = vec![leg];
                let sweeps = true;
                self.sessions.push(Session {
                    gid,
                    legs,
                    stage,
                    tries,
                    turn,
                    sweeps,
                    grace_ms,
                    attempts_max,
                    asks_max: ASKS_MAX,
                });
                self.go_on_in(self.sessions.len() - 1, 1);
            }
        }
    }
}
