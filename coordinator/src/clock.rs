//! Time and chance: the only place that reads them. Everything else is told.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use holdfast_fault::{Held, held};
use holdfast_txn::{Gid, Timestamp};
use rand::Rng as _;

/// This node's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    last_ms: AtomicU64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    /// The time of day. Never goes back, whatever is done to the machine's clock.
    pub(crate) fn now(&self) -> Timestamp {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        let wall_ms = wall_ms.saturating_add_signed(held::measure(Held::ClockSkew).unwrap_or(0));
        let before = self.last_ms.fetch_max(wall_ms, Ordering::Relaxed);
        Timestamp(before.max(wall_ms))
    }

    /// Milliseconds since the node started, for pauses and timeouts: steady whatever the time of day does.
    pub(crate) fn tick_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The instant of a tick, for sleeping until then.
    pub(crate) fn instant_of(&self, tick_ms: u64) -> Instant {
        self.started + Duration::from_millis(tick_ms)
    }
}

/// A pause between a half and the whole of `pause_ms`, so that many who wait do not come back at once.
pub(crate) fn jittered(pause_ms: u64) -> u64 {
    let half = pause_ms / 2;
    half + rand::rng().random_range(0..=pause_ms - half)
}

/// A number below `bound`, which must not be 0.
pub(crate) fn below(bound: usize) -> usize {
    rand::rng().random_range(0..bound)
}

/// A new gid: a ULID, so that gids sort by the time at which they were made.
pub(crate) fn new_gid() -> Gid {
    Gid::parse(&ulid::Ulid::new().to_string()).expect("a ULID is 26 characters of A-Z and 0-9")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_never_goes_back() {
        let clock = Clock::new();
        let first = clock.now();
        clock.last_ms.store(first.0 + 60_000, Ordering::Relaxed);
        assert_eq!(clock.now(), first.plus_ms(60_000));
        assert!(clock.now() >= first.plus_ms(60_000));
    }

    #[test]
    fn a_pause_is_between_its_half_and_its_whole() {
        for pause_ms in [0, 1, 2, 3, 100, 10_000] {
            for _ in 0..100 {
                let drawn = jittered(pause_ms);
                assert!(drawn >= pause_ms / 2 && drawn <= pause_ms, "{drawn} for {pause_ms}");
            }
        }
    }

    #[test]
    fn two_new_gids_differ() {
        assert_ne!(new_gid(), new_gid());
    }
}
