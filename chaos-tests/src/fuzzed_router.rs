//! Bytes as whatever reaches a router: a client before its login and behind it, a server that answers anything, a statement, a rules file.
//!
//! For the first three a router runs in this process, between a client and servers made of a few lines each, all of them on loopback
//! and for as long as the process does. What is promised of any bytes: whoever says them is answered or turned away within a bound,
//! no thread of the router panics, nobody gets past a login without its proof, and the next client is served.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use holdfast_route::{
    Copy, CopyIn, CopyRow, Format, Parameter, Shape, Slot, Target, Template, Topology, Values,
    explained, statements,
};
use holdfast_shard_router::{
    Router, Verifier,
    config::{Authentication, Endpoint, Limits, RouterConfig, SourceConfig, UserConfig},
};
use tokio_util::sync::CancellationToken;

/// For an answer or an end, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a client of this file hears before it takes them for too many.
const HEARD_MAX: usize = 8 << 20;
/// Bytes of a reader's input; more would test the sockets alone.
const INPUT_MAX: usize = 64 * 1024;
/// Bytes of one row of a COPY.
const ROW_MAX: usize = 1_000;
/// The rules that statements are read by.
const RULES: &str = include_str!("../../shard-router/route/testscripts/rules/bank.toml");

/// Panics of the router's threads.
static PANICS: AtomicU64 = AtomicU64::new(0);
/// What the hostile server answers.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static STAGE: LazyLock<Stage> = LazyLock::new(Stage::set);
/// One input at a time: the hostile server has one answer.
static TURN: Mutex<()> = Mutex::new(());

/// Routers and their servers.
struct Stage {
    /// Everybody logs in; the server is polite.
    open: SocketAddr,
    /// Nobody here knows the password.
    locked: SocketAddr,
    /// Everybody logs in; the server answers anything.
    hostile: SocketAddr,
}

impl Stage {
    fn set() -> Self {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if thread::current().name().is_some_and(|name| name.starts_with("router-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(panic);
        }));
        let polite = serve("polite", polite);
        let hostile = serve("hostile", hostile);
        let user = UserConfig {
            name: "u".to_owned(),
            verifier: Verifier::of_password("a secret", b"0123456789abcdef", 4096),
        };
        Self {
            open: route(&polite, Authentication::TrustLoopback),
            locked: route(&polite, Authentication::Scram([user].into())),
            hostile: route(&hostile, Authentication::TrustLoopback),
        }
    }
}

/// Answers every connection to a socket of its own in a thread; the socket goes with the system's temporary files.
fn serve(name: &str, answer: fn(UnixStream) -> std::io::Result<()>) -> PathBuf {
    let folder = tempfile::Builder::new().prefix("holdfast-fuzz-").tempdir().expect("a folder");
    let path = folder.keep().join(name);
    let listener = UnixListener::bind(&path).expect("a new socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One that the router leaves alone ends with an error, which is as good as any end.
            thread::spawn(move || drop(answer(stream)));
        }
    });
    path
}

/// Starts a router in front of the server at `path`.
fn route(path: &std::path::Path, authentication: Authentication) -> SocketAddr {
    let source = SourceConfig {
        name: "only".into(),
        addresses: vec![Endpoint::Unix(path.to_owned())],
        database: None,
        user: None,
        password: None,
        weak_authentication: false,
        tls: None,
    };
    let limits = Limits { pool_size: 4, message_bytes_max: 1 << 20, ..Limits::default() };
    let config = RouterConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        workers: 1,
        rules: None,
        sources: vec![source],
        database: None,
        authentication,
        tls: None,
        require_tls: false,
        coordinator: None,
        secret: vec![7; 32],
        limits,
    };
    let (told, address) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let router = Router::start(config).await.expect("the configuration is sound");
            told.send(router.address()).expect("it is waited for");
            router.serve(CancellationToken::new()).await.expect("threads can be started");
        });
    });
    address.recv().expect("the router starts")
}

