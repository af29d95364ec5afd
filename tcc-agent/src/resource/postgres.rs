//! Carries calls out on PostgreSQL: those that wait together become one local transaction, and one commit serves them all.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use deadpool_postgres::{Hook, HookError, Object, Pool, Runtime};
use futures::{FutureExt as _, future};
use holdfast_branch::{
    LATE_CODE, LATE_MESSAGE, Outcome, Record, Settlement, Verdict, decide, decide_anew, settle,
};
use holdfast_fault::{Held, Site, held, reached};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::{
    counts::{Counters, Counts},
    database::Database,
    failure::{Failure, describe, describe_pool, judge},
    queue::{Batch, Patience, Queue},
    suspects::Suspects,
};
use crate::{
    barrier_store::{self, CODE_CHARACTERS_MAX, MESSAGE_CHARACTERS_MAX, kept},
    handler::{Asked, Handler},
    participant::{Answer, Call, Last, LocalTransaction, Participant},
};

/// After so many lost connections in a row, the rest of a batch is not tried any more.
const LOST_IN_A_ROW_MAX: usize = 2;
/// A call waits no longer for others to share its local transaction, nor behind a slow one while a connection is free.
const PATIENCE: Patience =
    Patience { of_one: Duration::from_millis(20), of_all: Duration::from_millis(150) };
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// The bounds of an executor. Each at least 1.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections, and so local transactions at a time.
    pub connections: usize,
    /// Calls in one local transaction.
    pub batch_max: usize,
    /// Payload in one local transaction, bytes. A single call may be larger.
    pub batch_bytes_max: usize,
    /// Calls that wait for a connection; more are answered unknown at once.
    pub waiting_max: usize,
    /// For a connection to be made, ms.
    pub connect_timeout_ms: u64,
    /// For one lock, ms (PostgreSQL's `lock_timeout`).
    pub lock_timeout_ms: u32,
    /// For one statement, ms (PostgreSQL's `statement_timeout`).
    pub statement_timeout_ms: u32,
    /// For a whole local transaction, ms. Then its connection is given up and all its calls are answered unknown.
    pub batch_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4,
            batch_max: 256,
            batch_bytes_max: 4 << 20,
            waiting_max: 16_384,
            connect_timeout_ms: 5_000,
            lock_timeout_ms: 2_000,
            statement_timeout_ms: 10_000,
            batch_timeout_ms: 30_000,
        }
    }
}

/// Carries calls out on PostgreSQL, with the barrier, in batches. The barrier must be installed ([`crate::install`]).
///
/// Its connections must be its own or session-pooled: it prepares statements. Dropping it takes no more calls and answers those
/// it has; [`close`](Self::close) waits for that.
pub struct PostgresResource<P> {
    executor: Arc<Executor<P>>,
    workers: Arc<Workers>,
}

/// Each has a connection, and may be told to end after the batch that it has in hand.
type Workers = Mutex<Vec<(CancellationToken, JoinHandle<()>)>>;

struct Executor<P> {
    participant: P,
    pool: Pool,
    queue: Arc<Queue>,
    begin: String,
    batch_timeout: Duration,
    suspects: Suspects,
    counters: Counters,
}

impl<P: Participant> PostgresResource<P> {
    /// Connects to `database` as calls come. Needs a Tokio runtime.
    #[must_use]
    pub fn new(database: impl Into<Database>, participant: P, limits: &Limits) -> Self {
        let mut database = database.into();
        let connect = Duration::from_millis(limits.connect_timeout_ms);
        database.config_mut().connect_timeout(connect);
        let pool = Pool::builder(database.manager())
            .max_size(limits.connections.max(1))
            .wait_timeout(Some(connect))
            .create_timeout(Some(connect))
            .runtime(Runtime::Tokio1)
            // Once for a connection and not for every batch.
            .post_create(Hook::async_fn({
                let settings: Arc<str> = settings(limits, "SESSION").into();
                move |connection, _| {
                    let settings = Arc::clone(&settings);
                    Box::pin(async move {
                        connection.batch_execute(&settings).await.map_err(HookError::Backend)
                    })
                }
            }))
            .build()
            .expect("a pool with timeouts was given its runtime");
        Self::start(pool, BEGIN.to_owned(), participant, limits)
    }

