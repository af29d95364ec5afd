//! The sessions of agents: who serves what, with which credit, and which calls are under way on each.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use foldhash::fast::RandomState as Fast;
use holdfast_proto::v1;
use holdfast_txn::Participant;
use tokio::sync::mpsc;

use super::{
    announced::{About, Batch, Calls, NewSession, Outgoing, SessionId},
    breakers::Opened,
    lanes::{Credit, Lane, Taken, Term},
    parked::CallKey,
    served::{Served, Turn},
};
use crate::{
    branch_call::Call,
    clock,
    registry::{breaker::Breaker, policy::Policies},
};

/// Names a call that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) session: SessionId,
    pub(super) call_id: u64,
}

/// A call without an answer yet.
#[derive(Debug)]
struct Asked {
    /// `None`: asked when this node led before, so that the answer gives back the credit and says nothing.
    key: Option<CallKey>,
    recovering: bool,
    /// Given back with this.
    _credit: Taken,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// Place of its service.
    place: usize,
    about: About,
    pub(super) zone: String,
    pub(super) color: String,
    weight: u32,
    credit: Credit,
    draining: bool,
    /// An operator's word.
    drained: bool,
    up_at_ms: u64,
    pub(super) turn: Turn,
    breaker: Breaker,
    outbox: mpsc::Sender<Outgoing>,
    /// Calls made on it by this group.
    made: u64,
    /// Without an answer yet, late ones included; each holds one credit.
    asked: HashMap<u64, Asked, Fast>,
    /// Timed out, with the time at which the credit is taken as lost and given back.
    overdue: VecDeque<(u64, u64)>,
    /// Goes out with the next flush.
    batch: Batch,
    answered: u64,
    silent: u64,
}

/// Every session of this node, by service.
#[derive(Debug)]
pub(super) struct Sessions {
    lane: Lane,
    by_id: HashMap<SessionId, Session, Fast>,
    places: HashMap<Participant, usize, Fast>,
    /// By place, with the name; a place that nobody needs is given to the next.
    served: Vec<Option<(Participant, Served)>>,
    policies: Arc<Policies>,
    to_flush: Vec<SessionId>,
    in_flight: usize,
    /// The earliest time at which a service is to be looked at again.
    next_ready_ms: u64,
}

impl Sessions {
    /// Sessions of one service that are looked at for one call; of more, as many are drawn.
    const LOOKED_AT_MAX: usize = 16;
    /// How long a call that timed out keeps its credit, ms.
    const OVERDUE_MAX_MS: u64 = 60_000;

    pub(super) fn new(policies: Arc<Policies>, lane: Lane) -> Self {
        Self {
            lane,
            by_id: HashMap::default(),
            places: HashMap::default(),
            served: Vec::new(),
            policies,
            to_flush: Vec::new(),
            in_flight: 0,
            next_ready_ms: u64::MAX,
        }
    }

    /// A session is there.
    pub(super) fn up(&mut self, new: NewSession, now_ms: u64) {
        let place = self.place_of(&new.service, now_ms);
        let session = Session {
            id: new.id,
            place,
            zone: new.about.zone.clone(),
            color: new.about.color.clone(),
            about: new.about,
            weight: new.weight,
            credit: new.credit,
            draining: false,
            drained: false,
            up_at_ms: now_ms,
            turn: Turn::default(),
            breaker: Breaker::default(),
            outbox: new.outbox,
            made: 0,
            asked: HashMap::default(),
            overdue: VecDeque::new(),
            batch: Batch::default(),
            answered: 0,
            silent: 0,
        };
        self.by_id.insert(new.id, session);
        self.served_mut(place).ids.push(new.id);
        self.reweigh(place, now_ms);
    }

    /// From now on by these policies. Names every service, since any may have gained by it.
    pub(super) fn obey(&mut self, policies: Arc<Policies>, now_ms: u64) -> Vec<Participant> {
        self.policies = policies;
        for place in 0..self.served.len() {
            if let Some((name, served)) = &mut self.served[place] {
                served.obey(self.policies.services.get(name), &self.lane, now_ms);
                self.reweigh(place, now_ms);
            }
        }
        let named: Vec<Participant> = self.policies.services.keys().cloned().collect();
        for service in named {
            self.place_of(&service, now_ms);
        }
        self.forget_the_unneeded();
        self.places.keys().cloned().collect()
    }

