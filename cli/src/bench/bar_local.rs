//! Bar (e): the same transfer as one local transaction in one database, which is what a bank gives up by having shards.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Context;
use tokio::sync::Mutex;
use tokio_postgres::{Client, Statement};

use super::{
    load::{self, Shape},
    transfer::{Cost, Payments, Side},
};
use crate::demo::postgres::{DATABASE, Server};

/// In the order of their ids, so that two transfers never wait for each other in a circle.
const LOCK: &str = "
    SELECT id FROM bank.account WHERE id = ANY ($1::text[]) ORDER BY id FOR NO KEY UPDATE";
/// The condition is the check that the money is there.
const MOVE: &str = "
    UPDATE bank.account SET balance_minor = balance_minor + $2
    WHERE id = $1 AND state = 'open' AND balance_minor - held_out_minor + $2 >= 0";
const JOURNAL: &str = "
    INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
    VALUES ($1, $3, 1, 'action', 'debit', -$4::bigint, 0, 0), ($2, $3, 1, 'action', 'credit', $4, 0, 0)";

/// One server with all accounts, and a connection a client.
#[derive(Debug)]
pub(crate) struct OneDatabase {
    servers: Vec<Server>,
    connections: Arc<Vec<Mutex<Connection>>>,
    next: Arc<AtomicU64>,
}

struct Connection {
    client: Client,
    lock: Statement,
    change: Statement,
    journal: Statement,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl OneDatabase {
    /// The server has the bank's tables and all accounts.
    pub(crate) async fn connect(server: Server, clients: u32) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..clients {
            let client = server.connect(DATABASE).await?;
            connections.push(Mutex::new(Connection {
                lock: client.prepare(LOCK).await?,
                change: client.prepare(MOVE).await?,
                journal: client.prepare(JOURNAL).await?,
                client,
            }));
        }
        Ok(Self {
            servers: vec![server],
            connections: Arc::new(connections),
            next: Arc::new(AtomicU64::new(0)),
        })
    }

    /// One transfer after the other in every client.
    pub(crate) async fn run(&self, shape: Shape, payments: &Payments) -> anyhow::Result<Side> {
        let (connections, next) = (Arc::clone(&self.connections), Arc::clone(&self.next));
        let payments = payments.clone();
        let ask = move |client: u32| {
            let connections = Arc::clone(&connections);
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (from, to) = payments.accounts(number);
            async move {
                let connection = connections[client as usize].lock().await;
                connection.transfer(&from, &to, &format!("e-{number}")).await.unwrap_or(false)
            }
        };
        let cost = Cost::of_servers(&self.servers)?;
        let (sample, before, after) = load::run(shape, async || cost.read().await, ask).await?;
        Ok(Side { sample, cost: after.since(&before, sample.between_readings) })
    }
}

impl Connection {
    async fn transfer(&self, from: &str, to: &str, gid: &str) -> anyhow::Result<bool> {
        let (client, minor) = (&self.client, 1_i64);
        client.batch_execute("BEGIN").await?;
        client.query(&self.lock, &[&[from, to].as_slice()]).await?;
        let taken = client.execute(&self.change, &[&from, &-minor]).await?;
        let given = client.execute(&self.change, &[&to, &minor]).await?;
        client.execute(&self.journal, &[&from, &to, &gid, &minor]).await?;
        let moved = taken == 1 && given == 1;
        let end = if moved { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(end).await.context("ending the local transaction")?;
        Ok(moved)
    }
}
