//! Is a data source fit to hold branches: durable, writable, with the barrier, without leftovers. Asks, and changes nothing.

use std::time::Duration;

use holdfast_tcc_agent::{Database, words};
use tokio::time::timeout;
use tokio_postgres::{Client, Config};

use super::finding::{Finding, State, state};
use crate::{config::masked, database::SslArgs};

/// For connecting and for each question.
const PATIENCE: Duration = Duration::from_secs(5);
/// The oldest version that the barrier and the bank are tested on.
const VERSION_LEAST: i32 = 130_000;

/// One question: a check's name, SQL that answers with one text and whether it is sound, and what else it then is.
struct Question {
    check: &'static str,
    sql: &'static str,
    otherwise: State,
    remedy: &'static str,
}

/// Every question is one row of two columns: `found` text, `sound` boolean.
const QUESTIONS: &[Question] = &[
    Question {
        check: "source.durable",
        sql: "SELECT format('fsync %s, full_page_writes %s, synchronous_commit %s', current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')), \
              current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on' AND current_setting('synchronous_commit') <> 'off'",
        otherwise: State::Failed,
        remedy: "Set fsync = on, full_page_writes = on and synchronous_commit = on: an answer 'done' must outlive a crash.",
    },
    Question {
        check: "source.writable",
        sql: "SELECT CASE WHEN pg_is_in_recovery() THEN 'a replica' WHEN current_setting('transaction_read_only') = 'on' THEN 'read-only' ELSE 'a primary' END, \
              NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'",
        otherwise: State::Failed,
        remedy: "Name the primary, or promote this one: branches are written here.",
    },
    Question {
        check: "source.prepared_transactions",
        sql: "SELECT format('max_prepared_transactions = %s', current_setting('max_prepared_transactions')), current_setting('max_prepared_transactions')::int >= 10",
        otherwise: State::Warning,
        remedy: "Set max_prepared_transactions to max_connections (and restart): writes across shards through the router prepare here.",
    },
    Question {
        check: "source.leftovers",
        sql: "SELECT format('%s prepared for more than a minute', count(*)), count(*) = 0 FROM pg_prepared_xacts WHERE prepared < now() - interval '1 minute' AND database = current_database()",
        otherwise: State::Failed,
        remedy: "They hold locks and stop vacuum. SELECT * FROM pg_prepared_xacts; never roll one back by hand without asking for its gid first.",
    },
    Question {
        check: "source.connections",
        sql: "SELECT format('%s of %s connections taken', count(*), current_setting('max_connections')), count(*) < current_setting('max_connections')::int * 0.8 FROM pg_stat_activity WHERE backend_type = 'client backend'",
        otherwise: State::Warning,
        remedy: "Raise max_connections or lower the pools: a service without a connection answers 'unknown'.",
    },
    Question {
        check: "source.idle_in_transaction",
        sql: "SELECT format('%s idle in a transaction for more than five minutes', count(*)), count(*) = 0 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND state_change < now() - interval '5 minutes'",
        otherwise: State::Warning,
        remedy: "Set idle_in_transaction_session_timeout; they may hold the locks that branches wait for.",
    },
    Question {
        check: "source.transaction_ids",
        sql: "SELECT format('oldest transaction id is %s old', age(datfrozenxid)), age(datfrozenxid) < 1000000000 FROM pg_database WHERE datname = current_database()",
        otherwise: State::Failed,
        remedy: "Let vacuum run (VACUUM FREEZE): at 2,147 million PostgreSQL stops to write.",
    },
    Question {
        check: "source.encoding",
        sql: "SELECT format('encoding %s', current_setting('server_encoding')), current_setting('server_encoding') = 'UTF8'",
        otherwise: State::Failed,
        remedy: "Make the database with ENCODING 'UTF8'.",
    },
    Question {
        check: "source.barrier",
        sql: "SELECT CASE WHEN to_regprocedure('holdfast.enter(text, integer, text)') IS NULL THEN 'not installed' ELSE 'installed' END, to_regprocedure('holdfast.enter(text, integer, text)') IS NOT NULL",
        otherwise: State::Warning,
        remedy: "holdfast barrier install: without it a repeated call takes effect twice. (A data source without a participant needs none.)",
    },
    Question {
        check: "source.moves",
        // A move at work holds a lock: `rules_move/side.rs`.
        sql: "SELECT CASE WHEN m.here IS NULL THEN 'nothing of a move of slots' WHEN m.works THEN 'a move of slots is at work' ELSE 'left by a move of slots that has died' END, m.here IS NULL OR m.works \
              FROM (SELECT to_regnamespace('holdfast_move') AS here, EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 1752132708 AND objid = 1836021349 \
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS works) AS m",
        otherwise: State::Warning,
        remedy: "Run holdfast rules move again: its triggers note every write to the tables, for nobody. Or take it away (holdfast explain HF1030).",
    },
    Question {
        check: "source.clock",
        sql: "SELECT format('says %s', clock_timestamp()), abs(extract(epoch FROM clock_timestamp()) - $1::float8) < 2",
        otherwise: State::Warning,
        remedy: "Run an NTP service on both machines: timestamps of journals would not agree with decisions.",
    },
];