    /// No further calls on this session.
    pub(super) fn drain(&mut self, id: SessionId) {
        if let Some(session) = self.by_id.get_mut(&id) {
            session.draining = true;
        }
    }

    /// Forgets a session. Its calls are told: what became of them is unknown.
    pub(super) fn down(&mut self, id: SessionId, now_ms: u64) -> Vec<(Ticket, CallKey)> {
        let Some(session) = self.by_id.remove(&id) else { return Vec::new() };
        let served = self.served_mut(session.place);
        served.ids.retain(|one| *one != id);
        for asked in session.asked.values() {
            served.gone(asked.recovering);
        }
        self.in_flight -= session.asked.len();
        self.reweigh(session.place, now_ms);
        self.forget_the_unneeded();
        let ticket = |call_id| Ticket { session: id, call_id };
        let known = |(call_id, asked): (u64, Asked)| Some((ticket(call_id), asked.key?));
        session.asked.into_iter().filter_map(known).collect()
    }

    /// The session that should get the next call of `service`, if one may be made now. `color`: of the transaction, which is
    /// followed where a session of it is there.
    pub(super) fn choose(
        &mut self,
        service: &Participant,
        color: Option<&str>,
        recovering: bool,
        now_ms: u64,
    ) -> Option<SessionId> {
        let place = *self.places.get(service)?;
        let served = self.served[place].as_mut().map(|(_, served)| served)?;
        if !served.may_ask(recovering, now_ms) {
            if let Some(next_ms) = served.next_ms(now_ms) {
                served.wake(next_ms);
                self.next_ready_ms = self.next_ready_ms.min(next_ms);
            }
            return None;
        }
        let by_id = &self.by_id;
        let all = || served.ids.iter().filter_map(|id| by_id.get(id));
        if let Some(color) = color {
            let of_color =
                all().filter(|one| one.color == color && one.can_take(&self.lane, now_ms));
            if let Some(id) = served.choose(of_color) {
                return Some(id);
            }
        }
        let free = |one: &&Session| one.turn.has_weight() && one.can_take(&self.lane, now_ms);
        let mut chosen = None;
        if served.ids.len() > Self::LOOKED_AT_MAX * 4 {
            let drawn: Vec<&Session> = (0..Self::LOOKED_AT_MAX)
                .filter_map(|_| by_id.get(&served.ids[clock::below(served.ids.len())]))
                .filter(free)
                .collect();
            chosen = served.choose(drawn.into_iter());
        }
        let chosen = chosen.or_else(|| served.choose(all().filter(free)));
        if chosen.is_none()
            && let Some(until_ms) = all().filter_map(|one| one.breaker.until_ms()).min()
            && until_ms > now_ms
        {
            served.wake(until_ms);
            self.next_ready_ms = self.next_ready_ms.min(until_ms);
        }
        chosen
    }

    /// Calls that `service` could take now.
    pub(super) fn free(&mut self, service: &Participant, now_ms: u64) -> usize {
        let Some(place) = self.places.get(service) else { return 0 };
        let Some((_, served)) = self.served[*place].as_mut() else { return 0 };
        let able = served.ids.iter().filter_map(|id| self.by_id.get(id));
        let credit: usize = able
            .filter(|one| one.can_take(&self.lane, now_ms))
            .map(|one| one.free(&self.lane))
            .sum();
        credit.min(served.room(now_ms))
    }

