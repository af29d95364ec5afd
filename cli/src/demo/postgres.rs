//! PostgreSQL servers of the demo's own: found on this machine, made, started, crashed and stopped, with full durability.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User};
use rand::Rng;
use tokio::time::Instant;

use super::processes::{Recipe, RunAs, Supervised, plain_command};

/// The database that holds a shard's accounts, and its owner.
pub(crate) const DATABASE: &str = "bank";
/// The superuser of the demo's servers.
pub(crate) const USER: &str = "holdfast";

/// From start to the first accepted connection, crash recovery included.
const START_MAX: Duration = Duration::from_secs(60);
/// For an orderly stop.
const STOP_MAX: Duration = Duration::from_secs(20);
/// The kernel's limit for a Unix socket's path is 107 bytes; PostgreSQL adds a name of up to 20.
const SOCKET_FOLDER_BYTES_MAX: usize = 87;

/// Written behind the settings that initdb chose. Durability is PostgreSQL's default and stated all the same, so that
/// nobody has to wonder.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 40
max_prepared_transactions = 40
shared_buffers = '64MB'
fsync = on
synchronous_commit = on
full_page_writes = on
max_wal_size = '1GB'
log_min_messages = warning
";

/// The server programs of one PostgreSQL installation, and the user they may run as.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    programs: PathBuf,
    run_as: Option<RunAs>,
}

impl Installation {
    /// Looks in PATH, in Debian's folders (newest version first) and where `pg_config` says.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let programs = program_folders().into_iter().find(|folder| has_programs(folder)).context(
            "PostgreSQL's server programs (initdb, postgres) were found neither in PATH, nor in \
             /usr/lib/postgresql/*/bin, nor by pg_config. Install them with `make deps`, or on Debian with \
             `apt-get install postgresql`",
        )?;
        Ok(Self { programs, run_as: unprivileged_user()? })
    }

    /// Makes the data folder that servers are copied from, below `folder`, which must be empty. The servers' superuser
    /// gets `password`.
    pub(crate) async fn make_template(
        &self,
        folder: &Path,
        password: &str,
    ) -> anyhow::Result<Template> {
        ensure!(
            folder.as_os_str().len() <= SOCKET_FOLDER_BYTES_MAX - 8,
            "the folder {} has too long a name for a Unix socket; set TMPDIR to a shorter one",
            folder.display()
        );
        self.hand_over(folder)?;
        let password_file = folder.join("password");
        fs::write(&password_file, password)?;
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600))?;
        self.hand_over(&password_file)?;
        let data = folder.join("template");
        let mut initdb = plain_command(&self.programs.join("initdb"), self.run_as.as_ref());
        // Not synced: nothing has been promised yet. The servers that start on copies sync all they write.
        initdb.args([
            "--no-sync",
            "--auth=scram-sha-256",
            "--locale=C",
            "--encoding=UTF8",
            "-U",
            USER,
        ]);
        initdb.arg("--pwfile").arg(&password_file).arg("-D").arg(&data);
        let made = initdb.output().await.context("starting initdb")?;
        fs::remove_file(&password_file)?;
        ensure!(
            made.status.success(),
            "initdb failed ({}): {}",
            made.status,
            String::from_utf8_lossy(&made.stderr).trim()
        );
        let settings = data.join("postgresql.conf");
        let text = fs::read_to_string(&settings)?;
        fs::write(&settings, text + SETTINGS)?;
        Ok(Template {
            installation: self.clone(),
            folder: folder.to_path_buf(),
            data,
            password: password.to_owned(),
        })
    }

    /// A command that tells the version.
    pub(crate) fn version(&self) -> std::process::Command {
        let mut command = std::process::Command::new(self.programs.join("postgres"));
        command.arg("--version");
        command
    }

    /// How a person starts a kept server again.
    pub(crate) fn start_command(&self, server: &Server) -> String {
        let data = server.data.display();
        let start =
            format!("{}/pg_ctl -D {data} -o '-p {}' start", self.programs.display(), server.port);
        match &self.run_as {
            Some(user) => format!("su {} -s /bin/sh -c \"{start}\"", user.name),
            None => start,
        }
    }

    /// The user that servers run as, if it is not ours.
    pub(crate) fn run_as(&self) -> Option<&RunAs> {
        self.run_as.as_ref()
    }

    /// Gives a file or folder to that user.
    pub(crate) fn hand_over(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(user) = &self.run_as {
            nix::unistd::chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
                .with_context(|| format!("giving {} to user {}", path.display(), user.name))?;
        }
        Ok(())
    }
}

