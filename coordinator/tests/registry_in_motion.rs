//! The registry while transfers run without a pause: instances are re-weighed, drained, throttled, colored, killed and replaced, no
//! transfer fails for it, and each instance has its share of the calls.
//!
//! Calls are counted where they arrive, at the instances. Sessions take turns by virtual time, so a share does not depend on chance;
//! what a window of calls may be off by is what was under way at its ends, and that is bounded by the number of transfers at once.

mod doors;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use doors::{Agent, Cluster, done, get, http, post};
use holdfast_proto::v1;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const SERVICE: &str = "loyalty";
/// Transfers at once.
const TRANSFERS: usize = 8;
/// Of one branch each, so that a transfer has one call under way: confirms of two would go out together, and an instance that holds
/// half of what is under way could hold a call of every transfer.
const UNDER_WAY_MAX: u64 = TRANSFERS as u64;
/// Calls over which shares are measured: what is under way at an end is 1 % of it.
const WINDOW: u64 = 800;
/// Points of a hundred by which a share may differ from its weight.
const APART_MAX: f64 = 5.0;
/// For anything that must happen, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// Calls that arrived at each instance.
type Arrived = Arc<Mutex<BTreeMap<&'static str, u64>>>;

/// Transfers that run until they are told to stop.
struct Transfers {
    begun: Arc<AtomicUsize>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Transfers {
    fn start(at: SocketAddr) -> Self {
        let (begun, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let mut workers = JoinSet::new();
        for _ in 0..TRANSFERS {
            let (begun, stop) = (Arc::clone(&begun), stop.clone());
            workers.spawn(async move {
                while !stop.is_cancelled() {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    committed(at, &format!("motion-{number}")).await;
                }
            });
        }
        Self { begun, stop, workers }
    }

    /// How many were begun; each has committed.
    async fn end(mut self) -> usize {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("every transfer commits");
        }
        self.begun.load(Ordering::Relaxed)
    }
}

/// Runs one transfer to its end, which must be a commit. Where nothing is decided yet the same gid is asked again.
async fn committed(at: SocketAddr, gid: &str) {
    let body = json!({
        "gid": gid, "mode": "tcc", "wait": "end", "wait_timeout_ms": 30_000,
        "options": {"timeout_ms": 300_000, "call_timeout_ms": 240_000},
        "branches": [{"participant": SERVICE, "payload": 1}],
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = post(at, "/v1/transactions", &body).await;
        let open = match answer.status {
            200..=202 => match answer.json()["outcome"].as_str() {
                Some("committed") => return,
                outcome => outcome != Some("rolled_back"),
            },
            503 | 504 => true,
            _ => false,
        };
        assert!(open, "a transfer failed: {answer:?}");
        assert!(Instant::now() < deadline, "a transfer does not end: {answer:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// One node, the instances of one service, and what arrives at them.
struct Story {
    cluster: Cluster,
    at: SocketAddr,
    arrived: Arrived,
}

impl Story {
    async fn begin() -> Self {
        let cluster = Cluster::of(1).await;
        let at = cluster.leader().http;
        Self { cluster, at, arrived: Arrived::default() }
    }

    /// An instance; while `holds` it takes calls and answers none.
    async fn instance(
        &self,
        name: &'static str,
        zone: &str,
        color: &str,
        holds: &Arc<AtomicBool>,
    ) -> Agent {
        let hello = v1::Hello {
            service: SERVICE.to_owned(),
            instance: name.to_owned(),
            zone: zone.to_owned(),
            color: color.to_owned(),
            ..v1::Hello::default()
        };
        let (arrived, holds) = (Arc::clone(&self.arrived), Arc::clone(holds));
        let answer = move |call: &v1::Call| {
            *arrived.lock().expect("nobody panics while holding it").entry(name).or_default() += 1;
            if holds.load(Ordering::SeqCst) { None } else { done(call) }
        };
        let agent = self.cluster.announce(hello, answer).await;
        self.until("the registry has it", |state| session(state, name).is_object()).await;
        agent
    }

    /// Sets the policy and waits until calls are made by it.
    async fn decide(&self, policy: Value) {
        let body = json!({"reason": "a story", "policy": policy}).to_string();
        let headers = [("content-type", "application/json")];
        let path = format!("/v1/services/{SERVICE}/policy");
        let answer = http(self.at, "PUT", &path, &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let version = answer.json()["version"].as_str().expect("a version").to_owned();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = get(self.at, &format!("/v1/services/{SERVICE}")).await;
            if seen.header("etag").is_some_and(|tag| tag.trim_matches('"') == version) {
                return;
            }
            assert!(Instant::now() < deadline, "nobody goes by version {version}: {seen:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the registry's view of the service is as `holds` says.
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = get(self.at, &format!("/v1/services/{SERVICE}")).await;
            if state.status == 200 && holds(&state.json()) {
                return state.json();
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {state:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nothing is under way at an instance that gets no more calls.
    async fn idle(&self, instance: &str) {
        let nothing = |state: &Value| session(state, instance)["in_flight"] == 0;
        self.until("nothing is under way there", nothing).await;
    }

    /// Lets `calls` further ones arrive: how many each instance got.
    async fn window(&self, calls: u64) -> Shares {
        let before = self.arrived.lock().expect("nobody panics while holding it").clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut now = self.arrived.lock().expect("nobody panics while holding it").clone();
            now.iter_mut().for_each(|(name, count)| {
                *count -= before.get(name).copied().unwrap_or_default();
            });
            if now.values().sum::<u64>() >= calls {
                return Shares(now);
            }
            assert!(Instant::now() < deadline, "transfers stand still: {now:?} of {calls} calls");
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A session as the registry tells it.
fn session(state: &Value, instance: &str) -> Value {
    let all = state["sessions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|one| one["instance"] == instance).unwrap_or_default()
}

/// Calls of one window by instance.
#[derive(Debug)]
struct Shares(BTreeMap<&'static str, u64>);

impl Shares {
    fn of(&self, instance: &str) -> u64 {
        self.0.get(instance).copied().unwrap_or_default()
    }

    /// In points of a hundred.
    fn points(&self, instance: &str) -> f64 {
        self.of(instance) as f64 * 100.0 / self.0.values().sum::<u64>() as f64
    }

    /// Each named instance has its points, and nobody else has any.
    fn are(&self, what: &str, expected: &[(&str, f64)]) {
        for (instance, points) in expected {
            let apart = (self.points(instance) - points).abs();
            assert!(apart <= APART_MAX, "{what}: {instance} was to have {points} %: {self:?}");
        }
        let others = self.0.iter().filter(|(name, _)| expected.iter().all(|(one, _)| one != *name));
        assert_eq!(others.map(|(_, calls)| calls).sum::<u64>(), 0, "{what}: {self:?}");
    }
}

fn weighed(instance: &str, weight: u32) -> Value {
    json!({"instances": [{"instance": instance, "weight": weight}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_drains_throttles_and_colors_count_while_transfers_run_and_none_fails() {
    let story = Story::begin().await;
    let never = Arc::new(AtomicBool::new(false));
    let _one = story.instance("one", "a", "blue", &never).await;
    let _two = story.instance("two", "b", "green", &never).await;
    let transfers = Transfers::start(story.at);
    story.window(WINDOW).await.are("as announced", &[("one", 50.0), ("two", 50.0)]);

    story.decide(weighed("one", 300)).await;
    story.window(WINDOW).await.are("300 to 100", &[("one", 75.0), ("two", 25.0)]);
    story.decide(weighed("one", 1)).await;
    story.window(WINDOW).await.are("1 to 100", &[("one", 1.0), ("two", 99.0)]);
    story.decide(weighed("one", 100)).await;
    story.window(WINDOW).await.are("100 to 100", &[("one", 50.0), ("two", 50.0)]);

    story.decide(json!({"instances": [{"instance": "one", "drained": true}]})).await;
    story.idle("one").await;
    story.window(WINDOW).await.are("one is drained", &[("two", 100.0)]);
    story.decide(json!({})).await;
    story.window(WINDOW).await.are("one is back", &[("one", 50.0), ("two", 50.0)]);

    let (began, rate) = (Instant::now(), 400);
    story.decide(json!({"calls_per_s": rate, "burst": 1})).await;
    let deciding = began.elapsed();
    let began = Instant::now();
    let shares = story.window(WINDOW).await;
    let most = 1.0 + f64::from(rate) * began.elapsed().as_secs_f64() + UNDER_WAY_MAX as f64;
    let calls = shares.0.values().sum::<u64>();
    assert!(calls as f64 <= most, "{calls} calls, allowed were {most}; decided in {deciding:?}");
    shares.are("throttled", &[("one", 50.0), ("two", 50.0)]);

    let share = |color: &str, share: u32| json!({"color": color, "share": share});
    story.decide(json!({"colors": [share("blue", 90), share("green", 10)]})).await;
    story.window(WINDOW).await.are("blue 90, green 10", &[("one", 90.0), ("two", 10.0)]);
    let _three = story.instance("three", "b", "green", &never).await;
    let greens = [("one", 90.0), ("two", 5.0), ("three", 5.0)];
    story.window(WINDOW).await.are("the share is the color's, however many wear it", &greens);
    story.decide(json!({"colors": [share("green", 1)]})).await;
    story.idle("one").await;
    story.window(WINDOW).await.are("green alone", &[("two", 50.0), ("three", 50.0)]);
    assert!(transfers.end().await > 0, "each of them committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zones_warm_up_least_load_and_kills_count_while_transfers_run_and_none_fails() {
    let story = Story::begin().await;
    let never = Arc::new(AtomicBool::new(false));
    let one = story.instance("one", "a", "", &never).await;
    let two = story.instance("two", "b", "", &never).await;
    let transfers = Transfers::start(story.at);

    story.decide(json!({"zones": ["b"]})).await;
    story.idle("one").await;
    story.window(WINDOW).await.are("zone b is preferred", &[("two", 100.0)]);
    drop(two);
    story.until("two is gone", |state| session(state, "two").is_null()).await;
    story.window(WINDOW).await.are("zone b is empty", &[("one", 100.0)]);
    let holds = Arc::new(AtomicBool::new(false));
    let two = story.instance("two", "b", "", &holds).await;
    story.idle("one").await;
    story.window(WINDOW).await.are("zone b is back", &[("two", 100.0)]);

    // The two that are there are as old as that: only who comes now is to warm up.
    let state = story.until("both are there", |state| session(state, "two").is_object()).await;
    let age = |name| session(&state, name)["age_ms"].as_u64().unwrap_or_default();
    let warm_up_ms = age("one").min(age("two"));
    story.decide(json!({"warm_up_ms": warm_up_ms})).await;
    let three = story.instance("three", "a", "", &never).await;
    let shares = story.window(WINDOW / 4).await;
    let state = story.until("three is there", |state| session(state, "three").is_object()).await;
    let weight = session(&state, "three")["weight"].as_f64().unwrap_or_default();
    let most = weight * 100.0 / (200.0 + weight);
    assert!(
        shares.of("three") > 0 && shares.points("three") <= most + APART_MAX,
        "weight {weight}: {shares:?}"
    );
    story.until("three is warm", |state| session(state, "three")["weight"] == 100).await;
    story.decide(json!({})).await;
    let thirds = [("one", 33.3), ("two", 33.3), ("three", 33.3)];
    story.window(WINDOW).await.are("three is warm", &thirds);
    drop(three);
    story.until("three is gone", |state| session(state, "three").is_null()).await;
    story.window(WINDOW).await.are("three is gone", &[("one", 50.0), ("two", 50.0)]);

    story.decide(json!({"least_load": true})).await;
    // What was called before may lie all with one of them; from then on neither gets more than half.
    let half = |state: &Value| {
        let under_way = session(state, "two")["in_flight"].as_u64();
        under_way.is_some_and(|calls| calls <= TRANSFERS as u64 / 2)
    };
    story.until("two has half at most", half).await;
    holds.store(true, Ordering::SeqCst);
    let shares = story.window(WINDOW).await;
    // Half of what is under way, and what it had answered when it began to hold.
    assert!(shares.of("two") <= UNDER_WAY_MAX, "{shares:?}");
    // It dies with calls that it took and never answered; they are asked of the other.
    let state = story.until("two is there", |state| session(state, "two").is_object()).await;
    assert!(session(&state, "two")["in_flight"].as_u64() > Some(0), "{state}");
    drop(two);
    story.until("two is dead", |state| session(state, "two").is_null()).await;
    let begun = transfers.begun.load(Ordering::Relaxed);
    story.window(WINDOW).await.are("two is dead", &[("one", 100.0)]);
    assert!(transfers.begun.load(Ordering::Relaxed) >= begun + TRANSFERS, "all go on");
    assert!(transfers.end().await > 0, "each of them committed");
    drop(one);
}
