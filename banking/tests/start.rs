//! How a data source is taken into service: empty, half ready, of another build, away, and back.

#![allow(clippy::inconsistent_digit_grouping, reason = "100_00 are 100.00 EUR in minor units")]

mod fixture;

use std::{sync::Arc, time::Duration};

use fixture::{Bank, PATIENCE, Server, account, call, connect, eur, free_port, initialized, until};
use holdfast_banking::{
    BankConfig, BankError, BankLimits, Deposit, DepositInstruction, NewAccount, Opened,
    ledger::{AccountId, Currency},
    migrate, open_accounts, read_account, run,
};
use holdfast_tcc_agent::{Answer, Limits, Op, PostgresResource, Status};
use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;

fn config(database: Config) -> BankConfig {
    BankConfig {
        shard: "shard-1".to_owned(),
        database: database.into(),
        instance: "test".to_owned(),
        // Nobody listens there; the module serves whoever comes.
        coordinators: vec![format!("127.0.0.1:{}", free_port())],
        limits: tokio::sync::watch::channel(BankLimits { connections: 2, batch_max: 64 }).1,
        credit: 64,
        status: Status::default(),
        credentials: None,
    }
}

#[tokio::test]
async fn concurrent_starts_migrate_once() {
    let server = Server::shared().await;
    let admin = connect(&server.config("postgres")).await;
    let name = format!("start_{}", std::process::id());
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let mut starts = Vec::new();
    for _ in 0..8 {
        let config = server.config(&name);
        starts.push(tokio::spawn(async move { migrate(&mut connect(&config).await).await }));
    }
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let client = connect(&server.config(&name)).await;
    let row = client.query_one("SELECT count(*), max(version) FROM bank.migration", &[]).await;
    let row = row.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (1, 1));
}

#[tokio::test]
async fn the_table_takes_the_ids_that_the_ledger_takes_and_no_others() {
    let bank = Bank::with(&[]).await;
    let (longest, too_long) = ("a".repeat(34), "a".repeat(35));
    let ids = [
        "A-1", "-", "0", &longest, &too_long, "", " ", "a b", "a_b", "a\n", "\n", "\u{e4}", "'",
        "*",
    ];
    let mut taken = Vec::new();
    for id in ids {
        let insert = "INSERT INTO bank.account (id, currency, balance_minor) VALUES ($1, $2, 0)";
        let by_table = bank.client.execute(insert, &[&id, &"EUR"]).await.is_ok();
        assert_eq!(by_table, AccountId::parse(id).is_ok(), "{id:?}");
        taken.extend(by_table.then_some(id));
    }
    assert_eq!(taken, ["A-1", "-", "0", &longest]);
    for currency in ["EU", "EURO", "eur", "E1R", "", "EU\n"] {
        let update = "UPDATE bank.account SET currency = $1 WHERE id = 'A-1'";
        assert!(bank.client.execute(update, &[&currency]).await.is_err(), "{currency:?}");
    }
}

#[tokio::test]
async fn a_schema_of_another_build_is_left_alone() {
    let mut bank = Bank::with(&[]).await;
    bank.sql("UPDATE bank.migration SET digest = 'another'").await;
    let error = migrate(&mut bank.client).await.unwrap_err();
    assert!(matches!(error, BankError::SchemaChanged { version: 1 }), "{error}");
    bank.sql("INSERT INTO bank.migration (version, name, digest) VALUES (7, 'later', '')").await;
    let error = migrate(&mut bank.client).await.unwrap_err();
    assert!(matches!(error, BankError::SchemaNewer { found: 7, known: 1 }), "{error}");
    // The whole role stops with the same words, rather than wait for what will not change.
    let error = run(config(bank.config()), CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with("HF5001"), "{error}");
}

#[tokio::test]
async fn opening_accounts_is_repeatable_with_the_same_values_only() {
    let bank = Bank::with(&[]).await;
    let eur = Currency::parse("EUR").unwrap();
    let new =
        |id: &str, balance_minor| NewAccount { id: account(id), currency: eur, balance_minor };
    let all: Vec<NewAccount> = (0..12_000).map(|n| new(&format!("a{n}"), n % 3)).collect();
    let first = open_accounts(&bank.client, &all[..11_000]).await.unwrap();
    assert_eq!(first, Opened { opened: 11_000, present: 0 });
    let again = open_accounts(&bank.client, &all).await.unwrap();
    assert_eq!(again, Opened { opened: 1_000, present: 11_000 });
    assert_eq!(bank.counters("a2").await, (2, 0, 0));
    assert_eq!(bank.number("SELECT count(*) FROM bank.journal").await, 8_000);
    assert!(read_account(&bank.client, &account("nobody")).await.unwrap().is_none());
    let usd = NewAccount { currency: Currency::parse("USD").unwrap(), ..new("a4", 1) };
    for different in [new("a4", 2), new("a3", 1), usd] {
        let error =
            open_accounts(&bank.client, std::slice::from_ref(&different)).await.unwrap_err();
        let BankError::AccountDiffers { account } = error else { panic!("{error}") };
        assert_eq!(account, different.id);
    }
    let error = open_accounts(&bank.client, &[new("below", -1)]).await.unwrap_err();
    assert!(matches!(error, BankError::Database(_)), "{error}");
    assert!(read_account(&bank.client, &account("below")).await.unwrap().is_none());
}