    /// Puts a call on a session that [`Self::choose`] named; it goes out with the next flush.
    pub(super) fn ask(
        &mut self,
        id: SessionId,
        key: CallKey,
        recovering: bool,
        call: &Call<'_>,
        now_ms: u64,
    ) -> Ticket {
        let session = self.by_id.get_mut(&id).expect("it was chosen from those that are here");
        let served = self.served[session.place].as_mut().map(|(_, served)| served);
        let served = served.expect("a session has its service");
        served.ask(&mut session.turn, recovering, now_ms);
        if let Some(next_ms) = served.next_ms(now_ms) {
            // It took the last token: what is parked asks for none itself, and would wait for its own retry.
            served.wake(next_ms);
            self.next_ready_ms = self.next_ready_ms.min(next_ms);
        }
        session.made += 1;
        let call_id = self.lane.call_id(session.made);
        if session.batch.is_empty() {
            self.to_flush.push(id);
        }
        session.breaker.asked(now_ms);
        session.batch.push(call_id, call, session.about.reads_short_calls);
        let asked = Asked { key: Some(key), recovering, _credit: session.credit.take() };
        session.asked.insert(call_id, asked);
        self.in_flight += 1;
        Ticket { session: id, call_id }
    }

    /// An answer came: whose credit it gives back, and what it was about unless that was asked in another term.
    /// `None`: nothing that was asked.
    pub(super) fn answered(&mut self, ticket: Ticket) -> Option<(&Participant, Option<CallKey>)> {
        let session = self.by_id.get_mut(&ticket.session)?;
        let asked = session.asked.remove(&ticket.call_id)?;
        self.in_flight -= 1;
        session.answered += 1;
        let (name, served) = self.served[session.place].as_mut()?;
        served.gone(asked.recovering);
        served.answered += 1;
        Some((name, asked.key))
    }

    /// What was answered says that the session and its service are well. True: a breaker closed by that.
    pub(super) fn well(&mut self, id: SessionId) -> bool {
        let Some(session) = self.by_id.get_mut(&id) else { return false };
        let closed = session.breaker.answered();
        let served = self.served[session.place].as_mut().map(|(_, served)| served);
        served.is_some_and(|served| served.breaker.answered()) || closed
    }

    /// A call of the transaction with this hash timed out, or its answer was *unknown*. Says which breakers that opened.
    pub(super) fn silent(&mut self, id: SessionId, whose: u64, now_ms: u64) -> Opened {
        let mut opened = Opened::default();
        let Some(session) = self.by_id.get_mut(&id) else { return opened };
        session.silent += 1;
        let Some((name, served)) = self.served[session.place].as_mut() else { return opened };
        served.silent += 1;
        let policy = served.breaker_policy();
        if session.breaker.silent(policy, whose, now_ms) {
            opened.instance = true;
            let (instance, failures) = (&session.about.instance, policy.failures);
            tracing::warn!(service = %name, %instance, failures, "the breaker of an instance is open");
        }
        if served.breaker.silent(policy, whose, now_ms) {
            opened.service = true;
            let failures = policy.failures;
            tracing::warn!(service = %name, failures, "the breaker of a service is open");
        }
        opened
    }

    /// Services whose calls waited for a time that has come.
    pub(super) fn ready(&mut self, now_ms: u64) -> Vec<Participant> {
        let mut ready = Vec::new();
        if now_ms < self.next_ready_ms {
            return ready;
        }
        self.next_ready_ms = u64::MAX;
        for (name, served) in self.served.iter_mut().flatten() {
            match served.wake_ms {
                Some(wake_ms) if wake_ms <= now_ms => {
                    served.wake_ms = None;
                    ready.push(name.clone());
                }
                Some(wake_ms) => self.next_ready_ms = self.next_ready_ms.min(wake_ms),
                None => {}
            }
        }
        ready
    }

    /// When [`Self::ready`] has something to say next.
    pub(super) fn next_ready_ms(&self) -> u64 {
        self.next_ready_ms
    }

    /// The call timed out. A late answer is still good; its credit comes back with it, or after a long while.
    pub(super) fn overdue(&mut self, ticket: Ticket, now_ms: u64) {
        if let Some(session) = self.by_id.get_mut(&ticket.session) {
            session.overdue.push_back((now_ms + Self::OVERDUE_MAX_MS, ticket.call_id));
        }
    }