    /// Takes connections from `pool`, for example one that others use as well. The pool should hold `limits.connections`.
    #[must_use]
    pub fn with_pool(pool: Pool, participant: P, limits: &Limits) -> Self {
        // Whoever made the pool may hand its connections to others, or reset them.
        let begin = format!("{BEGIN}; {}", settings(limits, "LOCAL"));
        Self::start(pool, begin, participant, limits)
    }

    fn start(pool: Pool, begin: String, participant: P, limits: &Limits) -> Self {
        let executor = Arc::new(Executor {
            participant,
            pool,
            queue: Queue::new(
                limits.waiting_max,
                limits.batch_max,
                limits.batch_bytes_max,
                PATIENCE,
            ),
            begin,
            batch_timeout: Duration::from_millis(limits.batch_timeout_ms.max(1)),
            suspects: Suspects::default(),
            counters: Counters::default(),
        });
        let workers = Arc::<Workers>::default();
        executor.employ(&workers, limits.connections);
        Self { executor, workers }
    }

    /// Has one call carried out and waits for its answer; what a program without a coordinator session uses, and tests.
    pub async fn call(&self, call: Call) -> Answer {
        crate::handler::ask(self, call).await
    }

    /// Has local transactions that begin from then on carry so many calls at most.
    pub fn batch_max_setter(&self) -> impl Fn(usize) + Send + Sync + use<P> {
        let queue = Arc::clone(&self.executor.queue);
        move |calls| queue.set_batch_max(calls)
    }

    /// Has so many connections, and local transactions at a time, from then on. One that is too many goes when its batch is done. Not for
    /// an executor that was made [with a pool](Self::with_pool) of others. Needs a Tokio runtime.
    pub fn connections_setter(&self) -> impl Fn(usize) + Send + Sync + use<P> {
        let (executor, workers) = (Arc::clone(&self.executor), Arc::clone(&self.workers));
        move |connections| {
            executor.pool.resize(connections.max(1));
            executor.employ(&workers, connections);
        }
    }

    /// What was done since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.executor.counters.read()
    }

    /// Takes no more calls, answers those it has, and waits until that is done.
    pub async fn close(&self) {
        self.executor.queue.close();
        let workers =
            std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, worker) in workers {
            // A worker catches the participant's panics; it ends only when the queue is empty.
            let _ended = worker.await;
        }
    }
}

impl<P: Participant> Handler for PostgresResource<P> {
    fn handle(&self, asked: Vec<Asked>) {
        for left_over in self.executor.queue.put(asked) {
            let message = "too many calls wait for the database: ask again".into();
            left_over.reply.answer(Answer::Unknown { message });
        }
    }
}

impl<P> Drop for PostgresResource<P> {
    fn drop(&mut self) {
        self.executor.queue.close();
    }
}

impl<P> fmt::Debug for PostgresResource<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresResource")
            .field("begin", &self.executor.begin)
            .finish_non_exhaustive()
    }
}

/// A connection on loan. Unless it is said to be clean, it is closed and not given back: nobody inherits an open transaction.
struct Lease(Option<Object>);

impl Lease {
    fn clean(mut self) {
        self.0.take();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Object::take(connection));
        }
    }
}

