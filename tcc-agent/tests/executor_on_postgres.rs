//! The executor on a real PostgreSQL: batches, bad calls, lost connections, and a database that goes away.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod points;
mod postgres;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use holdfast_branch::Op;
use holdfast_tcc_agent::{
    Answer, Asked, Call, Handler, Limits, LocalTransaction, Parameter, Participant,
    PostgresResource, Reply,
};
use points::{KILL, PANIC, POISON, Points, SWALLOW, UNCLEAR, call, effects, resource};
use postgres::{Postgres, until};
use tokio::sync::mpsc;
use tokio_postgres::Client;

/// Hands all calls over at once and waits for every answer, by place.
async fn together(handler: &dyn Handler, calls: Vec<Call>) -> Vec<Answer> {
    let (sender, mut receiver) = mpsc::channel(calls.len());
    let asked = calls.into_iter().enumerate();
    let asked: Vec<Asked> = asked
        .map(|(place, call)| Asked { call, reply: Reply::new(place as u64, sender.clone()) })
        .collect();
    drop(sender);
    handler.handle(asked);
    let mut answers = BTreeMap::new();
    while let Some((place, answer)) = receiver.recv().await {
        assert!(answers.insert(place, answer).is_none(), "two answers to call {place}");
    }
    answers.into_values().collect()
}

