//! A source in a move: a connection by which rows are read and written as they are, and what a move leaves there and takes away again.

use std::time::{Duration, Instant};

use holdfast_route::MoveId;
use holdfast_shard_router::config::SourceConfig;
use tokio::time::sleep;
use tokio_postgres::{Client, Row, error::SqlState, types::ToSql};

use super::{
    Fault,
    relation::{Relation, SCHEMA},
};
use crate::source::{self, ALIKE, Failed, within};

/// For one source to let in, or to answer what costs nothing.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// For one part of what costs by the rows.
pub(super) const WORK_MAX: Duration = Duration::from_secs(600);
/// Between two tries to end what somebody else is about to end.
const BUSY: Duration = Duration::from_millis(5);
/// For a lock that others wait behind, and how often it is asked for. Shorter than PostgreSQL's `deadlock_timeout`, so that a circle ends with the
/// move's statement and not with a client's.
const LOCK_MAX_MS: u32 = 200;
const LOCK_TRIES: u32 = 100;
/// Held by one move at a source as long as it is connected.
const LOCK_KEY: i64 = 0x686f_6c64_6d6f_7665;
/// Rows are found by their keys, one by one, and never by reading a table: what a pause takes depends on the rows that move, and on no statistics.
const SETTINGS: &str = "SET enable_hashjoin = off; SET enable_mergejoin = off; SET statement_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET default_transaction_isolation = 'read committed'; SET lock_timeout = 200";
/// What takes the triggers of moves away.
const TRIGGERS: &str = "SELECT pg_catalog.format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass) \
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname = $1 AND NOT t.tgisinternal AND t.tgparentid = 0";

/// One of the two sources of a leg.
pub(super) struct Side {
    pub(super) name: String,
    client: Client,
}

impl Side {
    /// Lets itself in, alone among moves, and looks whether it may do what a move does.
    /// # Errors
    /// HF1029: it may not. HF1030: the source does not answer.
    pub(super) async fn open(config: &SourceConfig) -> Result<Self, Fault> {
        let name = config.name.to_string();
        let (client, _ends_with_it) = source::connect(config, ANSWER_MAX)
            .await
            .map_err(|words| Fault::Source { name: name.clone(), words })?;
        let side = Self { name, client };
        let free = side.one("SELECT pg_catalog.pg_try_advisory_lock($1)", &[&LOCK_KEY]).await?;
        if !free.get::<_, bool>(0) {
            return Err(side.in_the_way("another move is at work there. Wait for it"));
        }
        let prepares = "SELECT pg_catalog.current_setting('max_prepared_transactions') <> '0', pg_catalog.pg_is_in_recovery()";
        let row = side.one(prepares, &[]).await?;
        if row.get(1) {
            return Err(
                side.in_the_way("it is a replica. Give the router the address of the primary")
            );
        }
        if !row.get::<_, bool>(0) {
            return Err(side.in_the_way(
                "max_prepared_transactions is 0, so rows cannot leave one source and arrive at another at once. Set it",
            ));
        }
        let may = "BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK";
        if let Err(failed) = side.batch(may, ANSWER_MAX).await {
            // The failed transaction is still open.
            side.batch("ROLLBACK", ANSWER_MAX).await.map_err(|failed| side.lost(&failed))?;
            let words = format!(
                "this account may not move rows past triggers ({failed}). GRANT SET ON PARAMETER session_replication_role TO it"
            );
            return Err(side.in_the_way(&words));
        }
        Ok(side)
    }

    /// Its tables, as the account finds them; from here on statements name them with their schemas.
    /// # Errors
    /// HF1029: one cannot be moved. HF1030: the source does not answer.
    pub(super) async fn relations(
        &self,
        rules: &holdfast_route::Topology,
        tables: &[String],
    ) -> Result<Vec<Relation>, Fault> {
        let found = super::relation::look(&self.client, rules, tables).await;
        let found = found.map_err(|failed| self.lost(&failed))?;
        let found = found.map_err(|words| self.in_the_way(&words))?;
        self.run(&format!("{ALIKE}; {SETTINGS}")).await?;
        Ok(found)
    }

    /// Takes away what an earlier move has left, and makes a place for this one; with the statements of `make`.
    /// # Errors
    /// HF1029: it may not, or locks are not to be had. HF1030: the source does not answer.
    pub(super) async fn set_up(&self, make: &str) -> Result<(), Fault> {
        self.clean().await?;
        let sql = format!(
            "BEGIN; CREATE SCHEMA {SCHEMA};\n\
             CREATE FUNCTION {SCHEMA}.keep() RETURNS trigger LANGUAGE plpgsql AS $$\n\
             BEGIN RAISE EXCEPTION 'slots of %.% are being moved: DELETE the rows instead, or wait', TG_TABLE_SCHEMA, TG_TABLE_NAME\n\
             USING ERRCODE = 'object_not_in_prerequisite_state'; END $$;\n{make}COMMIT"
        );
        self.locked(&sql).await
    }

