//! The leader's hand: asks the machine what is owed, makes the calls, and proposes reports of the answers.
//!
//! One task owns all of it, so there are no locks and no order to get wrong; everything it hears arrives as an event, and
//! what arrived together is worked off together. It holds nothing that matters: a new leader asks the machine what is due
//! and goes on. On a node that does not lead it keeps the sessions and does nothing else.
//!
//! For each transaction that moved or was answered: [`holdfast_txn::Machine::owed`] says either which calls may be made
//! (those not under way and not pausing are made), or that the answers heard so far are worth a record (they are
//! proposed, one report at a time), or nothing.

mod announced;
pub(crate) mod attempts;
mod breakers;
mod examine;
mod held;
mod lanes;
mod open;
mod parked;
mod round;
mod served;
mod sessions;
mod spans;
mod state;
mod timers;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_fault::{Site, reached};
use holdfast_proto::v1;
use holdfast_raft::{Leadership, Log};
use holdfast_txn::{Answer, Gid, Op, Participant, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::{
    attempts::Attempts,
    breakers::{Breakers, hash_of},
    open::{Open, Stage},
    parked::{CallKey, Parked},
    sessions::{Sessions, Ticket},
    timers::Timers,
};
use crate::{
    branch_call::{self, Verdict},
    clock::{self, Clock},
    coordinator::WaitEnd,
    history::History,
    meters::{Heard, Meters, Tally},
    proposer::{Proposed, Proposer},
    registry::policy::Policies,
    replica::{Moves, Replica, SharedState, Touched},
    waiters::Waiters,
};

pub(crate) use announced::{About, Kind as SessionKind, NewSession, Outgoing, SessionId};
pub(crate) use held::Held;
pub(crate) use lanes::{Credit, Events, Lane, Term};

/// What the sessions and the log tell the dispatcher.
#[derive(Debug)]
pub(crate) enum Event {
    /// An agent is there.
    SessionUp(NewSession),
    /// It wants no further calls.
    SessionDrains(SessionId),
    /// It is gone.
    SessionDown(SessionId),
    /// It answered.
    Answers(SessionId, Vec<v1::Answer>),
    /// This node leads in this term and has applied everything of the terms before.
    CaughtUp(u64),
    /// Somebody asks how services are: one, or all (empty).
    TellServices(String, oneshot::Sender<v1::ListServicesReply>),
    /// Somebody asks what was seen of a transaction's calls.
    TellAttempts(Gid, oneshot::Sender<(Vec<v1::Attempt>, u32)>),
}

/// What the dispatcher works with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) state: SharedState,
    pub(crate) touched: Arc<Touched>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) proposer: Proposer,
    pub(crate) clock: Arc<Clock>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) log: Arc<Log<Replica>>,
    /// This group's part of the sessions.
    pub(crate) lane: Lane,
    /// The term in which this node makes calls, 0 while it makes none. Sessions drop calls of any other term.
    pub(crate) calling_term: Arc<AtomicU64>,
    /// What operators decided about services.
    pub(crate) policies: watch::Receiver<Arc<Policies>>,
    pub(crate) history: Arc<History>,
}

/// Bounds of one pass, so that nothing waits long for its turn.
mod pass {
    /// Messages taken from a channel at once.
    pub(super) const EVENTS_MAX: usize = 256;
    /// Transactions looked at before events are heard again.
    pub(super) const EXAMINED_MAX: usize = 4_096;
    /// Expired transactions asked for at once.
    pub(super) const EXPIRED_MAX: usize = 1_024;
    /// Calls parked for one service; what does not fit is asked again after a pause.
    pub(super) const PARKED_MAX: usize = 65_536;
    /// Between two rounds of sweeping and measuring, ms.
    pub(super) const ROUND_MS: u64 = 1_000;
    /// Rounds between two sweeps of what is parked.
    pub(super) const ROUNDS_PER_SWEEP: u64 = 30;
    /// Parked calls that are swept before people are told how many there are: some milliseconds' work.
    pub(super) const SWEPT_TO_TELL_MAX: usize = 16_384;
    /// Between two looks at deadlines that have passed, ms.
    pub(super) const EXPIRY_MS: u64 = 20;
}