/// A data folder on which no server ever ran, so that copies of it are whole.
#[derive(Debug)]
pub(crate) struct Template {
    installation: Installation,
    folder: PathBuf,
    data: PathBuf,
    password: String,
}

impl Template {
    /// A server on a copy, listening at `port` on the loopback address, with an empty database; ready when this
    /// returns. Its log goes below `logs`.
    pub(crate) async fn start(&self, name: &str, port: u16, logs: &Path) -> anyhow::Result<Server> {
        let data = self.folder.join(name);
        let mut copy = plain_command(Path::new("cp"), self.installation.run_as.as_ref());
        let copied =
            copy.arg("-a").arg(&self.data).arg(&data).output().await.context("starting cp")?;
        ensure!(
            copied.status.success(),
            "copying {} failed: {}",
            self.data.display(),
            String::from_utf8_lossy(&copied.stderr).trim()
        );
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).context("the temporary folder is not UTF-8")
        };
        let recipe = Recipe {
            name: format!("PostgreSQL {name}"),
            program: self.installation.programs.join("postgres"),
            arguments: [
                "-D",
                &text(&data)?,
                "-p",
                &port.to_string(),
                "-c",
                &format!("unix_socket_directories={}", text(&data)?),
            ]
            .map(Into::into)
            .to_vec(),
            environment: Vec::new(),
            log: logs.join(format!("{name}.log")),
            run_as: self.installation.run_as.clone(),
            kill_when_dropped: false,
        };
        let mut server = Server {
            process: Supervised::new(recipe),
            data,
            port,
            password: self.password.clone(),
        };
        server.start().await?;
        let client = server.connect("postgres").await?;
        client
            .batch_execute(&format!("CREATE DATABASE {DATABASE}"))
            .await
            .context("creating the database")?;
        Ok(server)
    }
}

/// One PostgreSQL server.
#[derive(Debug)]
pub(crate) struct Server {
    process: Supervised,
    data: PathBuf,
    port: u16,
    password: String,
}

impl Server {
    /// The process id of the postmaster, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// For messages.
    pub(crate) fn name(&self) -> &str {
        self.process.name()
    }

    /// The port on the loopback address.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A connection string for the bank's database. It holds the password.
    pub(crate) fn connection_string(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user={USER} password={} dbname={DATABASE} connect_timeout=5",
            self.port, self.password
        )
    }

    /// Starts it and waits until it takes connections.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        let until = Instant::now() + START_MAX;
        loop {
            self.process.check()?;
            match self.connect("postgres").await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until => {
                    return Err(error.context(self.process.complaint("takes no connections")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// How to connect to that database of this server.
    pub(crate) fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user(USER)
            .password(&self.password)
            .dbname(database);
        config.connect_timeout(Duration::from_secs(5)).application_name("holdfast-demo");
        config
    }

    /// A connection; it ends when the returned client is dropped.
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<tokio_postgres::Client> {
        let connected = connect(&self.config(database)).await;
        connected.with_context(|| {
            format!("connecting to {} at 127.0.0.1:{}", self.process.name(), self.port)
        })
    }

    /// Fails, with the end of its log, if it ended without being asked to.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.process.check()
    }

    /// What `pg_ctl stop -m immediate` does: every backend drops dead, nothing is written, recovery at the next start.
    pub(crate) async fn crash(&mut self) -> anyhow::Result<()> {
        self.process.check()?;
        self.process.stop(Signal::SIGQUIT, STOP_MAX).await.map(drop)
    }

    /// What `pg_ctl stop -m fast` does.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.process.stop(Signal::SIGINT, STOP_MAX).await.map(drop)
    }
}

