//! A client against scripted nodes over real sockets: what is lost is asked again by the same gid, and unknown stays unknown.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, future::join_all};
use holdfast_client::{
    BranchSpec, Client, ClientError, ClientOptions, ErrorKind, FORWARD_HEADER, Outcome, Status,
    Submission, Terms, Wait,
    wire::{
        self, ExchangeReply, ExchangeRequest, TransactionReply,
        exchange_reply::Reply,
        exchange_request::Request as Asked,
        transactions_server::{Transactions, TransactionsServer},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tonic::{Request, Response, Streaming};

/// What a node does with a request.
enum Act {
    Reply(Box<Reply>),
    /// Ends the stream with an error, as a node that dies does.
    Break,
    Silence,
}

type Script = dyn Fn(usize, &Asked) -> Act + Send + Sync;

/// One scripted node.
#[derive(Clone)]
struct Node {
    leads: bool,
    leader: Arc<Mutex<String>>,
    script: Arc<Script>,
    heard: Arc<Mutex<Vec<Asked>>>,
    forward_never: Arc<Mutex<Vec<bool>>>,
}

struct Served {
    address: String,
    heard: Arc<Mutex<Vec<Asked>>>,
    forward_never: Arc<Mutex<Vec<bool>>>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    /// The gids asked for, in the order in which they were heard.
    fn gids(&self) -> Vec<String> {
        self.heard
            .lock()
            .expect("no test panics while it holds it")
            .iter()
            .map(|asked| gid(asked).to_owned())
            .collect()
    }
}

fn gid(asked: &Asked) -> &str {
    match asked {
        Asked::Submit(it) => &it.gid,
        Asked::Begin(it) => &it.gid,
        Asked::AddBranch(it) => &it.gid,
        Asked::SubmitBegun(it) => &it.gid,
        Asked::RollBack(it) => &it.gid,
        Asked::Retry(it) => &it.gid,
        Asked::Operate(it) => &it.gid,
        Asked::Finish(it) => &it.gid,
        Asked::Get(it) => &it.gid,
        Asked::Wait(it) => &it.gid,
    }
}

async fn serve(
    leads: bool,
    leader: &str,
    script: impl Fn(usize, &Asked) -> Act + Send + Sync + 'static,
) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    let node = Node {
        leads,
        leader: Arc::new(Mutex::new(leader.to_owned())),
        script: Arc::new(script),
        heard: Arc::default(),
        forward_never: Arc::default(),
    };
    let (heard, forward_never) = (Arc::clone(&node.heard), Arc::clone(&node.forward_never));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .add_service(TransactionsServer::new(node))
        .serve_with_incoming(incoming);
    let task = tokio::spawn(async move { server.await.expect("it serves") });
    Served { address: address.to_string(), heard, forward_never, task }
}

fn told(gid: &str, status: wire::Status, outcome: wire::Outcome) -> Act {
    let transaction =
        wire::Transaction { gid: gid.to_owned(), status: status.into(), ..Default::default() };
    let transaction = Some(transaction);
    Act::Reply(Box::new(Reply::Transaction(TransactionReply {
        transaction,
        outcome: outcome.into(),
        repeated: false,
        ..TransactionReply::default()
    })))
}

fn committed(asked: &Asked) -> Act {
    told(gid(asked), wire::Status::Committing, wire::Outcome::Committed)
}

fn error(kind: wire::ErrorKind, code: &str, leader: &str) -> Act {
    Act::Reply(Box::new(Reply::Error(wire::Error {
        kind: kind.into(),
        code: code.to_owned(),
        message: "as the script says".to_owned(),
        leader: leader.to_owned(),
    })))
}

fn impatient(patience_ms: u64) -> ClientOptions {
    ClientOptions { patience_ms, connect_timeout_ms: 500, ..ClientOptions::default() }
}

fn transfer() -> Submission {
    Submission::tcc().branch("a", "1").branch("b", "2")
}

type Unary = Result<Response<TransactionReply>, tonic::Status>;

#[tonic::async_trait]
impl Transactions for Node {
    async fn submit(&self, _: Request<wire::SubmitRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn begin(&self, _: Request<wire::BeginRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn add_branch(&self, _: Request<wire::AddBranchRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn submit_begun(&self, _: Request<wire::SubmitBegunRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn roll_back(&self, _: Request<wire::RollBackRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn retry(&self, _: Request<wire::RetryRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn operate(&self, _: Request<wire::OperateRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn retry_many(
        &self,
        _: Request<wire::RetryManyRequest>,
    ) -> Result<Response<wire::RetryManyReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn finish(&self, _: Request<wire::FinishRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn get(&self, request: Request<wire::GetRequest>) -> Unary {
        assert!(request.get_ref().stale, "linearizable reads go over the stream");
        let mut status = tonic::Status::not_found("no such transaction");
        status.metadata_mut().insert("holdfast-code", "HF2001".parse().expect("plain text"));
        status.metadata_mut().insert("holdfast-kind", "refused".parse().expect("plain text"));
        Err(status)
    }
    async fn wait(&self, _: Request<wire::WaitRequest>) -> Unary {
        Err(tonic::Status::unimplemented("scripted nodes only exchange"))
    }
    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListReply>, tonic::Status> {
        let gid = format!("behind-{}", request.get_ref().after_gid);
        let transactions = vec![wire::Transaction { gid: gid.clone(), ..Default::default() }];
        Ok(Response::new(wire::ListReply { transactions, next_after_gid: gid }))
    }

    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ExchangeReply, tonic::Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, tonic::Status> {
        self.forward_never
            .lock()
            .expect("no test panics while it holds it")
            .push(request.metadata().get(FORWARD_HEADER).is_some());
        let node = self.clone();
        let replies = request.into_inner().filter_map(move |request| {
            let reply = request.ok().and_then(|request| {
                let asked = request.request.expect("a client always asks for something");
                let number = {
                    let mut heard = node.heard.lock().expect("no test panics while it holds it");
                    heard.push(asked.clone());
                    heard.len()
                };
                match (node.script)(number, &asked) {
                    Act::Reply(reply) => {
                        let reply = Some(*reply);
                        Some(Ok(ExchangeReply { request_id: request.request_id, reply }))
                    }
                    Act::Break => Some(Err(tonic::Status::internal("the node died"))),
                    Act::Silence => None,
                }
            });
            std::future::ready(reply)
        });
        let mut response: Response<Self::ExchangeStream> = Response::new(Box::pin(replies));
        let metadata = response.metadata_mut();
        metadata.insert("holdfast-leads", self.leads.to_string().parse().expect("plain text"));
        metadata.insert(
            "holdfast-leader",
            self.leader
                .lock()
                .expect("no test panics while it holds it")
                .parse()
                .expect("plain text"),
        );
        Ok(response)
    }
}

#[tokio::test]
async fn a_request_whose_stream_broke_is_sent_again_with_the_same_gid() {
    let node =
        serve(true, "", |number, asked| if number == 1 { Act::Break } else { committed(asked) })
            .await;
    let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
    let answer = client.submit(transfer()).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Committed);
    assert_eq!(answer.status(), Some(Status::Committing));
    let gids = node.gids();
    assert_eq!(gids.len(), 2, "{gids:?}");
    assert!(gids.iter().all(|gid| *gid == answer.gid && gid.len() == 26), "{gids:?}");
    let heard = node.heard.lock().unwrap();
    let (Asked::Submit(first), Asked::Submit(second)) = (&heard[0], &heard[1]) else {
        panic!("both are submissions: {heard:?}");
    };
    assert_eq!((&first.options, &first.branches), (&second.options, &second.branches));
}

/// A way to a node. Once it stands still nothing passes and nothing closes, and who comes is taken in and left: as with a process
/// that was stopped, or a connection that is open at one end alone.
struct Way {
    address: String,
    still: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn stood_still(mut stands: watch::Receiver<bool>) {
    if stands.wait_for(|still| *still).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn way_to(node: &str) -> Way {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (still, stands) = watch::channel(false);
    let node = node.to_owned();
    let task = tokio::spawn(async move {
        let mut relays = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let (node, stands) = (node.clone(), stands.clone());
            relays.spawn(async move {
                let mut far = TcpStream::connect(node).await.expect("the node listens");
                tokio::select! {
                    biased;
                    // Both ends stay open, and nobody reads.
                    () = stood_still(stands) => std::future::pending().await,
                    _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    Way { address, still, task }
}

#[tokio::test]
async fn a_leader_that_stands_still_with_its_sockets_open_is_left_for_the_next() {
    let (first, second) = (
        serve(true, "", |_, asked| committed(asked)).await,
        serve(true, "", |_, asked| committed(asked)).await,
    );
    let way = way_to(&first.address).await;
    let options = ClientOptions { silence_max_ms: 400, ..impatient(30_000) };
    let client = Client::connect([&way.address, &second.address], options).await.unwrap();
    assert_eq!(client.submit(transfer()).await.unwrap().outcome, Outcome::Committed);
    way.still.send_replace(true);
    let began = Instant::now();
    let answers = join_all((0..64).map(|_| client.submit(transfer()))).await;
    assert!(answers.iter().all(|told| told.as_ref().unwrap().outcome == Outcome::Committed));
    // Long before the callers' patience ends: they learn of the silence by pings.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((first.gids().len(), second.gids().len()), (1, 64));
}

#[tokio::test]
async fn what_was_sent_and_never_answered_is_unknown_and_no_error() {
    let node = serve(true, "", |_, _| Act::Break).await;
    let client = Client::connect([&node.address], impatient(400)).await.unwrap();
    let answer = client.submit(transfer().gid("pay-1")).await.unwrap();
    assert_eq!((answer.gid.as_str(), &answer.outcome), ("pay-1", &Outcome::Unknown));
    assert_eq!(answer.transaction, None);
    assert!(node.gids().len() > 2, "it was pursued: {:?}", node.gids());

    // Where the answer is no fate, unknown is an error of its own kind, with the gid.
    let begun = client.begin(Terms::saga().gid("pay-2")).await.unwrap_err();
    assert_eq!(begun.kind(), ErrorKind::Unknown);
    assert!(matches!(begun, ClientError::Unknown { gid, .. } if gid == "pay-2"));
    let added = client.add_branch("pay-2", 1, BranchSpec::new("a", "")).await.unwrap_err();
    assert_eq!(added.kind(), ErrorKind::Unknown);
    // A read may always be made again.
    assert_eq!(client.get("pay-2").await.unwrap_err().kind(), ErrorKind::Retry);
}

#[tokio::test]
async fn a_node_that_never_answers_leaves_the_outcome_unknown_in_time() {
    let node = serve(true, "", |_, _| Act::Silence).await;
    let client = Client::connect([&node.address], impatient(300)).await.unwrap();
    let began = Instant::now();
    let answer = client.submit(transfer()).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Unknown);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_was_never_sent_may_be_made_again() {
    // Bound and dropped: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let unreachable = Client::connect([&free], impatient(200)).await.unwrap_err();
    assert_eq!(unreachable.kind(), ErrorKind::Retry);
    let client = Client::lazy([free], impatient(200)).unwrap();
    let error = client.submit(transfer()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(Client::lazy(Vec::<String>::new(), impatient(200)).is_err());
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let node = serve(true, "", |_, _| error(wire::ErrorKind::Refused, "HF2301", "")).await;
    let client = Client::connect([&node.address], impatient(30_000)).await.unwrap();
    let refused = client.submit(transfer()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::Refused, Some("HF2301")));
    assert_eq!(node.gids().len(), 1);
}

#[tokio::test]
async fn a_hint_at_the_leader_is_followed() {
    let leader = serve(true, "", |_, asked| committed(asked)).await;
    let at = leader.address.clone();
    let former = serve(true, "", move |_, _| error(wire::ErrorKind::Retry, "HF2101", &at)).await;
    let client = Client::connect([&former.address], impatient(5_000)).await.unwrap();
    let first = client.submit(transfer()).await.unwrap();
    let second = client.submit(transfer()).await.unwrap();
    assert!(first.is_committed() && second.is_committed());
    assert_eq!(former.gids(), std::slice::from_ref(&first.gid));
    assert_eq!(leader.gids(), [first.gid, second.gid]);
}

#[tokio::test]
async fn a_follower_is_asked_only_for_the_leader() {
    let leader = serve(true, "", |_, asked| committed(asked)).await;
    let follower = serve(false, &leader.address, |_, asked| committed(asked)).await;
    let client = Client::connect([&follower.address], impatient(5_000)).await.unwrap();
    assert!(client.submit(transfer()).await.unwrap().is_committed());
    assert_eq!((follower.gids().len(), leader.gids().len()), (0, 1));
    assert_eq!(*follower.forward_never.lock().unwrap(), [true]);
}

#[tokio::test]
async fn a_leader_out_of_reach_is_served_by_way_of_a_follower() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let follower = serve(false, &gone, |_, asked| committed(asked)).await;
    let client = Client::connect([&follower.address], impatient(5_000)).await.unwrap();
    assert!(client.submit(transfer()).await.unwrap().is_committed());
    assert_eq!(*follower.forward_never.lock().unwrap(), [true, false]);
}

#[tokio::test]
async fn an_unknown_answer_is_asked_again_until_it_is_known() {
    let node = serve(true, "", |number, asked| match number {
        1 => error(wire::ErrorKind::Unknown, "HF2102", ""),
        2 => told(gid(asked), wire::Status::Trying, wire::Outcome::Unknown),
        _ => committed(asked),
    })
    .await;
    let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
    let answer = client.submit(transfer()).await.unwrap();
    assert!(answer.is_committed());
    let heard = node.heard.lock().unwrap();
    assert!(
        matches!(heard.as_slice(), [Asked::Submit(_), Asked::Submit(_), Asked::Wait(_)]),
        "{heard:?}"
    );
}

#[tokio::test]
async fn an_own_gid_that_is_taken_after_a_loss_is_the_same_transaction() {
    let script = |number, asked: &Asked| match (number, asked) {
        (1, _) => Act::Break,
        (_, Asked::Submit(_)) => error(wire::ErrorKind::Refused, "HF2002", ""),
        (_, _) => committed(asked),
    };
    let node = serve(true, "", script).await;
    let client = Client::connect([&node.address], impatient(2_000)).await.unwrap();
    assert!(client.submit(transfer()).await.unwrap().is_committed());

    // The caller's own gid may as well be another program's: that is not known here, and not called refused.
    let node = serve(true, "", script).await;
    let client = Client::connect([&node.address], impatient(2_000)).await.unwrap();
    let answer = client.submit(transfer().gid("pay-1")).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Unknown);
}

#[tokio::test]
async fn a_retry_that_is_too_late_after_a_loss_tells_the_fate_and_otherwise_is_refused() {
    let late = |_: &Asked| error(wire::ErrorKind::Refused, "HF2004", "");
    let node = serve(true, "", move |number, asked| match (number, asked) {
        (1, _) => Act::Break,
        (_, Asked::Retry(_)) => late(asked),
        (_, _) => told(gid(asked), wire::Status::Committed, wire::Outcome::Committed),
    })
    .await;
    let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
    let answer = client.retry("pay-1", "the account is thawed", Wait::End).await.unwrap();
    assert_eq!((answer.outcome, node.gids().len()), (Outcome::Committed, 3));
    let first = node.heard.lock().unwrap()[0].clone();
    let Asked::Retry(first) = first else { panic!("{first:?}") };
    assert_eq!((first.reason.as_str(), first.wait()), ("the account is thawed", wire::Wait::End));

    let node = serve(true, "", move |_, asked| late(asked)).await;
    let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
    let error = client.retry("pay-1", "the account is thawed", Wait::End).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { code, .. } if code == "HF2004"), "{error}");
}

#[tokio::test]
async fn what_was_begun_and_is_forgotten_meanwhile_is_not_refused() {
    let node = serve(true, "", |number, asked| match number {
        1 => told(gid(asked), wire::Status::Trying, wire::Outcome::Unknown),
        _ => error(wire::ErrorKind::Refused, "HF2001", ""),
    })
    .await;
    let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
    let answer = client.submit(transfer()).await.unwrap();
    assert_eq!((answer.outcome, node.gids().len()), (Outcome::Unknown, 2));
}

#[tokio::test]
async fn the_answer_waits_for_what_was_asked() {
    let script = |number, asked: &Asked| match number {
        1 => told(gid(asked), wire::Status::Committing, wire::Outcome::Committed),
        _ => told(gid(asked), wire::Status::Committed, wire::Outcome::Committed),
    };
    for (wait, requests) in [(Wait::None, 1), (Wait::Decision, 1), (Wait::End, 2)] {
        let node = serve(true, "", script).await;
        let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
        assert!(client.submit(transfer().wait(wait)).await.unwrap().is_committed());
        assert_eq!(node.gids().len(), requests, "{wait:?}");
    }
    // What is known when the time is up is told, and a transaction that needs people is not waited for.
    let trying = |_, asked: &Asked| told(gid(asked), wire::Status::Trying, wire::Outcome::Unknown);
    let node = serve(true, "", trying).await;
    let client = Client::connect([&node.address], impatient(200)).await.unwrap();
    let answer = client.submit(transfer()).await.unwrap();
    assert_eq!((answer.status(), answer.outcome), (Some(Status::Trying), Outcome::Unknown));
    let stuck =
        |_, asked: &Asked| told(gid(asked), wire::Status::NeedsAttention, wire::Outcome::Unknown);
    let node = serve(true, "", stuck).await;
    let client = Client::connect([&node.address], impatient(20_000)).await.unwrap();
    let answer = client.submit(transfer()).await.unwrap();
    assert_eq!(answer.status(), Some(Status::NeedsAttention));
}

#[tokio::test]
async fn a_full_node_is_asked_again_and_not_left() {
    let node = serve(true, "", |number, asked| {
        if number < 4 { error(wire::ErrorKind::Retry, "HF2103", "") } else { committed(asked) }
    })
    .await;
    let client = Client::connect([&node.address], impatient(5_000)).await.unwrap();
    assert!(client.submit(transfer()).await.unwrap().is_committed());
    assert_eq!(node.forward_never.lock().unwrap().len(), 1, "one stream served all attempts");
    // When the time is up, the caller knows that nothing happened.
    let node = serve(true, "", |_, _| error(wire::ErrorKind::Retry, "HF2103", "")).await;
    let client = Client::connect([&node.address], impatient(200)).await.unwrap();
    let error = client.submit(transfer()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Retry, Some("HF2103")));
}

#[tokio::test]
async fn thousands_of_requests_share_one_stream_and_each_gets_its_own_answer() {
    let node = serve(true, "", |_, asked| committed(asked)).await;
    let options = ClientOptions { in_flight_max: 512, ..impatient(20_000) };
    let client = Client::connect([&node.address], options).await.unwrap();
    let answers = join_all((0..5_000).map(|n| {
        let client = client.clone();
        async move {
            let gid = format!("pay-{n}");
            let answer = client.submit(transfer().gid(&gid)).await.unwrap();
            assert_eq!(answer.transaction.expect("it is told").gid, gid);
            answer.outcome
        }
    }))
    .await;
    assert!(answers.iter().all(|outcome| *outcome == Outcome::Committed));
    let mut count = HashMap::new();
    node.gids().into_iter().for_each(|gid| *count.entry(gid).or_insert(0) += 1);
    assert!(count.len() == 5_000 && count.values().all(|times| *times == 1));
    assert_eq!(node.forward_never.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn requests_under_way_are_bounded_and_the_next_one_is_not_sent() {
    let node = serve(true, "", |_, _| Act::Silence).await;
    let options = ClientOptions { in_flight_max: 2, ..impatient(400) };
    let client = Client::connect([&node.address], options).await.unwrap();
    let (first, second, third) = tokio::join!(
        client.submit(transfer().gid("pay-1").patience_ms(1_500)),
        client.submit(transfer().gid("pay-2").patience_ms(1_500)),
        async {
            while node.gids().len() < 2 {
                tokio::task::yield_now().await;
            }
            let third = client.submit(transfer().gid("pay-3")).await;
            node.task.abort();
            third
        }
    );
    assert_eq!(third.unwrap_err().kind(), ErrorKind::Retry);
    assert_eq!(first.unwrap().outcome, Outcome::Unknown);
    assert_eq!(second.unwrap().outcome, Outcome::Unknown);
    assert!(!node.gids().contains(&"pay-3".to_owned()));
}

#[tokio::test]
async fn lists_and_stale_reads_are_answered_by_any_node() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let node = serve(false, "", |_, _| Act::Silence).await;
    let client = Client::lazy([gone, node.address.clone()], impatient(2_000)).unwrap();
    let filter = holdfast_client::Filter { after: Some("g1".into()), ..Default::default() };
    let page = client.list(filter).await.unwrap();
    assert_eq!(page.transactions[0].gid, "behind-g1");
    assert_eq!(page.next_after.as_deref(), Some("behind-g1"));
    let refused = client.get_stale("g1").await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::Refused, Some("HF2001")));
}
