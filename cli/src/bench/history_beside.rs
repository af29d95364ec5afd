//! What the history costs the work: a cluster with one and a cluster without are loaded in turns, and searched beside it.
//!
//! All of it counts: the writing on each of three nodes, and searches of the node that has most to do. Behind each turn it is waited until
//! what finished is written, so that no turn pays for another's, and told how long that took: work that is put off is not saved.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use holdfast_client::{
    Client,
    wire::{SearchHistoryRequest, Tag},
};
use tokio::{
    sync::oneshot,
    time::{Instant, interval, sleep},
};

use super::{
    figures::{Cells, Figures},
    goal::{Bound, Goal},
    load::Shape,
    nodes::Nodes,
    show::note,
    submission::A_RUN,
};
use crate::output;

/// First pages by tag and by time in turns, a second, while the searched side is loaded.
pub(super) const SEARCHES_PER_S: u32 = 10;
/// Of the throughput, that the history may cost.
const COST_MAX: f64 = 0.05;
/// After which what finished must be written.
const WRITTEN_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Transactions on the page.
const PAGE: u32 = 100;

const WITHOUT: &str = "without";
const WITH: &str = "with";
const SEARCHED: &str = "with, searched";
/// So that both clusters have carried as much: whoever remembers twice as many finished transactions is slower by that alone.
const AGAIN: &str = "without, again";
const SIDES: [&str; 4] = [WITHOUT, WITH, AGAIN, SEARCHED];

/// What was measured; nothing by default.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) cells: Cells,
    clients: u32,
}

/// Loads both in turns.
/// # Errors
/// Something could not be started, or broke down.
pub(super) async fn measure(folder: &Path, shape: Shape, rounds: u32) -> anyhow::Result<Beside> {
    let at = |name: &str| -> anyhow::Result<_> {
        let own = folder.join(name);
        std::fs::create_dir(&own)?;
        Ok(own)
    };
    let (with_folder, without_folder) = (at("with")?, at("without")?);
    let mut with = Nodes::start(&with_folder, 1).await.context("starting the cluster")?;
    let without = Nodes::configured(&without_folder, 1, write_none).await;
    let mut without = without.context("starting the cluster without a history")?;
    let mut cells = Cells::default();
    for round in 1..=rounds {
        note(&format!("Round {round} of {rounds}\n"));
        // Whoever is first one round is later the next: a machine that gets slower favors nobody.
        let first = round as usize % SIDES.len();
        for side in (0..SIDES.len()).map(|at| SIDES[(first + at) % SIDES.len()]) {
            let figures = match side {
                WITHOUT | AGAIN => without.run_tagged(shape).await,
                WITH => loaded(&mut with, shape).await,
                _ => searched(&mut with, shape).await,
            };
            cells.add(side, shape.clients, figures.context(side)?);
        }
    }
    let written: Vec<f64> = written(&without).await?;
    ensure!(written.iter().all(|count| *count == 0.0), "the cluster without a history has one");
    Ok(Beside { cells, clients: shape.clients })
}

fn write_none(config: &mut toml::Table) -> anyhow::Result<()> {
    let history = config.get_mut("history").and_then(toml::Value::as_table_mut);
    let history = history.context("the shipped configuration has [history]")?;
    history.insert("records_max".to_owned(), 0.into());
    Ok(())
}

/// Loads the cluster, then waits until its history has all of it.
async fn loaded(nodes: &mut Nodes, shape: Shape) -> anyhow::Result<Figures> {
    let mut figures = nodes.run_tagged(shape).await?;
    figures.insert("written_after_s", settled(nodes).await?);
    Ok(figures)
}

/// The same, while somebody searches.
async fn searched(nodes: &mut Nodes, shape: Shape) -> anyhow::Result<Figures> {
    let (stop, stopped) = oneshot::channel();
    let searching = tokio::spawn(search(nodes.client(), stopped));
    let figures = loaded(nodes, shape).await;
    // It ends by itself only when a search failed, which its result tells.
    let _ended = stop.send(());
    let mut waits_ms = searching.await??;
    ensure!(!waits_ms.is_empty(), "nothing was searched beside the load");
    waits_ms.sort_by(f64::total_cmp);
    let mut figures = figures?;
    figures.insert("searches", waits_ms.len() as f64);
    figures.insert("search_p50_ms", waits_ms[waits_ms.len() / 2]);
    figures.insert("search_max_ms", waits_ms[waits_ms.len() - 1]);
    Ok(figures)
}