/// Has one connection hold the account until `during` is over, so that everything else waits behind it.
async fn holding(server: &Postgres, watcher: &Client) -> Client {
    let holder = server.connect().await;
    holder.batch_execute("BEGIN; SELECT * FROM points WHERE id = 1 FOR UPDATE").await.unwrap();
    let own = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    until("the account is held", || async {
        watcher.query_one(own, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    holder
}

async fn waiting(watcher: &Client) -> i64 {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    watcher.query_one(waiting, &[]).await.unwrap().get(0)
}

/// Sees how often the statements of its connection were planned for one batch alone.
#[derive(Clone, Default)]
struct PlansSeen(Arc<AtomicI64>);

#[async_trait]
impl Participant for PlansSeen {
    async fn carry_out(
        &self,
        local: LocalTransaction<'_>,
        calls: &[Call],
    ) -> Result<Vec<Answer>, tokio_postgres::Error> {
        let plans = "SELECT sum(custom_plans)::bigint FROM pg_prepared_statements";
        let plans = local.query_one(&local.prepare_cached(plans).await?, &[]).await?.get(0);
        self.0.fetch_max(plans, Ordering::Relaxed);
        Ok(vec![Answer::Done; calls.len()])
    }
}

/// Writes its effects with the commit. An amount of [`POISON`] breaks the table's check; one of [`UNCLEAR`] cannot even be sent.
struct Late;

#[async_trait]
impl Participant for Late {
    async fn carry_out(
        &self,
        local: LocalTransaction<'_>,
        calls: &[Call],
    ) -> Result<Vec<Answer>, tokio_postgres::Error> {
        let write = "INSERT INTO effects (gid, branch, op, amount) VALUES ($1, $2, $3, $4)";
        for call in calls {
            let amount: i64 = std::str::from_utf8(&call.payload).unwrap().parse().unwrap();
            let amount: Parameter =
                if amount == UNCLEAR { Box::new("no number") } else { Box::new(amount) };
            let gid: Parameter = Box::new(call.gid.as_str().to_owned());
            let columns =
                vec![gid, Box::new(call.branch as i32), Box::new(call.op.as_str()), amount];
            local.execute_last(local.prepare_cached(write).await?, columns).await?;
        }
        Ok(vec![Answer::Done; calls.len()])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_with_the_commit_is_there_with_it_and_what_fails_of_it_keeps_all_from_being_committed()
 {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let limits = Limits { connections: 1, ..Limits::default() };
    let resource = PostgresResource::new(server.config(), Late, &limits);
    for (gid, bad) in [("check", POISON), ("sent", UNCLEAR)] {
        let mut calls: Vec<Call> =
            (1..=7).map(|branch| call(gid, branch, Op::Try, i64::from(branch))).collect();
        calls[3] = call(gid, 4, Op::Try, bad);
        let answers = together(&resource, calls).await;
        for (branch, answer) in (1..).zip(&answers) {
            let told = effects(&watcher, gid, branch).await;
            if branch == 4 {
                assert!(matches!(answer, Answer::Unknown { .. }), "{gid}: {answer:?}");
                assert!(told.is_empty(), "{gid}: {told:?}");
            } else {
                assert_eq!(
                    (answer, told),
                    (&Answer::Done, vec!["try".to_owned()]),
                    "{gid} {branch}"
                );
            }
        }
        // The barrier has no row of it either: the same call is carried out once its cause is gone.
        assert_eq!(resource.call(call(gid, 4, Op::Try, 4)).await, Answer::Done);
        assert_eq!(effects(&watcher, gid, 4).await, ["try"]);
    }
    assert_eq!(resource.counts().splits, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_statements_as_allowed_go_with_a_commit_and_one_more_is_unknown() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let limits = Limits { connections: 1, ..Limits::default() };
    let resource = PostgresResource::new(server.config(), Late, &limits);
    let calls =
        |gid: &str, count| (1..=count).map(|branch| call(gid, branch, Op::Try, 1)).collect();
    assert_eq!(together(&resource, calls("eight", 8)).await, vec![Answer::Done; 8]);
    let nine = together(&resource, calls("nine", 9)).await;
    assert!(nine.iter().all(|answer| matches!(answer, Answer::Unknown { .. })), "{nine:?}");
    assert!(effects(&watcher, "nine", 1).await.is_empty());
}

/// Small batches first: PostgreSQL would take a plan of their own for cheaper, and go on to plan for each batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_is_planned_anew_for_a_batch() {
    let server = Postgres::start();
    points::prepare(&server.connect().await).await;
    let plans = PlansSeen::default();
    let limits = Limits { connections: 1, ..Limits::default() };
    let own = PostgresResource::new(server.config(), plans.clone(), &limits);
    let lent = PostgresResource::with_pool(server.pool(1), plans.clone(), &limits);
    for (resource, gid) in [(own, "own"), (lent, "lent")] {
        for branch in 1..=12 {
            assert_eq!(resource.call(call(gid, branch, Op::Try, 1)).await, Answer::Done);
        }
    }
    assert_eq!(plans.0.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_256_is_one_local_transaction() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    let calls = |op| (1..=256).map(move |branch| call("batch", branch, op, 1)).collect::<Vec<_>>();

    let before: i64 =
        watcher.query_one("SELECT xmin::text::bigint FROM points", &[]).await.unwrap().get(0);
    for op in [Op::Try, Op::Confirm] {
        let answers = together(&resource, calls(op)).await;
        assert_eq!(answers, vec![Answer::Done; 256]);
    }
    let counts = resource.counts();
    assert_eq!((counts.local_transactions, counts.branches), (2, 512), "{counts:?}");
    // PostgreSQL's own word: every effect was written by one of two transactions.
    let writers: i64 = watcher
        .query_one("SELECT count(DISTINCT xmin::text) FROM effects", &[])
        .await
        .unwrap()
        .get(0);
    let lines: i64 = watcher.query_one("SELECT count(*) FROM effects", &[]).await.unwrap().get(0);
    let after: i64 =
        watcher.query_one("SELECT xmin::text::bigint FROM points", &[]).await.unwrap().get(0);
    assert_eq!((writers, lines, after - before > 0), (2, 512, true));

    // The whole batch again: answered from the rows, no effect.
    assert_eq!(together(&resource, calls(Op::Try)).await, vec![Answer::Done; 256]);
    assert_eq!(resource.counts().repeats, 256);
    let lines: i64 = watcher.query_one("SELECT count(*) FROM effects", &[]).await.unwrap().get(0);
    assert_eq!(lines, 512);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_in_a_batch_leave_the_others_alone() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    let amounts = [400, 700, 400, UNCLEAR, 300, 200];
    let calls: Vec<Call> = amounts
        .iter()
        .zip(1..)
        .map(|(&amount, branch)| call("mixed", branch, Op::Try, amount))
        .collect();
    let answers = together(&resource, calls.clone()).await;
    let kinds = |answers: &[Answer]| -> String {
        let kind = |answer: &Answer| match answer {
            Answer::Done => 'd',
            Answer::Refused { .. } => 'r',
            Answer::Working => 'w',
            Answer::Unknown { .. } => 'u',
        };
        answers.iter().map(kind).collect()
    };
    assert_eq!(kinds(&answers), "drdurd");
    assert_eq!(resource.counts().local_transactions, 1);
    // Again: the same, and only the unclear one reaches the participant.
    assert_eq!(together(&resource, calls).await, answers);
    let counts = resource.counts();
    assert_eq!((counts.repeats, counts.refusals), (5, 2), "{counts:?}");
    let rows = "SELECT count(*) FROM holdfast.barrier WHERE branch = 4";
    assert_eq!(watcher.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_poisoned_call_harms_no_other_and_splits_a_batch_once() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    let calls = |from: u32, amount: i64| -> Vec<Call> {
        let bad = std::iter::once(call("poison", 1, Op::Try, amount));
        bad.chain((from..from + 20).map(|branch| call("poison", branch, Op::Try, 1))).collect()
    };
    for (round, from) in [10, 110, 210].into_iter().enumerate() {
        let answers = together(&resource, calls(from, POISON)).await;
        assert!(
            matches!(&answers[0], Answer::Unknown { message } if message.contains("23514")),
            "{:?}",
            answers[0]
        );
        assert!(
            answers[1..].iter().all(|answer| *answer == Answer::Done),
            "round {round}: {answers:?}"
        );
        assert_eq!(resource.counts().splits, 1, "round {round}");
    }
    // Three batches: the first was carried out one by one, the later ones had the bad call set apart.
    assert_eq!(resource.counts().local_transactions, 20 + 1 + 1);
    // Once it can succeed, it does, and is no longer set apart.
    assert_eq!(together(&resource, calls(310, 5)).await, vec![Answer::Done; 21]);
    assert_eq!(effects(&watcher, "poison", 1).await, ["try"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_killed_in_mid_batch_is_unknown_and_a_repeat_is_done_once() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);

    // Killed from outside, while the batch waits for the account with its barrier rows written.
    let calls: Vec<Call> = (1..=8).map(|branch| call("killed", branch, Op::Try, 1)).collect();
    let holder = holding(&server, &watcher).await;
    let resource = Arc::new(resource);
    let asking = {
        let (resource, calls) = (Arc::clone(&resource), calls.clone());
        tokio::spawn(async move { together(&*resource, calls).await })
    };
    until("the batch waits", || async { waiting(&watcher).await == 1 }).await;
    let kill =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    watcher.query_one(kill, &[]).await.unwrap();
    let answers = asking.await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Unknown { .. })), "{answers:?}");
    holder.batch_execute("COMMIT").await.unwrap();
    assert!(effects(&watcher, "killed", 1).await.is_empty());
    assert_eq!(together(&*resource, calls.clone()).await, vec![Answer::Done; 8]);
    assert_eq!(together(&*resource, calls).await, vec![Answer::Done; 8]);
    for branch in 1..=8 {
        assert_eq!(effects(&watcher, "killed", branch).await, ["try"]);
    }

    // One that kills its connection every time takes the others with it once, and never again.
    let batch = |from: u32| -> Vec<Call> {
        let killer = std::iter::once(call("killer", 1, Op::Try, KILL));
        killer.chain((from..from + 5).map(|branch| call("killer", branch, Op::Try, 1))).collect()
    };
    let answers = together(&*resource, batch(10)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Unknown { .. })), "{answers:?}");
    for from in [10, 20] {
        let answers = together(&*resource, batch(from)).await;
        assert!(matches!(answers[0], Answer::Unknown { .. }), "{answers:?}");
        assert_eq!(answers[1..], vec![Answer::Done; 5]);
    }
    let sum: i64 =
        watcher.query_one("SELECT sum(amount)::bigint FROM effects", &[]).await.unwrap().get(0);
    let amount: i64 = watcher.query_one("SELECT amount FROM points", &[]).await.unwrap().get(0);
    assert_eq!((sum, amount), (18, 1_000 - 18));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_the_participant_hides_is_never_answered_done() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    // The local transaction has failed, though the participant says done: COMMIT alone would roll back without a word.
    let answers = together(
        &resource,
        vec![call("hidden", 1, Op::Try, SWALLOW), call("hidden", 2, Op::Try, 1)],
    )
    .await;
    assert!(matches!(&answers[0], Answer::Unknown { .. }), "{answers:?}");
    assert_eq!(answers[1], Answer::Done);
    let rows: i64 = watcher
        .query_one("SELECT count(*) FROM holdfast.barrier WHERE branch = 1", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 0);

    // A panic answers unknown, leaves no open transaction behind, and the executor lives.
    let answer = resource.call(call("panic", 1, Op::Try, PANIC)).await;
    assert!(matches!(answer, Answer::Unknown { .. }), "{answer:?}");
    assert_eq!(resource.call(call("panic", 1, Op::Try, 1)).await, Answer::Done);
    assert_eq!(effects(&watcher, "panic", 1).await, ["try"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_comes_twice_is_carried_out_in_order_and_holds_nobody_up() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 4);
    let mut calls = vec![
        call("twice", 1, Op::Try, 5),
        call("twice", 1, Op::Confirm, 5),
        call("twice", 1, Op::Try, 5),
    ];
    calls.extend((2..=9).map(|branch| call("twice", branch, Op::Try, 1)));
    assert_eq!(together(&resource, calls).await, vec![Answer::Done; 11]);
    assert_eq!(effects(&watcher, "twice", 1).await, ["try", "confirm"]);
}

/// The network delivers a call twice, and neither says that it is a repeat: all were taken for new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_that_looks_new_is_a_repeat_and_spoils_nothing_for_its_batch() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    assert_eq!(resource.call(call("old", 1, Op::Try, 10)).await, Answer::Done);

    let mut calls: Vec<Call> = (1..=8).map(|branch| call("new", branch, Op::Try, 1)).collect();
    calls.insert(4, call("old", 1, Op::Try, 10));
    assert_eq!(together(&resource, calls).await, vec![Answer::Done; 9]);
    let counts = resource.counts();
    let told = (counts.local_transactions, counts.branches, counts.repeats, counts.splits);
    assert_eq!(told, (2, 10, 1, 0), "{counts:?}");
    assert_eq!(effects(&watcher, "old", 1).await, ["try"]);

    // A try behind its cancel is late, though it too looks new.
    assert_eq!(resource.call(call("gone", 1, Op::Cancel, 1)).await, Answer::Done);
    let late = resource.call(call("gone", 1, Op::Try, 1)).await;
    assert!(matches!(&late, Answer::Refused { code, .. } if code == "HF4101"), "{late:?}");
    assert!(effects(&watcher, "gone", 1).await.is_empty());
}

/// A participant that acts locally runs beside the barrier, and so sees what the barrier does not admit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_beside_the_barrier_is_rolled_back_where_it_admits_not_all_of_a_batch() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    // Each looks new, and a confirm without its try is nobody's right call.
    let calls = vec![
        call("good", 1, Op::Try, 30),
        call("stray", 1, Op::Confirm, 1),
        call("good", 2, Op::Try, 12),
    ];
    let answers = together(&resource, calls).await;
    assert_eq!((&answers[0], &answers[2]), (&Answer::Done, &Answer::Done));
    let stray = &answers[1];
    assert!(
        matches!(stray, Answer::Unknown { message } if message.starts_with("HF4102")),
        "{stray:?}"
    );
    assert!(effects(&watcher, "stray", 1).await.is_empty());
    assert_eq!(effects(&watcher, "good", 2).await, ["try"]);
    let left = watcher.query_one("SELECT amount FROM points", &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 1000 - 42, "nothing was taken twice");
    let counts = resource.counts();
    let told = (counts.local_transactions, counts.branches, counts.disorders, counts.splits);
    assert_eq!(told, (1, 3, 1, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_come_and_go_while_it_runs_and_every_call_is_answered() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 1);
    let set_connections = resource.connections_setter();
    let holder = holding(&server, &watcher).await;
    set_connections(3);
    let (sender, mut answers) = mpsc::channel(3);
    for branch in 1..=3 {
        let reply = Reply::new(branch.into(), sender.clone());
        resource.handle(vec![Asked { call: call("grown", branch, Op::Try, 1), reply }]);
        until("one more connection waits for the account", || async {
            waiting(&watcher).await == i64::from(branch)
        })
        .await;
    }
    set_connections(1);
    holder.batch_execute("ROLLBACK").await.unwrap();
    for _ in 1..=3 {
        assert_eq!(answers.recv().await.unwrap().1, Answer::Done);
    }
    drop(holder);
    let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    until("one connection is left", || async {
        watcher.query_one(others, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    assert_eq!(resource.call(call("grown", 4, Op::Try, 1)).await, Answer::Done);
    set_connections(2);
    assert_eq!(resource.call(call("grown", 5, Op::Try, 1)).await, Answer::Done);
    resource.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hangs_a_lock_that_is_not_given_is_unknown() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let limits =
        Limits { connections: 1, lock_timeout_ms: 100, waiting_max: 2, ..Limits::default() };
    let resource = Arc::new(PostgresResource::new(server.config(), Points, &limits));
    let holder = holding(&server, &watcher).await;
    let asking = {
        let resource = Arc::clone(&resource);
        tokio::spawn(async move { resource.call(call("locked", 1, Op::Try, 1)).await })
    };
    until("the call waits", || async { waiting(&watcher).await == 1 }).await;
    // Behind it the queue is full at two: further calls are told so at once.
    let calls = (2..=5).map(|branch| call("locked", branch, Op::Try, 1)).collect();
    let answers = together(&*resource, calls).await;
    let full = |answer: &Answer| matches!(answer, Answer::Unknown { message } if message.contains("too many"));
    assert!(
        full(&answers[2]) && full(&answers[3]) && !full(&answers[0]) && !full(&answers[1]),
        "{answers:?}"
    );
    let answer = asking.await.unwrap();
    assert!(
        matches!(&answer, Answer::Unknown { message } if message.contains("55P03")),
        "{answer:?}"
    );
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(resource.call(call("locked", 1, Op::Try, 1)).await, Answer::Done);
    assert_eq!(effects(&watcher, "locked", 1).await, ["try"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_and_comes_back_has_every_answered_effect_once() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = Arc::new(resource(&server, 2));
    // Ask without end from many sides; crash in the middle; ask on until everything is done.
    let mut asking = tokio::task::JoinSet::new();
    for branch in 1..=60 {
        let resource = Arc::clone(&resource);
        asking.spawn(async move {
            let mut unknown = 0;
            while resource.call(call("crash", branch, Op::Try, 1)).await != Answer::Done {
                unknown += 1;
                assert!(unknown < 10_000, "branch {branch} never ends");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            while resource.call(call("crash", branch, Op::Confirm, 1)).await != Answer::Done {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            unknown
        });
    }
    until("some are done", || async { resource.counts().local_transactions > 0 }).await;
    tokio::task::block_in_place(|| server.crash_and_restart());
    let in_time = async {
        while let Some(asked) = asking.join_next().await {
            asked.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), in_time).await.unwrap();
    let watcher = server.connect().await;
    for branch in 1..=60 {
        assert_eq!(effects(&watcher, "crash", branch).await, ["try", "confirm"]);
    }
    let amount: i64 = watcher.query_one("SELECT amount FROM points", &[]).await.unwrap().get(0);
    assert_eq!(amount, 1_000 - 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_barrier_or_a_database_the_answer_says_what_to_do() {
    let server = Postgres::start();
    let bare = resource(&server, 1);
    let answer = bare.call(call("bare", 1, Op::Try, 1)).await;
    let told = matches!(&answer, Answer::Unknown { message } if message.contains("holdfast barrier install"));
    assert!(told, "{answer:?}");
    let mut nowhere = server.config();
    nowhere.dbname("nowhere");
    let nowhere = PostgresResource::new(nowhere, Points, &Limits::default());
    let answer = nowhere.call(call("bare", 1, Op::Try, 1)).await;
    assert!(
        matches!(&answer, Answer::Unknown { message } if message.contains("3D000")),
        "{answer:?}"
    );
}