const HELLO: &[u8] = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\x0015.1\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";

/// Logs everybody in, and answers each message with the least that fits.
fn polite(mut stream: UnixStream) -> std::io::Result<()> {
    read_startup(&mut stream)?;
    stream.write_all(HELLO)?;
    let mut status = b'I';
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        stream.read_exact(&mut body)?;
        let complete = b"C\0\0\0\x0dSELECT 0\0".as_slice();
        let answer = match head[0] {
            b'Q' => {
                status = after(&body, status);
                [complete, &[b'Z', 0, 0, 0, 5, status]].concat()
            }
            b'P' => b"1\0\0\0\x04".to_vec(),
            b'B' => b"2\0\0\0\x04".to_vec(),
            b'C' => b"3\0\0\0\x04".to_vec(),
            b'D' if body.first() == Some(&b'S') => b"t\0\0\0\x06\0\0n\0\0\0\x04".to_vec(),
            b'D' => b"n\0\0\0\x04".to_vec(),
            b'E' => complete.to_vec(),
            b'S' => vec![b'Z', 0, 0, 0, 5, status],
            b'X' => return Ok(()),
            _ => Vec::new(),
        };
        stream.write_all(&answer)?;
    }
}

/// In or out of a transaction behind this query.
fn after(query: &[u8], status: u8) -> u8 {
    let words = String::from_utf8_lossy(query).to_ascii_uppercase();
    match words.split_whitespace().next() {
        Some(word) if word.starts_with("BEGIN") || word.starts_with("START") => b'T',
        Some(word) if word.starts_with("COMMIT") || word.starts_with("ROLLBACK") => b'I',
        _ => status,
    }
}

/// Says what it is told to say: in place of a login where the first byte is odd, otherwise to the first message behind one.
fn hostile(mut stream: UnixStream) -> std::io::Result<()> {
    read_startup(&mut stream)?;
    let answer = ANSWER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (kind, words) = answer.split_first().unwrap_or((&0, &[]));
    if kind % 2 == 0 {
        stream.write_all(HELLO)?;
        let _asked = stream.read(&mut [0; 64 * 1024])?;
    }
    stream.write_all(words)
}

fn read_startup(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; (u32::from_be_bytes(head) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)
}

/// A client of a router.
struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let until = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).expect("a bound above nothing");
                    return Self(stream);
                }
                // So many connections were made that every port waits for its end.
                Err(error) => assert!(Instant::now() < until, "the door is closed: {error}"),
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn login(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        client.say(b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
        let heard = client.hear(true);
        assert!(ready(&heard), "no login: {heard:02x?}");
        client
    }

    /// Whoever is cut off in the middle of a sentence has been answered.
    fn say(&mut self, bytes: &[u8]) {
        drop(self.0.write_all(bytes));
    }

    /// Everything up to the end, or up to where the router is ready for more.
    fn hear(&mut self, until_ready: bool) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut room = [0; 16 * 1024];
        while !(until_ready && ready(&heard)) {
            match self.0.read(&mut room) {
                Ok(0) => break,
                Ok(count) => heard.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("neither answer nor end behind {heard:02x?}");
                }
                // Cut off.
                Err(_) => break,
            }
            assert!(heard.len() < HEARD_MAX, "it does not end");
        }
        heard
    }

    fn half_close(&self) {
        drop(self.0.shutdown(Shutdown::Write));
    }
}

/// Whether these are whole messages of which the last says that the router is ready.
fn ready(heard: &[u8]) -> bool {
    messages(heard).last() == Some(&b'Z')
}

/// The tags of whole messages, as far as there are.
fn messages(mut heard: &[u8]) -> Vec<u8> {
    let mut tags = Vec::new();
    while let Some((&[tag, a, b, c, d], _)) = heard.split_first_chunk::<5>() {
        let total = u32::from_be_bytes([a, b, c, d]) as usize + 1;
        let Some(rest) = heard.get(total..) else { break };
        tags.push(tag);
        heard = rest;
    }
    tags
}

