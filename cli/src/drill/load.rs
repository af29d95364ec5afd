//! Work for a cluster that is drilled, and what can be seen of it: transfers in a cluster of our own; in somebody else's,
//! transactions that are begun without branches and taken back, which go through log, quorum and leader and touch no account.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use holdfast_client::{Client, Terms, Wait};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{fleet::Fleet, report::Point};
use crate::demo::{
    args::TRANSFERS_MAX,
    driver::{Load, Record, Tally},
    kill::{Recovery, Tickets},
};

/// Between two points of the curve.
pub(crate) const POINT: Duration = Duration::from_millis(100);
/// Points that are kept: two hours.
const POINTS_MAX: usize = 72_000;
/// For a surge to be under way.
const SURGE_MAX: Duration = Duration::from_secs(5);
/// Between two requests of a probe where nothing happened.
const PAUSE: Duration = Duration::from_millis(20);

/// Work that runs.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) tally: Arc<Tally>,
    pub(crate) recovery: Recovery,
    load: Option<Arc<Load>>,
    transfers: JoinSet<Vec<Record>>,
    /// Of surges, one transfer each.
    extra: Mutex<JoinSet<Vec<Record>>>,
    probes: JoinSet<()>,
    /// What a probe was told last that was no answer.
    complaint: Arc<Mutex<Option<String>>>,
    stopped: Arc<AtomicBool>,
    curve: JoinHandle<Vec<Point>>,
}

impl Work {
    /// Starts so many clients.
    pub(crate) fn start(fleet: &Fleet, clients: u32, seed: u64, began: Instant) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let recovery = Recovery::default();
        let complaint = Arc::<Mutex<Option<String>>>::default();
        let (mut transfers, mut probes, mut load) = (JoinSet::new(), JoinSet::new(), None);
        let tally = match &fleet.own {
            Some(own) => {
                let made = Arc::new(Load {
                    tickets: Tickets::new(TRANSFERS_MAX),
                    bank: Arc::clone(&own.bank),
                    client: fleet.client.clone(),
                    tally: Arc::new(Tally::new()),
                    recovery: recovery.clone(),
                    to_the_end: false,
                    seed,
                });
                transfers = made.start(clients);
                let tally = Arc::clone(&made.tally);
                load = Some(made);
                tally
            }
            None => {
                let tally = Arc::new(Tally::new());
                for number in 0..clients.min(64) {
                    let probe = probe(
                        fleet.client.clone(),
                        format!("drill-{seed:016x}-{number}"),
                        (Arc::clone(&tally), recovery.clone()),
                        (Arc::clone(&stopped), Arc::clone(&complaint)),
                    );
                    probes.spawn(probe);
                }
                tally
            }
        };
        let curve = tokio::spawn(draw(Arc::clone(&tally), Arc::clone(&stopped), began));
        let extra = Mutex::default();
        Self { tally, recovery, load, transfers, extra, probes, complaint, stopped, curve }
    }

    /// Puts so many transfers under way beside those of the clients, and waits until they are; false in somebody else's cluster,
    /// where nothing is transferred.
    pub(crate) async fn surge(&self, count: u32) -> bool {
        let Some(load) = &self.load else { return false };
        load.start_once(count, &mut self.extra.lock().expect("no holder panics"));
        let until = Instant::now() + SURGE_MAX;
        while self.tally.under_way().len() < count as usize && Instant::now() < until {
            tokio::task::yield_now().await;
        }
        true
    }

    /// What a probe was told last that was no answer; `None` in a cluster of our own, and where each was answered.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.complaint.lock().expect("no holder panics").clone()
    }

    /// Begins nothing more; answers what clients were told and the curve, once all is known.
    /// # Errors
    /// A client ended before its time.
    pub(crate) async fn stop(mut self) -> anyhow::Result<(Vec<Record>, Vec<Point>)> {
        if let Some(load) = &self.load {
            load.tickets.stop();
        }
        let mut records = Vec::new();
        let mut extra = self.extra.into_inner().expect("no holder panics");
        while let Some(ended) = extra.join_next().await {
            records.extend(ended.context("a client ended before its time")?);
        }
        while let Some(ended) = self.transfers.join_next().await {
            records.extend(ended.context("a client ended before its time")?);
        }
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = self.probes.join_next().await {
            ended.context("a probe ended before its time")?;
        }
        records.sort_unstable_by_key(|record| record.number);
        Ok((records, self.curve.await?))
    }
}

/// One transaction without branches after the other.
async fn probe(
    client: Client,
    name: String,
    (tally, recovery): (Arc<Tally>, Recovery),
    (stopped, complaint): (Arc<AtomicBool>, Arc<Mutex<Option<String>>>),
) {
    for number in 0_u64.. {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let submitted_at = Instant::now();
        tally.submitted.fetch_add(1, Ordering::Relaxed);
        let gid = format!("{name}-{number}").chars().skip(6).collect::<String>();
        loop {
            let begun = client.begin(Terms::tcc().gid(gid.clone())).await;
            let ended = match begun {
                Ok(_) => client.roll_back(&gid, "a probe of a drill", Wait::End).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(answer) if answer.status().is_some_and(holdfast_client::Status::is_final) => {
                    break;
                }
                Ok(_) => {}
                Err(error) => {
                    *complaint.lock().expect("no holder panics") = Some(error.to_string());
                }
            }
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            sleep(PAUSE).await;
        }
        tally.committed.fetch_add(1, Ordering::Relaxed);
        tally.latency.record(submitted_at.elapsed());
        recovery.committed(submitted_at, Instant::now(), [0, 0]);
        sleep(PAUSE).await;
    }
}

/// A point of the curve so often.
async fn draw(tally: Arc<Tally>, stopped: Arc<AtomicBool>, began: Instant) -> Vec<Point> {
    let mut points = Vec::new();
    let (mut committed, mut refused) = (0, 0);
    let mut tick = tokio::time::interval(POINT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stopped.load(Ordering::Relaxed) && points.len() < POINTS_MAX {
        tick.tick().await;
        let now = (tally.committed.load(Ordering::Relaxed), tally.refused.load(Ordering::Relaxed));
        points.push(Point {
            at_ms: ms(began.elapsed()),
            committed: now.0 - committed,
            refused: now.1 - refused,
            unknown: tally.unknown.load(Ordering::Relaxed).max(0).unsigned_abs(),
            p99_ms: tally.latency.recent().p99_ms,
        });
        (committed, refused) = now;
    }
    points
}

/// Whole milliseconds.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
