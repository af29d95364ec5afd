//! The place of an entry in the log.

use std::fmt;

/// The place of an entry in the log: written `1204@3`, index at term.
///
/// Ordered by term first, as Raft orders logs; within one log index and term grow together. The default, `0@0`, is the
/// place of the entry that founds a cluster, and stands for "nothing yet" where a status speaks of an empty log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Counted from 0 over the life of the cluster.
    pub index: u64,
    /// The term of the leader that wrote the entry.
    pub term: u64,
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.term, self.index).cmp(&(other.term, other.index))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_as_index_at_term() {
        assert_eq!(Position { index: 1204, term: 3 }.to_string(), "1204@3");
    }

    #[test]
    fn a_later_term_is_later_whatever_the_index() {
        assert!(Position { index: 3, term: 5 } > Position { index: 9, term: 4 });
        assert!(Position { index: 4, term: 5 } > Position { index: 3, term: 5 });
    }
}
