//! What hostile callers send to the HTTP door: somebody else's gid, participants, tenant, name or service within requests of their own, at
//! every route that names one.

mod doors;
mod house;

use std::time::{Duration, Instant};

use doors::Heard;
use holdfast_client::{Client, Terms};
use holdfast_security::Credentials;
use house::{House, SOON};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

const ALICE: &str = "user/alice?role=app";
const BOB: &str = "user/bob?role=app";
/// Bob's participants, alice's, and some that look like either.
const PARTICIPANT: &str = "(deposit|loyalty|deposits|deposi|loyalt)(@shard-[0-9]{1,2})?";
const HOUR_MS: u64 = 3_600_000;

/// Every route that names a gid, a service or a caller, as bob asks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Submit,
    Begin,
    AddBranch,
    Close,
    RollBack,
    Get,
    Wait,
    Finish,
    Retry,
    RetryMany,
    Operate,
    Timeline,
    Events,
    History,
    Service,
    ServicePolicy,
    CallerPolicy,
}

const ROUTES: [Route; 17] = [
    Route::Submit,
    Route::Begin,
    Route::AddBranch,
    Route::Close,
    Route::RollBack,
    Route::Get,
    Route::Wait,
    Route::Finish,
    Route::Retry,
    Route::RetryMany,
    Route::Operate,
    Route::Timeline,
    Route::Events,
    Route::History,
    Route::Service,
    Route::ServicePolicy,
    Route::CallerPolicy,
];

/// One request of bob's in which something is not his.
#[derive(Clone, Debug)]
struct Swap {
    route: Route,
    participants: Vec<String>,
    tenant: String,
    /// A header that claims to be somebody else, as proxies write them.
    claim: String,
    /// The gid comes as the key of idempotency, not in the body.
    by_key: bool,
    /// A flag, whatever the route has.
    choice: bool,
    node: usize,
}

fn swaps() -> impl Strategy<Value = Swap> {
    let claims = "(holdfast-tenant: retail|Holdfast-On-Behalf-Of: user/alice|x-forwarded-user: user/alice|x-real-ip: 127\\.0\\.0\\.1|holdfast-groups: \\*)";
    (
        prop::sample::select(&ROUTES[..]),
        prop::collection::vec(PARTICIPANT, 1..6),
        "(retail|treasury|hr)",
        claims,
        any::<bool>(),
        any::<bool>(),
        0..3_usize,
    )
        .prop_map(|(route, participants, tenant, claim, by_key, choice, node)| Swap {
            route,
            participants,
            tenant,
            claim,
            by_key,
            choice,
            node,
        })
}

impl Swap {
    /// Method, path and body, about the transaction `gid` of alice's.
    fn request(&self, gid: &str) -> (&'static str, String, Value) {
        let under = |rest: &str| format!("/v1/transactions/{gid}{rest}");
        let mut envelope = json!({"mode": "tcc", "options": {
            "headers": {"Holdfast-Tenant": self.tenant}, "timeout_ms": HOUR_MS,
        }});
        if !self.by_key {
            envelope["gid"] = gid.into();
        }
        let first = &self.participants[0];
        match self.route {
            Route::Submit => {
                let branches = self.participants.iter().map(|one| json!({"participant": one}));
                envelope["branches"] = branches.collect();
                ("POST", "/v1/transactions".to_owned(), envelope)
            }
            Route::Begin => {
                envelope["enlisted"] = true.into();
                ("POST", "/v1/transactions".to_owned(), envelope)
            }
            Route::AddBranch => {
                ("POST", under("/branches"), json!({"branch": 2, "participant": first}))
            }
            Route::Close => ("POST", under("/submit"), json!({"wait": "none"})),
            Route::RollBack => {
                let body = json!({"reason": "mine now", "abort_if_unknown": self.choice});
                ("POST", under("/rollback"), body)
            }
            Route::Get => ("GET", under(if self.choice { "?stale=true" } else { "" }), Value::Null),
            Route::Wait => ("GET", under("/wait?timeout_ms=1000"), Value::Null),
            Route::Finish => {
                ("POST", under("/finish"), json!({"branches": [1], "outcome": "rolled_back"}))
            }
            Route::Retry => ("POST", under("/retry"), json!({"reason": "mine now"})),
            Route::RetryMany => {
                let body = json!({
                    "reason": "mine now", "participant": first, "after": gid, "dry_run": self.choice,
                });
                ("POST", "/v1/needs-attention/retry".to_owned(), body)
            }
            Route::Operate => {
                let act = if self.choice { "roll_back" } else { "retry" };
                ("POST", under("/operate"), json!({"act": act, "reason": "mine now"}))
            }
            Route::Timeline => ("GET", under("/timeline"), Value::Null),
            Route::Events => ("GET", under("/events"), Value::Null),
            Route::History => ("GET", format!("/v1/history?participant={first}"), Value::Null),
            Route::Service => ("GET", format!("/v1/services/{first}"), Value::Null),
            Route::ServicePolicy => {
                let body = json!({"reason": "mine now", "policy": {"paused": self.choice}});
                ("PUT", format!("/v1/services/{first}/policy"), body)
            }
            Route::CallerPolicy => {
                let body = json!({"reason": "mine now", "policy": {"requests_per_s": 1}});
                ("PUT", "/v1/callers/user%2Falice/policy".to_owned(), body)
            }
        }
    }