#[tokio::test]
async fn the_role_waits_for_postgresql_and_stops_when_told() {
    let port = free_port();
    let directory = initialized();
    let mut database = Config::new();
    database.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
    let shutdown = CancellationToken::new();
    let role = tokio::spawn(run(config(database.clone()), shutdown.clone()));
    // It has met the closed port before the server is there.
    until("a refused connection", || async { database.connect(NoTls).await.is_err() }).await;
    assert!(!role.is_finished());
    let server = Server::start(directory, port).await;
    let client = connect(&server.config("postgres")).await;
    until("the schema and the barrier", || async {
        let sql = "SELECT to_regclass('bank.journal') IS NOT NULL
                      AND to_regclass('holdfast.barrier') IS NOT NULL";
        client.query_one(sql, &[]).await.unwrap().get(0)
    })
    .await;
    shutdown.cancel();
    let ended = tokio::time::timeout(PATIENCE, role).await.expect("it stops when told");
    ended.unwrap().unwrap();

    // Told to stop while it still waits, it stops as well.
    drop((client, server));
    let shutdown = CancellationToken::new();
    let role = tokio::spawn(run(config(database), shutdown.clone()));
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, role).await.expect("it stops when told").unwrap().unwrap();
}

#[tokio::test]
async fn what_waiting_cannot_mend_ends_the_role() {
    let server = Server::shared().await;
    for database in ["no_such_database", "postgres"] {
        let mut database = server.config(database);
        database.user("no_such_role");
        let role = run(config(database), CancellationToken::new());
        let error = tokio::time::timeout(PATIENCE, role).await.expect("at once").unwrap_err();
        assert!(error.to_string().contains("no_such_"), "{error}");
    }
    let bank = Bank::with(&[]).await;
    let wrong = BankConfig { shard: "Shard 1".to_owned(), ..config(bank.config()) };
    let error = run(wrong, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, BankError::Agent(_)), "{error}");
}

#[tokio::test]
async fn a_crash_of_postgresql_is_unknown_and_then_takes_effect_once() {
    let server = Server::start(initialized(), free_port()).await;
    let config = server.config("postgres");
    let mut client = connect(&config).await;
    migrate(&mut client).await.unwrap();
    holdfast_tcc_agent::install(&client).await.unwrap();
    let eur_code = Currency::parse("EUR").unwrap();
    let alice = NewAccount { id: account("alice"), currency: eur_code, balance_minor: 100_00 };
    open_accounts(&client, &[alice]).await.unwrap();
    let limits = Limits { connections: 2, connect_timeout_ms: 500, ..Limits::default() };
    let resource = Arc::new(PostgresResource::new(config, Deposit, &limits));
    let payload = DepositInstruction::Debit { account: account("alice"), money: eur("1.00") };
    let payload = payload.to_payload();
    assert_eq!(resource.call(call(Op::Try, "g1", 1, &payload)).await, Answer::Done);

    let (directory, port) = server.crash();
    let answer = resource.call(call(Op::Confirm, "g1", 1, &payload)).await;
    assert!(matches!(answer, Answer::Unknown { .. }), "{answer:?}");
    let answer = resource.call(call(Op::Try, "g2", 1, &payload)).await;
    assert!(matches!(answer, Answer::Unknown { .. }), "{answer:?}");

    let server = Server::start(directory, port).await;
    for (op, gid) in
        [(Op::Confirm, "g1"), (Op::Try, "g2"), (Op::Confirm, "g1"), (Op::Confirm, "g2")]
    {
        until("an answer", || async {
            let answer = resource.call(call(op, gid, 1, &payload)).await;
            assert!(matches!(answer, Answer::Done | Answer::Unknown { .. }), "{answer:?}");
            answer == Answer::Done
        })
        .await;
    }
    let mut client = connect(&server.config("postgres")).await;
    let found = read_account(&client, &account("alice")).await.unwrap().unwrap().counters();
    assert_eq!((found.balance, found.held_out, found.held_in), (98_00, 0, 0));
    let books = holdfast_banking::audit(&mut client).await.unwrap();
    assert_eq!((books.holds, books.holds_open, books.fold_mismatches), (2, 0, 0));
    let closed = tokio::time::timeout(Duration::from_secs(10), resource.close()).await;
    closed.expect("nothing is under way");
}
