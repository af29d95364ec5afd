//! Three nodes and four Raft groups: each transaction lives in one, and a node that goes costs only what it led.

use std::collections::BTreeSet;

use holdfast_client::{
    Client, ClientOptions, Filter, Outcome, Submission, Terms, Wait, group_of,
    wire::{self, OperateRequest, OperatorAct, SearchHistoryRequest},
};
use holdfast_proto::v1::Op;
use holdfast_txn::Gid;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Cluster, PATIENCE, within},
};

const GROUPS: u32 = 4;

async fn client(cluster: &Cluster) -> Client {
    let options = ClientOptions {
        patience_ms: u64::try_from(PATIENCE.as_millis()).unwrap(),
        ..ClientOptions::default()
    };
    Client::connect(cluster.grpc(), options).await.unwrap()
}

/// Begins `gids` at once and waits for the end of each.
async fn commit_all(client: &Client, gids: &[String]) {
    let submissions = gids.iter().map(|gid| {
        let submission = Submission::tcc().gid(gid).branch("deposit", "1").branch("savings", "1");
        client.submit(submission.wait(Wait::End))
    });
    for (gid, answer) in gids.iter().zip(futures::future::join_all(submissions).await) {
        let answer = answer.unwrap_or_else(|error| panic!("{gid}: {error}"));
        assert_eq!(answer.outcome, Outcome::Committed, "{gid}");
    }
}

fn gids(of: &str) -> Vec<String> {
    (0..40).map(|n| format!("{of}-{n}")).collect()
}

/// The transactions for which `agent` was asked this. A new leader asks again what it has not heard of, so calls are more.
fn gids_of(agent: &Agent, op: Op) -> BTreeSet<String> {
    agent.asked().into_iter().filter(|asked| asked.op == op).map(|asked| asked.gid).collect()
}

