//! Every row story of the barrier on a real PostgreSQL, with real local transactions side by side.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod points;
mod postgres;

use std::time::Duration;

use holdfast_branch::{Op, Outcome, Record, Row, Verdict, decide, decide_anew};
use holdfast_tcc_agent::{Answer, BARRIER_SQL, Call, install};
use points::{call, effects, resource};
use postgres::{Postgres, until};

/// Whether some backend waits for a lock.
async fn somebody_waits(watcher: &tokio_postgres::Client) -> bool {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stories_hold_on_a_real_database() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 4);

    // Confirmed, every call twice.
    for op in [Op::Try, Op::Try, Op::Confirm, Op::Confirm] {
        assert_eq!(resource.call(call("g1", 1, op, 10)).await, Answer::Done, "{op}");
    }
    assert_eq!(effects(&watcher, "g1", 1).await, ["try", "confirm"]);

    // Cancelled; a copy of the try behind it is late.
    for op in [Op::Try, Op::Cancel, Op::Cancel] {
        assert_eq!(resource.call(call("g2", 1, op, 10)).await, Answer::Done, "{op}");
    }
    let late = resource.call(call("g2", 1, Op::Try, 10)).await;
    assert!(matches!(&late, Answer::Refused { code, .. } if code == "HF4101"), "{late:?}");
    assert_eq!(effects(&watcher, "g2", 1).await, ["try", "cancel"]);

    // The cancel overtakes the try.
    assert_eq!(resource.call(call("g3", 1, Op::Cancel, 10)).await, Answer::Done);
    let late = resource.call(call("g3", 1, Op::Try, 10)).await;
    assert!(matches!(&late, Answer::Refused { code, .. } if code == "HF4101"), "{late:?}");
    assert!(effects(&watcher, "g3", 1).await.is_empty());

    // A refusal is the same the next day, though there would be points enough by then.
    let refused = resource.call(call("g4", 1, Op::Try, 2_000)).await;
    let Answer::Refused { code, message } = &refused else { panic!("{refused:?}") };
    assert_eq!((code.as_str(), message.contains('\0')), ("AM04", false));
    watcher.batch_execute("UPDATE points SET amount = 5000").await.unwrap();
    assert_eq!(resource.call(call("g4", 1, Op::Try, 2_000)).await, refused);
    assert_eq!(resource.call(call("g4", 1, Op::Cancel, 2_000)).await, Answer::Done);
    assert_eq!(resource.call(call("g4", 1, Op::Try, 2_000)).await, refused);
    assert!(effects(&watcher, "g4", 1).await.is_empty());

    // Disorder is never answered done, and leaves no row.
    for (gid, before, op) in [
        ("g5", None, Op::Confirm),
        ("g2", None, Op::Confirm),
        ("g1", None, Op::Cancel),
        ("g1", None, Op::Compensate),
        ("g6", Some(Op::Action), Op::Try),
    ] {
        if let Some(before) = before {
            assert_eq!(resource.call(call(gid, 1, before, 1)).await, Answer::Done);
        }
        let rows = "SELECT count(*) FROM holdfast.barrier WHERE gid = $1";
        let rows_before: i64 = watcher.query_one(rows, &[&gid]).await.unwrap().get(0);
        let answer = resource.call(call(gid, 1, op, 1)).await;
        assert!(
            matches!(&answer, Answer::Unknown { message } if message.starts_with("HF410")),
            "{answer:?}"
        );
        let rows_after: i64 = watcher.query_one(rows, &[&gid]).await.unwrap().get(0);
        assert_eq!(rows_before, rows_after, "{gid} {op}");
    }

    // Working: asked again until it is done; then it is a repeat.
    assert_eq!(resource.call(call("g7", 1, Op::Action, points::SLOW)).await, Answer::Working);
    assert_eq!(resource.call(call("g7", 1, Op::Action, 5)).await, Answer::Done);
    assert_eq!(resource.call(call("g7", 1, Op::Action, 5)).await, Answer::Done);
    assert_eq!(effects(&watcher, "g7", 1).await, ["action"]);
    assert_eq!(resource.call(call("g7", 1, Op::Compensate, 5)).await, Answer::Done);
    assert_eq!(effects(&watcher, "g7", 1).await, ["action", "compensate"]);

    let counts = resource.counts();
    assert_eq!(
        (counts.empty_cancels, counts.late_tries, counts.disorders),
        (2, 2, 5),
        "{counts:?}"
    );
    assert_eq!((counts.refusals, counts.splits), (1, 0), "{counts:?}");
    resource.close().await;
    let answer = resource.call(call("g8", 1, Op::Try, 1)).await;
    assert!(matches!(answer, Answer::Unknown { .. }), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_races_a_try_waits_for_it_and_undoes_it() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    // Two executors, as two processes have: neither knows what the other has in hand.
    let (one, two) = (resource(&server, 1), resource(&server, 1));

    // The try hangs at the account, which somebody has locked; its barrier row is written but not committed.
    let holder = server.connect().await;
    holder.batch_execute("BEGIN; SELECT * FROM points WHERE id = 1 FOR UPDATE").await.unwrap();
    let trying = tokio::spawn(async move { (one.call(call("g1", 1, Op::Try, 10)).await, one) });
    until("the try waits", || somebody_waits(&watcher)).await;
    let cancelling =
        tokio::spawn(async move { (two.call(call("g1", 1, Op::Cancel, 10)).await, two) });
    until("the cancel waits as well", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 2
    })
    .await;
    holder.batch_execute("COMMIT").await.unwrap();
    let ((tried, one), (cancelled, two)) = (trying.await.unwrap(), cancelling.await.unwrap());
    assert_eq!((tried, cancelled), (Answer::Done, Answer::Done));
    assert_eq!(effects(&watcher, "g1", 1).await, ["try", "cancel"]);
    assert_eq!(two.counts().empty_cancels, 0);

    // The same, but the try is rolled back: then there is nothing to undo.
    let other = server.connect().await;
    let entered = "BEGIN; INSERT INTO holdfast.barrier (gid, branch, op, by_op) VALUES ('g2', 1, 'try', 'try')";
    other.batch_execute(entered).await.unwrap();
    let cancelling =
        tokio::spawn(async move { (two.call(call("g2", 1, Op::Cancel, 10)).await, two) });
    until("the cancel waits", || somebody_waits(&watcher)).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    let (cancelled, two) = cancelling.await.unwrap();
    assert_eq!(cancelled, Answer::Done);
    assert_eq!(two.counts().empty_cancels, 1);
    let late = one.call(call("g2", 1, Op::Try, 10)).await;
    assert!(matches!(&late, Answer::Refused { code, .. } if code == "HF4101"), "{late:?}");
    assert!(effects(&watcher, "g2", 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_waits_for_a_call_that_is_carried_out_again() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    assert_eq!(resource.call(call("g1", 1, Op::Action, points::SLOW)).await, Answer::Working);

    // Another process is at it again: it has claimed its row, and is not done.
    let other = server.connect().await;
    let again = "BEGIN; SELECT holdfast.enter('g1', 1, 'action')";
    other.batch_execute(again).await.unwrap();
    let undoing =
        tokio::spawn(
            async move { (resource.call(call("g1", 1, Op::Compensate, 10)).await, resource) },
        );
    until("the undo waits", || somebody_waits(&watcher)).await;
    other.batch_execute("COMMIT").await.unwrap();
    let (undone, resource) = undoing.await.unwrap();
    assert_eq!(undone, Answer::Done);
    assert_eq!(effects(&watcher, "g1", 1).await, ["compensate"]);
    let late = resource.call(call("g1", 1, Op::Action, 10)).await;
    assert!(matches!(&late, Answer::Refused { code, .. } if code == "HF4101"), "{late:?}");

    // The other way round, in the services' language: the undo is under way, and the call waits to be told that it is late.
    assert_eq!(resource.call(call("g2", 1, Op::Action, points::SLOW)).await, Answer::Working);
    other.batch_execute("BEGIN; SELECT holdfast.enter('g2', 1, 'compensate')").await.unwrap();
    let asking = tokio::spawn(async move { resource.call(call("g2", 1, Op::Action, 10)).await });
    until("the call waits", || somebody_waits(&watcher)).await;
    other.batch_execute("COMMIT").await.unwrap();
    let late = asking.await.unwrap();
    assert!(matches!(&late, Answer::Refused { code, .. } if code == "HF4101"), "{late:?}");
    assert!(effects(&watcher, "g2", 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_whose_refusal_waits_for_people_is_asked_anew() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 2);
    let ask = |gid: &'static str, op| {
        resource.call(Call { repeat: true, refusal_waits: true, ..call(gid, 1, op, 2_000) })
    };
    let is_refused =
        |answer: &Answer| matches!(answer, Answer::Refused { code, .. } if code == "AM04");
    for gid in ["g1", "g2"] {
        assert!(is_refused(&ask(gid, Op::Action).await));
        assert!(is_refused(&ask(gid, Op::Action).await), "there are no more points than before");
    }
    // One is given up; what was refused has done nothing that could be undone, and is refused for good.
    assert_eq!(ask("g2", Op::Compensate).await, Answer::Done);
    watcher.batch_execute("UPDATE points SET amount = 5000").await.unwrap();
    assert!(is_refused(&ask("g2", Op::Action).await));
    assert!(effects(&watcher, "g2", 1).await.is_empty());
    // The other is asked for again when people have seen to it; once it is done, it is done.
    assert_eq!(ask("g1", Op::Action).await, Answer::Done);
    assert_eq!(ask("g1", Op::Action).await, Answer::Done);
    assert_eq!(effects(&watcher, "g1", 1).await, ["action"]);
    assert_eq!(ask("g1", Op::Compensate).await, Answer::Done);
    assert_eq!(effects(&watcher, "g1", 1).await, ["action", "compensate"]);
    // A refusal that turns its transaction back is no such thing.
    assert!(is_refused(&resource.call(call("g3", 1, Op::Action, 9_000)).await));
    watcher.batch_execute("UPDATE points SET amount = 50000").await.unwrap();
    assert!(is_refused(&resource.call(call("g3", 1, Op::Action, 9_000)).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_calls_in_every_mixture_leave_one_effect_each() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let executors: Vec<_> = (0..3).map(|_| std::sync::Arc::new(resource(&server, 2))).collect();
    let mut asking = tokio::task::JoinSet::new();
    for round in 0..40_u32 {
        for (place, executor) in executors.iter().enumerate() {
            for op in [Op::Try, Op::Cancel, Op::Try, Op::Confirm] {
                let executor = std::sync::Arc::clone(executor);
                let gid = format!("race-{round}");
                // Every executor begins with another operation.
                let turn = (place as u32 + round) % 3;
                asking.spawn(async move {
                    for _ in 0..turn {
                        tokio::task::yield_now().await;
                    }
                    (gid.clone(), op, executor.call(call(&gid, 1, op, 1)).await)
                });
            }
        }
    }
    let mut answered = 0;
    while let Some(asked) = asking.join_next().await {
        let (gid, op, answer) = asked.unwrap();
        answered += 1;
        let fine = match op {
            Op::Try => {
                matches!(&answer, Answer::Done)
                    || matches!(&answer, Answer::Refused { code, .. } if code == "HF4101")
            }
            _ => {
                matches!(&answer, Answer::Done)
                    || matches!(&answer, Answer::Unknown { message } if message.starts_with("HF410"))
            }
        };
        assert!(fine, "{gid} {op}: {answer:?}");
    }
    assert_eq!(answered, 480);
    for round in 0..40 {
        let mut effects = effects(&watcher, &format!("race-{round}"), 1).await;
        effects.sort();
        assert!(
            effects.is_empty() || effects == ["cancel", "try"] || effects == ["confirm", "try"],
            "race-{round}: {effects:?}"
        );
    }
    // Of six tries a round, at most one takes effect; the others were told by the barrier.
    let told: u64 = executors.iter().map(|e| e.counts().repeats + e.counts().late_tries).sum();
    assert!(told >= 200, "{told}");
    // The counters of the account are the sum of what took effect.
    let sum: i64 = watcher
        .query_one("SELECT coalesce(sum(CASE op WHEN 'try' THEN -1 WHEN 'cancel' THEN 1 ELSE 0 END), 0) FROM effects", &[])
        .await
        .unwrap()
        .get(0);
    let amount: i64 =
        watcher.query_one("SELECT amount FROM points WHERE id = 1", &[]).await.unwrap().get(0);
    assert_eq!(amount, 1_000 + sum);
}

/// What the SQL function is to say where the mind gives that verdict.
fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Proceed => "proceed",
        Verdict::Repeat(Outcome::Refused { .. }) => "refused",
        Verdict::Repeat(_) => "repeat",
        Verdict::Empty => "empty",
        Verdict::Late => "late",
        Verdict::Disorder(_) => "disorder",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sql_function_says_what_the_mind_says_for_every_record() {
    let server = Postgres::start();
    let client = server.connect().await;
    install(&client).await.unwrap();
    let refused = || Outcome::Refused { code: "AM04".into(), message: "too little".into() };
    let rows = |op: Op, bys: &[Op]| -> Vec<Option<Row>> {
        let mut rows = vec![None];
        for &by in bys {
            for outcome in [Outcome::Done, Outcome::Working, refused()] {
                rows.push(Some(Row { op, by, outcome }));
            }
        }
        rows
    };
    let mut records = Vec::new();
    for first in rows(Op::Try, &[Op::Try, Op::Cancel]) {
        for confirm in rows(Op::Confirm, &[Op::Confirm, Op::Cancel]) {
            for cancel in rows(Op::Cancel, &[Op::Cancel]) {
                records.push([first.clone(), confirm.clone(), cancel]);
            }
        }
    }
    for action in rows(Op::Action, &[Op::Action, Op::Compensate]) {
        for compensate in rows(Op::Compensate, &[Op::Compensate]) {
            records.push([action.clone(), compensate, None]);
        }
    }
    assert_eq!(records.len(), 7 * 7 * 4 + 7 * 4);
    let mut compared = 0;
    for (number, rows) in records.into_iter().enumerate() {
        let record: Record = rows.into_iter().flatten().collect();
        for (op, refusal) in Op::ALL.into_iter().flat_map(|op| [(op, ""), (op, "waits")]) {
            client.batch_execute("BEGIN").await.unwrap();
            let gid = format!("r-{number}");
            for row in record.rows() {
                let (code, message) = match &row.outcome {
                    Outcome::Refused { code, message } => (Some(code), Some(message)),
                    Outcome::Done | Outcome::Working => (None, None),
                };
                client
                    .execute(
                        "INSERT INTO holdfast.barrier (gid, branch, op, by_op, answer, code, message) VALUES ($1, 1, $2, $3, $4, $5, $6)",
                        &[&gid, &row.op.as_str(), &row.by.as_str(), &row.outcome.as_str(), &code, &message],
                    )
                    .await
                    .unwrap();
            }
            let anew = "SELECT holdfast.enter($1, 1, $2, $3)";
            let said: String =
                client.query_one(anew, &[&gid, &op.as_str(), &refusal]).await.unwrap().get(0);
            let verdict =
                if refusal.is_empty() { decide(op, &record) } else { decide_anew(op, &record) };
            assert_eq!(said, word(&verdict), "{op} after {record:?}");
            let left: i64 = client
                .query_one("SELECT count(*) FROM holdfast.barrier WHERE gid = $1", &[&gid])
                .await
                .unwrap()
                .get(0);
            let before = record.rows().count() as i64;
            let writes = matches!(verdict, Verdict::Proceed | Verdict::Empty);
            assert!(
                left == before || writes && left > before,
                "{op} after {record:?}: {left} rows"
            );
            client.batch_execute("ROLLBACK").await.unwrap();
            compared += 1;
        }
    }
    assert_eq!(compared, (7 * 7 * 4 + 7 * 4) * 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sql_functions_serve_a_service_and_cannot_be_led_astray() {
    let server = Postgres::start();
    let client = server.connect().await;
    install(&client).await.unwrap();
    let enter = async |client: &tokio_postgres::Client, gid: &str, op: &str| -> String {
        client.query_one("SELECT holdfast.enter($1, 1, $2)", &[&gid, &op]).await.unwrap().get(0)
    };

    // A refusal, written in the local transaction, is the answer from then on.
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(enter(&client, "s1", "try").await, "proceed");
    client
        .batch_execute("SELECT holdfast.refuse('s1', 1, 'try', 'AM04', 'too little'); COMMIT")
        .await
        .unwrap();
    assert_eq!(enter(&client, "s1", "try").await, "refused");
    assert_eq!(enter(&client, "s1", "cancel").await, "empty");
    assert_eq!(enter(&client, "s1", "try").await, "refused");

    // Working, then done.
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(enter(&client, "s2", "action").await, "proceed");
    client.batch_execute("SELECT holdfast.working('s2', 1, 'action'); COMMIT").await.unwrap();
    assert_eq!(enter(&client, "s2", "action").await, "proceed");
    assert_eq!(enter(&client, "s2", "action").await, "repeat");

    // Rolled back with the service's own work.
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(enter(&client, "s3", "try").await, "proceed");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(enter(&client, "s3", "cancel").await, "empty");
    assert_eq!(enter(&client, "s3", "try").await, "late");

    // What was done in an earlier local transaction cannot be refused, nor can what was never entered.
    for sql in [
        "SELECT holdfast.refuse('s2', 1, 'action', 'X', 'x')",
        "SELECT holdfast.refuse('s9', 1, 'try', 'X', 'x')",
        "SELECT holdfast.working('s9', 1, 'try')",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("55000"), "{sql}");
    }
    for sql in [
        "SELECT holdfast.enter(NULL, 1, 'try')",
        "SELECT holdfast.enter('', 1, 'try')",
        "SELECT holdfast.enter('a b', 1, 'try')",
        "SELECT holdfast.enter(E'g1\\n', 1, 'try')",
        "SELECT holdfast.enter('g'';drop table t', 1, 'try')",
        "SELECT holdfast.enter('é', 1, 'try')",
        "SELECT holdfast.enter(repeat('g', 36), 1, 'try')",
        "SELECT holdfast.enter('g', 0, 'try')",
        "SELECT holdfast.enter('g', NULL, 'try')",
        "SELECT holdfast.enter('g', 1, 'prepare')",
        "SELECT holdfast.enter('g', 1, NULL)",
        "SELECT holdfast.refuse('s2', 1, 'confirm', 'X', 'x')",
        "SELECT holdfast.prune('1 day', 10)",
        "SELECT holdfast.prune(NULL, 10)",
        "SELECT holdfast.prune('3 days', 0)",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("22023"), "{sql}");
    }

    // A hostile search_path: tables, functions and operators of the same names stand in front.
    client
        .batch_execute(
            "CREATE SCHEMA evil; SET search_path = evil, pg_temp, pg_catalog, public;
             CREATE TABLE evil.barrier (gid text, branch int, op text, by_op text, answer text);
             CREATE TEMP TABLE barrier (gid text, branch int, op text, by_op text, answer text);
             CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''infinity''::timestamptz';
             CREATE FUNCTION evil.cardinality(text[]) RETURNS int LANGUAGE sql AS 'SELECT 1/0';
             CREATE FUNCTION evil.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT ''try''::text';
             CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
             CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
             CREATE OPERATOR evil.!~ (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);",
        )
        .await
        .unwrap();
    assert_eq!(enter(&client, "s4", "cancel").await, "empty");
    assert_eq!(enter(&client, "s4", "try").await, "late");
    assert_eq!(enter(&client, "s5", "try").await, "proceed");
    assert_eq!(enter(&client, "s5", "confirm").await, "proceed");
    let path: String = client.query_one("SHOW search_path", &[]).await.unwrap().get(0);
    assert!(path.starts_with("evil"), "{path}");
    client.batch_execute("RESET search_path").await.unwrap();
    let rows: i64 = client
        .query_one("SELECT count(*) FROM holdfast.barrier WHERE gid IN ('s4', 's5')", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 5);
    let strays: i64 = client
        .query_one(
            "SELECT (SELECT count(*) FROM evil.barrier) + (SELECT count(*) FROM pg_temp.barrier)",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(strays, 0);

    // A service's own role needs the table, and only that.
    client
        .batch_execute(
            "CREATE ROLE teller LOGIN; GRANT USAGE ON SCHEMA holdfast TO teller;
             GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.barrier TO teller; SET ROLE teller",
        )
        .await
        .unwrap();
    assert_eq!(enter(&client, "s6", "try").await, "proceed");
    // Installed as it is, installing needs no rights.
    install(&client).await.unwrap();
    assert!(client.batch_execute(BARRIER_SQL).await.is_err());
    client.batch_execute("ROLLBACK; RESET ROLE").await.unwrap();

    // Ended branches are pruned once they are old; open ones never.
    client
        .batch_execute("UPDATE holdfast.barrier SET at = now() - interval '3 days'")
        .await
        .unwrap();
    let open_before: i64 = client
        .query_one("SELECT count(*) FROM holdfast.barrier WHERE gid = 's6'", &[])
        .await
        .unwrap()
        .get(0);
    let pruned: i64 =
        client.query_one("SELECT holdfast.prune('2 days', 1000)", &[]).await.unwrap().get(0);
    assert!(pruned > 5, "{pruned}");
    let again: i64 =
        client.query_one("SELECT holdfast.prune('2 days', 1000)", &[]).await.unwrap().get(0);
    let left: i64 =
        client.query_one("SELECT count(*) FROM holdfast.barrier", &[]).await.unwrap().get(0);
    assert_eq!((again, left, open_before), (0, 1, 1));
}

#[tokio::test]
async fn no_row_is_written_under_what_is_no_gid() {
    let server = Postgres::start();
    let client = server.connect().await;
    install(&client).await.unwrap();
    let insert =
        "INSERT INTO holdfast.barrier (gid, branch, op, by_op) VALUES ($1, 1, 'try', 'try')";
    let longest = "aZ0-9".repeat(7);
    client.execute(insert, &[&longest]).await.unwrap();
    for gid in ["", &*format!("{longest}x"), "a b", "a\n", "a_b", "\u{fc}", "a'"] {
        let refused = client.execute(insert, &[&gid]).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("23514"), "{gid:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_in_the_services_language_waits_for_the_first() {
    let server = Postgres::start();
    let (first, second) = (server.connect().await, server.connect().await);
    let watcher = server.connect().await;
    install(&first).await.unwrap();
    first.batch_execute("BEGIN; SELECT holdfast.enter('d1', 1, 'try')").await.unwrap();
    let second = tokio::spawn(async move {
        second
            .query_one("SELECT holdfast.enter('d1', 1, 'try')", &[])
            .await
            .unwrap()
            .get::<_, String>(0)
    });
    until("the second waits", || somebody_waits(&watcher)).await;
    first.batch_execute("COMMIT").await.unwrap();
    assert_eq!(second.await.unwrap(), "repeat");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_install_at_once_and_again() {
    let server = Postgres::start();
    let mut installing = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = server.connect().await;
        installing.spawn(async move {
            install(&client).await.unwrap();
            client.batch_execute(BARRIER_SQL).await.unwrap();
            install(&client).await.unwrap();
        });
    }
    tokio::time::timeout(Duration::from_secs(30), async {
        while let Some(installed) = installing.join_next().await {
            installed.unwrap();
        }
    })
    .await
    .unwrap();
    let client = server.connect().await;
    let functions: i64 = client
        .query_one(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(functions, 5);
    // A database with the first version, which had one function less, is brought up to this one.
    client
        .batch_execute(
            "DROP FUNCTION holdfast.enter(text, integer, text, text);
             COMMENT ON TABLE holdfast.barrier IS 'holdfast barrier 1'",
        )
        .await
        .unwrap();
    install(&client).await.unwrap();
    client.query_one("SELECT holdfast.enter('g', 1, 'action', 'waits')", &[]).await.unwrap();
    let word = client.query_one("SELECT holdfast.enter('g', 2, 'action', 'later')", &[]).await;
    let code = word.unwrap_err().code().map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("22023"));
    for gid in ["", "a b", "0123456789012345678901234567890123456", "x\n"] {
        let insert =
            "INSERT INTO holdfast.barrier (gid, branch, op, by_op) VALUES ($1, 1, 'try', 'try')";
        assert!(client.execute(insert, &[&gid]).await.is_err(), "{gid:?}");
    }
}