/// A connection; it ends when the returned client is dropped.
pub(crate) async fn connect(
    config: &tokio_postgres::Config,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to PostgreSQL ended");
        }
    });
    Ok(client)
}

/// A password nobody needs to remember: 32 letters and digits.
pub(crate) fn new_password() -> String {
    let mut rng = rand::rng();
    (0..32).map(|_| char::from(rng.sample(rand::distr::Alphanumeric))).collect()
}

fn has_programs(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
}

fn program_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    folders.extend(versions.into_iter().rev().map(|(_, folder)| folder));
    let told = std::process::Command::new("pg_config").arg("--bindir").output();
    if let Ok(told) = told
        && let Ok(folder) = String::from_utf8(told.stdout)
    {
        folders.push(PathBuf::from(folder.trim()));
    }
    folders
}

/// PostgreSQL refuses to run as root, so root needs somebody else to run it.
fn unprivileged_user() -> anyhow::Result<Option<RunAs>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) =
            User::from_name(name).with_context(|| format!("looking up the user {name}"))?
        {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            return Ok(Some(RunAs { name: name.to_owned(), uid, gid }));
        }
    }
    bail!(
        "PostgreSQL does not run as root, and this machine knows neither a user postgres nor nobody. Run the demo as \
         another user, or create the user postgres"
    )
}

#[cfg(test)]
mod tests {
    use super::super::scratch;
    use super::*;

    #[tokio::test]
    async fn a_server_keeps_what_was_committed_through_a_crash() {
        let folder = scratch::tests::folder();
        let postgres = folder.path().join(scratch::POSTGRES);
        fs::create_dir(&postgres).unwrap();
        let installation = Installation::find().unwrap();
        let template = installation.make_template(&postgres, &new_password()).await.unwrap();
        let port = super::super::ports::free(1).unwrap()[0];
        let mut server = template.start("pg-1", port, folder.path()).await.unwrap();

        let client = server.connect(DATABASE).await.unwrap();
        client
            .batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)")
            .await
            .unwrap();
        let durable = client.query_one("SHOW fsync", &[]).await.unwrap();
        assert_eq!(durable.get::<_, String>(0), "on");

        server.crash().await.unwrap();
        assert!(client.query("SELECT 1", &[]).await.is_err());
        assert!(server.connect(DATABASE).await.is_err());
        server.start().await.unwrap();
        let client = server.connect(DATABASE).await.unwrap();
        assert_eq!(client.query_one("SELECT n FROM kept", &[]).await.unwrap().get::<_, i32>(0), 42);
        server.stop().await.unwrap();
        server.check().unwrap();
        folder.clean_up().unwrap();
    }

    #[tokio::test]
    async fn a_server_left_running_is_stopped_by_the_cleaner() {
        let folder = scratch::tests::folder();
        let postgres = folder.path().join(scratch::POSTGRES);
        fs::create_dir(&postgres).unwrap();
        let template =
            Installation::find().unwrap().make_template(&postgres, &new_password()).await.unwrap();
        let port = super::super::ports::free(1).unwrap()[0];
        let mut server = template.start("pg-1", port, folder.path()).await.unwrap();
        let path = folder.path().to_path_buf();
        // As if the demo had been killed: the server still runs when the pipe closes.
        tokio::task::spawn_blocking(move || folder.clean_up()).await.unwrap().unwrap();
        assert!(!path.exists());
        let until = Instant::now() + Duration::from_secs(10);
        while server.check().is_ok() {
            assert!(Instant::now() < until, "the server survived its folder");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
