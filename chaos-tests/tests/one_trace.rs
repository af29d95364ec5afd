//! A transfer lives through the death of its leader, and all that was done for it is one trace.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{
    Cluster, Collector, SOON, Service, Shape,
    collector::{Seen, drawn},
    http, until,
};
use holdfast_client::{Outcome, Submission, Terms, Wait};
use nix::sys::signal::Signal;
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
/// In the payload, and to be found in no span.
const CANARY: &str = "canary-7c1f";

fn transfer() -> Submission {
    let debit = json!({"debit": {"account": "A-1", "amount_minor": "700", "currency": "EUR"}});
    let terms = Terms::tcc()
        .gid("traced")
        .timeout_ms(120_000)
        .call_timeout_ms(30_000)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    Submission::new(terms)
        .branch("deposit@shard-1", debit.to_string())
        .branch("loyalty", json!({"memo": CANARY}).to_string())
        .wait(Wait::End)
        .patience_ms(90_000)
}

fn outcomes<'a>(spans: &'a [Seen], name: &'a str) -> BTreeSet<(&'a str, &'a str)> {
    let of = |span: &'a Seen| {
        let word = |key: &str| span.attributes.get(key).map_or("", String::as_str);
        (span.whose.split(' ').next().unwrap_or(""), word("holdfast.outcome"))
    };
    spans.iter().filter(|span| span.name == name).map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_lives_through_the_death_of_its_leader_is_one_trace() -> anyhow::Result<()>
{
    let collector = Collector::start().await?;
    holdfast_trace::install(collector.sink()).expect("the only one in this process");
    let shape = Shape { collector: Some(collector.address), ..Shape::default() };
    let mut cluster = Cluster::shaped(1, shape).await?;
    cluster.open_accounts(0, ["A-1".to_owned()], 1_000).await?;
    let mut service = Service::start().await?;
    let agent = cluster.agent("loyalty", &service.address).await?;

    let client = cluster.client().await?;
    let asking = tokio::spawn(async move { client.submit(transfer()).await });
    let unanswered = service.next(SOON).await?;
    ensure!(unanswered.op == "try", "{unanswered:?}");
    let of_old = until("the old leader has told of the first try", SOON, async || {
        let seen = collector.seen();
        let told = outcomes(&seen, "try deposit@shard-1");
        told.contains(&("holdfast-coordinator", "done")).then_some(seen)
    });
    of_old.await?;
    let old = cluster.leader().await?;
    cluster.nodes[old].process.signal(Signal::SIGKILL)?;
    cluster.nodes[old].process.ended(SOON).await?;

    let again = service.next(SOON).await?;
    ensure!(again.op == "try", "{again:?}");
    again.answer(200).await?;
    unanswered.answer(200).await?;
    let confirm = service.next(SOON).await?;
    ensure!(confirm.op == "confirm", "{confirm:?}");
    confirm.answer(200).await?;
    let answer = asking.await??;
    ensure!(answer.outcome == Outcome::Committed, "{answer:?}");

    let spans = until("the whole was told", SOON, async || {
        let seen = collector.seen();
        let names: BTreeSet<&str> = seen.iter().map(|span| span.name.as_str()).collect();
        let whole =
            ["holdfast tcc", "holdfast client", "confirm loyalty", "confirm deposit@shard-1"];
        let agents = outcomes(&seen, "confirm loyalty").contains(&("holdfast-agent", "done"));
        (whole.iter().all(|name| names.contains(name)) && agents).then_some(seen)
    })
    .await?;
    println!("{}", drawn(&spans));
    is_one_trace(&spans)?;
    let text = format!("{spans:?}");
    ensure!(!text.contains(CANARY) && !text.contains("A-1"), "a payload is in a span: {text}");

    metrics_tell_of_spans(&cluster, (old + 1) % 3).await?;
    drop(agent);
    cluster.start_nodes().await?;
    cluster.quiet(SOON).await
}

/// Every span belongs to the caller's trace and lies below one that was told; but for what the agents did for calls of the dead leader,
/// which took its own spans of them with it.
fn is_one_trace(spans: &[Seen]) -> anyhow::Result<()> {
    ensure!(spans.iter().all(|span| span.trace == TRACE), "{}", drawn(spans));
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.span.as_str()).collect();
    ensure!(ids.len() == spans.len(), "a span was told twice:\n{}", drawn(spans));
    let of = |name: &str| spans.iter().find(|span| span.name == name);
    let client = of("holdfast client").context("the client's span")?;
    ensure!(client.parent == CALLER && client.failed.is_none(), "{client:?}");
    ensure!(client.events.len() >= 2, "asked again after the loss: {:?}", client.events);
    let whole = of("holdfast tcc").context("the transaction's span")?;
    ensure!(whole.parent == client.span && whole.events == ["decided"], "{whole:?}");
    ensure!(whole.attributes["holdfast.status"] == "committed", "{whole:?}");
    let calls = |span: &&Seen| span.parent == whole.span;
    let terms: BTreeSet<_> =
        spans.iter().filter(calls).map(|span| &span.attributes["holdfast.term"]).collect();
    ensure!(terms.len() >= 2, "calls of two leaders below one span: {terms:?}");
    let orphans: Vec<&Seen> = spans
        .iter()
        .filter(|span| span.parent != CALLER && !ids.contains(span.parent.as_str()))
        .collect();
    let excused = |span: &&Seen| {
        span.name.starts_with("try ") && !span.whose.starts_with("holdfast-coordinator")
    };
    ensure!(orphans.iter().all(excused), "below nothing: {orphans:#?}");
    Ok(())
}

async fn metrics_tell_of_spans(cluster: &Cluster, at: usize) -> anyhow::Result<()> {
    let page = http::get(&cluster.nodes[at].http, "/metrics").await?;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    ensure!(page.contains("holdfast_spans_sent_total"), "{page}");
    ensure!(page.contains("holdfast_spans_dropped_total 0"), "{page}");
    Ok(())
}
