//! The leader's hand, as the shell has it: asks the real machine what is owed, makes the calls, proposes what it heard.
//!
//! Written after the shell's dispatcher, step by step: what it remembers of a transaction, one report at a time, pauses,
//! timeouts, what it forgets and when. Laxer in two things: there is no credit, and a call without a session waits for its
//! pause and not for the session.

use holdfast_ledger::BranchKey;
use holdfast_txn::{
    Answer, BranchId, BranchState, Command, Gid, GlobalTransaction, Next, Op, Outcome, Refusal,
    Rejection, Report, RetryPolicy, Status,
};

use super::{
    End, Event, World,
    database::{Call, Said},
    network::{Message, Ticket, Told},
    node::{Lead, Reply},
};
use crate::{
    chance::Chance,
    happening::Happening,
    invariant::{bounds, hold},
    mutant::Mutant,
    workload::shard_of_participant,
};

/// Between two looks at deadlines, ms. The shell looks more often while something is expired.
const EXPIRY_MS: u64 = 60;
/// Expired transactions asked for at once.
const EXPIRED_MAX: usize = 16;

/// What the leader remembers of one transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Open {
    pub(crate) heard: Vec<Report>,
    reporting: Option<usize>,
    held_until_ms: u64,
    expiring: bool,
    calls: Vec<OpenCall>,
    alarm_ms: Option<u64>,
}

#[derive(Clone, Debug)]
struct OpenCall {
    branch: BranchId,
    op: Op,
    unanswered: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ready,
    UnderWay { number: u64, until_ms: u64 },
    Paused { until_ms: u64 },
}

impl Stage {
    fn until_ms(self) -> u64 {
        match self {
            Self::Ready => 0,
            Self::UnderWay { until_ms, .. } | Self::Paused { until_ms } => until_ms,
        }
    }
}

impl Open {
    /// The transaction was retried: what was heard of the attempt before counts no more.
    pub(crate) fn begin_anew(&mut self) {
        self.heard.clear();
        self.calls.clear();
        self.reporting = self.reporting.map(|_| 0);
    }

    /// `grace_until_ms`: so long whoever prepared it carries it out itself.
    fn owe(&mut self, owed: &[(BranchId, Op)], grace_until_ms: Option<u64>) {
        let stage = grace_until_ms.map_or(Stage::Ready, |until_ms| Stage::Paused { until_ms });
        self.calls.retain(|call| owed.contains(&(call.branch, call.op)));
        for &(branch, op) in owed {
            if !self.calls.iter().any(|call| (call.branch, call.op) == (branch, op)) {
                self.calls.push(OpenCall { branch, op, unanswered: 0, stage });
            }
        }
    }

    fn settle(&mut self, branch: BranchId, op: Op, answer: Answer) {
        let before = self.calls.len();
        self.calls.retain(|call| (call.branch, call.op) != (branch, op));
        if self.calls.len() < before {
            self.heard.push(Report { branch, op, answer });
        }
    }

    fn under_way(&mut self, branch: BranchId, op: Op, number: u64) -> Option<&mut OpenCall> {
        self.calls.iter_mut().find(|call| {
            (call.branch, call.op) == (branch, op)
                && matches!(call.stage, Stage::UnderWay { number: asked, .. } if asked == number)
        })
    }

    /// No answer: asked again after a pause, or given up. True: given up.
    fn unknown(
        &mut self,
        (branch, op, number): (BranchId, Op, u64),
        retry: RetryPolicy,
        now_ms: u64,
        chance: &mut Chance,
    ) -> bool {
        let Some(call) = self.under_way(branch, op, number) else { return false };
        call.unanswered = call.unanswered.saturating_add(1);
        let attempts = call.unanswered;
        if retry.attempts_max > 0 && attempts >= retry.attempts_max {
            self.settle(branch, op, Answer::GivenUp { attempts, last: "silence".to_owned() });
            return true;
        }
        let doubled = 1_u64.checked_shl(attempts - 1).unwrap_or(u64::MAX);
        let pause_ms = retry.first_ms.saturating_mul(doubled).min(retry.ceiling_ms);
        call.stage = Stage::Paused { until_ms: now_ms + chance.jittered(pause_ms) };
        false
    }

    fn next_ms(&self) -> Option<u64> {
        if self.reporting.is_some() {
            return None;
        }
        if self.held_until_ms > 0 {
            return Some(self.held_until_ms);
        }
        self.calls.iter().map(|call| call.stage.until_ms()).min()
    }

    fn is_idle(&self) -> bool {
        self.calls.is_empty()
            && self.heard.is_empty()
            && self.reporting.is_none()
            && self.held_until_ms == 0
            && !self.expiring
    }
}

