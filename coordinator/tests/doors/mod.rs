//! Real nodes, an agent and a bare HTTP caller for the tests of the doors.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_coordinator::{Config, Coordinator, ServeError, config};
use holdfast_proto::v1::{self, Verdict, participants_client::ParticipantsClient};
use holdfast_raft::Member;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// For anything that happens soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Twice the default waits before an election: several tests share a few cores, and a follower that is not scheduled for a quarter of a
/// second must not depose a leader that a test watches.
fn patient() -> config::Timeouts {
    config::Timeouts { election_min_ms: 500, election_max_ms: 640, ..config::Timeouts::default() }
}

/// One running node.
pub(crate) struct Node {
    pub(crate) coordinator: Coordinator,
    pub(crate) grpc: String,
    pub(crate) http: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Node {
    pub(crate) fn leads(&self) -> bool {
        self.coordinator.leadership().borrow().leads_here
    }

    /// Stops the node as an operator does, and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        timeout(SOON, self.task)
            .await
            .expect("it ends in time")
            .expect("no panic")
            .expect("no fault");
    }
}

/// Running nodes of one cluster, and where they keep their logs.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    dir: TempDir,
}

/// The recorder of this test binary.
fn recorder() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| PrometheusBuilder::new().install_recorder().expect("the only recorder"))
        .clone()
}

impl Cluster {
    pub(crate) async fn of(size: u64) -> Self {
        Self::with(size, |_| {}).await
    }

    /// Starts `size` nodes with what `change` makes of the defaults, and waits until all are ready.
    pub(crate) async fn with(size: u64, change: impl Fn(&mut Config)) -> Self {
        let metrics = recorder();
        let dir = TempDir::new().expect("a directory");
        let mut doors = Vec::new();
        for node in 1..=size {
            let grpc = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let http = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let raft = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            doors.push((node, grpc, http, raft));
        }
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let members: Vec<Member> = doors
            .iter()
            .map(|(node, grpc, http, raft)| Member {
                node: *node,
                raft: address(raft).to_string(),
                grpc: address(grpc).to_string(),
                http: address(http).to_string(),
            })
            .collect();
        let mut starting = JoinSet::new();
        for (node, grpc, http, raft) in doors {
            let mut config = Config {
                node: config::Node { id: node, data_dir: dir.path().join(format!("node-{node}")) },
                cluster: config::Cluster {
                    name: "doors".into(),
                    members: members.clone(),
                    join: false,
                    groups: 1,
                },
                bind: config::Bind {
                    http: address(&http),
                    grpc: address(&grpc),
                    raft: address(&raft),
                },
                security: config::Security::DevPlaintext,
                timeouts: patient(),
                limits: config::Limits::default(),
                log: config::LogFiles {
                    segment_bytes: 4 * 1024 * 1024,
                    snapshot_every: 10_000,
                    ..Default::default()
                },
                history: config::Retention::default(),
            };
            change(&mut config);
            let metrics = metrics.clone();
            starting.spawn(async move {
                // Given back just before the log binds it.
                drop(raft);
                let coordinator = Coordinator::start(config.clone()).await.expect("it starts");
                let coordinator = coordinator.with_metrics(metrics);
                let shutdown = CancellationToken::new();
                let (grpc_at, http_at) = (config.bind.grpc.to_string(), config.bind.http);
                let task = tokio::spawn(coordinator.clone().serve_on(grpc, http, shutdown.clone()));
                (node, Node { coordinator, grpc: grpc_at, http: http_at, shutdown, task })
            });
        }
        let mut nodes = starting.join_all().await;
        nodes.sort_by_key(|(node, _)| *node);
        let nodes = nodes.into_iter().map(|(_, node)| node).collect();
        let cluster = Self { nodes, dir };
        cluster.ready().await;
        cluster
    }

    /// Waits until every node that runs is ready and one of them leads.
    pub(crate) async fn ready(&self) {
        until("every node is ready", || {
            self.nodes.iter().all(|node| node.coordinator.is_ready().is_ok())
                && self.nodes.iter().filter(|node| node.leads()).count() == 1
        })
        .await;
    }

    pub(crate) fn leader(&self) -> &Node {
        self.nodes.iter().find(|node| node.leads()).expect("one leads")
    }

    pub(crate) fn follower(&self) -> &Node {
        self.nodes.iter().find(|node| !node.leads()).expect("one follows")
    }

