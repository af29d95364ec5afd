//! What is written together: the attempts mostly come just behind their transaction, and then belong to its record at once.

use std::{collections::HashMap, sync::Arc, vec};

use holdfast_history::{Archive, ShelfError};
use holdfast_txn::{Gid, GlobalTransaction};

use super::ended::Ended;
use crate::dispatcher::attempts::Attempts;

/// Transactions that are added at once, which takes less than a tenth of a millisecond.
const FEW: usize = 64;

/// Some that finished, in this order, and what was seen of the calls of some.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    finished: Vec<Arc<GlobalTransaction>>,
    attempts: Vec<(Gid, Attempts)>,
}

impl Gathered {
    pub(crate) fn finished(&mut self, transactions: Vec<Arc<GlobalTransaction>>) {
        append(&mut self.finished, transactions);
    }

    pub(crate) fn attempts(&mut self, attempts: Vec<(Gid, Attempts)>) {
        append(&mut self.attempts, attempts);
    }

    /// Adds it to `archive`, as seen by `node`; says how many were new. Nothing is left. `between` is called behind each few of them.
    pub(crate) fn take_in(
        &mut self,
        archive: &Archive,
        node: u64,
        between: impl Fn(),
    ) -> Result<u64, ShelfError> {
        let Self { finished, attempts } = std::mem::take(self);
        let mut seen = Seen { next: attempts.into_iter(), passed: HashMap::default() };
        let mut added = 0;
        let mut finished = finished.into_iter();
        while finished.len() > 0 {
            let few = finished.by_ref().take(FEW);
            added += archive.add(few.map(|transaction| {
                let seen = seen.of(&transaction.gid);
                Ended { transaction, seen: seen.map(|seen| (seen, node)) }
            }))?;
            between();
        }
        // Those whose transaction was told earlier.
        for (gid, seen) in seen.passed.into_iter().chain(seen.next) {
            archive.attach(gid.text(), |to| seen.write(node, to));
        }
        Ok(added as u64)
    }
}

/// As one list: mostly there is one only, and it is not copied.
fn append<T>(to: &mut Vec<T>, more: Vec<T>) {
    if to.is_empty() {
        *to = more;
    } else {
        to.extend(more);
    }
}

/// Attempts, which come nearly in the order of their transactions: those that are next are looked at first, and only those that are passed over
/// are put where they can be found.
struct Seen {
    next: vec::IntoIter<(Gid, Attempts)>,
    passed: HashMap<Gid, Attempts, foldhash::fast::RandomState>,
}

impl Seen {
    fn of(&mut self, gid: &Gid) -> Option<Attempts> {
        if !self.passed.is_empty()
            && let Some(seen) = self.passed.remove(gid)
        {
            return Some(seen);
        }
        for (of, seen) in self.next.by_ref() {
            if of == *gid {
                return Some(seen);
            }
            self.passed.insert(of, seen);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_found_in_whatever_order_they_come_and_once() {
        let gid = |number: u32| Gid::parse(&format!("g{number}")).expect("letters and digits");
        // In order, then the other way round.
        let order = (0..50).chain((50..100).rev());
        let next: Vec<_> = order.map(|number| (gid(number), Attempts::default())).collect();
        let mut seen = Seen { next: next.into_iter(), passed: HashMap::default() };
        assert!((0..50).all(|number| seen.of(&gid(number)).is_some()));
        assert!(seen.passed.is_empty(), "none is put aside where they are in order");
        assert!((50..100).all(|number| seen.of(&gid(number)).is_some()));
        assert!(seen.of(&gid(0)).is_none() && seen.of(&gid(100)).is_none());
    }
}
