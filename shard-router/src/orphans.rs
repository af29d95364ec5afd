//! What is prepared and nobody finishes: found on every source by its name, ended as the coordinator says, and by no other proof.
//!
//! Any router does this, also for those that died. A name that is young is left to whoever prepared it. For an older one the coordinator is
//! asked behind a fence: from then on it is decided, one way or the other, also if the router that prepared it is only slow.
//!
//! What a move of slots has prepared is ended as the versions of the shard rules say, at once. When none of a decided move is left at either
//! source, statements for its slots are let go.

use std::{cell::RefCell, sync::Arc, time::Duration};

use holdfast_client::Finished;
use holdfast_route::{MoveFate, MoveId, SourceId};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    backend::{Server, connect},
    counts::Counts,
    global_write::{Decider, Decision, PREFIX, Prepared, read_xid},
    health::account,
    session::{Ended, end_prepared, within},
    shared::Shared,
    source::Source,
};

/// Between two looks at a source.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks at a source that statements wait for.
const EVERY_WHILE_SETTLING: Duration = Duration::from_millis(50);
/// Between two lines in the log about what nobody can say the fate of.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Names that one look at a source takes up, the oldest first.
const NAMES_MAX: usize = 200;

/// What is prepared on a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) transactions: Vec<InDoubt>,
    pub(crate) moves: Vec<PreparedMove>,
}

/// What a move of slots has prepared on a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreparedMove {
    pub(crate) id: MoveId,
    /// Its name there, which says which half of the step it is.
    pub(crate) name: String,
    pub(crate) age_ms: u64,
    pub(crate) blocked: Vec<String>,
}

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

/// What is prepared, who waits for it: by its number, and by way of those who wait in line for the same row. Moves first: of them none may be
/// missed.
fn ask() -> String {
    format!(
        "SELECT p.gid, (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint, \
         (SELECT string_agg(DISTINCT w.pid::text, ',') FROM pg_catalog.pg_locks w \
          WHERE NOT w.granted AND w.locktype = 'transactionid' AND w.transactionid = p.transaction) \
         FROM pg_catalog.pg_prepared_xacts p \
         WHERE p.database = current_database() AND (starts_with(p.gid, '{PREFIX}') OR starts_with(p.gid, '{moves}')) \
         ORDER BY starts_with(p.gid, '{moves}') DESC, p.prepared LIMIT {NAMES_MAX}",
        moves = MoveId::PREPARED
    )
}

/// What is prepared on a source now.
/// # Errors
/// Why it cannot be said.
pub(crate) async fn look(
    source: &Source,
    connection: &mut Option<Server>,
) -> Result<Found, String> {
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
    let mut found = Found::default();
    for row in reply.rows {
        let mut row = row.into_iter();
        let (Some(Some(name)), Some(Some(age_ms)), Some(blocked)) =
            (row.next(), row.next(), row.next())
        else {
            return Err("it says what is prepared in a form that is not known".to_owned());
        };
        let age_ms = age_ms.parse().unwrap_or(0);
        let blocked = blocked.unwrap_or_default();
        let blocked = blocked.split(',').filter(|pid| !pid.is_empty()).map(str::to_owned).collect();
        if let Some(id) = MoveId::of_prepared(&name) {
            found.moves.push(PreparedMove { id, name, age_ms, blocked });
        } else if let Some((gid, branch)) = read_xid(&name) {
            found.transactions.push(InDoubt { gid: gid.to_owned(), branch, age_ms, blocked });
        }
    }
    Ok(found)
}

