//! Routers say by which rules they go, over real sockets and by whatever node; who leads anew says that it may not know all.

mod doors;

use doors::{Cluster, SOON, get};
use holdfast_client::{
    Client, ClientError, ClientOptions,
    wire::{ApplyRulesRequest, AttendRequest, ListRoutersReply},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

const RULES: &str = include_str!("../../config/shards.toml");

fn client(addresses: Vec<String>) -> Client {
    Client::lazy(addresses, ClientOptions::default()).expect("there are addresses")
}

fn said(router: &str, epoch: u64, lease_ms: u64) -> AttendRequest {
    AttendRequest {
        router: router.to_owned(),
        address: "10.1.2.3:5432".to_owned(),
        epoch,
        oldest_epoch: epoch,
        lease_ms,
        ..AttendRequest::default()
    }
}

fn apply(text: String, expected_epoch: u64) -> ApplyRulesRequest {
    let reason = "shard-2 is full".to_owned();
    ApplyRulesRequest { text, expected_epoch, reason, ..ApplyRulesRequest::default() }
}

fn code(refused: ClientError) -> String {
    match refused {
        ClientError::Refused { code, .. } => code,
        other => other.to_string(),
    }
}

/// What the leader says, once it is as wanted.
async fn listed(client: &Client, wanted: impl Fn(&ListRoutersReply) -> bool) -> ListRoutersReply {
    let deadline = Instant::now() + SOON;
    loop {
        let now = client.routers().await;
        match now {
            Ok(now) if wanted(&now) => return now,
            now => assert!(Instant::now() < deadline, "{now:?}"),
        }
        sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_attends_by_whatever_node_until_it_leaves_or_its_lease_ends() {
    let cluster = Cluster::of(3).await;
    let by_follower = client(vec![cluster.follower().grpc.clone()]);
    let by_leader = client(vec![cluster.leader().grpc.clone()]);
    let told = by_follower.attend(said("r-1", 0, 60_000)).await.unwrap();
    assert_eq!((told.epoch, told.lease_ms), (0, 60_000));
    by_leader.apply_rules(apply(RULES.to_owned(), 0)).await.unwrap();
    // It has not heard of them, and says again what it goes by; now it hears.
    let told = by_follower.attend(said("r-1", 0, 60_000)).await.unwrap();
    assert_eq!(told.epoch, 1);
    let behind = AttendRequest { oldest_epoch: 0, ..said("r-1", 1, 400_000) };
    let told = by_follower.attend(behind).await.unwrap();
    assert_eq!((told.epoch, told.lease_ms), (1, 300_000), "the longest lease");
    by_leader.attend(said("r-2", 1, 100)).await.unwrap();

    let page = get(cluster.follower().http, "/v1/shards/routers").await.json();
    let first = &page["routers"][0];
    assert_eq!(
        (&first["router"], &first["address"], &first["epoch"], &first["oldest_epoch"]),
        (&json!("r-1"), &json!("10.1.2.3:5432"), &json!(1), &json!(0)),
        "{page}"
    );
    assert!(first["lease_left_ms"].as_u64().unwrap() <= 300_000, "{page}");
    assert_eq!(page["epoch"], 1);
    listed(&by_follower, |now| now.routers.len() == 1).await;

    let leaves = AttendRequest { leaves: true, ..said("r-1", 1, 0) };
    assert_eq!(by_follower.attend(leaves).await.unwrap().lease_ms, 0);
    assert!(by_leader.routers().await.unwrap().routers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routers_name_and_address_are_taken_at_their_limits_and_refused_one_past_them() {
    let cluster = Cluster::of(1).await;
    let client = client(cluster.addresses());
    let long = |bytes: usize| "r".repeat(bytes);
    let wide = AttendRequest { router: long(128), address: long(256), ..said("", 3, 1) };
    client.attend(wide).await.unwrap();
    for bad in [
        said("", 1, 1),
        said(&long(129), 1, 1),
        said("r\n", 1, 1),
        AttendRequest { address: long(257), ..said("r", 1, 1) },
        AttendRequest { oldest_epoch: 2, ..said("r", 1, 1) },
        said("r", 1, 0),
    ] {
        assert_eq!(code(client.attend(bad.clone()).await.unwrap_err()), "HF2301", "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_routers_have_a_lease_as_allowed_and_one_more_has_none() {
    let cluster = Cluster::of(1).await;
    let options = ClientOptions { patience_ms: 100, ..ClientOptions::default() };
    let client = Client::lazy(cluster.addresses(), options).unwrap();
    for router in 0..1_024 {
        client.attend(said(&format!("r-{router}"), 0, 60_000)).await.unwrap();
    }
    let refused = client.attend(said("r-x", 0, 60_000)).await.unwrap_err().to_string();
    assert!(refused.contains("HF2414"), "{refused}");
    client.attend(said("r-7", 0, 60_000)).await.unwrap();
    assert_eq!(client.routers().await.unwrap().routers.len(), 1_024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_says_for_how_long_it_may_not_know_every_router() {
    let mut cluster = Cluster::with(3, |config| config.limits.router_lease_max_ms = 3_000).await;
    let client = client(cluster.addresses());
    client.attend(said("r-1", 0, 3_000)).await.unwrap();
    listed(&client, |now| now.unknown_ms == 0 && now.routers.is_empty()).await;
    client.attend(said("r-1", 0, 3_000)).await.unwrap();

    let asked = Instant::now();
    cluster.take_leader().stop().await;
    let anew = listed(&client, |_| true).await;
    let least = 3_000_u64.saturating_sub(u64::try_from(asked.elapsed().as_millis()).unwrap());
    assert!(anew.routers.is_empty() && anew.unknown_ms >= least.max(1), "{anew:?}, {least}");
    client.attend(said("r-2", 0, 60_000)).await.unwrap();
    let all = listed(&client, |now| now.unknown_ms == 0).await;
    assert!(all.routers.len() <= 1, "{all:?}");
    assert!(asked.elapsed().as_millis() >= 3_000, "what the other one granted is over by then");
}