impl<P: Participant> Executor<P> {
    /// Has so many workers, at least one, and tells those that are too many to end.
    fn employ(self: &Arc<Self>, workers: &Workers, count: usize) {
        let mut workers = workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|(_, worker)| !worker.is_finished());
        let staying = workers.iter().filter(|(end, _)| !end.is_cancelled());
        let count = count.max(1);
        let missing = count.saturating_sub(staying.clone().count());
        staying.skip(count).for_each(|(end, _)| end.cancel());
        for _ in 0..missing {
            let end = CancellationToken::new();
            let worker = tokio::spawn(Arc::clone(self).work(end.clone()));
            workers.push((end, worker));
        }
    }

    async fn work(self: Arc<Self>, end: CancellationToken) {
        while let Some(Some(batch)) = end.run_until_cancelled(self.queue.take()).await {
            let carried = AssertUnwindSafe(self.carry(batch)).catch_unwind().await;
            if carried.is_err() {
                // The calls were answered unknown as they were dropped.
                tracing::error!("the participant panicked; its calls are answered unknown");
            }
        }
    }

    async fn carry(&self, mut batch: Batch) {
        let asked = std::mem::take(&mut batch.asked);
        let (alone, together): (Vec<Asked>, Vec<Asked>) =
            asked.into_iter().partition(|asked| self.suspects.has(&asked.call));
        if !together.is_empty() {
            self.carry_together(together).await;
        }
        self.carry_alone(alone).await;
    }

    async fn carry_together(&self, asked: Vec<Asked>) {
        let (calls, replies): (Vec<Call>, Vec<_>) =
            asked.into_iter().map(|asked| (asked.call, asked.reply)).unzip();
        let mut attempt = self.attempt(&calls).await;
        if let Err(Failure::Conflict(_)) = attempt {
            attempt = self.attempt(&calls).await;
        }
        match attempt {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    reply.answer(answer);
                }
            }
            Err(Failure::Conflict(_) | Failure::Spoiled(_)) if calls.len() > 1 => {
                self.counters.split();
                let asked = calls.into_iter().zip(replies);
                self.carry_alone(asked.map(|(call, reply)| Asked { call, reply }).collect()).await;
            }
            Err(failure) => {
                if !matches!(failure, Failure::Down(_)) {
                    // One of them may have done this to the connection: next time each is alone, and only that one suffers.
                    calls.iter().for_each(|call| self.suspects.add(call));
                }
                let message = failure.into_message();
                tracing::warn!(calls = calls.len(), message, "a batch is answered unknown");
                for reply in replies {
                    reply.answer(Answer::Unknown { message: message.clone() });
                }
            }
        }
    }

    async fn carry_alone(&self, asked: Vec<Asked>) {
        let mut lost_in_a_row = 0;
        for Asked { call, reply } in asked {
            if lost_in_a_row >= LOST_IN_A_ROW_MAX {
                reply.answer(Answer::Unknown { message: "the database cannot be reached".into() });
                continue;
            }
            let calls = std::slice::from_ref(&call);
            let mut attempt = self.attempt(calls).await;
            if let Err(Failure::Conflict(_)) = attempt {
                attempt = self.attempt(calls).await;
            }
            match attempt {
                Ok(answers) => {
                    lost_in_a_row = 0;
                    self.suspects.acquit(&call);
                    let mut answers = answers.into_iter();
                    reply.answer(answers.next().expect("one call has one answer"));
                }
                Err(failure) => {
                    let down = matches!(failure, Failure::Lost(_) | Failure::Down(_));
                    lost_in_a_row = if down { lost_in_a_row + 1 } else { 0 };
                    if !matches!(failure, Failure::Down(_)) {
                        self.suspects.add(&call);
                    }
                    let message = failure.into_message();
                    tracing::warn!(gid = %call.gid, branch = call.branch, op = %call.op, message, "a call is answered unknown");
                    reply.answer(Answer::Unknown { message });
                }
            }
        }
    }

    /// One local transaction with all of `calls`, from begin to commit. Those that look new are taken for new first.
    async fn attempt(&self, calls: &[Call]) -> Result<Vec<Answer>, Failure> {
        if calls.iter().all(barrier_store::is_new) {
            let attempt = self.attempt_as(calls, true).await;
            if !matches!(attempt, Err(Failure::Known(_))) {
                return attempt;
            }
        }
        self.attempt_as(calls, false).await
    }

    async fn attempt_as(&self, calls: &[Call], new: bool) -> Result<Vec<Answer>, Failure> {
        if held::measure(Held::ShardDown).is_some() {
            // As if the server were gone: what is open is given up, nothing new is begun.
            return Err(Failure::Down("a drill holds this data source down".to_owned()));
        }
        let connection = self.pool.get().await.map_err(|error| {
            Failure::Down(format!("no connection to PostgreSQL: {}", describe_pool(&error)))
        })?;
        let lease = Lease(Some(connection));
        let connection = lease.0.as_ref().expect("the lease was just made");
        let attempt = async {
            let statements = barrier_store::prepare(connection).await.map_err(|error| {
                let remedy = match error.code() {
                    Some(code)
                        if [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME]
                            .contains(code) =>
                    {
                        "; install the barrier: holdfast barrier install"
                    }
                    _ => "",
                };
                Failure::Down(format!("the barrier cannot be used: {}{remedy}", describe(&error)))
            })?;
            self.within(connection, &statements, calls, new).await
        };
        match tokio::time::timeout(self.batch_timeout, attempt).await {
            Ok(Ok(answers)) => {
                lease.clean();
                Ok(answers)
            }
            Ok(Err(failure)) => {
                if !matches!(failure, Failure::Lost(_)) && self.roll_back(connection).await {
                    lease.clean();
                }
                Err(failure)
            }
            Err(_) => Err(Failure::Lost(format!(
                "the local transaction took longer than {} ms",
                self.batch_timeout.as_millis()
            ))),
        }
    }

    async fn roll_back(&self, connection: &Object) -> bool {
        let rolled_back = connection.batch_execute("ROLLBACK");
        matches!(tokio::time::timeout(self.batch_timeout, rolled_back).await, Ok(Ok(())))
    }

    async fn within(
        &self,
        connection: &Object,
        statements: &barrier_store::Statements,
        calls: &[Call],
        new: bool,
    ) -> Result<Vec<Answer>, Failure> {
        let failed = |error: tokio_postgres::Error| judge(&error, connection.is_closed());
        let last = Last::default();
        let local = LocalTransaction::ending_in(connection, &last);
        let mut beside = None;
        let found = if new {
            let entered = barrier_store::enter_new(connection, statements, &self.begin, calls);
            let entered = if self.participant.acts_locally() {
                // Polled in this order, the barrier's statements stand before the participant's in the local transaction.
                let (entered, carried) =
                    future::join(entered, self.participant.carry_out(local, calls)).await;
                beside = Some(carried);
                entered
            } else {
                entered.await
            };
            entered.map_err(|error| match error.code() {
                Some(&SqlState::UNIQUE_VIOLATION) => Failure::Known(describe(&error)),
                _ => failed(error),
            })?
        } else {
            let entered = barrier_store::enter(connection, statements, &self.begin, calls);
            entered.await.map_err(failed)?
        };
        reached(Site::AgentBarrierEntered);
        let verdicts: Vec<Verdict> =
            calls.iter().zip(&found).map(|(call, found)| judge_call(call, &found.record)).collect();

        let admitted: Vec<usize> =
            (0..calls.len()).filter(|&index| matches!(verdicts[index], Verdict::Proceed)).collect();
        let mut carried = if let Some(carried) = beside {
            if admitted.len() < calls.len() {
                return Err(Failure::Known("the barrier admits only some of the calls".to_owned()));
            }
            carried.map_err(failed)?
        } else if admitted.is_empty() {
            Vec::new()
        } else if admitted.len() == calls.len() {
            self.participant.carry_out(local, calls).await.map_err(failed)?
        } else {
            let chosen: Vec<Call> = admitted.iter().map(|&index| calls[index].clone()).collect();
            self.participant.carry_out(local, &chosen).await.map_err(failed)?
        };
        if carried.len() != admitted.len() {
            let (got, want) = (carried.len(), admitted.len());
            return Err(Failure::Spoiled(format!(
                "the participant gave {got} answers to {want} calls"
            )));
        }
        for answer in &mut carried {
            if let Answer::Refused { code, message } = answer {
                // What is kept is what is told, the first time as every time.
                *code = kept(code, CODE_CHARACTERS_MAX);
                *message = kept(message, MESSAGE_CHARACTERS_MAX);
            }
        }

        let mut carried = carried.into_iter();
        let mut answers = Vec::with_capacity(calls.len());
        let mut settlements: Vec<Settlement> = Vec::with_capacity(calls.len());
        for ((call, found), verdict) in calls.iter().zip(&found).zip(&verdicts) {
            let carried = match verdict {
                Verdict::Proceed => carried.next(),
                Verdict::Repeat(_) | Verdict::Empty | Verdict::Late | Verdict::Disorder(_) => None,
            };
            let outcome = carried.as_ref().and_then(outcome_of);
            settlements.push(settle(call.op, &found.record, verdict, outcome.as_ref()));
            answers.push(carried.unwrap_or_else(|| answer_of(verdict)));
        }
        reached(Site::AgentBeforeCommit);
        let left = barrier_store::leave(connection, calls, &found, &settlements, last.take());
        left.await.map_err(failed)?;
        reached(Site::AgentCommittedUntold);
        self.counters.add(calls, &verdicts, &answers);
        Ok(answers)
    }
}

