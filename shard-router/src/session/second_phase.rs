//! Carries a decision out on the sources that are prepared: over the connections at hand, over new ones where those are lost, and never
//! taking *does not exist* for *done*.

use std::{rc::Rc, task::Waker, time::Duration};

use futures::future::join_all;
use holdfast_client::Finished;
use holdfast_fault::{Site, reached};
use tokio::time::{Instant, sleep};

use super::global::{Member, within};
use crate::{
    backend::{Pool, Server, literal},
    global_write::{Prepared, xid},
    worker::Worker,
};

/// Between two attempts at one source; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(1);
/// For so long a source is asked to commit that cannot be reached or does not. Then it is left to whoever sweeps there.
const COMMIT_MAX: Duration = Duration::from_secs(3_600);
/// Nothing of that name is prepared.
const NOT_PREPARED: &str = "42704";

/// A decision, and what it is about.
pub(super) struct Ending {
    pub(super) gid: String,
    /// One for each member, in their order.
    pub(super) prepared: Vec<Prepared>,
    pub(super) commit: bool,
    /// A cancel may be on its way to the connections: they are not used again.
    pub(super) canceled: bool,
}

/// What one attempt at one source came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is ended as was decided.
    Done,
    /// Ask again.
    Again(String),
    /// It was ended otherwise, by somebody who had no right to. Never taken for done.
    Otherwise(String),
}

/// Ends everything as was decided, within the router's bound; the coordinator is told behind that, for nobody who waits for rows waits
/// for its log.
/// # Errors
/// Which source is left, and why. Whoever sweeps there will end it.
pub(super) async fn carry_out(
    worker: &Rc<Worker>,
    members: Vec<Member>,
    ending: Ending,
) -> Result<(), String> {
    // A router that stops waits for this as for a session.
    let listed = worker.list(Waker::noop().clone());
    // What is prepared holds its locks.
    let _haste = worker.hurry();
    let Ending { gid, prepared, commit, canceled } = ending;
    let limit = worker.limits().commit_timeout;
    let end = Instant::now() + bound(commit, limit);
    let how = How { commit, canceled, limit, end };
    let each = members.into_iter().zip(&prepared).map(async |(Member { bound, .. }, branch)| {
        end_one(&bound.pool, Some(bound.server), &gid, branch, &how).await
    });
    let ended = join_all(each).await;
    let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        if commit && let Some(decider) = worker.decider().cloned() {
            reached(Site::RouterCommitted);
            tokio::task::spawn_local(async move {
                decider.finish(&gid, &[], Finished::Committed).await;
                drop(listed);
            });
        }
        return Ok(());
    }
    let failed = failed.join("; ");
    tracing::warn!(gid, failed, "a decision is not carried out everywhere yet");
    Err(failed)
}

/// How long a source is asked to end as was decided. A rollback that is not carried out is found by whoever sweeps.
fn bound(commit: bool, limit: Duration) -> Duration {
    if commit { COMMIT_MAX } else { limit }
}

struct How {
    commit: bool,
    canceled: bool,
    /// For one attempt.
    limit: Duration,
    /// Of all attempts.
    end: Instant,
}

/// Ends one branch at the source of `pool`, over `server` as long as that is whole.
async fn end_one(
    pool: &Rc<Pool>,
    mut server: Option<Box<Server>>,
    gid: &str,
    branch: &Prepared,
    how: &How,
) -> Result<(), String> {
    let (mut last, mut pause) = (String::new(), PAUSE_FIRST);
    while Instant::now() < how.end {
        let mut taken = match server.take().filter(|server| !server.broken) {
            Some(server) => server,
            None => match fresh(pool, how.limit).await {
                Ok(server) => server,
                Err(why) => {
                    last = why;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_LAST);
                    continue;
                }
            },
        };
        reached(Site::RouterCommitting);
        let ended = end_prepared(&mut taken, gid, branch, how.commit, how.limit).await;
        taken.broken |= how.canceled;
        match ended {
            Ended::Done => {
                pool.give_back(taken);
                return Ok(());
            }
            Ended::Otherwise(why) => {
                pool.give_back(taken);
                tracing::error!(
                    gid,
                    source = branch.source,
                    why,
                    "a prepared transaction was ended against the decision"
                );
                return Err(format!("{}: {why}", branch.source));
            }
            Ended::Again(why) => {
                last = why;
                match taken.broken {
                    // Its place in the pool comes free.
                    true => pool.give_back(taken),
                    false => server = Some(taken),
                }
                tracing::info!(gid, source = branch.source, last, "not ended yet");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_LAST);
            }
        }
    }
    if let Some(mut server) = server {
        server.broken |= how.canceled;
        pool.give_back(server);
    }
    Err(format!("{}: {last}", branch.source))
}

