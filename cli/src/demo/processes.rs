//! A process that the demo starts, watches, kills and starts again.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// Set for our own roles: they shut down when their standard input ends, which it does when the demo is gone.
pub(crate) const EXIT_WITH_PARENT: &str = "HOLDFAST_EXIT_WITH_PARENT";

/// Of a log, in an error message.
const TAIL_LINES: usize = 12;

/// A user that a process runs as instead of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunAs {
    /// As in `/etc/passwd`.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
}

/// How to start a process, again and again.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// For messages, for example `coordinator 2`.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<OsString>,
    /// Variables set on top of ours; may hold a password and are never shown.
    pub(crate) environment: Vec<(String, String)>,
    /// Where its output goes, appended.
    pub(crate) log: PathBuf,
    /// Another user, or ours.
    pub(crate) run_as: Option<RunAs>,
    /// SIGKILL when it is forgotten. PostgreSQL would leave shared memory behind: the cleaner of the folder stops it.
    pub(crate) kill_when_dropped: bool,
}

/// A process by its recipe: running, or dead because we killed it.
#[derive(Debug)]
pub(crate) struct Supervised {
    recipe: Recipe,
    child: Option<Child>,
}

impl Supervised {
    /// Not running yet.
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self { recipe, child: None }
    }

    /// For messages.
    pub(crate) fn name(&self) -> &str {
        &self.recipe.name
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Sets a variable of its environment, for its next start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.recipe.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it; it must not run. Says nothing about whether it is ready.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        assert!(self.child.is_none(), "{} is started only when it does not run", self.recipe.name);
        let Recipe { name, program, arguments, environment, log, run_as, kill_when_dropped } =
            &self.recipe;
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("opening the log {}", log.display()))
        };
        let mut command = plain_command(program, run_as.as_ref());
        command.args(arguments).envs(environment.iter().cloned());
        command
            .stdin(Stdio::piped())
            .stdout(open()?)
            .stderr(open()?)
            .kill_on_drop(*kill_when_dropped);
        let child =
            command.spawn().with_context(|| format!("starting {name} ({})", program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Fails, with the end of its log, if it ended without being asked to. Nothing to say of one that is not started.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                self.child = None;
                bail!(self.death(status))
            }
        }
    }

    /// Sends a signal and waits until the process is gone; SIGKILL follows after `grace`. False if it had to.
    pub(crate) async fn stop(&mut self, signal: Signal, grace: Duration) -> anyhow::Result<bool> {
        let Some(mut child) = self.child.take() else { return Ok(true) };
        // Held open to the end: a role takes the end of its input for a second request to stop.
        let _input = child.stdin.take();
        if let Some(pid) = child.id() {
            let pid = Pid::from_raw(i32::try_from(pid).context("a process id out of range")?);
            // It may be gone by itself at this moment; wait() below knows.
            let _ = kill(pid, signal);
        }
        if let Ok(status) = tokio::time::timeout(grace, child.wait()).await {
            status.with_context(|| format!("waiting for the end of {}", self.recipe.name))?;
            return Ok(true);
        }
        child.kill().await.with_context(|| format!("killing {}", self.recipe.name))?;
        Ok(false)
    }

    /// SIGKILL: no last word, nothing flushed.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!(self.death(status));
        }
        child.kill().await.with_context(|| format!("killing {}", self.recipe.name))
    }

    /// An error message for something this process should have done, with the end of its log.
    pub(crate) fn complaint(&self, what: &str) -> String {
        format!(
            "{} {what}. The end of its log ({}):\n{}",
            self.recipe.name,
            self.recipe.log.display(),
            tail(&self.recipe.log)
        )
    }

    fn death(&self, status: ExitStatus) -> String {
        self.complaint(&format!("ended by itself ({status})"))
    }
}

/// A command in a process group of its own, out of reach of Ctrl-C at the terminal, without settings of PostgreSQL
/// that the caller's environment may hold.
pub(crate) fn plain_command(program: &Path, run_as: Option<&RunAs>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).current_dir("/").stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some(user) = run_as {
        command.uid(user.uid).gid(user.gid);
        command.env("HOME", "/").env("USER", &user.name).env("LOGNAME", &user.name);
    }
    command
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_else(|error| format!("(cannot be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let shown: Vec<String> = lines[from..].iter().map(|line| format!("    {line}")).collect();
    if shown.is_empty() { "    (empty)".to_owned() } else { shown.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, script: &str) -> Supervised {
        Supervised::new(Recipe {
            name: "the shell".to_owned(),
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("WORD".to_owned(), "spoken".to_owned())],
            log: folder.join("shell.log"),
            run_as: None,
            kill_when_dropped: true,
        })
    }

    #[tokio::test]
    async fn a_process_that_ends_by_itself_is_reported_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "echo \"last $WORD\"; exit 3");
        process.start().unwrap();
        let told = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                if let Err(error) = process.check() {
                    return error.to_string();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert!(told.contains("exit status: 3"), "{told}");
        assert!(told.contains("last spoken"), "{told}");
        assert!(told.contains("shell.log"), "{told}");
    }

    #[tokio::test]
    async fn a_killed_process_can_be_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "echo up; cat");
        for _ in 0..2 {
            process.start().unwrap();
            process.check().unwrap();
            process.kill().await.unwrap();
            process.check().unwrap();
        }
        assert!(process.stop(Signal::SIGTERM, Duration::from_secs(1)).await.unwrap());
    }

    #[tokio::test]
    async fn a_process_deaf_to_the_signal_is_killed_after_its_grace() {
        let folder = tempfile::tempdir().unwrap();
        let mut process =
            shell(folder.path(), "trap '' TERM; echo deaf; while :; do sleep 0.1; done");
        process.start().unwrap();
        let log = process.recipe.log.clone();
        tokio::time::timeout(Duration::from_secs(10), async {
            while !std::fs::read_to_string(&log).unwrap_or_default().contains("deaf") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert!(!process.stop(Signal::SIGTERM, Duration::from_millis(100)).await.unwrap());
    }

    #[tokio::test]
    async fn a_process_sees_the_end_of_its_input_when_its_parent_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "cat; echo orphaned");
        process.start().unwrap();
        let mut child = process.child.take().unwrap();
        drop(child.stdin.take());
        tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        assert!(std::fs::read_to_string(&process.recipe.log).unwrap().contains("orphaned"));
    }
}
