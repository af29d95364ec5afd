//! Clients that ask again as soon as they are answered, for a while, and how long they waited.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// How much load, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Requests under way at once.
    pub(crate) clients: u32,
    /// Before anything counts.
    pub(crate) warm_up: Duration,
    /// While it counts.
    pub(crate) measured: Duration,
}

impl Shape {
    /// As a worker reads it behind the word `run`.
    pub(crate) fn to_line(self, bytes: usize) -> String {
        let (warm_up, measured) = (self.warm_up.as_millis(), self.measured.as_millis());
        format!("run {} {warm_up} {measured} {bytes}", self.clients)
    }

    /// The other way round; also the size of a record in bytes. `None` if it is no such line.
    pub(crate) fn from_line(line: &str) -> Option<(Self, usize)> {
        let mut words = line.strip_prefix("run ")?.split(' ');
        let clients = words.next()?.parse().ok()?;
        let warm_up = Duration::from_millis(words.next()?.parse().ok()?);
        let measured = Duration::from_millis(words.next()?.parse().ok()?);
        let bytes = words.next()?.parse().ok()?;
        Some((Self { clients, warm_up, measured }, bytes))
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Answered well while it counted, a second.
    pub(crate) per_s: f64,
    /// Half of them waited no longer, us.
    pub(crate) p50_us: f64,
    /// All but one in a hundred.
    pub(crate) p99_us: f64,
    /// All but one in a thousand.
    pub(crate) p999_us: f64,
    /// Answered otherwise than hoped for.
    pub(crate) failed: u64,
    /// Answered between the two readings of the meters, which take a moment themselves.
    pub(crate) between_readings: f64,
}

struct Shared {
    phase: AtomicU8,
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Runs `ask(client)` in so many clients, again and again, and reads `meters` before and after what counts.
/// # Errors
/// What the meters say, or that every request failed.
pub(crate) async fn run<M, A, F>(
    shape: Shape,
    mut meters: impl AsyncFnMut() -> anyhow::Result<M>,
    ask: A,
) -> anyhow::Result<(Sample, M, M)>
where
    A: Fn(u32) -> F + Clone + Send + 'static,
    F: Future<Output = bool> + Send + 'static,
{
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(WARMING),
        answered: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let mut clients = JoinSet::new();
    for number in 0..shape.clients {
        clients.spawn(client(number, Arc::clone(&shared), ask.clone()));
    }
    tokio::time::sleep(shape.warm_up).await;
    let (before, count_before) = read(&shared, &mut meters).await?;
    shared.phase.store(MEASURING, Ordering::Relaxed);
    let begun = Instant::now();
    tokio::time::sleep(shape.measured).await;
    shared.phase.store(OVER, Ordering::Relaxed);
    let took = begun.elapsed();
    // Clients go on until the meters are read, so that nothing is read of a time without load.
    let (after, count_after) = read(&shared, &mut meters).await?;
    shared.phase.store(OVER + 1, Ordering::Relaxed);
    let mut waits_us: Vec<u32> = clients.join_all().await.into_iter().flatten().collect();
    waits_us.sort_unstable();
    let failed = shared.failed.load(Ordering::Relaxed);
    anyhow::ensure!(
        !waits_us.is_empty(),
        "nothing was answered well in {took:?} by {} clients ({failed} otherwise)",
        shape.clients
    );
    let at = |share: f64| f64::from(waits_us[super::figures::place(waits_us.len(), share)]);
    let sample = Sample {
        per_s: waits_us.len() as f64 / took.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        failed,
        between_readings: count_after - count_before,
    };
    Ok((sample, before, after))
}

/// Meters that are not read.
pub(crate) async fn without_meters() -> anyhow::Result<()> {
    Ok(())
}

/// What the meters say, and how much was answered by then.
async fn read<M>(
    shared: &Shared,
    meters: &mut impl AsyncFnMut() -> anyhow::Result<M>,
) -> anyhow::Result<(M, f64)> {
    let count = || shared.answered.load(Ordering::Relaxed) as f64;
    let before = count();
    let reading = meters().await?;
    Ok((reading, f64::midpoint(before, count())))
}

async fn client<A, F>(number: u32, shared: Arc<Shared>, ask: A) -> Vec<u32>
where
    A: Fn(u32) -> F,
    F: Future<Output = bool>,
{
    let mut waits_us = Vec::new();
    loop {
        let asked = Instant::now();
        let well = ask(number).await;
        let phase = shared.phase.load(Ordering::Relaxed);
        if phase > OVER {
            return waits_us;
        }
        if !well {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            // A fault that lasts must not become a storm.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        shared.answered.fetch_add(1, Ordering::Relaxed);
        if phase == MEASURING {
            waits_us.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_are_those_of_the_requests_and_failures_do_not_count() {
        let shape = Shape {
            clients: 4,
            warm_up: Duration::from_millis(20),
            measured: Duration::from_millis(200),
        };
        let (sample, before, after) = run(
            shape,
            async || Ok(Instant::now()),
            async |client: u32| {
                tokio::time::sleep(Duration::from_millis(2)).await;
                client != 0
            },
        )
        .await
        .unwrap();
        assert!(after - before >= Duration::from_millis(200));
        assert!(sample.p50_us >= 2_000.0 && sample.p50_us <= sample.p99_us, "{sample:?}");
        assert!(sample.per_s <= 1_500.0 && sample.per_s > 30.0, "{sample:?}");
        assert!(sample.failed > 0 && sample.between_readings > 0.0, "{sample:?}");
    }

    #[tokio::test]
    async fn a_run_without_a_good_answer_is_an_error() {
        let shape =
            Shape { clients: 1, warm_up: Duration::ZERO, measured: Duration::from_millis(20) };
        assert!(run(shape, without_meters, async |_| false).await.is_err());
    }

    #[test]
    fn a_shape_survives_its_line() {
        let shape = Shape {
            clients: 64,
            warm_up: Duration::from_millis(250),
            measured: Duration::from_millis(1_500),
        };
        let (read, bytes) = Shape::from_line(&shape.to_line(120)).unwrap();
        assert_eq!(
            (read.clients, read.warm_up, read.measured, bytes),
            (64, shape.warm_up, shape.measured, 120)
        );
        assert!(Shape::from_line("run 1 2").is_none());
    }
}
