//! What a participant is asked and what it may answer; the trait that a bank's module implements on PostgreSQL.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::ClientWrapper;
pub use holdfast_branch::Op;
use tokio_postgres::{Statement, types::ToSql};

use crate::headers::Headers;

/// A global transaction's id: 1 to 35 characters of `[A-Za-z0-9-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid(Arc<str>);

/// A text that is no gid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a gid has 1 to 35 characters of A-Z, a-z, 0-9 and '-'; this one has {length} bytes")]
pub struct BadGid {
    length: usize,
}

impl Gid {
    /// The longest gid, in characters.
    pub const LENGTH_MAX: usize = 35;

    /// Checks and takes `text`.
    /// # Errors
    /// [`BadGid`] when it is empty, too long, or holds any other character.
    pub fn parse(text: &str) -> Result<Self, BadGid> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if text.is_empty() || text.len() > Self::LENGTH_MAX || !text.bytes().all(allowed) {
            return Err(BadGid { length: text.len() });
        }
        Ok(Self(text.into()))
    }

    /// The gid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One operation that a branch is asked to carry out. The same (gid, branch, op) may come any number of times, in any order.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    /// The global transaction.
    pub gid: Gid,
    /// The branch's number within it, from 1.
    pub branch: u32,
    /// What to do.
    pub op: Op,
    /// What the caller wrote for this branch; the same bytes for every operation of the branch.
    pub payload: Bytes,
    /// When the global transaction is due, ms since epoch UTC; 0 = none. A call that comes later is carried out all the same:
    /// whether it still counts is the barrier's and the coordinator's to say, never this clock's.
    pub deadline_ms: u64,
    /// What every call of this global transaction carries (W3C traceparent among them).
    pub headers: Headers,
    /// How often this operation was asked for, from 1, by the leader that asks now.
    pub attempt: u32,
    /// An earlier call of this operation may have come here, unanswered or by a leader before this one.
    pub repeat: bool,
    /// Saga: a refusal does not end the transaction but waits for people, and they may have had the action asked for again since. One
    /// that was kept is no answer then, if the call is a `repeat` too.
    pub refusal_waits: bool,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither payload nor headers: both may hold what must not stand in a log.
        f.debug_struct("Call")
            .field("gid", &self.gid)
            .field("branch", &self.branch)
            .field("op", &self.op)
            .field("payload_bytes", &self.payload.len())
            .field("deadline_ms", &self.deadline_ms)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What a call is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Carried out, in this call or an earlier one, and durable.
    Done,
    /// Final, for a business reason; it has left no effect. Asked again, a refused try or action is answered the same.
    Refused {
        /// For people and statistics; never decided upon. At most 64 characters are kept.
        code: String,
        /// For people. At most 1,024 characters are kept.
        message: String,
    },
    /// Under way: ask again at the same interval. What was done so far stays, and an undo will be carried out.
    Working,
    /// It cannot be said: ask again. From a participant it also says that this call has left no effect.
    Unknown {
        /// For people: why.
        message: String,
    },
}

/// The local transaction in which calls are carried out. Everything of [`tokio_postgres::Client`] that needs `&self` is there
/// (`query`, `execute`, `copy_in`, ...). Committing and rolling back are the executor's: a participant never sends either.
#[derive(Clone, Copy)]
pub struct LocalTransaction<'a> {
    client: &'a ClientWrapper,
    last: Option<&'a Last>,
}

/// Statements that go together with the commit.
#[derive(Default)]
pub(crate) struct Last(Mutex<Vec<LastStatement>>);

pub(crate) struct LastStatement {
    pub(crate) statement: Statement,
    pub(crate) parameters: Vec<Parameter>,
}

/// A parameter of a statement that is sent later.
pub type Parameter = Box<dyn ToSql + Sync + Send>;

/// Statements of one local transaction that go together with its commit.
const LAST_MAX: usize = 8;

impl Last {
    pub(crate) fn take(self) -> Vec<LastStatement> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> LocalTransaction<'a> {
    /// Stands for the transaction that is open on `client`. The executor makes these; tests of a participant may too, between
    /// a `BEGIN` and a `COMMIT` of their own.
    #[must_use]
    pub const fn within(client: &'a ClientWrapper) -> Self {
        Self { client, last: None }
    }

    /// As [`within`](Self::within); what goes with the commit is gathered in `last`.
    pub(crate) const fn ending_in(client: &'a ClientWrapper, last: &'a Last) -> Self {
        Self { client, last: Some(last) }
    }

    /// Has `statement` executed among the last of the local transaction, in the order of these calls and together with the commit: one
    /// round trip for all. Its rows and their number are told to nobody, so a statement of which they matter must fail by itself where they
    /// are not right; then nothing is committed. Without an executor it is executed at once.
    /// # Errors
    /// Without an executor, what PostgreSQL says.
    /// # Panics
    /// One more than eight of them.
    pub async fn execute_last(
        &self,
        statement: Statement,
        parameters: Vec<Parameter>,
    ) -> Result<(), tokio_postgres::Error> {
        let Some(Last(last)) = self.last else {
            return self.client.execute_raw(&statement, parameters).await.map(drop);
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(last.len() < LAST_MAX, "at most {LAST_MAX} statements go with a commit");
        last.push(LastStatement { statement, parameters });
        Ok(())
    }

    /// The prepared statement of this text, prepared once per connection. `sql` must be constant text: the cache never forgets.
    /// # Errors
    /// What PostgreSQL says about the statement, or that the connection is lost.
    pub async fn prepare_cached(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        self.client.prepare_cached(sql).await
    }
}

impl Deref for LocalTransaction<'_> {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        self.client
    }
}

impl fmt::Debug for LocalTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalTransaction")
    }
}

/// A banking module as a library participant on PostgreSQL.
#[async_trait]
pub trait Participant: Send + Sync + 'static {
    /// Carries out calls that the barrier admitted, all in one local transaction, set-based: one answer per call, in order.
    ///
    /// Every (gid, branch) occurs at most once in `calls`, and each effect is asked for once: no repeat, no late try, no cancel
    /// of what was never tried comes here. A call answered refused or unknown has left no effect.
    ///
    /// # Errors
    /// What PostgreSQL says, unchanged. The local transaction is then rolled back, and the calls are carried out again one by
    /// one, so that a single bad one harms no other; so this may run several times for one call, of which one is committed.
    async fn carry_out(
        &self,
        local: LocalTransaction<'_>,
        calls: &[Call],
    ) -> Result<Vec<Answer>, tokio_postgres::Error>;

    /// Whether [`carry_out`](Self::carry_out) acts by the local transaction alone, and leaves nothing when that is rolled back. Then it may run
    /// beside the barrier, which saves a round trip: it also sees calls that the barrier does not admit, and whatever it did of them is
    /// rolled back before the others are carried out.
    fn acts_locally(&self) -> bool {
        false
    }
}
