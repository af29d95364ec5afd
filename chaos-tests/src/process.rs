//! One program: started, watched, signaled, killed, and started again.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// Of a log, in an error message.
const TAIL_LINES: usize = 15;

/// What to start.
#[derive(Clone, Debug)]
pub struct Program {
    /// For messages; the log is `<name>.log`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables on top of ours.
    pub environment: Vec<(String, String)>,
    /// User and group to run as; ours if `None`.
    pub run_as: Option<(u32, u32)>,
    /// SIGKILL when it is dropped; otherwise it ends by itself when its standard input does.
    pub kill_when_dropped: bool,
}

/// A program that runs, or does not at the moment. None outlives this.
#[derive(Debug)]
pub struct Process {
    program: Program,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Not started yet; what it writes goes to a log in `folder`.
    #[must_use]
    pub fn new(program: Program, folder: &Path) -> Self {
        let log = folder.join(format!("{}.log", program.name));
        Self { program, log, child: None }
    }

    /// Starts it; says nothing about whether it is ready.
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let Program { name, path, arguments, environment, run_as, kill_when_dropped } =
            &self.program;
        ensure!(self.child.is_none(), "{name} runs already");
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(path);
        command.args(arguments).envs(environment.iter().cloned()).current_dir("/");
        // A role of ours ends when its standard input does, so none outlives a story that was killed.
        command.env("HOLDFAST_EXIT_WITH_PARENT", "1").stdin(Stdio::piped());
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        command.kill_on_drop(*kill_when_dropped);
        if let Some((user, group)) = run_as {
            command.uid(*user).gid(*group);
        }
        self.child = Some(command.spawn().with_context(|| format!("starting {name}"))?);
        Ok(())
    }

    /// Sets a variable for its next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.program.environment.push((name.to_owned(), value.to_owned()));
    }

    /// From its next start on it runs as another user and group, from another copy of its program.
    pub fn run_as(&mut self, user: (u32, u32), path: PathBuf) {
        self.program.run_as = Some(user);
        self.program.path = path;
    }

    /// Its process id.
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> anyhow::Result<Pid> {
        let id = self.child.as_ref().and_then(Child::id);
        let id = id.with_context(|| format!("{} does not run", self.program.name))?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    /// Sends a signal.
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("{signal} to {}", self.program.name))
    }

    /// Whether all of it stands still, by SIGSTOP. On a busy machine that is a while after the signal: one thread takes it, and the others
    /// run until that one is run.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let Ok(pid) = self.pid() else { return false };
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
        })
    }

    /// Fails, with the end of its log, unless it runs.
    /// # Errors
    /// It does not run.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { bail!("{} was not started", self.program.name) };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!(self.complaint(&format!("ended by itself ({status})")));
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    /// # Errors
    /// It had ended before.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.check()?;
        let mut child = self.child.take().expect("it runs");
        child.kill().await.with_context(|| format!("killing {}", self.program.name))
    }

    /// Waits for its end.
    /// # Errors
    /// It still runs after `within`.
    pub async fn ended(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            bail!("{} was not started", self.program.name)
        };
        // Waiting closes it, which a role of ours takes for the end of its parent.
        let stdin = child.stdin.take();
        let waited = timeout(within, child.wait()).await;
        child.stdin = stdin;
        match waited {
            Ok(status) => Ok(status?),
            Err(_) => {
                self.child = Some(child);
                bail!(self.complaint(&format!("still runs after {} s", within.as_secs())))
            }
        }
    }

    /// Sends a signal and waits for the end.
    /// # Errors
    /// As [`Self::signal`] and [`Self::ended`].
    pub async fn stop(&mut self, signal: Signal, within: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(signal)?;
        self.ended(within).await
    }

    /// Memory that it occupies, bytes.
    /// # Errors
    /// It does not run.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 =
            line.context("no VmRSS")?.trim().trim_end_matches("kB").trim_end().parse()?;
        Ok(kib * 1024)
    }

    /// All that it has written so far, over all its lives.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// A sentence with the end of its log.
    #[must_use]
    pub fn complaint(&self, what: &str) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
        format!("{} {what}. The end of its log:\n    {tail}", self.program.name)
    }
}