    /// Gives back the credit of calls that nobody will answer any more, and lets new sessions warm up; names the services
    /// that gained by it.
    pub(super) fn forgive(&mut self, now_ms: u64) -> Vec<Participant> {
        let mut gained = Vec::new();
        for session in self.by_id.values_mut() {
            let Some((name, served)) = self.served[session.place].as_mut() else { continue };
            let before = session.asked.len();
            while let Some((at_ms, call_id)) = session.overdue.front().copied()
                && at_ms <= now_ms
            {
                session.overdue.pop_front();
                if let Some(asked) = session.asked.remove(&call_id) {
                    served.gone(asked.recovering);
                }
            }
            let forgiven = before - session.asked.len();
            self.in_flight -= forgiven;
            if forgiven > 0 {
                gained.push(name.clone());
            }
        }
        let warming = |one: &Option<(Participant, Served)>| {
            one.as_ref().is_some_and(|(_, served)| served.policy.warm_up_ms > 0)
        };
        for place in 0..self.served.len() {
            if warming(&self.served[place]) {
                self.reweigh(place, now_ms);
            }
        }
        gained
    }

    /// Sends what waits, in few large messages. Calls that do not fit are returned: they were not made.
    pub(super) fn flush(&mut self, term: &Term) -> Vec<(Ticket, CallKey)> {
        let mut unsent = Vec::new();
        for id in std::mem::take(&mut self.to_flush) {
            let Some(session) = self.by_id.get_mut(&id) else { continue };
            for calls in session.batch.take() {
                let fault =
                    match session.outbox.try_send(Outgoing::Calls { term: term.clone(), calls }) {
                        Ok(()) => {
                            holdfast_fault::reached(holdfast_fault::Site::DispatcherCalled);
                            continue;
                        }
                        Err(fault) => fault,
                    };
                if let Outgoing::Calls { calls, .. } = fault.into_inner() {
                    for call_id in calls.ids().iter().copied() {
                        let Some(asked) = session.asked.remove(&call_id) else { continue };
                        self.in_flight -= 1;
                        if let Some((_, served)) = self.served[session.place].as_mut() {
                            served.gone(asked.recovering);
                            served.unsent();
                        }
                        if let Some(key) = asked.key {
                            unsent.push((Ticket { session: id, call_id }, key));
                        }
                    }
                }
            }
        }
        unsent
    }

    /// This node leads no more: drops what waits to go out, and forgets what answers under way are about.
    pub(super) fn step_down(&mut self) {
        for id in std::mem::take(&mut self.to_flush) {
            let Some(session) = self.by_id.get_mut(&id) else { continue };
            let batch = session.batch.take();
            for call_id in batch.iter().flat_map(Calls::ids) {
                if let Some(asked) = session.asked.remove(call_id) {
                    self.in_flight -= 1;
                    if let Some((_, served)) = self.served[session.place].as_mut() {
                        served.gone(asked.recovering);
                    }
                }
            }
        }
        let asked = self.by_id.values_mut().flat_map(|session| session.asked.values_mut());
        asked.for_each(|asked| asked.key = None);
    }

    /// This node leads the group now, or no longer.
    pub(super) fn lead(&self, leads: bool) {
        self.lane.lead(leads);
    }

    /// How many groups this node leads.
    pub(super) fn led(&self) -> usize {
        self.lane.led()
    }

    /// Every service with its name.
    pub(super) fn each(&self) -> impl Iterator<Item = (&Participant, &Served)> {
        self.served.iter().flatten().map(|(name, served)| (name, served))
    }

    /// One service.
    pub(super) fn served(&mut self, service: &Participant) -> Option<&mut Served> {
        let place = *self.places.get(service)?;
        self.served[place].as_mut().map(|(_, served)| served)
    }

    /// The sessions of one service.
    pub(super) fn of(&self, service: &Participant) -> impl Iterator<Item = &Session> {
        let served = self.places.get(service).and_then(|place| self.served[*place].as_ref());
        let ids = served.map_or(&[][..], |(_, served)| &served.ids);
        ids.iter().filter_map(|id| self.by_id.get(id))
    }

    pub(super) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The instance of a session; none if it is gone.
    pub(super) fn instance_of(&self, id: SessionId) -> Option<&Arc<str>> {
        self.by_id.get(&id).map(|session| &session.about.instance)
    }

