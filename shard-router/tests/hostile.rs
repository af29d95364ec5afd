//! Clients and servers that say anything: before a login, behind it, and in place of a server's answer. Whoever does is turned away or told;
//! nobody else notices, and nothing of the pool is lost.

mod fixture;

use std::sync::Arc;

use fixture::{
    Running, Server, one_source,
    raw::{Raw, field, first_column, query, status, tags},
};
use holdfast_shard_router::{
    Verifier,
    config::{Authentication, Endpoint, RouterConfig, UserConfig},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Drawn for each kind, beside the corpus.
const DRAWN: usize = 150;

/// Texts of hexadecimal bytes, a case each; found earlier, or thought of.
fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let text = match kind {
        "before_login" => include_str!("corpus/before_login.hex"),
        "after_login" => include_str!("corpus/after_login.hex"),
        "server" => include_str!("corpus/server.hex"),
        other => panic!("no corpus {other}"),
    };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let bytes = |line: &str| -> Vec<u8> {
        line.split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"))
            .collect()
    };
    lines.filter(|line| !line.trim().is_empty()).map(bytes).collect()
}

/// The corpus, and what a strategy draws, the same each time.
fn cases(kind: &str, strategy: &impl Strategy<Value = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut all = corpus(kind);
    assert!(all.len() >= 5, "{kind} has a corpus");
    for _ in 0..DRAWN {
        all.push(strategy.new_tree(&mut runner).expect("it draws").current());
    }
    all
}

/// Frames with any of `tags`, of lengths that are mostly right.
fn frames(tags: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let body =
        proptest::collection::vec(proptest::prop_oneof![0..4_u8, proptest::num::u8::ANY], 0..40);
    let frame = (proptest::sample::select(tags), body, proptest::num::u8::ANY).prop_map(
        |(tag, body, luck)| {
            let right = u32::try_from(body.len() + 4).expect("short");
            let length = match luck {
                0..8 => right.wrapping_sub(3),
                8..16 => u32::MAX - u32::from(luck),
                16..24 => 1 << 29,
                _ => right,
            };
            [&[tag], &length.to_be_bytes()[..], &body].concat()
        },
    );
    proptest::collection::vec(frame, 1..8).prop_map(|frames| frames.concat())
}

