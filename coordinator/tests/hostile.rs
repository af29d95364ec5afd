//! What hostile callers send to running nodes: somebody else's names within requests of their own, and floods.

mod doors;
mod house;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use doors::{Cluster, get, post, until};
use holdfast_client::Outcome;
use holdfast_proto::{
    Pairs,
    v1::{
        self, exchange_reply::Reply, exchange_request::Request,
        transactions_client::TransactionsClient,
    },
};
use house::{House, SOON, session, transfer};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};

const ALICE: &str = "user/alice?role=app";
const BOB: &str = "user/bob?role=app";
/// Of a caller's own participants, of somebody else's, and some that look like either.
const PARTICIPANT: &str = "(deposit|loyalty|Deposit|deposits|deposi)(@shard-[0-9]{1,2})?";
/// The header that says whose a transaction is, as a caller might spell it.
const TENANT: &str = "[Hh]oldfast-[Tt]e[Nn]ant";

/// One request of bob's in which something is not his.
#[derive(Clone, Debug)]
struct Swap {
    /// Which of the ten kinds of requests.
    kind: usize,
    /// The participants of its branches, if it has some.
    participants: Vec<String>,
    tenant_header: String,
    tenant: String,
    /// Whether he says that it is asked on behalf of alice, as nodes do for each other.
    on_behalf: bool,
    /// Which node he asks.
    node: usize,
    /// A flag, a wait or an act, whatever the kind has.
    choice: i32,
}

fn swaps() -> impl Strategy<Value = Swap> {
    let participants = prop::collection::vec(PARTICIPANT, 1..6);
    let tenant = (TENANT, "(retail|treasury|hr)");
    (0..10_usize, participants, tenant, prop::bool::weighted(0.2), 0..3_usize, 1..4_i32).prop_map(
        |(kind, participants, (tenant_header, tenant), on_behalf, node, choice)| Swap {
            kind,
            participants,
            tenant_header,
            tenant,
            on_behalf,
            node,
            choice,
        },
    )
}

impl Swap {
    /// The request, about the transaction `gid` of alice's.
    fn request(&self, gid: &str) -> Request {
        let gid = gid.to_owned();
        let headers = Pairs::from_iter([(&self.tenant_header, &self.tenant)]).into();
        let options = Some(v1::Options { headers, timeout_ms: HOUR_MS, ..Default::default() });
        let mode = v1::Mode::Tcc.into();
        let spec = |participant: &String| v1::BranchSpec {
            participant: participant.clone(),
            ..Default::default()
        };
        let (wait, reason, wait_timeout_ms) = (self.choice, "mine now".to_owned(), 1_000);
        match self.kind {
            0 => Request::Submit(v1::SubmitRequest {
                gid,
                mode,
                options,
                branches: self.participants.iter().map(spec).collect(),
                wait,
                wait_timeout_ms,
                rules_epoch: None,
            }),
            1 => Request::Begin(v1::BeginRequest { gid, mode, options }),
            2 => Request::AddBranch(v1::AddBranchRequest {
                gid,
                branch: 2,
                spec: self.participants.first().map(spec),
                parent: 0,
            }),
            3 => Request::SubmitBegun(v1::SubmitBegunRequest {
                gid,
                wait,
                wait_timeout_ms,
                ..Default::default()
            }),
            4 => Request::RollBack(v1::RollBackRequest {
                gid,
                reason,
                wait,
                wait_timeout_ms,
                abort_if_unknown: self.choice == 1,
            }),
            5 => Request::Get(v1::GetRequest { gid, stale: self.choice == 1 }),
            6 => Request::Wait(v1::WaitRequest { gid, wait, wait_timeout_ms }),
            7 => Request::Finish(v1::FinishRequest {
                gid,
                branches: vec![1],
                outcome: v1::Outcome::RolledBack.into(),
            }),
            8 => Request::Retry(v1::RetryRequest { gid, reason, wait, wait_timeout_ms }),
            _ => Request::Operate(v1::OperateRequest {
                gid,
                act: self.choice,
                branch: 1,
                reason,
                dry_run: self.choice == 2,
                dev_name: String::new(),
                wait,
                wait_timeout_ms,
            }),
        }
    }

