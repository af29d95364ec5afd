//! The barrier's rows in PostgreSQL: claimed, read and settled for a whole batch at a time, within the local transaction.

use std::{collections::HashMap, task::Poll};

use deadpool_postgres::ClientWrapper;
use futures::{future, poll};
use holdfast_branch::{Op, Outcome, Record, Row, Settlement, claims};
use tokio_postgres::{Client, Error, Statement};

use crate::participant::{Call, LastStatement};

/// The plain SQL that installs the barrier, for `psql` and for migration tools.
pub const BARRIER_SQL: &str = include_str!("../sql/barrier.sql");

/// What the table's comment says once this version is installed.
const VERSION: &str = "holdfast barrier 2";

/// The longest code of a refusal that is kept, in characters.
pub(crate) const CODE_CHARACTERS_MAX: usize = 64;
/// The longest message of a refusal that is kept, in characters.
pub(crate) const MESSAGE_CHARACTERS_MAX: usize = 1024;

// All rows are claimed in one order, so that two batches never wait for each other. This fails where one of them is there already;
// PostgreSQL takes a third more to claim those that may be.
const CLAIM_NEW: &str = "INSERT INTO holdfast.barrier (gid, branch, op, by_op) \
     SELECT c.gid, c.branch, c.op, c.op FROM unnest($1::text[], $2::int[], $3::text[]) AS c (gid, branch, op) \
     ORDER BY c.gid COLLATE \"C\", c.branch, c.op COLLATE \"C\"";

// An update that never happens locks the rows that are there: an undo waits for the end of a call that is carried out again
// because it was working, or refused, before.
const CLAIM: &str = "INSERT INTO holdfast.barrier AS b (gid, branch, op, by_op) \
     SELECT c.gid, c.branch, c.op, c.by_op \
     FROM unnest($1::text[], $2::int[], $3::text[], $4::text[]) AS c (gid, branch, op, by_op) \
     ORDER BY c.gid COLLATE \"C\", c.branch, c.op COLLATE \"C\" \
     ON CONFLICT (gid, branch, op) DO UPDATE SET at = b.at WHERE false RETURNING b.gid, b.branch, b.op";

// The rows of each branch but that of one operation. OFFSET 0 keeps the planner at one index look-up a branch, however small it believed
// the table to be when it planned.
const READ: &str = "SELECT b.gid, b.branch, b.op, b.by_op, b.answer, b.code, b.message \
     FROM unnest($1::text[], $2::int[], $3::text[]) AS c (gid, branch, op) \
     CROSS JOIN LATERAL (SELECT * FROM holdfast.barrier AS r \
                         WHERE r.gid = c.gid AND r.branch = c.branch AND r.op <> c.op OFFSET 0) AS b";

const WRITE: &str = "UPDATE holdfast.barrier AS b \
     SET answer = c.answer, code = c.code, message = c.message, at = now() \
     FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[]) \
          AS c (gid, branch, op, answer, code, message) \
     WHERE b.gid = c.gid AND b.branch = c.branch AND b.op = c.op";

const WITHDRAW: &str = "DELETE FROM holdfast.barrier AS b \
     USING unnest($1::text[], $2::int[], $3::text[]) AS c (gid, branch, op) \
     WHERE b.gid = c.gid AND b.branch = c.branch AND b.op = c.op";

// The empty SELECT fails where the transaction has failed before; a bare COMMIT would then roll back and report success.
const COMMIT: &str = "SELECT; COMMIT";

/// Installs the schema `holdfast` with the barrier's table and functions, or brings them up to this version. Does nothing, and
/// needs no rights, where this version is installed. Several may do it at once. Not within a transaction.
/// # Errors
/// What PostgreSQL says; most often that the role may not create a schema. Nothing is installed then.
pub async fn install(client: &Client) -> Result<(), Error> {
    install_version(client, "barrier", VERSION, BARRIER_SQL).await
}

/// Runs `sql` unless the comment of table `holdfast.<table>` says that this `version` of it is installed.
pub(crate) async fn install_version(
    client: &Client,
    table: &str,
    version: &str,
    sql: &str,
) -> Result<(), Error> {
    let installed = client
        .query_opt(
            "SELECT 1 FROM pg_catalog.pg_class AS c \
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'holdfast' AND c.relname = $2 \
               AND pg_catalog.obj_description(c.oid, 'pg_class') = $1",
            &[&version, &table],
        )
        .await?;
    if installed.is_some() {
        return Ok(());
    }
    let outcome = client.batch_execute(sql).await;
    if outcome.is_err() {
        // The file opened a transaction, which the error has left open.
        client.batch_execute("ROLLBACK").await?;
    }
    outcome
}

/// The statements of the first round trip, prepared on one connection.
pub(crate) struct Statements {
    claim_new: Statement,
    claim: Statement,
    read: Statement,
}