/// Asks the data source at `database`.
pub(super) async fn check(database: &str, ssl: &SslArgs) -> Vec<Finding> {
    let config: Config = match database.parse() {
        Ok(config) => config,
        Err(_) => {
            // The text may hold a password, so it is not repeated.
            let cause = "the connection string cannot be read";
            let remedy = "Write it as 'host=127.0.0.1 port=5432 user=bank dbname=bank' or as a postgresql:// URL.";
            return vec![Finding::new("source.answers", "", State::Failed, cause, remedy)];
        }
    };
    let subject = masked(&config);
    let database = match ssl.reach(config) {
        Ok(database) => database,
        Err(mistake) => {
            let remedy = "Say --sslmode and --sslrootcert as the server wants them.";
            let cause = mistake.to_string();
            return vec![Finding::new("source.answers", subject, State::Failed, cause, remedy)];
        }
    };
    let client = match connect(&database).await {
        Ok(client) => client,
        Err(cause) => {
            let remedy = "Start PostgreSQL, or correct address, user and password (--database).";
            return vec![Finding::new("source.answers", subject, State::Failed, cause, remedy)];
        }
    };
    let mut found = vec![version(&client, &subject).await];
    for question in QUESTIONS {
        found.push(ask(&client, &subject, question).await);
    }
    found
}

async fn connect(database: &Database) -> Result<Client, String> {
    // The library's errors do not repeat the password.
    let connected = timeout(PATIENCE, database.connect()).await;
    let (client, _ends_by_itself) = connected
        .map_err(|_| format!("no connection within {} s", PATIENCE.as_secs()))?
        .map_err(|error| words(&error))?;
    Ok(client)
}

async fn version(client: &Client, subject: &str) -> Finding {
    let asked = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await;
    match asked.and_then(|row| row.try_get::<_, i32>(0)) {
        Ok(number) => {
            let remedy = "Upgrade: versions below 13 are not tested.";
            let found = format!("PostgreSQL {}.{}", number / 10_000, number % 10_000);
            let state = state(number >= VERSION_LEAST, State::Failed);
            Finding::new("source.answers", subject, state, found, remedy)
        }
        Err(error) => unasked("source.answers", subject, &words(&error)),
    }
}

async fn ask(client: &Client, subject: &str, question: &Question) -> Finding {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
        if question.sql.contains("$1") { &[&now] } else { &[] };
    let asked = timeout(PATIENCE, client.query_one(question.sql, given)).await;
    let Ok(asked) = asked else {
        return unasked(question.check, subject, "no answer in time");
    };
    match asked.and_then(|row| Ok((row.try_get::<_, String>(0)?, row.try_get::<_, bool>(1)?))) {
        Ok((found, sound)) => {
            let state = state(sound, question.otherwise);
            Finding::new(question.check, subject, state, found, question.remedy)
        }
        Err(error) => unasked(question.check, subject, &words(&error)),
    }
}

fn unasked(check: &'static str, subject: &str, cause: &str) -> Finding {
    let remedy = "Give the user of --database the right to read the statistics (pg_monitor).";
    Finding::new(check, subject, State::Failed, cause, remedy)
}

#[cfg(test)]
mod tests {
    use super::{super::finding::assert_told, *};
    use crate::demo::{
        ports,
        postgres::{Installation, new_password},
        scratch::{POSTGRES, Scratch},
    };

    /// Stands before PostgreSQL's own views and functions, and says of each the worst.
    const WORST: &str = "CREATE SCHEMA worst;
        CREATE FUNCTION worst.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT CASE $1
            WHEN 'server_version_num' THEN '120022' WHEN 'max_prepared_transactions' THEN '9' WHEN 'max_connections' THEN '1'
            WHEN 'server_encoding' THEN 'SQL_ASCII' WHEN 'transaction_read_only' THEN 'on' ELSE 'off' END $$;
        CREATE FUNCTION worst.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
            $$ SELECT pg_catalog.clock_timestamp() - interval '3 seconds' $$;
        CREATE VIEW worst.pg_prepared_xacts AS SELECT now() - interval '61 seconds' AS prepared, current_database() AS database;
        CREATE VIEW worst.pg_stat_activity AS SELECT 'client backend' AS backend_type, 'idle in transaction' AS state,
            now() - interval '301 seconds' AS state_change;
        CREATE VIEW worst.pg_database AS SELECT current_database() AS datname, '2'::xid AS datfrozenxid;";

    fn not_well(found: &[Finding]) -> Vec<&'static str> {
        found.iter().filter(|one| one.state != State::Ok).map(|one| one.check).collect()
    }

    #[tokio::test]
    async fn every_question_is_answered_well_by_a_sound_server_and_told_where_it_is_not() {
        let ssl = SslArgs::default();
        let played = Scratch::during(false, async |folder| {
            let data = folder.join(POSTGRES);
            std::fs::create_dir(&data)?;
            let template = Installation::find()?.make_template(&data, &new_password()).await?;
            let mut server = template.start("pg-1", ports::free(1)?[0], folder).await?;
            let address = server.connection_string();
            let sound = check(&address, &ssl).await;
            assert_eq!(not_well(&sound), ["source.barrier"], "nobody installed it: {sound:#?}");
            server.connect(crate::demo::postgres::DATABASE).await?.batch_execute(WORST).await?;
            let worst = format!("{address} options='-c search_path=worst,pg_catalog'");
            let worst = check(&worst, &ssl).await;
            assert_eq!(worst.len(), 1 + QUESTIONS.len());
            worst.iter().for_each(assert_told);
            server.stop().await?;
            let gone = check(&address, &ssl).await;
            assert_eq!(not_well(&gone), ["source.answers"]);
            gone.iter().for_each(assert_told);
            Ok(())
        });
        played.await.expect("PostgreSQL is installed (make deps)");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_without_repeating_it() {
        let ssl = SslArgs { sslmode: Some("verify-full".to_owned()), ..SslArgs::default() };
        for wrong in ["password=sesame port", "host=10.0.0.5 user=bank password=sesame"] {
            let found = check(wrong, &ssl).await;
            assert_eq!(not_well(&found), ["source.answers"], "{wrong}");
            found.iter().for_each(assert_told);
            assert!(!format!("{found:?}").contains("sesame"), "{found:?}");
        }
    }
}
