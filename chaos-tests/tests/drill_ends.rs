//! A drill always ends: its runner is killed in the middle of a fault, and within the drill's time limit nothing of the fault is left.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{Cluster, Load, SOON, Shape, demo::processes_of, holdfast, http, until};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

/// A drill that is to be killed before its end.
struct Runner {
    child: Child,
    said: std::path::PathBuf,
}

impl Runner {
    /// Begins it; its files and what it says are kept in `tmp`.
    fn start(arguments: &[&str], tmp: &std::path::Path) -> anyhow::Result<Self> {
        let said = tmp.join("runner.log");
        let log = std::fs::File::create(&said)?;
        let mut command = Command::new(holdfast()?);
        command.args(["drill", "run"]).args(arguments).env("TMPDIR", tmp).kill_on_drop(true);
        Ok(Self { child: command.stdout(log.try_clone()?).stderr(log).spawn()?, said })
    }

    /// Looks for its blow, which it must not have survived by itself.
    async fn until<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let seen = until(what, within, async || {
            if let Some(seen) = look().await {
                return Some(Ok(seen));
            }
            let ended = self.child.try_wait().transpose()?;
            Some(Err(anyhow::anyhow!("the drill is over before {what}: {ended:?}")))
        });
        let seen = seen.await.and_then(std::convert::identity);
        seen.with_context(|| std::fs::read_to_string(&self.said).unwrap_or_default())
    }
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
    let mut runner = Runner::start(&arguments, cluster.folder.path())?;
    let look = async || {
        for door in &doors {
            if held(door).await.is_some_and(|held| !held.is_empty()) {
                return Some((*door).to_owned());
            }
        }
        None
    };
    let struck = runner.until("a fault is held", SOON, look).await?;
    let began = Instant::now();
    runner.child.kill().await?;
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
    let mut runner = Runner::start(&["pause-leader", "--limit-ms", "4000"], &tmp)?;
    let look = async || stopped(&tmp).ok().filter(|count| *count > 0);
    runner.until("a coordinator stands still", 4 * SOON, look).await?;
    runner.child.kill().await.context("killing the runner")?;
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
        // On a busy machine it may be elected by then.
        let serves = ["follower", "leader"].contains(&status.role.as_str()) && status.leader != 0;
        (back && serves).then_some(())
    })
    .await?;
    load.more(20).await?;
    running.stop().await?;
    cluster.quiet(SOON).await?;
    cluster.audit().await?;
    cluster.agree().await
}

/// A fault that nobody ends, and how to see that it is there.
#[derive(Clone, Copy, Debug)]
struct Kind {
    fault: &'static str,
    measure: i64,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The door says that it is held.
    Held,
    /// The process stands still.
    Stopped,
    /// Another process answers at the door.
    Anew,
    /// Many more connections to its database are open.
    Full,
}

impl Kind {
    /// A busy machine takes a while to open connections, and all of them have to be seen together.
    fn limit(self) -> Duration {
        if self.seen == Seen::Full { 3 * LIMIT } else { LIMIT }
    }
}

const fn kind(fault: &'static str, measure: i64, seen: Seen) -> Kind {
    Kind { fault, measure, seen }
}

const OF_COORDINATORS: [Kind; 6] = [
    kind("isolated", 0, Seen::Held),
    kind("kill", 0, Seen::Anew),
    kind("slow-disk", 40, Seen::Held),
    kind("clock-skew", 2_000, Seen::Held),
    kind("pause", 0, Seen::Stopped),
    kind("restart", 0, Seen::Anew),
];
const OF_BANKS: [Kind; 8] = [
    kind("connections", 500, Seen::Full),
    kind("shard-down", 0, Seen::Held),
    kind("errors", 50, Seen::Held),
    kind("silence", 33, Seen::Held),
    kind("twice", 50, Seen::Held),
    kind("pause", 0, Seen::Stopped),
    kind("kill", 0, Seen::Anew),
    kind("restart", 0, Seen::Anew),
];
/// Of every run of the tests.
const SLICE: usize = 2;
/// Connections that a bank does not open by itself.
const MANY: i64 = 20;
/// Of each fault.
const LIMIT: Duration = Duration::from_millis(1_500);

/// Its process number, while it answers.
async fn pid_behind(door: &str) -> Option<u64> {
    http::get(door, "/v1/drill").await.ok()?.json()["pid"].as_u64()
}

fn stands_still(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Orders the fault as a runner of which nothing is heard any more, sees it, and waits until nothing of it is left.
async fn ends_by_itself(cluster: &Cluster, door: &str, kind: Kind) -> anyhow::Result<Duration> {
    let postgres = cluster.postgres.as_ref().context("there is one")?;
    let viewer = postgres.connect("postgres").await?;
    let open = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shard-1'";
        Some(viewer.query_one(sql, &[]).await.ok()?.get::<_, i64>(0))
    };
    let many = open().await.context("it counts")? + MANY;
    let pid = until("it answers", SOON, async || pid_behind(door).await).await?;
    let limit = kind.limit();
    let limit_ms = limit.as_millis();
    let order = json!({ "fault": kind.fault, "measure": kind.measure, "limit_ms": limit_ms });
    let told = http::post(door, "/v1/drill", &order).await?;
    ensure!(told.status == 200, "{:#}", told.json());
    let began = Instant::now();
    until("the fault is there", SOON, async || {
        let there = match kind.seen {
            Seen::Held => held(door).await?.iter().any(|held| held["fault"] == kind.fault),
            Seen::Stopped => stands_still(pid),
            Seen::Anew => pid_behind(door).await.is_none_or(|now| now != pid),
            Seen::Full => open().await? >= many,
        };
        there.then_some(())
    })
    .await?;
    until("nothing of it is left", limit + 2 * SOON, async || {
        let nothing_held = held(door).await?.is_empty();
        let now = pid_behind(door).await?;
        let over = match kind.seen {
            Seen::Held | Seen::Stopped => now == pid && !stands_still(pid),
            Seen::Anew => now != pid,
            Seen::Full => open().await? < many,
        };
        (nothing_held && over).then_some(began.elapsed())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_each_kind_ends_within_its_limit_though_nobody_ends_it() -> anyhow::Result<()> {
    let every = std::env::var_os("HOLDFAST_CHAOS").is_some_and(|value| value == "full");
    let cluster = Cluster::shaped(2, Shape { proxied: true, ..Shape::default() }).await?;
    let load = Load::open(&cluster, "kinds").await?;
    let running = load.start(4, false);
    load.more(20).await?;
    let take = if every { usize::MAX } else { SLICE };
    for (door, kinds) in
        [(&cluster.banks[0].drill, &OF_BANKS[..]), (&cluster.nodes[0].drill, &OF_COORDINATORS[..])]
    {
        for kind in kinds.iter().take(take) {
            let lasted = ends_by_itself(&cluster, door, *kind).await;
            let lasted = lasted.with_context(|| format!("{kind:?}"))?;
            // It was ordered before it was watched, and a busy machine looks late; a process that died has to start as well.
            let limit = kind.limit();
            ensure!(lasted < limit + SOON, "{kind:?} lasted {lasted:?}");
            println!("{:<12} {:>6} ms of {}", kind.fault, lasted.as_millis(), limit.as_millis());
            load.more(10).await.with_context(|| format!("behind {kind:?}"))?;
        }
    }
    running.stop().await?;
    load.judge(&cluster, 20).await
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