/// Prepares what every batch needs; once per connection.
pub(crate) async fn prepare(client: &ClientWrapper) -> Result<Statements, Error> {
    let (claim_new, claim, read) = future::try_join3(
        client.prepare_cached(CLAIM_NEW),
        client.prepare_cached(CLAIM),
        client.prepare_cached(READ),
    )
    .await?;
    Ok(Statements { claim_new, claim, read })
}

/// What the barrier knows of one call.
#[derive(Default)]
pub(crate) struct Found {
    /// The rows that were there before.
    pub(crate) record: Record,
    /// The rows that this call has written.
    pub(crate) fresh: Vec<Op>,
}

/// Whether this call, in all likelihood, has no row yet: an undo mostly finds the row of what it undoes, a repeat its own.
pub(crate) fn is_new(call: &Call) -> bool {
    !call.repeat && claims(call.op) == [call.op]
}

/// As [`enter`], for calls that [are all new](is_new), and cheaper. Where one is not, this fails with a unique violation and the same
/// calls are to enter by [`enter`].
pub(crate) async fn enter_new(
    client: &ClientWrapper,
    statements: &Statements,
    begin: &str,
    calls: &[Call],
) -> Result<Vec<Found>, Error> {
    let gids: Vec<&str> = calls.iter().map(|call| call.gid.as_str()).collect();
    let branches: Vec<i32> = calls.iter().map(branch_number).collect();
    let ops: Vec<&str> = calls.iter().map(|call| call.op.as_str()).collect();
    // Polled in this order, they are sent in this order, without waiting for each other's answers.
    let (begun, claimed, read) = future::join3(
        client.batch_execute(begin),
        client.execute(&statements.claim_new, &[&gids, &branches, &ops]),
        client.query(&statements.read, &[&gids, &branches, &ops]),
    )
    .await;
    begun?;
    let (claimed, read) = (claimed?, read?);
    assert_eq!(claimed, calls.len() as u64, "a row that is not written is an error");
    let mut found: Vec<Found> = calls
        .iter()
        .map(|call| Found { record: Record::default(), fresh: vec![call.op] })
        .collect();
    let place = places(calls);
    for row in &read {
        found[place[&(row.try_get(0)?, row.try_get(1)?)]].record.put(row_of(row)?);
    }
    Ok(found)
}

/// Opens the local transaction with the statement `begin`, claims the rows of every call, and reads what was there before: one
/// round trip. Waits for local transactions that have claimed the same rows. No (gid, branch) may occur twice in `calls`.
pub(crate) async fn enter(
    client: &ClientWrapper,
    statements: &Statements,
    begin: &str,
    calls: &[Call],
) -> Result<Vec<Found>, Error> {
    let claimed = calls.iter().flat_map(|call| {
        claims(call.op)
            .iter()
            .map(move |op| (call.gid.as_str(), branch_number(call), op.as_str(), call.op.as_str()))
    });
    let rows: Vec<(&str, i32, &str, &str)> = claimed.collect();
    let gids: Vec<&str> = rows.iter().map(|row| row.0).collect();
    let branches: Vec<i32> = rows.iter().map(|row| row.1).collect();
    let ops: Vec<&str> = rows.iter().map(|row| row.2).collect();
    let by_ops: Vec<&str> = rows.iter().map(|row| row.3).collect();
    let call_gids: Vec<&str> = calls.iter().map(|call| call.gid.as_str()).collect();
    let call_branches: Vec<i32> = calls.iter().map(branch_number).collect();
    // Its own row may be there as well, so none is left out.
    let none_left_out = vec![""; calls.len()];

    let (begun, claimed, read) = future::join3(
        client.batch_execute(begin),
        client.query(&statements.claim, &[&gids, &branches, &ops, &by_ops]),
        client.query(&statements.read, &[&call_gids, &call_branches, &none_left_out]),
    )
    .await;
    begun?;
    let (claimed, read) = (claimed?, read?);

    let mut found: Vec<Found> = calls.iter().map(|_| Found::default()).collect();
    let place = places(calls);
    for row in &claimed {
        let op = operation(row.try_get(2)?);
        found[place[&(row.try_get(0)?, row.try_get(1)?)]].fresh.push(op);
    }
    for row in &read {
        let Found { record, fresh } = &mut found[place[&(row.try_get(0)?, row.try_get(1)?)]];
        let row = row_of(row)?;
        if !fresh.contains(&row.op) {
            record.put(row);
        }
    }
    Ok(found)
}

/// Where among the calls each branch is.
fn places(calls: &[Call]) -> HashMap<(&str, i32), usize> {
    let branches = calls.iter().map(|call| (call.gid.as_str(), branch_number(call)));
    let places: HashMap<_, _> = branches.zip(0..).collect();
    assert_eq!(places.len(), calls.len(), "a branch occurs once in a batch");
    places
}

