//! The breakers of services and of their instances as metrics, set once a second.
//!
//! A service's name is a label here and nowhere else. It is no secret, and the number of names is bounded: the first so many have
//! series of their own for as long as the process lives, and the rest share one.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use holdfast_txn::{Gid, Participant};
use metrics::{Gauge, gauge};

use super::sessions::Sessions;
use crate::config::limit;

/// The label of services that have no series of their own; no service can have this name.
const OTHERS: &str = "_others";

/// Breakers that a silence opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) instance: bool,
    pub(super) service: bool,
}

/// Tells transactions apart for a breaker; a collision counts two as one.
pub(super) fn hash_of(gid: &Gid) -> u64 {
    let mut hasher = DefaultHasher::new();
    gid.hash(&mut hasher);
    hasher.finish()
}

/// The series of every service that was seen.
#[derive(Default)]
pub(super) struct Breakers {
    /// `None`: a node with one group.
    group: Option<u32>,
    known: BTreeMap<Participant, Series>,
    others: Option<Series>,
}

#[derive(Clone)]
struct Series {
    service: Gauge,
    instances: Gauge,
}

/// What is told of one service, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// 0: closed; 1: half open; 2: open.
    service: u8,
    /// Instances whose own breaker is not closed.
    instances: u32,
}

impl std::fmt::Debug for Breakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breakers").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Breakers {
    pub(super) fn new(group: Option<u32>) -> Self {
        Self { group, ..Self::default() }
    }

    /// Sets every series; all are closed on a node that makes no calls.
    pub(super) fn measure(&mut self, sessions: &Sessions, leads: bool, now_ms: u64) {
        let mut seen: BTreeMap<&Participant, Seen> = BTreeMap::new();
        for (service, served) in sessions.each().filter(|_| leads) {
            let instances = sessions.of(service).filter(|one| one.breaker_word(now_ms) != "closed");
            let service_is = degree(served.breaker.word(now_ms));
            let instances = u32::try_from(instances.count()).unwrap_or(u32::MAX);
            seen.insert(service, Seen { service: service_is, instances });
        }
        for (service, series) in &self.known {
            series.set(seen.remove(service).unwrap_or_default());
        }
        let mut others = Seen::default();
        for (service, now) in seen {
            if self.known.len() < limit::SERVICES_MEASURED_MAX {
                let series = Series::of(service.as_str(), self.group);
                series.set(now);
                self.known.insert(service.clone(), series);
            } else {
                others.service = others.service.max(now.service);
                others.instances = others.instances.saturating_add(now.instances);
                self.others.get_or_insert_with(|| Series::of(OTHERS, self.group));
            }
        }
        if let Some(series) = &self.others {
            series.set(others);
        }
    }
}

impl Series {
    fn of(service: &str, group: Option<u32>) -> Self {
        let service = service.to_owned();
        match group {
            None => Self {
                service: gauge!("holdfast_service_breaker", "service" => service.clone()),
                instances: gauge!("holdfast_service_instances_broken", "service" => service),
            },
            Some(group) => {
                let group = group.to_string();
                Self {
                    service: gauge!("holdfast_service_breaker",
                        "service" => service.clone(), "group" => group.clone()),
                    instances: gauge!("holdfast_service_instances_broken",
                        "service" => service, "group" => group),
                }
            }
        }
    }

    fn set(&self, seen: Seen) {
        self.service.set(f64::from(seen.service));
        self.instances.set(f64::from(seen.instances));
    }
}

fn degree(word: &str) -> u8 {
    match word {
        "closed" => 0,
        "half_open" => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::sync::mpsc;

    use super::{
        super::{
            announced::{About, NewSession, SessionId},
            lanes::{Credit, Lane},
        },
        *,
    };

    fn up(sessions: &mut Sessions, id: u64, service: &str) {
        let (outbox, _sent) = mpsc::channel(1);
        let service = Participant::parse(service).unwrap();
        let credit = Credit::of(1);
        let about = About::default();
        let new = NewSession { id: SessionId(id), service, about, weight: 100, credit, outbox };
        sessions.up(new, 0);
    }

    fn sessions(services: usize) -> Sessions {
        let mut sessions = Sessions::new(std::sync::Arc::default(), Lane::all(1).remove(0));
        for number in 0..services {
            up(&mut sessions, number as u64, &format!("s{number}"));
        }
        sessions
    }

    /// What `/metrics` says after `act`.
    fn told(act: impl FnOnce()) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, act);
        recorder.handle().render()
    }

    #[test]
    fn an_open_breaker_is_told_and_closed_on_a_node_that_leads_no_more() {
        let mut sessions = sessions(2);
        for whose in 0..20 {
            sessions.silent(SessionId(1), whose, 0);
        }
        let told = told(|| {
            let mut breakers = Breakers::new(None);
            breakers.measure(&sessions, true, 1);
        });
        assert!(told.contains("holdfast_service_breaker{service=\"s1\"} 2"), "{told}");
        assert!(told.contains("holdfast_service_instances_broken{service=\"s1\"} 1"), "{told}");
        assert!(told.contains("holdfast_service_breaker{service=\"s0\"} 0"), "{told}");
        let told = self::told(|| {
            let mut breakers = Breakers::new(Some(3));
            breakers.measure(&sessions, true, 2_000);
            breakers.measure(&sessions, false, 2_000);
        });
        assert!(told.contains("{service=\"s1\",group=\"3\"} 0"), "{told}");
    }

    #[test]
    fn the_last_name_has_a_series_and_one_more_shares_that_of_the_others() {
        let most = limit::SERVICES_MEASURED_MAX;
        let series = |services| {
            let told = told(|| Breakers::new(None).measure(&sessions(services), true, 0));
            let lines = told.lines().filter(|line| line.starts_with("holdfast_service_breaker{"));
            (lines.count(), told.contains(OTHERS))
        };
        assert_eq!(series(most), (most, false));
        assert_eq!(series(most + 1), (most + 1, true));
        assert_eq!(series(most + 2), (most + 1, true));
    }
}
