//! What is written together: the attempts mostly come just behind their transaction, and then belong to its record at once.

use std::{collections::HashMap, sync::Arc};

use holdfast_history::{Archive, ShelfError};
use holdfast_txn::{Gid, GlobalTransaction};

use super::ended::Ended;
use crate::dispatcher::attempts::Attempts;

/// Some that finished, in this order, and what was seen of the calls of some.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    finished: Vec<Arc<GlobalTransaction>>,
    attempts: HashMap<Gid, Attempts, foldhash::fast::RandomState>,
}

impl Gathered {
    pub(crate) fn finished(&mut self, transactions: Vec<Arc<GlobalTransaction>>) {
        self.finished.extend(transactions);
    }

    pub(crate) fn attempts(&mut self, attempts: Vec<(Gid, Attempts)>) {
        self.attempts.extend(attempts);
    }

    /// Adds it to `archive`, as seen by `node`; says how many were new. Nothing is left.
    pub(crate) fn take_in(&mut self, archive: &Archive, node: u64) -> Result<u64, ShelfError> {
        let Self { finished, mut attempts } = std::mem::take(self);
        let added = archive.add(finished.into_iter().map(|transaction| {
            let seen = if attempts.is_empty() { None } else { attempts.remove(&transaction.gid) };
            Ended { transaction, seen: seen.map(|seen| (seen, node)) }
        }))?;
        // Those whose transaction was told earlier.
        for (gid, seen) in attempts {
            archive.attach(gid.text(), |to| seen.write(node, to));
        }
        Ok(added as u64)
    }
}