impl World {
    pub(super) fn begin_calling(&mut self, node: usize) {
        let owing: Vec<Gid> = self.nodes[node].machine.owing(None).cloned().collect();
        for gid in owing {
            if !self.mutates(Mutant::DueNotAsked) {
                self.examine(node, &gid);
            }
        }
        let stint = self.nodes[node].stint;
        self.queue.at(self.now_ms, Event::Expiry { node, stint });
    }

    /// Looks at one transaction: makes the calls it owes, or proposes what was heard of it.
    pub(super) fn examine(&mut self, node: usize, gid: &Gid) {
        if !matches!(self.nodes[node].lead, Lead::Leads(_)) {
            return;
        }
        let mut open = self.nodes[node].opens.remove(gid).unwrap_or_default();
        let known = self.nodes[node].machine.get(gid);
        let Some(known) = known
            .filter(|known| !known.status.is_final() && known.status != Status::NeedsAttention)
            .cloned()
        else {
            return;
        };
        if open.reporting.is_none() && open.held_until_ms <= self.now_ms {
            open.held_until_ms = 0;
            self.go_on(node, &known, &mut open);
        }
        let bound = known.branches.len() * bounds::HEARD_PER_BRANCH_MAX;
        self.check(bounds::within("answers", open.heard.len(), bound));
        if let Some(next_ms) = open.next_ms()
            && open.alarm_ms.is_none_or(|set| set > next_ms || set <= self.now_ms)
        {
            let at_ms = next_ms.max(self.now_ms + 1);
            open.alarm_ms = Some(at_ms);
            let stint = self.nodes[node].stint;
            self.queue.at(at_ms, Event::Alarm { node, stint, gid: gid.clone() });
        }
        if !open.is_idle() {
            self.nodes[node].opens.insert(gid.clone(), open);
        }
        self.flush(node);
    }

    fn go_on(&mut self, node: usize, known: &GlobalTransaction, open: &mut Open) {
        loop {
            match self.nodes[node].machine.owed(&known.gid, &open.heard) {
                Next::Call(owed) => {
                    let grace_until_ms = self.grace_until_ms(node, known);
                    open.owe(&owed, grace_until_ms);
                    if self.skips(known, open, &owed) {
                        continue;
                    }
                    self.make_calls(node, known, open);
                }
                Next::Become(_, decision) => {
                    if let (Some(decision), true) =
                        (decision, self.mutates(Mutant::DecisionToldEarly))
                    {
                        for waiter in self.nodes[node].waiters.clone() {
                            if waiter.gid == known.gid {
                                let told = Told::Decided(decision);
                                self.tell(node, &waiter, told);
                            }
                        }
                    }
                    self.report(node, &known.gid, open);
                }
                Next::Record => {
                    let pivot = known.numbered().find(|(_, branch)| branch.spec.pivot);
                    let pivot = pivot.map(|(branch, _)| branch).expect("only a pivot is recorded");
                    let heard = open.heard.iter().any(|report| report.branch == pivot);
                    if self.mutates(Mutant::PivotUnrecorded) && !heard {
                        open.owe(&[(pivot, Op::Action)], None);
                        self.make_calls(node, known, open);
                    } else {
                        self.report(node, &known.gid, open);
                    }
                }
                Next::Wait => open.calls.clear(),
            }
            return;
        }
    }

    /// Until when the second phase is the caller's, if it still is.
    fn grace_until_ms(&mut self, node: usize, known: &GlobalTransaction) -> Option<u64> {
        let grace_ms = known.options.second_phase_grace_ms;
        let decided_at = known.decided_at.filter(|_| grace_ms > 0)?;
        let now = self.clock(node);
        let left_ms = decided_at.plus_ms(grace_ms).0.saturating_sub(now.0).min(grace_ms);
        (left_ms > 0).then(|| self.now_ms + left_ms)
    }

    /// Mutants that report what they never asked for. True: something was put into their mouths.
    fn skips(&self, known: &GlobalTransaction, open: &mut Open, owed: &[(BranchId, Op)]) -> bool {
        let skipped = owed.iter().find(|(branch, op)| match op {
            Op::Compensate => self.mutates(Mutant::CompensationLost),
            Op::Cancel => {
                self.mutates(Mutant::CancelSkipped)
                    && known.branch(*branch).is_some_and(|b| b.state == BranchState::Pending)
            }
            Op::Confirm => self.mutates(Mutant::ConfirmLost),
            Op::Try | Op::Action | Op::Prepare | Op::Commit | Op::RollBack => false,
        });
        if let Some(&(branch, op)) = skipped {
            open.settle(branch, op, Answer::Done);
        }
        skipped.is_some()
    }