/// Runs one input alone, and sees that no thread of a router panics.
fn alone(bytes: &[u8], play: impl FnOnce(&Stage, &[u8])) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = &*STAGE;
    let before = PANICS.load(Ordering::SeqCst);
    play(stage, &bytes[..bytes.len().min(INPUT_MAX)]);
    assert_eq!(PANICS.load(Ordering::SeqCst), before, "a thread of the router panicked");
}

/// Bytes from a client that has not logged in: nothing that it says gets it in.
pub fn before_login(bytes: &[u8]) {
    alone(bytes, |stage, bytes| {
        let mut client = Client::connect(stage.locked);
        client.say(bytes);
        client.half_close();
        let heard = client.hear(false);
        // A wish for encryption is answered by one letter.
        let wishes = heard.iter().take(2).take_while(|&&byte| byte == b'N').count();
        let tags = messages(&heard[wishes..]);
        let past = tags.iter().any(|tag| b"ZKDTC".contains(tag));
        assert!(!past, "past the login: {}", String::from_utf8_lossy(&tags));
        let proved = b"R\0\0\0\x08\0\0\0\0";
        assert!(!heard.windows(proved.len()).any(|window| window == proved), "{heard:02x?}");
    });
}

/// Bytes from a client behind its login: it is answered or turned away, and the next one is served.
pub fn after_login(bytes: &[u8]) {
    alone(bytes, |stage, bytes| {
        let mut client = Client::login(stage.open);
        client.say(bytes);
        // What it left open is ended, so that there is an answer in any case.
        client.say(b"S\0\0\0\x04X\0\0\0\x04");
        client.half_close();
        client.hear(false);
        let mut next = Client::login(stage.open);
        next.say(b"Q\0\0\0\x0dSELECT 1\0");
        let heard = next.hear(true);
        assert!(ready(&heard), "the next client is not served: {heard:02x?}");
        next.say(b"X\0\0\0\x04");
    });
}

/// Bytes from a server: its client is told, or cut off, and the router goes on.
pub fn server(bytes: &[u8]) {
    alone(bytes, |stage, bytes| {
        bytes.clone_into(&mut ANSWER.lock().unwrap_or_else(PoisonError::into_inner));
        let mut client = Client::connect(stage.hostile);
        client.say(b"\0\0\0\x10\0\x03\0\0user\0u\0\0Q\0\0\0\x0dSELECT 1\0");
        client.half_close();
        client.hear(false);
        let mut next = Client::login(stage.open);
        next.say(b"X\0\0\0\x04");
    });
}

/// Bytes as SQL: it is routed or refused, the same way each time, to sources that are there, each once.
pub fn sql(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let rules = Arc::new(Topology::parse(RULES).expect("the rules are sound"));
    let _explained = explained(text);
    let Ok(ranges) = statements(text) else { return };
    let mut end = 0;
    for range in ranges {
        assert!(end <= range.start && range.start <= range.end, "statements overlap");
        end = range.end;
        one_statement(text.get(range).expect("a range of the text"), &rules);
    }
}

fn one_statement(text: &str, rules: &Arc<Topology>) {
    let Ok(template) = Template::of(text) else { return };
    let Ok(shape) = Shape::read(template.text(), rules) else { return };
    assert!(shape.fits(rules), "a shape does not fit what it was read by");
    for value in [None, Some(b"7".as_slice()), Some(b"acct-1")] {
        let parameter = Parameter { oid: 0, format: Format::Text, value };
        let parameters = [parameter; 4];
        let literals = template.literals();
        let values = Values { sql: text, literals, parameters: &parameters };
        let plan = shape.plan(rules, &values);
        assert_eq!(plan, shape.plan(rules, &values), "two plans of one statement");
        let Ok(plan) = plan else { continue };
        match plan.target {
            Target::Any => {}
            Target::One(source) => assert!(rules.source_at(source).is_some(), "no such source"),
            Target::Several(parts) => {
                let sources: Vec<_> = parts.iter().map(|part| part.source).collect();
                let once: BTreeSet<_> = sources.iter().copied().collect();
                assert_eq!(once.into_iter().collect::<Vec<_>>(), sources, "out of order, or twice");
                assert!(sources.len() > 1, "several are one");
                let known = |source| rules.source_at(source).is_some();
                assert!(sources.into_iter().all(known), "no such source");
            }
        }
    }
}

