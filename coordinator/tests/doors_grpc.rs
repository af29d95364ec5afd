//! The gRPC door over real sockets: every RPC, every status code, and bad input at and past each limit.

mod doors;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use doors::{Cluster, Node, SOON, done, frozen_until, refused};
use holdfast_proto::{
    Pairs,
    v1::{
        self, AddBranchRequest, BeginRequest, BranchSpec, ExchangeRequest, GetRequest, ListRequest,
        Mode, NodeStatusRequest, Options, Outcome, RetryRequest, RollBackRequest, Status,
        SubmitBegunRequest, SubmitRequest, Wait, WaitRequest, admin_client::AdminClient,
        exchange_reply::Reply, exchange_request::Request as Asked,
        transactions_client::TransactionsClient,
    },
};
use holdfast_security::right::RPCS;
use holdfast_txn::limit;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn connect(node: &Node) -> TransactionsClient<Channel> {
    TransactionsClient::connect(format!("http://{}", node.grpc)).await.expect("the door is open")
}

fn branch(participant: &str) -> BranchSpec {
    BranchSpec {
        participant: participant.into(),
        payload: Bytes::from_static(b"{}"),
        ..BranchSpec::default()
    }
}

fn transfer(gid: &str, participants: &[&str]) -> SubmitRequest {
    SubmitRequest {
        gid: gid.into(),
        mode: Mode::Tcc.into(),
        branches: participants.iter().map(|name| branch(name)).collect(),
        ..SubmitRequest::default()
    }
}