/// Sweeps one source as long as the router runs. Sources without an account of their own cannot be swept, and are not prepared on.
pub(crate) async fn sweep(shared: Arc<Shared>, source: Arc<Source>) {
    let config = shared.config.coordinator.as_ref();
    let decider = config.and_then(|config| Decider::new(config).ok());
    if account(&source).is_none() {
        return let_go_unseen(&shared, &source).await;
    }
    if decider.is_none() && shared.rules.is_none() {
        return;
    }
    let orphan_ms = config.map_or(u64::MAX, |config| {
        u64::try_from(config.orphan_age.as_millis()).unwrap_or(u64::MAX)
    });
    let mut news = shared.rules.as_ref().map(crate::rules::Rules::news);
    let mut connection = None;
    let mut told: Option<Instant> = None;
    loop {
        news.iter_mut().for_each(|news| drop(news.borrow_and_update()));
        let unsettled = unsettled(&shared, &source);
        let moved = || shared.rules.as_ref().is_some_and(crate::rules::Rules::remembers_a_move);
        if decider.is_some() || moved() {
            let limit = shared.limits().commit_timeout;
            let looked = timeout(limit, look(&source, &mut connection)).await;
            if let Ok(Ok(found)) = looked {
                Counts::in_doubt(source.name(), found.transactions.len());
                for prepared in &found.moves {
                    let Some(server) = &mut connection else { break };
                    let told_how = end_move(&shared, &source, server, prepared, limit).await;
                    if !told_how && told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
                        told = Some(Instant::now());
                        let (id, source) = (&prepared.id, source.name());
                        tracing::warn!(%id, source, "prepared by a move, and nobody can say its fate");
                    }
                }
                let is_left = |id: &MoveId| found.moves.iter().any(|prepared| prepared.id == *id);
                for (id, at) in unsettled.iter().filter(|(id, _)| !is_left(id)) {
                    shared.rules.iter().for_each(|rules| rules.ended_at(id, at));
                }
                let old = found.transactions.into_iter().filter(|found| found.age_ms >= orphan_ms);
                for orphan in old {
                    let (Some(server), Some(decider)) = (&mut connection, &decider) else { break };
                    end(decider, &source, server, orphan, limit).await;
                    connection.take_if(|server| server.broken);
                }
                connection.take_if(|server| server.broken);
            } else {
                connection = None;
            }
        }
        let pause = match self::unsettled(&shared, &source).is_empty() {
            true => EVERY,
            false => EVERY_WHILE_SETTLING,
        };
        match &mut news {
            Some(news) => drop(timeout(pause, news.changed()).await),
            None => sleep(pause).await,
        }
    }
}

/// The decided moves of which it is not known yet that what they prepared at this source has ended.
fn unsettled(shared: &Shared, source: &Source) -> Vec<(MoveId, SourceId)> {
    let unsettled = shared.rules.as_ref().map(crate::rules::Rules::unsettled).unwrap_or_default();
    unsettled.into_iter().filter(|(_, at)| at.as_str() == source.name()).collect()
}

/// A source without an account cannot be looked at. The mover goes on from a decided step when it has ended what it prepared, so rules that
/// say no more of it are the word that it is settled.
async fn let_go_unseen(shared: &Shared, source: &Source) {
    let Some(rules) = &shared.rules else { return };
    let mut news = rules.news();
    loop {
        news.borrow_and_update();
        let under_way = rules.in_force().placed.rules.moving().map(|moving| moving.id.clone());
        for (id, at) in unsettled(shared, source) {
            if under_way.as_ref() == Some(&id) {
                let source = source.name();
                tracing::warn!(%id, source, "slots move, and the source has no account to look with");
            } else {
                rules.ended_at(&id, &at);
            }
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}

/// Ends what a move has prepared, if the rules say how; whether they say what becomes of it.
async fn end_move(
    shared: &Shared,
    source: &Source,
    server: &mut Server,
    prepared: &PreparedMove,
    limit: Duration,
) -> bool {
    let id = &prepared.id;
    let verb = match shared.move_fate(id).await {
        MoveFate::Commit => "COMMIT",
        MoveFate::RollBack => "ROLLBACK",
        MoveFate::Leave => return true,
        MoveFate::Unknown => return false,
    };
    let sql = format!("{verb} PREPARED '{}'", prepared.name);
    let source = source.name();
    match within(limit, server, &[sql]).await {
        Ok(reply) if reply.error.is_none() => {
            Counts::move_ended(verb == "COMMIT");
            tracing::info!(%id, source, verb, "what a move has prepared was ended");
            if let (Some(rules), Ok(source)) = (&shared.rules, SourceId::parse(source)) {
                rules.ended_at(id, &source);
            }
        }
        // Somebody else was faster, or it is tried again.
        Ok(reply) => tracing::info!(%id, source, why = reply.words(), "not ended"),
        Err(why) => tracing::info!(%id, source, why, "not ended"),
    }
    true
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
    ) -> (Vec<(String, Found)>, Vec<(String, String)>) {
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
                Ok(here) => found.push((source, here)),
                Err(why) => silent.push((source, why)),
            }
        }
        self.connections.replace(connections);
        (found, silent)
    }
}
