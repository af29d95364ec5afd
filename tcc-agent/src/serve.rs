//! Keeps a session open to every coordinator node, and finds further nodes by those it knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    announce::{BadConfig, ServeConfig, endpoint},
    handler::Handler,
    session::{Ended, Session},
};

/// Coordinator nodes that one agent keeps sessions to.
const NODES_MAX: usize = 32;
/// The first pause before a node is dialled again; pauses double up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_LAST: Duration = Duration::from_secs(1);

/// What all sessions of an agent share.
pub(crate) struct Shared {
    pub(crate) config: ServeConfig,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) shutdown: CancellationToken,
    /// Addresses that a node told of.
    pub(crate) learnt: mpsc::Sender<String>,
    /// Which address has the session to which node: one each, though a node may be known by several addresses.
    pub(crate) nodes: watch::Sender<BTreeMap<u64, String>>,
}

/// Serves calls until `shutdown`, then answers those under way and returns.
///
/// Coordinators may be absent, now or later: they are dialled again and again, with pauses of 50 ms to 1 s. Nothing is retried
/// here and no call is judged by its deadline; both are the coordinator's. An answer that finds its session gone is dropped, and
/// the coordinator asks again, which the barrier makes harmless.
///
/// # Errors
/// [`BadConfig`], at once. A coordinator that cannot be reached is never an error.
pub async fn serve(
    config: ServeConfig,
    handler: impl Handler,
    shutdown: CancellationToken,
) -> Result<(), BadConfig> {
    config.check()?;
    let (learnt, mut told) = mpsc::channel(NODES_MAX);
    let given = config.coordinators.clone();
    let shared = Arc::new(Shared {
        config,
        handler: Arc::new(handler),
        shutdown: shutdown.clone(),
        learnt,
        nodes: watch::Sender::new(BTreeMap::new()),
    });
    let mut known = BTreeSet::new();
    let mut sessions = JoinSet::new();
    let mut dial = |address: String, sessions: &mut JoinSet<()>| {
        if known.len() < NODES_MAX && endpoint(&address).is_some() && known.insert(address.clone())
        {
            sessions.spawn(keep_open(Arc::clone(&shared), address));
        }
    };
    for address in given {
        dial(address, &mut sessions);
    }
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            address = told.recv() => {
                if let Some(address) = address {
                    dial(address, &mut sessions);
                }
            }
        }
    }
    shared.config.status.drain();
    while sessions.join_next().await.is_some() {}
    Ok(())
}

/// Opens a session to one address again and again.
async fn keep_open(shared: Arc<Shared>, address: String) {
    let mut pause = PAUSE_FIRST;
    let mut silent_since_loss = false;
    while !shared.shutdown.is_cancelled() {
        let ended = Box::pin(Session::run(&shared, &address)).await;
        match ended {
            Ended::Drained => return,
            Ended::SameNode(node) => {
                tracing::debug!(address, node, "has a session by another address already");
                let mut nodes = shared.nodes.subscribe();
                tokio::select! {
                    () = shared.shutdown.cancelled() => return,
                    _ = nodes.wait_for(|nodes| !nodes.contains_key(&node)) => {}
                }
                pause = PAUSE_FIRST;
            }
            Ended::Lost { lasted, reason } => {
                if lasted {
                    pause = PAUSE_FIRST;
                    silent_since_loss = false;
                }
                // Once for an outage, however long it takes.
                if silent_since_loss {
                    tracing::debug!(address, reason, "no session");
                } else {
                    tracing::warn!(address, reason, "no session; dialling again");
                    silent_since_loss = true;
                }
            }
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(jittered) => {}
        }
        pause = (pause * 2).min(PAUSE_LAST);
    }
}
