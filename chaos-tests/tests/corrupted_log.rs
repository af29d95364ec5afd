//! What a node makes of its log after a crash, and after damage.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{Cluster, SOON, Service, http, transfer, until};
use serde_json::json;

/// Bytes before the first record of a segment.
const SEGMENT_HEAD: usize = 64;

/// The segment with records in it, and where they end.
fn segment(data: &Path) -> anyhow::Result<(PathBuf, usize)> {
    let mut folders = vec![data.to_owned()];
    let mut logs = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                logs.push(path);
            }
        }
    }
    let last = logs.into_iter().max().context("no segment")?;
    let bytes = fs::read(&last)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).context("an empty segment")? + 1;
    ensure!(end > SEGMENT_HEAD + 1_000, "hardly a record in {}", last.display());
    Ok((last, end.next_multiple_of(8)))
}

fn write_at(path: &Path, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, offset as u64)?;
    Ok(file.sync_all()?)
}

fn flip_a_bit_at(path: &Path, offset: usize) -> anyhow::Result<()> {
    let mut byte = [0];
    File::open(path)?.read_exact_at(&mut byte, offset as u64)?;
    write_at(path, offset, &[byte[0] ^ 0x10])
}

/// Waits until all nodes have applied all there is, so that no log lacks what another has.
async fn level(cluster: &Cluster) -> anyhow::Result<()> {
    until("all nodes have applied the same", SOON, async || {
        let mut applied = Vec::new();
        for at in 0..cluster.nodes.len() {
            let status = cluster.status(at).await?;
            applied.extend([status.applied_index, status.last_index]);
        }
        applied.iter().all(|index| *index == applied[0]).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_is_damaged_in_the_middle_refuses_to_start_and_the_others_serve()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    for (shard, account) in [(0, "A-1"), (1, "B-1")] {
        cluster.open_accounts(shard, [account.to_owned()], 10_000).await?;
    }
    for number in 0..30 {
        let body = transfer(&format!("before-{number}"), (1, "A-1"), (2, "B-1"), 10);
        let reply = http::post(&cluster.nodes[number % 3].http, "/v1/transactions", &body).await?;
        ensure!(reply.text("/outcome") == "committed", "{:#}", reply.json());
    }
    level(&cluster).await?;
    let damaged = cluster.follower().await?;
    cluster.nodes[damaged].process.kill().await?;
    let (file, end) = segment(&cluster.nodes[damaged].data)?;
    let middle = SEGMENT_HEAD + (end - SEGMENT_HEAD) / 2;
    flip_a_bit_at(&file, middle)?;
    let found = fs::read(&file)?;

    // It says what is damaged, where, and what to do, and touches nothing.
    let process = &mut cluster.nodes[damaged].process;
    let before = process.log_text().len();
    process.start()?;
    let status = process.ended(SOON).await?;
    let told = process.log_text().split_off(before);
    ensure!(status.code().is_some_and(|code| code != 0), "{status}: {told}");
    let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
    ensure!(told.contains(name), "the file is not named: {told}");
    let offset = told.split("at byte ").nth(1).and_then(|rest| rest.split(':').next());
    let offset: usize = offset.and_then(|word| word.parse().ok()).context("no offset")?;
    ensure!(offset <= middle && middle < offset + 70_000, "{offset} is not near {middle}");
    ensure!(told.contains("Do not delete anything"), "no remedy: {told}");
    ensure!(fs::read(&file)? == found, "the evidence was changed");

    // Two of three go on.
    cluster.serves((damaged + 1) % 3, "after-damage", "A-1", "B-1").await?;

    // The disk is mended: it starts and catches up.
    flip_a_bit_at(&file, middle)?;
    cluster.start_nodes().await?;
    cluster.serves(damaged, "after-repair", "A-1", "B-1").await?;
    cluster.quiet(SOON).await?;
    ensure!(cluster.balance_minor(1, "B-1").await? == 10_000 + 300 + 2);
    cluster.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_torn_tails_start_and_keep_open_and_finished_transactions() -> anyhow::Result<()>
{
    let mut cluster = Cluster::start(2).await?;
    for (shard, account) in [(0, "A-1"), (1, "B-1")] {
        cluster.open_accounts(shard, [account.to_owned()], 1_000).await?;
    }
    let mut service = Service::start().await?;
    let _agent = cluster.agent("slow", &service.address).await?;
    let http = cluster.nodes[0].http.clone();

    // One committed, one rolled back, one open with its try unanswered, one open for branches.
    let committed = transfer("kept-committed", (1, "A-1"), (2, "B-1"), 400);
    let refused = transfer("kept-refused", (1, "A-1"), (2, "B-1"), 601);
    let trying = json!({"gid": "kept-trying", "mode": "tcc", "wait": "none", "options": {"timeout_ms": 600_000},
                        "branches": [{"participant": "slow", "payload": {"n": 1}}]});
    let begun = json!({"gid": "kept-begun", "mode": "saga", "enlisted": true, "options": {"timeout_ms": 600_000}});
    for (body, outcome) in [
        (&committed, "committed"),
        (&refused, "rolled_back"),
        (&trying, "unknown"),
        (&begun, "unknown"),
    ] {
        let reply = http::post(&http, "/v1/transactions", body).await?;
        ensure!(reply.text("/outcome") == outcome, "{:#}", reply.json());
    }
    let asked = service.next(SOON).await?;
    ensure!(asked.op == "try", "{asked:?}");
    for gid in ["kept-committed", "kept-refused"] {
        let path = format!("/v1/transactions/{gid}/wait?for=end");
        let reply = http::get(&http, &path).await?;
        ensure!(reply.status == 200, "{:#}", reply.json());
    }
    level(&cluster).await?;

    // A write that was under way at the crash leaves half a record behind the others: on one node the beginning of one, on
    // another bytes of all kinds.
    cluster.kill_nodes().await?;
    drop(asked);
    let (file, end) = segment(&cluster.nodes[0].data)?;
    let mut torn = vec![0; 48];
    File::open(&file)?.read_exact_at(&mut torn, SEGMENT_HEAD as u64)?;
    write_at(&file, end, &torn[..20])?;
    let (file, end) = segment(&cluster.nodes[1].data)?;
    write_at(&file, end, &(1..=120).map(|at: u8| at.wrapping_mul(37)).collect::<Vec<u8>>())?;
    cluster.start_nodes().await?;

    // The same gid and content is the same transaction, by any node, and nothing is done twice.
    for (at, node) in cluster.nodes.iter().enumerate() {
        for (body, outcome) in [(&committed, "committed"), (&refused, "rolled_back")] {
            let reply = http::post(&node.http, "/v1/transactions", body).await?;
            ensure!(reply.text("/outcome") == outcome, "node {at}: {:#}", reply.json());
            ensure!(reply.json()["repeated"] == true, "node {at}: {:#}", reply.json());
        }
        let mut other = committed.clone();
        other["branches"][0]["payload"]["debit"]["amount_minor"] = "401".into();
        let reply = http::post(&node.http, "/v1/transactions", &other).await?;
        ensure!(
            (reply.status, reply.text("/code").as_str()) == (409, "HF2002"),
            "{:#}",
            reply.json()
        );
    }
    // The open ones go on where they were.
    let asked = service.next(SOON).await?;
    ensure!((asked.op.as_str(), asked.gid.as_str()) == ("try", "kept-trying"), "{asked:?}");
    asked.answer(200).await?;
    let reply = http::get(&http, "/v1/transactions/kept-trying/wait?for=decision").await?;
    ensure!(reply.text("/outcome") == "committed", "{:#}", reply.json());
    let calls = service.agree(Duration::from_secs(1)).await?;
    ensure!(calls.iter().all(|op| op == "confirm") && !calls.is_empty(), "{calls:?}");
    let branch = json!({"branch": 1, "participant": "slow", "payload": {}});
    let reply = http::post(&http, "/v1/transactions/kept-begun/branches", &branch).await?;
    ensure!(reply.status == 200, "{:#}", reply.json());
    let reply =
        http::post(&http, "/v1/transactions/kept-begun/rollback", &json!({"reason": "enough"}))
            .await?;
    ensure!(reply.text("/outcome") == "rolled_back", "{:#}", reply.json());
    service.agree(Duration::from_millis(500)).await?;
    cluster.quiet(SOON).await?;
    ensure!(cluster.balance_minor(0, "A-1").await? == 600);
    cluster.audit().await
}
