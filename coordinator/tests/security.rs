//! Mutual TLS at every door of running nodes: who is let in, to what, and what is turned away.

mod doors;

use std::{path::PathBuf, time::Duration};

use doors::{Cluster, Heard};
use holdfast_client::{Client, ClientError, ClientOptions, Outcome, Submission, Terms, Wait};
use holdfast_coordinator::config::Security;
use holdfast_proto::v1::{
    self, exchange_reply::Reply, exchange_request::Request as Asked,
    participants_client::ParticipantsClient, raft_peer_client::RaftPeerClient,
    transactions_client::TransactionsClient,
};
use holdfast_security::{
    Access, Authority, ClientAuth, Credentials, Files, Name, Role, Scope, Token, dial,
    right::{ROUTES, RPCS, scope},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const SOON: Duration = Duration::from_secs(60);
const ENTRIES: &str = "\
[[caller]]
name = \"user/alice\"
tenant = \"retail\"
participants = [\"deposit\"]

[[caller]]
name = \"user/bob\"
tenant = \"treasury\"
participants = [\"loyalty\"]
";

/// A cluster with mutual TLS, and the authority of all its certificates.
struct House {
    cluster: Cluster,
    authority: Authority,
    /// The directories of callers of the nodes.
    access: Vec<Access>,
    dir: TempDir,
}

fn name(text: &str) -> Name {
    Name::parse(&format!("holdfast://{text}")).expect(text)
}

impl House {
    async fn of(size: u64) -> Self {
        let dir = TempDir::new().expect("a directory");
        let authority = Authority::in_dir(&dir.path().join("certs")).expect("an authority");
        let file = dir.path().join("access.toml");
        std::fs::write(&file, ENTRIES).expect("it is written");
        let mut nodes = Vec::new();
        let mut access = Vec::new();
        for node in 1..=size {
            let own = name(&format!("doors/node/{node}"));
            nodes.push(authority.credentials(&own).expect("a certificate"));
            access.push(Access::open(&file).expect("it is sound"));
        }
        let guarded = access.clone();
        let cluster = Cluster::with(size, move |config| {
            let at = usize::try_from(config.node.id - 1).expect("a small number");
            config.security = Security::MutualTls {
                credentials: nodes[at].clone(),
                access: guarded[at].clone(),
                callers: ClientAuth::Optional,
            };
        })
        .await;
        Self { cluster, authority, access, dir }
    }

    /// The credentials of `who`, made when they are first asked for.
    fn credentials(&self, who: &str) -> Credentials {
        let name = name(&format!("doors/{who}"));
        let files = self.authority.files_of(&name);
        let there = files.identity.as_ref().is_some_and(|(cert, _)| cert.exists());
        let files = if there { files } else { self.authority.issue(&name, 7).expect("it signs") };
        Credentials::open(files).expect("they are sound")
    }

    /// Without a certificate.
    fn nobody(&self) -> Credentials {
        let ca = self.dir.path().join("certs/ca.pem");
        Credentials::open(Files { ca, identity: None }).expect("an authority")
    }

    fn options(&self, who: &str) -> ClientOptions {
        let credentials = Some(self.credentials(who));
        ClientOptions { credentials, patience_ms: 30_000, ..ClientOptions::default() }
    }

    async fn client(&self, who: &str) -> Client {
        Client::connect(self.cluster.addresses(), self.options(who)).await.expect("it is let in")
    }

    async fn channel(&self, address: &str, credentials: &Credentials) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        dial(&endpoint, Some(credentials)).await.expect("it is let in")
    }

    /// Writes the access file anew and has every node read it.
    fn rewrite(&self, text: &str) {
        std::fs::write(self.dir.path().join("access.toml"), text).expect("it is written");
        self.access.iter().for_each(|access| access.reload().expect("it is sound"));
    }

    /// An agent of `service` at every node, with the certificate of `who`; it does whatever it is asked.
    async fn serve(&self, who: &str, service: &str) {
        for node in &self.cluster.nodes {
            let channel = self.channel(&node.grpc, &self.credentials(who)).await;
            session(channel, service).await.expect("it is welcomed");
        }
    }

    async fn http(
        &self,
        credentials: &Credentials,
        method: &str,
        path: &str,
        header: &str,
    ) -> Heard {
        let at = self.cluster.nodes[0].http.to_string();
        let mut stream =
            credentials.connector(None).open(&at, b"http/1.1").await.expect("it is let in");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n{header}content-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("it is open");
        // A stream of events does not end: its head and what came soon is enough.
        let mut heard = Vec::new();
        let _goes_on = timeout(Duration::from_secs(5), stream.read_to_end(&mut heard)).await;
        let text = String::from_utf8(heard).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        Heard { status, head: head.to_owned(), body: body.to_owned() }
    }
}

/// Opens a session and answers every call with done, until the node ends it.
async fn session(channel: Channel, service: &str) -> Result<(), Status> {
    let (sender, outward) = mpsc::channel(64);
    let say = |message| v1::AgentMessage { message: Some(message) };
    let hello = v1::Hello {
        service: service.to_owned(),
        instance: "one".to_owned(),
        credit: 64,
        ..v1::Hello::default()
    };
    let hello = say(v1::agent_message::Message::Hello(hello));
    sender.send(hello).await.expect("it is open");
    let mut client = ParticipantsClient::new(channel);
    let mut inward = client.session(ReceiverStream::new(outward)).await?.into_inner();
    timeout(SOON, inward.message()).await.expect("in time")?.expect("a welcome");
    tokio::spawn(async move {
        let mut beats = tokio::time::interval(Duration::from_secs(1));
        loop {
            let heard = tokio::select! {
                heard = inward.message() => heard,
                _ = beats.tick() => {
                    let beat = v1::agent_message::Message::Beat(v1::Beat {});
                    if sender.send(say(beat)).await.is_err() { return; }
                    continue;
                }
            };
            let Ok(Some(message)) = heard else { return };
            if let Some(v1::coordinator_message::Message::Calls(calls)) = message.message {
                let answers = calls.calls.iter().filter_map(doors::done).collect();
                let answers = v1::agent_message::Message::Answers(v1::Answers { answers });
                if sender.send(say(answers)).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(())
}

fn transfer(gid: &str, participant: &str) -> Submission {
    Submission::tcc().gid(gid).branch(participant, "{}")
}

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Refused { code, .. }) => code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_commits_over_mutual_tls_by_whatever_node() {
    let house = House::of(3).await;
    house.serve("service/deposit", "deposit@shard-1").await;
    let alice = house.client("user/alice?role=app").await;
    let answer = alice.submit(transfer("tls-1", "deposit@shard-1")).await.expect("it is answered");
    assert_eq!(answer.outcome, Outcome::Committed);
    // By way of a follower, which hands it to the leader in alice's name.
    let channel = house
        .channel(&house.cluster.follower().grpc, &house.credentials("user/alice?role=app"))
        .await;
    let get = v1::GetRequest { gid: "tls-1".into(), stale: false };
    let told = TransactionsClient::new(channel).get(get).await.expect("it is hers").into_inner();
    assert_eq!(told.outcome(), v1::Outcome::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_a_valid_certificate_is_no_peer_and_moves_no_term() {
    let house = House::of(3).await;
    let node = &house.cluster.nodes[0];
    let raft = node.coordinator.config().bind.raft.to_string();
    let before = node.coordinator.status();
    let peer = Some(v1::RaftAddress {
        cluster: "doors".into(),
        group: 0,
        from: 2,
        to: 1,
        ..Default::default()
    });
    let ballot = Some(v1::RaftBallot { term: 9_999, node: 2, granted_by_quorum: true });
    // A user, a service, an agent of the same house, and the wrong member.
    for who in ["user/eve?role=sre", "service/deposit", "node/3"] {
        let mut client = RaftPeerClient::new(house.channel(&raft, &house.credentials(who)).await);
        let vote = v1::RaftVoteRequest { peer: peer.clone(), ballot, ..Default::default() };
        let asked = client.vote(vote).await;
        assert_eq!(asked.expect_err(who).code(), Code::PermissionDenied, "{who} votes");
        let append = v1::RaftAppendRequest { peer: peer.clone(), ballot, ..Default::default() };
        let mut answers = client
            .append_entries(tokio_stream::iter([append]))
            .await
            .expect("a stream")
            .into_inner();
        let asked = timeout(SOON, answers.message()).await.expect("in time");
        assert_eq!(asked.expect_err(who).code(), Code::PermissionDenied, "{who} appends");
        let chunk = v1::RaftSnapshotChunk {
            peer: peer.clone(),
            ballot,
            bytes_total: 4,
            data: b"evil".as_slice().into(),
        };
        let asked = client.install_snapshot(tokio_stream::iter([chunk])).await;
        assert_eq!(asked.expect_err(who).code(), Code::PermissionDenied, "{who} installs");
        let transfer =
            v1::RaftTransferRequest { peer: peer.clone(), ballot, next_leader: 2, last: None };
        let asked = client.transfer_leader(transfer).await;
        assert_eq!(asked.expect_err(who).code(), Code::PermissionDenied, "{who} hands over");
    }
    // Whoever shows nothing does not even get through the handshake, or is hung up on at once.
    let endpoint = Endpoint::from_shared(format!("http://{raft}")).expect("an address");
    if let Ok(channel) = dial(&endpoint, Some(&house.nobody())).await {
        let vote = v1::RaftVoteRequest { peer, ballot, ..Default::default() };
        RaftPeerClient::new(channel).vote(vote).await.expect_err("nobody votes");
    }
    let after = node.coordinator.status();
    assert!(after.term < 9_999 && after.term >= before.term, "{before:?} {after:?}");
    let who = |status: &holdfast_coordinator::NodeStatus| -> Vec<_> {
        status.members.iter().map(|one| (one.member.clone(), one.voter)).collect()
    };
    assert_eq!(who(&after), who(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_and_route_refuses_a_role_without_its_right_and_hears_one_with_it() {
    let house = House::of(1).await;
    let grpc = house.cluster.nodes[0].grpc.clone();
    let holders = [
        (Role::App, "user/alice?role=app"),
        (Role::Participant, "service/deposit"),
        (Role::Dba, "user/dan?role=dba"),
        (Role::Sre, "user/sam?role=sre"),
        (Role::Auditor, "user/ada?role=auditor"),
        (Role::Node, "node/1"),
    ];
    let mut refused = 0;
    for (role, who) in holders {
        let credentials = house.credentials(who);
        let channel = house.channel(&grpc, &credentials).await;
        for (path, right) in RPCS.iter().filter(|(path, _)| !path.contains("RaftPeer")) {
            let denied = ask(&channel, path)
                .await
                .is_some_and(|code| matches!(code, Code::PermissionDenied | Code::Unauthenticated));
            assert_eq!(denied, scope(role, *right) == Scope::None, "{role} at {path}");
            refused += usize::from(denied);
        }
        for (method, route, right) in ROUTES {
            let path = route.replace("{gid}", "no-such-gid").replace("{service}", "deposit");
            let heard = house.http(&credentials, method, &path, "").await;
            let denied = matches!(heard.status, 401 | 403);
            assert_eq!(
                denied,
                scope(role, *right) == Scope::None,
                "{role} at {method} {route}: {heard:?}"
            );
            if denied {
                assert_eq!(heard.problem(), (403, "HF2602".into(), "refused".into()));
            }
            refused += usize::from(denied);
        }
    }
    assert!(refused > 40, "only {refused} were refused");
}

/// A call with an empty message; `None`: it was answered, or goes on.
async fn ask(channel: &Channel, path: &'static str) -> Option<Code> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("it is up");
    let codec: ProstCodec<v1::NodeStatusRequest, v1::NodeStatusRequest> = ProstCodec::default();
    let call = client.unary(
        Request::new(v1::NodeStatusRequest::default()),
        PathAndQuery::from_static(path),
        codec,
    );
    // A stream that goes on was not refused: that is the first thing that is said.
    timeout(Duration::from_secs(3), call).await.ok()?.err().map(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_nothing_may_probe_and_nothing_else() {
    let house = House::of(1).await;
    let nobody = house.nobody();
    for (method, route, _) in ROUTES {
        let heard = house.http(&nobody, method, &route.replace("{gid}", "g"), "").await;
        let free = matches!(*route, "/livez" | "/readyz");
        assert_eq!(heard.status == 401, !free, "{method} {route}: {heard:?}");
    }
    let channel = house.channel(&house.cluster.nodes[0].grpc, &nobody).await;
    assert_eq!(ask(&channel, "/holdfast.v1.Admin/NodeStatus").await, Some(Code::Unauthenticated));
    assert_eq!(ask(&channel, "/holdfast.v1.Admin/Nothing").await, Some(Code::PermissionDenied));
    // A path that only looks like a probe is none.
    let heard = house.http(&nobody, "GET", "/v1/transactions/livez", "").await;
    assert_eq!(heard.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_branch_and_each_gid_is_judged_not_only_the_envelope() {
    let house = House::of(3).await;
    house.serve("service/deposit", "deposit").await;
    let (alice, bob) =
        (house.client("user/alice?role=app").await, house.client("user/bob?role=app").await);
    // The participant within.
    assert_eq!(code(alice.submit(transfer("b-1", "loyalty")).await), "HF2603");
    let mixed = Submission::tcc().gid("b-2").branch("deposit", "{}").branch("loyalty", "{}");
    assert_eq!(code(alice.submit(mixed).await), "HF2603");
    alice.begin(Terms::tcc().gid("b-3")).await.expect("it is begun");
    let spec = |participant: &str| holdfast_client::BranchSpec::new(participant, "{}");
    assert_eq!(code(alice.add_branch("b-3", 1, spec("loyalty")).await), "HF2603");
    // The gid within: whatever bob asks about alice's is denied, and nothing of it happens.
    assert_eq!(code(bob.add_branch("b-3", 1, spec("loyalty")).await), "HF2604");
    assert_eq!(code(bob.submit_begun("b-3", Wait::None).await), "HF2604");
    assert_eq!(code(bob.roll_back("b-3", "mine now", Wait::None).await), "HF2604");
    assert_eq!(code(bob.get("b-3").await), "HF2604");
    assert_eq!(code(bob.wait("b-3", Wait::None, SOON).await), "HF2604");
    assert_eq!(code(bob.retry("b-3", "mine now", Wait::None).await), "HF2602");
    assert_eq!(code(bob.submit(transfer("b-3", "loyalty")).await), "HF2002");
    let listed = bob.list(Default::default()).await.expect("his own");
    assert!(listed.transactions.is_empty(), "{listed:?}");
    // The tenant within: a header that the caller writes itself is not believed.
    let follower = house
        .channel(&house.cluster.follower().grpc, &house.credentials("user/bob?role=app"))
        .await;
    let mut options = v1::Options::default();
    options.headers.insert("Holdfast-Tenant".into(), "retail".into());
    let begin =
        v1::BeginRequest { gid: "b-4".into(), mode: v1::Mode::Tcc.into(), options: Some(options) };
    let mut unary = TransactionsClient::new(follower);
    unary.begin(begin).await.expect("his own, by way of a follower");
    assert_eq!(code(alice.get("b-4").await), "HF2604");
    bob.get("b-4").await.expect("his own");
    // In somebody else's name: only a node may.
    let forged = v1::OnBehalf {
        name: "user/alice".into(),
        roles: vec!["app".into()],
        tenant: "retail".into(),
        participants: vec!["*".into()],
    };
    let asked = Asked::Get(v1::GetRequest { gid: "b-3".into(), stale: false });
    let request =
        v1::ExchangeRequest { request_id: 1, request: Some(asked), on_behalf_of: Some(forged) };
    let mut replies =
        unary.exchange(tokio_stream::iter([request])).await.expect("a stream").into_inner();
    let reply =
        timeout(SOON, replies.message()).await.expect("in time").expect("a reply").expect("one");
    let Some(Reply::Error(error)) = reply.reply else { panic!("{reply:?}") };
    assert_eq!(error.code, "HF2602");
    // Alice's is as it was, and her own.
    alice.add_branch("b-3", 1, spec("deposit")).await.expect("it is hers");
    let answer = alice.submit_begun("b-3", Wait::Decision).await.expect("it is hers");
    assert_eq!(answer.outcome, Outcome::Committed);
    // Who keeps the house sees all and begins nothing.
    let sam = house.client("user/sam?role=sre").await;
    sam.get("b-3").await.expect("an sre sees all");
    assert_eq!(code(sam.submit(transfer("b-5", "deposit")).await), "HF2602");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_the_service_that_its_certificate_names_and_no_other() {
    let house = House::of(1).await;
    let grpc = house.cluster.nodes[0].grpc.clone();
    let channel = house.channel(&grpc, &house.credentials("service/deposit@shard-1")).await;
    session(channel.clone(), "deposit@shard-1").await.expect("its own");
    for other in ["deposit@shard-2", "deposit", "loyalty"] {
        let refused = session(channel.clone(), other).await.expect_err(other);
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().starts_with("HF2605"), "{refused:?}");
    }
    let app = house.channel(&grpc, &house.credentials("user/alice?role=app")).await;
    assert_eq!(session(app, "deposit").await.expect_err("an app").code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_what_its_entry_says_until_the_entry_is_gone() {
    let house = House::of(1).await;
    house.serve("service/deposit", "deposit").await;
    let token = Token::new().expect("chance");
    let entry = |expires: &str| {
        format!(
            "{ENTRIES}\n[[token]]\nname = \"payroll\"\nid = \"{}\"\nsha256 = \"{}\"\nroles = [\"app\"]\n\
             tenant = \"hr\"\nparticipants = [\"deposit\"]\nexpires_at = \"{expires}\"\n",
            token.id(),
            token.hash()
        )
    };
    house.rewrite(&entry("2999-01-01T00:00:00Z"));
    let options = ClientOptions {
        credentials: Some(house.nobody()),
        token: Some(token.clone()),
        patience_ms: 30_000,
        ..ClientOptions::default()
    };
    let client = Client::connect(house.cluster.addresses(), options.clone()).await.expect("let in");
    let answer = client.submit(transfer("t-1", "deposit")).await.expect("it is answered");
    assert_eq!(answer.outcome, Outcome::Committed);
    assert_eq!(code(client.submit(transfer("t-2", "loyalty")).await), "HF2603");
    let shown = format!("authorization: Bearer {}\r\n", token.reveal());
    assert_eq!(
        house.http(&house.nobody(), "GET", "/v1/transactions/t-1", &shown).await.status,
        200
    );
    for wrong in ["authorization: Bearer nonsense\r\n", "authorization: Basic YTpi\r\n"] {
        // Also beside a certificate that would do: nobody falls back to somebody else.
        let heard =
            house.http(&house.credentials("user/sam?role=sre"), "GET", "/v1/status", wrong).await;
        assert_eq!(heard.problem(), (401, "HF2601".into(), "refused".into()));
        assert_eq!(heard.header("www-authenticate"), Some("Bearer"));
    }
    // Its time is over, or it is taken away: on the stream that is open, too.
    for gone in [entry("2020-01-01T00:00:00Z"), ENTRIES.to_owned()] {
        house.rewrite(&gone);
        assert_eq!(code(client.get("t-1").await), "HF2601");
        assert_eq!(
            house.http(&house.nobody(), "GET", "/v1/transactions/t-1", &shown).await.status,
            401
        );
    }
    let refused = Client::connect(house.cluster.addresses(), options).await;
    assert_eq!(code(refused), "HF2601");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_another_cluster_or_authority_open_no_door_and_plaintext_neither() {
    let house = House::of(1).await;
    let grpc = house.cluster.nodes[0].grpc.clone();
    let foreign: PathBuf = house.dir.path().join("foreign");
    let other_authority = Authority::in_dir(&foreign).expect("another authority");
    let own = name("doors/user/alice?role=app");
    let files = other_authority.issue(&own, 7).expect("it signs");
    // It trusts the right authority, and shows a certificate of the wrong one.
    let ca = house.dir.path().join("certs/ca.pem");
    let forged = Credentials::open(Files { ca, identity: files.identity.clone() }).expect("a pair");
    let other_cluster =
        house.authority.credentials(&name("other/user/mallory?role=app")).expect("a pair");
    let fooled = Credentials::open(files).expect("a pair");
    for (what, credentials) in [
        ("forged", Some(forged)),
        ("other cluster", Some(other_cluster)),
        ("other authority", Some(fooled)),
        ("plaintext", None),
    ] {
        let options = ClientOptions { credentials, patience_ms: 1_500, ..ClientOptions::default() };
        let client = Client::connect([grpc.clone()], options).await;
        assert!(matches!(client, Err(ClientError::Unreachable { .. })), "{what}: {client:?}");
    }
    house.client("user/alice?role=app").await;
}
