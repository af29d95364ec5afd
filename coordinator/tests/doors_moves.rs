//! Slots that move, as the coordinators see it over real sockets: held slots thaw, a decision is one, and plans of older rules count where their
//! rows did not move.

mod doors;

use std::time::Duration;

use doors::{Cluster, SOON, done, get};
use holdfast_client::{
    Client, ClientError, ClientOptions, Outcome, Submission, Terms,
    wire::{ApplyRulesRequest, RevertRulesRequest, ShardRules},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

const RULES: &str = include_str!("../../config/shards.toml");

/// Rules by which slots of account up to `last` are on pg-1 and those behind it on pg-2, with what is said of a move.
fn rules(last: u16, moving: &str) -> String {
    let text = RULES
        .replace("last = 255", &format!("last = {last}"))
        .replace("first = 256", &format!("first = {}", last + 1));
    format!("{text}\n{moving}")
}

/// The ten slots up to `last` are to go to pg-2.
fn frozen(id: &str, last: u16, hold_ms: u64) -> String {
    rules(last, &step(id, last, &format!("\"frozen\"\nhold_ms = {hold_ms}")))
}

fn settling(id: &str, last: u16) -> String {
    rules(last - 10, &step(id, last, "\"settling\""))
}

fn step(id: &str, last: u16, state: &str) -> String {
    let first = last - 9;
    format!(
        "[moving]\nid = \"{id}\"\ngroup = \"account\"\nslots = [{{ first = {first}, last = {last} }}]\n\
         from = \"pg-1\"\nto = \"pg-2\"\nstate = {state}\n"
    )
}

fn client(cluster: &Cluster) -> Client {
    Client::lazy(cluster.addresses(), ClientOptions::default()).expect("there are addresses")
}

async fn put(client: &Client, text: String, expected_epoch: u64) -> Result<u64, String> {
    let request = ApplyRulesRequest {
        text,
        expected_epoch,
        reason: "pg-1 is full".to_owned(),
        dev_name: "mover".to_owned(),
        rows_are_moved: true,
        ..ApplyRulesRequest::default()
    };
    client.apply_rules(request).await.map(|reply| reply.epoch).map_err(|error| code(&error))
}

fn code(error: &ClientError) -> String {
    error.code().map_or_else(|| error.to_string(), str::to_owned)
}

/// The rules of this epoch, once they are in force.
async fn in_force(client: &Client, epoch: u64) -> ShardRules {
    let deadline = Instant::now() + SOON;
    loop {
        let now = client.rules(0).await.expect("there are rules");
        if now.epoch >= epoch {
            assert_eq!(now.epoch, epoch);
            return now;
        }
        assert!(Instant::now() < deadline, "epoch {} stays in force", now.epoch);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_held_for_too_long_are_thawed_and_not_before() {
    let cluster = Cluster::of(3).await;
    let client = client(&cluster);
    put(&client, rules(255, ""), 0).await.unwrap();
    let held = Instant::now();
    assert_eq!(put(&client, frozen("m-1", 255, 700), 1).await, Ok(2));
    let thawed = in_force(&client, 3).await;
    assert!(held.elapsed() >= Duration::from_millis(700), "{:?}", held.elapsed());
    assert_eq!((thawed.text, thawed.by.as_str()), (rules(255, ""), "holdfast"));
    assert_eq!(thawed.reason, "move m-1 held its slots for longer than hold_ms = 700");
    let page = get(cluster.leader().http, "/v1/audit").await.json();
    let last = page["records"].as_array().unwrap().last().unwrap();
    assert_eq!(last["by"], json!("holdfast"), "{page}");
    // The mover comes too late, and nothing of what it prepared counts.
    assert_eq!(put(&client, settling("m-1", 255), 2).await, Err("HF2009".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_was_decided_is_never_thawed() {
    let cluster = Cluster::of(1).await;
    let client = client(&cluster);
    put(&client, rules(255, ""), 0).await.unwrap();
    assert_eq!(put(&client, frozen("m-1", 255, 2_000), 1).await, Ok(2));
    assert_eq!(put(&client, settling("m-1", 255), 2).await, Ok(3));
    // By when this one is thawed, the time of the one before is over too.
    assert_eq!(put(&client, frozen("m-2", 245, 2_000), 3).await, Ok(4));
    let thawed = in_force(&client, 5).await;
    assert_eq!((thawed.text, thawed.by.as_str()), (settling("m-1", 255), "holdfast"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_thaws_what_another_saw_frozen() {
    let mut cluster = Cluster::of(3).await;
    put(&client(&cluster), rules(255, ""), 0).await.unwrap();
    assert_eq!(put(&client(&cluster), frozen("m-1", 255, 1_500), 1).await, Ok(2));
    cluster.take_leader().stop().await;
    let thawed = in_force(&client(&cluster), 3).await;
    assert_eq!((thawed.text, thawed.by.as_str()), (rules(255, ""), "holdfast"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_do_not_follow_a_move_are_refused() {
    let cluster = Cluster::of(3).await;
    let client = client(&cluster);
    let out_of_turn = Err("HF2415".to_owned());
    assert_eq!(put(&client, frozen("m-1", 255, 60_000), 0).await, out_of_turn);
    put(&client, rules(255, ""), 0).await.unwrap();
    assert_eq!(put(&client, settling("m-1", 255), 1).await, out_of_turn);
    assert_eq!(put(&client, frozen("m-1", 255, 60_000), 1).await, Ok(2));
    assert_eq!(put(&client, rules(245, ""), 2).await, out_of_turn, "by hand");
    // A thaw by hand, and once more with another name.
    assert_eq!(put(&client, rules(255, "# thawed\n"), 2).await, Ok(3));
    assert_eq!(put(&client, frozen("m-1", 255, 60_000), 3).await, out_of_turn);
    let back = RevertRulesRequest {
        to_epoch: 2,
        expected_epoch: 3,
        reason: "why".to_owned(),
        ..RevertRulesRequest::default()
    };
    assert_eq!(code(&client.revert_rules(back).await.unwrap_err()), "HF2415");
    assert_eq!(put(&client, frozen("m-2", 255, 60_000), 3).await, Ok(4));
    assert_eq!(put(&client, settling("m-2", 255), 4).await, Ok(5));
    assert_eq!(put(&client, settling("m-2", 255), 4).await, Ok(5), "the answer was lost");
    assert_eq!(put(&client, rules(255, ""), 5).await, out_of_turn);
    assert_eq!(put(&client, rules(245, ""), 5).await, Ok(6));
    // An epoch that nobody has seen is judged by nobody.
    assert_eq!(put(&client, settling("m-3", 245), 9).await, Err("HF2009".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_planned_by_older_rules_commits_where_its_rows_did_not_move() {
    let cluster = Cluster::of(3).await;
    let _yes = cluster.serve("yes", done).await;
    let client = client(&cluster);
    let submit = async |gid: &str, epoch| {
        let terms = Terms::saga().gid(gid);
        let submission = Submission::new(terms).branch("yes", "1").rules_epoch(epoch);
        client.submit(submission).await.map(|told| told.outcome).map_err(|error| code(&error))
    };
    let (committed, outdated) = (Ok(Outcome::Committed), Err("HF2410".to_owned()));
    put(&client, rules(255, ""), 0).await.unwrap();
    assert_eq!(submit("file", 0).await, outdated, "rules that the log never had");
    assert_eq!(put(&client, frozen("m-1", 255, 60_000), 1).await, Ok(2));
    assert_eq!(submit("before-1", 1).await, committed, "rows lie alike");
    assert_eq!(put(&client, settling("m-1", 255), 2).await, Ok(3));
    assert_eq!(submit("before-2", 1).await, outdated, "it may have touched what has moved");
    assert_eq!(submit("frozen-1", 2).await, committed, "it has not");
    assert_eq!(put(&client, rules(245, ""), 3).await, Ok(4));
    for epoch in [2, 3, 4] {
        assert_eq!(submit(&format!("behind-{epoch}"), epoch).await, committed);
    }
    // What is known is told, whatever was planned by which rules.
    assert_eq!(submit("before-1", 1).await, committed);
    for more in 4..10 {
        assert_eq!(put(&client, rules(245, &format!("# {more}\n")), more).await, Ok(more + 1));
    }
    assert_eq!(submit("forgotten", 2).await, outdated, "its rules are not kept");
    assert_eq!(submit("kept", 3).await, committed);
}
