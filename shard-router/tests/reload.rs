//! What changes while a router runs: its users, its limits, the certificate that it shows.

mod fixture;

use std::{path::Path, time::Duration};

use fixture::{PATIENCE, Running, Server, one_source};
use holdfast_security::ServerTls;
use holdfast_shard_router::{
    RouterConfig, Tls, Verifier,
    config::{Authentication, Limits, Live, UserConfig},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::CancellationToken;

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

/// Puts the certificate of a new authority, for 127.0.0.1, and its key into the files of a router; and the authority's own beside them.
fn certify(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let authority = authority.expect("it signs");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let certificate = params.signed_by(&key, &authority).expect("it is signed");
    let files = [
        ("ca.pem", authority.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ];
    for (name, text) in files {
        std::fs::write(dir.join(name), text).expect("the folder is ours");
    }
}

/// A session of a client that takes this authority's word alone.
async fn encrypted(router: &Running, authority: &ServerTls) -> std::io::Result<Client> {
    let mut stream = TcpStream::connect(("127.0.0.1", router.port)).await?;
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    assert_eq!(stream.read_u8().await?, b'S', "it encrypts");
    let stream = authority.encrypt("127.0.0.1", stream).await?;
    let mut config = Config::new();
    config.user("postgres").dbname("postgres");
    let connected = config.connect_raw(stream, NoTls).await;
    let (client, connection) = connected.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_client_is_shown_a_new_certificate_and_old_sessions_go_on() {
    let server = Server::shared().await;
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    let authority = || ServerTls::verify_full(&path("ca.pem")).expect("an authority");
    certify(dir.path());
    let tls = Tls::from_pem_files(&path("cert.pem"), &path("key.pem")).expect("a pair");
    let router = Running::start(RouterConfig {
        tls: Some(tls.clone()),
        require_tls: true,
        ..one_source(server.source("only"))
    })
    .await;
    let old = authority();
    let session = encrypted(&router, &old).await.expect("the old certificate");

    // Half of a rotation, and nonsense: neither is taken.
    let pair = |name| std::fs::read(path(name)).expect("it is there");
    let (cert, key) = (pair("cert.pem"), pair("key.pem"));
    certify(dir.path());
    let new = authority();
    std::fs::write(path("key.pem"), &key).expect("ours");
    assert!(tls.reload().is_err(), "a key of another certificate");
    let key = std::fs::write(path("key.pem"), b"nonsense").map(|()| key).expect("ours");
    assert!(tls.reload().is_err());
    assert!(encrypted(&router, &new).await.is_err());
    encrypted(&router, &old).await.expect("the old one still");
    for (name, bytes) in [("cert.pem", cert), ("key.pem", key)] {
        std::fs::write(path(name), bytes).expect("ours");
    }
    assert_eq!(tls.reload(), Ok(false), "the same again is nothing new");

    certify(dir.path());
    let new = authority();
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(tls.keep_fresh(stop));
    let begun = tokio::time::Instant::now();
    let renewed = loop {
        match encrypted(&router, &new).await {
            Ok(renewed) => break renewed,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(works(&renewed).await && works(&session).await);
    assert!(encrypted(&router, &old).await.is_err(), "the old certificate is shown no more");
}
