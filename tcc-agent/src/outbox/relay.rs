//! The relay's shell: one session to the database with the lease, rows in, submissions out, rows deleted.
//!
//! Lease, reads and deletes share one session, so that a relay that has lost the lease can neither read nor delete. What it still
//! has on its way to a coordinator does no harm: the next relay submits the same gid.

use std::{sync::Arc, time::Duration};

use holdfast_branch::outbox::{Act, Answer, Limits, MessageId, Outbox};
use holdfast_client::Client;
use holdfast_fault::{Site, reached};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_postgres::error::SqlState;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::resource::{Database, words};

use super::{
    publish::{Routes, publish},
    table,
};

/// Between two looks: at rows nobody was woken for, and at what is unsure or stuck.
const LOOK: Duration = Duration::from_secs(2);
/// Between two attempts to get the lease, or a session.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From shutdown on, for all that is under way: answers of coordinators, and statements that wait for a row which somebody has locked.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What a relay is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayState {
    /// It has no session to the database.
    Connecting,
    /// Another relay holds the lease.
    StandingBy,
    /// It publishes.
    Leading,
}

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// There is no outbox, or this role may not use it.
    #[error(
        "HF4124 there is no outbox here that this user may read and delete from: {0}. Install it with `holdfast outbox install`, as the owner of schema holdfast, and grant USAGE on it and SELECT, UPDATE, DELETE on holdfast.outbox"
    )]
    NotInstalled(String),
}

/// Publishes the outbox of one database.
#[derive(Debug)]
pub struct Relay {
    database: Database,
    client: Client,
    routes: Arc<Routes>,
    limits: Limits,
    state: watch::Sender<RelayState>,
}

impl Relay {
    /// A relay for the outbox in `database`, which submits through `client`. Does nothing before [`Self::run`].
    #[must_use]
    pub fn new(mut database: Database, client: Client, routes: Routes) -> Self {
        let config = database.config_mut();
        config.application_name("holdfast outbox relay").connect_timeout(CONNECT_TIMEOUT);
        let (routes, limits) = (Arc::new(routes), Limits::default());
        Self { database, client, routes, limits, state: watch::Sender::new(RelayState::Connecting) }
    }

    /// What it is doing, now and later.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<RelayState> {
        self.state.subscribe()
    }

    /// Publishes until `shutdown`; then waits at most 5 s for what is under way. A lost session is opened again, for ever.
    /// # Errors
    /// [`RelayError`]: trying again would not help.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RelayError> {
        loop {
            let ended = tokio::select! {
                ended = self.session(&shutdown) => ended,
                () = overdue(&shutdown) => Ok(()),
            };
            self.state.send_replace(RelayState::Connecting);
            metrics::gauge!("holdfast_outbox_leads").set(0.0);
            match ended {
                Ok(()) => return Ok(()),
                Err(error) if is_lasting(&error) => {
                    return Err(RelayError::NotInstalled(words(&error)));
                }
                Err(error) => {
                    tracing::warn!(
                        error = words(&error),
                        "the session to the outbox's database is lost"
                    );
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep(TRY_AGAIN) => {}
            }
        }
    }

    /// One session to the database, to its end. `Ok`: shutdown.
    async fn session(&self, shutdown: &CancellationToken) -> Result<(), tokio_postgres::Error> {
        let wake = Arc::new(Notify::new());
        let connected = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            connected = self.database.connect_listening(Arc::clone(&wake)) => connected,
        };
        let (database, connection) = connected?;
        let _connection = AbortOnDropHandle::new(connection);
        while !table::take_lease(&database).await? {
            if self.state.send_replace(RelayState::StandingBy) != RelayState::StandingBy {
                tracing::info!("another relay publishes this outbox; standing by");
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep(TRY_AGAIN) => {}
            }
        }
        // Before the first read: whatever is committed behind that wakes us.
        database.batch_execute(table::LISTEN).await?;
        table::heads(&database, [].iter()).await?;
        self.state.send_replace(RelayState::Leading);
        metrics::gauge!("holdfast_outbox_leads").set(1.0);
        tracing::info!("publishing this outbox");
        let (outbox, under_way) = (Outbox::new(self.limits), JoinSet::new());
        Lead { relay: self, database: &database, outbox, under_way }.run(shutdown, &wake).await
    }
}

/// Ends when shutdown was asked for so long ago that nothing is waited for any more.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(DRAIN_MAX).await;
}

