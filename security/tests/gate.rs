//! Floods at the gate: connections that say nothing, and an accept storm at the limit of file descriptors.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use holdfast_security::{Authority, ClientAuth, Credentials, Door, Gate, Name, Peer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(60);
/// Tells this test binary that it is the child, and what its limit is.
const CHILD: &str = "GATE_TEST_FDS";

fn name(text: &str) -> Name {
    Name::parse(text).expect(text)
}

fn pair(dir: &std::path::Path) -> (Credentials, Credentials) {
    let authority = Authority::in_dir(dir).expect("an authority");
    let node = authority.credentials(&name("holdfast://bank/node/1")).expect("a node");
    let user = authority.credentials(&name("holdfast://bank/user/alice?role=app")).expect("a user");
    (node, user)
}

/// A gate whose connections say who they are taken for, and its address.
async fn echo(door: Door, connections: usize, handshakes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let gate = Gate::new(listener, "http", door, b"http/1.1").bounded(connections, handshakes);
    let mut incoming = gate.open(CancellationToken::new());
    tokio::spawn(async move {
        while let Some(mut connection) = incoming.next().await {
            tokio::spawn(async move {
                let mut byte = [0];
                if connection.read_exact(&mut byte).await.is_ok() {
                    let who = match connection.peer() {
                        Peer::Dev => "dev".to_owned(),
                        Peer::Anonymous => "anonymous".to_owned(),
                        Peer::Named(name) => name.to_string(),
                    };
                    // A caller may have gone.
                    let _ = connection.write_all(who.as_bytes()).await;
                    let _ = connection.shutdown().await;
                }
            });
        }
    });
    address
}

/// Who `credentials` are taken for at `address`; an error if they are not let in.
async fn taken_for(credentials: &Credentials, address: SocketAddr) -> std::io::Result<String> {
    let connector = credentials.connector(Some(1));
    let mut stream = connector.open(&address.to_string(), b"http/1.1").await?;
    stream.write_all(b"?").await?;
    let mut who = String::new();
    stream.read_to_string(&mut who).await?;
    Ok(who)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_make_room_for_one_that_speaks() {
    let dir = tempfile::tempdir().expect("a directory");
    let (node, user) = pair(dir.path());
    let door = Door::MutualTls { credentials: node, auth: ClientAuth::Required };
    // Fewer places than there are silent connections, both of handshakes and of connections.
    for (connections, handshakes) in [(1_000, 16), (16, 1_000)] {
        let address = echo(door.clone(), connections, handshakes).await;
        let silent: Vec<TcpStream> =
            (0..200).map(|_| TcpStream::connect(address).expect("the backlog takes it")).collect();
        let began = Instant::now();
        let who = timeout(SOON, taken_for(&user, address)).await.expect("in time").expect("let in");
        assert_eq!(who, "holdfast://bank/user/alice?role=app");
        assert!(began.elapsed() < SOON);
        drop(silent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_the_wrong_node_end_their_own_connection_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (node, user) = pair(dir.path());
    let door = Door::MutualTls { credentials: node, auth: ClientAuth::Required };
    let address = echo(door, 100, 100).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff",
        &[0; 4_096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).expect("the backlog takes it");
        // It may hang up before everything is written.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let _hung_up = stream.read_to_end(&mut Vec::new());
    }
    // A client that expects node 2 does not speak to node 1.
    let refused = user.connector(Some(2)).open(&address.to_string(), b"http/1.1").await;
    assert!(refused.expect_err("another node").to_string().contains("node 2 was expected"));
    assert!(taken_for(&user, address).await.expect("let in").ends_with("alice?role=app"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_is_nobody_where_tokens_are_taken_and_nothing_elsewhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let (node, user) = pair(dir.path());
    let files = holdfast_security::Files { ca: user.files().ca.clone(), identity: None };
    let bare = Credentials::open(files).expect("an authority");
    let optional = Door::MutualTls { credentials: node.clone(), auth: ClientAuth::Optional };
    assert_eq!(taken_for(&bare, echo(optional, 10, 10).await).await.expect("let in"), "anonymous");
    let required = Door::MutualTls { credentials: node, auth: ClientAuth::Required };
    assert!(taken_for(&bare, echo(required, 10, 10).await).await.is_err());
}

/// The child of [`an_accept_storm_at_the_limit_of_file_descriptors_passes`]; on its own it does nothing.
#[test]
fn child_with_few_file_descriptors() {
    let Ok(limit) = std::env::var(CHILD) else { return };
    let limit: u64 = limit.parse().expect("a number");
    let resource = nix::sys::resource::Resource::RLIMIT_NOFILE;
    nix::sys::resource::setrlimit(resource, limit, limit).expect("a lower limit is allowed");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        // More places than file descriptors: the kernel refuses before the gate does.
        let address = echo(Door::DevPlaintext, 10_000, 1_000).await;
        say(&format!("at {address}"));
        let mut full = false;
        // Until the parent kills it.
        loop {
            let now = std::fs::File::open("/dev/null").is_err();
            if now && !full {
                say("full");
            }
            full |= now;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

fn say(words: &str) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "{words}").and_then(|()| out.flush()).expect("the parent listens");
}

/// Kills the child when the test ends, however it ends.
struct Gone(Child);

impl Drop for Gone {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn an_accept_storm_at_the_limit_of_file_descriptors_passes() {
    let this = std::env::current_exe().expect("a test binary");
    let child = Command::new(this)
        .args(["--exact", "child_with_few_file_descriptors", "--nocapture"])
        .env(CHILD, "64")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Gone(child.expect("it starts"));
    let mut lines = BufReader::new(child.0.stderr.take().expect("piped")).lines();
    let mut next = |start: &str| loop {
        let line = lines.next().expect("the child lives").expect("UTF-8");
        if let Some(rest) = line.strip_prefix(start) {
            return rest.to_owned();
        }
    };
    let address: SocketAddr = next("at ").parse().expect("an address");
    let storm: Vec<TcpStream> =
        (0..120).map(|_| TcpStream::connect(address).expect("the backlog takes it")).collect();
    next("full");
    drop(storm);
    let mut stream = TcpStream::connect(address).expect("the door is there");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.write_all(b"?").expect("it is taken");
    let mut who = String::new();
    stream.read_to_string(&mut who).expect("it is answered");
    assert_eq!(who, "dev");
}
