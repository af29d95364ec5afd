//! Once a second, one line on how the run stands.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::driver::Load;
use super::latency::Figures;
use super::progress::Progress;
use super::report::{amount, grouped};

/// Sums what is held on every shard; `None` while a shard cannot be asked.
pub(crate) trait Held {
    /// In minor units.
    async fn held_minor(&mut self) -> Option<i64>;
}

/// Tells until it is dropped.
pub(crate) async fn tell(
    load: Arc<Load>,
    progress: &Progress,
    started: Instant,
    mut held: impl Held,
) {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    second.tick().await;
    let (mut answered, mut asked_at) = (0, Instant::now());
    loop {
        second.tick().await;
        let held_minor = held.held_minor().await;
        let now = load.tally.answered();
        let tps = (now - answered) as f64 / asked_at.elapsed().as_secs_f64();
        (answered, asked_at) = (now, Instant::now());
        progress.now(&line(&load, started.elapsed(), tps, held_minor));
    }
}

fn line(load: &Load, elapsed: Duration, tps: f64, held_minor: Option<i64>) -> String {
    let tally = &load.tally;
    let Figures { p50_ms, p99_ms, .. } = tally.latency.recent();
    let held = held_minor.map_or("?".to_owned(), |minor| amount(minor, load.bank.currency));
    format!(
        "{:>4} s  {tps:>6.0} tps  p50 {p50_ms:>7.2} ms  p99 {p99_ms:>7.2} ms  committed {:>9}  refused {:>7}  \
         unknown {:>4}  held {held}",
        elapsed.as_secs(),
        grouped(tally.committed.load(Ordering::Relaxed)),
        grouped(tally.refused.load(Ordering::Relaxed)),
        tally.unknown.load(Ordering::Relaxed),
    )
}