    fn report(&mut self, node: usize, gid: &Gid, open: &mut Open) {
        // What the log alone asks for is settled as entries are applied: a report of nothing would be asked for for ever.
        self.check(hold(!open.heard.is_empty(), "I17", || {
            format!("the machine asks for a report of {gid}, of which nothing was heard")
        }));
        if self.nodes[node].waiting.len() >= bounds::COMMANDS_MAX {
            open.held_until_ms = self.now_ms + self.pace.jittered(20);
            return;
        }
        let command = Command::Report { gid: gid.clone(), reports: open.heard.clone() };
        self.nodes[node].waiting.push((command, Reply::Dispatcher(gid.clone())));
        open.reporting = Some(open.heard.len());
    }

    fn make_calls(&mut self, node: usize, known: &GlobalTransaction, open: &mut Open) {
        for index in 0..open.calls.len() {
            let (branch, op, stage) =
                (open.calls[index].branch, open.calls[index].op, open.calls[index].stage);
            let may_go = match stage {
                Stage::Ready => true,
                Stage::UnderWay { .. } => false,
                Stage::Paused { until_ms } => until_ms <= self.now_ms,
            };
            if may_go {
                open.calls[index].stage = self.make_call(node, known, branch, op);
            }
        }
    }

    fn make_call(
        &mut self,
        node: usize,
        known: &GlobalTransaction,
        branch: BranchId,
        op: Op,
    ) -> Stage {
        let spec = &known.branch(branch).expect("the machine owes a branch it has").spec;
        let shard = shard_of_participant(&spec.participant);
        if !self.agents[shard].up {
            let pause_ms = self.pace.jittered(known.options.retry.ceiling_ms);
            return Stage::Paused { until_ms: self.now_ms + pause_ms };
        }
        let key = BranchKey::new(known.gid.as_str(), branch.0);
        let captured = known.captures.of(branch).filter(|_| op == Op::Confirm);
        let payload = captured.unwrap_or(&spec.payload).clone();
        let refusal_waits = op == Op::Action && known.refusal_waits(branch);
        self.call(node, shard, Call { key, op, payload, refusal_waits });
        let number = self.nodes[node].next_ticket;
        Stage::UnderWay { number, until_ms: self.now_ms + known.options.call_timeout_ms }
    }

    fn call(&mut self, node: usize, shard: usize, call: Call) {
        if !self.is_true_leader(node) {
            self.count(Happening::CallByDeposed);
        }
        let sent = self.witness.sent(&call);
        self.check(sent);
        self.note(|| format!("node {node} calls {} {}", call.key, call.op));
        self.nodes[node].next_ticket += 1;
        let (stint, number) = (self.nodes[node].stint, self.nodes[node].next_ticket);
        let ticket = Ticket { from: End::Node(node), stint, number };
        self.send(End::Node(node), End::Agent(shard), Message::Call { ticket, call });
    }

    /// A participant's answer. Those to calls of another time of leadership are nobody's.
    pub(super) fn hear(
        &mut self,
        node: usize,
        ticket: Ticket,
        key: &BranchKey,
        op: Op,
        said: Said,
    ) {
        let this = &mut self.nodes[node];
        if this.stint != ticket.stint || !matches!(this.lead, Lead::Leads(_)) {
            return;
        }
        let gid = Gid::parse(&key.gid).expect("a key is made of a gid");
        let another = self.mutant == Some(Mutant::AnswerToAnotherBranch);
        let branch = BranchId(if another { 1 } else { key.branch });
        let Some(retry) = this.machine.get(&gid).map(|known| known.options.retry) else { return };
        let Some(open) = this.opens.get_mut(&gid) else { return };
        match said {
            Said::Done => {
                open.settle(branch, op, Answer::Done);
                if op == Op::Try && self.mutates(Mutant::ConfirmBeforeDecision) {
                    let call = Call::early(key, Op::Confirm);
                    self.call_early(node, &gid, branch, call);
                }
            }
            Said::Refused(code) => {
                let refusal = Refusal { code, message: String::new() };
                open.settle(branch, op, Answer::Refused(refusal));
                if op == Op::Try && self.mutates(Mutant::CancelBeforeDecision) {
                    self.call_early(node, &gid, branch, Call::early(key, Op::Cancel));
                }
            }
            Said::Working if self.mutant == Some(Mutant::WorkingAsDone) => {
                open.settle(branch, op, Answer::Done);
            }
            Said::Working => {
                if let Some(call) = open.under_way(branch, op, ticket.number) {
                    call.unanswered = 0;
                    let pause_ms = self.pace.jittered(retry.first_ms);
                    call.stage = Stage::Paused { until_ms: self.now_ms + pause_ms };
                }
            }
            Said::Unknown => {
                let asked = (branch, op, ticket.number);
                if open.unknown(asked, retry, self.now_ms, &mut self.pace) {
                    self.count(Happening::GivenUp);
                }
            }
        }
        self.examine(node, &gid);
    }

