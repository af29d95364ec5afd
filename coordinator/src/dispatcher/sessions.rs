//! The sessions of agents: who serves what, with which credit, and which calls are under way on each.

use std::collections::{HashMap, VecDeque};

use holdfast_proto::v1;
use holdfast_txn::Participant;
use tokio::sync::mpsc;

use super::parked::CallKey;
use crate::{branch_call, clock, config::limit};

/// One session, unique on this node since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// What goes out on a session.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Calls of a leader in this term: dropped if it leads no more when they would go out.
    Calls { term: u64, calls: Vec<v1::Call> },
    /// Welcome and beats.
    Message(v1::CoordinatorMessage),
    /// The end, and why.
    End(tonic::Status),
}

/// An agent that said hello and was found in order.
#[derive(Debug)]
pub(crate) struct NewSession {
    pub(crate) id: SessionId,
    pub(crate) service: Participant,
    pub(crate) weight: u32,
    pub(crate) credit: usize,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
}

/// Names a call that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) session: SessionId,
    pub(super) call_id: u64,
}

#[derive(Debug)]
struct Session {
    service: Participant,
    weight: u32,
    credit: usize,
    draining: bool,
    outbox: mpsc::Sender<Outgoing>,
    next_call_id: u64,
    /// Without an answer yet, late ones included; each holds one credit. `None`: asked when this node led before, so
    /// that the answer gives back the credit and says nothing.
    asked: HashMap<u64, Option<CallKey>>,
    /// Timed out, with the time at which the credit is taken as lost and given back.
    overdue: VecDeque<(u64, u64)>,
    /// Goes out with the next flush.
    batch: Vec<v1::Call>,
}

/// Every session of this node.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: HashMap<SessionId, Session>,
    by_service: HashMap<Participant, Vec<SessionId>>,
    to_flush: Vec<SessionId>,
    in_flight: usize,
}

impl Sessions {
    /// Sessions of one service that are looked at for one call; of more, as many are drawn.
    const LOOKED_AT_MAX: usize = 16;
    /// Bytes of calls in one message; far below what a message may hold, so that one slow call delays few.
    const BATCH_BYTES_MAX: usize = 1024 * 1024;
    /// How long a call that timed out keeps its credit, ms.
    const OVERDUE_MAX_MS: u64 = 60_000;

    pub(super) fn up(&mut self, new: NewSession) {
        self.by_service.entry(new.service.clone()).or_default().push(new.id);
        let session = Session {
            service: new.service,
            weight: new.weight,
            credit: new.credit,
            draining: false,
            outbox: new.outbox,
            next_call_id: 1,
            asked: HashMap::new(),
            overdue: VecDeque::new(),
            batch: Vec::new(),
        };
        self.by_id.insert(new.id, session);
    }

    /// No further calls on this session.
    pub(super) fn drain(&mut self, id: SessionId) {
        if let Some(session) = self.by_id.get_mut(&id) {
            session.draining = true;
        }
    }

    /// Forgets a session. Its calls are told: what became of them is unknown.
    pub(super) fn down(&mut self, id: SessionId) -> Vec<(Ticket, CallKey)> {
        let Some(session) = self.by_id.remove(&id) else { return Vec::new() };
        if let Some(ids) = self.by_service.get_mut(&session.service) {
            ids.retain(|one| *one != id);
            if ids.is_empty() {
                self.by_service.remove(&session.service);
            }
        }
        self.in_flight -= session.asked.len();
        let ticket = |call_id| Ticket { session: id, call_id };
        let known = |(call_id, key): (u64, Option<CallKey>)| Some((ticket(call_id), key?));
        session.asked.into_iter().filter_map(known).collect()
    }

    /// The session that should get the next call of `service`: the one with the least under way for its weight.
    pub(super) fn choose(&self, service: &Participant) -> Option<SessionId> {
        let ids = self.by_service.get(service)?;
        if ids.len() > Self::LOOKED_AT_MAX {
            let drawn = (0..Self::LOOKED_AT_MAX).map(|_| ids[clock::below(ids.len())]);
            if let Some(id) = self.least_loaded(drawn) {
                return Some(id);
            }
        }
        self.least_loaded(ids.iter().copied())
    }

    fn least_loaded(&self, ids: impl Iterator<Item = SessionId>) -> Option<SessionId> {
        let mut best: Option<(SessionId, &Session)> = None;
        for id in ids {
            let Some(session) = self.by_id.get(&id).filter(|one| one.free() > 0) else { continue };
            let load = |of: &Session, other: &Session| {
                (of.asked.len() as u64 + 1) * u64::from(other.weight)
            };
            if best.is_none_or(|(_, least)| load(session, least) < load(least, session)) {
                best = Some((id, session));
            }
        }
        best.map(|(id, _)| id)
    }

