//! Bar (c): one PostgreSQL doing the writes of a coordinator that keeps its transactions in a database, as DTM does for a Saga.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Mutex, mpsc};
use tokio_postgres::{Client, Statement};

use super::load::{self, Sample, Shape};
use crate::demo::{
    ports,
    postgres::{self, DATABASE, Installation, Server},
    scratch::POSTGRES,
};

/// Clients beyond these take turns on the connections, which serves PostgreSQL better than a process each.
const CONNECTIONS_MAX: usize = 100;
/// Connections that are opened at the same time.
const OPENED_AT_ONCE: usize = 8;

/// What initdb's defaults and the demo's settings leave too small for this load.
pub(crate) const SETTINGS: &str = "
max_connections = 220
max_prepared_transactions = 220
shared_buffers = '128MB'
";

const TABLES: &str = "
    CREATE TABLE global (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        gid varchar(128) NOT NULL UNIQUE,
        kind varchar(45) NOT NULL,
        status varchar(45) NOT NULL,
        owner varchar(128) NOT NULL DEFAULT '',
        payload text NOT NULL,
        next_look_s bigint NOT NULL DEFAULT 10,
        next_look_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz
    );
    CREATE INDEX global_owner ON global (owner);
    CREATE INDEX global_due ON global (status, next_look_at);
    CREATE TABLE branch (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        gid varchar(128) NOT NULL,
        url varchar(1024) NOT NULL,
        payload bytea NOT NULL,
        branch varchar(128) NOT NULL,
        op varchar(45) NOT NULL,
        status varchar(45) NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz,
        UNIQUE (gid, branch, op)
    )";

const INSERT_GLOBAL: &str = "
    INSERT INTO global (gid, kind, status, payload, next_look_at)
    VALUES ($1, 'saga', 'submitted', $2, now() + interval '10 s')";
const INSERT_BRANCHES: &str = "
    INSERT INTO branch (gid, url, payload, branch, op, status)
    SELECT $1, 'http://127.0.0.1:8080/' || op, $2, branch, op, 'prepared'
    FROM (VALUES ('01', 'compensate'), ('01', 'action'), ('02', 'compensate'), ('02', 'action')) AS b (branch, op)";
const LOCK_GLOBAL: &str =
    "SELECT id FROM global WHERE gid = $1 AND status = 'submitted' FOR UPDATE";
const UPSERT_BRANCH: &str = "
    INSERT INTO branch (gid, url, payload, branch, op, status)
    VALUES ($1, 'http://127.0.0.1:8080/action', $2, $3, 'action', 'succeed')
    ON CONFLICT (gid, branch, op) DO UPDATE SET status = 'succeed', updated_at = now(), finished_at = now()";
const FINISH_GLOBAL: &str = "
    UPDATE global SET status = 'succeed', updated_at = now(), finished_at = now()
    WHERE gid = $1 AND status = 'submitted'";

/// The server, and connections to it with everything prepared.
pub(crate) struct DatabaseCoordinator {
    server: Server,
    desk: Desk,
}

/// Where clients take a connection and give it back.
#[derive(Clone)]
struct Desk {
    free: Arc<Mutex<mpsc::Receiver<Connection>>>,
    give_back: mpsc::Sender<Connection>,
    next: Arc<AtomicU64>,
}

struct Connection {
    client: Client,
    insert_global: Statement,
    insert_branches: Statement,
    lock_global: Statement,
    upsert_branch: Statement,
    finish_global: Statement,
}

impl std::fmt::Debug for DatabaseCoordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseCoordinator").finish_non_exhaustive()
    }
}

/// Starts so many servers below `folder`, each with an empty database.
pub(crate) async fn start_servers(folder: &Path, count: usize) -> anyhow::Result<Vec<Server>> {
    let data = folder.join(POSTGRES);
    std::fs::create_dir(&data)?;
    let template = Installation::find()?.make_template(&data, &postgres::new_password()).await?;
    let settings = data.join("template/postgresql.conf");
    let text = std::fs::read_to_string(&settings).context("the settings of PostgreSQL")?;
    std::fs::write(&settings, text + SETTINGS)?;
    let mut servers = Vec::with_capacity(count);
    for (number, port) in (1..).zip(ports::free(count)?) {
        servers.push(template.start(&format!("bar-{number}"), port, folder).await?);
    }
    Ok(servers)
}

impl DatabaseCoordinator {
    /// Starts the server below `folder` and opens connections for so many clients.
    pub(crate) async fn start(folder: &Path, clients: u32) -> anyhow::Result<Self> {
        let server = start_servers(folder, 1).await?.remove(0);
        server.connect(DATABASE).await?.batch_execute(TABLES).await?;
        let connections = CONNECTIONS_MAX.min(clients as usize);
        let (give_back, free) = mpsc::channel(connections);
        let opened: Vec<Connection> = stream::iter(0..connections)
            .map(|_| Connection::open(&server))
            .buffer_unordered(OPENED_AT_ONCE)
            .try_collect()
            .await?;
        for connection in opened {
            give_back.try_send(connection).ok().context("there is room for each")?;
        }
        let (free, next) = (Arc::new(Mutex::new(free)), Arc::new(AtomicU64::new(0)));
        Ok(Self { server, desk: Desk { free, give_back, next } })
    }

    /// So many clients, each with one Saga after the other.
    pub(crate) async fn run(&mut self, shape: Shape, bytes: usize) -> anyhow::Result<Sample> {
        self.server.check()?;
        let desk = self.desk.clone();
        let payload = Arc::new("x".repeat(bytes));
        let ask = move |_| {
            let (desk, payload) = (desk.clone(), Arc::clone(&payload));
            async move { desk.saga(&payload).await }
        };
        Ok(load::run(shape, load::without_meters, ask).await?.0)
    }
}

impl Desk {
    async fn saga(&self, payload: &str) -> bool {
        let gid = format!("bar-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let Some(connection) = self.free.lock().await.recv().await else { return false };
        let done = connection.saga(&gid, payload).await;
        // There is room: it was taken from there.
        let _ = self.give_back.try_send(connection);
        done.is_ok()
    }
}

impl Connection {
    async fn open(server: &Server) -> anyhow::Result<Self> {
        let client = server.connect(DATABASE).await?;
        Ok(Self {
            insert_global: client.prepare(INSERT_GLOBAL).await?,
            insert_branches: client.prepare(INSERT_BRANCHES).await?,
            lock_global: client.prepare(LOCK_GLOBAL).await?,
            upsert_branch: client.prepare(UPSERT_BRANCH).await?,
            finish_global: client.prepare(FINISH_GLOBAL).await?,
            client,
        })
    }

    async fn saga(&self, gid: &str, payload: &str) -> Result<(), tokio_postgres::Error> {
        let client = &self.client;
        let bytes = payload.as_bytes();
        client.batch_execute("BEGIN").await?;
        client.execute(&self.insert_global, &[&gid, &payload]).await?;
        client.execute(&self.insert_branches, &[&gid, &bytes]).await?;
        client.batch_execute("COMMIT").await?;
        for branch in ["01", "02"] {
            client.batch_execute("BEGIN").await?;
            client.query(&self.lock_global, &[&gid]).await?;
            client.execute(&self.upsert_branch, &[&gid, &bytes, &branch]).await?;
            client.batch_execute("COMMIT").await?;
        }
        client.execute(&self.finish_global, &[&gid]).await?;
        Ok(())
    }
}