    /// The one code that it is denied with.
    fn denied(&self) -> &'static str {
        let his = |one: &String| one == "loyalty" || one.starts_with("loyalty@");
        let named = match self.kind {
            0 => &self.participants[..],
            2 => &self.participants[..1],
            _ => &[],
        };
        match self.kind {
            // Only a node asks on behalf of somebody, and only an operator operates.
            _ if self.on_behalf => "HF2602",
            8 | 9 => "HF2602",
            _ if !named.iter().all(his) => "HF2603",
            // The gid is taken, by something that is not his; he hears no more of it.
            0 | 1 => "HF2002",
            _ => "HF2604",
        }
    }
}

const HOUR_MS: u64 = 3_600_000;

/// Asks over an exchange stream, and again while the cluster has no leader.
async fn asked(channel: Channel, swap: &Swap, gid: &str) -> Result<String, TestCaseError> {
    let forged = || v1::OnBehalf {
        name: "user/alice".into(),
        roles: vec!["app".into(), "sre".into(), "node".into()],
        tenant: "retail".into(),
        participants: vec!["*".into()],
    };
    let deadline = Instant::now() + SOON;
    loop {
        let request = v1::ExchangeRequest {
            request_id: 1,
            request: Some(swap.request(gid)),
            on_behalf_of: swap.on_behalf.then(forged),
        };
        let mut client = TransactionsClient::new(channel.clone());
        let stream = client.exchange(tokio_stream::iter([request])).await.expect("it is open");
        let heard = timeout(SOON, stream.into_inner().message()).await.expect("in time");
        let reply = heard.expect("the stream goes on").expect("a reply").reply.expect("one");
        match reply {
            Reply::Error(error) if !error.code.starts_with("HF21") => return Ok(error.code),
            // Between two leaders nobody knows: nothing is shown, and nothing is denied.
            Reply::Transaction(told) if told.transaction.is_some() => {
                return Err(TestCaseError::fail(format!("it was told {told:?}")));
            }
            between => prop_assert!(Instant::now() < deadline, "{between:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_swapped_in_whichever_request_is_denied_and_changes_nothing() {
    let house = House::of(3).await;
    let alice = house.client(ALICE).await;
    let options = Some(v1::Options { timeout_ms: HOUR_MS, ..Default::default() });
    let begin = v1::BeginRequest { gid: "hers".into(), mode: v1::Mode::Tcc.into(), options };
    let hers = house.channel(&house.cluster.nodes[0].grpc, &house.credentials(ALICE)).await;
    let deadline = Instant::now() + SOON;
    while let Err(fault) = TransactionsClient::new(hers.clone()).begin(begin.clone()).await {
        assert!(Instant::now() < deadline, "{fault:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let spec = holdfast_client::BranchSpec::new("deposit", "{}");
    alice.add_branch("hers", 1, spec).await.expect("it is hers");
    let before = alice.get("hers").await.expect("it is hers").transaction;

    let mut channels = Vec::new();
    for node in &house.cluster.nodes {
        channels.push(house.channel(&node.grpc, &house.credentials(BOB)).await);
    }
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Handle::current();
    let judged = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&swaps(), |swap| {
            let code = runtime.block_on(asked(channels[swap.node].clone(), &swap, "hers"))?;
            prop_assert_eq!(code, swap.denied(), "{:?}", swap);
            Ok(())
        })
    });
    judged.unwrap_or_else(|found| panic!("{found}"));

    let after = alice.get("hers").await.expect("it is hers").transaction;
    assert_eq!(format!("{after:?}"), format!("{before:?}"), "nothing of it happened");
    // The HTTP door judges by the same words.
    let heard = house.http(&house.credentials(BOB), "GET", "/v1/transactions/hers", "").await;
    assert_eq!(heard.problem().0, 403, "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_let_serve_no_service_but_the_one_of_its_certificate() {
    let house = House::of(1).await;
    let agent = house.credentials("service/deposit@shard-1");
    let channel = house.channel(&house.cluster.nodes[0].grpc, &agent).await;
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Handle::current();
    let judged = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&PARTICIPANT, |service| {
            let welcomed = runtime.block_on(session(channel.clone(), &service, doors::done));
            let code = welcomed.err().map(|refused| refused.code());
            let expected = match &service[..] {
                "deposit@shard-1" => None,
                // No service has capitals in its name.
                no_name if no_name.starts_with('D') => Some(Code::InvalidArgument),
                _ => Some(Code::PermissionDenied),
            };
            prop_assert_eq!(code, expected, "{}", service);
            Ok(())
        })
    });
    judged.unwrap_or_else(|found| panic!("{found}"));
}

