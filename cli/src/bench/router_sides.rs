//! What stands between pgbench and PostgreSQL in the router's bench: nothing, pgbouncer, the router without rules, the router with rules.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use holdfast_route::Topology;
use nix::sys::signal::Signal;
use tokio::{net::TcpStream, time::Instant};

use super::{bar_postgres::SETTINGS, router_pgbench};
use crate::demo::{
    ports,
    postgres::{self, DATABASE, Installation, Server, USER},
    processes::{Recipe, Supervised},
    scratch::POSTGRES,
};

/// For a pooler to listen.
const READY_MAX: Duration = Duration::from_secs(30);
/// For a pooler to end by itself.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Branches of pgbench's bank, over both shards.
pub(crate) const BRANCHES: u32 = 10;

/// Everything that was started.
pub(crate) struct Sides {
    pub(crate) password: String,
    /// The first has all rows; the other two divide them by branch.
    pub(crate) servers: Vec<Server>,
    pub(crate) pgbouncer: Option<Pooler>,
    /// pgbouncer with a server for each client: statements by name need it in this version.
    pub(crate) pgbouncer_session: Option<Pooler>,
    pub(crate) router: Pooler,
    pub(crate) sharded: Pooler,
    /// Of the router that divides.
    pub(crate) rules: Arc<Topology>,
    pub(crate) select: PathBuf,
    pub(crate) tpc_b: PathBuf,
}

/// A process that listens for PostgreSQL clients.
pub(crate) struct Pooler {
    process: Supervised,
    pub(crate) port: u16,
}

impl Pooler {
    async fn start(recipe: Recipe, port: u16) -> anyhow::Result<Self> {
        let mut pooler = Self { process: Supervised::new(recipe), port };
        pooler.listen().await?;
        Ok(pooler)
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        self.process.start()?;
        let until = Instant::now() + READY_MAX;
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            self.process.check()?;
            ensure!(Instant::now() < until, self.process.complaint("does not listen"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop(Signal::SIGTERM, STOP_MAX).await?;
        self.listen().await
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid()
    }
}

impl Sides {
    /// Starts servers, fills them, and starts what stands in front of them, each with pools of `pool_size`.
    /// # Errors
    /// Something is not installed or does not start.
    pub(crate) async fn start(folder: &Path, pool_size: u32) -> anyhow::Result<Self> {
        let installation = Installation::find()?;
        let password = postgres::new_password();
        fs::create_dir(folder.join(POSTGRES))?;
        let template = installation.make_template(&folder.join(POSTGRES), &password).await?;
        add_settings(&folder.join(POSTGRES).join("template/postgresql.conf"))?;
        let ports = ports::free(9)?;
        let mut servers = Vec::new();
        for (n, name) in ["all", "shard-1", "shard-2"].iter().enumerate() {
            servers.push(template.start(name, ports[n], folder).await?);
        }
        let rules_file = folder.join("rules.toml");
        let rules_text = rules(&servers[1..]);
        let rules = Topology::parse(&rules_text)
            .map_err(|mistakes| anyhow::anyhow!("the bench's own rules: {mistakes:?}"))?;
        fs::write(&rules_file, rules_text)?;
        fill(&servers, &password, &rules).await?;
        let program = std::env::current_exe().context("finding our own program")?;
        let whole = router_config(&servers[..1], None, ports[3], ports[4], pool_size);
        let router = start_router(folder, &program, "router", &whole, ports[3]).await?;
        let split = router_config(&servers[1..], Some(&rules_file), ports[5], ports[6], pool_size);
        let sharded = start_router(folder, &program, "router-sharded", &split, ports[5]).await?;
        let (mut pgbouncer, mut pgbouncer_session) = (None, None);
        if has_pgbouncer() {
            let start = async |name: &str, mode: &str, port: u16, size: u32| {
                let server = servers[0].port();
                bouncer(folder, &installation, name, mode, port, (server, size), &password).await
            };
            pgbouncer = Some(start("pgbouncer", "transaction", ports[7], pool_size).await?);
            pgbouncer_session = Some(start("pgbouncer-session", "session", ports[8], 64).await?);
        }
        let script = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let file = folder.join(name);
            fs::write(&file, text)?;
            Ok(file)
        };
        let head = format!(
            "\\set aid random(1, 100000 * {BRANCHES})\n\\set bid (:aid - 1) / 100000 + 1\n"
        );
        let select = script(
            "select.sql",
            &format!(
                "{head}SELECT abalance FROM pgbench_accounts WHERE bid = :bid AND aid = :aid;\n"
            ),
        )?;
        let tpc_b = script(
            "tpcb.sql",
            &format!(
                "{head}\\set tid (:bid - 1) * 10 + random(1, 10)\n\\set delta random(-5000, 5000)\nBEGIN;\n\
             UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE bid = :bid AND aid = :aid;\n\
             SELECT abalance FROM pgbench_accounts WHERE bid = :bid AND aid = :aid;\n\
             UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE bid = :bid AND tid = :tid;\n\
             UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;\n\
             INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);\n\
             END;\n"
            ),
        )?;
        let rules = Arc::new(rules);
        Ok(Self {
            password,
            servers,
            pgbouncer,
            pgbouncer_session,
            router,
            sharded,
            rules,
            select,
            tpc_b,
        })
    }
}

impl Sides {
    /// Has every pooler open its server connections anew. Which pages a back end got decides by some percent what it costs, for as long as
    /// it lives; so no side keeps the same ones from round to round.
    /// # Errors
    /// One does not start again.
    pub(crate) async fn renew(&mut self) -> anyhow::Result<()> {
        let bouncers = [&mut self.pgbouncer, &mut self.pgbouncer_session].into_iter().flatten();
        for pooler in bouncers.chain([&mut self.router, &mut self.sharded]) {
            pooler.restart().await?;
            router_pgbench::warm_up(pooler.port, &self.select, &self.password).await?;
        }
        Ok(())
    }

