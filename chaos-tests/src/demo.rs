//! `holdfast demo`, run to its end or interrupted, in a temporary folder of its own that shows what it leaves behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::{Folder, binary};

/// With other ports each time.
const RUNS_MAX: u32 = 3;
/// For one run.
const RUN_MAX: Duration = Duration::from_secs(150);

/// One run of the demo.
#[derive(Debug)]
pub struct Demo {
    folder: Folder,
}

impl Demo {
    /// Nothing ran yet.
    /// # Errors
    /// No temporary folder.
    pub fn new() -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        // As open as the system's own: the demo's PostgreSQL runs as another user.
        fs::create_dir(folder.path().join("tmp"))?;
        Ok(Self { folder })
    }

    /// Where its own temporary folders are made.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// A file beside it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command with these arguments, killed when it is dropped.
    /// # Errors
    /// There is no program.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(binary::holdfast()?);
        command.arg("demo").args(arguments).env("TMPDIR", self.tmp()).kill_on_drop(true);
        Ok(command)
    }

    /// Runs it to its end.
    /// # Errors
    /// It does not end in time.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        for turn in 1.. {
            let output = timeout(RUN_MAX, self.command(arguments)?.output()).await;
            let output = output.with_context(|| format!("demo {arguments:?} does not end"))??;
            // Somebody else on this machine took a port between the choice and the start.
            let taken = String::from_utf8_lossy(&output.stderr).contains("Address already in use");
            if !taken || turn == RUNS_MAX {
                return Ok(output);
            }
        }
        unreachable!("the last turn returns")
    }

    /// Runs it with a report in a file, which must say that all is well.
    /// # Errors
    /// It failed, the report is not of the agreed shape, or something is left behind.
    pub async fn report(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let path = self.file("report.json");
        let mut all = arguments.to_vec();
        all.extend(["--report", path.to_str().context("a folder in UTF-8")?]);
        let output = self.run(&all).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        let shown = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "demo {arguments:?}: {}\n{shown}\n{told}", output.status);
        let report: Value = serde_json::from_slice(&fs::read(&path)?)?;
        check_shape(&report)?;
        check_well(&report)?;
        self.left_behind()?;
        Ok(report)
    }

    /// Fails if a file or a process of it is left.
    /// # Errors
    /// Names what is left.
    pub fn left_behind(&self) -> anyhow::Result<()> {
        let files: Vec<_> = fs::read_dir(self.tmp())?
            .map(|entry| Ok(entry?.path()))
            .collect::<anyhow::Result<_>>()?;
        ensure!(files.is_empty(), "left behind: {files:?}");
        let processes = processes_of(&self.tmp())?;
        ensure!(processes.is_empty(), "still running: {processes:?}");
        Ok(())
    }
}

/// The command lines of all processes that name something below `folder`.
/// # Errors
/// `/proc` cannot be read.
pub fn processes_of(folder: &Path) -> anyhow::Result<Vec<String>> {
    let folder = folder.to_str().context("a folder in UTF-8")?;
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    // A process may end between the two looks.
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    Ok(lines.filter(|line| line.contains(folder)).collect())
}

/// Every field of the agreed shape, with its type: `n` a whole number of at least 0, `f` a number, `b` a truth value, `s` a text,
/// `a` a list.
const SHAPE: [(&str, char); 24] = [
    ("/coordinators", 'n'),
    ("/shards", 'n'),
    ("/transfers/submitted", 'n'),
    ("/transfers/committed", 'n'),
    ("/transfers/refused", 'n'),
    ("/transfers/unknown_resolved", 'n'),
    ("/transfers/cross_shard", 'n'),
    ("/transfers/one_shard", 'n'),
    ("/kills", 'a'),
    ("/saga/committed", 'n'),
    ("/saga/compensated", 'n'),
    ("/latency_ms/p50", 'f'),
    ("/latency_ms/p99", 'f'),
    ("/latency_ms/max", 'f'),
    ("/tps", 'f'),
    ("/money/opening_minor", 'n'),
    ("/money/closing_minor", 'n'),
    ("/money/conserved", 'b'),
    ("/holds_left", 'n'),
    ("/open_transactions_left", 'n'),
    ("/prepared_left", 'n'),
    ("/journal_ok", 'b'),
    ("/verdict", 's'),
    ("/problems", 'a'),
];

fn check_shape(report: &Value) -> anyhow::Result<()> {
    for (pointer, kind) in SHAPE {
        let value = report.pointer(pointer).with_context(|| format!("no {pointer}: {report}"))?;
        let fits = match kind {
            'n' => value.is_u64(),
            'f' => value.is_number(),
            'b' => value.is_boolean(),
            's' => value.is_string(),
            _ => value.is_array(),
        };
        ensure!(fits, "{pointer} = {value} is not of kind {kind}");
    }
    for kill in report["kills"].as_array().expect("checked above") {
        let fits = kill["what"].is_string()
            && kill["at_s"].is_number()
            && kill["recovered_ms"].is_u64()
            && kill["victim"].is_string();
        ensure!(fits, "a kill of another shape: {kill}");
    }
    Ok(())
}

fn check_well(report: &Value) -> anyhow::Result<()> {
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64);
    ensure!(report["verdict"] == "good", "{report:#}");
    ensure!(report["problems"].as_array().is_some_and(Vec::is_empty), "{report:#}");
    ensure!(report["money"]["conserved"] == true && report["journal_ok"] == true, "{report:#}");
    ensure!(number("/money/opening_minor") == number("/money/closing_minor"), "{report:#}");
    for left in ["/holds_left", "/open_transactions_left", "/prepared_left"] {
        ensure!(number(left) == Some(0), "{left}: {report:#}");
    }
    let [submitted, committed, refused, cross, one] =
        ["submitted", "committed", "refused", "cross_shard", "one_shard"]
            .map(|name| number(&format!("/transfers/{name}")).unwrap_or_default());
    ensure!(submitted > 0 && submitted == committed + refused, "{report:#}");
    ensure!(committed == cross + one && cross > 0 && one > 0, "{report:#}");
    Ok(())
}
