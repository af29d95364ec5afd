//! Transfers between the shards of a [`Cluster`], as fast as they are answered, and a history of what was asked and told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use holdfast_banking::{
    DepositInstruction,
    ledger::{AccountId, Money},
};
use holdfast_client::{Client, ClientError, ClientOptions, Outcome, Submission, Terms};
use holdfast_txn::{Decision, Gid, Labels, Participant, Status};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Cluster, SOON,
    checker::{
        exactly_once,
        history::{Told, Word},
        replay::{self, Content, Exchange},
    },
    http, journal, until,
};

/// Accounts of a shard.
const ACCOUNTS: u64 = 50;
/// What each is opened with, minor units.
const OPENING_MINOR: i64 = 10_000;
/// For everything to be known once the load has stopped.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// For one outcome to be known, whatever happens meanwhile.
const PURSUE_MAX: Duration = Duration::from_secs(120);
/// Bytes that make the log grow, of one branch that is refused.
const PADDING_BYTES: usize = 60_000;
/// Looks go to one of so many latest transfers.
const LOOKED_AT: u64 = 40;
/// How long a look may take until nobody waits for it any more.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Its branches.
const PADDING_BRANCHES: usize = 4;

/// A load: who pays whom follows from the number of the transfer and the name of the load.
#[derive(Debug)]
pub struct Load {
    name: &'static str,
    shards: u64,
    client: Client,
    began: Instant,
    next: AtomicU64,
    told: Mutex<BTreeMap<String, Word>>,
    exchanges: Mutex<Vec<Exchange>>,
}

/// The clients of a load while they run.
#[derive(Debug)]
pub struct Running {
    stopped: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Holds what callers were told against the books, once the load has stopped: everything is known in the end, money is
    /// where it belongs, each effect is there once, and the nodes agree. More than `least` must have committed, and not all.
    /// # Errors
    /// The first of these that does not hold.
    pub async fn judge(&self, cluster: &Cluster, least: usize) -> anyhow::Result<()> {
        cluster.quiet(QUIET_MAX).await?;
        cluster.audit().await?;
        let told = self.history();
        let effects = journal::effects(&cluster.sources().await?).await?;
        let findings = exactly_once::check(&told, &effects, |gid| self.effect(gid));
        ensure!(findings.is_clean(), "{findings:?}");
        let committed = told.values().filter(|word| word.told == Told::Committed).count();
        ensure!(committed > least && committed < told.len(), "{committed} of {}", told.len());
        cluster.agree().await
    }

    /// Opens the accounts of a load of this name on all shards of `cluster`.
    /// # Errors
    /// A shard cannot be reached, or no leader is found.
    pub async fn open(cluster: &Cluster, name: &'static str) -> anyhow::Result<Arc<Self>> {
        let shards = cluster.banks.len() as u64;
        for shard in 0..shards {
            let ids = (0..ACCOUNTS).map(|number| account(shard, number));
            cluster.open_accounts(usize::try_from(shard)?, ids, OPENING_MINOR).await?;
        }
        let options = ClientOptions { patience_ms: 1_000, ..ClientOptions::default() };
        let client = Client::connect(cluster.addresses(), options).await?;
        Ok(Arc::new(Self {
            name,
            shards,
            client,
            began: Instant::now(),
            next: AtomicU64::new(0),
            told: Mutex::default(),
            exchanges: Mutex::default(),
        }))
    }

    /// Starts so many clients, and one that makes the log grow where `padded`.
    #[must_use]
    pub fn start(self: &Arc<Self>, clients: usize, padded: bool) -> Running {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for _ in 0..clients {
            running.spawn(Arc::clone(self).run_client(Arc::clone(&stopped)));
        }
        if padded {
            running.spawn(Arc::clone(self).pad(Arc::clone(&stopped)));
        }
        Running { stopped, clients: running }
    }

    /// How many transfers have been answered for good.
    pub fn answered(&self) -> usize {
        self.told.lock().expect("no holder panics").len()
    }

