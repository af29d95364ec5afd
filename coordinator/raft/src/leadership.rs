//! Who leads, and when this node may act as the leader.

use std::{sync::Arc, time::Duration};

use openraft::{
    Instant as _, RaftMetrics, ServerState, async_runtime::WatchReceiver as _, errors::Fatal,
};
use tokio::sync::{Notify, watch};

use crate::{Member, consensus::Consensus, network::client::Peers};

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term.
    pub term: u64,
    /// The leader of that term, where it is known. A leader that hears no quorum does not know.
    pub leader: Option<Member>,
    /// Whether this node leads and has applied everything up to and including its own first entry of the term, so that
    /// its state holds whatever any leader before it acknowledged. It becomes false when no quorum answered for twice
    /// the longest election wait, since by then another may lead.
    pub leads_here: bool,
}

/// What openraft says of itself, all the time.
pub(crate) type Metrics = openraft::alias::WatchReceiverOf<Consensus, RaftMetrics<Consensus>>;

/// Finds the addresses of members: the log knows, and where it does not yet, the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Directory(Arc<Vec<Member>>);

impl Directory {
    pub(crate) fn new(members: Vec<Member>) -> Self {
        Self(Arc::new(members))
    }

    pub(crate) fn member(&self, node: u64, metrics: &RaftMetrics<Consensus>) -> Member {
        if let Some(recorded) = metrics.membership_config.membership().get_node(&node) {
            return recorded.member(node);
        }
        let configured = self.0.iter().find(|member| member.node == node);
        configured.cloned().unwrap_or_else(|| Member { node, ..Member::default() })
    }
}

/// A runtime that ends drops the tasks of openraft in any order, which looks like a fault of theirs. It polls nothing more, so
/// whoever is still polled after this time is in a process that goes on.
const STILL_HERE: Duration = Duration::from_millis(250);

/// The fault that openraft stopped of by itself, if it did.
fn broken(metrics: &RaftMetrics<Consensus>) -> Option<Fatal<Consensus>> {
    match &metrics.running_state {
        Ok(()) | Err(Fatal::Stopped) => None,
        Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) => Some(fatal.clone()),
    }
}

/// Says it and ends the process: what the replica held may be half done, and a node that lives on without it neither votes nor
/// follows while its doors still answer. A failed write or sync of the log ends the process before this.
async fn end_broken(fatal: &Fatal<Consensus>) -> ! {
    tokio::time::sleep(STILL_HERE).await;
    tracing::error!(
        %fatal,
        "HF1203 the replica cannot go on; aborting, since this node neither votes nor follows any more. \
         Check the disk and its space, then start it again: the log recovers by itself"
    );
    std::process::abort()
}

/// What the metrics of openraft say of the leadership.
pub(crate) fn leadership(
    metrics: &RaftMetrics<Consensus>,
    directory: &Directory,
    silence_max: Duration,
) -> Leadership {
    let term = metrics.current_term;
    let running = metrics.running_state.is_ok() && metrics.state != ServerState::Shutdown;
    let leader = metrics.current_leader.filter(|_| running);
    let elected = running && metrics.state == ServerState::Leader && leader == Some(metrics.id);
    // A term has one leader and this node was elected in its present life, so the first entry of this term that is
    // applied here is its own.
    let applied = metrics.last_applied.is_some_and(|last| **last.committed_leader_id() == term);
    let alone = metrics.membership_config.voter_ids().count() <= 1;
    let heard = alone || metrics.last_quorum_acked.is_some_and(|at| at.elapsed() <= silence_max);
    Leadership {
        term,
        // A leader whom no quorum answers may have been replaced already: it names nobody, least of all itself.
        leader: leader
            .filter(|&node| node != metrics.id || heard)
            .map(|node| directory.member(node, metrics)),
        leads_here: elected && applied && heard,
    }
}

/// Keeps `leadership` up to date until openraft is gone.
pub(crate) async fn follow(
    mut metrics: Metrics,
    directory: Directory,
    peers: Peers,
    silence_max: Duration,
    heartbeat: Arc<Notify>,
    sender: watch::Sender<Leadership>,
) {
    loop {
        let (now, broken) = {
            let now = metrics.borrow_and_update();
            peers.record(&now.membership_config);
            (leadership(&now, &directory, silence_max), broken(&now))
        };
        sender.send_if_modified(|published| {
            if *published == now {
                return false;
            }
            if published.leader.as_ref().map(|leader| leader.node)
                != now.leader.as_ref().map(|leader| leader.node)
            {
                metrics::counter!("holdfast_raft_leader_changes_total").increment(1);
                tracing::info!(
                    term = now.term,
                    leader = now.leader.as_ref().map(|leader| leader.node),
                    "the leader changed"
                );
            }
            metrics::gauge!("holdfast_raft_term").set(now.term as f64);
            *published = now;
            true
        });
        if let Some(fatal) = broken {
            end_broken(&fatal).await;
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() {
                sender.send_if_modified(|published| {
                    let led = published.leads_here || published.leader.is_some();
                    published.leader = None;
                    published.leads_here = false;
                    led
                });
                return;
            },
            // Silence shows only by looking again, and only a leader has to.
            () = heartbeat.notified() => {}
        }
    }
}
