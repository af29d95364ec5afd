//! I17: once the world has healed, everything ends within a stated time, and a new transaction is served.

use super::{Checked, hold};

/// From the end of the faults until nothing is open, simulated ms: the longest deadline, every pause at its ceiling, and people
/// who look once a second.
pub(crate) const QUIET_WITHIN_MS: u64 = 60_000;
/// From the begin of a new transaction to its commit, simulated ms.
pub(crate) const SERVED_WITHIN_MS: u64 = 5_000;

/// Still not quiet, so long after the heal.
pub(crate) fn waiting(healed_ms: u64, now_ms: u64, what: impl FnOnce() -> String) -> Checked {
    hold(now_ms <= healed_ms + QUIET_WITHIN_MS, "I17", || {
        format!("not quiet {} ms after the heal: {}", now_ms.saturating_sub(healed_ms), what())
    })
}

/// The last transaction is not committed, so long after its begin.
pub(crate) fn serving(begun_ms: u64, now_ms: u64) -> Checked {
    hold(now_ms <= begun_ms + SERVED_WITHIN_MS, "I17", || {
        format!("a new transaction is not committed after {} ms", now_ms - begun_ms)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_moment_is_in_time_and_the_next_is_not() {
        waiting(1_000, 1_000 + QUIET_WITHIN_MS, String::new).unwrap();
        assert!(waiting(1_000, 1_001 + QUIET_WITHIN_MS, String::new).is_err());
        serving(5, 5 + SERVED_WITHIN_MS).unwrap();
        assert!(serving(5, 6 + SERVED_WITHIN_MS).is_err());
    }
}