    /// What was asked and told so far, by gid.
    pub fn history(&self) -> BTreeMap<String, Word> {
        self.told.lock().expect("no holder panics").clone()
    }

    /// Every question that was asked and what was told, those of [`Self::look`] among them: for the index replay.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().expect("no holder panics").clone()
    }

    /// Asks the HTTP door at `address` for one of the latest transfers, and writes down what it said. A door that says nothing
    /// that can be relied on is no error.
    /// # Errors
    /// What it said is none of its words.
    pub async fn look(&self, address: &str) -> anyhow::Result<()> {
        let next = self.next.load(Ordering::SeqCst);
        let number = next.saturating_sub(1 + next % LOOKED_AT);
        let gid = format!("{}-{number}", self.name);
        let asked_at = self.now();
        let path = format!("/v1/transactions/{gid}");
        let asked = timeout(LOOK_MAX, http::get(address, &path)).await;
        let Ok(Ok(reply)) = asked else { return Ok(()) };
        let told = match reply.status {
            200 => {
                let status = reply.text("/transaction/status").replace('_', " ");
                let status = Status::ALL.into_iter().find(|known| known.as_str() == status);
                replay::Told::Status(status.with_context(|| reply.text("/transaction/status"))?)
            }
            404 => replay::Told::Absent,
            _ => return Ok(()),
        };
        self.exchanged(&gid, asked_at, replay::Asked::Look, told)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a load ends within an age")
    }

    fn exchanged(
        &self,
        gid: &str,
        asked_at: u64,
        asked: replay::Asked,
        told: replay::Told,
    ) -> anyhow::Result<()> {
        let gid = Gid::parse(gid)?;
        let exchange = Exchange { gid, asked_at, told_at: self.now(), asked, told };
        self.exchanges.lock().expect("no holder panics").push(exchange);
        Ok(())
    }

    /// Waits until so many more transfers are answered.
    /// # Errors
    /// They are not, for a long time.
    pub async fn more(&self, count: usize) -> anyhow::Result<()> {
        let goal = self.answered() + count;
        until("more transfers are answered", 3 * SOON, async || {
            (self.answered() >= goal).then_some(())
        })
        .await
    }

    /// What a committed transfer of that gid does to the accounts, sorted; `None` for a gid that is not of this load.
    #[must_use]
    pub fn effect(&self, gid: &str) -> Option<Vec<(String, i64)>> {
        let number = gid.strip_prefix(self.name)?.strip_prefix('-')?.parse().ok()?;
        let mut legs: Vec<_> = self.legs(number).map(|(_, account, minor)| (account, minor)).into();
        legs.sort_unstable();
        Some(legs)
    }

    async fn run_client(self: Arc<Self>, stopped: Arc<AtomicBool>) -> anyhow::Result<()> {
        while !stopped.load(Ordering::SeqCst) {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let gid = format!("{}-{number}", self.name);
            let asked_at = self.began.elapsed();
            let (told, positions) = self.pursue(&gid, number).await?;
            let word = Word { asked_at, told_at: self.began.elapsed(), told, repeats: positions };
            self.told.lock().expect("no holder panics").insert(gid, word);
        }
        Ok(())
    }

    /// Submits with the same gid until the outcome is known; also answers how often it was asked.
    async fn pursue(&self, gid: &str, number: u64) -> anyhow::Result<(Told, u32)> {
        let until = Instant::now() + PURSUE_MAX;
        for asked in 0.. {
            let submission = self.submission(gid, number)?.patience_ms(1_000);
            let asked_at = self.now();
            let answered = self.client.submit(submission).await;
            let told = match &answered {
                Ok(answer) => match answer.outcome {
                    Outcome::Committed => replay::Told::Decided(Decision::Commit),
                    Outcome::RolledBack { .. } => replay::Told::Decided(Decision::RollBack),
                    Outcome::Unknown => replay::Told::Nothing,
                },
                Err(_) => replay::Told::Nothing,
            };
            let content = replay::Asked::Begin(self.content(number)?);
            self.exchanged(gid, asked_at, content, told)?;
            match answered {
                Ok(answer) => match answer.outcome {
                    Outcome::Committed => return Ok((Told::Committed, asked)),
                    Outcome::RolledBack { .. } => return Ok((Told::RolledBack, asked)),
                    Outcome::Unknown => {}
                },
                Err(error @ ClientError::Refused { .. }) => return Err(error.into()),
                Err(_) => {}
            }
            ensure!(Instant::now() < until, "the outcome of {gid} is never known");
            sleep(Duration::from_millis(20)).await;
        }
        unreachable!("the loop returns")
    }

    /// Large transactions that are refused, so that segments fill; and programs that begin and go away, so that deadlines pass. They
    /// move nothing.
    async fn pad(self: Arc<Self>, stopped: Arc<AtomicBool>) -> anyhow::Result<()> {
        let mut number = 0;
        while !stopped.load(Ordering::SeqCst) {
            let gid = |kind: &str| {
                let at = self.began.elapsed().as_millis();
                format!("{}-{kind}-{at}-{number}", self.name)
            };
            let mut padding = Submission::tcc().gid(gid("pad")).patience_ms(50);
            for _ in 0..PADDING_BRANCHES {
                padding = padding.branch("deposit@shard-1", vec![b'x'; PADDING_BYTES]);
            }
            let abandoned = Terms::tcc().gid(gid("gone")).timeout_ms(500).call_timeout_ms(500);
            // What is told of them does not matter, as long as they are taken.
            for told in [self.client.submit(padding).await, self.client.begin(abandoned).await] {
                if let Err(refused @ ClientError::Refused { .. }) = told {
                    return Err(refused.into());
                }
            }
            number += 1;
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Shards take turns, and one transfer in eleven asks for more than there can be.
    fn legs(&self, number: u64) -> [(u64, String, i64); 2] {
        let minor = if number % 11 == 7 { 2_000_000 } else { 1 + (number % 97) as i64 };
        let (from, to) = (number % self.shards, (number + 1) % self.shards);
        let (payer, payee) = (number * 7 % ACCOUNTS, number * 13 % ACCOUNTS);
        [(from, account(from, payer), -minor), (to, account(to, payee), minor)]
    }

    fn submission(&self, gid: &str, number: u64) -> anyhow::Result<Submission> {
        let branches = self.branches(number)?.into_iter();
        let submission = Submission::tcc().gid(gid);
        Ok(branches.fold(submission, |submission, (participant, payload)| {
            submission.branch(participant, payload)
        }))
    }

    /// What the log must hold of transfer `number`.
    fn content(&self, number: u64) -> anyhow::Result<Content> {
        let branches = self.branches(number)?.into_iter();
        let branches =
            branches.map(|(participant, payload)| Ok((Participant::parse(&participant)?, payload)));
        let branches = branches.collect::<anyhow::Result<_>>()?;
        Ok(Content { branches, tags: Labels::EMPTY })
    }

    /// Participants and payloads.
    fn branches(&self, number: u64) -> anyhow::Result<Vec<(String, Bytes)>> {
        let mut branches = Vec::new();
        for (shard, account, minor) in self.legs(number) {
            let account = AccountId::parse(&account)?;
            let amount = format!("{}.{:02}", minor.abs() / 100, minor.abs() % 100);
            let money = Money::parse(&amount, "EUR")?;
            let leg = if minor < 0 {
                DepositInstruction::Debit { account, money }
            } else {
                DepositInstruction::Credit { account, money }
            };
            branches.push((format!("deposit@shard-{}", shard + 1), leg.to_payload()));
        }
        Ok(branches)
    }
}

impl Running {
    /// Begins nothing more, and waits until all that was begun is known.
    /// # Errors
    /// A transfer was turned away, or its outcome is never known.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stopped.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(())
    }
}

fn account(shard: u64, number: u64) -> String {
    format!("S{shard}-{number}")
}