    /// The one status and code that it is denied with.
    fn denied(&self) -> (u16, &'static str) {
        let his = |one: &String| one == "loyalty" || one.starts_with("loyalty@");
        let named = match self.route {
            Route::Submit => &self.participants[..],
            Route::AddBranch => &self.participants[..1],
            _ => &[],
        };
        match self.route {
            _ if !named.iter().all(his) => (403, "HF2603"),
            // The gid is taken, by something that is not his; he hears no more of it.
            Route::Submit | Route::Begin => (409, "HF2002"),
            Route::AddBranch
            | Route::Close
            | Route::RollBack
            | Route::Get
            | Route::Wait
            | Route::Finish => (403, "HF2604"),
            // These are for people who operate, whoever's the transaction or the service is.
            Route::Retry
            | Route::RetryMany
            | Route::Operate
            | Route::Timeline
            | Route::Events
            | Route::History
            | Route::Service
            | Route::ServicePolicy
            | Route::CallerPolicy => (403, "HF2602"),
        }
    }
}

/// Asks one node, on a connection of its own.
async fn ask(house: &House, bob: &Credentials, swap: &Swap, gid: &str) -> Heard {
    let (method, path, body) = swap.request(gid);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let key = format!("idempotency-key: {gid}\r\n");
    let key = if swap.by_key && path == "/v1/transactions" { key } else { String::new() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n{}\r\n{key}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        swap.claim,
        body.len()
    );
    let at = house.cluster.nodes[swap.node].http.to_string();
    let mut stream = bob.connector(None).open(&at, b"http/1.1").await.expect("it is let in");
    stream.write_all(head.as_bytes()).await.expect("it is open");
    let mut heard = Vec::new();
    let _cut = timeout(SOON, stream.read_to_end(&mut heard)).await.expect("it ends in time");
    let text = String::from_utf8(heard).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    Heard { status, head: head.to_owned(), body: body.to_owned() }
}

/// Asks until it is answered: between two leaders nobody knows.
async fn asked(
    house: &House,
    bob: &Credentials,
    swap: &Swap,
    gid: &str,
) -> Result<(u16, String), TestCaseError> {
    let deadline = Instant::now() + SOON;
    loop {
        let heard = ask(house, bob, swap, gid).await;
        prop_assert!(!heard.body.contains("retail"), "it is told {heard:?}");
        if heard.status != 503 {
            prop_assert!(heard.status >= 400, "{swap:?}: it is told {heard:?}");
            let (status, code, _) = heard.problem();
            return Ok((status, code));
        }
        prop_assert!(Instant::now() < deadline, "{heard:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// As alice sees it, and once somebody leads.
async fn seen(alice: &Client, gid: &str) -> String {
    let answer = alice.get(gid).await.expect("it is hers");
    format!("{:?}", answer.transaction)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_swapped_at_whichever_route_is_denied_and_changes_nothing() {
    let house = House::of(3).await;
    let alice = house.client(ALICE).await;
    let terms = Terms::tcc().gid("hers").timeout_ms(HOUR_MS);
    alice.begin(terms).await.expect("it is begun");
    let spec = holdfast_client::BranchSpec::new("deposit", "{}");
    alice.add_branch("hers", 1, spec).await.expect("it is hers");
    let before = seen(&alice, "hers").await;
    let sam = house.client("user/sam?role=sre").await;
    let policies = sam.services("").await.expect("he keeps the house").version;

    let bob = house.credentials(BOB);
    let config = Config { cases: 192, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Handle::current();
    let judged = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&swaps(), |swap| {
            let (status, code) = runtime.block_on(asked(&house, &bob, &swap, "hers"))?;
            prop_assert_eq!((status, code.as_str()), swap.denied(), "{:?}", swap);
            Ok(())
        })
    });
    judged.unwrap_or_else(|found| panic!("{found}"));
    // Each route at least once, whatever was drawn.
    for route in ROUTES {
        let swap = Swap {
            route,
            participants: vec!["deposit".to_owned()],
            tenant: "retail".to_owned(),
            claim: "holdfast-tenant: retail".to_owned(),
            by_key: true,
            choice: true,
            node: 1,
        };
        let (status, code) = asked(&house, &bob, &swap, "hers").await.expect("an answer");
        assert_eq!((status, code.as_str()), swap.denied(), "{swap:?}");
    }

    assert_eq!(seen(&alice, "hers").await, before, "nothing of it happened");
    let after = sam.services("").await.expect("he keeps the house").version;
    assert_eq!(after, policies, "no policy was set");
    let listed = house.http(&bob, "GET", "/v1/transactions", "").await;
    assert_eq!(listed.json()["transactions"], json!([]), "{listed:?}");
}
