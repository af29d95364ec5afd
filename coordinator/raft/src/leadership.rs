//! Who leads, and when this node may act as the leader.

use std::{sync::Arc, time::Duration};

use openraft::{
    Instant as _, RaftMetrics, ServerState, async_runtime::WatchReceiver as _, errors::Fatal,
    metrics::RaftServerMetrics,
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

/// What openraft says of itself with each entry that moves on.
pub(crate) type Metrics = openraft::alias::WatchReceiverOf<Consensus, RaftMetrics<Consensus>>;

/// The part of it that changes with the vote, the leader, this node's part in it, and the membership. It is told a moment before the
/// [`Metrics`] that it belongs to.
pub(crate) type ServerMetrics =
    openraft::alias::WatchReceiverOf<Consensus, RaftServerMetrics<Consensus>>;

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

/// Whether nothing that [`leadership`] looks at can change without a change of the server's part, or a silence. Otherwise it is to be
/// looked at with the next of all metrics: they belong to another server's part than this, or a leader has not applied its own entry yet.
fn settled(
    metrics: &RaftMetrics<Consensus>,
    server: &RaftServerMetrics<Consensus>,
    leadership: &Leadership,
) -> bool {
    let together = metrics.vote == server.vote
        && metrics.state == server.state
        && metrics.current_leader == server.current_leader
        && metrics.membership_config.log_id() == server.membership_config.log_id();
    together && (metrics.state != ServerState::Leader || leadership.leads_here)
}

/// Keeps `leadership` up to date until openraft is gone. The metrics change several times with each entry, which concerns nobody here:
/// while a term goes on, only the server's part of them is watched.
pub(crate) async fn follow(
    mut metrics: Metrics,
    mut server: ServerMetrics,
    directory: Directory,
    peers: Peers,
    silence_max: Duration,
    heartbeat: Arc<Notify>,
    sender: watch::Sender<Leadership>,
) {
    loop {
        let (now, fault, settled) = {
            let server = server.borrow_and_update();
            let now = metrics.borrow_and_update();
            peers.record(&now.membership_config);
            let leadership = leadership(&now, &directory, silence_max);
            let settled = settled(&now, &server, &leadership);
            (leadership, broken(&now), settled)
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
        if let Some(fatal) = fault {
            end_broken(&fatal).await;
        }
        let gone = tokio::select! {
            changed = server.changed() => changed.is_err(),
            changed = metrics.changed(), if !settled => changed.is_err(),
            // Silence shows only by looking again, and only a leader has to.
            () = heartbeat.notified() => false,
        };
        if gone {
            let fault = broken(&metrics.borrow_and_update());
            if let Some(fatal) = fault {
                end_broken(&fatal).await;
            }
            sender.send_if_modified(|published| {
                let led = published.leads_here || published.leader.is_some();
                published.leader = None;
                published.leads_here = false;
                led
            });
            return;
        }
    }
}