    /// Of a router that divides, and has these coordinators decide.
    pub(crate) fn deciding_config(
        &self,
        folder: &Path,
        coordinators: &[String],
        port: u16,
        http: u16,
    ) -> String {
        let rules = folder.join("rules.toml");
        let config = router_config(&self.servers[1..], Some(&rules), port, http, 64);
        format!("{config}[coordinators]\naddresses = {coordinators:?}\n")
    }
}

fn add_settings(file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(file)?;
    // Behind the others, so that these count: 64 clients of the transfer, each with a server connection to begin with and one to join.
    let more = "max_connections = 400\nmax_prepared_transactions = 400\n";
    Ok(fs::write(file, text + SETTINGS + more)?)
}

/// pgbench's four tables, divided by branch over two sources.
fn rules(shards: &[Server]) -> String {
    let mut text = String::from(
        "[group.branch]\nkey = \"bid\"\ntype = \"integer\"\nfunction = \"crc32c\"\n\
         [[group.branch.slots]]\nfirst = 0\nlast = 511\nshard = \"shard-1\"\n\
         [[group.branch.slots]]\nfirst = 512\nlast = 1023\nshard = \"shard-2\"\n",
    );
    for table in ["accounts", "branches", "tellers", "history"] {
        text += &format!("[table.pgbench_{table}]\ngroup = \"branch\"\n");
    }
    for (n, server) in shards.iter().enumerate() {
        let n = n + 1;
        text += &format!(
            "[shard.shard-{n}]\nsource = \"pg-{n}\"\n[source.pg-{n}]\naddress = \"127.0.0.1:{}\"\n",
            server.port()
        );
    }
    text
}

async fn fill(servers: &[Server], password: &str, rules: &Topology) -> anyhow::Result<()> {
    for (n, server) in servers.iter().enumerate() {
        let mut made = tokio::process::Command::new("pgbench");
        made.args(["-i", "-q", "-s", &BRANCHES.to_string(), "-h", "127.0.0.1", "-U", USER]);
        made.args(["-p", &server.port().to_string(), DATABASE]).env("PGPASSWORD", password);
        let made = made.output().await.context("starting pgbench (Debian: postgresql-contrib)")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        if n == 0 {
            continue;
        }
        let mut others = Vec::new();
        for branch in 1..=BRANCHES {
            let located = rules.locate("branch", &branch.to_string())?;
            if located.source.as_str() != format!("pg-{n}") {
                others.push(i32::try_from(branch)?);
            }
        }
        let client = server.connect(DATABASE).await?;
        for table in ["accounts", "tellers", "branches"] {
            let sql = format!("DELETE FROM pgbench_{table} WHERE bid = ANY($1)");
            client.execute(&sql, &[&others]).await?;
        }
        client.batch_execute("VACUUM FULL ANALYZE").await?;
    }
    Ok(())
}

fn router_config(
    servers: &[Server],
    rules: Option<&Path>,
    port: u16,
    http: u16,
    pool_size: u32,
) -> String {
    let mut text = String::from("[router]\n");
    if let Some(rules) = rules {
        text += &format!("rules = {:?}\n", rules.display().to_string());
    }
    for (n, server) in servers.iter().enumerate() {
        let (n, string) = (n + 1, server.connection_string());
        text += &format!("[[sources.source]]\nname = \"pg-{n}\"\ndatabase = \"{string}\"\n");
    }
    text + &format!(
        "[auth]\nmode = \"trust-loopback\"\n[bind]\npostgres = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n\
         [limits]\npool_size = {pool_size}\n[security]\nmode = \"dev-plaintext\"\n"
    )
}

pub(crate) async fn start_router(
    folder: &Path,
    program: &Path,
    name: &str,
    config: &str,
    port: u16,
) -> anyhow::Result<Pooler> {
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, config)?;
    let recipe = Recipe {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: vec!["router".into(), "--config".into(), file.into()],
        environment: vec![(crate::demo::processes::EXIT_WITH_PARENT.to_owned(), "1".to_owned())],
        log: folder.join(format!("{name}.log")),
        run_as: None,
        kill_when_dropped: true,
    };
    Pooler::start(recipe, port).await
}