/// How far this node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    Not,
    /// Leads, and waits until everything of former terms is applied.
    Catching(u64),
    Leads(u64),
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    world: Surroundings,
    leadership: watch::Receiver<Leadership>,
    events: mpsc::Receiver<Event>,
    own_events: mpsc::WeakSender<Event>,
    proposed: mpsc::Receiver<Vec<Proposed>>,
    lead: Lead,
    sessions: Sessions,
    /// Boxed: each look takes one out and puts it back.
    opens: HashMap<Gid, Box<Open>, foldhash::fast::RandomState>,
    dirty: VecDeque<Gid>,
    /// What was seen of the calls of those that ended in this pass, for the history.
    seen: Vec<(Gid, Attempts)>,
    timers: Timers,
    parked: Parked,
    breakers: Breakers,
    /// Services that have credit again.
    gained: Vec<Participant>,
    /// How many groups this node led when it last looked: credit that another group left is used from the next round on.
    led: usize,
    next_round_ms: u64,
    rounds: u64,
    next_expiry_ms: u64,
    expiry_held_until_ms: u64,
}

impl Dispatcher {
    pub(crate) fn new(
        world: Surroundings,
        leadership: watch::Receiver<Leadership>,
        events: (&mpsc::Sender<Event>, mpsc::Receiver<Event>),
        proposed: mpsc::Receiver<Vec<Proposed>>,
    ) -> Self {
        let group = world.meters.group();
        let sessions = Sessions::new(Arc::clone(&world.policies.borrow()), world.lane.clone());
        Self {
            world,
            leadership,
            own_events: events.0.downgrade(),
            events: events.1,
            proposed,
            lead: Lead::Not,
            sessions,
            opens: HashMap::default(),
            dirty: VecDeque::new(),
            seen: Vec::new(),
            timers: Timers::default(),
            parked: Parked::new(pass::PARKED_MAX),
            breakers: Breakers::new(group),
            gained: Vec::new(),
            led: 0,
            next_round_ms: 0,
            rounds: 0,
            next_expiry_ms: 0,
            expiry_held_until_ms: 0,
        }
    }

