//! How long answers took: one histogram for the whole run and one for the current second.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Ten minutes in microseconds: longer waits count as this long.
const LONGEST_US: u64 = 600_000_000;

/// Counts answers by how long they took, to three digits.
#[derive(Debug)]
pub(crate) struct Latency {
    whole: Mutex<Histogram<u64>>,
    recent: Mutex<Histogram<u64>>,
}

/// Three figures of a histogram, in milliseconds; all 0 where nothing was counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    /// Half of the answers took no longer.
    pub(crate) p50_ms: f64,
    /// All but one in a hundred took no longer.
    pub(crate) p99_ms: f64,
    /// The slowest.
    pub(crate) max_ms: f64,
}

impl Latency {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        Self { whole: Mutex::new(empty()), recent: Mutex::new(empty()) }
    }

    /// Counts one answer.
    pub(crate) fn record(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US);
        for histogram in [&self.whole, &self.recent] {
            histogram.lock().expect("no holder panics").saturating_record(took_us.max(1));
        }
    }

    /// Of the whole run.
    pub(crate) fn whole(&self) -> Figures {
        figures(&self.whole.lock().expect("no holder panics"))
    }

    /// Since this was last asked.
    pub(crate) fn recent(&self) -> Figures {
        let mut recent = self.recent.lock().expect("no holder panics");
        let seen = figures(&recent);
        recent.reset();
        seen
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are constants in range")
}

fn figures(histogram: &Histogram<u64>) -> Figures {
    #[expect(clippy::cast_precision_loss, reason = "at most ten digits")]
    let ms = |us: u64| (us as f64 / 10.0).round() / 100.0;
    Figures {
        p50_ms: ms(histogram.value_at_quantile(0.5)),
        p99_ms: ms(histogram.value_at_quantile(0.99)),
        max_ms: ms(histogram.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_answers() {
        let latency = Latency::new();
        for ms in 1..=1_000 {
            latency.record(Duration::from_millis(ms));
        }
        let seen = latency.whole();
        assert!((seen.p50_ms - 500.0).abs() <= 1.0, "{seen:?}");
        assert!((seen.p99_ms - 990.0).abs() <= 1.5, "{seen:?}");
        assert!((seen.max_ms - 1_000.0).abs() <= 1.0, "{seen:?}");
    }

    #[test]
    fn the_current_second_starts_anew_and_the_whole_does_not() {
        let latency = Latency::new();
        latency.record(Duration::from_millis(80));
        assert!(latency.recent().max_ms >= 80.0);
        assert_eq!(latency.recent(), Figures { p50_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 });
        assert!(latency.whole().max_ms >= 80.0);
    }

    #[test]
    fn an_endless_wait_is_counted_and_not_lost() {
        let latency = Latency::new();
        latency.record(Duration::from_secs(86_400));
        assert!(latency.whole().max_ms >= 599_000.0);
    }
}
