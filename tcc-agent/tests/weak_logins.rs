//! Whoever listens where a database should be may ask for anything before it has shown that it knows the password: it is not told.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod postgres;

use std::sync::Arc;

use holdfast_tcc_agent::{Database, WeakLogin};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    sync::Mutex,
};
use tokio_postgres::{Config, config::TargetSessionAttrs};

const IN_CLEAR: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
const AS_MD5: &[u8] = b"R\0\0\0\x0c\0\0\0\x05salt";
/// The longest that a client says before it waits.
const SAID_BYTES_MAX: usize = 4_096;

/// Everything that clients said behind their first message.
type Heard = Arc<Mutex<Vec<u8>>>;

/// Asks whoever comes for the password, byte by byte, and notes what is said then.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, question: &[u8], heard: &Heard) {
    let mut said = vec![0; SAID_BYTES_MAX];
    let startup = stream.read(&mut said).await.unwrap();
    assert!(said[..startup].windows(5).any(|word| word == b"user\0"), "it begins at once");
    for byte in question {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
    let mut heard = heard.lock().await;
    if let Ok(answer) = stream.read(&mut said).await {
        heard.extend_from_slice(&said[..answer]);
    }
}

/// A server that asks each `question` once, in turn, at an address of this machine or in a folder.
struct Hostile {
    config: Config,
    heard: Heard,
    _folder: Option<tempfile::TempDir>,
}

impl Hostile {
    async fn at_a_port(question: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Heard::default();
        let noted = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                ask(stream, question, &noted).await;
            }
        });
        let mut config = account(port);
        config.host("127.0.0.1");
        Self { config, heard, _folder: None }
    }

    async fn at_a_socket(question: &'static [u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let heard = Heard::default();
        let noted = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                ask(stream, question, &noted).await;
            }
        });
        let mut config = account(5_432);
        config.host_path(folder.path());
        Self { config, heard, _folder: Some(folder) }
    }

    /// What it was told by a client that came, failed, and left.
    async fn told(&self, database: Database) -> (tokio_postgres::Error, Vec<u8>) {
        let Err(refused) = database.connect().await else { panic!("nobody lets anybody in here") };
        (refused, std::mem::take(&mut *self.heard.lock().await))
    }
}

fn account(port: u16) -> Config {
    let mut config = Config::new();
    config.port(port).user("bank").password("secret").dbname("bank");
    config
}

#[tokio::test]
async fn a_password_is_not_told_to_whoever_asks_for_it_in_clear_or_as_md5() {
    for question in [IN_CLEAR, AS_MD5] {
        for server in [Hostile::at_a_port(question).await, Hostile::at_a_socket(question).await] {
            let (refused, told) = server.told(server.config.clone().into()).await;
            assert!(told.is_empty(), "it was told {:?}", String::from_utf8_lossy(&told));
            let why = std::error::Error::source(&refused).and_then(|why| {
                why.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<WeakLogin>()
            });
            assert!(why.is_some_and(|why| why.to_string().starts_with("HF4107 ")), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn a_password_is_told_where_that_is_permitted() {
    for (question, answer) in [(IN_CLEAR, &b"secret\0"[..]), (AS_MD5, b"md5")] {
        for server in [Hostile::at_a_port(question).await, Hostile::at_a_socket(question).await] {
            let database = Database::from(server.config.clone()).permit_weak_login(true);
            let (_, told) = server.told(database).await;
            assert!(told.first() == Some(&b'p') && told[5..].starts_with(answer), "{told:?}");
        }
    }
}

#[tokio::test]
async fn a_database_at_a_socket_that_nobody_serves_is_not_reached() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = account(5_432);
    config.host_path(folder.path());
    let Err(unreached) = Database::from(config).connect().await else { panic!("nobody is there") };
    let why = std::error::Error::source(&unreached).expect("it has a cause");
    assert!(why.to_string().contains("No such file"), "{why}");
}

#[tokio::test]
async fn a_database_at_a_socket_is_used_where_it_takes_what_it_is_wanted_for() {
    let server = postgres::Postgres::start();
    // Nobody listens in the first folder.
    let nowhere = tempfile::tempdir().unwrap();
    let mut config = Config::new();
    config.host_path(nowhere.path());
    let there = server.socket_config();
    let tokio_postgres::config::Host::Unix(folder) = &there.get_hosts()[0] else {
        panic!("a folder")
    };
    config.host_path(folder).port(there.get_ports()[0]).user("postgres").dbname("postgres");
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    let (client, _ends_with_it) = Database::from(config.clone()).connect().await.unwrap();
    let one: i32 = client.query_one("SELECT 1", &[]).await.unwrap().get(0);
    assert_eq!(one, 1);

    config.target_session_attrs(TargetSessionAttrs::ReadOnly);
    assert!(Database::from(config.clone()).connect().await.is_err(), "it takes writes");
    config.options("-c default_transaction_read_only=on");
    assert!(Database::from(config.clone()).connect().await.is_ok());
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    assert!(Database::from(config).connect().await.is_err(), "it takes none");
}
