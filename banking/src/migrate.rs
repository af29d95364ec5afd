//! Brings the schema `bank` up to this version, once, however many programs start at the same time.

use tokio_postgres::Client;

use crate::BankError;

/// Every migration in order; the number is its place, from 1. An applied one is never edited: a change is a new file.
const MIGRATIONS: &[(&str, &str)] =
    &[("0001_ledger", include_str!("../migrations/0001_ledger.sql"))];

/// Any number that nobody else takes; "bank" and the year.
const LOCK: i64 = 0x6261_6e6b_2026;

const PREPARE: &str = "CREATE SCHEMA IF NOT EXISTS bank;
    CREATE TABLE IF NOT EXISTS bank.migration (
        version     integer PRIMARY KEY,
        name        text NOT NULL,
        digest      text NOT NULL,
        applied_at  timestamptz NOT NULL DEFAULT now()
    )";

/// Applies what is missing, in one local transaction, under an advisory lock: concurrent starts wait for each other.
/// # Errors
/// [`BankError::SchemaNewer`] and [`BankError::SchemaChanged`] when the schema is not one this program may touch; nothing was
/// changed then. [`BankError::Database`] for what PostgreSQL says.
pub async fn migrate(client: &mut Client) -> Result<(), BankError> {
    let local = client.transaction().await?;
    local.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let made = local
        .query_one("SELECT pg_catalog.to_regclass('bank.migration') IS NOT NULL", &[])
        .await?
        .get::<_, bool>(0);
    // Only when it is missing, so that a role without the right to create starts where everything is there.
    if !made {
        local.batch_execute(PREPARE).await?;
    }
    let applied =
        local.query("SELECT version, digest FROM bank.migration ORDER BY version", &[]).await?;
    let known = i32::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    if let Some(found) = applied.last().map(|row| row.get(0)).filter(|found| *found > known) {
        return Err(BankError::SchemaNewer { found, known });
    }
    for (version, (name, sql)) in (1..).zip(MIGRATIONS) {
        let digest: String = local.query_one("SELECT pg_catalog.md5($1)", &[sql]).await?.get(0);
        match applied.iter().find(|row| row.get::<_, i32>(0) == version) {
            Some(row) if row.get::<_, &str>(1) == digest => {}
            Some(_) => return Err(BankError::SchemaChanged { version }),
            None => {
                local.batch_execute(sql).await?;
                local
                    .execute(
                        "INSERT INTO bank.migration (version, name, digest) VALUES ($1, $2, $3)",
                        &[&version, name, &digest],
                    )
                    .await?;
                tracing::info!(version, name, "migration applied");
            }
        }
    }
    Ok(local.commit().await?)
}
