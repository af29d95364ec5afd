//! I14: an equal prefix of the log is an equal state, on every node and by way of every snapshot.

use std::collections::BTreeMap;

use holdfast_txn::Digest;

use super::{Checked, hold};

/// The state after each prefix that was looked at.
#[derive(Debug, Default)]
pub(crate) struct Prefixes(BTreeMap<usize, Digest>);

impl Prefixes {
    /// Hashing reads the whole state, so not every prefix is compared; which ones is the same for all nodes.
    pub(crate) fn is_compared(applied: usize) -> bool {
        applied.is_multiple_of(8)
    }

    /// A node has applied so many entries.
    pub(crate) fn at(&mut self, node: usize, applied: usize, hash: Digest) -> Checked {
        let known = *self.0.entry(applied).or_insert(hash);
        hold(known == hash, "I14", || {
            format!("node {node} has another state than its peers behind entry {applied}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_state_behind_the_same_entry_is_found() {
        let mut prefixes = Prefixes::default();
        prefixes.at(1, 8, Digest([1; 32])).unwrap();
        prefixes.at(2, 8, Digest([1; 32])).unwrap();
        assert_eq!(prefixes.at(3, 8, Digest([2; 32])).unwrap_err().promise, "I14");
        assert!(Prefixes::is_compared(16) && !Prefixes::is_compared(17));
    }
}
