//! The stage: one PostgreSQL with a database for each shard and one for the whole, a router in front of the shards, and coordinators that
//! decide about what is written to several of them.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use holdfast_shard_router::{
    Router, RouterConfig,
    config::{Authentication, CoordinatorConfig, Endpoint, Limits, SourceConfig},
};
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::CancellationToken;

use super::{
    SHARDS,
    world::{OWNER, SHARDED, World},
};
use crate::{Cluster, Folder, Postgres, SOON, until};

/// The database that holds everything.
const WHOLE: &str = "whole";

/// For a decision, on a machine that is busy with other things.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);
/// Nothing here is left behind for another router to find.
const ORPHAN_AGE: Duration = Duration::from_secs(600);

/// Databases, and connections to them beside the router.
pub(super) struct Stage {
    cluster: Cluster,
    server: Postgres,
    folder: Folder,
    whole: Client,
    shards: Vec<Client>,
}

/// A router that runs.
pub(super) struct Running {
    port: u16,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Stops it and waits for its end.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.ended.await?
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("holdfast").dbname("any");
        // Another session may look at once, as it may in PostgreSQL.
        config.options("-c holdfast.read_own_writes=all");
        let (client, connection) =
            config.connect(NoTls).await.context("connecting to the router")?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Stage {
    pub(super) async fn set() -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        let cluster = Cluster::start(0).await?;
        let server = Postgres::start(folder.path()).await?;
        server.create(WHOLE).await?;
        let whole = server.connect(WHOLE).await?;
        let mut shards = Vec::new();
        for shard in 0..SHARDS {
            server.create(&format!("s{shard}")).await?;
            shards.push(server.connect(&format!("s{shard}")).await?);
        }
        // Nothing here outlives the run.
        for setting in ["fsync = off", "synchronous_commit = off"] {
            whole.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await?;
        }
        whole.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(Self { cluster, server, folder, whole, shards })
    }

