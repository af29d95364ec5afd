//! Commands on their way into the log: they wait in a bounded queue while a few entries are under way, and go together.
//!
//! There is no linger for what somebody waits for: an entry takes what is there when its turn comes. What nobody waits for does
//! not make an entry of its own at once; for a moment it waits for company. Reports of the dispatcher have a queue of their own
//! and go first, so that a flood of begins never keeps open transactions from finishing.
//!
//! Each entry goes through a gate that a [hold](crate::hold) shuts behind the last one under way.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_fault::{Site, reached};
use holdfast_raft::Log;
use holdfast_txn::{Command, Gid, Rejection};
use tokio::{
    sync::{
        OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore, mpsc,
        oneshot,
    },
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{Limits, limit},
    coordinator::Applied,
    fault::ProposeError,
    live::Now,
    meters::Meters,
    record::{self, EncodedCommand},
    replica::{Replica, Results},
};

/// How long a lazy command waits for a blocking one to ride along with. An entry of its own would cost a sync on every node,
/// and whoever begins next would wait behind it.
const LAZY_WAIT: Duration = Duration::from_millis(5);

/// Whether somebody waits for a command. Lazy ones ride along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Blocking,
    Lazy,
}

/// A report whose entry has its answer.
#[derive(Debug)]
pub(crate) struct Proposed {
    pub(crate) gid: Gid,
    /// Applied (or refused by the machine, which is as final), or why there is no result.
    pub(crate) result: Result<Applied, ProposeError>,
}

/// The log, as far as the proposer needs it.
pub(crate) trait Entries: Send + Sync + 'static {
    /// Carries an entry through; one result for each of its commands.
    fn propose(&self, entry: Bytes) -> impl Future<Output = Result<Results, ProposeError>> + Send;
}

impl Entries for Log<Replica> {
    async fn propose(&self, entry: Bytes) -> Result<Results, ProposeError> {
        let (_, results) = Self::propose(self, entry).await?;
        Ok(results)
    }
}

/// Shared by the entries under way, and by nobody else while it is shut.
type Gate = Arc<RwLock<()>>;

/// While this lives, no entry is under way and none begins.
pub(crate) type Shut = OwnedRwLockWriteGuard<()>;

/// The way into the log. A handle: clones share the queues.
#[derive(Clone, Debug)]
pub(crate) struct Proposer {
    callers: mpsc::Sender<Queued>,
    reports: mpsc::Sender<Queued>,
    gate: Gate,
    meters: Arc<Meters>,
}

#[derive(Debug)]
struct Queued {
    command: EncodedCommand,
    kind: Kind,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    Caller(oneshot::Sender<Result<Applied, ProposeError>>),
    Dispatcher(Gid),
}

impl Proposer {
    /// Starts the task that makes entries. Results of reports go to `proposed`.
    pub(crate) fn start<L: Entries>(
        log: Arc<L>,
        clock: Arc<Clock>,
        limits: Limits,
        live: Arc<Now>,
        meters: Arc<Meters>,
        proposed: mpsc::Sender<Vec<Proposed>>,
        stop: CancellationToken,
    ) -> Self {
        let (callers, from_callers) = mpsc::channel(limits.queue_max);
        let (reports, from_dispatcher) = mpsc::channel(limits.queue_max);
        let gate = Gate::default();
        let batcher = Batcher {
            log,
            clock,
            live,
            meters: Arc::clone(&meters),
            proposed,
            in_flight: Arc::new(Semaphore::new(limits.in_flight_max)),
            gate: Arc::clone(&gate),
            from_callers,
            from_dispatcher,
            carried: None,
        };
        tokio::spawn(batcher.run(stop));
        Self { callers, reports, gate, meters }
    }