/// No table, no schema, no right: the same tomorrow.
fn is_lasting(error: &tokio_postgres::Error) -> bool {
    let lasting = [
        &SqlState::UNDEFINED_TABLE,
        &SqlState::INVALID_SCHEMA_NAME,
        &SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    error.code().is_some_and(|code| lasting.contains(&code))
}

/// A relay that holds the lease.
struct Lead<'a> {
    relay: &'a Relay,
    database: &'a tokio_postgres::Client,
    outbox: Outbox,
    under_way: JoinSet<(MessageId, Answer)>,
}

impl Lead<'_> {
    async fn run(
        mut self,
        shutdown: &CancellationToken,
        wake: &Notify,
    ) -> Result<(), tokio_postgres::Error> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(answered) = self.under_way.join_next() => self.hear(answered).await?,
                () = wake.notified() => {}
                _ = look.tick() => self.look().await?,
            }
            self.read().await?;
        }
        while let Some(answered) = self.under_way.join_next().await {
            self.hear(answered).await?;
        }
        Ok(())
    }

    /// Takes up lanes as long as there is room and rows are left.
    async fn read(&mut self) -> Result<(), tokio_postgres::Error> {
        while self.outbox.has_room() {
            let rows = table::heads(self.database, self.outbox.busy()).await?;
            if rows.is_empty() {
                break;
            }
            let acts = self.outbox.rows(rows);
            self.carry_out(acts).await?;
        }
        Ok(())
    }

    /// One answer, and those that have come meanwhile: one delete for all.
    async fn hear(&mut self, first: Answered) -> Result<(), tokio_postgres::Error> {
        let mut acts = Vec::new();
        let mut next = Some(first);
        while let Some(answered) = next {
            let (id, answer) = answered.expect("a submission does not panic");
            let verdict = match &answer {
                Answer::Done => "done",
                Answer::Stuck(_) => "stuck",
                Answer::Unknown => "unknown",
            };
            metrics::counter!("holdfast_outbox_submissions_total", "verdict" => verdict)
                .increment(1);
            if let Answer::Stuck(why) = &answer {
                let is_known =
                    self.outbox.stuck().any(|(stuck, _, known)| stuck == id && known == why);
                if !is_known {
                    tracing::warn!(message = %id, why, "a message holds up its key");
                    table::mark_stuck(self.database, id, why).await?;
                }
            }
            acts.extend(self.outbox.answered(id, answer));
            next = self.under_way.try_join_next();
        }
        self.carry_out(acts).await
    }

    async fn look(&mut self) -> Result<(), tokio_postgres::Error> {
        let acts = self.outbox.look_again();
        self.carry_out(acts).await?;
        let standing = table::standing(self.database).await?;
        #[expect(clippy::cast_precision_loss, reason = "a gauge is no ledger")]
        let set = |gauge: metrics::Gauge, value: u64| gauge.set(value as f64);
        set(metrics::gauge!("holdfast_outbox_pending"), standing.pending);
        set(metrics::gauge!("holdfast_outbox_blocked_keys"), self.outbox.stuck().count() as u64);
        let oldest = standing.oldest_age_ms.unwrap_or_default();
        metrics::gauge!("holdfast_outbox_oldest_age_seconds")
            .set(Duration::from_millis(oldest).as_secs_f64());
        Ok(())
    }

    async fn carry_out(&mut self, acts: Vec<Act>) -> Result<(), tokio_postgres::Error> {
        let (mut submit, mut ended) = (Vec::new(), Vec::new());
        for act in acts {
            match act {
                Act::Submit(row) => submit.push(row.id),
                Act::Delete(id) => ended.push(id),
            }
        }
        if !ended.is_empty() {
            reached(Site::RelayBeforeDelete);
            table::delete(self.database, &ended).await?;
            metrics::counter!("holdfast_outbox_published_total").increment(ended.len() as u64);
            for id in ended {
                self.outbox.gone(id);
            }
        }
        if !submit.is_empty() {
            self.submit(submit).await?;
        }
        Ok(())
    }

    /// Submits the messages that still have a row; people may have deleted the others.
    async fn submit(&mut self, ids: Vec<MessageId>) -> Result<(), tokio_postgres::Error> {
        let messages = table::messages(self.database, &ids).await?;
        for id in ids.iter().filter(|&&id| messages.iter().all(|message| message.id != id)) {
            self.outbox.gone(*id);
        }
        for message in messages {
            reached(Site::RelayBeforeSubmit);
            let (client, routes) = (self.relay.client.clone(), Arc::clone(&self.relay.routes));
            self.under_way.spawn(async move {
                let answer = publish(&client, &routes, &message).await;
                (message.id, answer)
            });
        }
        Ok(())
    }
}

type Answered = Result<(MessageId, Answer), tokio::task::JoinError>;
