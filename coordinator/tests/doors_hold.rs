//! Commits are held at the door of a real leader: what waits is not failed, and a hold that is over says so.

mod doors;

use std::time::Duration;

use doors::{Cluster, SOON, done, get};
use holdfast_client::{Client, ClientError, ClientOptions, Submission};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

async fn client(cluster: &Cluster) -> Client {
    Client::connect(cluster.addresses(), ClientOptions::default()).await.expect("it is let in")
}

fn transfer(gid: &str) -> Submission {
    Submission::tcc().gid(gid).branch("yes", "1").branch("yes", "2")
}

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    let error = answer.expect_err("it is refused");
    error.code().unwrap_or_else(|| panic!("no code: {error}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_commits_are_held_a_submission_waits_and_goes_on_behind() {
    let cluster = Cluster::of(3).await;
    let _yes = cluster.serve("yes", done).await;
    let client = client(&cluster).await;
    let leader = cluster.leader();
    assert!(client.submit(transfer("before")).await.unwrap().is_committed());

    let mut hold = client.hold(&leader.grpc, 10_000, "nightly").await.expect("at the limit");
    let [held] = hold.groups() else { panic!("one group: {hold:?}") };
    let (term, index) = (held.term, held.index);
    let submitted = tokio::spawn({
        let client = client.clone();
        async move { client.submit(transfer("meanwhile")).await }
    });
    for (node, hold_ms, reason, refused) in [
        (&leader.grpc, 0, "", "HF2301"),
        (&leader.grpc, 10_001, "past the limit", "HF2301"),
        (&leader.grpc, 0, "by somebody else", "HF1305"),
        (&cluster.follower().grpc, 0, "where nothing is led", "HF2101"),
    ] {
        assert_eq!(code(client.hold(node, hold_ms, reason).await), refused, "{reason}");
    }
    // Far longer than a submission takes.
    sleep(Duration::from_millis(300)).await;
    hold.still().await.expect("it holds");
    assert!(!submitted.is_finished(), "it waits");
    let status = leader.coordinator.status();
    assert_eq!((status.term, status.last_index), (term, index), "nothing came into the log");
    assert_eq!(get(leader.http, "/v1/transactions/before").await.status, 200, "reads go on");

    drop(hold);
    let answer = timeout(SOON, submitted).await.expect("in time").unwrap();
    assert!(answer.expect("it is not failed").is_committed());
    let trail = get(leader.http, "/v1/audit").await.json();
    let record = &trail["records"][0];
    assert_eq!((&trail["count"], &record["act"]), (&json!(1), &json!("cluster.restore-point")));
    assert_eq!(record["words"], json!("nightly"));
    let again = client.hold(&leader.grpc, 0, "the node is free again").await.expect("it holds");
    assert!(again.groups()[0].index > index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_nobody_ends_is_over_at_its_limit() {
    let cluster = Cluster::of(1).await;
    let _yes = cluster.serve("yes", done).await;
    let client = client(&cluster).await;
    let begun = Instant::now();
    let mut hold = client.hold(&cluster.leader().grpc, 400, "forgotten").await.expect("it holds");
    let answer = timeout(SOON, client.submit(transfer("g-1"))).await.expect("it goes on by itself");
    assert!(answer.unwrap().is_committed());
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    let over = hold.still().await;
    assert!(format!("{over:?}").contains("the 400 ms that were asked for are over"), "{over:?}");
    assert_eq!(code(over), "HF1306");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_whose_node_leads_no_longer_is_over() {
    let mut cluster = Cluster::of(3).await;
    let client = client(&cluster).await;
    let mut hold = client.hold(&cluster.leader().grpc, 10_000, "too late").await.expect("it holds");
    // Nobody is left to confirm that no other leads.
    while let Some(at) = cluster.nodes.iter().position(|node| !node.leads()) {
        cluster.nodes.remove(at).stop().await;
        if cluster.nodes.len() == 1 {
            break;
        }
    }
    assert_eq!(code(hold.still().await), "HF1306");

    let mut cluster = Cluster::of(3).await;
    let client = self::client(&cluster).await;
    let mut hold = client.hold(&cluster.leader().grpc, 10_000, "it stops").await.expect("it holds");
    let stopped = cluster.take_leader();
    timeout(SOON, stopped.stop()).await.expect("a hold does not keep a node from stopping");
    assert_eq!(code(hold.still().await), "HF1306");
    cluster.ready().await;
}