    /// Has `command` carried out for a caller. What only ends a transaction rides along with what others wait for.
    /// # Errors
    /// [`ProposeError`]; overloaded at once when the queue is full.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Applied, ProposeError> {
        let encoded = EncodedCommand::of(command);
        let measured = encoded.len_in_entry();
        if measured > limit::COMMAND_BYTES_MAX {
            // What no transaction may hold is refused before it costs the log anything.
            let rejection = Rejection::OutOfRange {
                what: "the size of the command in bytes",
                measured: measured as u64,
                allowed: format!("at most {}", limit::COMMAND_BYTES_MAX),
                remedy: "Send less with the transaction, for example a reference instead of a document",
            };
            return Ok(Applied { result: Err(rejection) });
        }
        let (reply, result) = oneshot::channel();
        let kind = match command {
            Command::Finish { .. } => Kind::Lazy,
            _ => Kind::Blocking,
        };
        let queued = Queued { command: encoded, kind, reply: Reply::Caller(reply) };
        self.callers.try_send(queued).map_err(|fault| match fault {
            mpsc::error::TrySendError::Full(_) => {
                self.meters.overloaded.increment(1);
                ProposeError::Overloaded { waiting: self.callers.max_capacity() }
            }
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        self.meters.proposed(kind);
        // A queue that breaks off without a word may have handed the command on before.
        result.await.unwrap_or_else(|_| {
            Err(ProposeError::Unknown { cause: "the way into the log broke off".to_owned() })
        })
    }

    /// Queues a command of the dispatcher; its result arrives as [`Proposed`]. False when the queue is full.
    pub(crate) fn report(&self, gid: Gid, command: &Command, kind: Kind) -> bool {
        let command = EncodedCommand::of(command);
        let queued = Queued { command, kind, reply: Reply::Dispatcher(gid) };
        let taken = self.reports.try_send(queued).is_ok();
        if taken {
            self.meters.proposed(kind);
        }
        taken
    }

    /// Waits until no entry is under way, and keeps the next ones from beginning from now on: commands wait in their queues.
    pub(crate) async fn shut(&self) -> Shut {
        Arc::clone(&self.gate).write_owned().await
    }

    /// The task that makes entries is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.callers.is_closed()
    }

    /// Commands that wait now.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = |queue: &mpsc::Sender<Queued>| queue.max_capacity() - queue.capacity();
        waiting(&self.callers) + waiting(&self.reports)
    }
}

/// The task behind [`Proposer`].
struct Batcher<L> {
    log: Arc<L>,
    clock: Arc<Clock>,
    live: Arc<Now>,
    meters: Arc<Meters>,
    proposed: mpsc::Sender<Vec<Proposed>>,
    in_flight: Arc<Semaphore>,
    gate: Gate,
    from_callers: mpsc::Receiver<Queued>,
    from_dispatcher: mpsc::Receiver<Queued>,
    /// The command that did not fit into the last entry.
    carried: Option<Queued>,
}

/// The commands of one entry, while they are gathered.
struct Batch {
    queued: Vec<Queued>,
    bytes: usize,
}

impl Batch {
    fn of(first: Queued) -> Self {
        let bytes = first.command.len_in_entry();
        let mut queued = Vec::with_capacity(64);
        queued.push(first);
        Self { queued, bytes }
    }

    /// Takes it, or gives it back when there is no room.
    fn push(&mut self, queued: Queued) -> Option<Queued> {
        let bytes = self.bytes + queued.command.len_in_entry();
        if bytes > limit::ENTRY_BYTES_MAX {
            return Some(queued);
        }
        self.bytes = bytes;
        self.queued.push(queued);
        None
    }

    /// Whether nobody waits for any of it.
    fn is_lazy(&self) -> bool {
        self.queued.iter().all(|queued| queued.kind == Kind::Lazy)
    }
}

