//! Clients: submit, ask again at another node with the same gid, race each other, take a gid twice, roll back, or vanish.

use holdfast_ledger::BranchKey;
use holdfast_txn::{Command, Gid, TriedBy};

use super::{
    End, Event, World,
    database::{Call, Said},
    network::{Message, Ticket, Told},
};
use crate::{
    chance::Chance,
    happening::Happening,
    workload::{Plan, Step, first_op, shard_of_participant},
};

/// Attempts after which a client gives up, and is told nothing.
const TRIES_MAX: u32 = 60;
/// How often one who looks does so.
const LOOKS: usize = 4;

/// One program that wants something.
#[derive(Debug)]
pub(crate) struct Client {
    plan: Plan,
    steps: Vec<Step>,
    at: usize,
    /// Counts what it sends: an answer to something earlier is not the one it waits for.
    turn: u64,
    tries: u32,
    node: usize,
    pub(crate) done: bool,
    /// Behind this step it is never seen again.
    vanishes_at: Option<usize>,
}

impl World {
    /// Takes a transaction in: its owner, and whoever else has a hand in it.
    pub(super) fn welcome(&mut self, plan: Plan, drawing: &mut Chance) {
        let at_ms = drawing.between(10, self.settings.arrivals_ms);
        let steps = plan.steps();
        let vanishes_at = drawing.permille(100).then(|| drawing.index(steps.len()));
        if vanishes_at.is_some() {
            self.count(Happening::ClientVanished);
        }
        if plan.options.tried_by == TriedBy::Coordinator && drawing.permille(150) {
            self.count(Happening::ClientTwin);
            let twin_ms = at_ms + drawing.between(0, 30);
            self.arrive(plan.clone(), steps.clone(), twin_ms, None);
        }
        if drawing.permille(120) {
            self.count(Happening::ClientOtherContent);
            let rival = plan.rival();
            let rival_ms = (at_ms + drawing.between(0, 2_000)).saturating_sub(200);
            let steps = vec![Step::Await(rival.begin())];
            self.arrive(rival, steps, rival_ms, None);
        }
        if plan.options.tried_by == TriedBy::Coordinator && !plan.one_shard && drawing.permille(200)
        {
            let nest_ms = at_ms + drawing.between(1, 300);
            let steps = vec![Step::Propose(plan.nested(&self.places, drawing))];
            self.arrive(plan.clone(), steps, nest_ms, None);
        }
        if drawing.permille(300) {
            self.count(Happening::ClientLooks);
            let look_ms = (at_ms + drawing.between(0, 1_000)).saturating_sub(200);
            let steps = vec![Step::Look(plan.gid.clone()); LOOKS];
            self.arrive(plan.clone(), steps, look_ms, None);
        }
        if drawing.permille(150) {
            self.count(Happening::ClientRollBack);
            let late_ms = at_ms + drawing.between(0, 1_500);
            let gid = plan.gid.clone();
            let command = Command::RollBack { gid, reason: "the caller asked".to_owned() };
            self.arrive(plan.clone(), vec![Step::Propose(command)], late_ms, None);
        }
        self.arrive(plan, steps, at_ms, vanishes_at);
    }

    /// A client that begins at `at_ms`.
    pub(super) fn arrive(
        &mut self,
        plan: Plan,
        steps: Vec<Step>,
        at_ms: u64,
        vanishes_at: Option<usize>,
    ) {
        self.witness.expect(&plan);
        let client = self.clients.len();
        let node = self.asking.index(self.nodes.len());
        let (at, turn, tries, done) = (0, 0, 0, false);
        self.clients.push(Client { plan, steps, at, turn, tries, node, done, vanishes_at });
        self.queue.at(at_ms, Event::Turn { client, turn });
    }

