//! The kill matrix: a process dies at each named site under load; nothing acknowledged is lost, nothing happens twice.
//!
//! Here a sample of the sites; all of them with `HOLDFAST_CHAOS=full`, as `make chaos` says.

use anyhow::ensure;
use holdfast_chaos_tests::{
    Cluster, Load, Shape,
    matrix::{Hit, strike},
};
use holdfast_fault::{Role, Site};

const CLIENTS: usize = 16;
/// The sites of every run of the tests: the two sides of the decision, of the disk and of the local commit.
const SAMPLE: [Site; 6] = [
    Site::ProposerCommittedUntold,
    Site::DispatcherBeforeReport,
    Site::LogWrittenUnsynced,
    Site::LogSyncedUntold,
    Site::AgentBeforeCommit,
    Site::AgentCommittedUntold,
];

fn is_padded(site: Site) -> bool {
    matches!(site, Site::LogSealed | Site::LogPurged | Site::DispatcherBeforeExpire)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_die_at_every_kill_point_and_nothing_is_lost_or_doubled() -> anyhow::Result<()>
{
    let full = std::env::var_os("HOLDFAST_CHAOS").is_some_and(|value| value == "full");
    // Those of routers, relays and moves have stories of their own.
    let all: Vec<Site> = Site::ALL
        .iter()
        .copied()
        .filter(|site| !matches!(site.role(), Role::Router | Role::Relay | Role::Mover))
        .collect();
    let sites = if full { all.as_slice() } else { &SAMPLE };
    let shape = Shape { segment_bytes: 4 * 1024 * 1024, snapshot_every: 60, ..Shape::default() };
    let mut cluster = Cluster::shaped(2, shape).await?;
    let load = Load::open(&cluster, "kill").await?;
    let running = load.start(CLIENTS, false);
    let mut hits: Vec<Hit> = Vec::new();
    for (turn, &site) in sites.iter().enumerate() {
        let padding = is_padded(site).then(|| load.start(0, true));
        let hit = strike(&mut cluster, &load, site, turn).await?;
        println!("{:<28} {:<16} {:>6} ms", site.name(), hit.victim, hit.recovered.as_millis());
        hits.push(hit);
        if let Some(padding) = padding {
            padding.stop().await?;
        }
    }
    running.stop().await?;

    let hit: Vec<Site> = hits.iter().map(|hit| hit.site).collect();
    ensure!(hit == sites, "hit {hit:?}");
    load.judge(&cluster, hits.len() * 20).await
}
