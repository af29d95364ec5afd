//! I23: a campaign is not empty: every fault was installed and every state reached at least once.

use crate::happening::{Counts, Happening};

/// What never happened in all these runs.
#[must_use]
pub fn never_happened(counts: &Counts) -> Vec<Happening> {
    Happening::ALL.iter().copied().filter(|&happening| counts.of(happening) == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let mut counts = Counts::default();
        assert_eq!(never_happened(&counts).len(), Happening::ALL.len());
        counts.count(Happening::Election);
        assert!(!never_happened(&counts).contains(&Happening::Election));
    }
}