    /// Takes the leader out, still running.
    pub(crate) fn take_leader(&mut self) -> Node {
        let at = self.nodes.iter().position(Node::leads).expect("one leads");
        self.nodes.remove(at)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.clone()).collect()
    }

    /// Has `service` served at every node by an agent that answers as `answer` says; `None`: never.
    pub(crate) async fn serve(
        &self,
        service: &str,
        answer: impl Fn(&v1::Call) -> Option<v1::Answer> + Send + Sync + 'static,
    ) -> Agent {
        self.serve_as(service, &format!("{service}-1"), answer).await
    }

    /// As [`Self::serve`], by an instance of this name.
    pub(crate) async fn serve_as(
        &self,
        service: &str,
        instance: &str,
        answer: impl Fn(&v1::Call) -> Option<v1::Answer> + Send + Sync + 'static,
    ) -> Agent {
        let (service, instance) = (service.to_owned(), instance.to_owned());
        self.announce(v1::Hello { service, instance, ..v1::Hello::default() }, answer).await
    }

    /// As [`Self::serve`], by an instance that announces all this of itself, but for its credit.
    pub(crate) async fn announce(
        &self,
        hello: v1::Hello,
        answer: impl Fn(&v1::Call) -> Option<v1::Answer> + Send + Sync + 'static,
    ) -> Agent {
        let answer: Arc<Answering> = Arc::new(answer);
        let hello = v1::Hello { credit: 4_096, ..hello };
        let mut sessions = JoinSet::new();
        for node in &self.nodes {
            let session = open(&node.grpc, hello.clone(), Arc::clone(&answer)).await;
            sessions.spawn(session);
        }
        Agent { _sessions: sessions }
    }
}

type Answering = dyn Fn(&v1::Call) -> Option<v1::Answer> + Send + Sync;

/// Sessions that end when this is dropped.
pub(crate) struct Agent {
    _sessions: JoinSet<()>,
}

pub(crate) fn done(call: &v1::Call) -> Option<v1::Answer> {
    Some(v1::Answer {
        call_id: call.call_id,
        verdict: Verdict::Done.into(),
        ..v1::Answer::default()
    })
}

/// Refuses what may be refused, and does the rest.
pub(crate) fn refused(call: &v1::Call) -> Option<v1::Answer> {
    if !matches!(call.op(), v1::Op::Try | v1::Op::Action) {
        return done(call);
    }
    Some(v1::Answer {
        call_id: call.call_id,
        verdict: Verdict::Refused.into(),
        code: "insufficient_funds".into(),
        message: "available 50.00, needed 80.00".into(),
    })
}

/// Refuses to confirm until `repaired` says otherwise, and does the rest.
pub(crate) fn frozen_until(
    repaired: Arc<AtomicBool>,
) -> impl Fn(&v1::Call) -> Option<v1::Answer> + Send + Sync + 'static {
    move |call| {
        if call.op() != v1::Op::Confirm || repaired.load(Ordering::SeqCst) {
            return done(call);
        }
        Some(v1::Answer {
            call_id: call.call_id,
            verdict: Verdict::Refused.into(),
            code: "account_frozen".into(),
            message: "frozen by a court".into(),
        })
    }
}

/// Opens a session and has it welcomed; the future serves it.
async fn open(
    address: &str,
    hello: v1::Hello,
    answer: Arc<Answering>,
) -> impl Future<Output = ()> + Send + 'static {
    let mut client =
        ParticipantsClient::connect(format!("http://{address}")).await.expect("the node is up");
    let (sender, outward) = mpsc::channel(64);
    let say = |message| v1::AgentMessage { message: Some(message) };
    sender.send(say(v1::agent_message::Message::Hello(hello))).await.expect("it is open");
    let mut inward =
        client.session(ReceiverStream::new(outward)).await.expect("it is let in").into_inner();
    let welcome = timeout(SOON, inward.message()).await.expect("in time").expect("a message");
    assert!(welcome.is_some(), "the node welcomes an agent");
    async move {
        let mut beats = tokio::time::interval(Duration::from_secs(1));
        loop {
            let message = tokio::select! {
                message = inward.message() => message,
                _ = beats.tick() => {
                    let beat = v1::agent_message::Message::Beat(v1::Beat {});
                    if sender.send(say(beat)).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Ok(Some(message)) = message else { return };
            if let Some(v1::coordinator_message::Message::Calls(calls)) = message.message {
                let calls = v1::Calls::read(calls).expect("calls");
                let answers = calls.iter().filter_map(|call| answer(call)).collect();
                let answers = v1::agent_message::Message::Answers(v1::Answers { answers });
                if sender.send(say(answers)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Waits until `holds`, a short time at most.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// What an HTTP door answered.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Heard {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The problem's status, code and kind.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        for field in ["type", "title", "detail", "instance"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {self:?}");
        }
        let text = |field: &str| json[field].as_str().unwrap_or_default().to_owned();
        (self.status, text("code"), text("kind"))
    }
}

/// Sends `bytes` on a connection of its own and hears what comes back until the node closes it.
pub(crate) async fn bare(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("the door is open");
    // A node may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut heard)).await.expect("it closes in time");
    heard
}

/// Throws `bytes` at a door, says no more, and waits until the node hangs up.
pub(crate) async fn throw(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.expect("the door is open");
    // A node may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut heard = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut heard)).await.expect("it hangs up in time");
}

/// One HTTP request on a connection of its own.
pub(crate) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Heard {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n");
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let heard = bare(address, &[bytes.as_bytes(), body].concat()).await;
    let text = String::from_utf8(heard).expect("the door speaks UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Heard { status, head: head.to_owned(), body: body.to_owned() }
}

/// A POST of JSON.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Heard {
    let json = [("content-type", "application/json")];
    http(address, "POST", path, &json, body.to_string().as_bytes()).await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Heard {
    http(address, "GET", path, &[], b"").await
}
