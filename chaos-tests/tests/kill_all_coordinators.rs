//! Every coordinator dies at once under load, twice: what was acknowledged is in the books, once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use holdfast_banking::{
    DepositInstruction,
    ledger::{AccountId, Money},
};
use holdfast_chaos_tests::{Cluster, SOON, journal, until};
use holdfast_client::{Client, ClientError, Outcome, Submission};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const ACCOUNTS: u64 = 50;
const OPENING_MINOR: i64 = 10_000;
const CLIENTS: u64 = 24;
/// Acknowledgements before each kill, and of the last load.
const LOAD: u64 = 350;

/// Transfers, and what their clients were told.
#[derive(Debug, Default)]
struct Load {
    next: AtomicU64,
    stopped: AtomicBool,
    told: Mutex<BTreeMap<u64, bool>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_all_coordinators_died_is_in_the_books_once()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    for shard in 0..2 {
        let ids = (0..ACCOUNTS).map(|number| account(shard as u64, number));
        cluster.open_accounts(shard, ids, OPENING_MINOR).await?;
    }
    let client = cluster.client().await?;
    let load = Arc::new(Load::default());

    for turn in 1..=2 {
        let mut clients = start(&load, &client);
        until("enough transfers are acknowledged", SOON, async || {
            (load.told().len() as u64 >= turn * LOAD).then_some(())
        })
        .await?;
        // Clients are in the middle of their transfers, and begin no further ones; they ask for what they have begun.
        cluster.kill_nodes().await?;
        load.stopped.store(true, Ordering::SeqCst);
        ensure!(load.told().len() as u64 <= load.next.load(Ordering::SeqCst));
        cluster.start_nodes().await?;
        let restarted = Instant::now();
        cluster.quiet(Duration::from_secs(10)).await?;
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        cluster.quiet(Duration::from_secs(10).saturating_sub(restarted.elapsed())).await?;
    }
    // It serves as before.
    let before = load.told().len() as u64;
    let mut clients = start(&load, &client);
    until("it serves again", SOON, async || {
        (load.told().len() as u64 >= before + LOAD).then_some(())
    })
    .await?;
    load.stopped.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    cluster.quiet(Duration::from_secs(10)).await?;

    cluster.audit().await?;
    let told = load.told();
    ensure!(told.len() as u64 == load.next.load(Ordering::SeqCst), "a transfer was never answered");
    compare_with_books(&cluster, &told).await?;
    ask_again(&client, &told).await?;
    cluster.agree().await
}

impl Load {
    fn told(&self) -> BTreeMap<u64, bool> {
        self.told.lock().expect("no holder panics").clone()
    }
}

fn start(load: &Arc<Load>, client: &Client) -> JoinSet<anyhow::Result<()>> {
    load.stopped.store(false, Ordering::SeqCst);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (load, client) = (Arc::clone(load), client.clone());
        clients.spawn(async move {
            while !load.stopped.load(Ordering::SeqCst) {
                let number = load.next.fetch_add(1, Ordering::SeqCst);
                let committed = pursue(&client, number).await?;
                load.told.lock().expect("no holder panics").insert(number, committed);
            }
            Ok(())
        });
    }
    clients
}

/// Submits with the same gid until the outcome is known; true for committed.
async fn pursue(client: &Client, number: u64) -> anyhow::Result<bool> {
    let until = Instant::now() + 2 * SOON;
    loop {
        match client.submit(submission(number)?.patience_ms(1_000)).await {
            Ok(answer) => match answer.outcome {
                Outcome::Committed => return Ok(true),
                Outcome::RolledBack { .. } => return Ok(false),
                Outcome::Unknown => {}
            },
            Err(error @ ClientError::Refused { .. }) => return Err(error.into()),
            Err(_) => {}
        }
        ensure!(Instant::now() < until, "the outcome of {} is never known", gid(number));
        sleep(Duration::from_millis(20)).await;
    }
}

/// Who pays whom: shards take turns, and one transfer in eleven asks for more than there can be.
fn legs(number: u64) -> [(u64, String, i64); 2] {
    let minor = if number % 11 == 7 { 2_000_000 } else { 1 + (number % 97) as i64 };
    let (from, to) = (number % 2, (number + 1) % 2);
    let (payer, payee) = (number * 7 % ACCOUNTS, number * 13 % ACCOUNTS);
    [(from, account(from, payer), -minor), (to, account(to, payee), minor)]
}

fn submission(number: u64) -> anyhow::Result<Submission> {
    let mut submission = Submission::tcc().gid(gid(number));
    for (shard, account, minor) in legs(number) {
        let account = AccountId::parse(&account)?;
        let money =
            Money::parse(&format!("{}.{:02}", minor.abs() / 100, minor.abs() % 100), "EUR")?;
        let leg = if minor < 0 {
            DepositInstruction::Debit { account, money }
        } else {
            DepositInstruction::Credit { account, money }
        };
        submission = submission.branch(format!("deposit@shard-{}", shard + 1), leg.to_payload());
    }
    Ok(submission)
}

fn gid(number: u64) -> String {
    format!("all-die-{number}")
}

fn account(shard: u64, number: u64) -> String {
    format!("{}-{number}", ["A", "B"][shard as usize])
}

async fn compare_with_books(cluster: &Cluster, told: &BTreeMap<u64, bool>) -> anyhow::Result<()> {
    let mut effects = journal::effects(&cluster.sources().await?).await?;
    let mut committed = 0;
    for (number, was_committed) in told {
        let found = effects.remove(&gid(*number)).unwrap_or_default();
        let mut expected = Vec::new();
        if *was_committed {
            committed += 1;
            expected.extend(legs(*number).map(|(_, account, minor)| (account, minor)));
            expected.sort_unstable();
        }
        ensure!(found == expected, "{}: {found:?} in the books, {expected:?} told", gid(*number));
    }
    ensure!(effects.is_empty(), "nobody was told of {effects:?}");
    ensure!(committed * 10 > told.len() * 8, "only {committed} of {} committed", told.len());
    ensure!(committed < told.len(), "nothing was refused");
    Ok(())
}

/// A decision once told is told again, by any node, whatever happened since.
async fn ask_again(client: &Client, told: &BTreeMap<u64, bool>) -> anyhow::Result<()> {
    for (number, was_committed) in told.iter().step_by(10) {
        let answer = client.get(&gid(*number)).await?;
        let (first, now) = (*was_committed, &answer.outcome);
        ensure!(answer.is_committed() == first, "{} is {now:?} now", gid(*number));
        ensure!(*now != Outcome::Unknown, "{} is not known any more", gid(*number));
    }
    Ok(())
}
