//! A small participant for tests: loyalty points on PostgreSQL, with a line for every effect.

#![allow(dead_code, reason = "each test file uses its part")]

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_tcc_agent::{
    Answer, Call, Gid, Limits, LocalTransaction, Op, Participant, PostgresResource, install,
};
use tokio_postgres::{Client, Error};

use crate::postgres::Postgres;

/// An amount for which the participant says that it is working.
pub(crate) const SLOW: i64 = 111_111;
/// An amount that makes the statement fail.
pub(crate) const POISON: i64 = 666_666;
/// An amount for which the connection is thrown out by the server in the middle of the local transaction.
pub(crate) const KILL: i64 = 999_999;
/// An amount for which the participant cannot tell.
pub(crate) const UNCLEAR: i64 = 222_222;
/// An amount at which the participant panics.
pub(crate) const PANIC: i64 = 333_333;
/// An amount whose statement fails, and the participant pretends that it did not.
pub(crate) const SWALLOW: i64 = 444_444;

/// The participant.
pub(crate) struct Points;

/// Tables of the participant: account 1 has 1,000 points.
pub(crate) async fn prepare(client: &Client) {
    install(client).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE points (id int PRIMARY KEY, amount bigint NOT NULL);
             INSERT INTO points VALUES (1, 1000);
             CREATE TABLE effects (n bigserial PRIMARY KEY, gid text, branch int, op text, amount bigint NOT NULL CHECK (amount <> 666666))",
        )
        .await
        .unwrap();
}

/// An executor for [`Points`].
pub(crate) fn resource(server: &Postgres, connections: usize) -> PostgresResource<Points> {
    let limits = Limits {
        connections,
        lock_timeout_ms: 15_000,
        statement_timeout_ms: 20_000,
        ..Limits::default()
    };
    PostgresResource::new(server.config(), Points, &limits)
}

/// A call for `amount` points.
pub(crate) fn call(gid: &str, branch: u32, op: Op, amount: i64) -> Call {
    Call {
        gid: Gid::parse(gid).unwrap(),
        branch,
        op,
        payload: Bytes::from(amount.to_string()),
        deadline_ms: 0,
        headers: Default::default(),
        attempt: 1,
        repeat: false,
        refusal_waits: false,
    }
}

/// What took effect for a branch, in order.
pub(crate) async fn effects(client: &Client, gid: &str, branch: i32) -> Vec<String> {
    let rows = "SELECT op FROM effects WHERE gid = $1 AND branch = $2 ORDER BY n";
    client.query(rows, &[&gid, &branch]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[async_trait]
impl Participant for Points {
    async fn carry_out(
        &self,
        local: LocalTransaction<'_>,
        calls: &[Call],
    ) -> Result<Vec<Answer>, Error> {
        let lock =
            local.prepare_cached("SELECT amount FROM points WHERE id = 1 FOR UPDATE").await?;
        let mut left: i64 = local.query_one(&lock, &[]).await?.get(0);
        let mut answers = Vec::with_capacity(calls.len());
        let mut lines: (Vec<&str>, Vec<i32>, Vec<&str>, Vec<i64>) = Default::default();
        for call in calls {
            let amount: i64 = std::str::from_utf8(&call.payload).unwrap().parse().unwrap();
            if amount == SLOW {
                answers.push(Answer::Working);
                continue;
            }
            if amount == UNCLEAR {
                answers.push(Answer::Unknown { message: "cannot tell".into() });
                continue;
            }
            assert_ne!(amount, PANIC, "a bug in the bank's module");
            if amount == KILL {
                local.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await?;
            }
            if amount == SWALLOW {
                let _swallowed = local.batch_execute("SELECT 1/0").await;
                answers.push(Answer::Done);
                continue;
            }
            if matches!(call.op, Op::Try | Op::Action) && amount != POISON {
                if left < amount {
                    let message = format!("available {left}, needed {amount}\0");
                    answers.push(Answer::Refused { code: "AM04".into(), message });
                    continue;
                }
                left -= amount;
            } else if matches!(call.op, Op::Cancel | Op::Compensate) {
                left += amount;
            }
            lines.0.push(call.gid.as_str());
            lines.1.push(call.branch as i32);
            lines.2.push(call.op.as_str());
            lines.3.push(amount);
            answers.push(Answer::Done);
        }
        if !lines.0.is_empty() {
            let write = "INSERT INTO effects (gid, branch, op, amount) SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[])";
            let write = local.prepare_cached(write).await?;
            local.execute(&write, &[&lines.0, &lines.1, &lines.2, &lines.3]).await?;
            let update = local.prepare_cached("UPDATE points SET amount = $1 WHERE id = 1").await?;
            local.execute(&update, &[&left]).await?;
        }
        Ok(answers)
    }

    fn acts_locally(&self) -> bool {
        true
    }
}