/// The row, from gid, branch, `op`, `by_op`, answer, code, message.
fn row_of(row: &tokio_postgres::Row) -> Result<Row, Error> {
    let outcome = match row.try_get::<_, &str>(4)? {
        "done" => Outcome::Done,
        "working" => Outcome::Working,
        _ => Outcome::Refused {
            code: row.try_get::<_, Option<String>>(5)?.unwrap_or_default(),
            message: row.try_get::<_, Option<String>>(6)?.unwrap_or_default(),
        },
    };
    Ok(Row { op: operation(row.try_get(2)?), by: operation(row.try_get(3)?), outcome })
}

/// Executes the participant's `last` statements, writes what became of every call, and commits: one round trip. Every error but a lost
/// connection means: nothing was committed.
pub(crate) async fn leave(
    client: &ClientWrapper,
    calls: &[Call],
    found: &[Found],
    settlements: &[Settlement],
    last: Vec<LastStatement>,
) -> Result<(), Error> {
    let last = last.into_iter().map(|LastStatement { statement, parameters }| async move {
        client.execute_raw(&statement, parameters).await
    });
    let mut last = future::try_join_all(last);
    // The first poll sends them. What cannot be sent must not let the commit go without it.
    let sent = poll!(&mut last);
    let left = settle(client, calls, found, settlements);
    if let Poll::Ready(told) = sent {
        told?;
        return left.await;
    }
    // A transaction in which one of them failed is not committed; the first failure is the cause of all.
    let (last, left) = future::join(last, left).await;
    last?;
    left
}

/// Writes what became of every call and commits.
async fn settle(
    client: &ClientWrapper,
    calls: &[Call],
    found: &[Found],
    settlements: &[Settlement],
) -> Result<(), Error> {
    let mut written: Vec<(&str, i32, &str, &Outcome)> = Vec::new();
    let mut withdrawn: Vec<(&str, i32, &str)> = Vec::new();
    for ((call, found), settlement) in calls.iter().zip(found).zip(settlements) {
        let (gid, branch) = (call.gid.as_str(), branch_number(call));
        match settlement {
            Settlement::Keep => {}
            Settlement::Write(outcome) => written.push((gid, branch, call.op.as_str(), outcome)),
            Settlement::Withdraw => {
                withdrawn.extend(found.fresh.iter().map(|op| (gid, branch, op.as_str())));
            }
        }
    }
    if written.is_empty() && withdrawn.is_empty() {
        return client.batch_execute(COMMIT).await;
    }
    let (write, withdraw) =
        future::try_join(client.prepare_cached(WRITE), client.prepare_cached(WITHDRAW)).await?;

    let gids: Vec<&str> = written.iter().map(|row| row.0).collect();
    let branches: Vec<i32> = written.iter().map(|row| row.1).collect();
    let ops: Vec<&str> = written.iter().map(|row| row.2).collect();
    let answers: Vec<&str> = written.iter().map(|row| row.3.as_str()).collect();
    let refusals: (Vec<Option<String>>, Vec<Option<String>>) = written
        .iter()
        .map(|row| match row.3 {
            Outcome::Refused { code, message } => {
                (Some(kept(code, CODE_CHARACTERS_MAX)), Some(kept(message, MESSAGE_CHARACTERS_MAX)))
            }
            Outcome::Done | Outcome::Working => (None, None),
        })
        .unzip();
    let gone_gids: Vec<&str> = withdrawn.iter().map(|row| row.0).collect();
    let gone_branches: Vec<i32> = withdrawn.iter().map(|row| row.1).collect();
    let gone_ops: Vec<&str> = withdrawn.iter().map(|row| row.2).collect();

    let (written, withdrawn, committed) = future::join3(
        async {
            if gids.is_empty() {
                return Ok(0);
            }
            let answers = &answers;
            client
                .execute(&write, &[&gids, &branches, &ops, answers, &refusals.0, &refusals.1])
                .await
        },
        async {
            if gone_gids.is_empty() {
                return Ok(0);
            }
            client.execute(&withdraw, &[&gone_gids, &gone_branches, &gone_ops]).await
        },
        client.batch_execute(COMMIT),
    )
    .await;
    written?;
    withdrawn?;
    committed
}

/// The text as a row keeps it: cut to its limit, and without the one character that PostgreSQL cannot store.
pub(crate) fn kept(text: &str, characters_max: usize) -> String {
    text.chars().filter(|&c| c != '\0').take(characters_max).collect()
}

fn branch_number(call: &Call) -> i32 {
    i32::try_from(call.branch).expect("the door has checked that a branch fits")
}

fn operation(name: &str) -> Op {
    Op::parse(name).expect("the table's CHECK allows known operations only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_refusal_are_kept_at_their_limit_and_cut_one_past_it() {
        for most in [CODE_CHARACTERS_MAX, MESSAGE_CHARACTERS_MAX] {
            let whole = "\u{fc}".repeat(most);
            assert_eq!(kept(&whole, most), whole);
            assert_eq!(kept(&format!("{whole}x"), most), whole);
            assert_eq!(
                kept(&format!("\0{whole}"), most),
                whole,
                "what no row can hold counts for nothing"
            );
        }
    }
}