/// Asks for first pages until told to stop; what each took, ms.
async fn search(client: Client, mut stopped: oneshot::Receiver<()>) -> anyhow::Result<Vec<f64>> {
    let mut ticks = interval(Duration::from_secs(1) / SEARCHES_PER_S);
    let mut waits_ms = Vec::new();
    for number in 0.. {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => {}
        }
        let mut request = SearchHistoryRequest { limit: PAGE, ..Default::default() };
        if number % 2 == 0 {
            let value = format!("payroll-{}", number / 2 % A_RUN);
            request.tags = vec![Tag { name: "run".to_owned(), value }];
        } else {
            // All times: the newest page.
            request.from_ms = 1;
        }
        let asked = Instant::now();
        client.search_history(request).await.context("a search")?;
        waits_ms.push(asked.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(waits_ms)
}

/// How long it took, s, until each node has written what the first to finish has.
async fn settled(nodes: &Nodes) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut before = written(nodes).await?;
    let mut since = begun;
    loop {
        sleep(LOOK_AGAIN).await;
        let now = written(nodes).await?;
        if now != before {
            (before, since) = (now, Instant::now());
        } else if before.iter().all(|count| *count == before[0]) && since.elapsed() > LOOK_AGAIN * 4
        {
            return Ok((since - begun).as_secs_f64());
        }
        ensure!(
            begun.elapsed() < WRITTEN_MAX,
            "the history is not written: {before:?} on each node"
        );
    }
}

/// Transactions that each node has written down.
async fn written(nodes: &Nodes) -> anyhow::Result<Vec<f64>> {
    let counters = nodes.counters().await?;
    let of = |node: &std::collections::BTreeMap<String, f64>| {
        node.get("holdfast_history_records_total").copied().unwrap_or(0.0)
    };
    Ok(counters.iter().map(of).collect())
}

impl Beside {
    /// None where nothing was measured.
    pub(super) fn goals(&self) -> Vec<Goal> {
        let ratio = |side, name| self.cells.ratio((side, name), (WITHOUT, name), self.clients);
        let cost = |side| ratio(side, "per_s").map(|ratio| 1.0 - ratio);
        let name = |what: &str| format!("throughput that {what} costs, {} clients", self.clients);
        vec![
            Goal::new(name("the history"), cost(WITH), Bound::AtMost(COST_MAX)),
            Goal::new(
                name(&format!("the history, searched {SEARCHES_PER_S} times a second,")),
                cost(SEARCHED),
                Bound::AtMost(COST_MAX),
            ),
        ]
    }

    /// For people.
    pub(super) fn to_text(&self) -> String {
        let columns = ["per_s", "p50_us", "p99_us", "all_cpu_us", "written_after_s"];
        let head: Vec<&str> = ["side", "clients"].into_iter().chain(columns).collect();
        output::table(&head, self.cells.rows(&columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_of_the_same_round_and_what_was_left_out_has_none() {
        let mut beside = Beside { clients: 64, ..Beside::default() };
        for (without, with) in [(100.0, 98.0), (50.0, 48.0), (10.0, 9.9)] {
            beside.cells.add(WITHOUT, 64, Figures::from([("per_s", without)]));
            beside.cells.add(WITH, 64, Figures::from([("per_s", with)]));
        }
        let told = super::super::goal::to_json(&beside.goals());
        assert_eq!((&told[0]["measured"], &told[0]["met"]), (&0.02.into(), &true.into()), "{told}");
        assert!(told[1]["met"].is_null() && told[1]["measured"].is_null(), "{told}");
    }

    #[test]
    fn a_cluster_without_a_history_is_told_so() {
        let mut config: toml::Table = "[history]\nrecords_max = 7\n".parse().unwrap();
        write_none(&mut config).unwrap();
        assert_eq!(config["history"]["records_max"].as_integer(), Some(0));
        assert!(write_none(&mut toml::Table::new()).is_err());
    }
}
