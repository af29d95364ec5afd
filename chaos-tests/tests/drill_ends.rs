//! A drill always ends: its runner is killed in the middle of a fault, and within the drill's time limit nothing of the fault is left.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{Cluster, Load, SOON, Shape, demo::processes_of, holdfast, http, until};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

fn drill(arguments: &[&str], tmp: &std::path::Path) -> anyhow::Result<Child> {
    let mut command = Command::new(holdfast()?);
    command.args(["drill", "run"]).args(arguments).env("TMPDIR", tmp).kill_on_drop(true);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// What is held at a drill door.
async fn held(door: &str) -> Option<Vec<Value>> {
    let reply = http::get(door, "/v1/drill").await.ok()?;
    reply.json().pointer("/held")?.as_array().cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_a_running_cluster_ends_within_its_limit_when_the_runner_is_killed()
-> anyhow::Result<()> {
    let cluster = Cluster::shaped(2, Shape { proxied: true, ..Shape::default() }).await?;
    let load = Load::open(&cluster, "drill").await?;
    let doors: Vec<&str> = cluster.nodes.iter().map(|node| node.drill.as_str()).collect();
    let limit = Duration::from_secs(5);
    let doors_named = doors.join(",");
    let arguments =
        ["partition-leader", "--doors", &doors_named, "--limit-ms", "5000", "--clients", "4"];
    let mut runner = drill(&arguments, cluster.folder.path())?;
    let struck = until("a fault is held", SOON, async || {
        for door in &doors {
            if held(door).await.is_some_and(|held| !held.is_empty()) {
                return Some((*door).to_owned());
            }
        }
        None
    })
    .await?;
    let began = Instant::now();
    runner.kill().await?;
    until("nothing is held", limit + SOON, async || {
        held(&struck).await.filter(|held| held.is_empty()).map(drop)
    })
    .await?;
    // It was seen after it began, so its limit is over before this one is; a busy machine looks late.
    ensure!(began.elapsed() < limit + Duration::from_secs(5), "it lasted {:?}", began.elapsed());
    let running = load.start(4, false);
    load.more(20).await?;
    running.stop().await?;
    cluster.quiet(SOON).await?;
    cluster.audit().await?;
    cluster.agree().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_a_drill_started_goes_with_its_runner_though_a_process_stands_still()
-> anyhow::Result<()> {
    let folder = holdfast_chaos_tests::Folder::make()?;
    let tmp = folder.path().join("tmp");
    std::fs::create_dir(&tmp)?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o755))?;
    let mut runner = drill(&["pause-leader", "--limit-ms", "4000"], &tmp)?;
    until("a coordinator stands still", 4 * SOON, async || {
        stopped(&tmp).ok().filter(|count| *count > 0)
    })
    .await?;
    runner.kill().await.context("killing the runner")?;
    until("nothing of it runs", Duration::from_secs(4) + SOON, async || {
        processes_of(&tmp).ok().filter(Vec::is_empty).map(drop)
    })
    .await
}

/// Directories of nodes that a drill has moved aside.
fn moved_aside(folder: &std::path::Path) -> anyhow::Result<usize> {
    let names = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    Ok(names.iter().filter(|name| name.to_string_lossy().contains(".lost-")).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_its_disk_back_when_whoever_took_it_dies_before_the_node_is_replaced()
-> anyhow::Result<()> {
    let cluster = Cluster::shaped(2, Shape { proxied: true, ..Shape::default() }).await?;
    let load = Load::open(&cluster, "disk").await?;
    let running = load.start(4, false);
    let at = cluster.follower().await?;
    let (door, data) = (&cluster.nodes[at].drill, &cluster.nodes[at].data);
    // The order of a runner of which nothing is heard any more.
    let order = json!({ "fault": "lose-disk", "measure": 200, "limit_ms": 4_000 });
    let told = http::post(door, "/v1/drill", &order).await?;
    ensure!(told.status == 200, "{:#}", told.json());
    let folder = data.parent().context("a folder for all nodes")?;
    until("the disk is taken", SOON, async || moved_aside(folder).ok().filter(|count| *count == 1))
        .await?;
    load.more(20).await?;
    until("the node has its disk again and serves", 2 * SOON, async || {
        let back = moved_aside(folder).ok()? == 0 && data.join("IDENTITY").exists();
        let status = cluster.status(at).await?;
        (back && status.role == "follower" && status.leader != 0).then_some(())
    })
    .await?;
    load.more(20).await?;
    running.stop().await?;
    cluster.quiet(SOON).await?;
    cluster.audit().await?;
    cluster.agree().await
}

/// How many processes below `folder` are stopped.
fn stopped(folder: &std::path::Path) -> anyhow::Result<usize> {
    let folder = folder.to_str().context("UTF-8")?;
    let entries = std::fs::read_dir("/proc")?.filter_map(Result::ok);
    Ok(entries
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('T'));
            state == Some(true) && String::from_utf8_lossy(&line).contains(folder)
        })
        .count())
}
