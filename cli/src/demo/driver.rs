//! Clients that submit transfers as fast as they are answered, pursue what is unknown, and write down what they were told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_client::{Answer, Client, ClientError, Outcome, Status, Submission, Wait};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::kill::{Recovery, Tickets};
use super::latency::Latency;
use super::payment;
use super::workload::{Bank, Transfer};

/// How long one request is pursued before its client is told *unknown*, ms: as long as a teller waits.
const PATIENCE_MS: u64 = 1_000;
/// How long an outcome is asked for, again and again, before it counts as never told.
const PURSUE_MAX: Duration = Duration::from_secs(90);
/// Between two requests where nothing happened.
const PAUSE: Duration = Duration::from_millis(50);

/// What a client was told of its transfer, in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// It moves.
    Committed,
    /// It does not.
    RolledBack,
    /// Nothing final, in all the time there was.
    Nothing,
    /// The request itself was turned away, with these words.
    TurnedAway(String),
}

/// What a client was told of one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Of the transfer.
    pub(crate) number: u64,
    /// In the end.
    pub(crate) told: Told,
}

/// Counts while transfers run.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) submitted: AtomicU64,
    pub(crate) committed: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Told unknown, and not known yet.
    pub(crate) unknown: AtomicI64,
    pub(crate) unknown_resolved: AtomicU64,
    pub(crate) cross_shard: AtomicU64,
    pub(crate) one_shard: AtomicU64,
    /// Numbers of transfers that were submitted and are not answered.
    pub(crate) under_way: Mutex<BTreeSet<u64>>,
    pub(crate) latency: Latency,
}

impl Tally {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            submitted: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unknown: AtomicI64::new(0),
            unknown_resolved: AtomicU64::new(0),
            cross_shard: AtomicU64::new(0),
            one_shard: AtomicU64::new(0),
            under_way: Mutex::default(),
            latency: Latency::new(),
        }
    }

    /// Numbers of transfers that were submitted and are not answered.
    pub(crate) fn under_way(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.under_way.lock().expect("no holder panics")
    }

    /// Transfers whose fate is known.
    pub(crate) fn answered(&self) -> u64 {
        self.committed.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed)
    }
}

/// What all clients of a run share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) bank: Arc<Bank>,
    pub(crate) client: Client,
    pub(crate) tickets: Tickets,
    pub(crate) tally: Arc<Tally>,
    pub(crate) recovery: Recovery,
    /// The next transfer is submitted only when the one before it has ended.
    pub(crate) to_the_end: bool,
    /// Tells the transfers of one run from those of another.
    pub(crate) seed: u64,
}

impl Load {
    /// Starts so many clients; each ends when there is no further ticket and answers what it was told.
    pub(crate) fn start(self: &Arc<Self>, clients: u32) -> JoinSet<Vec<Record>> {
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(Arc::clone(self).run_client());
        }
        tasks
    }

    /// Starts so many more clients for one transfer each.
    pub(crate) fn start_once(self: &Arc<Self>, clients: u32, tasks: &mut JoinSet<Vec<Record>>) {
        for _ in 0..clients {
            let load = Arc::clone(self);
            tasks.spawn(async move { load.make_next().await.into_iter().collect() });
        }
    }

    /// The id of the transfer of that number.
    pub(crate) fn gid(&self, number: u64) -> String {
        gid(self.seed, number)
    }

    async fn run_client(self: Arc<Self>) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(record) = self.make_next().await {
            records.push(record);
        }
        records
    }

    async fn make_next(&self) -> Option<Record> {
        let number = self.tickets.next().await?;
        let transfer = self.bank.transfer(number)?;
        self.tally.under_way().insert(number);
        let told = self.make(number, transfer).await;
        self.tally.under_way().remove(&number);
        Some(Record { number, told })
    }

    async fn make(&self, number: u64, transfer: Transfer) -> Told {
        let tally = &self.tally;
        tally.submitted.fetch_add(1, Ordering::Relaxed);
        let submission = payment::transfer(&self.bank, transfer)
            .gid(self.gid(number))
            .wait(if self.to_the_end { Wait::End } else { Wait::Decision })
            .patience_ms(PATIENCE_MS);
        let submitted_at = Instant::now();
        let told = self.pursue(&submission, submitted_at).await;
        match told {
            Told::Committed => {
                tally.committed.fetch_add(1, Ordering::Relaxed);
                let one_shard = self.bank.is_one_shard(transfer);
                let count = if one_shard { &tally.one_shard } else { &tally.cross_shard };
                count.fetch_add(1, Ordering::Relaxed);
                let shard = |place: usize| self.bank.accounts[place].shard;
                self.recovery.committed(
                    submitted_at,
                    Instant::now(),
                    [shard(transfer.from), shard(transfer.to)],
                );
            }
            Told::RolledBack => {
                tally.refused.fetch_add(1, Ordering::Relaxed);
            }
            Told::Nothing | Told::TurnedAway(_) => return told,
        }
        tally.latency.record(submitted_at.elapsed());
        told
    }

    /// Submits, and submits again with the same gid, until the outcome is known. The same gid and content are the same
    /// transaction, so this asks for the fate of what has begun and begins what has not.
    async fn pursue(&self, submission: &Submission, since: Instant) -> Told {
        let mut was_unknown = false;
        let told = loop {
            match self.client.submit(submission.clone()).await {
                Ok(answer) => match self.final_word(&answer) {
                    Some(told) => break told,
                    None => self.note_unknown(&mut was_unknown),
                },
                Err(error @ ClientError::Refused { .. }) => {
                    break Told::TurnedAway(error.to_string());
                }
                Err(ClientError::Retry { .. } | ClientError::Unreachable { .. }) => {}
                Err(ClientError::Unknown { .. }) => self.note_unknown(&mut was_unknown),
            }
            if since.elapsed() > PURSUE_MAX {
                break Told::Nothing;
            }
            sleep(PAUSE).await;
        };
        if was_unknown && matches!(told, Told::Committed | Told::RolledBack) {
            self.tally.unknown.fetch_sub(1, Ordering::Relaxed);
            self.tally.unknown_resolved.fetch_add(1, Ordering::Relaxed);
        }
        told
    }

    fn note_unknown(&self, was_unknown: &mut bool) {
        if !std::mem::replace(was_unknown, true) {
            self.tally.unknown.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn final_word(&self, answer: &Answer) -> Option<Told> {
        let ended = answer.status().is_some_and(Status::is_final);
        match &answer.outcome {
            Outcome::Unknown => None,
            _ if self.to_the_end && !ended => None,
            Outcome::Committed => Some(Told::Committed),
            Outcome::RolledBack { .. } => Some(Told::RolledBack),
        }
    }
}

/// The id of the transfer of that number in the run of that seed.
pub(crate) fn gid(seed: u64, number: u64) -> String {
    format!("demo-{seed:016x}-{number}")
}

/// The number in a transfer's id, if it is of this run.
pub(crate) fn number_of(seed: u64, gid: &str) -> Option<u64> {
    gid.strip_prefix("demo-")?.strip_prefix(&format!("{seed:016x}-"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_names_run_and_transfer_within_its_bounds() {
        let longest = gid(u64::MAX, super::super::args::TRANSFERS_MAX);
        assert!(longest.len() <= 35, "{longest}");
        assert_eq!(number_of(7, &gid(7, 123)), Some(123));
        assert_eq!(number_of(8, &gid(7, 123)), None);
        assert_eq!(number_of(7, "demo-saga-1"), None);
    }
}
