//! Which routers may go by which rules: what the leader of group 0 has heard of them, in memory, until their leases end.
//!
//! Whoever moves slots must know of every router that may still plan by older rules. So a router is noted *before* it is answered: a lease that
//! anybody counts on is known here. The router counts it from its question and this node from hearing that, which is later, so it ends
//! here last. What leaders before this one granted was asked for before this one led, and is over one longest lease after that: until then
//! some may be unknown. Each term begins anew, also where the same node led before, since another may have granted leases between; within a term,
//! which has one leader, what was heard stays.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_proto::v1::{AttendRequest, RouterLease};
use holdfast_raft::Leadership;
use metrics::{Gauge, gauge};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, limit::ROUTERS_MAX};

/// The attendance as one node knows it, which counts while the node leads.
#[derive(Debug)]
pub(crate) struct Attendance {
    lease_max: Duration,
    heard: Mutex<Heard>,
    /// One more is noted, so that its end is waited for.
    noted: Notify,
}

struct Heard {
    /// The term in which all this was heard; 0: this node does not lead.
    term: u64,
    /// When this node found that it leads in that term.
    since: Instant,
    routers: BTreeMap<String, Router>,
    attending: Gauge,
}

#[derive(Debug)]
struct Router {
    said: AttendRequest,
    /// The caller whose router it is.
    by: String,
    heard: Instant,
    ends: Instant,
}

/// Why a router gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unattended {
    /// As many attend as there is place for.
    Full,
    /// Somebody else attends by that name.
    NotYours,
}

/// A router is noted; it has its lease once a quorum confirms that this node leads in that term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) term: u64,
    pub(crate) lease_ms: u64,
}

/// The routers that may plan by some rules.
#[derive(Debug, PartialEq)]
pub(crate) struct Attending {
    pub(crate) routers: Vec<RouterLease>,
    /// For how much longer there may be others.
    pub(crate) unknown_ms: u64,
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heard").field("term", &self.term).finish_non_exhaustive()
    }
}

impl Attendance {
    /// Nobody attends yet. Goes on until `stop`.
    pub(crate) fn start(
        limits: &Limits,
        leadership: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let attendance = Arc::new(Self::new(limits.router_lease_max_ms));
        let kept = Arc::clone(&attendance);
        tokio::spawn(async move { kept.keep(leadership, stop).await });
        attendance
    }

    fn new(lease_max_ms: u64) -> Self {
        let attending = gauge!("holdfast_attending_routers");
        attending.set(0.0);
        let heard = Heard { term: 0, since: Instant::now(), routers: BTreeMap::new(), attending };
        Self {
            lease_max: Duration::from_millis(lease_max_ms),
            heard: Mutex::new(heard),
            noted: Notify::new(),
        }
    }

    /// Notes what a router of the caller `by` said at `now`, while this node leads in `term`.
    /// # Errors
    /// [`Unattended`]: it is not noted, and what was noted of it stays.
    pub(crate) fn attend(
        &self,
        term: u64,
        now: Instant,
        said: AttendRequest,
        by: &str,
    ) -> Result<Noted, Unattended> {
        let mut heard = self.heard_in(term, now);
        let term = heard.term;
        let before = heard.routers.get(&said.router);
        if before.is_some_and(|router| router.by != by) {
            return Err(Unattended::NotYours);
        }
        if said.leaves {
            heard.routers.remove(&said.router);
            heard.count();
            return Ok(Noted { term, lease_ms: 0 });
        }
        if before.is_none() && heard.routers.len() >= ROUTERS_MAX {
            return Err(Unattended::Full);
        }
        let lease = Duration::from_millis(said.lease_ms).min(self.lease_max);
        // It may not have heard that a longer lease was followed by a shorter one.
        let ends = before.map_or(now + lease, |router| router.ends.max(now + lease));
        let lease_ms = millis(lease);
        let router = Router { by: by.to_owned(), heard: now, ends, said };
        heard.routers.insert(router.said.router.clone(), router);
        heard.count();
        drop(heard);
        self.noted.notify_one();
        Ok(Noted { term, lease_ms })
    }