    /// Mutants that do not wait for the log.
    fn call_early(&mut self, node: usize, gid: &Gid, branch: BranchId, call: Call) {
        let shard = self.nodes[node].machine.get(gid).and_then(|known| {
            known.branch(branch).map(|b| shard_of_participant(&b.spec.participant))
        });
        self.call(node, shard.expect("it was asked"), call);
    }

    /// An alarm: calls that timed out, pauses that are over.
    pub(super) fn ring(&mut self, node: usize, gid: &Gid) {
        let this = &mut self.nodes[node];
        let Some(retry) = this.machine.get(gid).map(|known| known.options.retry) else { return };
        let Some(open) = this.opens.get_mut(gid) else { return };
        open.alarm_ms = None;
        let now_ms = self.now_ms;
        let timed_out: Vec<(BranchId, Op, u64)> = open
            .calls
            .iter()
            .filter_map(|call| match call.stage {
                Stage::UnderWay { number, until_ms } if until_ms <= now_ms => {
                    Some((call.branch, call.op, number))
                }
                Stage::Ready | Stage::UnderWay { .. } | Stage::Paused { .. } => None,
            })
            .collect();
        let mut given_up = 0;
        for &(branch, op, number) in &timed_out {
            if self.mutant == Some(Mutant::UnknownAsDone) {
                open.settle(branch, op, Answer::Done);
            } else if self.mutant == Some(Mutant::UnknownAsRefused) {
                open.settle(branch, op, Answer::Refused(Refusal::default()));
            } else if self.mutant != Some(Mutant::RetryForgotten) {
                given_up +=
                    u32::from(open.unknown((branch, op, number), retry, now_ms, &mut self.pace));
            }
        }
        for _ in &timed_out {
            self.count(Happening::CallTimedOut);
        }
        for _ in 0..given_up {
            self.count(Happening::GivenUp);
        }
        self.examine(node, gid);
    }

    /// A report or an expiry has its result; `None`: nobody knows.
    pub(super) fn reported(
        &mut self,
        node: usize,
        gid: &Gid,
        result: Option<Result<Outcome, Rejection>>,
    ) {
        let Some(open) = self.nodes[node].opens.get_mut(gid) else { return };
        open.expiring = false;
        let reported = open.reporting.take();
        match result {
            Some(result) => {
                let count = reported.unwrap_or(0).min(open.heard.len());
                open.heard.drain(..count);
                open.held_until_ms = 0;
                if result.is_err() && reported.is_some() {
                    open.held_until_ms = self.now_ms + 1_000;
                }
            }
            None => open.held_until_ms = self.now_ms + self.pace.jittered(100),
        }
        self.examine(node, gid);
    }

    /// Proposes the end of transactions whose deadline has passed.
    pub(super) fn expire(&mut self, node: usize) {
        if !matches!(self.nodes[node].lead, Lead::Leads(_)) || self.mutates(Mutant::ExpiryForgotten)
        {
            return;
        }
        let stint = self.nodes[node].stint;
        self.queue.at(self.now_ms + EXPIRY_MS, Event::Expiry { node, stint });
        let own = self.clock(node);
        let machine = &self.nodes[node].machine;
        let early = self.mutates(Mutant::ExpiresByOwnClock);
        let expired: Vec<Gid> = if early {
            let soon = own.plus_ms(400);
            let open = machine.list(None).filter(|known| known.decision.is_none());
            open.filter(|known| known.deadline <= soon).map(|known| known.gid.clone()).collect()
        } else {
            machine.due(own.max(machine.clock()), EXPIRED_MAX).expired
        };
        for gid in expired {
            if self.nodes[node].waiting.len() >= bounds::COMMANDS_MAX {
                break;
            }
            let open = self.nodes[node].opens.entry(gid.clone()).or_default();
            if !std::mem::replace(&mut open.expiring, true) {
                let command = if early {
                    Command::RollBack { gid: gid.clone(), reason: "deadline".to_owned() }
                } else {
                    Command::Expire { gid: gid.clone() }
                };
                self.nodes[node].waiting.push((command, Reply::Dispatcher(gid)));
            }
        }
        self.flush(node);
    }
}
