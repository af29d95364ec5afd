//! Sessions against a real gRPC server on a real socket: hello, calls, answers, credit, reconnect, drain, and garbage.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::Stream;
use holdfast_proto::{
    Pairs,
    v1::{
        self, AgentMessage, CoordinatorMessage, agent_message, coordinator_message,
        participants_server::{Participants, ParticipantsServer},
    },
};
use holdfast_tcc_agent::{Answer, Asked, Handler, Op, ServeConfig, Status, serve};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Streaming, transport::Server};

/// One session as the coordinator sees it.
struct Seat {
    hello: v1::Hello,
    inward: Streaming<AgentMessage>,
    outward: mpsc::Sender<Result<CoordinatorMessage, tonic::Status>>,
}

impl Seat {
    async fn say(&self, message: coordinator_message::Message) {
        self.outward.send(Ok(CoordinatorMessage { message: Some(message) })).await.unwrap();
    }

    async fn welcome(&self, node: u64, coordinators: &[&str]) {
        let coordinators = coordinators.iter().map(|&address| address.to_owned()).collect();
        let welcome = v1::Welcome { node, coordinators, silence_max_ms: 10_000 };
        self.say(coordinator_message::Message::Welcome(welcome)).await;
    }

    async fn call(&self, calls: Vec<v1::Call>) {
        self.say(coordinator_message::Message::Calls(v1::Calls::write(calls))).await;
    }

