//! The whole role over a real session: a coordinator's door asks, and what it hears is true also when PostgreSQL goes and comes back.

#![allow(clippy::inconsistent_digit_grouping, reason = "100_00 are 100.00 EUR in minor units")]

mod fixture;

use std::pin::Pin;

use fixture::{PATIENCE, Server, account, connect, eur, free_port, initialized};
use holdfast_banking::{
    BankConfig, BankLimits, DepositInstruction, NewAccount, audit, ledger::Currency, open_accounts,
    read_account, run,
};
use holdfast_proto::v1::{
    AgentMessage, Answer, Call, Calls, CoordinatorMessage, Hello, Op, Verdict, Welcome,
    agent_message::Message as Inward,
    coordinator_message::Message as Outward,
    participants_server::{Participants, ParticipantsServer},
};
use holdfast_tcc_agent::Status;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Streaming};

/// One session, from the coordinator's side.
struct Session {
    hello: Hello,
    outward: mpsc::Sender<Result<CoordinatorMessage, tonic::Status>>,
    inward: Streaming<AgentMessage>,
    calls: u64,
}

struct Door {
    sessions: mpsc::Sender<Session>,
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
        let (outward, messages) = mpsc::channel(64);
        let sessions = self.sessions.clone();
        tokio::spawn(async move {
            let Ok(Some(AgentMessage { message: Some(Inward::Hello(hello)) })) =
                inward.message().await
            else {
                panic!("a session begins with hello");
            };
            let welcome = Welcome { node: 1, coordinators: Vec::new(), silence_max_ms: 60_000 };
            let message = CoordinatorMessage { message: Some(Outward::Welcome(welcome)) };
            let _sent = outward.send(Ok(message)).await;
            let _taken = sessions.send(Session { hello, outward, inward, calls: 0 }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl Session {
    /// Makes one call and waits for its answer.
    async fn ask(&mut self, op: Op, gid: &str, payload: &[u8]) -> Answer {
        self.calls += 1;
        let call = Call {
            call_id: self.calls,
            gid: gid.to_owned(),
            branch: 1,
            op: op.into(),
            payload: payload.to_vec().into(),
            attempt: 1,
            repeat: false,
            refusal_waits: false,
            ..Call::default()
        };
        let calls = Calls::write(vec![call]);
        let message = CoordinatorMessage { message: Some(Outward::Calls(calls)) };
        self.outward.send(Ok(message)).await.expect("the session is open");
        loop {
            let message = tokio::time::timeout(PATIENCE, self.inward.message()).await;
            let message = message.expect("an answer").expect("the session is open");
            if let Some(Inward::Answers(answers)) = message.expect("more to come").message {
                let [answer] = answers.answers.as_slice() else { panic!("{answers:?}") };
                assert_eq!(answer.call_id, self.calls);
                return answer.clone();
            }
        }
    }

    async fn ask_until_done(&mut self, op: Op, gid: &str, payload: &[u8]) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(op, gid, payload).await;
            match answer.verdict() {
                Verdict::Done => return,
                Verdict::Unspecified => {}
                Verdict::Refused | Verdict::Working => panic!("{answer:?}"),
            }
            assert!(tokio::time::Instant::now() < deadline, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn the_role_serves_its_shard_through_an_outage_of_postgresql() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let coordinator = listener.local_addr().unwrap().to_string();
    let (sender, mut sessions) = mpsc::channel(4);
    let door = ParticipantsServer::new(Door { sessions: sender });
    let serving = tonic::transport::Server::builder()
        .add_service(door)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);

    let server = Server::start(initialized(), free_port()).await;
    let shutdown = CancellationToken::new();
    let config = BankConfig {
        shard: "shard-7".to_owned(),
        database: server.config("postgres").into(),
        instance: String::new(),
        coordinators: vec![coordinator],
        limits: tokio::sync::watch::channel(BankLimits { connections: 2, batch_max: 64 }).1,
        credit: 256,
        status: Status::default(),
        credentials: None,
    };
    let role = tokio::spawn(run(config, shutdown.clone()));
    // It comes when its data source is ready, not before.
    let session = tokio::time::timeout(PATIENCE, sessions.recv()).await;
    let mut session = session.expect("the role dials in").unwrap();
    assert_eq!(session.hello.service, "deposit@shard-7");
    assert_eq!(session.hello.credit, 256);
    let client = connect(&server.config("postgres")).await;
    let eur_code = Currency::parse("EUR").unwrap();
    let alice = NewAccount { id: account("alice"), currency: eur_code, balance_minor: 10_00 };
    open_accounts(&client, &[alice]).await.unwrap();
    let debit = |amount| {
        DepositInstruction::Debit { account: account("alice"), money: eur(amount) }.to_payload()
    };
    assert_eq!(session.ask(Op::Try, "g1", &debit("6.00")).await.verdict(), Verdict::Done);
    let answer = session.ask(Op::Try, "g2", &debit("6.00")).await;
    assert_eq!((answer.verdict(), answer.code.as_str()), (Verdict::Refused, "insufficient_funds"));
    assert_eq!(answer.message, "account alice: available 4.00 EUR, needed 6.00 EUR");

    let (directory, port) = server.crash();
    let answer = session.ask(Op::Confirm, "g1", &debit("6.00")).await;
    assert_eq!(answer.verdict(), Verdict::Unspecified, "{answer:?}");
    let server = Server::start(directory, port).await;
    session.ask_until_done(Op::Confirm, "g1", &debit("6.00")).await;
    session.ask_until_done(Op::Confirm, "g1", &debit("6.00")).await;
    session.ask_until_done(Op::Try, "g3", &debit("4.00")).await;
    session.ask_until_done(Op::Cancel, "g3", &debit("4.00")).await;

    shutdown.cancel();
    drop(session);
    let ended = tokio::time::timeout(PATIENCE, role).await.expect("it stops when told");
    ended.unwrap().unwrap();
    serving.abort();
    let mut client = connect(&server.config("postgres")).await;
    let found = read_account(&client, &account("alice")).await.unwrap().unwrap().counters();
    assert_eq!((found.balance, found.held_out, found.held_in), (4_00, 0, 0));
    let books = audit(&mut client).await.unwrap();
    assert_eq!((books.holds, books.holds_open, books.fold_mismatches), (2, 0, 0));
}
