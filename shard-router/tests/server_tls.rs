//! Encryption towards servers, with a PostgreSQL that has a certificate.

mod fixture;

use fixture::{PATIENCE, Running, Server, connect, one_source};
use holdfast_security::ServerTls;
use holdfast_shard_router::config::{Endpoint, RouterConfig, SourceConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_postgres::NoTls;

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("it signs")
}

/// A server whose certificate names 127.0.0.1 only, and the authority's file.
async fn encrypted() -> (Server, tempfile::NamedTempFile) {
    let authority = authority();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let certificate = params.signed_by(&key, &authority).expect("it is signed");
    let server = Server::encrypted(&certificate.pem(), &key.serialize_pem()).await;
    (server, file(&authority))
}

fn file(authority: &CertifiedIssuer<'_, KeyPair>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), authority.pem()).expect("it is ours");
    file
}

fn config(server: &Server, host: &str, tls: Option<ServerTls>) -> RouterConfig {
    one_source(SourceConfig {
        addresses: vec![Endpoint::parse(&format!("{host}:{}", server.port))],
        user: Some("secure".to_owned()),
        password: Some("secret".to_owned()),
        tls,
        ..server.source("main")
    })
}

/// What a client is told that may not come in.
async fn refused(config: RouterConfig) -> String {
    let router = Running::start(config).await;
    let error = connect(router.port, "postgres").await.expect_err("there is no server");
    error.as_db_error().expect("an answer").message().to_owned()
}

#[tokio::test]
async fn connections_to_a_server_are_encrypted_and_so_are_its_cancel_requests() {
    let (server, roots) = encrypted().await;
    let full = ServerTls::verify_full(roots.path()).expect("an authority");
    for tls in [full, ServerTls::require()] {
        let router = Running::start(config(&server, "127.0.0.1", Some(tls))).await;
        let client = router.connect("postgres").await;
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let encrypted: bool = client.query_one(sql, &[]).await.expect("a row").get(0);
        assert!(encrypted);
        let cancel = client.cancel_token();
        let sleeps = client.batch_execute("SELECT pg_sleep(60)");
        let admin = server.connect("postgres").await.expect("it runs");
        let canceled = async {
            let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while admin.query_one(asleep, &[]).await.expect("a row").get::<_, i64>(0) == 0 {
                assert!(tokio::time::Instant::now() < deadline, "it does not sleep");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            cancel.cancel_query(NoTls).await.expect("it is passed on");
        };
        let (slept, ()) = tokio::join!(sleeps, canceled);
        let told = slept.expect_err("it is canceled");
        assert_eq!(told.code().map(|code| code.code()), Some("57014"), "{told:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_or_does_not_encrypt_is_left() {
    let (server, roots) = encrypted().await;
    let full = || ServerTls::verify_full(roots.path()).expect("an authority");
    let other = file(&authority());
    let other = ServerTls::verify_full(other.path()).expect("an authority");
    for (host, tls) in [("127.0.0.1", other), ("localhost", full())] {
        let told = refused(config(&server, host, Some(tls))).await;
        assert!(told.starts_with("HF3205") && told.contains("certificate"), "{told}");
    }
    // Without encryption it is the server that refuses.
    let told = refused(config(&server, "127.0.0.1", None)).await;
    assert!(told.contains("no encryption"), "{told}");
    let plain = Server::shared().await;
    for tls in [full(), ServerTls::require()] {
        let told = refused(config(&plain, "127.0.0.1", Some(tls))).await;
        assert!(told.contains("does not encrypt"), "{told}");
    }
    assert!(ServerTls::verify_full(std::path::Path::new("/dev/null")).is_err(), "no authority");
}
