//! A hold: for a few seconds nothing enters the log of the groups that this node leads.
//!
//! A restore point needs it (docs/operating/restore-points.md). Sources and log cannot note their points in the same moment, and need not, as long
//! as the log stands still meanwhile. Call what it says L. Whatever a source holds of a global transaction at its point was called
//! for by something in L, since nothing came behind it. Whatever L calls finished was done there before the hold began. What L has
//! decided and a source has not done yet, a coordinator restored to L asks for again, and the source turns a repeat away; what a source
//! has prepared and L never decided is rolled back. So all points and L are one state, whichever was noted first.
//!
//! Calls, reads, sessions and the leadership go on; commands wait in the proposer's queues. A hold ends when whoever asked lets go,
//! with this node's leadership of any of its groups, with the node, and after [`HOLD_MS_MAX`](limit::HOLD_MS_MAX) at the latest. It counts only
//! for whom the node told *behind* the last point that it still holds: by then a quorum has confirmed that no other led.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{join_all, select_all};
use holdfast_raft::{Leadership, Position};
use metrics::{Gauge, gauge};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{Coordinator, config::limit, proposer::Shut};

/// Why there is no hold, or none any more. Nothing is lost by it: commands go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HoldFault {
    /// HF1305, retry: one is under way.
    #[error(
        "commits are held on this node already, for somebody else. Try again when that is over, within {} ms",
        limit::HOLD_MS_MAX
    )]
    Taken,
    /// HF1306, retry: what was noted under it counts for nothing.
    #[error(
        "commits are not held any more: {cause}. What was noted meanwhile is no restore point; take another"
    )]
    Over {
        /// For people.
        cause: String,
    },
}

impl HoldFault {
    /// The code, with a page in docs/reference/errors.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Taken => "HF1305",
            Self::Over { .. } => "HF1306",
        }
    }

    fn over(cause: impl Into<String>) -> Self {
        Self::Over { cause: cause.into() }
    }
}

/// Who holds the commits of a node: one at a time.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    by: Arc<Mutex<Option<String>>>,
    held: Gauge,
}

/// Nobody else holds them as long as this is kept.
#[derive(Debug)]
pub(crate) struct Turn(Holder);

impl Default for Holder {
    /// Nobody, and that is measured.
    fn default() -> Self {
        let held = gauge!("holdfast_commits_held");
        held.set(0.0);
        Self { by: Arc::default(), held }
    }
}

impl Holder {
    /// The turn of `by`.
    /// # Errors
    /// [`HoldFault::Taken`].
    pub(crate) fn turn(&self, by: &str) -> Result<Turn, HoldFault> {
        let mut holder = self.lock();
        if holder.is_some() {
            return Err(HoldFault::Taken);
        }
        *holder = Some(by.to_owned());
        self.held.set(1.0);
        Ok(Turn(self.clone()))
    }

    /// Whether it is `who`.
    pub(crate) fn is(&self, who: &str) -> bool {
        self.lock().as_deref() == Some(who)
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut holder = self.0.lock();
        *holder = None;
        self.0.held.set(0.0);
    }
}

/// A hold of every group in it. Ends when it is dropped.
pub(crate) struct Hold {
    coordinator: Coordinator,
    groups: Vec<Held>,
    at_most: Duration,
    until: Instant,
    _turn: Turn,
}

struct Held {
    group: u32,
    term: u64,
    leadership: watch::Receiver<Leadership>,
    _shut: Shut,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("at_most", &self.at_most).finish_non_exhaustive()
    }
}

impl Hold {
    /// Holds these groups, at most for so long from now on, and says up to where the log of each goes.
    /// # Errors
    /// [`HoldFault::Over`]: an entry under way, or a quorum, took too long, or another node leads.
    pub(crate) async fn begin(
        turn: Turn,
        coordinator: Coordinator,
        groups: &[u32],
        at_most: Duration,
    ) -> Result<(Self, Vec<(u32, Position)>), HoldFault> {
        let until = Instant::now() + at_most;
        let beginning = async {
            let held = join_all(groups.iter().map(async |group| {
                let shut = coordinator.group(*group).shut().await;
                let leadership = coordinator.group(*group).leadership();
                let last = last(&coordinator, *group).await?;
                Ok((Held { group: *group, term: last.term, leadership, _shut: shut }, last))
            }));
            held.await.into_iter().collect::<Result<Vec<_>, HoldFault>>()
        };
        let held = timeout_at(until, beginning).await.map_err(|_| {
            HoldFault::over(format!("the log was not quiet within {} ms", at_most.as_millis()))
        })??;
        let places = held.iter().map(|(held, last)| (held.group, *last)).collect();
        let groups = held.into_iter().map(|(held, _)| held).collect();
        Ok((Self { coordinator, groups, at_most, until, _turn: turn }, places))
    }

    /// Has a quorum confirm that nothing came between: the same node leads each group in the same term.
    /// # Errors
    /// [`HoldFault::Over`].
    pub(crate) async fn confirm(&self) -> Result<Vec<(u32, Position)>, HoldFault> {
        let confirmed = join_all(self.groups.iter().map(async |held| {
            let last = last(&self.coordinator, held.group).await?;
            if last.term != held.term {
                return Err(leads_no_longer(held.group));
            }
            Ok((held.group, last))
        }));
        confirmed.await.into_iter().collect()
    }

    /// Waits until the hold must end, and says why.
    pub(crate) async fn over(&self) -> HoldFault {
        let lost = select_all(self.groups.iter().map(|held| {
            let (mut leadership, term) = (held.leadership.clone(), held.term);
            Box::pin(async move {
                let other = |now: &Leadership| !now.leads_here || now.term != term;
                // The sender is gone only with the log.
                drop(leadership.wait_for(other).await);
                leads_no_longer(held.group)
            })
        }));
        let stopping = self.coordinator.stopping();
        tokio::select! {
            (lost, ..) = lost => lost,
            () = stopping.cancelled() => HoldFault::over("this node is stopping"),
            () = sleep_until(self.until) => {
                HoldFault::over(format!("the {} ms that were asked for are over", self.at_most.as_millis()))
            }
        }
    }
}

fn leads_no_longer(group: u32) -> HoldFault {
    HoldFault::over(format!("this node does not lead group {group} any more"))
}

/// The last entry of a group that this node leads, as a quorum confirms. It is of the leader's term: a leader begins with one of its own.
async fn last(coordinator: &Coordinator, group: u32) -> Result<Position, HoldFault> {
    let confirmed = coordinator.group(group).log.read_barrier().await;
    confirmed.map_err(|fault| HoldFault::over(format!("group {group}: {fault}")))
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn whether_commits_are_held_is_measured_and_nobody_else_ends_it() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let held = || metrics.render().contains("holdfast_commits_held 1");
            let holder = Holder::default();
            assert!(metrics.render().contains("holdfast_commits_held 0"), "{}", metrics.render());
            let turn = holder.turn("nightly").expect("nobody else holds them");
            assert!(held() && holder.is("nightly"));
            assert_eq!(holder.turn("another").err(), Some(HoldFault::Taken));
            assert!(held());
            drop(turn);
            assert!(!held() && !holder.is("nightly"));
        });
    }
}
