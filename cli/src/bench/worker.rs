//! A process of the benchmark's own that is told what to do line by line, and answers each line with a line.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// For any answer; the longest run is far below.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A running worker, killed when it is forgotten; it also ends when its input does.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Worker {
    /// Starts `holdfast bench ARGUMENTS`; what it says on standard error goes below `folder`.
    pub(crate) fn start(name: &str, arguments: &[String], folder: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding our own program")?;
        let log = folder.join(format!("{name}.log"));
        let told = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut child = Command::new(program)
            .arg("bench")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(told)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let orders = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Ok(Self { name: name.to_owned(), child, orders, answers, log })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }

    /// Tells it a line and waits for the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&mut self, line: &str) -> anyhow::Result<T> {
        let asked = async {
            self.orders.write_all(line.as_bytes()).await?;
            self.orders.write_all(b"\n").await?;
            self.orders.flush().await?;
            self.answers.next_line().await
        };
        let answer = timeout(ANSWER_MAX, asked).await;
        let answer = answer.with_context(|| format!("{} does not answer {line:?}", self.name))?;
        let Ok(Some(answer)) = answer else {
            let words = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{} ended by itself at {line:?}; its last words:\n{words}", self.name);
        };
        serde_json::from_str(&answer)
            .with_context(|| format!("{} answers {line:?} with {answer:?}", self.name))
    }
}

/// The other side: answers each line of standard input until it ends.
/// # Errors
/// What `answer` says; it ends the worker.
pub(crate) async fn obey<T: serde::Serialize>(
    mut answer: impl AsyncFnMut(&str) -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut answers = tokio::io::stdout();
    while let Some(order) = orders.next_line().await? {
        let mut told = serde_json::to_string(&answer(&order).await?)?;
        told.push('\n');
        answers.write_all(told.as_bytes()).await?;
        answers.flush().await?;
    }
    Ok(())
}
