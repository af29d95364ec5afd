//! I22: every queue stays within its bound.

use super::{Checked, hold};

/// Commands that wait for an entry on one node.
pub(crate) const COMMANDS_MAX: usize = 64;
/// Answers that a leader holds of one transaction: a try and what follows it, for each branch.
pub(crate) const HEARD_PER_BRANCH_MAX: usize = 2;
/// Callers that wait for a decision on one node.
pub(crate) const WAITERS_MAX: usize = 256;
/// Calls that wait for one database.
pub(crate) const CALLS_MAX: usize = 512;
/// Everything that is foreseen at once.
pub(crate) const EVENTS_MAX: usize = 20_000;

/// So many are in a queue that holds so many.
pub(crate) fn within(what: &'static str, measured: usize, allowed: usize) -> Checked {
    hold(measured <= allowed, "I22", || format!("{what}: {measured}, allowed are {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_one_more_is_found() {
        within("calls", CALLS_MAX, CALLS_MAX).unwrap();
        assert_eq!(within("calls", CALLS_MAX + 1, CALLS_MAX).unwrap_err().promise, "I22");
    }
}