    /// Takes away what a move has left.
    /// # Errors
    /// HF1029: locks are not to be had. HF1030: the source does not answer.
    pub(super) async fn clean(&self) -> Result<(), Fault> {
        let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)";
        if !self.one(there, &[&SCHEMA]).await?.get::<_, bool>(0) {
            return Ok(());
        }
        // Triggers first, each by itself: whoever writes has the table and then wants its notes, so who has the notes must not want the table.
        for trigger in self.rows(TRIGGERS, &[&SCHEMA]).await? {
            self.locked(&format!("BEGIN; {}; COMMIT", trigger.get::<_, &str>(0))).await?;
        }
        let sql = format!(
            "BEGIN; SET LOCAL client_min_messages = warning; DROP SCHEMA {SCHEMA} CASCADE; COMMIT"
        );
        self.locked(&sql).await
    }

    /// Runs what needs locks that others wait behind: for a short time, again and again.
    async fn locked(&self, sql: &str) -> Result<(), Fault> {
        for tried in 1..=LOCK_TRIES {
            let Err(failed) = self.batch(sql, WORK_MAX).await else { return Ok(()) };
            self.batch("ROLLBACK", ANSWER_MAX).await.map_err(|failed| self.lost(&failed))?;
            match failed.code() {
                Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE && tried < LOCK_TRIES => {
                    sleep(Duration::from_millis(LOCK_MAX_MS.into())).await;
                }
                Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
                    let words = format!(
                        "a lock of its tables was not to be had in {LOCK_TRIES} times {LOCK_MAX_MS} ms: transactions are open for long there (pg_stat_activity). Try again behind them"
                    );
                    return Err(self.in_the_way(&words));
                }
                Some(_) => return Err(self.in_the_way(&failed.to_string())),
                None => return Err(self.lost(&failed)),
            }
        }
        Ok(())
    }

    /// Waits at most until `end` for those who write to the tables, and keeps nobody from it behind.
    /// # Errors
    /// The same.
    pub(super) async fn barrier(&self, relations: &[Relation], end: Instant) -> Result<(), Failed> {
        let left = end.saturating_duration_since(Instant::now()).as_millis().max(1);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {left}; {}; COMMIT",
            Relation::lock_sql(relations)
        );
        let locked = self.batch(&sql, WORK_MAX).await;
        if locked.is_err() {
            self.batch("ROLLBACK", ANSWER_MAX).await?;
        }
        locked
    }

    /// The prepared transactions of moves, by their names.
    /// # Errors
    /// HF1030: the source does not answer.
    pub(super) async fn prepared(&self) -> Result<Vec<String>, Fault> {
        let sql = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() AND pg_catalog.starts_with(gid, $1)";
        let rows = self
            .query(sql, &[&MoveId::PREPARED], ANSWER_MAX)
            .await
            .map_err(|failed| self.lost(&failed))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Ends a prepared transaction; somebody else may have been faster.
    /// # Errors
    /// HF1030: the source does not answer, or refuses.
    pub(super) async fn end(&self, name: &str, commit: bool) -> Result<(), Fault> {
        let verb = if commit { "COMMIT" } else { "ROLLBACK" };
        // Names are ours: letters, digits, hyphens and a colon.
        let sql = format!("{verb} PREPARED '{name}'");
        let begun = Instant::now();
        loop {
            let Err(failed) = self.batch(&sql, WORK_MAX).await else { return Ok(()) };
            match failed.code() {
                Some(code) if *code == SqlState::UNDEFINED_OBJECT => return Ok(()),
                // A router is at it, and need not come through.
                Some(code)
                    if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
                        && begun.elapsed() < ANSWER_MAX =>
                {
                    sleep(BUSY).await;
                }
                _ => return Err(self.lost(&failed)),
            }
        }
    }

    /// Runs statements.
    /// # Errors
    /// HF1030: the source refuses, or does not answer.
    pub(super) async fn run(&self, sql: &str) -> Result<(), Fault> {
        self.batch(sql, WORK_MAX).await.map_err(|failed| self.lost(&failed))
    }

    /// Asks for one row.
    /// # Errors
    /// HF1030: the source refuses, or does not answer.
    pub(super) async fn one(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Fault> {
        let asked = self.client.query_one(sql, parameters);
        within(WORK_MAX, asked).await.map_err(|failed| self.lost(&failed))
    }

    /// Asks for rows.
    /// # Errors
    /// HF1030: the source refuses, or does not answer.
    pub(super) async fn rows(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Fault> {
        self.query(sql, parameters, WORK_MAX).await.map_err(|failed| self.lost(&failed))
    }

    async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<Vec<Row>, Failed> {
        within(limit, self.client.query(sql, parameters)).await
    }

    async fn batch(&self, sql: &str, limit: Duration) -> Result<(), Failed> {
        within(limit, self.client.batch_execute(sql)).await
    }

    fn in_the_way(&self, words: &str) -> Fault {
        Fault::InTheWay(format!("source {}: {words}", self.name))
    }

    /// What is told of a source that refused, or did not answer.
    pub(super) fn lost(&self, failed: &Failed) -> Fault {
        Fault::Source { name: self.name.clone(), words: failed.to_string() }
    }
}
