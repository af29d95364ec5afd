//! What changes while a router runs: its users, its limits, the certificate that it shows.

mod fixture;

use std::time::Duration;

use fixture::{PATIENCE, Running, Server, one_source};
use holdfast_shard_router::{
    RouterConfig, Verifier,
    config::{Authentication, Limits, Live, UserConfig},
};
use tokio_postgres::{Client, Config, NoTls};

fn user(name: &str, password: &str) -> UserConfig {
    let verifier = Verifier::of_password(password, b"0123456789abcdef", 4096);
    UserConfig { name: name.to_owned(), verifier }
}

/// A session, or the SQLSTATE of the refusal.
async fn login(router: &Running, name: &str, password: &str) -> Result<Client, String> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(router.port).user(name).password(password).dbname("postgres");
    match config.connect(NoTls).await {
        Ok((client, connection)) => {
            tokio::spawn(connection);
            Ok(client)
        }
        Err(error) => Err(error.code().expect("an answer").code().to_owned()),
    }
}

async fn works(client: &Client) -> bool {
    client.batch_execute("SELECT 1").await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_was_taken_out_is_shut_out_and_a_session_that_is_there_goes_on() {
    let server = Server::shared().await;
    let users = |users: &[UserConfig]| Authentication::Scram(users.into());
    let mut source = server.source("only");
    source.user = Some("postgres".to_owned());
    let router = Running::start(RouterConfig {
        authentication: users(&[user("anna", "one"), user("ben", "two")]),
        ..one_source(source)
    })
    .await;
    let anna = login(&router, "anna", "one").await.expect("she is a user");
    let ben = login(&router, "ben", "two").await.expect("he is a user");
    router.adjust(|live| live.authentication = users(&[user("ben", "three")]));
    let shut_out = |told: Result<Client, String>| told.err().as_deref() == Some("28P01");
    assert!(shut_out(login(&router, "anna", "one").await));
    assert!(shut_out(login(&router, "ben", "two").await), "the old password");
    assert!(works(&login(&router, "ben", "three").await.expect("the new one")).await);
    assert!(works(&anna).await && works(&ben).await, "sessions stay until they end");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_count_from_the_next_login_message_and_wait_on() {
    let server = Server::shared().await;
    let router = Running::start(RouterConfig {
        limits: Limits { pool_size: 1, wait_timeout: PATIENCE, ..Limits::default() },
        ..one_source(server.source("only"))
    })
    .await;
    let first = router.connect("postgres").await;
    let second = router.connect("postgres").await;
    first.batch_execute("BEGIN; SELECT 1").await.expect("the only connection is its");
    {
        let mut waits = std::pin::pin!(works(&second));
        let early = tokio::time::timeout(Duration::from_millis(50), waits.as_mut()).await;
        assert!(early.is_err(), "no connection is left");
        router.adjust(|live| live.limits.pool_size = 2);
        assert!(waits.await, "who waited has the new place");
    }
    first.batch_execute("COMMIT").await.expect("right");

    router.adjust(|live| live.limits.message_bytes_max = 64);
    let long = format!("SELECT '{}'", "x".repeat(64));
    let told = second.batch_execute(&long).await.expect_err("too long by now");
    assert_eq!(told.code().map(|code| code.code()), Some("54000"), "{told:?}");
    router.adjust(|live| *live = Live { limits: Limits::default(), ..live.clone() });
    first.batch_execute(&long).await.expect("permitted again");

    router.adjust(|live| live.limits.clients_max = 1);
    let told = fixture::connect(router.port, "postgres").await.map(drop);
    let told = told.expect_err("one is there already");
    assert_eq!(told.code().map(|code| code.code()), Some("53300"), "{told:?}");
}