async fn fresh(pool: &Rc<Pool>, left: Duration) -> Result<Box<Server>, String> {
    match tokio::time::timeout(left, pool.take()).await {
        Ok(Ok(server)) => Ok(server),
        Ok(Err(refusal)) => Err(refusal.cause),
        Err(_) => Err("no connection in time".to_owned()),
    }
}

/// `COMMIT PREPARED` or `ROLLBACK PREPARED`, once.
///
/// That nothing is prepared proves a rollback of what was never decided, and nothing else: a commit is believed when PostgreSQL says that
/// the local transaction of that number has committed.
pub(crate) async fn end_prepared(
    server: &mut Server,
    gid: &str,
    branch: &Prepared,
    commit: bool,
    limit: Duration,
) -> Ended {
    let verb = if commit { "COMMIT" } else { "ROLLBACK" };
    let sql = format!("{verb} PREPARED '{}'", xid(gid, branch.branch));
    let reply = match within(limit, server, &[sql]).await {
        Ok(reply) => reply,
        Err(why) => return Ended::Again(why),
    };
    match reply.sqlstate() {
        None => Ended::Done,
        Some(NOT_PREPARED) if !commit => Ended::Done,
        Some(NOT_PREPARED) => proven(server, branch, limit).await,
        Some(_) => Ended::Again(reply.words()),
    }
}

/// What became of a local transaction that is not prepared any more and was to commit.
async fn proven(server: &mut Server, branch: &Prepared, limit: Duration) -> Ended {
    if branch.xact.is_empty() {
        return Ended::Again(
            "nothing is prepared, and nothing proves that it was committed".into(),
        );
    }
    let ask =
        format!("SELECT pg_catalog.pg_xact_status({}::pg_catalog.xid8)", literal(&branch.xact));
    let reply = match within(limit, server, &[ask]).await {
        Ok(reply) => reply,
        Err(why) => return Ended::Again(why),
    };
    let status = reply.rows.first().and_then(|row| row.first()).cloned().flatten();
    match status.as_deref() {
        Some("committed") => Ended::Done,
        Some("in progress") => Ended::Again("another is ending it".to_owned()),
        Some("aborted") => Ended::Otherwise("it was rolled back by hand".to_owned()),
        _ => Ended::Otherwise(format!("PostgreSQL does not know its end: {}", reply.words())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_that_is_gone_is_asked_for_as_long_as_the_limit_and_no_longer() {
        let limit = Duration::from_millis(20);
        assert_eq!((bound(true, limit), bound(false, limit)), (COMMIT_MAX, limit));
        // An hour is too long for a test; the bound is kept alike whatever it is.
        let (begun, long) = (Instant::now(), 10 * limit);
        let how = How { commit: true, canceled: false, limit, end: begun + long };
        let branch = Prepared { branch: 1, source: "pg-1".to_owned(), xact: String::new() };
        let ended = end_one(&Pool::to_nobody(), None, "01GID", &branch, &how).await;
        let why = ended.expect_err("nobody answers");
        assert!(why.starts_with("pg-1: source s at"), "{why}");
        assert!(begun.elapsed() >= long, "it was given up early");
        let how = How { end: Instant::now(), ..how };
        let none = end_one(&Pool::to_nobody(), None, "01GID", &branch, &how).await;
        assert_eq!(none, Err("pg-1: ".to_owned()), "one past the bound nobody is asked");
    }
}
