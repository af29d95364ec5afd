//! What a batch promises: decided in order, written as sets, whatever its size; and correct against other batches.

#![allow(clippy::inconsistent_digit_grouping, reason = "100_00 are 100.00 EUR in minor units")]

mod fixture;

use std::{future::IntoFuture as _, sync::Arc};

use fixture::{Bank, account, call, eur, refused};
use holdfast_banking::{Deposit, DepositInstruction, audit};
use holdfast_tcc_agent::{
    Answer, Call, Limits, LocalTransaction, Op, Participant as _, PostgresResource,
};

fn debit(op: Op, gid: &str, id: &str, amount: &str) -> Call {
    let payload = DepositInstruction::Debit { account: account(id), money: eur(amount) };
    call(op, gid, 1, payload.to_payload())
}

fn credit(op: Op, gid: &str, id: &str, amount: &str) -> Call {
    let payload = DepositInstruction::Credit { account: account(id), money: eur(amount) };
    call(op, gid, 1, payload.to_payload())
}

/// Rows of bank.account that this connection has updated lately, and those of them that stayed on their page.
async fn updated(connection: &tokio_postgres::Client) -> (i64, i64) {
    let row = connection
        .query_one(
            "SELECT pg_stat_get_xact_tuples_updated('bank.account'::regclass),
                    pg_stat_get_xact_tuples_hot_updated('bank.account'::regclass)",
            &[],
        )
        .await
        .expect("correct SQL");
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn two_hundred_holds_on_one_hot_account_are_one_row_update() {
    let bank = Bank::with(&[("hot", 1_000_00), ("cold", 0)]).await;
    let gids: Vec<String> = (0..200).map(|number| format!("g{number}")).collect();
    let connection = bank.connection().await;
    for (op, counters) in [(Op::Try, (1_000_00, 200_00, 0)), (Op::Confirm, (800_00, 0, 0))] {
        let calls: Vec<Call> = gids.iter().map(|gid| debit(op, gid, "hot", "1.00")).collect();
        connection.batch_execute("BEGIN").await.unwrap();
        let local = LocalTransaction::within(&connection);
        let before = updated(&connection).await;
        let answers = Deposit.carry_out(local, &calls).await.unwrap();
        let after = updated(&connection).await;
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1));
        connection.batch_execute("COMMIT").await.unwrap();
        assert_eq!(answers, vec![Answer::Done; 200]);
        assert_eq!(bank.counters("hot").await, counters);
    }
    let captured = "SELECT count(*) FROM bank.hold WHERE ended = 'captured' AND moved_minor = 100";
    assert_eq!(bank.number(captured).await, 200);
    assert_eq!(bank.number("SELECT count(*) FROM bank.journal WHERE gid LIKE 'g%'").await, 400);
}

#[tokio::test]
async fn a_batch_is_decided_in_order_and_refusals_harm_nobody() {
    let bank = Bank::with(&[("alice", 1_00), ("bob", 0)]).await;
    let answers = bank
        .carry_out(&[
            debit(Op::Try, "g1", "alice", "0.40"),
            debit(Op::Try, "g2", "alice", "0.70"),
            call(Op::Try, "g3", 1, "nonsense"),
            debit(Op::Try, "g4", "alice", "0.60"),
            debit(Op::Try, "g5", "alice", "0.01"),
            credit(Op::Action, "g6", "alice", "0.01"),
            debit(Op::Try, "g7", "alice", "0.01"),
            debit(Op::Try, "g8", "nobody", "0.01"),
            credit(Op::Try, "g9", "bob", "0.01"),
        ])
        .await;
    let codes: Vec<&str> = answers
        .iter()
        .map(|answer| if *answer == Answer::Done { "done" } else { refused(answer).0 })
        .collect();
    let funds = "insufficient_funds";
    let expected =
        ["done", funds, "bad_payload", "done", funds, "done", "done", "account_unknown", "done"];
    assert_eq!(codes, expected);
    assert_eq!(refused(&answers[1]).1, "account alice: available 0.60 EUR, needed 0.70 EUR");
    assert_eq!(bank.counters("alice").await, (1_01, 1_01, 0));
    assert_eq!(bank.counters("bob").await, (0, 0, 1));
    assert_eq!(bank.number("SELECT count(*) FROM bank.hold").await, 4);
}