    /// The next message that is no beat; `None` at the end of the session.
    async fn next(&mut self) -> Option<agent_message::Message> {
        let next = async {
            loop {
                match self.inward.message().await {
                    Ok(Some(AgentMessage { message: Some(agent_message::Message::Beat(_)) })) => {}
                    Ok(Some(AgentMessage { message })) => return message,
                    Ok(None) | Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next).await.expect("a message in time")
    }

    /// Answers until there are as many, by call id.
    async fn answers(&mut self, count: usize) -> BTreeMap<u64, v1::Answer> {
        let mut answers = BTreeMap::new();
        while answers.len() < count {
            match self.next().await {
                Some(agent_message::Message::Answers(batch)) => {
                    for answer in batch.answers {
                        assert!(answers.insert(answer.call_id, answer).is_none(), "answered twice");
                    }
                }
                other => panic!("{other:?} after {} answers", answers.len()),
            }
        }
        answers
    }
}

struct Door {
    seats: mpsc::Sender<Seat>,
}

#[tonic::async_trait]
impl Participants for Door {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, tonic::Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, tonic::Status> {
        let mut inward = request.into_inner();
        let seats = self.seats.clone();
        let (outward, messages) = mpsc::channel(64);
        tokio::spawn(async move {
            let first = inward.message().await.unwrap().unwrap();
            let Some(agent_message::Message::Hello(hello)) = first.message else {
                panic!("the first message is {first:?}")
            };
            let _taken = seats.send(Seat { hello, inward, outward }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// A coordinator node.
struct Node {
    address: SocketAddr,
    seats: mpsc::Receiver<Seat>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Node {
    async fn start(at: Option<SocketAddr>) -> Self {
        let listener = match at {
            // The old one may still be closing.
            Some(address) => loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            },
            None => TcpListener::bind("127.0.0.1:0").await.unwrap(),
        };
        let address = listener.local_addr().unwrap();
        let (sender, seats) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let served = tokio::spawn(async move {
            let door =
                ParticipantsServer::new(Door { seats: sender }).max_decoding_message_size(64 << 20);
            let serving = Server::builder()
                .add_service(door)
                .serve_with_incoming(TcpListenerStream::new(listener));
            tokio::select! {
                served = serving => served.unwrap(),
                () = stopped => {}
            }
        });
        Self { address, seats, stop, served }
    }

    async fn seat(&mut self) -> Seat {
        tokio::time::timeout(Duration::from_secs(20), self.seats.recv())
            .await
            .expect("a session in time")
            .unwrap()
    }

    async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.served.await.unwrap();
        self.address
    }
}

/// Answers at once by the payload, or keeps the call until told.
#[derive(Clone, Default)]
struct Desk {
    kept: Arc<Mutex<Vec<Asked>>>,
    seen: Arc<Mutex<Vec<holdfast_tcc_agent::Call>>>,
}

impl Handler for Desk {
    fn handle(&self, asked: Vec<Asked>) {
        for asked in asked {
            self.seen.lock().unwrap().push(asked.call.clone());
            match &asked.call.payload[..] {
                b"keep" => self.kept.lock().unwrap().push(asked),
                b"drop" => drop(asked),
                b"refuse" => {
                    asked
                        .reply
                        .answer(Answer::Refused { code: "c".repeat(100), message: "no\0".into() });
                }
                b"work" => asked.reply.answer(Answer::Working),
                _ => asked.reply.answer(Answer::Done),
            }
        }
    }
}

struct Agent {
    status: Status,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Agent {
    fn start(desk: Desk, coordinators: Vec<String>, change: impl FnOnce(&mut ServeConfig)) -> Self {
        let mut config = ServeConfig::new("deposit", coordinators);
        change(&mut config);
        let status = config.status.clone();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let served = tokio::spawn(async move { serve(config, desk, token).await.unwrap() });
        Self { status, shutdown, served }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.served)
            .await
            .expect("it stops in time")
            .unwrap();
        assert_eq!((self.status.connected_coordinators(), self.status.calls_under_way()), (0, 0));
    }
}

fn headers<N: AsRef<str>>(pairs: impl IntoIterator<Item = (N, &'static str)>) -> Vec<Bytes> {
    pairs.into_iter().collect::<Pairs>().into()
}

fn call(call_id: u64, payload: &'static str) -> v1::Call {
    v1::Call {
        call_id,
        gid: "g-1".into(),
        branch: u32::try_from(call_id).unwrap(),
        op: v1::Op::Try.into(),
        payload: Bytes::from_static(payload.as_bytes()),
        deadline_ms: 5,
        headers: headers([("traceparent", "00-1")]),
        attempt: 3,
        repeat: true,
        refusal_waits: true,
        ..v1::Call::default()
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_come_in_and_each_is_answered_once() {
    let mut node = Node::start(None).await;
    let desk = Desk::default();
    let agent = Agent::start(desk.clone(), vec![node.address.to_string()], |config| {
        config.version = "1.2".into();
        config.zone = "eu-1".into();
        config.credit = 64;
        config.weight = 0;
    });
    let mut seat = node.seat().await;
    let hello = &seat.hello;
    assert_eq!(
        (hello.service.as_str(), hello.version.as_str(), hello.zone.as_str()),
        ("deposit", "1.2", "eu-1")
    );
    assert_eq!((hello.weight, hello.credit, hello.instance.is_empty()), (100, 64, false));
    assert!(!agent.status.is_ready());
    seat.welcome(1, &[]).await;
    until("welcomed", || agent.status.is_ready()).await;

    let mut calls: Vec<v1::Call> = (1..=40).map(|id| call(id, "done")).collect();
    calls.extend([call(41, "refuse"), call(42, "work"), call(43, "drop")]);
    // What is no call is answered unknown, and harms no other.
    calls.push(v1::Call { gid: "no gid".into(), ..call(44, "done") });
    calls.push(v1::Call { gid: String::new(), ..call(45, "done") });
    calls.push(v1::Call { branch: 0, ..call(46, "done") });
    calls.push(v1::Call { branch: u32::MAX, ..call(47, "done") });
    calls.push(v1::Call { op: 0, ..call(48, "done") });
    calls.push(v1::Call { op: 77, ..call(49, "done") });
    let many = |count| headers((0..count).map(|n| (format!("h{n}"), "")));
    calls[39].headers = many(128);
    calls.push(v1::Call { headers: many(129), ..call(50, "done") });
    calls.push(v1::Call { headers: vec!["\nno entry".into()], ..call(51, "done") });
    // As the call before it, which is none; then as one that is, in two messages.
    let as_before = |id| v1::Call { headers_as_before: true, headers: vec![], ..call(id, "done") };
    calls.push(as_before(52));
    seat.call(calls).await;
    let (tenant, context) = (headers([("tenant", "t")]), Bytes::from_static(&[7; 25]));
    let first = v1::Call { headers_as_before: true, headers: tenant, ..call(54, "done") };
    seat.call(vec![first, v1::Call { trace_context: context, ..as_before(53) }]).await;
    let answers = seat.answers(54).await;
    for (id, answer) in &answers {
        let verdict = match id {
            1..=40 | 53 | 54 => v1::Verdict::Done,
            41 => v1::Verdict::Refused,
            42 => v1::Verdict::Working,
            _ => v1::Verdict::Unspecified,
        };
        assert_eq!(answer.verdict(), verdict, "{answer:?}");
    }
    assert_eq!((answers[&41].code.len(), answers[&41].message.as_str()), (64, "no"));
    let seen = desk.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 45);
    let first = seen.iter().find(|call| call.branch == 7).unwrap();
    assert_eq!(
        (first.gid.as_str(), first.op, first.deadline_ms, first.attempt),
        ("g-1", Op::Try, 5, 3)
    );
    assert!(first.repeat && first.refusal_waits);
    assert_eq!(first.headers.get("traceparent").as_deref(), Some("00-1"));
    let traced = seen.iter().find(|call| call.branch == 53).unwrap();
    let headers: Vec<_> = traced.headers.iter().collect();
    let said = "00-07070707070707070707070707070707-0707070707070707-07".into();
    assert_eq!(headers, [("tenant", "t".into()), ("traceparent", said)]);
    assert_eq!(agent.status.calls_under_way(), 0);
    drop(seat);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_the_credit_is_taken() {
    let mut node = Node::start(None).await;
    let desk = Desk::default();
    let agent =
        Agent::start(desk.clone(), vec![node.address.to_string()], |config| config.credit = 4);
    let mut seat = node.seat().await;
    seat.welcome(1, &[]).await;
    seat.call((1..=6).map(|id| call(id, "keep")).collect()).await;
    // Two are beyond the credit: unknown, at once.
    let answers = seat.answers(2).await;
    assert!(answers.values().all(|answer| answer.verdict() == v1::Verdict::Unspecified));
    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), [5, 6]);
    assert_eq!(agent.status.calls_under_way(), 4);
    // Each answer gives a credit back.
    let kept = desk.kept.lock().unwrap().pop().unwrap();
    kept.reply.answer(Answer::Done);
    assert_eq!(seat.answers(1).await[&4].verdict(), v1::Verdict::Done);
    seat.call(vec![call(7, "done")]).await;
    assert_eq!(seat.answers(1).await[&7].verdict(), v1::Verdict::Done);
    desk.kept.lock().unwrap().clear();
    assert_eq!(seat.answers(3).await.len(), 3);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_without_a_coordinator_and_comes_back_after_every_loss() {
    // Nobody is there at first.
    let node = Node::start(None).await;
    let address = node.stop().await;
    let desk = Desk::default();
    let agent = Agent::start(desk.clone(), vec![address.to_string()], |_| {});
    assert!(!agent.status.is_ready());
    let mut node = Node::start(Some(address)).await;
    for round in 1..=3 {
        let mut seat = node.seat().await;
        seat.welcome(1, &[]).await;
        seat.call(vec![call(round, "keep"), call(round + 10, "done")]).await;
        assert_eq!(seat.answers(1).await.len(), 1);
        if round == 2 {
            // The node dies with a call under way; its answer finds no session, and nothing breaks.
            drop(seat);
            node.stop().await;
            until("the loss is noticed", || agent.status.connected_coordinators() == 0).await;
            desk.kept.lock().unwrap().drain(..).for_each(|asked| asked.reply.answer(Answer::Done));
            assert_eq!(agent.status.calls_under_way(), 0);
            node = Node::start(Some(address)).await;
        } else {
            // The session ends, the node stays.
            drop(seat);
            until("the loss is noticed", || agent.status.connected_coordinators() == 0).await;
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_enough_to_find_the_others_and_none_is_dialled_twice() {
    let (mut one, mut two) = (Node::start(None).await, Node::start(None).await);
    let desk = Desk::default();
    // The first is known by a second name as well.
    let alias = format!("localhost:{}", one.address.port());
    let agent = Agent::start(desk, vec![one.address.to_string(), alias], |_| {});
    let (first, second) = (one.seat().await, one.seat().await);
    let addresses = [one.address.to_string(), two.address.to_string()];
    let told: Vec<&str> =
        addresses.iter().map(String::as_str).chain(["evil address", "http://x:1/", ":0"]).collect();
    first.welcome(1, &told).await;
    until("welcomed", || agent.status.connected_coordinators() == 1).await;
    second.welcome(1, &told).await;
    // The second session to the same node ends by itself.
    let mut second = second;
    assert_eq!(second.next().await, None);
    let third = two.seat().await;
    third.welcome(2, &told).await;
    until("both", || agent.status.connected_coordinators() == 2).await;
    // When the session that counts is lost, one of the two names takes its place.
    drop((first, second));
    let again = one.seat().await;
    again.welcome(1, &[]).await;
    until("both again", || agent.status.connected_coordinators() == 2).await;
    drop((again, third));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_answers_what_is_under_way() {
    let mut node = Node::start(None).await;
    let desk = Desk::default();
    let agent = Agent::start(desk.clone(), vec![node.address.to_string()], |_| {});
    let mut seat = node.seat().await;
    seat.welcome(1, &[]).await;
    seat.call(vec![call(1, "keep"), call(2, "keep")]).await;
    until("both are under way", || desk.kept.lock().unwrap().len() == 2).await;
    agent.shutdown.cancel();
    assert_eq!(seat.next().await, Some(agent_message::Message::Drain(v1::Drain {})));
    assert!(agent.status.is_draining() && !agent.status.is_ready());
    // One that crossed the drain on its way is carried out as well.
    seat.call(vec![call(3, "done")]).await;
    assert_eq!(seat.answers(1).await[&3].verdict(), v1::Verdict::Done);
    desk.kept.lock().unwrap().drain(..).for_each(|asked| asked.reply.answer(Answer::Done));
    let answers = seat.answers(2).await;
    assert!(answers.values().all(|answer| answer.verdict() == v1::Verdict::Done));
    assert_eq!(seat.next().await, None);
    drop(seat);
    agent.stop().await;

    // Calls that nobody answers do not hold the shutdown up for ever.
    let agent = Agent::start(desk.clone(), vec![node.address.to_string()], |config| {
        config.drain_timeout_ms = 100
    });
    let mut seat = node.seat().await;
    seat.welcome(1, &[]).await;
    seat.call(vec![call(1, "keep")]).await;
    until("it is under way", || desk.kept.lock().unwrap().len() == 1).await;
    agent.shutdown.cancel();
    assert_eq!(seat.next().await, Some(agent_message::Message::Drain(v1::Drain {})));
    assert_eq!(seat.next().await, None);
    drop(seat);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_come_and_silence_ends_a_session() {
    let mut node = Node::start(None).await;
    let agent = Agent::start(Desk::default(), vec![node.address.to_string()], |_| {});
    let mut seat = node.seat().await;
    let welcome = v1::Welcome { node: 1, coordinators: vec![], silence_max_ms: 3_000 };
    seat.say(coordinator_message::Message::Welcome(welcome)).await;
    let mut beats = 0;
    let ended = loop {
        match tokio::time::timeout(Duration::from_secs(20), seat.inward.message())
            .await
            .expect("in time")
        {
            Ok(Some(AgentMessage { message: Some(agent_message::Message::Beat(_)) })) => beats += 1,
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) | Err(_) => break true,
        }
    };
    assert!(ended && beats >= 2, "{beats} beats");
    // It dials again.
    let _seat = node.seat().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_messages_and_garbage_end_a_session_and_nothing_else() {
    let mut node = Node::start(None).await;
    let desk = Desk::default();
    let agent = Agent::start(desk.clone(), vec![node.address.to_string()], |config| {
        config.message_bytes_max = 64 << 10
    });
    let seat = node.seat().await;
    seat.welcome(1, &[]).await;
    let large = v1::Call { payload: Bytes::from(vec![0; 128 << 10]), ..call(1, "") };
    seat.call(vec![large]).await;
    // The session breaks; the next one serves.
    let mut seat = node.seat().await;
    seat.welcome(1, &[]).await;
    seat.say(coordinator_message::Message::Beat(v1::Beat {})).await;
    seat.outward.send(Ok(CoordinatorMessage { message: None })).await.unwrap();
    seat.call(vec![call(2, "done")]).await;
    assert_eq!(seat.answers(1).await[&2].verdict(), v1::Verdict::Done);
    assert_eq!(desk.seen.lock().unwrap().len(), 1);
    drop(seat);
    agent.stop().await;

    // A node that speaks something else altogether: hung up on, dialled again, never believed.
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent =
        Agent::start(Desk::default(), vec![stranger.local_addr().unwrap().to_string()], |_| {});
    for garbage in
        [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[0xff; 4096], b"", &[0, 0, 0, 4, 0, 0, 0, 0, 0]]
    {
        let accepted = tokio::time::timeout(Duration::from_secs(20), stranger.accept()).await;
        let (mut stream, _) = accepted.expect("dialled again").unwrap();
        let _written = stream.write_all(garbage).await;
        let _read = stream.read(&mut [0; 64]).await;
    }
    assert_eq!(agent.status.connected_coordinators(), 0);
    drop(stranger);
    agent.stop().await;
}