async fn works(port: u16, database: &str) {
    let mut raw = Raw::login(port, database).await;
    let answer = raw.ask(&[query("SELECT 40 + 2")]).await;
    assert_eq!((first_column(&answer), status(&answer)), (vec!["42".to_owned()], 'I'));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_before_a_login_is_answered_or_turned_away() {
    let server = Server::shared().await;
    let router = Running::start(one_source(server.source("only"))).await;
    let database = server.database().await;
    let any = proptest::collection::vec(proptest::num::u8::ANY, 0..200);
    let startup = any.clone().prop_map(|body| {
        let length = u32::try_from(body.len() + 8).expect("short").to_be_bytes();
        [&length[..], &196_608_u32.to_be_bytes(), &body].concat()
    });
    let all = [cases("before_login", &any), cases("before_login", &startup)].concat();
    for bytes in all {
        let mut raw = Raw::silent(router.port).await;
        raw.send(&bytes).await;
        raw.finish().await;
        // Told and closed, or closed.
        let mut heard = Vec::new();
        while let Some(message) = raw.next().await {
            assert!(heard.len() < 64, "{bytes:02x?}: {}", tags(&heard));
            let ready = message.0 == b'Z';
            heard.push(message);
            if ready {
                break;
            }
        }
        assert!(!tags(&heard).contains('D'), "{bytes:02x?}");
    }
    works(router.port, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_behind_a_login_costs_nobody_else_anything() {
    let server = Server::shared().await;
    let router = Running::start(one_source(server.source("only"))).await;
    let database = server.database().await;
    let messages = frames(b"QPBDECSHXdcfFpYz\0");
    for bytes in cases("after_login", &messages) {
        let mut raw = Raw::login(router.port, &database).await;
        raw.send(&bytes).await;
        // A batch that is open is ended, so that there is an answer in any case.
        raw.send(&[b'S', 0, 0, 0, 4]).await;
        raw.send(&[b'X', 0, 0, 0, 4]).await;
        drop(raw);
    }
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::login(router.port, &database).await;
        let begun = raw.ask(&[query("BEGIN")]).await;
        assert_eq!(status(&begun), 'T');
        let held = raw.ask(&[query("SELECT 1")]).await;
        assert_eq!(first_column(&held), ["1"], "{}", field(&held, b'M'));
        clients.push(raw);
    }
}

/// Logs everybody in, and then answers each first message with `bytes` and closes.
async fn server_that_answers(all: Arc<Vec<Vec<u8>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        let mut next = 0;
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let bytes = all[next % all.len()].clone();
            next += 1;
            tokio::spawn(async move {
                let mut heard = vec![0; 64 * 1024];
                let _startup = stream.read(&mut heard).await;
                let hello = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x16server_version\x0015.1\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
                let mut hello = hello.to_vec();
                // The length of the parameter, its text being what it is.
                hello[13] = u8::try_from("server_version\x0015.1\0".len() + 4).expect("short");
                if stream.write_all(&hello).await.is_err() {
                    return;
                }
                let _query = stream.read(&mut heard).await;
                let _gone = stream.write_all(&bytes).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_answers_its_client_is_told_and_the_router_stays() {
    let answers = frames(b"ZTDCEN123tnsIGHWARKvZ\0");
    let all = Arc::new(cases("server", &answers));
    let count = all.len();
    let hostile = server_that_answers(all).await;
    let good = Server::shared().await;
    let mut config = one_source(good.source("only"));
    config.sources[0].addresses = vec![Endpoint::Tcp(format!("127.0.0.1:{hostile}").into())];
    config.limits.wait_timeout = std::time::Duration::from_secs(5);
    let router = Running::start(config).await;
    let extended = [
        fixture::raw::parse("", "SELECT 1"),
        fixture::raw::bind("", "", &[]),
        fixture::raw::execute("", 0),
        fixture::raw::sync(),
    ]
    .concat();
    for n in 0..count {
        let mut raw = Raw::login(router.port, "any").await;
        let ask = if n % 2 == 0 { query("SELECT 1") } else { extended.clone() };
        // Ready again, or closed; never silence, since that server closes.
        let heard = raw.ask(&[ask]).await;
        assert!(heard.len() < 64, "{}", tags(&heard));
    }
    let mut raw = Raw::login(router.port, "any").await;
    let told = raw.ask(&[query("SHOW HOLDFAST POOLS")]).await;
    assert_eq!(status(&told), 'I', "the router itself answers as ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_hits_the_begin_of_a_transaction_is_told_as_one() {
    for (sqlstate, wanted) in [("57014", "57014"), ("22023", "08006")] {
        let body = format!("SERROR\0VERROR\0C{sqlstate}\0Mno more of it\0\0");
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        let answer = [b"E", &length[..], body.as_bytes()].concat();
        let hostile = server_that_answers(Arc::new(vec![answer; 4])).await;
        let mut config = one_source(Server::shared().await.source("only"));
        config.sources[0].addresses = vec![Endpoint::Tcp(format!("127.0.0.1:{hostile}").into())];
        let router = Running::start(config).await;
        let mut raw = Raw::login(router.port, "any").await;
        assert_eq!(status(&raw.ask(&[query("BEGIN")]).await), 'T', "it waits for a server");
        let told = raw.ask(&[query("SELECT 1")]).await;
        assert_eq!((field(&told, b'C').as_str(), status(&told)), (wanted, 'E'), "{}", tags(&told));
        assert!(field(&told, b'M').contains("no more of it"));
        assert_eq!(status(&raw.ask(&[query("ROLLBACK")]).await), 'I');
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_login_failed_can_do_nothing() {
    let server = Server::shared().await;
    let database = server.database().await;
    let user = UserConfig {
        name: "postgres".to_owned(),
        verifier: Verifier::of_password("right", b"0123456789abcdef", 4096),
    };
    let router = Running::start(RouterConfig {
        authentication: Authentication::Scram([user].into()),
        ..one_source(server.source("only"))
    })
    .await;
    let direct = server.connect(&database).await.expect("it runs");
    let mut startup = 196_608_i32.to_be_bytes().to_vec();
    for text in ["user", "postgres", "database", &database, ""] {
        startup.extend(text.as_bytes());
        startup.push(0);
    }
    let length = u32::try_from(startup.len() + 4).expect("short").to_be_bytes();
    let startup = [&length[..], &startup].concat();
    let make = query("CREATE TABLE made (a int)");
    let sasl = |body: &[u8]| {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [b"p", &length[..], body].concat()
    };
    let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let count = u32::try_from(first.len()).expect("short").to_be_bytes();
    let first = sasl(&[b"SCRAM-SHA-256\0", &count[..], first].concat());
    for attempt in [
        vec![startup.clone(), make.clone()],
        vec![startup.clone(), first.clone(), make.clone()],
        vec![startup.clone(), sasl(b"NOTHING\0\0\0\0\0"), make.clone()],
        vec![startup.clone(), first, sasl(b"c=biws,r=wrong,p=AAAA"), make.clone()],
        vec![make.clone()],
    ] {
        let mut raw = Raw::silent(router.port).await;
        raw.send(&attempt.concat()).await;
        let heard = raw.until_ready().await;
        assert!(!tags(&heard).contains('Z'), "it is never ready: {}", tags(&heard));
    }
    let made = direct.query_opt("SELECT 1 FROM pg_class WHERE relname = 'made'", &[]).await;
    assert!(made.expect("right").is_none());
}
