//! What befalls routers and the databases behind them while transactions on two sources go on: a commit that cannot be prepared is refused in
//! plain words, one that stands still ends, and none is ever half there.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{SOON, Sharded, until};
use nix::sys::signal::Signal;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, error::SqlState};

/// One pair of accounts each; half of the clients at each router.
const CLIENTS: usize = 8;
const BALANCE: i64 = 1_000_000;
/// How long each fault lasts.
const HELD: Duration = Duration::from_millis(1_500);
/// Commits that must follow each fault.
const AFTERWARDS: usize = 20;
/// For a client to hear anything of one transfer; then it leaves, and does not know.
const TOLD_MAX: Duration = Duration::from_secs(60);
/// Nobody can tell whether it was committed.
const OPEN: [&str; 3] = ["40003", "08007", "08006"];

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Day {
    PreparedUsedUp,
    ConnectionsUsedUp,
    RouterStopped,
    PostgresStopped,
    LeaderStopped,
}

const ALL: [Day; 5] = [
    Day::PreparedUsedUp,
    Day::ConnectionsUsedUp,
    Day::RouterStopped,
    Day::PostgresStopped,
    Day::LeaderStopped,
];
/// Of every run of the tests.
const SLICE: [Day; 2] = [Day::PreparedUsedUp, Day::RouterStopped];

/// What clients were told of transfers of 1 from the first account of their pair to the second.
#[derive(Debug, Default)]
struct Heard {
    committed: usize,
    /// It may be committed.
    unknown: usize,
    /// It is not: code and message.
    refused: Vec<(String, String)>,
}

/// The clients while they run, and what each has heard.
struct Load {
    heard: Vec<Arc<Mutex<Heard>>>,
    stopped: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(place: &Arc<Sharded>, pairs: &[(String, String)]) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let heard: Vec<Arc<Mutex<Heard>>> = pairs.iter().map(|_| Arc::default()).collect();
        let mut clients = JoinSet::new();
        for (at, (pair, heard)) in pairs.iter().zip(&heard).enumerate() {
            let (place, pair) = (Arc::clone(place), pair.clone());
            let (heard, stopped) = (Arc::clone(heard), Arc::clone(&stopped));
            clients.spawn(async move {
                while !stopped.load(Ordering::SeqCst) {
                    // A client goes on as long as its session is any good, and then has another one.
                    if let Ok(Ok(client)) = timeout(SOON, place.connect(at % 2)).await {
                        pay(&client, &pair, &heard, &stopped).await;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            });
        }
        Self { heard, stopped, clients }
    }

    fn sum(&self, of: impl Fn(&Heard) -> usize) -> usize {
        self.heard.iter().map(|heard| of(&heard.lock().expect("no holder panics"))).sum()
    }

    fn committed(&self) -> usize {
        self.sum(|heard| heard.committed)
    }

    /// Every refusal so far, by code and message.
    fn refused(&self) -> Vec<(String, String)> {
        let each = self.heard.iter();
        each.flat_map(|heard| heard.lock().expect("no holder panics").refused.clone()).collect()
    }

    /// Begins nothing more; what each client has heard.
    async fn stop(mut self) -> anyhow::Result<Vec<Heard>> {
        self.stopped.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended?;
        }
        let heard = self.heard.iter();
        Ok(heard
            .map(|heard| std::mem::take(&mut *heard.lock().expect("no holder panics")))
            .collect())
    }

    /// Waits until so many more were told that they are committed.
    async fn more(&self, count: usize) -> anyhow::Result<()> {
        let goal = self.committed() + count;
        let more = async || (self.committed() >= goal).then_some(());
        until("more transfers are committed", 3 * SOON, more).await
    }
}

