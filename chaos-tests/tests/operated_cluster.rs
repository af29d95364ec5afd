//! A cluster of real processes, operated by its own commands while clients go on.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{
    Agent, Cluster, PATIENT, Process, Program, SOON, Service, Shape, holdfast, ports, until,
};
use holdfast_client::{Client, ClientOptions, Outcome, Submission, Wait};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{process::Command, task::JoinHandle};

/// What a command said, and how it ended.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out)
            .with_context(|| format!("{:?} {}{}", self.code, self.out, self.err))
    }
}

/// `holdfast cluster ... --output json` at this cluster.
async fn operate(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Said> {
    let mut command = Command::new(holdfast()?);
    command.arg("cluster").args(arguments).args(["--output", "json"]);
    for address in cluster.addresses() {
        command.args(["--coordinator", &address]);
    }
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(90), output).await??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) })
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

/// What the leader says of itself, if one does.
async fn leader_of(cluster: &Cluster) -> Option<Value> {
    let status = operate(cluster, &["status"]).await.ok()?.json().ok()?;
    let nodes = status["nodes"].as_array()?.clone();
    nodes.into_iter().find(|node| node["role"] == "leader")
}

/// The voters by the word of the leader.
async fn voters(cluster: &Cluster) -> anyhow::Result<Vec<u64>> {
    until("a leader says who votes", SOON, async || {
        Some(numbers(&leader_of(cluster).await?["voters"]))
    })
    .await
}

/// Transfers the leadership until it is where `there` says.
async fn lead(cluster: &Cluster, what: &str, there: impl Fn(u64) -> bool) -> anyhow::Result<()> {
    until(what, 2 * SOON, async || {
        let leader = leader_of(cluster).await?["node"].as_u64()?;
        if there(leader) {
            return Some(());
        }
        let _another = operate(cluster, &["transfer"]).await;
        None
    })
    .await
}

/// A service that says yes, and clients that never stop asking it. Counts what ended, and what ended otherwise than committed.
struct Traffic {
    committed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<anyhow::Result<()>>>,
    _answering: JoinHandle<()>,
    _agent: Agent,
}

impl Traffic {
    async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut service = Service::start().await?;
        let agent = cluster.agent("yes", &service.address).await?;
        let answering = tokio::spawn(async move {
            while let Ok(asked) = service.next(Duration::from_secs(600)).await {
                tokio::spawn(asked.answer(200));
            }
        });
        let (committed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut clients = Vec::new();
        for _ in 0..4 {
            let client = Client::connect(cluster.addresses(), ClientOptions::default()).await?;
            let (committed, stop) = (Arc::clone(&committed), Arc::clone(&stop));
            clients.push(tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    let submission = Submission::tcc().branch("yes", "1").branch("yes", "2");
                    let answer = client.submit(submission.wait(Wait::Decision)).await?;
                    ensure!(answer.outcome == Outcome::Committed, "{answer:?}");
                    committed.fetch_add(1, Ordering::AcqRel);
                }
                Ok(())
            }));
        }
        Ok(Self { committed, stop, clients, _answering: answering, _agent: agent })
    }

    /// Waits until so many more have committed.
    async fn flows(&self, more: u64) -> anyhow::Result<()> {
        let before = self.committed.load(Ordering::Acquire);
        until("transactions commit", SOON, async || {
            (self.committed.load(Ordering::Acquire) >= before + more).then_some(())
        })
        .await
    }

    /// Stops, and fails if any transaction did.
    async fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Release);
        for client in self.clients {
            client.await??;
        }
        Ok(self.committed.load(Ordering::Acquire))
    }
}

/// A further node, empty, that waits to be added.
fn newcomer(
    cluster: &Cluster,
    number: u64,
    groups: u32,
) -> anyhow::Result<(Process, String, PathBuf)> {
    let ports = ports::free(3)?;
    let [http, grpc, raft] = [0, 1, 2].map(|door| format!("127.0.0.1:{}", ports[door]));
    let name = format!("coordinator-{number}");
    let data = cluster.folder.path().join(&name);
    let config = format!(
        "[node]\nid = {number}\ndata_dir = {data:?}\n\n[cluster]\nname = \"chaos\"\njoin = true\ngroups = {groups}\n
[[cluster.member]]\nid = {number}\nhttp = \"{http}\"\ngrpc = \"{grpc}\"\nraft = \"{raft}\"\n
[bind]\nhttp = \"{http}\"\ngrpc = \"{grpc}\"\nraft = \"{raft}\"\n
[security]\nmode = \"dev-plaintext\"\n
[log]\nsegment_bytes = 16777216\nsnapshot_every = 500\n
{PATIENT}"
    );
    let config = cluster.folder.write(&format!("{name}.toml"), config)?;
    let program = Program {
        name,
        path: holdfast()?.to_owned(),
        arguments: vec!["coordinator".into(), "--config".into(), config.clone().into()],
        environment: Vec::new(),
        run_as: None,
        kill_when_dropped: true,
    };
    let mut process = Process::new(program, cluster.folder.path());
    process.start()?;
    Ok((process, raft, config))
}

