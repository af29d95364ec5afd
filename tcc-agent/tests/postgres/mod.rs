//! A PostgreSQL of the test's own: real files, fsync on, gone when the test ends.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use deadpool_postgres::{Manager, Pool};
use tokio_postgres::{Client, Config, NoTls};

/// A running PostgreSQL.
pub(crate) struct Postgres {
    programs: PathBuf,
    // Dropped last: the server is stopped before.
    folder: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        let programs = newest_programs();
        let folder = tempfile::Builder::new().prefix("holdfast-pg-").tempdir().unwrap();
        // PostgreSQL refuses to run as root; its own user must be able to enter.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let port = free_port();
        let server = Self { programs, folder, port };
        let data = server.data();
        let data = data.to_str().unwrap();
        server.run(
            "initdb",
            &["-D", data, "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8"],
        );
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = on\n\
             max_connections = 60\nshared_buffers = 32MB\ndeadlock_timeout = 200ms\n",
            server.folder.path().display()
        );
        let conf = server.data().join("postgresql.auto.conf");
        fs::write(&conf, settings).unwrap();
        let log = server.folder.path().join("log");
        server.run("pg_ctl", &["-D", data, "-l", log.to_str().unwrap(), "-w", "-t", "60", "start"]);
        server
    }

    /// Stops at once, as a crash does, and starts again.
    pub(crate) fn crash_and_restart(&self) {
        let data = self.data();
        let data = data.to_str().unwrap();
        self.run("pg_ctl", &["-D", data, "-m", "immediate", "-w", "stop"]);
        let log = self.folder.path().join("log");
        self.run("pg_ctl", &["-D", data, "-l", log.to_str().unwrap(), "-w", "-t", "60", "start"]);
    }

    /// How to connect, as superuser.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        config
    }

    /// The same, by its socket.
    pub(crate) fn socket_config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(self.folder.path()).port(self.port).user("postgres").dbname("postgres");
        config
    }

    /// A connection.
    pub(crate) async fn connect(&self) -> Client {
        let (client, connection) = self.config().connect(NoTls).await.unwrap();
        tokio::spawn(async move {
            let _ended = connection.await;
        });
        client
    }

    /// A pool.
    pub(crate) fn pool(&self, connections: usize) -> Pool {
        Pool::builder(Manager::new(self.config(), NoTls)).max_size(connections).build().unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let output = command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        assert!(output.success(), "{} {arguments:?}: {output}\n{log}", program.display());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.data();
        if data.join("postmaster.pid").exists() {
            self.run("pg_ctl", &["-D", data.to_str().unwrap(), "-m", "immediate", "-w", "stop"]);
        }
    }
}

fn newest_programs() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            let version = folder.file_name()?.to_str()?.parse().ok()?;
            let programs = folder.join("bin");
            programs.join("initdb").exists().then_some((version, programs))
        })
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL is installed below /usr/lib/postgresql").1
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(Path::new("/proc/self")).unwrap().uid() == 0
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `condition` holds, at most 20 s.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