/// One transfer after the other, until the session is of no use or nobody wants more.
async fn pay(client: &Client, pair: &(String, String), heard: &Mutex<Heard>, stopped: &AtomicBool) {
    while !stopped.load(Ordering::SeqCst) {
        let told = timeout(TOLD_MAX, transfer(client, pair)).await;
        let Some(goes_on) = hear(told.ok(), heard) else { return };
        if !goes_on {
            if client.batch_execute("ROLLBACK").await.is_err() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Writes down what was told (`None`: nothing in time); whether it was committed, or refused and the session is to be rolled back. `None`
/// where the session is of no use any more.
fn hear(told: Option<Result<(), tokio_postgres::Error>>, heard: &Mutex<Heard>) -> Option<bool> {
    let mut heard = heard.lock().expect("no holder panics");
    let said = match told {
        Some(Ok(())) => {
            heard.committed += 1;
            return Some(true);
        }
        Some(Err(failed)) => failed.as_db_error().cloned(),
        None => None,
    };
    let Some(said) = said.filter(|said| !OPEN.contains(&said.code().code())) else {
        heard.unknown += 1;
        return None;
    };
    heard.refused.push((said.code().code().to_owned(), said.message().to_owned()));
    Some(false)
}

async fn transfer(
    client: &Client,
    (from, to): &(String, String),
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let sql = "UPDATE account SET balance = balance + $2 WHERE id = $1";
    client.execute(sql, &[from, &-1_i64]).await?;
    client.execute(sql, &[to, &1_i64]).await?;
    client.batch_execute("COMMIT").await
}

async fn befalls(place: &Sharded, load: &Load, day: Day) -> anyhow::Result<()> {
    match day {
        Day::PreparedUsedUp => prepared_used_up(place, load).await,
        Day::ConnectionsUsedUp => place.postgres.use_up_connections("pg-%", HELD).await,
        Day::RouterStopped => {
            let router = &place.routers[1];
            router.signal(Signal::SIGSTOP)?;
            until("it stands still", SOON, async || router.is_stopped().then_some(())).await?;
            // The other router is not kept waiting by what this one has prepared.
            let meanwhile = load.more(AFTERWARDS).await;
            sleep(HELD).await;
            router.signal(Signal::SIGCONT)?;
            meanwhile
        }
        Day::PostgresStopped => {
            ensure!(place.postgres.signal_all(Signal::SIGSTOP)? > 1, "a server has helpers");
            sleep(HELD).await;
            place.postgres.signal_all(Signal::SIGCONT).map(drop)
        }
        Day::LeaderStopped => {
            let leader = place.cluster.leader().await?;
            let process = &place.cluster.nodes[leader].process;
            process.signal(Signal::SIGSTOP)?;
            let meanwhile = load.more(AFTERWARDS).await;
            process.signal(Signal::SIGCONT)?;
            meanwhile
        }
    }
}

/// Somebody else's transactions take every place of `max_prepared_transactions`, and go again.
async fn prepared_used_up(place: &Sharded, load: &Load) -> anyhow::Result<()> {
    let admin = place.postgres.connect("postgres").await?;
    let (mut taken, before) = (0, load.refused().len());
    let end = Instant::now() + 2 * SOON;
    let full = |said: &tokio_postgres::Error| said.code() == Some(&SqlState::OUT_OF_MEMORY);
    let plain = || {
        let said = load.refused().split_off(before).into_iter();
        let full = |(code, message): &(String, String)| {
            code == SqlState::OUT_OF_MEMORY.code() && message.contains("prepared transactions")
        };
        said.filter(full).count()
    };
    // Places that transfers free meanwhile are taken as well, until each client has found none, more than once.
    while plain() < 2 * CLIENTS {
        ensure!(
            Instant::now() < end,
            "{taken} places are taken, and was refused: {:?}",
            load.refused()
        );
        let take = format!("BEGIN; SELECT 1; PREPARE TRANSACTION 'other:{taken}'");
        match admin.batch_execute(&take).await {
            Ok(()) => taken += 1,
            Err(said) if full(&said) => {
                admin.batch_execute("ROLLBACK").await?;
                sleep(Duration::from_millis(1)).await;
            }
            Err(other) => return Err(other.into()),
        }
    }
    sleep(HELD).await;
    let broken = load.refused().into_iter().find(|(code, _)| code.starts_with("XX"));
    ensure!(broken.is_none(), "{broken:?}");
    for number in 0..taken {
        admin.batch_execute(&format!("ROLLBACK PREPARED 'other:{number}'")).await?;
    }
    Ok(())
}

/// Waits until nothing is prepared, and nothing open at the coordinators.
async fn quiet(place: &Sharded) -> anyhow::Result<()> {
    until("nothing is prepared, nothing is open", SOON, async || {
        let leader = place.cluster.leader().await.ok()?;
        let open = place.cluster.status(leader).await?.open_transactions;
        (open == 0 && place.prepared().await.ok()? == 0).then_some(())
    })
    .await
}

/// Each pair holds what its client was told, and nothing else.
async fn judge(place: &Sharded, pairs: &[(String, String)], heard: &[Heard]) -> anyhow::Result<()> {
    let [paying, paid] = place.sources().await?;
    let sql = "SELECT balance FROM account WHERE id = $1";
    for ((from, to), heard) in pairs.iter().zip(heard) {
        let left: i64 = paying.query_one(sql, &[from]).await?.get(0);
        let got: i64 = paid.query_one(sql, &[to]).await?.get(0);
        ensure!(left + got == 2 * BALANCE, "{from} and {to}: {left} + {got} is half a transfer");
        let moved = usize::try_from(BALANCE - left)?;
        let told = heard.committed..=heard.committed + heard.unknown;
        ensure!(told.contains(&moved), "{from}: {moved} moved, {told:?} were told: {heard:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_on_two_sources_is_whole_or_refused_whatever_befalls_routers_and_databases()
-> anyhow::Result<()> {
    let full = std::env::var_os("HOLDFAST_CHAOS").is_some_and(|value| value == "full");
    let days: &[Day] = if full { &ALL } else { &SLICE };
    let place = Arc::new(Sharded::start().await?);
    let [here, there] = place.open_accounts(4 * CLIENTS * ALL.len(), BALANCE).await?;
    let pairs: Vec<(String, String)> = here.into_iter().zip(there).collect();
    ensure!(pairs.len() >= CLIENTS * days.len(), "{} accounts lie on each source", pairs.len());
    for (&day, pairs) in days.iter().zip(pairs.chunks(CLIENTS)) {
        let load = Load::start(&place, pairs);
        load.more(AFTERWARDS).await.with_context(|| format!("before {day:?}"))?;
        let (before, refused, began) = (load.committed(), load.refused().len(), Instant::now());
        befalls(&place, &load, day).await.with_context(|| format!("{day:?}"))?;
        let (during, lasted) = (load.committed() - before, began.elapsed().as_millis());
        let refused = load.refused().len() - refused;
        load.more(AFTERWARDS).await.with_context(|| format!("behind {day:?}"))?;
        println!("{day:<18?} {lasted:>6} ms, {during} committed and {refused} refused meanwhile");
        let heard = load.stop().await?;
        quiet(&place).await.with_context(|| format!("behind {day:?}"))?;
        judge(&place, pairs, &heard).await.with_context(|| format!("{day:?}"))?;
    }
    Ok(())
}