/// Adds node 4, as soon as it listens at `raft`; what was said.
async fn added(cluster: &Cluster, raft: &str) -> anyhow::Result<Value> {
    let said = until("node 4 is added", SOON, async || {
        let said = operate(cluster, &["add", "4", "--raft", raft]).await.ok()?;
        (said.code == Some(0)).then_some(said)
    });
    said.await?.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_restarted_one_after_the_other_and_no_transaction_fails()
-> anyhow::Result<()> {
    restarted_one_after_the_other(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_three_groups_are_restarted_one_after_the_other_and_no_transaction_fails()
-> anyhow::Result<()> {
    restarted_one_after_the_other(3).await
}

async fn restarted_one_after_the_other(groups: u32) -> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(0, Shape { groups, ..Shape::default() }).await?;
    let traffic = Traffic::start(&cluster).await?;
    traffic.flows(50).await?;
    for at in 0..3 {
        let ended = cluster.nodes[at].process.stop(Signal::SIGTERM, SOON).await?;
        ensure!(ended.success(), "node {} ended with {ended}", at + 1);
        traffic.flows(50).await?;
        cluster.nodes[at].process.start()?;
        cluster.ready().await?;
        traffic.flows(50).await?;
    }
    ensure!(traffic.end().await? >= 350);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_replaced_and_removed_by_command_while_transactions_commit()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start(0).await?;
    let traffic = Traffic::start(&cluster).await?;
    traffic.flows(50).await?;

    let (mut fourth, raft, _) = newcomer(&cluster, 4, 1)?;
    ensure!(added(&cluster, &raft).await?["result"] == "voter");
    ensure!(voters(&cluster).await? == [1, 2, 3, 4]);
    let again = operate(&cluster, &["add", "4", "--raft", &raft]).await?;
    ensure!(again.code == Some(3) && again.err.contains("HF2504"), "{}", again.err);
    traffic.flows(50).await?;

    // The newcomer leads: agents and clients that were told of three nodes have found the fourth.
    lead(&cluster, "node 4 leads", |leader| leader == 4).await?;
    traffic.flows(50).await?;
    lead(&cluster, "another leads", |leader| leader != 4).await?;
    traffic.flows(50).await?;

    // The leader goes: it hands over first.
    let leader = cluster.leader().await?;
    let number = (leader + 1).to_string();
    let removed = operate(&cluster, &["remove", &number]).await?;
    ensure!(removed.code == Some(0), "{}{}", removed.out, removed.err);
    let left = voters(&cluster).await?;
    ensure!(left.len() == 3 && !left.contains(&(leader as u64 + 1)), "{left:?}");
    traffic.flows(50).await?;

    // Another loses its disk and comes back empty.
    let lost = (0..3).find(|at| *at != leader).context("two are left")?;
    let number = (lost + 1).to_string();
    let early = operate(&cluster, &["replace", &number]).await?;
    ensure!(early.code == Some(3) && early.err.contains("HF2504"), "it is well: {}", early.err);
    cluster.nodes[lost].process.kill().await?;
    std::fs::remove_dir_all(&cluster.nodes[lost].data)?;
    cluster.nodes[lost].process.start()?;
    // Whoever looks, or tries to add it, is told what to do.
    let remedy = format!("holdfast cluster replace {number}");
    for (act, code) in [(vec!["status"], 1), (vec!["add", &number], 3)] {
        until("the remedy is told", SOON, async || {
            let said = operate(&cluster, &act).await.ok()?;
            let told = said.out.contains(&remedy) || said.err.contains(&remedy);
            (said.code == Some(code) && told).then_some(())
        })
        .await?;
    }
    let replaced = until("the empty node is let in", SOON, async || {
        let said = operate(&cluster, &["replace", &number]).await.ok()?;
        (said.code == Some(0)).then_some(said)
    });
    ensure!(replaced.await?.json()?["result"] == "replaced");
    ensure!(voters(&cluster).await? == left);
    traffic.flows(50).await?;

    let transferred = operate(&cluster, &["transfer"]).await?;
    ensure!(transferred.code == Some(0), "{}", transferred.err);
    traffic.flows(50).await?;
    ensure!(traffic.end().await? >= 400);
    fourth.kill().await?;
    Ok(())
}

/// The second of two sorts of mistake: a file that is not what it was.
async fn is_refused(cluster: &Cluster, file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(file, bytes)?;
    let said = operate(cluster, &["verify", &file.display().to_string()]).await?;
    ensure!(said.code == Some(1) && said.err.contains("HF1301"), "{:?} {}", said.code, said.err);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_verified_restored_as_another_founding_and_shows_any_damage()
-> anyhow::Result<()> {
    let cluster = Cluster::start(0).await?;
    let traffic = Traffic::start(&cluster).await?;
    traffic.flows(50).await?;
    let file = cluster.folder.path().join("state.backup");
    let path = file.display().to_string();
    let taken = operate(&cluster, &["backup", "--to", &path]).await?;
    ensure!(taken.code == Some(0), "{}{}", taken.out, taken.err);
    let taken = taken.json()?;
    traffic.end().await?;
    let held = taken["open_transactions"].as_u64().unwrap_or(0)
        + taken["finished_transactions"].as_u64().unwrap_or(0);
    ensure!(held >= 50, "{taken}");
    let again = operate(&cluster, &["backup", "--to", &path]).await?;
    ensure!(again.code == Some(1) && again.err.contains("HF1302"), "{}", again.err);
    let verified = operate(&cluster, &["verify", &path]).await?.json()?;
    ensure!(verified["parts"] == taken["parts"], "{verified}");

    let bytes = std::fs::read(&file)?;
    let damaged = cluster.folder.path().join("damaged.backup");
    // Every part of the file: front, head, snapshot, sum; and one that was cut.
    for at in [0, 9, 40, bytes.len() / 3, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        is_refused(&cluster, &damaged, &wrong).await?;
    }
    is_refused(&cluster, &damaged, &bytes[..bytes.len() - 1]).await?;

    let (mut process, raft, config) = newcomer(&cluster, 9, 1)?;
    process.kill().await?;
    let data = cluster.folder.path().join("restored");
    let (data, config) = (data.display().to_string(), config.display().to_string());
    let restore = ["restore", path.as_str(), "--config", &config, "--data-dir", &data];
    let restored = operate(&cluster, &restore).await?;
    ensure!(restored.code == Some(0), "{}{}", restored.out, restored.err);
    let restored = restored.json()?;
    ensure!(restored["new_founding"] != restored["founding"], "{restored}");
    let again = operate(&cluster, &restore).await?;
    ensure!(again.code == Some(1) && again.err.contains("HF1303"), "{}", again.err);

    // It starts alone, with the state of the backup, and the former cluster does not meet it.
    let mut process = start_restored(&cluster, &config, &data)?;
    let refused = until("the former cluster refuses it", SOON, async || {
        let said = operate(&cluster, &["add", "9", "--raft", &raft]).await.ok()?;
        said.err.contains("HF2505").then_some(said)
    });
    ensure!(refused.await?.code == Some(3));
    let grpc = raft_to_grpc(&config)?;
    let status = until("the restored node leads", SOON, async || {
        let options = ClientOptions { patience_ms: 1_000, ..ClientOptions::default() };
        let status = Client::lazy([grpc.as_str()], options).ok()?.node_status().await.ok()?;
        (status.role == "leader" && status.members.len() == 1).then_some(status)
    });
    let status = status.await?;
    ensure!(status.applied_index >= taken["parts"][0]["index"].as_u64().unwrap_or(u64::MAX));
    process.kill().await
}

/// Starts a node on a directory that was made of a backup.
fn start_restored(cluster: &Cluster, config: &str, data: &str) -> anyhow::Result<Process> {
    let program = Program {
        name: "restored".to_owned(),
        path: holdfast()?.to_owned(),
        arguments: ["coordinator", "--config", config, "--data-dir", data].map(Into::into).to_vec(),
        environment: Vec::new(),
        run_as: None,
        kill_when_dropped: true,
    };
    let mut process = Process::new(program, cluster.folder.path());
    process.start()?;
    Ok(process)
}

const GROUPS: u32 = 4;

/// What the leader of each group says, in the order of the groups, once each has one.
async fn leaders(cluster: &Cluster) -> Option<Vec<Value>> {
    let status = operate(cluster, &["status"]).await.ok()?.json().ok()?;
    let nodes = status["nodes"].as_array()?;
    let leading = |group: u32| {
        nodes.iter().find(|node| node["group"] == group && node["role"] == "leader").cloned()
    };
    (0..GROUPS).map(leading).collect()
}

/// Waits until these are the voters of every group.
async fn all_vote(cluster: &Cluster, voters: &[u64]) -> anyhow::Result<()> {
    until("every group has these voters", SOON, async || {
        let leaders = leaders(cluster).await?;
        leaders.iter().all(|leader| numbers(&leader["voters"]) == voters).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_leaders_and_backups_are_of_all_groups_while_transactions_commit()
-> anyhow::Result<()> {
    let cluster = Cluster::shaped(0, Shape { groups: GROUPS, ..Shape::default() }).await?;
    let traffic = Traffic::start(&cluster).await?;
    traffic.flows(40).await?;
    until("each node leads", SOON, async || {
        let leaders = leaders(&cluster).await?;
        let led = |node: u64| leaders.iter().any(|leader| leader["node"] == node);
        (1..=3).all(led).then_some(())
    })
    .await?;

    let (mut process, raft, _) = newcomer(&cluster, 4, GROUPS)?;
    added(&cluster, &raft).await?;
    all_vote(&cluster, &[1, 2, 3, 4]).await?;
    let again = operate(&cluster, &["add", "4", "--raft", &raft]).await?;
    ensure!(again.code == Some(3) && again.err.contains("HF2504"), "{}", again.err);
    traffic.flows(40).await?;

    until("group 3 is led where an operator wants it", SOON, async || {
        let _moved = operate(&cluster, &["transfer", "--group", "3", "--to", "2"]).await;
        (leaders(&cluster).await?[3]["node"] == 2).then_some(())
    })
    .await?;
    let path = cluster.folder.path().join("state.backup").display().to_string();
    let taken = operate(&cluster, &["backup", "--to", &path]).await?;
    ensure!(taken.code == Some(0), "{}{}", taken.out, taken.err);
    let parts = operate(&cluster, &["verify", &path]).await?.json()?["parts"].clone();
    ensure!(parts.as_array().is_some_and(|parts| parts.len() == GROUPS as usize), "{parts}");

    let removed = operate(&cluster, &["remove", "4"]).await?;
    ensure!(removed.code == Some(0), "{}{}", removed.out, removed.err);
    all_vote(&cluster, &[1, 2, 3]).await?;
    process.kill().await?;
    traffic.flows(40).await?;
    traffic.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_several_groups_is_replaced_and_its_groups_are_restored_from_one_backup()
-> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(0, Shape { groups: GROUPS, ..Shape::default() }).await?;
    let traffic = Traffic::start(&cluster).await?;
    traffic.flows(40).await?;

    // A node loses its disk and comes back empty: it is let in again by every group, whichever it led.
    cluster.nodes[1].process.kill().await?;
    std::fs::remove_dir_all(&cluster.nodes[1].data)?;
    cluster.nodes[1].process.start()?;
    // Said again for the groups that had no leader yet, it is refused once all of them have let it in.
    until("every group has let the empty node in", 4 * SOON, async || {
        let said = operate(&cluster, &["replace", "2"]).await.ok()?;
        (said.code == Some(0) || said.err.contains("HF2504")).then_some(())
    })
    .await?;
    all_vote(&cluster, &[1, 2, 3]).await?;
    traffic.flows(40).await?;

    let path = cluster.folder.path().join("state.backup").display().to_string();
    let taken = operate(&cluster, &["backup", "--to", &path]).await?;
    ensure!(taken.code == Some(0), "{}{}", taken.out, taken.err);
    let taken = taken.json()?;
    traffic.end().await?;

    // A node that was never started, of as many groups, starts with all of them.
    let (mut process, _, config) = newcomer(&cluster, 9, GROUPS)?;
    process.kill().await?;
    let data = cluster.folder.path().join("restored").display().to_string();
    let config = config.display().to_string();
    let restore = ["restore", path.as_str(), "--config", &config, "--data-dir", &data];
    let restored = operate(&cluster, &restore).await?;
    ensure!(restored.code == Some(0), "{}{}", restored.out, restored.err);
    let mut process = start_restored(&cluster, &config, &data)?;
    let grpc = raft_to_grpc(&config)?;
    let of_all = until("the restored node leads every group", SOON, async || {
        let mut command = Command::new(holdfast().ok()?);
        command.args(["cluster", "status", "--output", "json", "--coordinator", &grpc]);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let nodes = status["nodes"].as_array()?.clone();
        let leads = nodes.iter().filter(|node| node["role"] == "leader").count();
        (leads == GROUPS as usize).then_some(nodes)
    });
    let of_all = of_all.await?;
    for (group, part) in taken["parts"].as_array().context("parts")?.iter().enumerate() {
        let now = of_all.iter().find(|node| node["group"] == group).context("a group")?;
        let (applied, kept) = (now["applied_index"].as_u64(), part["index"].as_u64());
        ensure!(kept.is_some() && applied >= kept, "group {group}: {now}, {part}");
    }
    process.kill().await
}

/// The gRPC address in a configuration of ours.
fn raft_to_grpc(config: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(config)?;
    let line = text.lines().find_map(|line| line.strip_prefix("grpc = "));
    Ok(line.context("a gRPC address")?.trim_matches('"').to_owned())
}
