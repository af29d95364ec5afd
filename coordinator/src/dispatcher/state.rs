//! What the dispatcher tells of services, for people.

use holdfast_proto::v1;
use holdfast_txn::Participant;

use super::{
    announced::Kind,
    held::Held,
    parked::Parked,
    sessions::{Session, Sessions},
};
use crate::config::limit;

/// Services without a session and without a policy that are told because calls wait for them.
const UNSERVED_MAX: usize = 1_000;

impl Sessions {
    /// The services named `only`, or all, by name, with their sessions; also those that nobody serves, while calls wait for them.
    pub(super) fn tell(
        &mut self,
        only: &str,
        parked: &Parked,
        now_ms: u64,
    ) -> v1::ListServicesReply {
        let names = self.each().map(|(name, _)| name.clone());
        let named: Vec<Participant> =
            names.filter(|name| only.is_empty() || name.as_str() == only).collect();
        let mut services: Vec<v1::ServiceState> =
            named.iter().filter_map(|name| self.tell_one(name, parked, now_ms)).collect();
        let unserved = parked.services().filter(|(name, _)| {
            (only.is_empty() || name.as_str() == only) && self.served(name).is_none()
        });
        services.extend(unserved.take(UNSERVED_MAX).map(|(name, waiting)| v1::ServiceState {
            service: name.to_string(),
            parked: waiting as u64,
            breaker: "closed".to_owned(),
            waits_for: Held::Session.word().to_owned(),
            policy: Some(v1::ServicePolicy { service: name.to_string(), ..Default::default() }),
            ..Default::default()
        }));
        services.sort_by(|one, other| one.service.cmp(&other.service));
        let version = Some(self.policies().version.into());
        v1::ListServicesReply { services, version, ..Default::default() }
    }

    fn tell_one(
        &mut self,
        name: &Participant,
        parked: &Parked,
        now_ms: u64,
    ) -> Option<v1::ServiceState> {
        let waiting = parked.waiting_for(name) as u64;
        let waits_for = if waiting > 0 { self.held(name, false, now_ms).word() } else { "" };
        let policy = self.served(name)?.policy.clone();
        let mut sessions: Vec<v1::SessionState> =
            self.of(name).map(|session| session.tell(&policy, now_ms)).collect();
        sessions.sort_by_key(|session| (session.instance.clone(), session.session));
        let served = self.served(name)?;
        Some(v1::ServiceState {
            service: name.to_string(),
            sessions,
            in_flight: served.in_flight as u64,
            parked: waiting,
            breaker: served.breaker.word(now_ms).to_owned(),
            asked: served.asked,
            answered: served.answered,
            silent: served.silent,
            recovering: served.recovering as u64,
            policy: Some(v1::ServicePolicy { service: name.to_string(), ..policy }),
            waits_for: waits_for.to_owned(),
        })
    }
}

impl Session {
    fn tell(&self, policy: &v1::ServicePolicy, now_ms: u64) -> v1::SessionState {
        let (kind, lease_ms) = match self.about().kind {
            Kind::Agent => ("agent", limit::SILENCE_MAX_MS),
            Kind::Http => ("http", 0),
            Kind::Grpc => ("grpc", 0),
        };
        let (asked, answered, silent) = self.counts();
        v1::SessionState {
            session: self.id.0,
            instance: self.about().instance.to_string(),
            version: self.about().version.clone(),
            zone: self.zone.clone(),
            color: self.color.clone(),
            weight: (self.weight_now(policy, now_ms) / 1_000) as u32,
            credit: self.credit() as u32,
            in_flight: self.in_flight() as u32,
            draining: self.is_draining(),
            breaker: self.breaker_word(now_ms).to_owned(),
            asked,
            answered,
            silent,
            age_ms: self.age_ms(now_ms),
            kind: kind.to_owned(),
            lease_ms,
        }
    }
}
