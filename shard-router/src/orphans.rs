//! What is prepared and nobody finishes: found on every source by its name, ended as the coordinator says, and by no other proof.
//!
//! Any router does this, also for those that died. A name that is young is left to whoever prepared it. For an older one the coordinator is
//! asked behind a fence: from then on it is decided, one way or the other, also if the router that prepared it is only slow.

use std::{cell::RefCell, sync::Arc, time::Duration};

use holdfast_client::Finished;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    backend::{Server, connect},
    counts::Counts,
    global_write::{Decider, Decision, PREFIX, Prepared, read_xid},
    health::account,
    session::{Ended, end_prepared},
    shared::Shared,
    source::Source,
};

/// Between two looks at a source.
const EVERY: Duration = Duration::from_secs(1);
/// Names that one look at a source takes up, the oldest first.
const NAMES_MAX: usize = 200;

/// Something prepared on a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InDoubt {
    pub(crate) gid: String,
    pub(crate) branch: u32,
    /// ms since it was prepared, by the source's clock.
    pub(crate) age_ms: u64,
    /// Process ids of sessions that wait for it.
    pub(crate) blocked: Vec<String>,
}

/// What is prepared, who waits for it: by its number, and by way of those who wait in line for the same row.
fn ask() -> String {
    format!(
        "SELECT p.gid, (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint, \
         (SELECT string_agg(DISTINCT w.pid::text, ',') FROM pg_catalog.pg_locks w \
          WHERE NOT w.granted AND w.locktype = 'transactionid' AND w.transactionid = p.transaction) \
         FROM pg_catalog.pg_prepared_xacts p \
         WHERE p.database = current_database() AND starts_with(p.gid, '{PREFIX}') \
         ORDER BY p.prepared LIMIT {NAMES_MAX}"
    )
}

/// What is prepared on a source now.
/// # Errors
/// Why it cannot be said.
pub(crate) async fn look(
    source: &Source,
    connection: &mut Option<Server>,
) -> Result<Vec<InDoubt>, String> {
    connection.take_if(|server| !source.is_primary(&server.endpoint));
    let server = match connection {
        Some(server) => server,
        None => {
            let account = account(source).ok_or("the source has no account of its own")?;
            let primary = source.primary_index().and_then(|index| source.endpoint(index));
            let endpoint = primary.ok_or("its primary is not known")?;
            let server = connect(endpoint, &account).await.map_err(|why| why.to_string())?;
            connection.insert(server)
        }
    };
    let reply = server.run(&[ask()]).await.map_err(|error| error.to_string())?;
    if reply.error.is_some() {
        return Err(reply.words());
    }
    let found = reply.rows.into_iter().filter_map(|row| {
        let mut row = row.into_iter();
        let (name, age_ms) = (row.next()??, row.next()??);
        let (gid, branch) = read_xid(&name)?;
        let blocked = row.next()?.unwrap_or_default();
        let blocked = blocked.split(',').filter(|pid| !pid.is_empty()).map(str::to_owned);
        Some(InDoubt {
            gid: gid.to_owned(),
            branch,
            age_ms: age_ms.parse().unwrap_or(0),
            blocked: blocked.collect(),
        })
    });
    Ok(found.collect())
}

/// Sweeps one source as long as the router runs. Sources without an account of their own cannot be swept, and are not prepared on.
pub(crate) async fn sweep(shared: Arc<Shared>, source: Arc<Source>) {
    let Some(config) = &shared.config.coordinator else { return };
    let Ok(decider) = Decider::new(config) else { return };
    if account(&source).is_none() {
        return;
    }
    let orphan_ms = u64::try_from(config.orphan_age.as_millis()).unwrap_or(u64::MAX);
    let mut connection = None;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let limit = shared.limits().commit_timeout;
        let Ok(Ok(found)) = timeout(limit, look(&source, &mut connection)).await else {
            connection = None;
            continue;
        };
        Counts::in_doubt(source.name(), found.len());
        for orphan in found.into_iter().filter(|found| found.age_ms >= orphan_ms) {
            let Some(server) = &mut connection else { break };
            end(&decider, &source, server, orphan, limit).await;
            if server.broken {
                connection = None;
            }
        }
    }
}

/// Ends one as the coordinator says; leaves it where the coordinator says nothing.
async fn end(
    decider: &Decider,
    source: &Source,
    server: &mut Server,
    orphan: InDoubt,
    limit: Duration,
) {
    let InDoubt { gid, branch, age_ms, .. } = orphan;
    let reason = format!("prepared at {} for {age_ms} ms, and nobody ended it", source.name());
    let commit = match decider.fence(&gid, &reason).await {
        Decision::Commit => true,
        Decision::RollBack(_) | Decision::Outdated => false,
        Decision::Unknown(why) => {
            tracing::warn!(gid, source = source.name(), age_ms, why, "in doubt, and left so");
            return;
        }
    };
    let prepared = Prepared { branch, source: source.name().to_owned(), xact: String::new() };
    match end_prepared(server, &gid, &prepared, commit, limit).await {
        Ended::Done => {
            Counts::swept(commit);
            let verb = if commit { "committed" } else { "rolled back" };
            tracing::info!(gid, source = source.name(), age_ms, verb, "an orphan was ended");
            if commit {
                decider.finish(&gid, &[branch], Finished::Committed).await;
            }
        }
        // Somebody else was faster, or it is to be asked again.
        Ended::Again(why) => tracing::info!(gid, source = source.name(), why, "not ended"),
        Ended::Otherwise(why) => tracing::error!(gid, source = source.name(), why, "not ended"),
    }
}

/// A look at every source on a client's behalf: one connection each, and one look at a time.
#[derive(Default)]
pub(crate) struct View {
    connections: RefCell<Vec<Option<Server>>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl View {
    /// What is prepared on every source, each with the name of the source; and the sources that could not be asked, and why.
    pub(crate) async fn look(
        &self,
        shared: &Shared,
    ) -> (Vec<(String, InDoubt)>, Vec<(String, String)>) {
        let kept = self.connections.take();
        let kept = kept.into_iter().chain(std::iter::repeat_with(|| None));
        let limit = shared.limits().connect_timeout;
        let looks = shared.sources.iter().zip(kept).map(async |(source, mut connection)| {
            let looked = timeout(limit, look(source, &mut connection)).await;
            let looked = looked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            (source.name().to_owned(), looked, connection)
        });
        let (mut found, mut silent, mut connections) = (Vec::new(), Vec::new(), Vec::new());
        for (source, looked, connection) in futures::future::join_all(looks).await {
            connections.push(connection.filter(|server| looked.is_ok() && !server.broken));
            match looked {
                Ok(here) => found.extend(here.into_iter().map(|one| (source.clone(), one))),
                Err(why) => silent.push((source, why)),
            }
        }
        self.connections.replace(connections);
        (found, silent)
    }
}