    /// The routers whose leases have not ended at `now`, where a quorum confirms that this node leads in `term`.
    pub(crate) fn list(&self, term: u64, now: Instant) -> Attending {
        let heard = self.heard_in(term, now);
        let lease = |router: &Router| RouterLease {
            router: router.said.router.clone(),
            address: router.said.address.clone(),
            epoch: router.said.epoch,
            oldest_epoch: router.said.oldest_epoch,
            lease_left_ms: left(router.ends.saturating_duration_since(now)),
            heard_ms: millis(now.saturating_duration_since(router.heard)),
        };
        let led = now.saturating_duration_since(heard.since);
        Attending {
            routers: heard.routers.values().map(lease).collect(),
            unknown_ms: left(self.lease_max.saturating_sub(led)),
        }
    }

    /// Begins anew with each term that this node leads, and forgets whose lease has ended. Until `stop`.
    async fn keep(&self, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
        loop {
            let now = leadership.borrow_and_update().clone();
            let ends = self.follow(&now, Instant::now());
            let ended = async {
                match ends {
                    Some(ends) => sleep_until(ends).await,
                    None => self.noted.notified().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
                () = ended => {}
            }
        }
    }

    /// Goes by what is known of the leadership. When the first of the leases ends.
    fn follow(&self, leadership: &Leadership, now: Instant) -> Option<Instant> {
        if !leadership.leads_here {
            let mut heard = self.lock();
            // A leader whom nobody answers for a moment is no new one.
            if leadership.term > heard.term {
                heard.begin(0, now);
            }
        }
        let term = if leadership.leads_here { leadership.term } else { 0 };
        self.heard_in(term, now).routers.values().map(|router| router.ends).min()
    }

    /// What was heard in `term`, or a later one that was noticed already, of those whose leases last.
    fn heard_in(&self, term: u64, now: Instant) -> MutexGuard<'_, Heard> {
        let mut heard = self.lock();
        if term > heard.term {
            heard.begin(term, now);
        }
        let before = heard.routers.len();
        heard.routers.retain(|_, router| router.ends > now);
        if heard.routers.len() != before {
            heard.count();
        }
        heard
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// In this term nobody was heard yet.
    fn begin(&mut self, term: u64, now: Instant) {
        (self.term, self.since) = (term, now);
        self.routers.clear();
        self.count();
    }

    #[expect(clippy::cast_precision_loss, reason = "there are few")]
    fn count(&self) {
        self.attending.set(self.routers.len() as f64);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is left of a time: not 0 before it is over.
fn left(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 1_000;

    fn said(router: &str, epoch: u64, lease_ms: u64) -> AttendRequest {
        let router = router.to_owned();
        AttendRequest { router, epoch, oldest_epoch: epoch, lease_ms, ..AttendRequest::default() }
    }

    fn names(attending: &Attending) -> Vec<&str> {
        attending.routers.iter().map(|one| one.router.as_str()).collect()
    }

    fn after(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn a_router_is_known_until_its_lease_ends_and_no_longer() {
        let (attendance, begin) = (Attendance::new(LONGEST), Instant::now());
        let noted = attendance.attend(3, begin, said("r-1", 7, 400), "router").unwrap();
        assert_eq!(noted, Noted { term: 3, lease_ms: 400 });
        let known = attendance.list(3, after(begin, 399)).routers;
        let row = (known[0].epoch, known[0].lease_left_ms, known[0].heard_ms);
        assert_eq!(row, (7, 1, 399));
        assert!(attendance.list(3, after(begin, 400)).routers.is_empty());
    }

    #[test]
    fn no_lease_is_longer_than_allowed_and_a_shorter_one_does_not_end_a_longer_one() {
        let (attendance, begin) = (Attendance::new(LONGEST), Instant::now());
        let long = attendance.attend(1, begin, said("r-1", 7, LONGEST + 1), "router").unwrap();
        assert_eq!(long.lease_ms, LONGEST);
        let short = attendance.attend(1, begin, said("r-1", 8, 5), "router").unwrap();
        assert_eq!(short.lease_ms, 5);
        let known = attendance.list(1, after(begin, LONGEST - 1)).routers;
        assert_eq!((known.len(), known[0].epoch), (1, 8));
        assert!(attendance.list(1, after(begin, LONGEST)).routers.is_empty());
    }

    #[test]
    fn as_many_attend_as_allowed_and_one_more_only_when_one_leaves() {
        let (attendance, now) = (Attendance::new(LONGEST), Instant::now());
        for router in 0..ROUTERS_MAX {
            attendance.attend(1, now, said(&format!("r-{router}"), 1, 100), "router").unwrap();
        }
        let one_more = || attendance.attend(1, now, said("r-x", 1, 100), "router");
        assert_eq!(one_more(), Err(Unattended::Full));
        assert!(attendance.attend(1, now, said("r-5", 2, 100), "router").is_ok(), "it is known");
        let leaves = AttendRequest { leaves: true, ..said("r-5", 2, 100) };
        assert_eq!(attendance.attend(1, now, leaves, "router").unwrap().lease_ms, 0);
        assert!(one_more().is_ok());
        assert_eq!(attendance.list(1, now).routers.len(), ROUTERS_MAX);
    }

    #[test]
    fn nobody_speaks_for_a_router_of_somebody_else() {
        let (attendance, now) = (Attendance::new(LONGEST), Instant::now());
        attendance.attend(1, now, said("r-1", 1, 100), "router-a").unwrap();
        let leaves = AttendRequest { leaves: true, ..said("r-1", 1, 100) };
        assert_eq!(attendance.attend(1, now, leaves, "app-b"), Err(Unattended::NotYours));
        assert_eq!(names(&attendance.list(1, now)), ["r-1"]);
    }

    #[test]
    fn who_leads_anew_knows_nobody_and_says_for_how_long_some_may_be_unknown() {
        let (attendance, begin) = (Attendance::new(LONGEST), Instant::now());
        attendance.attend(1, begin, said("r-1", 1, LONGEST), "router").unwrap();
        let later = after(begin, 300);
        assert_eq!(attendance.list(1, later).unknown_ms, LONGEST - 300);
        // The same node leads again: another may have led between.
        let anew = attendance.list(3, later);
        assert_eq!((anew.routers.len(), anew.unknown_ms), (0, LONGEST));
        let noted = attendance.attend(1, later, said("r-2", 1, 500), "router").unwrap();
        assert_eq!(noted.term, 3, "who asked has not noticed the newer term");
        let almost = later + Duration::from_micros(LONGEST * 1_000 - 1);
        assert_eq!(attendance.list(3, almost).unknown_ms, 1);
        assert_eq!(attendance.list(3, after(later, LONGEST)).unknown_ms, 0);
    }

    #[test]
    fn a_leader_whom_nobody_answers_for_a_moment_is_not_new_and_one_of_a_later_term_is() {
        let (attendance, begin) = (Attendance::new(LONGEST), Instant::now());
        let leads = |term, leads_here| Leadership { term, leader: None, leads_here };
        assert_eq!(attendance.follow(&leads(2, true), begin), None);
        attendance.attend(2, begin, said("r-1", 1, LONGEST), "router").unwrap();
        let (lost, found) = (after(begin, 100), after(begin, 200));
        assert_eq!(attendance.follow(&leads(2, false), lost), Some(after(begin, LONGEST)));
        attendance.follow(&leads(2, true), found);
        let known = attendance.list(2, found);
        assert_eq!((known.routers.len(), known.unknown_ms), (1, LONGEST - 200));
        // Another leads, then this one again.
        assert_eq!(attendance.follow(&leads(3, false), found), None);
        attendance.follow(&leads(4, true), after(begin, 300));
        let known = attendance.list(4, after(begin, 300));
        assert_eq!((known.routers.len(), known.unknown_ms), (0, LONGEST));
    }
}