    /// The client sends what it wants now, unless it has heard something since.
    pub(super) fn client_turn(&mut self, client: usize, turn: u64) {
        let this = &mut self.clients[client];
        if this.done || this.turn != turn {
            return;
        }
        let Some(step) = this.steps.get(this.at).cloned() else {
            this.done = true;
            return;
        };
        this.turn += 1;
        this.tries += 1;
        let (turn, node) = (this.turn, this.node);
        if this.vanishes_at == Some(this.at) || this.tries > TRIES_MAX {
            this.done = true;
        }
        if this.tries > 1 {
            self.count(Happening::ClientResubmitted);
        }
        match step {
            Step::Propose(command) => self.ask(client, turn, node, command, false),
            Step::Await(command) => self.ask(client, turn, node, command, true),
            Step::Look(gid) => {
                let look = Message::Look { client, turn, gid };
                self.send(End::Client(client), End::Node(node), look);
            }
            Step::Try(branch) => {
                let plan = &self.clients[client].plan;
                let spec = &plan.branches[branch.0 as usize - 1];
                let call = Call {
                    key: BranchKey::new(plan.gid.as_str(), branch.0),
                    op: first_op(plan.mode),
                    payload: spec.payload.clone(),
                    refusal_waits: false,
                };
                let shard = shard_of_participant(&spec.participant);
                let ticket = Ticket { from: End::Client(client), stint: turn, number: 0 };
                self.send(End::Client(client), End::Agent(shard), Message::Call { ticket, call });
            }
        }
        // Without an answer it tries another node.
        let patience_ms = self.asking.between(250, 1_500);
        self.queue.at(self.now_ms + patience_ms, Event::Turn { client, turn });
        self.clients[client].node = self.asking.index(self.nodes.len());
    }

    pub(super) fn ask(
        &mut self,
        client: usize,
        turn: u64,
        node: usize,
        command: Command,
        wait: bool,
    ) {
        if let Command::RollBack { gid, .. } = &command {
            self.witness.deadlines.asked(gid);
        }
        let ask = Message::Ask { client, turn, command, wait };
        self.send(End::Client(client), End::Node(node), ask);
    }

    pub(super) fn client_told(&mut self, client: usize, turn: u64, told: &Told) {
        // The operator looks again instead of hearing.
        let Some(this) = self.clients.get_mut(client) else { return };
        if this.done || this.turn != turn {
            return;
        }
        match told {
            Told::Known => {
                this.at += 1;
                self.act_after(client, 0);
            }
            Told::Decided(_) => this.done = true,
            Told::Seen(_) => {
                this.at += 1;
                self.act_after(client, 300);
            }
            Told::Refused { code, .. } => {
                let code = *code;
                let asks_for_fate =
                    matches!(this.steps.get(this.at), Some(Step::Await(Command::Begin { .. })));
                // Its gid is another's, or it has asked for its fate already.
                if code == "HF2002" || asks_for_fate || this.steps.len() < 2 {
                    this.done = true;
                } else {
                    this.steps = vec![Step::Await(this.plan.begin())];
                    this.at = 0;
                    self.act_after(client, 0);
                }
            }
            Told::NotLeading => {
                // It looks for the leader, and mostly finds it.
                if self.asking.permille(700)
                    && let Some(leader) = self.cluster.leader
                {
                    self.clients[client].node = leader;
                }
                self.act_after(client, 60);
            }
            Told::Unknown => self.act_after(client, 400),
        }
    }

    /// The client's own try has an answer.
    pub(super) fn client_answered(&mut self, client: usize, ticket: Ticket, said: &Said) {
        let this = &mut self.clients[client];
        if this.done || this.turn != ticket.stint {
            return;
        }
        match said {
            Said::Done => {
                this.at += 1;
                self.act_after(client, 0);
            }
            Said::Refused(_) => {
                let gid: Gid = this.plan.gid.clone();
                let reason = "a try was refused".to_owned();
                let roll_back = Command::RollBack { gid, reason };
                this.steps = vec![Step::Propose(roll_back), Step::Await(this.plan.begin())];
                this.at = 0;
                self.act_after(client, 0);
            }
            Said::Working | Said::Unknown => self.act_after(client, 100),
        }
    }

    fn act_after(&mut self, client: usize, pause_ms: u64) {
        // What it hears later of this turn is no news.
        self.clients[client].turn += 1;
        let turn = self.clients[client].turn;
        let at_ms = self.now_ms + self.asking.between(1, pause_ms.max(2));
        self.queue.at(at_ms, Event::Turn { client, turn });
    }
}