fn has_pgbouncer() -> bool {
    pgbouncer_program().is_some()
}

fn pgbouncer_program() -> Option<PathBuf> {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
        .into_iter()
        .map(PathBuf::from)
        .find(|file| file.is_file())
}

async fn bouncer(
    folder: &Path,
    installation: &Installation,
    name: &str,
    mode: &str,
    port: u16,
    (server, pool_size): (u16, u32),
    password: &str,
) -> anyhow::Result<Pooler> {
    // It does not run as root, so its files lie where PostgreSQL's user may read them.
    let folder_of_its = folder.join(POSTGRES);
    let users = folder_of_its.join(format!("{name}-users.txt"));
    fs::write(&users, format!("\"{USER}\" \"{password}\"\n"))?;
    installation.hand_over(&users)?;
    let file = folder_of_its.join(format!("{name}.ini"));
    // By this whoever cleans up behind a bench that was killed finds it.
    let pid_file = folder_of_its.join(format!("{name}.pid"));
    let (users, pid_file) = (users.display(), pid_file.display());
    fs::write(
        &file,
        format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={server} dbname={DATABASE}\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npidfile = {pid_file}\nauth_type = trust\nauth_file = {users}\n\
         pool_mode = {mode}\ndefault_pool_size = {pool_size}\nmax_client_conn = 6000\n\
         ignore_startup_parameters = extra_float_digits\nlog_connections = 0\nlog_disconnections = 0\n"
        ),
    )?;
    installation.hand_over(&file)?;
    let recipe = Recipe {
        name: name.to_owned(),
        program: pgbouncer_program().context("pgbouncer was there a moment ago")?,
        arguments: vec![file.into()],
        environment: Vec::new(),
        log: folder.join(format!("{name}.log")),
        run_as: installation.run_as().cloned(),
        kill_when_dropped: true,
    };
    Pooler::start(recipe, port).await
}