/// Connections that begin and do not go on.
const HALF_OPEN: usize = 10_000;
/// File descriptors that are left to the nodes of this process, whose doors hold 1,024 handshakes each, and to other tests in it.
const FDS_LEFT: u64 = 4_000;

/// How many connections this process may hold beside its nodes; the soft limit is raised to what is allowed.
fn connections_held() -> usize {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, hard) = getrlimit(RLIMIT_NOFILE).expect("a limit");
    let wanted = hard.min(HALF_OPEN as u64 + FDS_LEFT);
    setrlimit(RLIMIT_NOFILE, wanted, hard).expect("up to the hard limit");
    usize::try_from(wanted.saturating_sub(FDS_LEFT)).expect("a small number").min(HALF_OPEN)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_connections_make_room_for_one_that_speaks() {
    let held = connections_held();
    assert!(held > 2_000, "a hard limit of file descriptors above 6,000 is needed");
    let house = House::of(1).await;
    house.serve("service/deposit", "deposit").await;
    let node = &house.cluster.nodes[0];
    let grpc: SocketAddr = node.grpc.parse().expect("an address");
    let mut half_open = VecDeque::with_capacity(held);
    for n in 0..HALF_OPEN {
        let door = if n % 2 == 0 { grpc } else { node.http };
        let connected = timeout(SOON, TcpStream::connect(door)).await.expect("in time");
        let mut stream = connected.expect("the backlog takes it");
        // The head of a handshake whose rest never comes, or nothing at all. It may have been pushed out already.
        if n % 3 != 0 {
            let _pushed_out = stream.write_all(b"\x16\x03\x01\x02\x00\x01").await;
        }
        if half_open.len() == held {
            half_open.pop_front();
        }
        half_open.push_back(stream);
    }
    // Somebody new comes in among them, by both doors.
    let alice = house.client(ALICE).await;
    let answer = alice.submit(transfer("among", "deposit")).await.expect("it is answered");
    assert_eq!(answer.outcome, Outcome::Committed);
    let among = house.http(&house.credentials(ALICE), "GET", "/v1/transactions/among", "").await;
    assert_eq!(among.status, 200, "{among:?}");
    drop(half_open);
    let answer = alice.submit(transfer("after", "deposit")).await.expect("it is answered");
    assert_eq!(answer.outcome, Outcome::Committed);
}

/// Streams of one flood; a door lets 64 of them wait.
const STREAMS: u32 = 20_000;
/// As RFC 9113 numbers them.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The streams that were reset among `bytes`, each with its error code. What is not whole yet is left out.
fn resets(mut bytes: &[u8]) -> Vec<(u32, u32)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four of them"));
    let mut resets = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let Some(payload) = bytes.get(9..9 + length) else { break };
        if bytes[3] == RST_STREAM {
            resets.push((number(&bytes[5..9]), number(payload)));
        }
        bytes = &bytes[9 + length..];
    }
    resets
}

/// The error code of the GOAWAY among `bytes`, if there is one.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let (kind, payload) = (bytes[3], bytes.get(9..9 + length)?);
        if kind == GOAWAY {
            return Some(u32::from_be_bytes(payload[4..8].try_into().expect("four of them")));
        }
        bytes = &bytes[9 + length..];
    }
    None
}

