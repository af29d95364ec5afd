//! Cuts below TCP, in a network namespace of their own: packets of one node are dropped one way or both, and no connection breaks by
//! itself. Under load, nothing is lost or doubled, the others go on meanwhile, and the node comes back.
//!
//! The story needs root and `unshare`; where either is missing it says so and is left out. It starts itself again inside the
//! namespace. There one node runs as a user of its own, and routing rules drop what that user sends, or what is sent to its doors.

use std::{io::Write as _, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{Cluster, Load, SOON, checker::money, holdfast};
use nix::{
    sys::signal::Signal,
    unistd::{chown, geteuid},
};
use tokio::{process::Command, time::sleep};

/// Set inside the namespace.
const INSIDE: &str = "HOLDFAST_IN_NAMESPACE";
const STORY: &str = "packets_may_be_dropped_one_way_and_both";
const CLIENTS: usize = 16;
/// How long each cut lasts: long enough for an election, and for clients to leave a silent leader.
const HELD: Duration = Duration::from_millis(2_500);
const AFTERWARDS: usize = 30;
/// The node that is cut off runs as this user and group, which nobody else has.
const USER: u32 = 61_001;

/// What is dropped.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// All that the node sends; it hears the others.
    NobodyHearsIt,
    /// All that its peers send to the door for them; it dials them. (A leader that is cut off like this from callers and agents, and not
    /// from its peers, goes on leading and serves nobody: docs/operating/failover.md.)
    NobodyReachesIt,
    /// All that it sends, and all that is sent to any of its doors.
    Whole,
}

async fn ip(words: &str) -> anyhow::Result<()> {
    let told = Command::new("ip").args(words.split(' ')).output().await.context("starting ip")?;
    let complaint = String::from_utf8_lossy(&told.stderr);
    ensure!(told.status.success(), "ip {words}: {complaint}");
    Ok(())
}

/// What keeps the story from being told here.
async fn obstacle() -> Option<String> {
    if !geteuid().is_root() {
        return Some("this is not root".to_owned());
    }
    let script = "ip link set lo up && ip rule add pref 100 lookup local && ip rule del pref 0 && \
                  ip rule add pref 10 uidrange 61001-61001 blackhole";
    let mut tried = Command::new("unshare");
    tried.args(["-n", "--", "sh", "-c", script]).stdin(Stdio::null());
    match tried.output().await {
        Ok(told) if told.status.success() => None,
        Ok(told) => Some(String::from_utf8_lossy(&told.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_may_be_dropped_one_way_and_both() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return story().await;
    }
    if let Some(why) = obstacle().await {
        eprintln!("SKIPPED: cuts in a network namespace, since {why}");
        return Ok(());
    }
    let mut inside = Command::new("unshare");
    inside.args(["-n", "--"]).arg(std::env::current_exe()?).args(["--exact", STORY, "--nocapture"]);
    let told = inside.env(INSIDE, "1").kill_on_drop(true).status().await?;
    ensure!(told.success(), "the story inside the namespace failed");
    Ok(())
}

/// Rules at preference 10 to 19 are ours.
async fn cut(cut: Cut, doors: &[&str]) -> anyhow::Result<()> {
    if matches!(cut, Cut::NobodyHearsIt | Cut::Whole) {
        ip(&format!("rule add pref 10 uidrange {USER}-{USER} blackhole")).await?;
    }
    if matches!(cut, Cut::NobodyReachesIt | Cut::Whole) {
        for (pref, door) in (11..).zip(doors) {
            let port = door.rsplit(':').next().context("an address has a port")?;
            ip(&format!("rule add pref {pref} ipproto tcp dport {port} blackhole")).await?;
        }
    }
    Ok(())
}

async fn mend(cut: Cut, doors: &[&str]) -> anyhow::Result<()> {
    if matches!(cut, Cut::NobodyHearsIt | Cut::Whole) {
        ip("rule del pref 10").await?;
    }
    if matches!(cut, Cut::NobodyReachesIt | Cut::Whole) {
        for pref in (11..).take(doors.len()) {
            ip(&format!("rule del pref {pref}")).await?;
        }
    }
    Ok(())
}

fn give(folder: &Path) -> anyhow::Result<()> {
    chown(folder, Some(USER.into()), Some(USER.into()))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => give(&path)?,
            false => chown(&path, Some(USER.into()), Some(USER.into()))?,
        }
    }
    Ok(())
}

/// Starts the node at that place again as the user of its own.
async fn becomes_another_user(cluster: &mut Cluster, at: usize) -> anyhow::Result<()> {
    let node = &mut cluster.nodes[at];
    node.process.stop(Signal::SIGTERM, SOON).await?;
    give(&node.data)?;
    // What we were built into may be closed to others.
    let program = cluster.folder.path().join("holdfast");
    if !program.exists() {
        std::fs::copy(holdfast()?, &program)?;
    }
    node.process.run_as((USER, USER), program);
    node.process.start()?;
    cluster.ready().await
}

async fn story() -> anyhow::Result<()> {
    ip("link set lo up").await?;
    ip("rule add pref 100 lookup local").await?;
    ip("rule del pref 0").await?;
    let mut cluster = Cluster::start(2).await?;
    let at = cluster.follower().await?;
    becomes_another_user(&mut cluster, at).await?;
    let load = Load::open(&cluster, "cut").await?;
    let running = load.start(CLIENTS, false);
    for leads in [false, true] {
        for what in [Cut::NobodyHearsIt, Cut::NobodyReachesIt, Cut::Whole] {
            let node = &cluster.nodes[at];
            let doors = [node.raft.as_str(), node.grpc.as_str(), node.http.as_str()];
            let doors = if matches!(what, Cut::Whole) { &doors[..] } else { &doors[..1] };
            if leads != (cluster.leader().await? == at) {
                hand_over(&cluster, leads.then_some(at)).await?;
            }
            load.more(AFTERWARDS).await?;
            let before = load.answered();
            cut(what, doors).await?;
            // The others go on while it is cut off.
            let on = load.more(AFTERWARDS).await;
            sleep(HELD).await;
            let during = load.answered() - before;
            mend(what, doors).await?;
            on.with_context(|| format!("{what:?}, leads: {leads}"))?;
            load.more(AFTERWARDS).await?;
            money::check(&mut cluster.sources().await?).await?;
            let who = if leads { "the leader" } else { "a follower" };
            let out = &mut std::io::stdout();
            writeln!(out, "{who:<10} {what:<16?} {during} answered meanwhile")?;
        }
    }
    running.stop().await?;
    load.judge(&cluster, AFTERWARDS).await
}

/// Has that node lead, or any other than the one that does.
async fn hand_over(cluster: &Cluster, to: Option<usize>) -> anyhow::Result<()> {
    let mut command = Command::new(holdfast()?);
    command.args(["cluster", "transfer", "--coordinator", &cluster.addresses().join(",")]);
    if let Some(to) = to {
        command.args(["--to", &(to + 1).to_string()]);
    }
    let told = command.kill_on_drop(true).output().await?;
    ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    Ok(())
}