impl<L: Entries> Batcher<L> {
    async fn run(mut self, stop: CancellationToken) {
        let in_flight = Arc::clone(&self.in_flight);
        loop {
            // The permit comes first: what arrives while all entries are under way goes together in the next one.
            let turn = async {
                let permit =
                    Arc::clone(&in_flight).acquire_owned().await.expect("it is never closed");
                let first = match self.carried.take() {
                    Some(carried) => Some(carried),
                    None => tokio::select! {
                        biased;
                        report = self.from_dispatcher.recv() => report,
                        command = self.from_callers.recv() => command,
                    },
                };
                first.map(|first| (permit, first))
            };
            let next = tokio::select! {
                () = stop.cancelled() => None,
                next = turn => next,
            };
            let Some((permit, first)) = next else { break };
            let mut batch = Batch::of(first);
            self.fill(&mut batch);
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wait_for_company(&mut batch) => {}
            }
            // Whoever has shut it opens it soon, also when the node ends.
            let passage = Arc::clone(&self.gate).read_owned().await;
            self.send(batch.queued, permit, passage);
        }
        self.turn_away().await;
    }

    /// Adds whatever waits, up to the limits of an entry.
    fn fill(&mut self, batch: &mut Batch) {
        let batch_max = self.live.get().batch_max;
        while batch.queued.len() < batch_max && self.carried.is_none() {
            let waiting = self.from_dispatcher.try_recv().or_else(|_| self.from_callers.try_recv());
            let Ok(queued) = waiting else { break };
            self.carried = batch.push(queued);
        }
    }

    /// Lazy commands alone wait a little for a blocking one.
    async fn wait_for_company(&mut self, batch: &mut Batch) {
        let batch_max = self.live.get().batch_max;
        let until = Instant::now() + LAZY_WAIT;
        while batch.is_lazy() && batch.queued.len() < batch_max && self.carried.is_none() {
            let next = async {
                tokio::select! {
                    biased;
                    report = self.from_dispatcher.recv() => report,
                    command = self.from_callers.recv() => command,
                }
            };
            let Ok(Some(queued)) = timeout_at(until, next).await else { return };
            self.carried = batch.push(queued);
            self.fill(batch);
        }
    }

    fn send(
        &self,
        batch: Vec<Queued>,
        permit: OwnedSemaphorePermit,
        passage: OwnedRwLockReadGuard<()>,
    ) {
        let entry =
            record::encode_entry(self.clock.now(), batch.iter().map(|queued| &queued.command));
        self.meters.commands_per_entry.record(batch.len() as f64);
        let log = Arc::clone(&self.log);
        let proposed = self.proposed.clone();
        tokio::spawn(async move {
            reached(Site::ProposerBeforePropose);
            let results = log.propose(entry).await;
            reached(Site::ProposerCommittedUntold);
            // The turn is over before the answers are told.
            drop((passage, permit));
            answer(batch, results, &proposed).await;
        });
    }

    /// At the end of the node: whoever still waits is told that nothing happened.
    async fn turn_away(mut self) {
        self.from_callers.close();
        self.from_dispatcher.close();
        let mut left: Vec<_> = self.carried.take().into_iter().collect();
        while let Ok(queued) = self.from_dispatcher.try_recv() {
            left.push(queued);
        }
        while let Ok(queued) = self.from_callers.try_recv() {
            left.push(queued);
        }
        answer(left, Err(ProposeError::Stopped), &self.proposed).await;
    }
}

/// Tells each of `batch` its own result.
async fn answer(
    batch: Vec<Queued>,
    results: Result<Results, ProposeError>,
    proposed: &mpsc::Sender<Vec<Proposed>>,
) {
    let results = results.and_then(|results| {
        if results.len() == batch.len() {
            Ok(results)
        } else {
            let cause = format!("{} commands, {} results", batch.len(), results.len());
            Err(ProposeError::Unknown { cause })
        }
    });
    let mut reports = Vec::new();
    let mut tell = |reply, result| match reply {
        // Who has gone does not hear it; the log has it.
        Reply::Caller(caller) => drop(caller.send(result)),
        Reply::Dispatcher(gid) => reports.push(Proposed { gid, result }),
    };
    match results {
        Ok(results) => {
            for (queued, result) in batch.into_iter().zip(results) {
                tell(queued.reply, Ok(Applied { result }));
            }
        }
        Err(fault) => {
            for queued in batch {
                tell(queued.reply, Err(fault.clone()));
            }
        }
    }
    if !reports.is_empty() {
        // The dispatcher always reads; it is gone only when the node is.
        let _gone = proposed.send(reports).await;
    }
}

#[cfg(test)]
mod tests;