#[tokio::test]
async fn a_batch_of_refusals_writes_nothing() {
    let bank = Bank::with(&[("alice", 1_00)]).await;
    let connection = bank.connection().await;
    connection.batch_execute("BEGIN").await.unwrap();
    let local = LocalTransaction::within(&connection);
    let calls = [debit(Op::Try, "g1", "alice", "9.00"), call(Op::Try, "g2", 1, "")];
    let answers = Deposit.carry_out(local, &calls).await.unwrap();
    assert_eq!(refused(&answers[0]).0, "insufficient_funds");
    assert_eq!(refused(&answers[1]).0, "bad_payload");
    assert_eq!(updated(&connection).await, (0, 0));
    assert_eq!(bank.number("SELECT count(*) FROM bank.journal WHERE kind <> 'opening'").await, 0);
}

#[tokio::test]
async fn a_hold_whose_account_is_gone_says_so_and_harms_no_other() {
    let bank = Bank::with(&[("alice", 1_00), ("bob", 1_00)]).await;
    let holds = ["alice", "bob"].map(|id| debit(Op::Try, id, id, "1.00"));
    assert_eq!(bank.carry_out(&holds).await, vec![Answer::Done; 2]);
    let connection = bank.connection().await;
    connection.batch_execute("DELETE FROM bank.account WHERE id = 'alice'").await.unwrap();
    let ends = ["alice", "bob"].map(|id| debit(Op::Confirm, id, id, "1.00"));
    let answers = bank.carry_out(&ends).await;
    assert_eq!(refused(&answers[0]).0, "account_unknown");
    assert_eq!(answers[1], Answer::Done);
    assert_eq!(bank.counters("bob").await, (0, 0, 0));
}

/// Somebody's trigger swallows the update of an account: the journal must not tell of what the account does not show.
#[tokio::test]
async fn a_batch_of_which_an_account_was_not_written_is_not_committed() {
    let bank = Bank::with(&[("alice", 1_00), ("bob", 1_00)]).await;
    let connection = bank.connection().await;
    let swallow = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                   CREATE TRIGGER swallow BEFORE UPDATE ON bank.account FOR EACH ROW WHEN (OLD.id = 'alice')
                   EXECUTE FUNCTION swallow()";
    connection.batch_execute(swallow).await.unwrap();
    let resource = PostgresResource::new(bank.config(), Deposit, &Limits::default());
    let answer = resource.call(debit(Op::Try, "g1", "alice", "0.40")).await;
    assert!(matches!(answer, Answer::Unknown { .. }), "{answer:?}");
    assert_eq!(resource.call(debit(Op::Try, "g2", "bob", "0.40")).await, Answer::Done);
    assert_eq!(bank.number("SELECT count(*) FROM bank.hold").await, 1);
    assert_eq!(bank.counters("alice").await, (1_00, 0, 0));
}

/// A source without statistics is planned for as if it were small, and a small one is read through sooner than looked up in.
#[tokio::test]
async fn a_batch_looks_accounts_up_and_never_reads_through_all_of_them() {
    let bank = Bank::with(&[("alice", 100_00), ("bob", 0)]).await;
    let connection = bank.connection().await;
    let others = "INSERT INTO bank.account (id, currency, balance_minor)
                  SELECT 'other-' || n, 'EUR', 0 FROM generate_series(1, 500) AS n";
    // As an executor's connections are.
    connection.batch_execute("SET plan_cache_mode = force_generic_plan").await.unwrap();
    connection.batch_execute(others).await.unwrap();
    for (gid, statistics) in [("g1", "SELECT"), ("g2", "ANALYZE bank.account")] {
        connection.batch_execute(statistics).await.unwrap();
        for op in [Op::Try, Op::Confirm] {
            let calls =
                [debit(op, gid, "alice", "1.00"), credit(op, &format!("{gid}-b"), "bob", "1.00")];
            connection.batch_execute("BEGIN").await.unwrap();
            let local = LocalTransaction::within(&connection);
            assert_eq!(Deposit.carry_out(local, &calls).await.unwrap(), vec![Answer::Done; 2]);
            let scans = "SELECT pg_stat_get_xact_numscans('bank.account'::regclass)";
            let scans: i64 = connection.query_one(scans, &[]).await.unwrap().get(0);
            assert_eq!(scans, 0, "{op} after {statistics}");
            connection.batch_execute("COMMIT").await.unwrap();
        }
    }
    assert_eq!(bank.counters("bob").await, (2_00, 0, 0));
}

