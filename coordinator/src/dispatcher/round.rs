//! What the dispatcher does by the clock: deadlines that have passed, and once a second everything that is swept and measured.

use holdfast_fault::{Site, reached};
use holdfast_proto::v1;
use holdfast_txn::Command;

use super::{Dispatcher, Lead, open::Stage, pass};
use crate::proposer::Kind;

impl Dispatcher {
    /// Proposes the end of transactions whose deadline has passed.
    pub(super) fn expire(&mut self, now_ms: u64) {
        // A begin since the last pass may have the nearest deadline, so each pass looks, unless expiries are under way.
        if now_ms < self.expiry_held_until_ms {
            return;
        }
        let now = self.world.clock.now();
        let (expired, wait_ms) = {
            let state = self.world.state.held();
            let now = now.max(state.machine.clock());
            match state.machine.next_deadline() {
                Some(deadline) if deadline <= now => {
                    (state.machine.due(now, pass::EXPIRED_MAX).expired, pass::EXPIRY_MS)
                }
                Some(deadline) => (Vec::new(), (deadline.0 - now.0).min(pass::ROUND_MS)),
                None => (Vec::new(), pass::ROUND_MS),
            }
        };
        self.next_expiry_ms = now_ms + wait_ms;
        if !expired.is_empty() {
            self.expiry_held_until_ms = self.next_expiry_ms;
        }
        for gid in expired {
            let open = self.opens.entry(gid.clone()).or_default();
            if !open.expiring {
                reached(Site::DispatcherBeforeExpire);
                let command = Command::Expire { gid: gid.clone() };
                open.expiring = self.world.proposer.report(gid, &command, Kind::Lazy);
            }
        }
    }

    /// Forgets calls that wait and are not owed any more.
    fn sweep_parked(&mut self) {
        let opens = &mut self.opens;
        self.parked.sweep(|key| {
            opens
                .get_mut(&key.gid)
                .and_then(|open| open.call_mut(key.branch, key.op))
                .is_some_and(|call| matches!(call.stage, Stage::Parked { queued: true, .. }))
        });
    }

    /// The services as people are told of them. Of a transaction whose deadline passed, the call that waited and the one that takes it back
    /// would both be counted, so what is not owed is swept first, where that keeps nobody waiting.
    pub(super) fn tell_services(&mut self, only: &str) -> v1::ListServicesReply {
        if self.parked.len() <= pass::SWEPT_TO_TELL_MAX {
            self.sweep_parked();
        }
        self.sessions.tell(only, &self.parked, self.world.clock.tick_ms())
    }

    /// Once a second: what is lost is given back, what is stale is forgotten, what is there is measured.
    pub(super) fn round(&mut self, now_ms: u64) {
        self.next_round_ms = now_ms + pass::ROUND_MS;
        self.rounds += 1;
        self.gained.extend(self.sessions.forgive(now_ms));
        if std::mem::replace(&mut self.led, self.sessions.led()) > self.sessions.led() {
            self.gained.extend(self.sessions.each().map(|(service, _)| service.clone()));
        }
        if self.rounds.is_multiple_of(pass::ROUNDS_PER_SWEEP) {
            self.sweep_parked();
        }
        self.breakers.measure(&self.sessions, self.lead != Lead::Not, now_ms);
        let meters = &self.world.meters;
        meters.calls_in_flight.set(self.sessions.in_flight() as f64);
        meters.calls_parked.set(self.parked.len() as f64);
        meters.queue.set(self.world.proposer.waiting() as f64);
        meters.waiters.set(self.world.waiters.count() as f64);
        meters.census(&self.world.state.held().machine.census());
    }
}
