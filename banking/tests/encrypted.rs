//! The way to a data source on another machine: encrypted to the server that it should be, or not taken.

mod fixture;

use std::{path::Path, process::Command};

use fixture::{Server, connect, free_port, initialized, until};
use holdfast_banking::{BankConfig, BankLimits, run};
use holdfast_tcc_agent::{Database, ServerTls, Status, words};
use rcgen::{CertificateParams, KeyPair};
use tokio_util::sync::CancellationToken;

/// A certificate for the loopback address that vouches for itself, and its key, both PEM.
fn certificate() -> (String, String) {
    let key = KeyPair::generate().expect("a key can be made");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    (params.self_signed(&key).expect("it signs itself").pem(), key.serialize_pem())
}

/// A file of the server's own, which PostgreSQL wants to be nobody else's to read.
fn write(data: &Path, name: &str, text: &str) {
    let path = data.join(name);
    std::fs::write(&path, text).expect("the directory is ours");
    let owner = Command::new("chown").arg("--reference").arg(data).arg(&path).status();
    let mode = Command::new("chmod").arg("600").arg(&path).status();
    assert!([owner, mode].into_iter().all(|done| done.is_ok_and(|done| done.success())));
}

#[tokio::test]
async fn a_deposit_module_reaches_its_data_source_encrypted_or_not_at_all() {
    let (shown, key) = certificate();
    let directory = initialized();
    let data = directory.path().join("data");
    write(&data, "server.crt", &shown);
    write(&data, "server.key", &key);
    let settings = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
    write(&data, "postgresql.conf", &format!("{settings}\nssl = on\n"));
    write(
        &data,
        "pg_hba.conf",
        "hostssl all bank 127.0.0.1/32 scram-sha-256\n\
         host all postgres 127.0.0.1/32 trust\n\
         hostnossl all proved 127.0.0.1/32 scram-sha-256\n\
         host all in_clear 127.0.0.1/32 password\n\
         host all as_md5 127.0.0.1/32 md5\n",
    );
    let server = Server::start(directory, free_port()).await;
    let admin = connect(&server.config("postgres")).await;
    let made = [
        "CREATE ROLE bank LOGIN PASSWORD 'secret'",
        "CREATE DATABASE bank OWNER bank",
        "CREATE ROLE proved LOGIN PASSWORD 'secret'",
        "CREATE ROLE in_clear LOGIN PASSWORD 'secret'",
        "SET password_encryption = 'md5'; CREATE ROLE as_md5 LOGIN PASSWORD 'secret'",
    ];
    for sql in made {
        admin.batch_execute(sql).await.unwrap();
    }

    let authorities = tempfile::tempdir().unwrap();
    let trusted = |name: &str, pem: &str| {
        let file = authorities.path().join(name);
        std::fs::write(&file, pem).unwrap();
        Some(ServerTls::verify_full(&file).unwrap())
    };
    let (right, another) = (trusted("right.pem", &shown), trusted("another.pem", &certificate().0));
    let mut account = server.config("bank");
    account.user("bank").password("secret");

    for (tls, why) in [(None, "in the clear"), (another, "signed by somebody else")] {
        let connected = Database::new(account.clone(), tls).connect().await;
        assert!(connected.is_err(), "{why}");
    }

    // Whoever encrypts may be anybody, and the right one asks for a password in clear as well.
    let mut weak = account.clone();
    for user in ["in_clear", "as_md5"] {
        weak.user(user);
        for tls in [None, Some(ServerTls::require()), right.clone()] {
            let database = Database::new(weak.clone(), tls);
            let Err(refused) = database.connect().await else { panic!("{user} is told") };
            assert!(words(&refused).contains("HF4107"), "{user}: {refused:?}");
            assert!(database.permit_weak_login(true).connect().await.is_ok(), "{user}");
        }
    }
    weak.user("proved");
    assert!(Database::new(weak, None).connect().await.is_ok(), "SCRAM needs no encryption");

    let shutdown = CancellationToken::new();
    let config = BankConfig {
        shard: "shard-1".to_owned(),
        database: Database::new(account, right),
        instance: "test".to_owned(),
        // Nobody listens there: the data source comes first.
        coordinators: vec![format!("127.0.0.1:{}", free_port())],
        limits: tokio::sync::watch::channel(BankLimits { connections: 1, batch_max: 64 }).1,
        credit: 64,
        status: Status::default(),
        credentials: None,
    };
    let role = tokio::spawn(run(config, shutdown.clone()));
    let bank = connect(&server.config("bank")).await;
    until("the tables", || async {
        let sql = "SELECT to_regclass('bank.account') IS NOT NULL AND to_regclass('holdfast.barrier') IS NOT NULL";
        bank.query_one(sql, &[]).await.unwrap().get(0)
    })
    .await;
    shutdown.cancel();
    role.await.unwrap().unwrap();
}