/// Statements are what a batch costs; they must not grow with it.
#[tokio::test]
async fn a_large_batch_writes_with_as_many_statements_as_a_small_one() {
    let bank = Bank::with(&[("a", 1_000_00), ("b", 1_000_00)]).await;
    for size in [1, 300] {
        let connection = bank.connection().await;
        let calls: Vec<Call> = (0..size)
            .flat_map(|number| {
                let (out, into) = (format!("o{size}-{number}"), format!("i{size}-{number}"));
                [debit(Op::Try, &out, "a", "0.10"), credit(Op::Try, &into, "b", "0.10")]
            })
            .collect();
        connection.batch_execute("BEGIN").await.unwrap();
        let local = LocalTransaction::within(&connection);
        let answers = Deposit.carry_out(local, &calls).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == Answer::Done));
        // Every row remembers which command of its local transaction wrote it.
        for table in ["account", "journal"] {
            let sql = format!(
                "SELECT count(*), count(DISTINCT cmin::text) FROM bank.{table}
                 WHERE xmin::text = pg_current_xact_id()::text"
            );
            let row = connection.query_one(&sql, &[]).await.unwrap();
            let rows = if table == "account" { 2 } else { 2 * size };
            assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (rows, 1), "{table}");
        }
        connection.batch_execute("COMMIT").await.unwrap();
    }
}

#[tokio::test]
async fn money_is_conserved_under_concurrent_batches() {
    const ACCOUNTS: usize = 6;
    let ids: Vec<String> = (0..ACCOUNTS).map(|number| format!("a{number}")).collect();
    let accounts: Vec<(&str, i64)> = ids.iter().map(|id| (id.as_str(), 20_00)).collect();
    let mut bank = Bank::with(&accounts).await;
    let limits = Limits { connections: 4, batch_max: 32, ..Limits::default() };
    let resource = Arc::new(PostgresResource::new(bank.config(), Deposit, &limits));
    let mut transfers = Vec::new();
    for number in 0..400_usize {
        let resource = Arc::clone(&resource);
        let (from, to) = (ids[number % ACCOUNTS].clone(), ids[(number * 7 + 1) % ACCOUNTS].clone());
        transfers.push(tokio::spawn(async move {
            let gid = format!("g{number}");
            let amount = format!("{}.{:02}", number % 3, number % 89 + 1);
            let out = DepositInstruction::Debit { account: account(&from), money: eur(&amount) };
            let into = DepositInstruction::Credit { account: account(&to), money: eur(&amount) };
            let (out, into) = (out.to_payload(), into.to_payload());
            let tries = [
                resource.call(call(Op::Try, &gid, 1, &out)).await,
                resource.call(call(Op::Try, &gid, 2, &into)).await,
            ];
            let commit = tries.iter().all(|answer| *answer == Answer::Done) && number % 5 != 0;
            let op = if commit { Op::Confirm } else { Op::Cancel };
            // Side by side, and once more, as when an answer was lost.
            let end = |branch, payload| resource.call(call(op, &gid, branch, payload));
            let (a, b, again) = tokio::join!(end(1, &out), end(2, &into), end(1, &out));
            assert_eq!((a, b, again), (Answer::Done, Answer::Done, Answer::Done), "{gid}");
            (tries, commit)
        }));
    }
    let (mut committed, mut refusals) = (0, 0);
    for transfer in transfers {
        let (tries, commit) = transfer.into_future().await.unwrap();
        committed += i32::from(commit);
        for answer in &tries {
            if *answer != Answer::Done {
                assert_eq!(refused(answer).0, "insufficient_funds");
                refusals += 1;
            }
        }
    }
    assert!(committed >= 50, "only {committed} were committed");
    assert!(refusals < 400, "{refusals}");
    let counts = resource.counts();
    assert!(counts.local_transactions < counts.branches, "nothing was batched: {counts:?}");
    assert_eq!(counts.splits, 0, "batches got into each other's way: {counts:?}");
    let books = audit(&mut bank.client).await.unwrap();
    assert_eq!(books.findings(), Vec::<String>::new());
    assert_eq!(books.sums["EUR"].balance, 120_00);
}
