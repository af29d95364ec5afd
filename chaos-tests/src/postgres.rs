//! A PostgreSQL server of a story's own, which syncs what it commits, with a database for each shard.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown, geteuid},
};
use tokio::time::sleep;
use tokio_postgres::{Client, Config, NoTls, error::SqlState};

use crate::{
    Process, ports,
    process::Program,
    until::{SOON, until},
};

const USER: &str = "holdfast";
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 120
max_prepared_transactions = 250
shared_buffers = '32MB'
fsync = on
synchronous_commit = on
log_min_messages = warning
";
/// Ends the server at once when standard input ends, which it does when the story is gone, however it went.
const KEEPER: &str = r#""$@" & server=$!; cat >/dev/null; kill -QUIT $server; wait $server"#;
/// For a server to recover: it syncs every file of its own first, on a disk that others keep busy.
const RECOVERED_MAX: Duration = Duration::from_secs(120);
/// For the server to end behind a story.
const END_MAX: Duration = Duration::from_secs(10);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    home: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Postgres {
    /// Makes and starts one below `folder`.
    /// # Errors
    /// PostgreSQL's server programs are not installed (`make deps`), or do not work.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::named("postgres", folder, "").await
    }

    /// The same, under this name, and with its write-ahead log archived in [`Self::archive`].
    /// # Errors
    /// As [`Self::start`].
    pub async fn archiving(name: &str, folder: &Path) -> anyhow::Result<Self> {
        let archive = folder.join(name).join("archive");
        let copy = format!("cp %p {}/%f", archive.display());
        let settings = format!("archive_mode = on\narchive_command = '{copy}'\n");
        Self::named(name, folder, &settings).await
    }

    async fn named(name: &str, folder: &Path, more: &str) -> anyhow::Result<Self> {
        let programs = programs()?;
        let run_as = unprivileged_user()?;
        let home = folder.join(name);
        fs::create_dir(&home)?;
        fs::create_dir(home.join("archive"))?;
        if let Some((user, group)) = run_as {
            for folder in [&home, &home.join("archive")] {
                chown(folder, Some(user.into()), Some(group.into()))?;
            }
        }
        let data = home.join("data");
        let mut initdb = std::process::Command::new(programs.join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--locale=C", "--encoding=UTF8", "-U", USER]);
        initdb.arg("-D").arg(&data).current_dir("/");
        let mut made = tokio::process::Command::from(initdb);
        if let Some((user, group)) = run_as {
            made.uid(user).gid(group);
        }
        let made = made.output().await.context("starting initdb")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let settings = data.join("postgresql.conf");
        fs::write(&settings, fs::read_to_string(&settings)? + SETTINGS + more)?;
        let port = ports::free(1)?[0];
        let program = Self::program(name, &home, &data, port)?;
        let mut server = Self { process: Process::new(program, folder), home, data, port };
        server.process.start()?;
        until("PostgreSQL takes connections", SOON, async || server.connect("postgres").await.ok())
            .await
            .map_err(|error| error.context(server.process.complaint("did not start")))?;
        Ok(server)
    }

    fn program(name: &str, home: &Path, data: &Path, port: u16) -> anyhow::Result<Program> {
        let sockets = format!("unix_socket_directories={}", home.display());
        let mut arguments: Vec<_> = ["-c", KEEPER, "keeper"].map(Into::into).to_vec();
        arguments.extend([programs()?.join("postgres").into(), "-D".into(), data.into()]);
        arguments.extend(["-p".into(), port.to_string().into(), "-c".into(), sockets.into()]);
        Ok(Program {
            name: name.to_owned(),
            path: "/bin/sh".into(),
            arguments,
            environment: Vec::new(),
            run_as: unprivileged_user()?,
            kill_when_dropped: false,
        })
    }

    /// Where the files of its write-ahead log go, if it archives them.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.home.join("archive")
    }

    /// A copy of its data as it runs, by `pg_basebackup`; from there the archive leads to any later point.
    /// # Errors
    /// What that says.
    pub async fn base_backup(&self) -> anyhow::Result<PathBuf> {
        let base = self.home.join("base");
        let mut copy = tokio::process::Command::new(programs()?.join("pg_basebackup"));
        copy.args(["--checkpoint=fast", "--no-sync", "-h", "127.0.0.1", "-U", USER]);
        copy.args(["-p", &self.port.to_string()]).arg("-D").arg(&base).current_dir("/");
        if let Some((user, group)) = unprivileged_user()? {
            copy.uid(user).gid(group);
        }
        let made = copy.output().await.context("starting pg_basebackup")?;
        ensure!(made.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&made.stderr));
        Ok(base)
    }

    /// `kill -9`; then a server at the same port goes on from `base`, by the archive, to the restore point of this name, and is promoted.
    /// # Errors
    /// It does not get there.
    pub async fn recover(&mut self, base: PathBuf, target: &str) -> anyhow::Result<()> {
        self.crash().await?;
        let archive = self.archive();
        let settings = base.join("postgresql.conf");
        let recovery = format!(
            "archive_mode = off\nrestore_command = 'cp {}/%f %p'\nrecovery_target_name = '{target}'\nrecovery_target_action = 'promote'\n",
            archive.display()
        );
        fs::write(&settings, fs::read_to_string(&settings)? + &recovery)?;
        let signal = base.join("recovery.signal");
        fs::write(&signal, "")?;
        if let Some((user, group)) = unprivileged_user()? {
            chown(&signal, Some(user.into()), Some(group.into()))?;
        }
        let name = self.home.file_name().and_then(|name| name.to_str()).context("a name")?;
        let program = Self::program(&format!("{name}-recovered"), &self.home, &base, self.port)?;
        let folder = self.home.parent().context("the story's folder")?;
        self.process = Process::new(program, folder);
        self.data = base;
        self.process.start()?;
        until("PostgreSQL is promoted", RECOVERED_MAX, async || {
            let client = self.connect("postgres").await.ok()?;
            let recovers = client.query_one("SELECT pg_is_in_recovery()", &[]).await.ok()?;
            (!recovers.get::<_, bool>(0)).then_some(())
        })
        .await
        .map_err(|error| error.context(self.process.complaint("did not recover")))
    }

    /// The server and every process of its own. The server comes first.
    /// # Errors
    /// It does not run.
    pub fn pids(&self) -> anyhow::Result<Vec<Pid>> {
        // Its first line is its process id.
        let text = fs::read_to_string(self.data.join("postmaster.pid")).context("it runs")?;
        let server: i32 = text.lines().next().context("its process id")?.parse()?;
        let mut pids = vec![Pid::from_raw(server)];
        pids.extend(children_of(server)?.into_iter().map(Pid::from_raw));
        Ok(pids)
    }

    /// Sends every process of the server a signal: it stands still with SIGSTOP, goes on with SIGCONT.
    /// # Errors
    /// It does not run.
    pub fn signal_all(&self, signal: Signal) -> anyhow::Result<usize> {
        // One that has ended meanwhile needs no signal.
        Ok(self.pids()?.into_iter().filter(|pid| kill(*pid, signal).is_ok()).count())
    }

    /// Takes every connection and, once there is none left, ends those to databases whose names are LIKE `databases`, so that whoever had
    /// them needs new ones; for so long.
    /// # Errors
    /// There is no end of connections.
    pub async fn use_up_connections(&self, databases: &str, held: Duration) -> anyhow::Result<()> {
        let mut taken = vec![self.connect("postgres").await?];
        let mut end = Instant::now() + SOON;
        let mut refused = 0;
        while Instant::now() < end {
            match self.connect("postgres").await {
                Ok(client) => taken.push(client),
                Err(error) => {
                    let code = error.downcast_ref::<tokio_postgres::Error>();
                    let code = code.and_then(tokio_postgres::Error::code);
                    ensure!(code == Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:#}");
                    if refused == 0 {
                        let ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE $1";
                        taken[0].execute(ends, &[&databases]).await?;
                        end = Instant::now() + held;
                    }
                    refused += 1;
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
        ensure!(refused > 0, "{} connections, and there were more", taken.len());
        Ok(())
    }

    /// `kill -9` of the server and all that it started, at once.
    /// # Errors
    /// It does not run, or is not gone soon.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        let pids = self.pids()?;
        self.signal_all(Signal::SIGKILL)?;
        // What the server had just begun, before it died.
        for orphan in self.pids()? {
            let _gone = kill(orphan, Signal::SIGKILL);
        }
        self.process.kill().await?;
        until("PostgreSQL is gone", SOON, async || {
            // One of whose end nobody has heard yet (a zombie) is taken for alive by the next.
            pids.iter().all(|pid| kill(*pid, None).is_err()).then_some(())
        })
        .await
    }

    /// Starts it again behind a crash; it has recovered when this returns.
    /// # Errors
    /// It does not take connections.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        until("PostgreSQL takes connections again", RECOVERED_MAX, async || {
            self.connect("postgres").await.ok()
        })
        .await
        .map_err(|error| error.context(self.process.complaint("did not start again")))?;
        Ok(())
    }

    /// Makes an empty database.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn create(&self, database: &str) -> anyhow::Result<()> {
        let admin = self.connect("postgres").await?;
        Ok(admin.batch_execute(&format!("CREATE DATABASE \"{database}\"")).await?)
    }

    /// The port on the loopback address.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How to connect to a database.
    #[must_use]
    pub fn connection_string(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={USER} dbname={database} connect_timeout=5", self.port)
    }

    /// A connection; it ends when the client is dropped.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn connect(&self, database: &str) -> anyhow::Result<Client> {
        let config: Config = self.connection_string(database).parse()?;
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The folder goes next, so the server must be gone before; its first line is its process id.
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).ok();
        let pid = pid.and_then(|text| text.lines().next()?.parse().ok()).map(Pid::from_raw);
        let end = Instant::now() + END_MAX;
        while let Some(pid) = pid
            && kill(pid, Signal::SIGQUIT).is_ok()
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Processes whose parent is that one.
fn children_of(parent: i32) -> anyhow::Result<Vec<i32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name stands in parentheses and may hold anything; state and parent follow.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
        if fields.and_then(|mut fields| fields.nth(1)?.parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// Where `initdb` and `postgres` are: in PATH, in Debian's folders (newest version first), or where `pg_config` says.
fn programs() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    versions.sort();
    folders.extend(versions.into_iter().rev().map(|(_, folder)| folder));
    if let Ok(told) = std::process::Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&told.stdout).trim()));
    }
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres", "pg_basebackup"].iter().all(|name| folder.join(name).is_file())
    };
    folders.into_iter().find(complete).context(
        "PostgreSQL's server programs (initdb, postgres, pg_basebackup) are not installed; `make deps` installs them",
    )
}

/// PostgreSQL does not run as root.
fn unprivileged_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
        }
    }
    bail!("PostgreSQL does not run as root, and there is no user postgres")
}
