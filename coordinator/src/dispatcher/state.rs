//! What the dispatcher tells of services, for people.

use holdfast_proto::v1;

use super::{
    announced::Kind,
    parked::Parked,
    sessions::{Session, Sessions},
};
use crate::config::limit;

impl Sessions {
    /// The services named `only`, or all, by name, with their sessions.
    pub(super) fn tell(&self, only: &str, parked: &Parked, now_ms: u64) -> v1::ListServicesReply {
        let mut services: Vec<v1::ServiceState> = self
            .each()
            .filter(|(name, _)| only.is_empty() || name.as_str() == only)
            .map(|(name, served)| {
                let mut sessions: Vec<v1::SessionState> = served
                    .ids
                    .iter()
                    .filter_map(|id| self.get(*id))
                    .map(|session| session.tell(&served.policy, now_ms))
                    .collect();
                sessions.sort_by_key(|session| (session.instance.clone(), session.session));
                v1::ServiceState {
                    service: name.to_string(),
                    sessions,
                    in_flight: served.in_flight as u64,
                    parked: parked.waiting_for(name) as u64,
                    breaker: served.breaker.word(now_ms).to_owned(),
                    asked: served.asked,
                    answered: served.answered,
                    silent: served.silent,
                    recovering: served.recovering as u64,
                    policy: Some(v1::ServicePolicy {
                        service: name.to_string(),
                        ..served.policy.clone()
                    }),
                }
            })
            .collect();
        services.sort_by(|one, other| one.service.cmp(&other.service));
        let version = Some(self.policies().version.into());
        v1::ListServicesReply { services, version, ..Default::default() }
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
