//! Mutual TLS at every door of running nodes: who is let in, to what, and what is turned away.

mod doors;
mod house;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use holdfast_client::{
    Client, ClientError, ClientOptions, Outcome, Recovery, Status as TransactionStatus, Submission,
    Terms, Wait,
};
use holdfast_proto::{
    Pairs,
    v1::{
        self, exchange_reply::Reply, exchange_request::Request as Asked,
        raft_peer_client::RaftPeerClient, transactions_client::TransactionsClient,
    },
};
use holdfast_security::{
    Authority, Credentials, Files, Role, Scope, Token, dial,
    right::{ROUTES, RPCS, scope},
};
use house::{ENTRIES, House, SOON, code, name, session, transfer};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Request,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

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
    let headers = Pairs::from_iter([("Holdfast-Tenant", "retail")]);
    let options = v1::Options { headers: headers.into(), ..v1::Options::default() };
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
    session(channel.clone(), "deposit@shard-1", doors::done).await.expect("its own");
    for other in ["deposit@shard-2", "deposit", "loyalty"] {
        let refused = session(channel.clone(), other, doors::done).await.expect_err(other);
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().starts_with("HF2605"), "{refused:?}");
    }
    let app = house.channel(&grpc, &house.credentials("user/alice?role=app")).await;
    assert_eq!(
        session(app, "deposit", doors::done).await.expect_err("an app").code(),
        Code::PermissionDenied
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_persons_approval_takes_another_name_not_another_certificate() {
    let house = House::of(3).await;
    house.serve("service/deposit", "deposit").await;
    house.serve_answering("service/deposit@no", "deposit@no", doors::refused).await;
    let alice = house.client("user/alice?role=app").await;
    // Forward recovery: a refusal calls people.
    let stuck = Submission::new(Terms::saga().gid("stuck").recovery(Recovery::Forward));
    let stuck = stuck.branch("deposit", "{}").branch("deposit@no", "{}").wait(Wait::None);
    alice.submit(stuck).await.expect("it is taken");
    let deadline = Instant::now() + SOON;
    while alice.get("stuck").await.expect("hers").transaction.and_then(|known| known.status)
        != Some(TransactionStatus::NeedsAttention)
    {
        assert!(Instant::now() < deadline, "it needs nobody");
        sleep(Duration::from_millis(20)).await;
    }
    let act = async |who: &str, act: v1::OperatorAct, dev_name: &str| {
        let request = v1::OperateRequest {
            gid: "stuck".into(),
            act: act.into(),
            branch: if act == v1::OperatorAct::MarkDone { 2 } else { 0 },
            reason: "ticket 7311".into(),
            dev_name: dev_name.into(),
            ..Default::default()
        };
        let client = Client::connect(house.cluster.addresses(), house.options(who)).await?;
        client.operate(request, Wait::None).await
    };
    let (propose, approve) = (v1::OperatorAct::MarkDone, v1::OperatorAct::Approve);
    // A name that one gives oneself counts for nothing beside a certificate.
    assert_eq!(code(act("user/sam?role=sre", propose, "sue").await), "HF2301");
    act("user/sam?role=sre", propose, "").await.expect("it is proposed");
    assert_eq!(code(act("user/sam?role=sre", approve, "").await), "HF2010");
    assert_eq!(code(act("user/sam?role=sre", approve, "sue").await), "HF2301");
    // Another certificate of the same person.
    assert_eq!(code(act("user/sam?role=sre&role=auditor", approve, "").await), "HF2010");
    for other in ["user/alice?role=app", "user/dan?role=dba", "user/ada?role=auditor"] {
        assert_eq!(code(act(other, approve, "").await), "HF2602", "{other}");
    }
    act("user/sue?role=sre", approve, "").await.expect("she is somebody else");
    let ended = alice.wait("stuck", Wait::End, SOON).await.expect("hers");
    assert_eq!(ended.outcome, Outcome::Committed);
    let ada = house.credentials("user/ada?role=auditor");
    let deadline = Instant::now() + SOON;
    let records = loop {
        // This node may be behind the one that heard it.
        let page = house.http(&ada, "GET", "/v1/audit", "").await.json();
        if page["count"] == 2 {
            break page["records"].clone();
        }
        assert!(Instant::now() < deadline, "{page}");
        sleep(Duration::from_millis(20)).await;
    };
    let said = |at: usize| (records[at]["act"].as_str(), records[at]["by"].as_str());
    assert_eq!(said(0), (Some("tx.propose"), Some("user/sam")));
    assert_eq!(said(1), (Some("tx.approve"), Some("user/sue")));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_says_that_a_router_of_somebody_else_has_left_by_whatever_node() {
    let house = House::of(3).await;
    let (leader, follower) = (house.cluster.leader(), house.cluster.follower());
    let attend = async |who: &str, node: &str, leaves: bool| {
        let request = v1::AttendRequest {
            router: "r-1".into(),
            lease_ms: 60_000,
            leaves,
            ..v1::AttendRequest::default()
        };
        let client = Client::connect([node.to_owned()], house.options(who)).await?;
        client.attend(request).await
    };
    let (router, other) = ("user/router?role=app", "user/alice?role=app");
    // Each node that hands it on says for whom.
    for node in [&follower.grpc, &leader.grpc, &follower.grpc] {
        attend(router, node, false).await.expect("it is its own");
    }
    for node in [&follower.grpc, &leader.grpc] {
        for leaves in [true, false] {
            assert_eq!(code(attend(other, node, leaves).await), "HF2602");
        }
    }
    let there = house.client(other).await.routers().await.expect("everybody may look").routers;
    assert_eq!(there.len(), 1, "{there:?}");
    attend(router, &follower.grpc, true).await.expect("it leaves");
    attend(other, &leader.grpc, false).await.expect("the name is free");
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
