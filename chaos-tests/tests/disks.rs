//! Disks that fill up, cannot be written, cannot be synced or forget: a node that cannot keep its word ends, and never acknowledges.

#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{Cluster, Load, SOON, Shape, http, until};
use nix::sys::signal::Signal;
use serde_json::json;

/// A small file system of its own over a folder; gone when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// What `folder` holds, on a file system with so many bytes to spare; `None`, with a plain message, without the right to mount.
    fn under(folder: &Path, spare_bytes: u64) -> anyhow::Result<Option<Self>> {
        let aside = folder.with_extension("aside");
        fs::rename(folder, &aside)?;
        fs::create_dir(folder)?;
        let used = run("du", ["-s", "--block-size=1", &aside.to_string_lossy()])?;
        let used: u64 = used.split_whitespace().next().context("du says a size")?.parse()?;
        let size = format!("size={},mode=0700", used + spare_bytes);
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: this process may not mount a small file system; run as root");
            fs::remove_dir(folder)?;
            fs::rename(&aside, folder)?;
            return Ok(None);
        }
        let disk = Self(folder.to_owned());
        run("cp", ["-a", &format!("{}/.", aside.display()), &folder.to_string_lossy()])?;
        Ok(Some(disk))
    }

    /// Fills it to the last byte. The file is what to remove again.
    fn fill(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(format!("somebody-elses-{name}.data"));
        let mut file = File::create(&path)?;
        let block = [1; 4_096];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(full) if full.kind() == io::ErrorKind::StorageFull => return Ok(path),
                Err(other) => return Err(other.into()),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has files open there keeps them until it ends.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn run<const N: usize>(program: &str, arguments: [&str; N]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A cluster that rolls its log over and takes snapshots every few hundred transactions.
fn restless() -> Shape {
    Shape { segment_bytes: 4 * 1024 * 1024, snapshot_every: 200, ..Shape::default() }
}

/// Waits until the node has ended by itself; what it said since `before`.
async fn ends(cluster: &mut Cluster, at: usize, before: usize) -> anyhow::Result<String> {
    let process = &mut cluster.nodes[at].process;
    let status = process.ended(4 * SOON).await?;
    let told = process.log_text().split_off(before);
    ensure!(status.signal() == Some(Signal::SIGABRT as i32), "{status}: {told}");
    Ok(told)
}

/// Starts a node that cannot last; what it said until it ended, which was no good end.
async fn starts_and_ends(cluster: &mut Cluster, at: usize) -> anyhow::Result<String> {
    let process = &mut cluster.nodes[at].process;
    let before = process.log_text().len();
    process.start()?;
    let status = process.ended(4 * SOON).await?;
    let told = process.log_text().split_off(before);
    ensure!(!status.success(), "{status}: {told}");
    Ok(told)
}

/// Everything heals: the node starts again, catches up, and the books are right.
async fn comes_back(cluster: &mut Cluster, load: &Arc<Load>) -> anyhow::Result<()> {
    cluster.start_nodes().await?;
    let running = load.start(4, false);
    load.more(50).await?;
    running.stop().await?;
    cluster.quiet(SOON).await?;
    cluster.audit().await?;
    cluster.agree().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_full_disk_ends_and_comes_back_when_there_is_room() -> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(2, restless()).await?;
    let load = Load::open(&cluster, "full").await?;
    let full = cluster.leader().await?;
    cluster.nodes[full].process.stop(Signal::SIGTERM, SOON).await?;
    let Some(disk) = SmallDisk::under(&cluster.nodes[full].data, 64 * 1024 * 1024)? else {
        return Ok(());
    };
    cluster.start_nodes().await?;

    // The others go on while it fails, and whatever it acknowledged before is there.
    let running = load.start(4, false);
    load.more(50).await?;
    let before = cluster.nodes[full].process.log_text().len();
    let filler = disk.fill("first")?;
    // Snapshots that do not fit are left out; what is left of the log's segments is used up soon.
    let growing = load.start(0, true);
    let told = ends(&mut cluster, full, before).await?;
    growing.stop().await?;
    ensure!(told.contains("HF1202") || told.contains("HF1203"), "{told}");
    ensure!(told.contains("No space left"), "no cause: {told}");
    load.more(50).await?;

    // Started again on a disk that is full still, it refuses to start and says why; the others go on.
    let rest = disk.fill("rest")?;
    let told = starts_and_ends(&mut cluster, full).await?;
    ensure!(told.contains("HF1014") && told.contains("No space left"), "{told}");
    ensure!(told.contains("Make room"), "no remedy: {told}");
    // With room for a few writes and no more, it starts, catches up as far as it can, and ends before it acknowledges what it cannot keep.
    let length = fs::metadata(&filler)?.len();
    OpenOptions::new().write(true).open(&filler)?.set_len(length - 64 * 1024)?;
    let told = starts_and_ends(&mut cluster, full).await?;
    ensure!(["HF1102", "HF1202", "HF1203"].iter().any(|code| told.contains(code)), "{told}");
    ensure!(told.contains("No space left"), "no cause: {told}");
    load.more(50).await?;
    running.stop().await?;

    fs::remove_file(filler)?;
    fs::remove_file(rest)?;
    comes_back(&mut cluster, &load).await?;
    cluster.nodes[full].process.stop(Signal::SIGTERM, SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_write_its_snapshot_goes_on_and_writes_it_when_it_can()
-> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(2, restless()).await?;
    let load = Load::open(&cluster, "snap").await?;
    let at = cluster.follower().await?;
    let data = cluster.nodes[at].data.clone();
    let (dir, aside) = (data.join("snapshot"), data.join("aside"));
    let before = cluster.nodes[at].process.log_text().len();
    let held = newest(&dir, ".snap").ok();
    fs::rename(&dir, &aside)?;
    File::create(&dir)?;
    let running = load.start(4, false);
    until("it cannot write one", 4 * SOON, async || {
        let told = cluster.nodes[at].process.log_text().split_off(before);
        told.contains("HF1204 cannot write a snapshot").then_some(())
    })
    .await?;
    load.more(50).await?;
    fs::remove_file(&dir)?;
    fs::rename(&aside, &dir)?;
    until("it writes one", 4 * SOON, async || {
        newest(&dir, ".snap").ok().filter(|now| Some(now) != held.as_ref())
    })
    .await?;
    running.stop().await?;
    cluster.nodes[at].process.check()?;
    comes_back(&mut cluster, &load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_sync_fails_ends_before_it_acknowledges() -> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(2, Shape { proxied: true, ..Shape::default() }).await?;
    let load = Load::open(&cluster, "sync").await?;
    let running = load.start(4, false);
    load.more(50).await?;
    let at = cluster.leader().await?;
    let before = cluster.nodes[at].process.log_text().len();
    let order = json!({"fault": "sync-fails", "measure": 0, "limit_ms": 10_000});
    let held = http::post(&cluster.nodes[at].drill, "/v1/drill", &order).await?;
    ensure!(held.status == 200, "{:#}", held.json());
    let told = ends(&mut cluster, at, before).await?;
    ensure!(told.contains("HF1202 cannot sync the log"), "{told}");
    load.more(50).await?;
    running.stop().await?;
    comes_back(&mut cluster, &load).await
}

/// More syncs than a start makes.
const SYNCS_OF_A_START_MAX: u32 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_sync_fails_at_its_start_refuses_to_start_and_later_ends_and_nothing_is_lost()
-> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(2, restless()).await?;
    let load = Load::open(&cluster, "eio").await?;
    // The log grows, so that a segment is wanted that could not be made ready.
    let running = load.start(4, true);
    load.more(50).await?;
    let at = cluster.follower().await?;
    cluster.nodes[at].process.stop(Signal::SIGTERM, SOON).await?;
    let order = cluster.folder.path().join(format!("coordinator-{}.kill", at + 1));
    // Each sync of a start in turn, until one is struck that belongs to the work of a node that runs.
    let mut refused = 0;
    loop {
        fs::write(&order, format!("fail disk-before-sync:{}", refused + 1))?;
        let process = &mut cluster.nodes[at].process;
        let before = process.log_text().len();
        process.start()?;
        let status = process.ended(4 * SOON).await?;
        let told = process.log_text().split_off(before);
        ensure!(told.contains("os error 5"), "sync {}: {status}: {told}", refused + 1);
        if status.code() != Some(1) {
            ensure!(status.signal() == Some(Signal::SIGABRT as i32), "{status}: {told}");
            ensure!(told.contains("HF1202") || told.contains("HF1203"), "{told}");
            break;
        }
        ensure!(told.contains("HF1102"), "sync {}: {told}", refused + 1);
        refused += 1;
        ensure!(refused < SYNCS_OF_A_START_MAX, "a node that never runs");
    }
    // The folder of the log, what is left over in it, the segment that was open.
    ensure!(refused >= 3, "{refused} starts were refused");
    load.more(50).await?;
    running.stop().await?;
    comes_back(&mut cluster, &load).await
}

/// The newest file below `folder` whose name ends so.
fn newest(folder: &Path, ending: &str) -> anyhow::Result<PathBuf> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<io::Result<Vec<_>>>()?;
    let named = |path: &PathBuf| path.to_string_lossy().ends_with(ending);
    paths.into_iter().filter(named).max().with_context(|| format!("no {ending} in {folder:?}"))
}

fn flip(path: &Path, at: u64) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x04], at)?;
    Ok(file.sync_all()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_file_is_refused_at_the_start_or_healed() -> anyhow::Result<()> {
    let mut cluster = Cluster::shaped(2, restless()).await?;
    let load = Load::open(&cluster, "rot").await?;
    let running = load.start(8, false);
    let at = cluster.follower().await?;
    let snapshots = cluster.nodes[at].data.join("snapshot");
    until("the node has a snapshot", 4 * SOON, async || newest(&snapshots, ".snap").ok()).await?;
    running.stop().await?;
    cluster.nodes[at].process.stop(Signal::SIGTERM, SOON).await?;

    let data = cluster.nodes[at].data.clone();
    let (identity, snapshot) = (data.join("IDENTITY"), newest(&snapshots, ".snap")?);
    let segment = newest(&data.join("log"), ".log")?;
    let length = fs::metadata(&snapshot)?.len();
    // The head of a segment, and its first record, which holds the vote and what was true before.
    let places = [(&identity, 2), (&segment, 1), (&segment, 20), (&segment, 70)];
    let places = places.into_iter().chain([
        (&snapshot, 0),
        (&snapshot, length / 2),
        (&snapshot, length - 1),
    ]);
    for (path, offset) in places {
        flip(path, offset)?;
        let before = cluster.nodes[at].process.log_text().len();
        cluster.nodes[at].process.start()?;
        let status = cluster.nodes[at].process.ended(SOON).await?;
        let told = cluster.nodes[at].process.log_text().split_off(before);
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        ensure!(status.code() == Some(1), "{name} at {offset}: {status}: {told}");
        ensure!(told.contains("HF") && told.contains(name), "{name} at {offset}: {told}");
        flip(path, offset)?;
    }

    // The history is no witness of anything: it is made again from the log.
    let history = data.join("history");
    let mut flipped = 0;
    for entry in fs::read_dir(&history)? {
        let path = entry?.path();
        if path.is_file() && fs::metadata(&path)?.len() > 64 {
            flip(&path, 40)?;
            flipped += 1;
        }
    }
    ensure!(flipped > 0, "no file of the history in {history:?}");

    // What is kept ready for the next segment holds nothing, and whatever stands there is written over when it is taken.
    let spare = newest(&data.join("log"), ".spare")?;
    for offset in [1, 20, 70, fs::metadata(&spare)?.len() - 1] {
        flip(&spare, offset)?;
    }
    kinds(&data)?;
    cluster.start_nodes().await?;
    let running = load.start(4, true);
    until("the next segment is in use", 4 * SOON, async || {
        newest(&data.join("log"), ".log").ok().filter(|newest| *newest > segment)
    })
    .await?;
    running.stop().await?;
    cluster.nodes[at].process.stop(Signal::SIGTERM, SOON).await?;
    comes_back(&mut cluster, &load).await
}

/// Fails at a file of a kind that the story about bits that flip does not know.
fn kinds(data: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("UTF-8")?;
        let endings: &[&str] = match name.as_str() {
            // The lock is empty; the history is made again, whatever its files are called.
            "IDENTITY" | "LOCK" | "history" => continue,
            "log" => &[".log", ".spare"],
            "snapshot" => &[".snap"],
            other => anyhow::bail!("{other} is flipped by nobody"),
        };
        for file in fs::read_dir(entry.path())? {
            let file = file?.file_name().into_string().ok().context("UTF-8")?;
            let known = endings.iter().any(|ending| file.ends_with(ending));
            ensure!(known, "{name}/{file} is flipped by nobody");
        }
    }
    Ok(())
}