    /// Until `stop`, or until the log is gone.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut events = Vec::with_capacity(pass::EVENTS_MAX);
        let mut proposed = Vec::with_capacity(pass::EVENTS_MAX);
        self.follow_leadership();
        loop {
            let wake_at = self.next_wake_ms();
            let touched = Arc::clone(&self.world.touched);
            let idle = self.dirty.is_empty();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.follow_leadership();
                }
                count = self.events.recv_many(&mut events, pass::EVENTS_MAX) => {
                    if count == 0 {
                        break;
                    }
                }
                count = self.proposed.recv_many(&mut proposed, pass::EVENTS_MAX) => {
                    if count == 0 {
                        break;
                    }
                }
                changed = self.world.policies.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.obey();
                }
                () = touched.wake.notified() => {}
                () = tokio::time::sleep_until(self.world.clock.instant_of(wake_at).into()), if idle => {}
                () = tokio::task::yield_now(), if !idle => {}
            }
            for event in events.drain(..) {
                self.hear(event);
            }
            for result in proposed.drain(..).flatten() {
                self.reported(result);
            }
            self.work();
        }
        self.step_down();
    }

    /// One pass over everything that may have become due.
    fn work(&mut self) {
        let now_ms = self.world.clock.tick_ms();
        if let Lead::Leads(term) = self.lead {
            match self.world.touched.take() {
                Moves::These(moved) => moved.iter().for_each(|touch| {
                    if touch.anew {
                        self.opens.entry(touch.gid.clone()).or_default().begin_anew();
                    }
                    self.look_at(&touch.gid);
                }),
                Moves::Anything => {
                    self.look_at_everything();
                    // Which of them were retried is not known any more.
                    self.opens.values_mut().for_each(|open| open.retried = true);
                }
            }
            self.ring(now_ms);
            self.gained.extend(self.sessions.ready(now_ms));
            self.resume(now_ms);
            self.examine(now_ms);
            self.expire(now_ms);
            for (ticket, key) in self.sessions.flush(&Term::of(&self.world.calling_term, term)) {
                self.unsent(ticket, &key, now_ms);
            }
        }
        if now_ms >= self.next_round_ms {
            self.round(now_ms);
        }
    }

    fn next_wake_ms(&self) -> u64 {
        let mut wake_ms = self.next_round_ms;
        if let Lead::Leads(_) = self.lead {
            wake_ms = wake_ms.min(self.timers.next_ms().unwrap_or(u64::MAX));
            wake_ms = wake_ms.min(self.next_expiry_ms).min(self.sessions.next_ready_ms());
        }
        wake_ms
    }

    // === leadership ===

    fn follow_leadership(&mut self) {
        let seen = self.leadership.borrow_and_update().clone();
        let term = seen.leads_here.then_some(seen.term);
        let known = match self.lead {
            Lead::Not => None,
            Lead::Catching(term) | Lead::Leads(term) => Some(term),
        };
        if term == known {
            return;
        }
        self.step_down();
        let Some(term) = term else { return };
        tracing::info!(term, "this node leads");
        self.lead = Lead::Catching(term);
        self.sessions.lead(true);
        self.world.meters.lead(true);
        self.catch_up(term);
    }

    /// Waits, beside the task, until everything of former terms is applied: what is due is asked of the newest state.
    fn catch_up(&self, term: u64) {
        let log = Arc::clone(&self.world.log);
        let events = self.own_events.clone();
        let leadership = self.leadership.clone();
        tokio::spawn(async move {
            let leads = || {
                let now = leadership.borrow();
                now.leads_here && now.term == term
            };
            while leads() {
                match log.read_barrier().await {
                    Ok(_) => {
                        if let Some(events) = events.upgrade() {
                            // Nobody hears it when the node stops.
                            let _gone = events.send(Event::CaughtUp(term)).await;
                        }
                        return;
                    }
                    Err(fault) => tracing::debug!(term, ?fault, "not caught up yet"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn begin_calling(&mut self, term: u64) {
        if self.lead != Lead::Catching(term) {
            return;
        }
        reached(Site::DispatcherTakesUp);
        self.lead = Lead::Leads(term);
        self.world.calling_term.store(term, Ordering::Release);
        self.world.touched.listen(true);
        self.next_expiry_ms = 0;
        self.look_at_everything();
        // What is taken up at once is called with a bound of its own, so that it stands in nobody's way.
        self.opens.values_mut().for_each(|open| open.recovering = true);
        tracing::info!(term, owing = self.dirty.len(), "takes up what is due");
    }

    fn step_down(&mut self) {
        if self.lead == Lead::Not {
            return;
        }
        tracing::info!("this node leads no more");
        self.world.calling_term.store(0, Ordering::Release);
        self.lead = Lead::Not;
        self.sessions.lead(false);
        self.world.meters.lead(false);
        self.world.touched.listen(false);
        self.sessions.step_down();
        let (now, now_ms) = (self.world.clock.now(), self.world.clock.tick_ms());
        self.opens.values().for_each(|open| open.left(now, now_ms));
        self.opens.clear();
        self.dirty.clear();
        self.timers.clear_all();
        self.parked.clear();
        self.gained.clear();
        self.world.waiters.end_all(WaitEnd::NotLeading);
    }

    /// Operators decided anew: whatever waits may go on by that.
    fn obey(&mut self) {
        let policies = Arc::clone(&self.world.policies.borrow_and_update());
        let services = self.sessions.obey(policies, self.world.clock.tick_ms());
        self.gained.extend(services);
    }

    // === what is heard ===

    fn hear(&mut self, event: Event) {
        match event {
            Event::SessionUp(new) => {
                self.gained.push(new.service.clone());
                self.sessions.up(new, self.world.clock.tick_ms());
                self.world.meters.sessions.set(self.sessions.len() as f64);
            }
            Event::SessionDrains(id) => self.sessions.drain(id),
            Event::SessionDown(id) => {
                let now_ms = self.world.clock.tick_ms();
                for (ticket, key) in self.sessions.down(id, now_ms) {
                    self.unanswered(ticket, &key, now_ms, || "the session went away".to_owned());
                }
                self.world.meters.sessions.set(self.sessions.len() as f64);
            }
            Event::Answers(id, answers) => {
                let now = (self.world.clock.now(), self.world.clock.tick_ms());
                let mut tally = Tally::default();
                for answer in answers {
                    self.answered(id, answer, now, &mut tally);
                }
                self.world.meters.heard(&tally);
            }
            Event::CaughtUp(term) => self.begin_calling(term),
            Event::TellAttempts(gid, told) => {
                let seen = self.opens.get(&gid).map(|open| open.attempts.told());
                let _gone = told.send(seen.unwrap_or_default());
            }
            Event::TellServices(only, told) => {
                // Who asked may have gone.
                let _gone = told.send(self.tell_services(&only));
            }
        }
    }

    fn answered(
        &mut self,
        session: SessionId,
        answer: v1::Answer,
        now: (Timestamp, u64),
        tally: &mut Tally,
    ) {
        let ticket = Ticket { session, call_id: answer.call_id };
        let Some((service, key)) = self.sessions.answered(ticket) else { return };
        if self.parked.waits_for(service) && self.gained.last() != Some(service) {
            self.gained.push(service.clone());
        }
        let Some(CallKey { gid, branch, op }) = key else { return };
        reached(Site::DispatcherHeard);
        if op == Op::Confirm {
            reached(Site::DispatcherConfirmHeard);
        }
        let verdict = branch_call::verdict_of(answer);
        if let Verdict::Unknown(_) = verdict {
            self.fell_silent(session, &gid, now.1);
        } else if self.sessions.well(session)
            && let Some(service) = self.sessions.service_of(session)
        {
            // A breaker closed: what waits for the service goes on at once.
            tracing::info!(service = %service, "a breaker is closed");
            self.gained.push(service.clone());
        }
        let Some(open) = self.opens.get_mut(&gid) else { return };
        let heard = match verdict {
            Verdict::Done => Heard::Done,
            Verdict::Refused(_) => Heard::Refused,
            Verdict::Working => Heard::Working,
            Verdict::Unknown(_) => Heard::Unknown,
        };
        tally.add(op, heard);
        open.seen((branch, op, ticket), heard.word(), self.sessions.instance_of(session), now);
        match verdict {
            Verdict::Done => {
                if !open.settle(branch, op, Answer::Done) {
                    return;
                }
            }
            Verdict::Refused(refusal) => {
                if !open.settle(branch, op, Answer::Refused(refusal)) {
                    return;
                }
            }
            Verdict::Working => open.working(branch, op, ticket, now.1),
            Verdict::Unknown(why) => {
                open.unknown(branch, op, ticket, || why, now.1);
            }
        }
        self.look_at(&gid);
    }

    /// A call that nobody answered, or will.
    fn unanswered(
        &mut self,
        ticket: Ticket,
        key: &CallKey,
        now_ms: u64,
        why: impl FnOnce() -> String,
    ) {
        let Some(open) = self.opens.get_mut(&key.gid) else { return };
        let mut tally = Tally::default();
        tally.add(key.op, Heard::Unknown);
        self.world.meters.heard(&tally);
        let (at, instance) = (self.world.clock.now(), self.sessions.instance_of(ticket.session));
        open.seen((key.branch, key.op, ticket), "no answer", instance, (at, now_ms));
        open.unknown(key.branch, key.op, ticket, why, now_ms);
        self.look_at(&key.gid);
    }

    /// A call that did not even go out: no attempt, asked again soon.
    fn unsent(&mut self, ticket: Ticket, key: &CallKey, now_ms: u64) {
        let Some(open) = self.opens.get_mut(&key.gid) else { return };
        let pause_ms = clock::jittered(open.retry().first_ms).max(1);
        if let Some(call) = open.call_mut(key.branch, key.op)
            && matches!(call.stage, Stage::UnderWay { ticket: asked, .. } if asked == ticket)
        {
            call.asked = call.asked.saturating_sub(1);
            call.stage = Stage::Paused { until_ms: now_ms + pause_ms };
        }
        self.look_at(&key.gid);
    }

    fn reported(&mut self, proposed: Proposed) {
        let Proposed { gid, result } = proposed;
        let now_ms = self.world.clock.tick_ms();
        let Some(open) = self.opens.get_mut(&gid) else { return };
        open.expiring = false;
        let reported = open.reporting.take();
        match result {
            Ok(applied) => {
                reached(Site::DispatcherReportApplied);
                open.heard.drain(..reported.unwrap_or(0).min(open.heard.len()));
                open.held_until_ms = 0;
                if let (Err(rejection), Some(_)) = (&applied.result, reported) {
                    // The machine knows better; it is asked again, though not at once.
                    tracing::warn!(%gid, %rejection, "a report was rejected");
                    open.held_until_ms = now_ms + 1_000;
                }
            }
            Err(fault) => {
                tracing::debug!(%gid, %fault, "a report has no result; it is proposed again");
                open.held_until_ms = now_ms + clock::jittered(100).max(1);
            }
        }
        self.look_at(&gid);
    }

    // === what becomes due ===

    /// Has the transaction examined in this pass or the next.
    fn look_at(&mut self, gid: &Gid) {
        match self.opens.get_mut(gid) {
            Some(open) if open.dirty => {}
            Some(open) => {
                open.dirty = true;
                self.dirty.push_back(gid.clone());
            }
            None => {
                self.opens.insert(gid.clone(), Box::new(Open { dirty: true, ..Open::default() }));
                self.dirty.push_back(gid.clone());
            }
        }
    }

    fn look_at_everything(&mut self) {
        let owing: Vec<Gid> = self.world.state.held().machine.owing(None).cloned().collect();
        let known: Vec<Gid> = self.opens.keys().cloned().collect();
        for gid in owing.iter().chain(&known) {
            self.look_at(gid);
        }
    }

    /// Alarms that have rung: calls that timed out, pauses that are over.
    fn ring(&mut self, now_ms: u64) {
        while let Some(gid) = self.timers.rung(now_ms) {
            let Some(open) = self.opens.get_mut(&gid) else { continue };
            open.alarm = None;
            if open.held_until_ms <= now_ms {
                open.held_until_ms = 0;
            }
            let timed_out: Vec<_> = open
                .calls
                .iter()
                .filter_map(|call| match call.stage {
                    Stage::UnderWay { ticket, until_ms } if until_ms <= now_ms => {
                        Some((ticket, call.branch, call.op))
                    }
                    Stage::Ready
                    | Stage::UnderWay { .. }
                    | Stage::Paused { .. }
                    | Stage::Parked { .. } => None,
                })
                .collect();
            let timeout_ms = open.call_timeout_ms;
            for (ticket, branch, op) in timed_out {
                self.sessions.overdue(ticket, now_ms);
                self.fell_silent(ticket.session, &gid, now_ms);
                let key = CallKey { gid: gid.clone(), branch, op };
                let why = || format!("no answer within {timeout_ms} ms");
                self.unanswered(ticket, &key, now_ms, why);
            }
            self.look_at(&gid);
        }
    }

    /// A call had no answer, or *unknown*.
    fn fell_silent(&mut self, session: SessionId, gid: &Gid, now_ms: u64) {
        let opened = self.sessions.silent(session, hash_of(gid), now_ms);
        self.world.meters.breakers_opened(opened.service, opened.instance);
    }

    /// Parked calls go on where there is credit again.
    fn resume(&mut self, now_ms: u64) {
        for service in std::mem::take(&mut self.gained) {
            let mut free = self.sessions.free(&service, now_ms);
            while free > 0 {
                let Some(key) = self.parked.unpark(&service) else { break };
                let Some(open) = self.opens.get_mut(&key.gid) else { continue };
                let Some(call) = open.call_mut(key.branch, key.op) else { continue };
                if let Stage::Parked { .. } = call.stage {
                    call.stage = Stage::Ready;
                    free -= 1;
                    self.look_at(&key.gid);
                }
            }
        }
    }
}
