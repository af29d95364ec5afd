//! Bar (f): the same transfer on two databases with `PREPARE TRANSACTION`, driven by a client that keeps no log of its own.
//!
//! That is less than what a coordinator promises: when this client dies between the phases, nobody knows what to do with what
//! is prepared. It is what two-phase commit in PostgreSQL can do at best.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::future::try_join;
use tokio::sync::Mutex;
use tokio_postgres::{Client, Error, Statement};

use super::{
    load::{self, Shape},
    transfer::{Cost, Payments, Side},
};
use crate::demo::postgres::{DATABASE, Server};

const MOVE: &str = "
    UPDATE bank.account SET balance_minor = balance_minor + $2
    WHERE id = $1 AND state = 'open' AND balance_minor - held_out_minor + $2 >= 0";
const JOURNAL: &str = "
    INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
    VALUES ($1, $2, $3, 'action', $4, $5, 0, 0)";

/// Two servers, each with all accounts, and a connection to each for a client.
#[derive(Debug)]
pub(crate) struct TwoDatabases {
    servers: Vec<Server>,
    connections: Arc<Vec<Mutex<[Connection; 2]>>>,
    next: Arc<AtomicU64>,
}

struct Connection {
    client: Client,
    change: Statement,
    journal: Statement,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl TwoDatabases {
    /// Both servers have the bank's tables and all accounts.
    pub(crate) async fn connect(servers: [Server; 2], clients: u32) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..clients {
            let both =
                try_join(Connection::open(&servers[0]), Connection::open(&servers[1])).await?;
            connections.push(Mutex::new(both.into()));
        }
        Ok(Self {
            servers: servers.into(),
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
                let both = connections[client as usize].lock().await;
                transfer(&both, &from, &to, &format!("f-{number}")).await.unwrap_or(false)
            }
        };
        let cost = Cost::of_servers(&self.servers)?;
        let (sample, before, after) = load::run(shape, async || cost.read().await, ask).await?;
        Ok(Side { sample, cost: after.since(&before, sample.between_readings) })
    }
}

impl Connection {
    async fn open(server: &Server) -> anyhow::Result<Self> {
        let client = server.connect(DATABASE).await?;
        let change = client.prepare(MOVE).await?;
        let journal = client.prepare(JOURNAL).await?;
        Ok(Self { client, change, journal })
    }

    async fn leg(&self, account: &str, gid: &str, branch: i32, minor: i64) -> Result<bool, Error> {
        let kind = if minor < 0 { "debit" } else { "credit" };
        self.client.batch_execute("BEGIN").await?;
        let moved = self.client.execute(&self.change, &[&account, &minor]).await?;
        self.client.execute(&self.journal, &[&account, &gid, &branch, &kind, &minor]).await?;
        Ok(moved == 1)
    }

    async fn end(&self, verb: &str, gid: &str) -> Result<(), Error> {
        self.client.batch_execute(&format!("{verb} '{gid}'")).await
    }
}

/// The payer is on the first database and the payee on the second: locks are taken in this order by all, so that no two
/// transfers wait for each other in a circle that neither database can see.
async fn transfer(
    [first, second]: &[Connection; 2],
    from: &str,
    to: &str,
    gid: &str,
) -> Result<bool, Error> {
    let minor = 1;
    let moved = first.leg(from, gid, 1, -minor).await? && second.leg(to, gid, 2, minor).await?;
    if !moved {
        for one in [first, second] {
            one.client.batch_execute("ROLLBACK").await?;
        }
        return Ok(false);
    }
    try_join(first.end("PREPARE TRANSACTION", gid), second.end("PREPARE TRANSACTION", gid)).await?;
    try_join(first.end("COMMIT PREPARED", gid), second.end("COMMIT PREPARED", gid)).await?;
    Ok(true)
}
