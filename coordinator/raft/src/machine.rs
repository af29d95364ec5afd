//! The state machine under the log: applies entries in order, answers the proposer, is captured and restored whole.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use holdfast_fault::{Site, reached};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use tokio::sync::{Mutex, oneshot};

use crate::{
    Position,
    background::{Leisure, stand_back},
    consensus::{
        Consensus, LogId, Opaque, Payload, Reply, SnapshotMeta, StoredMembership, position,
    },
    store::snapshot::{SnapshotFile, SnapshotStore},
};

/// A state that was held fast, to be written down beside the work, which it leaves way every few dozen microseconds.
pub type Capture = Box<dyn FnOnce(Leisure) -> Vec<u8> + Send>;

/// How long a snapshot is made only while nobody waits for a processor; one of a million transactions then takes some seconds more, by the share
/// of its thread.
const LEISURE: Duration = Duration::from_secs(5);

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

    /// The inner error says that it cannot be written, and nothing happened; the outer one that it cannot be made durable.
    fn capture_and_write(&self) -> io::Result<io::Result<(SnapshotMeta, SnapshotFile)>> {
        let (meta, capture) = {
            let applied = self.applied.blocking_lock();
            let _guard = AbortOnPanic;
            let meta = SnapshotMeta {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
            };
            (meta, applied.machine.snapshot())
        };
        // Applying goes on from here.
        stand_back();
        let leisure = Leisure::of(LEISURE);
        match self.snapshots.draft(&meta, &capture(leisure), leisure) {
            Ok(file) => self.snapshots.adopt(meta, file).map(Ok),
            Err(error) => Ok(Err(error)),
        }
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
    type SnapshotBuilder = Builder<S>;

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

    async fn get_snapshot_builder(&mut self) -> Builder<S> {
        Builder { applied: Arc::downgrade(&self.applied), snapshots: self.snapshots.clone() }
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

/// Before a snapshot that could not be written is tried again for the first time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Each pause is twice the one before it, up to this one.
const PAUSE_MAX: Duration = Duration::from_secs(60);

fn longer(pause: Duration) -> Duration {
    (2 * pause).min(PAUSE_MAX)
}

/// Writes one snapshot, and asks for no more than a file: on a disk that is full for a while the node goes on for as long as it can
/// write its log, which stays whole until a snapshot holds what is in it. What cannot be synced is another matter, and ends the
/// replica: nobody can say what is on that disk.
pub(crate) struct Builder<S> {
    /// Not held between two attempts: a replica that ended meanwhile is written down no more.
    applied: Weak<Mutex<Applied<S>>>,
    snapshots: SnapshotStore,
}

impl<S: StateMachine> RaftSnapshotBuilder<Consensus> for Builder<S> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshots> {
        let mut pause = PAUSE_MIN;
        loop {
            let ended = || io::Error::other("the replica ended before its snapshot was written");
            let applied = self.applied.upgrade().ok_or_else(ended)?;
            let replica = Replica { applied, snapshots: self.snapshots.clone() };
            let (tell, told) = oneshot::channel();
            // A thread that stood back cannot come forward again: it ends with its snapshot.
            let write = move || drop(tell.send(replica.capture_and_write()));
            let begun = std::thread::Builder::new().name("snapshot".to_owned()).spawn(write);
            let written = match begun {
                Ok(_) => told.await.map_err(io::Error::other)??,
                Err(error) => Err(error),
            };
            let error = match written {
                Ok((meta, snapshot)) => return Ok(Snapshot { meta, snapshot }),
                Err(error) => error,
            };
            metrics::counter!("holdfast_raft_snapshot_failures_total").increment(1);
            tracing::error!(
                %error, again_in_s = pause.as_secs(),
                "HF1204 cannot write a snapshot; the log is kept and grows until one is written. Check the disk and its space"
            );
            tokio::time::sleep(pause).await;
            pause = longer(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_attempts_to_write_a_snapshot_double_up_to_a_minute() {
        let pauses = std::iter::successors(Some(PAUSE_MIN), |pause| Some(longer(*pause)));
        let seconds: Vec<u64> = pauses.take(9).map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