/// Bytes as a COPY and, behind its first line, what the client copies: in any pieces the same rows, each as it came and for a source that there
/// is. Where the COPY is one of merged rows: as a row that a source sends.
pub fn copy_data(bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(text), Some(stream)) = (halves.next(), halves.next()) else { return };
    let Ok(sql) = std::str::from_utf8(text) else { return };
    let rules = Arc::new(Topology::parse(RULES).expect("the rules are sound"));
    let Ok(template) = Template::of(sql) else { return };
    let Ok(shape) = Shape::read(template.text(), &rules) else { return };
    let values = Values { sql, literals: template.literals(), parameters: &[] };
    let Ok(plan) = shape.plan(&rules, &values) else { return };
    match &plan.copy {
        Some(Copy::In(copy)) => divided(copy, stream, plan.sources()),
        Some(Copy::Written(written)) => {
            let line = written.row(stream);
            assert!(line.is_err() || line.is_ok_and(|line| line.ends_with(b"\n")), "no line");
        }
        Some(Copy::Out { .. }) | None => {}
    }
}

fn divided(copy: &Arc<CopyIn>, stream: &[u8], parts: usize) {
    let columns = ["customer", "account_no", "code"].map(str::to_owned);
    let columns = copy.named().unwrap_or(&columns);
    for csv_ends in [true, false] {
        let divide = |length: usize| {
            let mut divider = copy.divider(columns, ROW_MAX, csv_ends).ok()?;
            let mut rows = Vec::new();
            let mut keep = |row: CopyRow<'_>| rows.push((row.part, row.bytes.to_vec()));
            let pushed = stream.chunks(length).try_for_each(|piece| divider.push(piece, &mut keep));
            let told = pushed.and_then(|()| divider.finish(&mut keep));
            Some((told, rows))
        };
        let whole = divide(stream.len().max(1));
        assert_eq!(whole, divide(1), "pieces make a difference");
        assert_eq!(whole, divide(7), "pieces make a difference");
        let Some((_, rows)) = whole else { return };
        assert!(rows.iter().all(|(part, _)| part.is_none_or(|part| part < parts)), "no such part");
        assert!(rows.iter().all(|(_, row)| row.len() <= ROW_MAX), "longer than its limit");
        assert!(stream.starts_with(&rows.into_iter().flat_map(|(_, row)| row).collect::<Vec<_>>()));
    }
}

/// Bytes as a rules file: mistakes are told with their lines, and what is taken has each slot on exactly one shard.
pub fn rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Topology::parse(text) {
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "refused without a mistake");
            for mistake in mistakes {
                let words = [&mistake.cause, &mistake.remedy];
                assert!(!words.iter().any(|words| words.is_empty()), "without words: {mistake:?}");
                assert!(mistake.line <= text.lines().count() + 1, "beyond the end: {mistake:?}");
            }
        }
        Ok(topology) => {
            let again = Topology::parse(text).expect("it was right");
            assert!(topology.reads_like(&again), "read twice, it differs");
            for (name, group) in topology.groups() {
                let shards = topology.shards().keys();
                let ranges: Vec<_> = shards.flat_map(|shard| group.slots_of(shard)).collect();
                for slot in Slot::all() {
                    let holders =
                        ranges.iter().filter(|range| range.first <= slot && slot <= range.last);
                    assert_eq!(holders.count(), 1, "{name}: slot {}", slot.number());
                }
            }
        }
    }
}