    /// Whom a session serves.
    pub(super) fn service_of(&self, id: SessionId) -> Option<&Participant> {
        let place = self.by_id.get(&id)?.place;
        self.served[place].as_ref().map(|(name, _)| name)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The place of a service; made if there is none.
    fn place_of(&mut self, service: &Participant, now_ms: u64) -> usize {
        if let Some(place) = self.places.get(service) {
            return *place;
        }
        let served = Served::new(self.policies.services.get(service), &self.lane, now_ms);
        let new = Some((service.clone(), served));
        let place = match self.served.iter().position(Option::is_none) {
            Some(place) => {
                self.served[place] = new;
                place
            }
            None => {
                self.served.push(new);
                self.served.len() - 1
            }
        };
        self.places.insert(service.clone(), place);
        place
    }

    fn served_mut(&mut self, place: usize) -> &mut Served {
        let served = self.served[place].as_mut().map(|(_, served)| served);
        served.expect("a session has its service")
    }

    /// Services without a session and without a policy.
    fn forget_the_unneeded(&mut self) {
        let (policies, served) = (&self.policies, &mut self.served);
        self.places.retain(|name, place| {
            let idle = served[*place].as_ref().is_none_or(|(_, served)| served.ids.is_empty());
            let needed = !idle || policies.services.contains_key(name);
            if !needed {
                served[*place] = None;
            }
            needed
        });
    }

    /// Weights, zones and colors of a service's sessions, as they are now.
    fn reweigh(&mut self, place: usize, now_ms: u64) {
        let Some((_, served)) = self.served[place].as_ref() else { return };
        let mut sessions: Vec<&mut Session> =
            self.by_id.values_mut().filter(|one| one.place == place).collect();
        for session in &mut sessions {
            let policy = served.policy.instances.iter();
            let named = policy.clone().find(|one| *one.instance == *session.about.instance);
            session.drained = named.is_some_and(|one| one.drained);
        }
        served.reweigh(&mut sessions, now_ms);
    }
}

impl Session {
    /// Calls that fit into the group's share of its credit, and into what is left of it.
    fn free(&self, lane: &Lane) -> usize {
        if self.draining || self.drained {
            return 0;
        }
        let share = lane.share(self.credit.most());
        share.saturating_sub(self.asked.len()).min(self.credit.left())
    }

    fn can_take(&self, lane: &Lane, now_ms: u64) -> bool {
        self.free(lane) > 0 && self.lets_through(now_ms)
    }

    pub(super) fn lets_through(&self, now_ms: u64) -> bool {
        self.breaker.lets_through(now_ms)
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    /// Calls asked, answered, and without an answer, since it is there.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        (self.made, self.answered, self.silent)
    }

    pub(super) fn credit(&self) -> usize {
        self.credit.most()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining || self.drained
    }

    pub(super) fn breaker_word(&self, now_ms: u64) -> &'static str {
        self.breaker.word(now_ms)
    }

    pub(super) fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.up_at_ms)
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.asked.len() as u64
    }

    /// What is under way, and one more, for its weight.
    pub(super) fn load(&self) -> u64 {
        self.turn.load(self.asked.len())
    }

    /// Its weight in thousandths: as announced or as set, and warmed up as far as its age goes.
    pub(super) fn weight_now(&self, policy: &v1::ServicePolicy, now_ms: u64) -> u64 {
        let set = policy.instances.iter().find(|one| *one.instance == *self.about.instance);
        let weight = set.map(|one| one.weight).filter(|weight| *weight > 0);
        let weight = u64::from(weight.unwrap_or(self.weight)) * 1_000;
        if !self.is_warming(policy, now_ms) {
            return weight;
        }
        let age_ms = now_ms.saturating_sub(self.up_at_ms);
        weight / 10 + weight * 9 / 10 * age_ms / policy.warm_up_ms
    }

    pub(super) fn is_warming(&self, policy: &v1::ServicePolicy, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.up_at_ms) < policy.warm_up_ms
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