/// Waits until no node leads two groups more than another of `nodes`, and says who leads which.
async fn spread(cluster: &Cluster, nodes: &[u64]) -> Vec<u64> {
    within("leaders are spread", async {
        loop {
            let leaders = cluster.leaders().await;
            let counts = nodes.iter().map(|node| leaders.iter().filter(|one| *one == node).count());
            let counts: Vec<usize> = counts.collect();
            let all_here = counts.iter().sum::<usize>() == leaders.len();
            if all_here && counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1 {
                return leaders;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

#[test]
fn a_client_and_the_machine_agree_on_the_group_of_a_gid() {
    for n in 0..1_000 {
        let gid = format!("gid-{n}");
        for groups in [1, 2, 3, 4, 16] {
            assert_eq!(Gid::parse(&gid).unwrap().group(groups), group_of(&gid, groups), "{gid}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_led_by_different_nodes_and_survive_the_loss_of_one() {
    let mut cluster = Cluster::with_groups(3, GROUPS).await;
    let deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    let _savings = Agent::start("savings", &cluster.grpc(), |_: &Asked| Say::Done);
    let client = client(&cluster).await;
    let mut first = gids("first");
    commit_all(&client, &first).await;

    // Groups are called by the nodes that lead them: once they are spread, by every node. On a busy machine they move now and then.
    within("every node calls", async {
        for more in 0.. {
            spread(&cluster, &[1, 2, 3]).await;
            let gids = gids(&format!("more-{more}"));
            commit_all(&client, &gids).await;
            first.extend(gids);
            let called: BTreeSet<u64> = deposit.asked().iter().map(|asked| asked.node).collect();
            if called == BTreeSet::from([1, 2, 3]) {
                break;
            }
        }
    })
    .await;
    assert_eq!(gids_of(&deposit, Op::Try).len(), first.len(), "each is tried");
    // A list, and the history, are of all groups.
    let listed = client.list(Filter { limit: 1_000, ..Filter::default() }).await.unwrap();
    assert_eq!(listed.transactions.len(), first.len());
    assert!(listed.transactions.windows(2).all(|pair| pair[0].gid < pair[1].gid));
    within("the history has them", async {
        loop {
            let found = client.search_history(SearchHistoryRequest::default()).await.unwrap();
            if found.transactions.len() == first.len() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;

    // A node goes; what it led is led by the others, and nothing is lost.
    cluster.stop(3).await;
    spread(&cluster, &[1, 2]).await;
    let second = gids("second");
    commit_all(&client, &second).await;
    commit_all(&client, &first).await;
    let confirmed = gids_of(&deposit, Op::Confirm).len();
    assert_eq!(confirmed, first.len() + second.len(), "a repeat is no transaction");

    // It comes back, has everything, and leads its part again.
    cluster.restart(3).await;
    let leaders = spread(&cluster, &[1, 2, 3]).await;
    assert!(leaders.contains(&3), "{leaders:?}");
    commit_all(&client, &gids("third")).await;
    for group in 0..GROUPS {
        cluster.equal_states(group).await;
    }
}

/// What a node's HTTP door answers, as JSON.
async fn asked(cluster: &Cluster, node: u64, path: &str) -> Value {
    within("an answer", async {
        let at = cluster.config(node).bind.http;
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        let body = heard.split_once("\r\n\r\n").expect("a head and a body").1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {heard}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_door_tells_of_each_group_and_verifies_the_trail_of_each() {
    const TWO: u32 = 2;
    let cluster = Cluster::with_groups(3, TWO).await;
    let _deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    // Nobody serves savings, so that these stay open, in both groups.
    let client = client(&cluster).await;
    let gids: Vec<String> = gids("open").into_iter().take(8).collect();
    for gid in &gids {
        let terms = Terms::tcc().gid(gid).timeout_ms(600_000);
        let submission = Submission::new(terms).branch("deposit", "1").branch("savings", "1");
        client.submit(submission.wait(Wait::None)).await.unwrap();
    }
    let open = |group: u32| gids.iter().filter(|gid| group_of(gid, TWO) == group).count();
    let counts = |said: &Value| -> Vec<Value> {
        let groups = said["groups"].as_array().expect("groups").iter();
        groups.map(|group| group["open_transactions"].clone()).collect()
    };
    for node in 1..=3 {
        let said = within("a node has applied all", async {
            loop {
                let said = asked(&cluster, node, "/v1/status?state_hash=true").await;
                if said["open_transactions"] == gids.len() {
                    return said;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(counts(&said), [open(0), open(1)], "{said}");
        let numbers: Vec<_> = said["groups"].as_array().unwrap().iter().collect();
        assert_eq!((&numbers[0]["group"], &numbers[1]["group"]), (&json!(0), &json!(1)));
        assert_eq!(said["by_status"]["trying"], gids.len(), "{said}");
        assert_eq!(said["state_hash"], said["groups"][0]["state_hash"]);
    }

    // An act on a transaction is in the trail of its group, on every node.
    let acted: Vec<&String> =
        (0..TWO).map(|g| gids.iter().find(|gid| group_of(gid, TWO) == g).unwrap()).collect();
    for gid in &acted {
        let request = OperateRequest {
            gid: (*gid).clone(),
            act: OperatorAct::RollBack.into(),
            reason: "a story".to_owned(),
            wait: wire::Wait::Decision.into(),
            ..OperateRequest::default()
        };
        let answer = client.operate(request, Wait::Decision).await.unwrap();
        assert!(matches!(answer.outcome, Outcome::RolledBack { .. }), "{gid}: {answer:?}");
    }
    for (group, gid) in acted.iter().enumerate() {
        let page = within("the record is there", async {
            loop {
                let page = asked(&cluster, 1, &format!("/v1/audit?group={group}")).await;
                let records = page["records"].as_array().expect("records").iter();
                if records.clone().any(|record| record["act"] == "tx.roll_back") {
                    return page;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!((&page["group"], &page["groups"]), (&json!(group), &json!(TWO)), "{page}");
        assert!(page["records"].to_string().contains(gid.as_str()), "{page}");
    }
    let verified = asked(&cluster, 1, "/v1/audit/verify").await;
    assert_eq!(verified["whole"], true, "{verified}");
    let trails = verified["trails"].as_array().expect("one a group");
    assert_eq!(trails.len(), TWO as usize, "{verified}");
    assert!(trails.iter().all(|trail| trail["count"].as_u64() >= Some(1)), "{verified}");
    let one = asked(&cluster, 1, "/v1/audit/verify?group=1").await;
    assert_eq!(one["trails"][0]["group"], 1, "{one}");
    let none = asked(&cluster, 1, "/v1/audit/verify?group=2").await;
    assert_eq!(none["code"], "HF2301", "{none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_room_for_one_call_serves_all_groups_of_a_node() {
    let cluster = Cluster::with_groups(1, GROUPS).await;
    let deposit = Agent::with_credit("deposit", &cluster.grpc(), 1, |_: &Asked| Say::Done);
    let _savings = Agent::start("savings", &cluster.grpc(), |_: &Asked| Say::Done);
    cluster.leaders().await;
    let gids: Vec<String> = gids("narrow").into_iter().take(12).collect();
    commit_all(&client(&cluster).await, &gids).await;
    assert_eq!(gids_of(&deposit, Op::Try).len(), gids.len());
}