    /// Calls that the sessions of `service` could still take.
    pub(super) fn free(&self, service: &Participant) -> usize {
        let ids = self.by_service.get(service).map_or(&[][..], Vec::as_slice);
        ids.iter().filter_map(|id| self.by_id.get(id)).map(Session::free).sum()
    }

    /// Puts a call on a session that [`Self::choose`] named; it goes out with the next flush.
    pub(super) fn ask(&mut self, id: SessionId, key: CallKey, mut call: v1::Call) -> Ticket {
        let session = self.by_id.get_mut(&id).expect("it was chosen from those that are here");
        let call_id = session.next_call_id;
        session.next_call_id += 1;
        call.call_id = call_id;
        if session.batch.is_empty() {
            self.to_flush.push(id);
        }
        session.batch.push(call);
        session.asked.insert(call_id, Some(key));
        self.in_flight += 1;
        Ticket { session: id, call_id }
    }

    /// An answer came: whose credit it gives back, and what it was about unless that was asked in another term.
    /// `None`: nothing that was asked.
    pub(super) fn answered(&mut self, ticket: Ticket) -> Option<(&Participant, Option<CallKey>)> {
        let session = self.by_id.get_mut(&ticket.session)?;
        let key = session.asked.remove(&ticket.call_id)?;
        self.in_flight -= 1;
        Some((&session.service, key))
    }

    /// The call timed out. A late answer is still good; its credit comes back with it, or after a long while.
    pub(super) fn overdue(&mut self, ticket: Ticket, now_ms: u64) {
        if let Some(session) = self.by_id.get_mut(&ticket.session) {
            session.overdue.push_back((now_ms + Self::OVERDUE_MAX_MS, ticket.call_id));
        }
    }

    /// Gives back the credit of calls that nobody will answer any more; names the services that gained by it.
    pub(super) fn forgive(&mut self, now_ms: u64) -> Vec<Participant> {
        let mut gained = Vec::new();
        for session in self.by_id.values_mut() {
            let before = session.asked.len();
            while let Some((at_ms, call_id)) = session.overdue.front().copied()
                && at_ms <= now_ms
            {
                session.overdue.pop_front();
                session.asked.remove(&call_id);
            }
            let forgiven = before - session.asked.len();
            self.in_flight -= forgiven;
            if forgiven > 0 {
                gained.push(session.service.clone());
            }
        }
        gained
    }

    /// Sends what waits, in few large messages. Calls that do not fit are returned: they were not made.
    pub(super) fn flush(&mut self, term: u64) -> Vec<(Ticket, CallKey)> {
        let mut unsent = Vec::new();
        for id in std::mem::take(&mut self.to_flush) {
            let Some(session) = self.by_id.get_mut(&id) else { continue };
            for calls in messages(std::mem::take(&mut session.batch)) {
                let fault = match session.outbox.try_send(Outgoing::Calls { term, calls }) {
                    Ok(()) => continue,
                    Err(fault) => fault,
                };
                if let Outgoing::Calls { calls, .. } = fault.into_inner() {
                    for call in calls {
                        if let Some(Some(key)) = session.asked.remove(&call.call_id) {
                            self.in_flight -= 1;
                            unsent.push((Ticket { session: id, call_id: call.call_id }, key));
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
            if let Some(session) = self.by_id.get_mut(&id) {
                for call in session.batch.drain(..) {
                    self.in_flight -= usize::from(session.asked.remove(&call.call_id).is_some());
                }
            }
        }
        let asked = self.by_id.values_mut().flat_map(|session| session.asked.values_mut());
        asked.for_each(|key| *key = None);
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Session {
    fn free(&self) -> usize {
        if self.draining { 0 } else { self.credit.saturating_sub(self.asked.len()) }
    }
}

/// Cuts a batch into messages within the limits of number and size.
fn messages(batch: Vec<v1::Call>) -> Vec<Vec<v1::Call>> {
    let mut messages = Vec::with_capacity(1);
    let (mut current, mut bytes) = (Vec::new(), 0);
    for call in batch {
        let size = branch_call::bytes_of(&call);
        let full = current.len() == limit::BATCH_PER_MESSAGE_MAX
            || (bytes + size > Sessions::BATCH_BYTES_MAX && !current.is_empty());
        if full {
            messages.push(std::mem::take(&mut current));
            bytes = 0;
        }
        bytes += size;
        current.push(call);
    }
    if !current.is_empty() {
        messages.push(current);
    }
    messages
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
