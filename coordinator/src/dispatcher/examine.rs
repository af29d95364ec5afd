//! Looks at transactions one by one: makes the calls they owe, or proposes what was heard of them.

use holdfast_fault::{Site, reached};
use holdfast_txn::{
    BranchId, Command, Gid, GlobalTransaction, Machine, Next, Op, Status, Timestamp,
};

use super::{
    Dispatcher, Lead,
    open::{Open, Stage},
    parked::CallKey,
    pass,
    spans::{self, Traced},
};
use crate::{
    branch_call::{self, Asking},
    clock,
    proposer::Kind,
};

/// A transaction's header that names the color of the sessions that should serve it, where there are any.
const COLOR_HEADER: &str = "holdfast-color";
/// Transactions looked at under one hold of the machine, which appliers wait for.
const EXAMINED_PER_HOLD: usize = 256;

impl Dispatcher {
    /// Examines those that moved or were answered, as many as one pass may.
    pub(super) fn examine(&mut self, now_ms: u64) {
        let mut left = pass::EXAMINED_MAX;
        while left > 0 && !self.dirty.is_empty() {
            let shared = self.world.state.clone();
            let state = shared.held();
            let now = self.world.clock.now();
            for _ in 0..EXAMINED_PER_HOLD {
                let Some(gid) = self.dirty.pop_front() else { break };
                self.examine_one(&state.machine, gid, now, now_ms);
            }
            left = left.saturating_sub(EXAMINED_PER_HOLD);
        }
        if !self.seen.is_empty() {
            self.world.history.attempts(std::mem::take(&mut self.seen));
        }
    }

    fn examine_one(&mut self, machine: &Machine, gid: Gid, now: Timestamp, now_ms: u64) {
        let Some(mut open) = self.opens.remove(&gid) else { return };
        open.dirty = false;
        // Looked up once: most that are examined are over, and those are many.
        let known = machine.get(&gid);
        let for_people = known.is_some_and(|known| known.status == Status::NeedsAttention);
        let is_over = known.is_none_or(|known| known.status.is_final());
        let Some(transaction) = known.filter(|_| !is_over && !for_people) else {
            // Over, or for people: nothing is owed. What was seen goes to the history, or waits for the people.
            self.forget(&open);
            if let Some(over) = known.filter(|_| is_over) {
                spans::ended(over);
            }
            if open.attempts.is_empty() {
                return;
            }
            if for_people {
                let Open { attempts, recovering, retried, traced, traced_branches, .. } = *open;
                let kept = Open {
                    attempts,
                    recovering,
                    retried,
                    traced,
                    traced_branches,
                    ..Open::default()
                };
                self.opens.insert(gid, Box::new(kept));
            } else {
                self.seen.push((gid, open.attempts));
            }
            return;
        };
        open.retry = Some(transaction.options.retry);
        open.call_timeout_ms = transaction.options.call_timeout_ms;
        self.trace(transaction, &mut open);
        if open.reporting.is_none() && open.held_until_ms <= now_ms {
            open.held_until_ms = 0;
            self.go_on(transaction, &mut open, now, now_ms);
        }
        self.set_alarm(&gid, &mut open);
        if open.is_idle() {
            self.forget(&open);
        } else {
            self.opens.insert(gid, open);
        }
    }

    /// Remembers whose spans its calls are part of, once for all of them, and anew when branches were added.
    fn trace(&self, transaction: &GlobalTransaction, open: &mut Open) {
        let branches = transaction.branches.len();
        if let Lead::Leads(term) = self.lead
            && open.traced_branches != Some(branches)
        {
            open.traced = Traced::of(transaction, term);
            open.traced_branches = Some(branches);
        }
    }

    fn go_on(
        &mut self,
        transaction: &GlobalTransaction,
        open: &mut Open,
        now: Timestamp,
        now_ms: u64,
    ) {
        match transaction.owed(&open.heard) {
            Next::Call(owed) => {
                open.owe(&owed, grace_ends_ms(transaction, now, now_ms));
                self.make_calls(transaction, open, now, now_ms);
            }
            Next::Become(status, _) => {
                let waited_for =
                    !status.is_final() || self.world.waiters.anyone_for(&transaction.gid);
                let kind = if waited_for { Kind::Blocking } else { Kind::Lazy };
                self.report(&transaction.gid, open, kind, now_ms);
            }
            Next::Record => self.report(&transaction.gid, open, Kind::Blocking, now_ms),
            Next::Wait => open.calls.clear(),
        }
    }

