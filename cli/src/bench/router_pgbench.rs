//! One run of pgbench: how many transactions, how long each took, and what a process beside it used meanwhile.

use std::{path::Path, process::Stdio};

use anyhow::{Context, ensure};
use tokio::process::Command;

use super::{figures::Figures, meters};
use crate::demo::postgres::{DATABASE, USER};

/// What pgbench sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work<'w> {
    /// Its built-in `SELECT` of one row by key.
    Select,
    /// Its built-in transaction of seven statements.
    TpcB,
    /// A script of ours.
    Script(&'w Path),
}

/// How it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Simple,
    Extended,
    Prepared,
}

impl Protocol {
    /// As pgbench calls it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'r> {
    pub(crate) port: u16,
    pub(crate) work: Work<'r>,
    pub(crate) protocol: Protocol,
    pub(crate) clients: u32,
    pub(crate) seconds: u32,
    /// Where a log may go.
    pub(crate) folder: &'r Path,
    /// The process between pgbench and PostgreSQL, if there is one.
    pub(crate) between: Option<u32>,
}

impl Run<'_> {
    /// Runs it. Every transaction's time is logged with one client; with more, only the mean is told.
    /// # Errors
    /// pgbench is not installed, or a transaction failed.
    pub(crate) async fn measure(&self, password: &str) -> anyhow::Result<Figures> {
        let mut command = pgbench(self.port, self.clients, password);
        command.args(["-M", self.protocol.word(), "-T", &self.seconds.to_string()]);
        match self.work {
            Work::Select => command.arg("-S"),
            Work::TpcB => &mut command,
            Work::Script(file) => command.arg("-f").arg(file),
        };
        let prefix = self.folder.join("pgbench_log");
        let logged = self.clients == 1;
        if logged {
            command.arg("-l").arg("--log-prefix").arg(&prefix);
        }
        command.arg(DATABASE);
        let used = |pid: Option<u32>| pid.map(meters::cpu_us).transpose();
        let before = used(self.between)?;
        let said = output_of(&mut command, self.port).await?;
        let after = used(self.between)?;
        let per_s = number_behind(&said, "tps = ").context("pgbench tells no rate")?;
        let mean_ms = number_behind(&said, "latency average = ").context("and no latency")?;
        let done = number_behind(&said, "number of transactions actually processed: ");
        let done = done.context("and no count")?;
        ensure!(done > 0.0, "pgbench at port {} did nothing", self.port);
        let mut figures = Figures::from([("per_s", per_s), ("mean_us", mean_ms * 1_000.0)]);
        if let (Some(before), Some(after)) = (before, after) {
            figures.insert("cpu_us", (after - before) / done);
        }
        if logged {
            figures.insert("p50_us", median_of_logs(self.folder)?);
        }
        Ok(figures)
    }
}

/// Has a pooler open all connections of its pools, and use them for a moment.
/// # Errors
/// pgbench is not installed, or a transaction of `script` failed.
pub(crate) async fn warm_up(port: u16, script: &Path, password: &str) -> anyhow::Result<()> {
    let mut command = pgbench(port, 64, password);
    command.args(["-t", "50", "-f"]).arg(script).arg(DATABASE);
    output_of(&mut command, port).await.map(drop)
}

fn pgbench(port: u16, clients: u32, password: &str) -> Command {
    let mut command = Command::new("pgbench");
    command.args(["-n", "-h", "127.0.0.1", "-U", USER, "-p", &port.to_string()]);
    command.args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
    command.env("PGPASSWORD", password).env("PGSSLMODE", "disable");
    command.env("PGGSSENCMODE", "disable").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output_of(command: &mut Command, port: u16) -> anyhow::Result<String> {
    let ran = command.output().await.context("starting pgbench (Debian: postgresql-contrib)")?;
    let complained = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "pgbench at port {port}: {complained}");
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

fn number_behind(text: &str, words: &str) -> Option<f64> {
    let (_, rest) = text.split_once(words)?;
    rest.split(|c: char| c.is_whitespace() || c == '/').next()?.parse().ok()
}

/// The median of the third column, us, of the logs in `folder`, which are removed.
fn median_of_logs(folder: &Path) -> anyhow::Result<f64> {
    let mut times: Vec<f64> = Vec::new();
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("pgbench_log") {
            let text = std::fs::read_to_string(entry.path())?;
            let column = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
            times.extend(text.lines().filter_map(column));
            std::fs::remove_file(entry.path())?;
        }
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().context("pgbench logged no transaction")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_says_is_read() {
        let said = "number of transactions actually processed: 1234\nlatency average = 0.391 ms\n\
                    tps = 2556.9 (without initial connection time)\n";
        assert_eq!(number_behind(said, "tps = "), Some(2556.9));
        assert_eq!(number_behind(said, "latency average = "), Some(0.391));
        let count = "number of transactions actually processed: ";
        assert_eq!(number_behind(said, count), Some(1234.0));
        assert_eq!(number_behind(said, "none = "), None);
    }
}