    /// A connection to the single database.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        self.server.connect(WHOLE).await
    }

    /// Waits until nothing is under way on any database: what a client has left is rolled back behind it.
    pub(super) async fn quiet(&self) -> anyhow::Result<()> {
        let sql = "SELECT count(*) FROM pg_stat_activity
             WHERE xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        until("nothing is under way", SOON, async || {
            let row = self.whole.query_one(sql, &[]).await.ok()?;
            (row.get::<_, i64>(0) == 0).then_some(())
        })
        .await
    }

    /// Makes a world's tables, in place of those of the one before.
    pub(super) async fn make(&self, world: &World) -> anyhow::Result<()> {
        for client in std::iter::once(&self.whole).chain(&self.shards) {
            let quiet = "SET client_min_messages = error; DROP SCHEMA IF EXISTS public, holdfast CASCADE; CREATE SCHEMA public;";
            client.batch_execute(&format!("{quiet}\n{}", world.schema())).await?;
        }
        self.whole.batch_execute(&world.constraint()).await?;
        for client in &self.shards {
            client.batch_execute(&world.rules.lookup_sql()).await?;
        }
        Ok(())
    }

    /// A router by a world's rules; only one that `decides` knows the coordinators.
    pub(super) async fn router(&self, world: &World, decides: bool) -> anyhow::Result<Running> {
        let coordinator = decides.then(|| CoordinatorConfig {
            addresses: self.cluster.addresses(),
            credentials: None,
            decision_timeout: DECISION_TIMEOUT,
            orphan_age: ORPHAN_AGE,
            rules_age_max: DECISION_TIMEOUT * 10,
        });
        let rules = self.folder.write("rules.toml", world.rules_text())?;
        let address = Endpoint::Tcp(format!("127.0.0.1:{}", self.server.port()).into());
        let source = |shard: usize| SourceConfig {
            name: format!("p{shard}").into(),
            addresses: vec![address.clone()],
            database: Some(format!("s{shard}")),
            user: Some("holdfast".to_owned()),
            password: None,
            weak_authentication: false,
            tls: None,
        };
        let router = Router::start(RouterConfig {
            coordinator,
            listen: "127.0.0.1:0".parse().expect("an address"),
            workers: 2,
            rules: Some(rules),
            sources: (0..SHARDS).map(source).collect(),
            database: None,
            authentication: Authentication::TrustLoopback,
            tls: None,
            require_tls: false,
            secret: vec![7; 32],
            limits: Limits { pool_size: 4, ..Limits::default() },
        })
        .await?;
        let (port, stop) = (router.address().port(), CancellationToken::new());
        let token = stop.clone();
        let ended = tokio::spawn(async move { Ok(router.serve(token).await?) });
        Ok(Running { port, stop, ended })
    }

    /// Compares all rows with those of the single database, and looks whether each lies where its key says.
    pub(super) async fn compare(&self, world: &World) -> anyhow::Result<Option<String>> {
        for (table, key) in SHARDED {
            let mut parts = Vec::new();
            for (shard, client) in self.shards.iter().enumerate() {
                parts.extend(rows(client, table).await?);
                if let Some(stray) = stray(world, client, shard, table, key).await? {
                    return Ok(Some(stray));
                }
            }
            parts.sort();
            let whole = rows(&self.whole, table).await?;
            if parts != whole {
                let (parts, whole) = (parts.len(), whole.len());
                return Ok(Some(format!("{table}: {parts} rows on the shards, {whole} on one")));
            }
        }
        let whole = rows(&self.whole, "r").await?;
        for client in &self.shards {
            if rows(client, "r").await? != whole {
                return Ok(Some("r: a copy differs".to_owned()));
            }
        }
        let lone = self.shards.get(2).ok_or_else(|| anyhow!("there is a third shard"))?;
        if rows(lone, "lone").await? != rows(&self.whole, "lone").await? {
            return Ok(Some("lone differs".to_owned()));
        }
        if world.owns { self.compare_entries(world).await } else { Ok(None) }
    }

    /// Compares the entries of the lookup with the values of the single database, and looks whether each lies where its value says.
    async fn compare_entries(&self, world: &World) -> anyhow::Result<Option<String>> {
        let (table, lookup) = OWNER;
        let mut entries = Vec::new();
        for (shard, client) in self.shards.iter().enumerate() {
            for row in client.query("SELECT value, owner FROM holdfast.lookup", &[]).await? {
                let (value, owner): (String, String) = (row.get(0), row.get(1));
                let place = world.rules.entry_place(lookup, &value);
                if place.is_none_or(|place| usize::from(place.source.0) != shard) {
                    return Ok(Some(format!("the entry of {value:?} lies on p{shard}")));
                }
                entries.push((value, owner));
            }
            let notes = client.query_one("SELECT count(*) FROM holdfast.lookup_note", &[]).await?;
            if notes.get::<_, i64>(0) != 0 {
                return Ok(Some(format!("notes are left on p{shard}")));
            }
        }
        let key = SHARDED.iter().find(|(name, _)| *name == table).expect("it is sharded").1;
        let sql = format!("SELECT p, to_jsonb(x)->>'{key}' FROM {table} x WHERE p IS NOT NULL");
        let owned = self.whole.query(&sql, &[]).await?;
        let mut owned: Vec<_> = owned.iter().map(|row| (row.get(0), row.get(1))).collect();
        entries.sort();
        owned.sort();
        let differ = entries != owned;
        Ok(differ.then(|| format!("the entries are {entries:?}, and owned are {owned:?}")))
    }
}

/// A row that lies on another shard than its key's.
async fn stray(
    world: &World,
    client: &Client,
    shard: usize,
    table: &str,
    key: &str,
) -> anyhow::Result<Option<String>> {
    // PostgreSQL drops the blanks of a char(n) where it becomes a text.
    let keys = client.query(&format!("SELECT DISTINCT {key}::text FROM {table}"), &[]).await?;
    for row in keys {
        let key: String = row.get(0);
        let located = world.rules.locate("g", &key).with_context(|| format!("{table}: {key:?}"))?;
        let (meant, here) = (located.source.as_str(), format!("p{shard}"));
        if meant != here {
            return Ok(Some(format!("{table}: key {key:?} lies on {here} and belongs on {meant}")));
        }
    }
    Ok(None)
}

/// All rows of a table as text, sorted.
async fn rows(client: &Client, table: &str) -> anyhow::Result<Vec<String>> {
    let rows = client.query(&format!("SELECT x::text FROM {table} x"), &[]).await?;
    let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    rows.sort();
    Ok(rows)
}