/// PostgreSQL's own timeouts, and one plan for all batches, for a `SESSION` or `LOCAL` to a transaction.
///
/// Left to itself the server takes a plan for small batches to be cheaper than one for any, and then plans every statement anew.
fn settings(limits: &Limits, scope: &str) -> String {
    format!(
        "SET {scope} plan_cache_mode = force_generic_plan; SET {scope} lock_timeout = {}; SET {scope} statement_timeout = {}; \
         SET {scope} idle_in_transaction_session_timeout = {}",
        limits.lock_timeout_ms.max(1),
        limits.statement_timeout_ms.max(1),
        limits.batch_timeout_ms.clamp(1, 1 << 30),
    )
}

fn judge_call(call: &Call, found: &Record) -> Verdict {
    // A first call has no refusal behind it that people could have removed the cause of: where it finds one, it is itself a late
    // duplicate, whatever an older coordinator writes on it.
    let asks_anew = call.refusal_waits && call.repeat;
    if asks_anew { decide_anew(call.op, found) } else { decide(call.op, found) }
}

/// What the barrier answers without the participant.
fn answer_of(verdict: &Verdict) -> Answer {
    match verdict {
        Verdict::Empty | Verdict::Repeat(Outcome::Done) => Answer::Done,
        Verdict::Repeat(Outcome::Working) => Answer::Working,
        Verdict::Repeat(Outcome::Refused { code, message }) => {
            Answer::Refused { code: code.clone(), message: message.clone() }
        }
        Verdict::Late => Answer::Refused { code: LATE_CODE.into(), message: LATE_MESSAGE.into() },
        Verdict::Disorder(disorder) => Answer::Unknown {
            message: format!("{}: {disorder}; nothing was done, people must look", disorder.code()),
        },
        Verdict::Proceed => Answer::Unknown { message: "the participant gave no answer".into() },
    }
}

fn outcome_of(answer: &Answer) -> Option<Outcome> {
    match answer {
        Answer::Done => Some(Outcome::Done),
        Answer::Working => Some(Outcome::Working),
        Answer::Refused { code, message } => {
            Some(Outcome::Refused { code: code.clone(), message: message.clone() })
        }
        Answer::Unknown { .. } => None,
    }
}
