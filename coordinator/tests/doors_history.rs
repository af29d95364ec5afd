//! The history and the list over a real socket: each filter and each pair of them with rows that fit and rows that do not, and what
//! retention leaves.

mod doors;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use doors::{Cluster, SOON, done, get, post, refused};
use holdfast_client::{Client, ClientOptions, Submission, Terms, Wait};
use holdfast_coordinator::live::Live;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// What is known of a transaction that a filter may fit.
#[derive(Clone, Debug)]
struct Row {
    gid: &'static str,
    mode: &'static str,
    status: String,
    participant: &'static str,
    run: &'static str,
    amount: &'static str,
    /// When it finished, or began: RFC 3339 with milliseconds, so that they sort as texts.
    at: String,
}

/// A parameter, and whom it fits.
type Filter = (String, Box<dyn Fn(&Row) -> bool>);

fn filter(query: impl Into<String>, fits: impl Fn(&Row) -> bool + 'static) -> Filter {
    (query.into(), Box::new(fits))
}

/// Each parameter of both routes, with a value that fits some of `rows` and not others.
fn filters(rows: &[Row]) -> Vec<Filter> {
    let (early, late) = (rows[1].at.clone(), rows[3].at.clone());
    let status = rows[2].status.clone();
    vec![
        filter(format!("status={status}"), move |row| row.status == status),
        filter("mode=saga", |row| row.mode == "saga"),
        filter("participant=yes", |row| row.participant == "yes"),
        filter("tag=run%3Dred", |row| row.run == "red"),
        filter("amount_min=15%20EUR&amount_max=20.00%20EUR", |row| {
            ["20.00 EUR", "20 EUR"].contains(&row.amount)
        }),
        filter(format!("from={early}"), move |row| row.at >= early),
        filter(format!("until={late}"), move |row| row.at < late),
    ]
}

const ROWS: [(&str, &str, &str, &str, &str); 6] = [
    ("h-a", "saga", "yes", "red", "10 EUR"),
    ("h-b", "tcc", "yes", "red", "20.00 EUR"),
    ("h-c", "saga", "no", "blue", "20 EUR"),
    ("h-d", "tcc", "no", "blue", "20.00 USD"),
    ("h-e", "tcc", "loyalty", "red", "1000.00 EUR"),
    ("h-f", "saga", "loyalty", "blue", ""),
];

fn body((gid, mode, participant, run, amount): (&str, &str, &str, &str, &str)) -> Value {
    let mut tags = json!({"run": run});
    if !amount.is_empty() {
        tags["amount"] = json!(amount);
    }
    json!({
        "gid": gid, "mode": mode, "wait": "end", "wait_timeout_ms": 30_000,
        "options": {"timeout_ms": 86_400_000, "tags": tags},
        "branches": [{"participant": participant, "payload": 1}],
    })
}

/// Submits every row, each in a millisecond of its own, and reads what became of it; `at`: the instant that the route goes by.
async fn submitted(at: SocketAddr, wait: &str, instant: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for given in ROWS {
        let mut body = body(given);
        body["wait"] = json!(wait);
        let heard = post(at, "/v1/transactions", &body).await;
        assert!((200..300).contains(&heard.status), "{heard:?}");
        let (gid, mode, participant, run, amount) = given;
        let known = get(at, &format!("/v1/transactions/{gid}")).await.json();
        let known = &known["transaction"];
        let text = |field: &str| known[field].as_str().unwrap_or_default().to_owned();
        rows.push(Row {
            gid,
            mode,
            status: text("status"),
            participant,
            run,
            amount,
            at: text(instant),
        });
        sleep(Duration::from_millis(2)).await;
    }
    assert!(rows.is_sorted_by(|one, other| one.at < other.at), "{rows:?}");
    rows
}

/// Sorted gids that `path` shows, over all of its pages.
async fn shown(at: SocketAddr, path: &str, next: &str, place: &str) -> Vec<String> {
    let (mut gids, mut behind) = (Vec::new(), String::new());
    for _page in 0..20 {
        let page = get(at, &format!("{path}&limit=2{behind}")).await;
        assert_eq!(page.status, 200, "{path}: {page:?}");
        let page = page.json();
        let listed = page["transactions"].as_array().expect("a list");
        assert!(listed.len() <= 2, "{page}");
        gids.extend(listed.iter().map(|one| one["gid"].as_str().expect("a gid").to_owned()));
        let Some(cursor) = page[next].as_str() else {
            gids.sort();
            return gids;
        };
        behind = format!("&{place}={cursor}");
    }
    panic!("{path} never ends");
}