/// How a connection begins.
fn preface() -> Vec<u8> {
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface.extend(frame(SETTINGS, 0, 0, &[]));
    preface
}

/// :method POST, :scheme http, and :path without the table.
fn submit_headers() -> Vec<u8> {
    let path = b"/holdfast.v1.Transactions/Submit";
    let mut headers = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).expect("short")];
    headers.extend(path);
    headers
}

/// Opens streams and cancels each at once.
fn flood() -> Vec<u8> {
    let headers = submit_headers();
    let mut flood = preface();
    for stream in (0..STREAMS).map(|n| n * 2 + 1) {
        // END_HEADERS, and not the end of the stream.
        flood.extend(frame(HEADERS, 4, stream, &headers));
        flood.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    flood
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_as_soon_as_they_are_opened_harm_their_connection_alone() {
    let cluster = Cluster::of(1).await;
    let _yes = cluster.serve("yes", doors::done).await;
    let node = &cluster.nodes[0];
    let stream = TcpStream::connect(&node.grpc).await.expect("the door is open");
    let (mut read, mut write) = stream.into_split();
    let flooding = tokio::spawn(async move {
        // The node may hang up before all is written.
        let _cut = write.write_all(&flood()).await;
        // Nothing more comes: a node that took all of it hangs up in its turn.
        let _gone = write.shutdown().await;
    });
    let mut heard = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let ended = timeout(SOON, async {
        while goaway(&heard).is_none() {
            match read.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(count) => heard.extend(&chunk[..count]),
            }
        }
    });
    ended.await.expect("the connection is ended in time");
    // The word may be lost behind the reset of the connection; where it is heard, it is this one.
    assert!(goaway(&heard).is_none_or(|code| code == ENHANCE_YOUR_CALM), "{:?}", goaway(&heard));
    drop(read);
    timeout(SOON, flooding).await.expect("it is let go").expect("no panic");

    until("it leads", || node.leads()).await;
    let transfer =
        json!({"gid": "after", "mode": "tcc", "branches": [{"participant": "yes", "payload": {}}]});
    let answer = post(node.http, "/v1/transactions", &transfer).await;
    let outcome = &answer.json()["outcome"];
    assert_eq!((answer.status, outcome), (200, &json!("committed")), "{answer:?}");
    assert_eq!(get(node.http, "/readyz").await.status, 200);
}

/// Streams that a connection may have open, as the door says.
const STREAMS_MAX: u32 = 1_024;

#[tokio::test(flavor = "multi_thread")]
async fn as_many_streams_as_allowed_are_open_on_a_connection_and_one_more_is_refused() {
    let cluster = Cluster::of(1).await;
    let mut stream = TcpStream::connect(&cluster.nodes[0].grpc).await.expect("the door is open");
    let mut headers = submit_headers();
    // content-type, whose name is the 31st of the static table: a request whose message has not come yet.
    let grpc = b"application/grpc";
    headers.extend([0x0f, 16, u8::try_from(grpc.len()).expect("short")]);
    headers.extend(grpc);
    let mut bytes = preface();
    for id in (0..=STREAMS_MAX).map(|n| n * 2 + 1) {
        bytes.extend(frame(HEADERS, 4, id, &headers));
    }
    stream.write_all(&bytes).await.expect("all of it is read");
    let (mut heard, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    let refused = timeout(SOON, async {
        while resets(&heard).is_empty() {
            let count = stream.read(&mut chunk).await.expect("the connection stays");
            assert!(count > 0, "the connection ended: {:?}", goaway(&heard));
            heard.extend(&chunk[..count]);
        }
    });
    refused.await.expect("one stream is refused in time");
    // A client that keeps to what the door announces never sees this: it waits.
    assert_eq!(resets(&heard), [(STREAMS_MAX * 2 + 1, REFUSED_STREAM)]);
}
