//! What a server must be told that joins a transaction later: its `BEGIN`, and every setting and savepoint since.

use super::{DEFERRED_BYTES_MAX, DEFERRED_MAX};

/// The statements by which a transaction was opened and what it has set and saved since, in their order.
#[derive(Debug, Default)]
pub(super) struct Opening {
    statements: Vec<Box<str>>,
    bytes: usize,
    /// So many of them are known to have been carried out.
    sure: usize,
    /// They cannot be told to another server; why.
    lost: Option<&'static str>,
}

impl Opening {
    /// These were told to the first server.
    pub(super) fn begin(&mut self, statements: Vec<Box<str>>) {
        self.bytes = statements.iter().map(|sql| sql.len()).sum();
        self.sure = 0;
        self.lost = None;
        self.statements = statements;
    }

    /// One more goes to every server of the transaction.
    pub(super) fn push(&mut self, sql: &str) {
        if self.statements.is_empty() {
            return;
        }
        if self.statements.len() >= DEFERRED_MAX || self.bytes + sql.len() > DEFERRED_BYTES_MAX {
            self.lose("it has more savepoints and settings than are kept for another source");
            return;
        }
        self.bytes += sql.len();
        self.statements.push(sql.into());
    }

    /// Something was done that cannot be repeated elsewhere.
    pub(super) fn lose(&mut self, why: &'static str) {
        self.lost = Some(why);
    }

    /// The transaction goes on: all that was told was carried out.
    pub(super) fn is_sure(&mut self) {
        self.sure = self.statements.len();
    }

    /// The transaction has failed: what was told last may be what failed.
    pub(super) fn forget_unsure(&mut self) {
        self.statements.truncate(self.sure.max(1));
    }

    pub(super) fn clear(&mut self) {
        self.statements.clear();
        self.lost = None;
    }

    /// What to tell a server that joins.
    /// # Errors
    /// Why it cannot be told.
    pub(super) fn statements(&self) -> Result<&[Box<str>], &'static str> {
        match self.lost {
            Some(why) => Err(why),
            None if self.statements.is_empty() => {
                Err("its BEGIN was one of several statements in one query, or there was none")
            }
            None => Ok(&self.statements),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_not_repeated_and_the_bound_is_kept() {
        let mut opening = Opening::default();
        assert!(opening.statements().is_err());
        opening.push("SAVEPOINT without a transaction");
        assert!(opening.statements().is_err());
        opening.begin(vec!["BEGIN".into()]);
        opening.push("SAVEPOINT a");
        opening.is_sure();
        opening.push("ROLLBACK TO nowhere");
        opening.forget_unsure();
        let told = |opening: &Opening| opening.statements().map(<[_]>::len);
        assert_eq!(told(&opening), Ok(2));
        for _ in 2..DEFERRED_MAX {
            opening.push("SAVEPOINT b");
        }
        assert_eq!(told(&opening), Ok(DEFERRED_MAX));
        opening.push("SAVEPOINT c");
        assert!(told(&opening).is_err(), "one past the limit");
        opening.clear();
        opening.begin(vec!["BEGIN".into()]);
        assert_eq!(told(&opening), Ok(1));
    }
}