    fn report(&self, gid: &Gid, open: &mut Open, kind: Kind, now_ms: u64) {
        if open.heard.is_empty() {
            tracing::error!(%gid, "the machine asks for a report of nothing; left to its deadline");
            return;
        }
        reached(Site::DispatcherBeforeReport);
        let command = Command::Report { gid: gid.clone(), reports: open.heard.clone() };
        if self.world.proposer.report(gid.clone(), &command, kind) {
            open.reporting = Some(open.heard.len());
        } else {
            open.held_until_ms = now_ms + clock::jittered(20).max(1);
        }
    }

    fn make_calls(
        &mut self,
        transaction: &GlobalTransaction,
        open: &mut Open,
        now: Timestamp,
        now_ms: u64,
    ) {
        for index in 0..open.calls.len() {
            let call = &open.calls[index];
            let may_go = match call.stage {
                Stage::Ready => true,
                Stage::UnderWay { .. } => false,
                Stage::Paused { until_ms } | Stage::Parked { until_ms, .. } => until_ms <= now_ms,
            };
            if may_go {
                let (branch, op, asked) = (call.branch, call.op, call.asked);
                let about = (branch, op, asked);
                let taken_up = open.recovering || open.retried;
                let stage = (call.stage, open.recovering, taken_up);
                let traced = open.traced.as_deref();
                let stage = self.make_call(transaction, about, stage, traced, (now, now_ms));
                let call = &mut open.calls[index];
                call.asked += u32::from(matches!(stage, Stage::UnderWay { .. }));
                call.stage = stage;
            }
        }
    }

    fn make_call(
        &mut self,
        transaction: &GlobalTransaction,
        (branch, op, asked): (BranchId, Op, u32),
        (stage, recovering, taken_up): (Stage, bool, bool),
        traced: Option<&Traced>,
        (now, now_ms): (Timestamp, u64),
    ) -> Stage {
        let attempt = asked.saturating_add(1);
        let asking = Asking { attempt, taken_up };
        let call = branch_call::build(transaction, branch, op, asking, now);
        let Some(mut call) = call else {
            tracing::error!(gid = %transaction.gid, %branch, "a call is owed to a branch that is not there");
            return Stage::Paused {
                until_ms: now_ms + transaction.options.retry.ceiling_ms.max(1),
            };
        };
        let service = &transaction.branches[branch.0 as usize - 1].spec.participant;
        let key = CallKey { gid: transaction.gid.clone(), branch, op };
        let color = transaction.options.headers.others().get(COLOR_HEADER);
        let Some(session) = self.sessions.choose(service, color, recovering, now_ms) else {
            let until_ms = now_ms + clock::jittered(transaction.options.retry.ceiling_ms).max(1);
            self.world.meters.held(self.sessions.held(service, recovering, now_ms));
            let queued = matches!(stage, Stage::Parked { queued: true, .. })
                || self.parked.park(service, key);
            return Stage::Parked { until_ms, queued };
        };
        if attempt > 1 {
            self.world.meters.retries.increment(1);
        }
        if let Some(traced) = traced {
            traced.carry(&mut call);
        }
        reached(Site::DispatcherBeforeCall);
        let ticket = self.sessions.ask(session, key, recovering, &call, now_ms);
        Stage::UnderWay { ticket, until_ms: now_ms + transaction.options.call_timeout_ms }
    }

    /// One alarm for a transaction, at the earliest of what it waits for.
    fn set_alarm(&mut self, gid: &Gid, open: &mut Open) {
        let Some(next_ms) = open.next_ms() else { return };
        match open.alarm {
            // An alarm that rings too early costs a look; setting it anew each time would cost more.
            Some(alarm) if alarm.at_ms <= next_ms => {}
            Some(alarm) => {
                self.timers.clear(alarm);
                open.alarm = Some(self.timers.set(next_ms, gid));
            }
            None => open.alarm = Some(self.timers.set(next_ms, gid)),
        }
    }

    fn forget(&mut self, open: &Open) {
        if let Some(alarm) = open.alarm {
            self.timers.clear(alarm);
        }
    }
}

/// When the caller's time for the second phase is over, where it was given any and it is not over yet.
fn grace_ends_ms(transaction: &GlobalTransaction, now: Timestamp, now_ms: u64) -> Option<u64> {
    let grace_ms = transaction.options.second_phase_grace_ms;
    let decided_at = transaction.decided_at.filter(|_| grace_ms > 0)?;
    // Clocks of leaders differ: whatever they say, nobody waits longer than the caller asked for.
    let left_ms = decided_at.plus_ms(grace_ms).0.saturating_sub(now.0).min(grace_ms);
    (left_ms > 0).then(|| now_ms + left_ms)
}

impl Open {
    /// Nothing is remembered that matters.
    fn is_idle(&self) -> bool {
        self.calls.is_empty()
            && self.heard.is_empty()
            && self.reporting.is_none()
            && self.held_until_ms == 0
            && !self.expiring
            && self.attempts.is_empty()
    }
}