/// Each filter alone and each two together, against what they mean.
async fn each_and_each_pair(at: SocketAddr, rows: &[Row], path: &str, (next, place): (&str, &str)) {
    let filters = filters(rows);
    for (one, (query, fits)) in filters.iter().enumerate() {
        let fitting = rows.iter().filter(|row| fits(row)).count();
        assert!(fitting > 0 && fitting < rows.len(), "{query} tells nothing apart: {rows:?}");
        for (other, also) in &filters[one..] {
            let query = if query == other { query.clone() } else { format!("{query}&{other}") };
            let wanted = rows.iter().filter(|row| fits(row) && also(row));
            let wanted: Vec<&str> = wanted.map(|row| row.gid).collect();
            let found = shown(at, &format!("{path}?{query}"), next, place).await;
            assert_eq!(found, wanted, "{path}?{query} of {rows:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_filter_of_the_history_and_each_pair_of_them_finds_what_fits_and_nothing_else() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _yes = cluster.serve("yes", done).await;
    let _no = cluster.serve("no", refused).await;
    let _loyalty = cluster.serve("loyalty", done).await;
    let rows = submitted(at, "end", "finished_at").await;
    let deadline = Instant::now() + SOON;
    while shown(at, "/v1/history?tag=run%3Dblue", "next_cursor", "cursor").await.len() < 3 {
        assert!(Instant::now() < deadline, "the history lags for ever");
        sleep(Duration::from_millis(10)).await;
    }
    each_and_each_pair(at, &rows, "/v1/history", ("next_cursor", "cursor")).await;
    for row in &rows {
        let known = get(at, &format!("/v1/transactions/{}/timeline", row.gid)).await.json();
        let known = &known["transaction"];
        assert_eq!((&known["gid"], &known["status"]), (&json!(row.gid), &json!(row.status)));
    }
    assert_eq!(get(at, "/v1/transactions/h-z/timeline").await.problem().1, "HF2001");
    let after = get(at, "/v1/history?after=h-a").await;
    assert_eq!(after.problem(), (400, "HF2301".into(), "refused".into()), "that is of the list");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_filter_of_open_transactions_and_each_pair_of_them_finds_what_fits_and_nothing_else() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    // Nobody serves anything: all stay open.
    let rows = submitted(at, "none", "begun_at").await;
    each_and_each_pair(at, &rows, "/v1/transactions", ("next_after", "after")).await;
    let nine = ["tag=a%3Db"; 9].join("&");
    for bad in ["cursor=1-g", "mode=lcc", "tag=x", "from=soon", "amount_min=1%20EUR", &nine] {
        let heard = get(at, &format!("/v1/transactions?{bad}")).await;
        assert_eq!(heard.problem(), (400, "HF2301".into(), "refused".into()), "{bad}");
    }
    let eight = ["tag=run%3Dred"; 8].join("&");
    assert_eq!(
        shown(at, &format!("/v1/transactions?{eight}"), "next_after", "after").await.len(),
        3
    );
}

/// Transactions that make two full sheets and a part of a third.
const MANY: u64 = 2 * 4_096 + 600;

async fn finish_many(client: &Client) {
    let client = Arc::new(client.clone());
    let mut tasks = JoinSet::new();
    for part in 0..64 {
        let client = Arc::clone(&client);
        tasks.spawn(async move {
            for n in (part..MANY).step_by(64) {
                let one = Submission::new(Terms::saga()).gid(format!("r-{n}")).wait(Wait::Decision);
                let answer = client.submit(one.branch("yes", "1")).await.expect("it commits");
                assert!(answer.is_committed(), "{answer:?}");
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
}

/// The places of all that the history shows, newest first, and how many it says that it holds.
async fn places(at: SocketAddr) -> (Vec<String>, u64) {
    let (mut gids, mut behind, mut records) = (Vec::new(), String::new(), 0);
    loop {
        let page = get(at, &format!("/v1/history?limit=1000{behind}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        let listed = page["transactions"].as_array().expect("a list");
        gids.extend(listed.iter().map(|one| one["gid"].as_str().expect("a gid").to_owned()));
        records = records.max(page["records"].as_u64().expect("a count"));
        let Some(next) = page["next_cursor"].as_str() else { return (gids, records) };
        behind = format!("&cursor={next}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_count_bytes_and_age_leaves_the_newest_and_a_cursor_behind_its_border_ends() {
    let cluster = Cluster::of(1).await;
    let (at, node) = (cluster.leader().http, &cluster.leader().coordinator);
    let _yes = cluster.serve("yes", done).await;
    finish_many(&Client::lazy(cluster.addresses(), ClientOptions::default()).unwrap()).await;
    let all = held(at, |records| records == MANY).await;
    assert_eq!(all.len() as u64, MANY, "each is there once");
    // A cursor into what will be the oldest sheet that goes.
    let old = get(at, &format!("/v1/transactions/{}", all[all.len() - 1_000])).await.json();
    let until = &old["transaction"]["finished_at"];
    let until = until.as_str().expect("it finished").to_owned();
    let page = get(at, &format!("/v1/history?limit=2&until={until}")).await.json();
    let border = page["next_cursor"].as_str().expect("there are more").to_owned();
    let behind = async || get(at, &format!("/v1/history?cursor={border}")).await.json();
    assert!(!behind().await["transactions"].as_array().expect("a list").is_empty());

    let usual = node.live();
    let keep = |change: &dyn Fn(&mut Live)| {
        let mut live = usual;
        change(&mut live);
        node.adjust(live).expect("it is within its range");
    };
    // By count: the oldest sheet goes as a whole, the next one would be too much.
    keep(&|live| live.history.records_max = 4_300);
    let left = held(at, |records| records < MANY).await;
    assert!((4_300..MANY as usize).contains(&left.len()), "{} are left", left.len());
    assert_eq!(left, all[..left.len()], "the newest, without a hole");
    let gone = behind().await;
    assert_eq!((&gone["transactions"], &gone["next_cursor"]), (&json!([]), &Value::Null));

    // By bytes and by age: every full sheet goes, and the one that is filled stays.
    keep(&|live| live.history.bytes_max = 1);
    let newest = held(at, |records| records < 4_000).await;
    assert_eq!(newest, all[..newest.len()]);
    assert!(!newest.is_empty() && newest.len() < 4_096, "{} are left", newest.len());
    keep(&|live| live.history.age_ms_max = 1);
    assert_eq!(held(at, |_| true).await, newest, "nothing of it is a full sheet");
    // What left the history is known to the machine for its window still.
    assert_eq!(get(at, "/v1/transactions/r-0").await.json()["outcome"], "committed");

    // Nothing at all: told so, and written again when it is switched on.
    keep(&|live| live.history.records_max = 0);
    assert_eq!(get(at, "/v1/history").await.problem(), (503, "HF2412".into(), "retry".into()));
    let late = post(at, "/v1/transactions", &body(("late", "saga", "yes", "late", ""))).await;
    assert_eq!(late.json()["outcome"], "committed", "{late:?}");
    keep(&|_| {});
    let deadline = Instant::now() + SOON;
    loop {
        let page = get(at, "/v1/history?tag=run%3Dlate").await.json();
        if page["transactions"].as_array().is_some_and(|found| found.len() == 1) {
            break;
        }
        assert!(Instant::now() < deadline, "{page}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What the history shows once it `holds` so many.
async fn held(at: SocketAddr, holds: impl Fn(u64) -> bool) -> Vec<String> {
    let deadline = Instant::now() + SOON;
    loop {
        let page = get(at, "/v1/history?limit=1").await.json();
        let records = page["records"].as_u64().expect("a count");
        if holds(records) {
            let (gids, told) = places(at).await;
            if holds(told) && gids.len() as u64 == told {
                return gids;
            }
        }
        assert!(Instant::now() < deadline, "{records} records");
        sleep(Duration::from_millis(20)).await;
    }
}
