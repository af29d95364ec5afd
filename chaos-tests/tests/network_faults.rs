//! Faults of the network between coordinators, banks and PostgreSQL, under load: whatever is spoiled, nothing acknowledged is lost and
//! nothing happens twice, and when it ends everything goes on.
//!
//! Bytes are not changed here: these connections are not encrypted, and nothing above TCP's own checksum notices. That is what TLS is for.

use std::time::Duration;

use anyhow::ensure;
use holdfast_chaos_tests::{Cluster, Load, Shape, checker::money, proxy::Proxy};
use tokio::time::sleep;

const CLIENTS: usize = 16;
/// How long each fault lasts.
const HELD: Duration = Duration::from_millis(1_500);
/// Transfers that must be answered behind each.
const AFTERWARDS: usize = 30;

/// Where a fault strikes.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// To every peer.
    Peers,
    /// From the leader to its peers, whom it dials.
    Leader,
    /// From every bank to every coordinator.
    Banks,
    /// From one bank to its PostgreSQL.
    Postgres,
}

const FAULTS: [(&str, Line, &str); 9] = [
    ("peers are slow and uneven", Line::Peers, "delay_ms=15 jitter_ms=15"),
    (
        "peers get slices through a narrow line",
        Line::Peers,
        "slice_bytes=97 bytes_per_second=400000",
    ),
    ("connections between peers break", Line::Peers, "reset_permille=20"),
    ("nobody hears the leader, one way", Line::Leader, "mute_up=1"),
    ("the leader hears no answer", Line::Leader, "mute_down=1"),
    ("connections of banks break", Line::Banks, "reset_permille=20"),
    ("banks are half cut off", Line::Banks, "mute_up=1"),
    ("a bank's PostgreSQL goes silent", Line::Postgres, "mute_up=1 mute_down=1"),
    (
        "a bank's connections close slowly, and new ones are refused",
        Line::Postgres,
        "slow_close_ms=500 refuse=1 reset_permille=50",
    ),
];

async fn struck(cluster: &Cluster, line: Line) -> anyhow::Result<Vec<&Proxy>> {
    let raft = |at: usize| cluster.nodes[at].raft_proxy.as_ref();
    let proxies: Vec<&Proxy> = match line {
        Line::Peers => (0..cluster.nodes.len()).filter_map(raft).collect(),
        Line::Leader => {
            let leader = cluster.leader().await?;
            (0..cluster.nodes.len()).filter(|&at| at != leader).filter_map(raft).collect()
        }
        Line::Banks => cluster.nodes.iter().filter_map(|node| node.grpc_proxy.as_ref()).collect(),
        Line::Postgres => cluster.banks[0].postgres_proxy.iter().collect(),
    };
    ensure!(!proxies.is_empty(), "no proxy stands at {line:?}");
    Ok(proxies)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_network_does_nothing_is_lost_or_doubled_and_it_goes_on() -> anyhow::Result<()>
{
    let shape = Shape { proxied: true, ..Shape::default() };
    let cluster = Cluster::shaped(2, shape).await?;
    let load = Load::open(&cluster, "net").await?;
    let running = load.start(CLIENTS, false);
    for (what, line, words) in FAULTS {
        load.more(AFTERWARDS).await?;
        let before = load.answered();
        let proxies = struck(&cluster, line).await?;
        let count: u64 = proxies.iter().map(|proxy| proxy.struck()).sum();
        for proxy in &proxies {
            proxy.set(words)?;
        }
        sleep(HELD).await;
        let during = load.answered() - before;
        for proxy in &proxies {
            proxy.clear();
        }
        let struck = proxies.iter().map(|proxy| proxy.struck()).sum::<u64>() - count;
        ensure!(struck > 0, "{what}: the fault struck nothing");
        load.more(AFTERWARDS).await?;
        let under_way = money::check(&mut cluster.sources().await?).await?;
        println!(
            "{what}: struck {struck} times, {during} answered meanwhile, {under_way} on their way at the cut"
        );
    }
    running.stop().await?;
    load.judge(&cluster, FAULTS.len() * AFTERWARDS).await
}
