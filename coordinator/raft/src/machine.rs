//! The state machine under the log: applies entries in order, answers the proposer, is captured and restored whole.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use holdfast_fault::{Site, reached};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use tokio::sync::Mutex;

use crate::{
    Position,
    consensus::{
        Consensus, LogId, Opaque, Payload, Reply, SnapshotMeta, StoredMembership, position,
    },
    store::snapshot::{SnapshotFile, SnapshotStore},
};

/// A state that was held fast, to be written down beside the work.
pub type Capture = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// What the log drives. Equal entries in equal order must make equal states, on every node and in every version.
pub trait StateMachine: Send + 'static {
    /// What an entry answers to the one who proposed it; it never leaves the process.
    type Response: Send + 'static;

    /// Applies the entry at this position. Total and deterministic: no clock, no chance, no I/O, no failure; what is
    /// wrong with an entry is said in the response. A panic here aborts the process, for a state that was left half
    /// changed must not be served.
    fn apply(&mut self, position: Position, entry: &Bytes) -> Self::Response;

    /// Holds the whole state fast, and says how to write it down. Applying waits for the first, which should be cheap, and
    /// goes on during the second; heartbeats and elections wait for neither.
    fn snapshot(&self) -> Capture;

    /// Becomes the state that a snapshot holds.
    /// # Errors
    /// The snapshot is of a format that is not known: the node stops rather than guess.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String>;
}

struct Applied<S> {
    machine: S,
    last: Option<LogId>,
    membership: StoredMembership,
}

/// openraft's view of a [`StateMachine`]. A handle: clones are the same state.
pub(crate) struct Replica<S> {
    applied: Arc<Mutex<Applied<S>>>,
    snapshots: SnapshotStore,
}

impl<S> Clone for Replica<S> {
    fn clone(&self) -> Self {
        Self { applied: Arc::clone(&self.applied), snapshots: self.snapshots.clone() }
    }
}

/// Ends the process if a state machine panics, while a panic could still be mistaken for an answer.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the state machine panicked; aborting, since its state is in doubt");
            std::process::abort();
        }
    }
}

impl<S: StateMachine> Replica<S> {
    pub(crate) fn new(machine: S, snapshots: SnapshotStore) -> Self {
        let membership = StoredMembership::default();
        let applied = Applied { machine, last: None, membership };
        Self { applied: Arc::new(Mutex::new(applied)), snapshots }
    }

    fn capture_and_write(&self) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let (meta, capture) = {
            let applied = self.applied.blocking_lock();
            let _guard = AbortOnPanic;
            let meta = SnapshotMeta {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
            };
            (meta, applied.machine.snapshot())
        };
        self.snapshots.write(meta, &capture())
    }

    fn restore(&self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let state = snapshot.state(self.snapshots.cluster(), self.snapshots.group())?;
        reached(Site::SnapshotReceived);
        // On disk first: once the log behind it is purged, nothing else can bring this state back.
        self.snapshots.adopt(meta.clone(), snapshot)?;
        reached(Site::SnapshotInstalled);
        let mut applied = self.applied.blocking_lock();
        let _guard = AbortOnPanic;
        applied.machine.restore(&state).map_err(|cause| {
            io::Error::other(format!("the state machine refuses the snapshot: {cause}"))
        })?;
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        if let Some(last) = meta.last_log_id {
            metrics::gauge!("holdfast_raft_applied_index").set(last.index as f64);
        }
        Ok(())
    }
}

impl<S: StateMachine> RaftStateMachine<Consensus> for Replica<S> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied.lock().await;
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<E>(&mut self, mut entries: E) -> io::Result<()>
    where
        E: Stream<Item = io::Result<EntryResponder<Consensus>>> + Unpin + OptionalSend,
    {
        let mut last = None;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut applied = self.applied.lock().await;
            let reply = match &entry.payload {
                Payload::Blank => Reply::default(),
                Payload::Normal(Opaque(bytes)) => {
                    let _guard = AbortOnPanic;
                    let response = applied.machine.apply(position(&entry.log_id), bytes);
                    if responder.is_some() { Reply::new(response) } else { Reply::default() }
                }
                Payload::Membership(membership) => {
                    applied.membership =
                        StoredMembership::new(Some(entry.log_id), membership.clone());
                    let joint = membership.get_joint_config().len() > 1;
                    reached(if joint { Site::MembershipJoint } else { Site::MembershipUniform });
                    Reply::default()
                }
            };
            applied.last = Some(entry.log_id);
            last = applied.last;
            drop(applied);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        if let Some(last) = last {
            metrics::gauge!("holdfast_raft_applied_index").set(last.index as f64);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let replica = self.clone();
        let meta = meta.clone();
        tokio::task::spawn_blocking(move || replica.restore(&meta, snapshot))
            .await
            .map_err(io::Error::other)?
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshots>> {
        let current = self.snapshots.current();
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// A snapshot as openraft passes it on.
pub(crate) type Snapshots = openraft::alias::SnapshotOf<Consensus, SnapshotFile>;

impl<S: StateMachine> RaftSnapshotBuilder<Consensus> for Replica<S> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshots> {
        let replica = self.clone();
        let built = tokio::task::spawn_blocking(move || replica.capture_and_write()).await;
        let (meta, snapshot) = built.map_err(io::Error::other)??;
        Ok(Snapshot { meta, snapshot })
    }
}