/// A status's code, the code in its metadata, and the kind.
fn told(status: &tonic::Status) -> (Code, &str, &str) {
    let text = |name: &str| {
        status.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    (status.code(), text("holdfast-code"), text("holdfast-kind"))
}

/// What `grpcurl list`, `grpcurl describe` and a load balancer ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_knows_every_service_of_the_door_and_health_says_that_they_serve() {
    let cluster = Cluster::of(1).await;
    let door = format!("http://{}", cluster.leader().grpc);
    let door = Endpoint::from_shared(door).unwrap().connect().await.unwrap();
    let mut reflection = ServerReflectionClient::new(door.clone());
    let mut ask = async |what: MessageRequest| {
        let asked = ServerReflectionRequest { message_request: Some(what), ..Default::default() };
        let told = reflection.server_reflection_info(tokio_stream::once(asked)).await.unwrap();
        told.into_inner().message().await.unwrap().expect("an answer").message_response
    };
    let Some(MessageResponse::ListServicesResponse(list)) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("a list of services")
    };
    let listed: BTreeSet<String> = list.service.into_iter().map(|one| one.name).collect();
    let of_peers = |service: &&str| *service != "holdfast.v1.RaftPeer";
    let served: BTreeSet<&str> =
        RPCS.iter().filter_map(|(path, _)| path.split('/').nth(1)).filter(of_peers).collect();
    for service in &served {
        assert!(listed.contains(*service), "{service} is not among {listed:?}");
        let described = ask(MessageRequest::FileContainingSymbol((*service).to_owned())).await;
        let Some(MessageResponse::FileDescriptorResponse(files)) = described else {
            panic!("{service} is not described: {described:?}")
        };
        assert!(files.file_descriptor_proto.iter().all(|file| !file.is_empty()), "{service}");
    }
    let mut health = HealthClient::new(door);
    for service in ["", "holdfast.v1.Transactions", "holdfast.v1.Participants", "holdfast.v1.Admin"]
    {
        let asked = HealthCheckRequest { service: service.to_owned() };
        let told = health.check(asked).await.unwrap().into_inner();
        assert_eq!(told.status(), ServingStatus::Serving, "{service:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_caller_is_answered() {
    let cluster = Cluster::of(1).await;
    let mut client = connect(cluster.leader()).await;
    let _yes = cluster.serve("yes", done).await;
    let _no = cluster.serve("no", refused).await;

    // Submit.
    let reply = client.submit(transfer("pay-1", &["yes", "yes"])).await.unwrap().into_inner();
    assert_eq!((reply.outcome(), reply.repeated), (Outcome::Committed, false));
    let again = client.submit(transfer("pay-1", &["yes", "yes"])).await.unwrap().into_inner();
    assert_eq!((again.outcome(), again.repeated), (Outcome::Committed, true));
    let reply = client.submit(transfer("pay-2", &["yes", "no"])).await.unwrap().into_inner();
    assert_eq!(reply.outcome(), Outcome::RolledBack);
    let refused = &reply.transaction.unwrap().branches[1];
    assert_eq!(refused.refusal_code, "insufficient_funds");
    let mut open = transfer("pay-3", &["nobody"]);
    open.wait_timeout_ms = 50;
    let reply = client.submit(open).await.unwrap().into_inner();
    assert_eq!(
        (reply.outcome(), reply.transaction.unwrap().status()),
        (Outcome::Unknown, Status::Trying)
    );

    // Begin, AddBranch, SubmitBegun.
    let begin = BeginRequest { gid: "pay-4".into(), mode: Mode::Saga.into(), options: None };
    let reply = client.begin(begin.clone()).await.unwrap().into_inner();
    assert_eq!(
        (reply.outcome(), reply.transaction.unwrap().status()),
        (Outcome::Unknown, Status::Active)
    );
    assert!(client.begin(begin).await.unwrap().into_inner().repeated);
    for number in 1..=2 {
        let add = AddBranchRequest {
            gid: "pay-4".into(),
            branch: number,
            spec: Some(branch("yes")),
            parent: 0,
        };
        let reply = client.add_branch(add).await.unwrap().into_inner();
        assert_eq!(reply.transaction.unwrap().branches.len(), number as usize);
    }
    let close = SubmitBegunRequest {
        gid: "pay-4".into(),
        wait: Wait::End.into(),
        wait_timeout_ms: 10_000,
        captures: Vec::new(),
    };
    let reply = client.submit_begun(close).await.unwrap().into_inner();
    assert_eq!(
        (reply.outcome(), reply.transaction.unwrap().status()),
        (Outcome::Committed, Status::Committed)
    );

    // RollBack, Get, Wait.
    let undo = RollBackRequest {
        gid: "pay-3".into(),
        reason: "x".repeat(3_000),
        ..RollBackRequest::default()
    };
    let reply = client.roll_back(undo).await.unwrap().into_inner();
    assert_eq!(reply.outcome(), Outcome::RolledBack);
    assert!(reply.transaction.unwrap().reason.len() <= limit::REASON_BYTES_MAX + 100);
    for stale in [false, true] {
        let read = GetRequest { gid: "pay-4".into(), stale };
        assert_eq!(client.get(read).await.unwrap().into_inner().outcome(), Outcome::Committed);
    }
    let wait = WaitRequest { gid: "pay-1".into(), wait: Wait::End.into(), wait_timeout_ms: 10_000 };
    let reply = client.wait(wait).await.unwrap().into_inner();
    assert_eq!(reply.transaction.unwrap().status(), Status::Committed);
    let wait = WaitRequest { gid: "pay-3".into(), wait: Wait::End.into(), wait_timeout_ms: 50 };
    let reply = client.wait(wait).await.unwrap().into_inner();
    assert_eq!(
        (reply.outcome(), reply.transaction.unwrap().status()),
        (Outcome::RolledBack, Status::RollingBack)
    );

    // List.
    let mut list = ListRequest { limit: 3, ..ListRequest::default() };
    let first = client.list(list.clone()).await.unwrap().into_inner();
    list.after_gid = first.next_after_gid;
    let second = client.list(list).await.unwrap().into_inner();
    let gids: Vec<String> =
        first.transactions.into_iter().chain(second.transactions).map(|one| one.gid).collect();
    assert_eq!(gids, ["pay-1", "pay-2", "pay-3", "pay-4"]);
    let finished =
        ListRequest { statuses: vec![Status::RolledBack.into()], ..ListRequest::default() };
    assert_eq!(client.list(finished).await.unwrap().into_inner().transactions[0].gid, "pay-2");

    // NodeStatus.
    let address = format!("http://{}", cluster.leader().grpc);
    let mut admin = AdminClient::connect(address).await.unwrap();
    let status = admin.node_status(NodeStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((status.node, status.leader, status.role.as_str()), (1, 1, "leader"));
    assert_eq!(status.leader_grpc, cluster.leader().grpc);
    assert_eq!(status.open_transactions, 1);
    assert!(status.members[0].voter && status.applied_index > 0);
    assert_eq!(status.state_hash, "", "nobody asked for it");
    let request = NodeStatusRequest { state_hash: true, ..NodeStatusRequest::default() };
    let hashed = admin.node_status(request).await.unwrap().into_inner();
    assert_eq!(hashed.state_hash.len(), 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_confirm_is_retried_unary_and_over_the_stream() {
    let cluster = Cluster::of(1).await;
    let mut client = connect(cluster.leader()).await;
    let repaired = Arc::new(AtomicBool::new(false));
    let _yes = cluster.serve("yes", done).await;
    let _frozen = cluster.serve("frozen", frozen_until(Arc::clone(&repaired))).await;
    for gid in ["pay-1", "pay-2"] {
        let mut whole = transfer(gid, &["yes", "frozen"]);
        whole.wait = Wait::End.into();
        let stuck = client.submit(whole).await.unwrap().into_inner();
        assert_eq!(stuck.outcome(), Outcome::Committed, "a decision never changes");
        assert_eq!(stuck.transaction.unwrap().status(), Status::NeedsAttention);
    }
    let retry = |gid: &str, reason: &str| RetryRequest {
        gid: gid.into(),
        reason: reason.into(),
        ..RetryRequest::default()
    };
    let silent = client.retry(retry("pay-1", "")).await.unwrap_err();
    assert_eq!(told(&silent), (Code::InvalidArgument, "HF2301", "refused"));
    repaired.store(true, Ordering::SeqCst);
    let retried = client.retry(retry("pay-1", "thawed")).await.unwrap().into_inner();
    assert_eq!(retried.transaction.unwrap().status(), Status::Committed);
    let late = client.retry(retry("pay-1", "thawed")).await.unwrap_err();
    assert_eq!(told(&late), (Code::FailedPrecondition, "HF2004", "refused"));
    let missing = client.retry(retry("nothing", "thawed")).await.unwrap_err();
    assert_eq!(told(&missing), (Code::NotFound, "HF2001", "refused"));

    let asked = Asked::Retry(retry("pay-2", "thawed"));
    let request = ExchangeRequest { request_id: 7, request: Some(asked), on_behalf_of: None };
    let requests = tokio_stream::iter([request]);
    let mut replies = client.exchange(requests).await.unwrap().into_inner();
    let reply = timeout(SOON, replies.message()).await.expect("in time").unwrap().expect("one");
    let Some(Reply::Transaction(told)) = reply.reply else { panic!("{reply:?}") };
    assert_eq!((reply.request_id, told.outcome()), (7, Outcome::Committed));
    assert_eq!(told.transaction.unwrap().status(), Status::Committed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_its_status_and_its_code() {
    let cluster = Cluster::of(1).await;
    let mut client = connect(cluster.leader()).await;
    let mut open = transfer("pay-1", &["nobody"]);
    open.wait = Wait::None.into();
    client.submit(open.clone()).await.unwrap();

    let mut other = open.clone();
    other.branches[0].payload = Bytes::from_static(b"other");
    let taken = client.submit(other).await.unwrap_err();
    assert_eq!(told(&taken), (Code::AlreadyExists, "HF2002", "refused"));
    assert_eq!(taken.metadata().get("holdfast-gid").unwrap(), "pay-1");
    let read = GetRequest { gid: "nothing".into(), stale: false };
    let missing = client.get(read).await.unwrap_err();
    assert_eq!(told(&missing), (Code::NotFound, "HF2001", "refused"));
    let wait = WaitRequest { gid: "nothing".into(), ..WaitRequest::default() };
    assert_eq!(told(&client.wait(wait).await.unwrap_err()), (Code::NotFound, "HF2001", "refused"));
    let add = AddBranchRequest {
        gid: "pay-1".into(),
        branch: 2,
        spec: Some(branch("nobody")),
        parent: 0,
    };
    let late = client.add_branch(add).await.unwrap_err();
    assert_eq!(told(&late), (Code::FailedPrecondition, "HF2004", "refused"));
}

/// A row of the table of bad input: what is wrong, and a word that its message must hold.
type Row = (&'static str, Box<dyn Fn(&mut SubmitRequest)>);

fn options(change: impl Fn(&mut Options) + 'static) -> Box<dyn Fn(&mut SubmitRequest)> {
    Box::new(move |submit| change(submit.options.get_or_insert_default()))
}

fn labels(count: usize) -> Vec<Bytes> {
    (0..count).map(|n| (format!("n{n}"), "v")).collect::<Pairs>().into()
}

fn entry(name: &str, value: &str) -> Vec<Bytes> {
    Pairs::from_iter([(name, value)]).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_limit_holds_at_the_limit_and_not_one_past_it() {
    let cluster = Cluster::of(1).await;
    let mut client = connect(cluster.leader()).await.max_decoding_message_size(64 << 20);
    let mut number = 0;
    let mut base = || {
        number += 1;
        let mut submit = transfer(&format!("pay-{number}"), &["nobody"]);
        submit.wait = Wait::None.into();
        submit
    };
    let (branches, payload) = (limit::BRANCHES_MAX, limit::PAYLOAD_BYTES_MAX);
    let (payloads, timeout_ms) = (limit::PAYLOADS_BYTES_MAX, limit::TIMEOUT_MS_MAX);
    let (label, count) = (limit::LABEL_BYTES_MAX, limit::LABELS_MAX);
    let fill = move |submit: &mut SubmitRequest, bytes: usize| {
        submit.branches = vec![branch("nobody"); bytes.div_ceil(payload)];
        for (n, branch) in submit.branches.iter_mut().enumerate() {
            branch.payload = Bytes::from(vec![b'x'; payload.min(bytes - n * payload)]);
        }
    };
    let at: Vec<Row> = vec![
        ("gid", Box::new(|s| s.gid = format!("{}{}", s.gid, "a".repeat(35 - s.gid.len())))),
        ("participant", Box::new(|s| s.branches[0].participant = "a".repeat(64))),
        ("branches", Box::new(move |s| s.branches = vec![branch("nobody"); branches])),
        ("payload", Box::new(move |s| s.branches[0].payload = vec![0; payload].into())),
        ("payloads", Box::new(move |s| fill(s, payloads))),
        ("timeout", options(move |o| o.timeout_ms = timeout_ms)),
        ("call", options(|o| (o.timeout_ms, o.call_timeout_ms) = (500, 500))),
        ("tags", options(move |o| o.tags = labels(count))),
        ("headers", options(move |o| o.headers = labels(count))),
        ("tag", options(move |o| o.tags = entry("n", &"v".repeat(label - 1)))),
        ("wait", Box::new(|s| s.wait_timeout_ms = 60_000)),
        (
            "after",
            Box::new(|s| {
                s.branches.push(branch("nobody"));
                s.branches[1].after = vec![1, 1];
            }),
        ),
    ];
    for (what, change) in at {
        let mut submit = base();
        change(&mut submit);
        let reply = client.submit(submit).await;
        assert!(reply.is_ok(), "{what}: {reply:?}");
    }
    let past: Vec<Row> = vec![
        ("gid", Box::new(|s| s.gid = "a".repeat(36))),
        ("gid", Box::new(|s| s.gid = "a_b".into())),
        ("mode", Box::new(|s| s.mode = 0)),
        ("mode", Box::new(|s| s.mode = 77)),
        ("participant", Box::new(|s| s.branches[0].participant = "a".repeat(65))),
        ("participant", Box::new(|s| s.branches[0].participant = String::new())),
        ("participant", Box::new(|s| s.branches[0].participant = "A".into())),
        ("branches", Box::new(|s| s.branches.clear())),
        ("branches", Box::new(move |s| s.branches = vec![branch("nobody"); branches + 1])),
        ("payload", Box::new(move |s| s.branches[0].payload = vec![0; payload + 1].into())),
        ("together", Box::new(move |s| fill(s, payloads + 1))),
        ("timeout_ms", options(move |o| o.timeout_ms = timeout_ms + 1)),
        ("call_timeout_ms", options(|o| (o.timeout_ms, o.call_timeout_ms) = (500, 501))),
        ("tags", options(move |o| o.tags = labels(count + 1))),
        ("headers", options(move |o| o.headers = labels(count + 1))),
        ("bytes", options(move |o| o.tags = entry("n", &"v".repeat(label)))),
        ("empty", options(|o| o.tags = entry("", "v"))),
        ("no name and value", options(|o| o.headers = vec!["\n".into()])),
        ("header", options(|o| o.headers = entry("a b", "v"))),
        ("ASCII", options(|o| o.headers = entry("a", "b\r\nc: d"))),
        ("order", options(|o| o.order = 9)),
        ("recovery", options(|o| o.recovery = 9)),
        ("saga", options(|o| o.recovery = v1::Recovery::Forward.into())),
        ("tries", options(|o| o.tries = v1::CalledBy::Caller.into())),
        (
            "first_ms",
            options(|o| {
                o.retry = Some(v1::RetryPolicy { first_ms: 11, ceiling_ms: 10, attempts_max: 0 })
            }),
        ),
        (
            "ceiling_ms",
            options(move |o| {
                o.retry = Some(v1::RetryPolicy {
                    first_ms: 1,
                    ceiling_ms: timeout_ms + 1,
                    attempts_max: 0,
                })
            }),
        ),
        ("wait_timeout_ms", Box::new(|s| s.wait_timeout_ms = 60_001)),
        ("wait", Box::new(|s| s.wait = 9)),
        ("itself", Box::new(|s| s.branches[0].after = vec![1])),
        ("no branch 2", Box::new(|s| s.branches[0].after = vec![2])),
        ("pivot", Box::new(|s| s.branches[0].pivot = true)),
    ];
    for (what, change) in past {
        let mut submit = base();
        change(&mut submit);
        let gid = submit.gid.clone();
        let status = client.submit(submit).await.expect_err(what);
        assert_eq!(
            told(&status),
            (Code::InvalidArgument, "HF2301", "refused"),
            "{what}: {status:?}"
        );
        assert!(status.message().contains(what), "{what}: {}", status.message());
        if holdfast_txn::Gid::parse(&gid).is_ok() {
            let read = GetRequest { gid, stale: false };
            assert_eq!(client.get(read).await.expect_err(what).code(), Code::NotFound, "{what}");
        }
    }
    // Everything that is wrong is told at once.
    let status = client.submit(SubmitRequest { gid: "?".into(), ..Default::default() }).await;
    let status = status.unwrap_err();
    for what in ["gid", "mode", "branches"] {
        assert!(status.message().contains(what), "{what}: {}", status.message());
    }
    // What is larger than any request may be does not even get to the desk.
    let mut huge = base();
    huge.branches[0].payload = vec![0; 3 << 20].into();
    assert_eq!(client.submit(huge).await.unwrap_err().code(), Code::OutOfRange);
    for (add, what) in [
        (
            AddBranchRequest { gid: "x".into(), branch: 0, spec: Some(branch("a")), parent: 0 },
            "branch",
        ),
        (
            AddBranchRequest { gid: "x".into(), branch: 129, spec: Some(branch("a")), parent: 0 },
            "branch",
        ),
        (AddBranchRequest { gid: "x".into(), branch: 1, spec: None, parent: 0 }, "spec"),
    ] {
        let status = client.add_branch(add).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "HF2301", "refused"));
        assert!(status.message().contains(what), "{}", status.message());
    }
    for list in [
        ListRequest { limit: 1_001, ..ListRequest::default() },
        ListRequest { statuses: vec![0], ..ListRequest::default() },
        ListRequest { statuses: vec![1; 10], ..ListRequest::default() },
        ListRequest { after_gid: "a b".into(), ..ListRequest::default() },
    ] {
        let status = client.list(list).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "HF2301", "refused"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_stream_carries_thousands_and_answers_each_by_its_number() {
    let cluster = Cluster::of(1).await;
    let _yes = cluster.serve("yes", done).await;
    let mut client = connect(cluster.leader()).await;
    let (sender, requests) = mpsc::channel(64);
    let response = client.exchange(ReceiverStream::new(requests)).await.unwrap();
    assert_eq!(response.metadata().get("holdfast-leads").unwrap(), "true");
    assert_eq!(response.metadata().get("holdfast-nodes").unwrap(), cluster.leader().grpc.as_str());
    let mut replies = response.into_inner();
    const COUNT: u64 = 5_000;
    let asking = tokio::spawn(async move {
        for request_id in 0..COUNT {
            let request = match request_id % 10 {
                0 => None,
                1 => Some(Asked::Get(GetRequest { gid: "nothing".into(), stale: true })),
                _ => Some(Asked::Submit(transfer(&format!("pay-{request_id}"), &["yes", "yes"]))),
            };
            sender
                .send(ExchangeRequest { request_id, request, on_behalf_of: None })
                .await
                .expect("it is open");
        }
    });
    let mut seen = HashMap::new();
    while let Some(reply) = timeout(SOON, replies.message()).await.expect("in time").unwrap() {
        let told = match reply.reply.expect("every reply says something") {
            Reply::Transaction(told) => {
                assert_eq!(told.outcome(), Outcome::Committed);
                told.transaction.expect("it is known").gid
            }
            Reply::Error(error) => error.code,
        };
        assert!(seen.insert(reply.request_id, told).is_none(), "answered once");
    }
    asking.await.unwrap();
    for request_id in 0..COUNT {
        let expected = match request_id % 10 {
            0 => "HF2301".to_owned(),
            1 => "HF2001".to_owned(),
            _ => format!("pay-{request_id}"),
        };
        assert_eq!(seen.get(&request_id), Some(&expected));
    }
}

#[tokio::test]
async fn a_call_says_its_trace_in_bytes_to_an_agent_that_reads_short_calls_and_as_a_header_to_others()
 {
    const TRACE: &str = "00-07070707070707070707070707070707-0707070707070707-07";
    let cluster = Cluster::of(1).await;
    let (seen, mut calls) = mpsc::unbounded_channel();
    let mut agents = Vec::new();
    for (service, reads_short_calls) in [("short", true), ("whole", false)] {
        let (service, instance) = (service.to_owned(), service.to_owned());
        let hello = v1::Hello { service, instance, reads_short_calls, ..v1::Hello::default() };
        let seen = seen.clone();
        let answer = move |call: &v1::Call| {
            seen.send((reads_short_calls, call.clone())).expect("the test goes on");
            done(call)
        };
        agents.push(cluster.announce(hello, answer).await);
    }
    let headers = Pairs::from_iter([("color", "red"), ("traceparent", TRACE)]).into();
    let submit = SubmitRequest {
        options: Some(Options { headers, ..Options::default() }),
        wait: Wait::End.into(),
        ..transfer("g-short", &["short", "whole"])
    };
    connect(cluster.leader()).await.submit(submit).await.expect("it is taken");
    for _ in 0..4 {
        let (is_short, call) =
            timeout(SOON, calls.recv()).await.expect("each branch is called twice").unwrap();
        let headers = Pairs::from(call.headers);
        assert_eq!(headers.get("color"), Some("red"));
        assert_eq!(headers.get("traceparent"), (!is_short).then_some(TRACE));
        assert_eq!(&call.trace_context[..], &[7; 25][..if is_short { 25 } else { 0 }]);
    }
}
