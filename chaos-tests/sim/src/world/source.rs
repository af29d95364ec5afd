//! A source of the router: rows in a PostgreSQL, changed by local transactions that lock what they write, can be prepared under a name,
//! and whose end is known by their number for ever.

use std::collections::BTreeMap;

use super::database::{Call, Carried, Said};
use holdfast_branch::Verdict;
use holdfast_txn::{Gid, Op};

/// The rows of each source.
pub(crate) const ROWS: usize = 4;
/// What each opens with.
const ROW_STARTS_WITH: i64 = 100;

/// A local transaction's number, as `pg_current_xact_id()` says it.
pub(crate) type Xact = u64;

/// How far a local transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its session goes on, or has lost its connection and will not.
    Open,
    /// It waits under its name, since this time, for whoever ends it.
    Prepared {
        since_ms: u64,
    },
    Committed,
    Aborted,
}

/// One local transaction.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) gid: Gid,
    pub(crate) branch: u32,
    /// Rows, and what they gain or lose.
    changes: Vec<(usize, i64)>,
    pub(crate) end: End,
}

/// Why a row was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotWritten {
    /// Another local transaction holds it.
    Locked,
    /// It would fall below nothing.
    TooLittle,
}

/// One source. It outlives routers and agents.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    rows: [i64; ROWS],
    pub(crate) locals: BTreeMap<Xact, Local>,
}

impl Source {
    pub(crate) fn new() -> Self {
        Self { rows: [ROW_STARTS_WITH; ROWS], locals: BTreeMap::new() }
    }

    /// All rows together, as a reader sees them who waits for nobody.
    pub(crate) fn total(&self) -> i64 {
        self.rows.iter().sum()
    }

    /// What all rows of a source opened with together.
    pub(crate) fn opening() -> i64 {
        ROW_STARTS_WITH * i64::try_from(ROWS).expect("few rows")
    }

    /// Begins a local transaction that writes these rows, and holds them until its end.
    pub(crate) fn write(
        &mut self,
        gid: &Gid,
        branch: u32,
        changes: &[(usize, i64)],
    ) -> Result<Xact, NotWritten> {
        let standing = self
            .locals
            .values()
            .filter(|local| matches!(local.end, End::Open | End::Prepared { .. }));
        let mut held = standing.flat_map(|local| local.changes.iter().map(|(row, _)| *row));
        if held.any(|row| changes.iter().any(|(wanted, _)| *wanted == row)) {
            return Err(NotWritten::Locked);
        }
        if changes.iter().any(|(row, delta)| self.rows[*row] + delta < 0) {
            return Err(NotWritten::TooLittle);
        }
        let xact = self.locals.len() as Xact + 1;
        let (gid, changes) = (gid.clone(), changes.to_vec());
        self.locals.insert(xact, Local { gid, branch, changes, end: End::Open });
        Ok(xact)
    }

    /// `PREPARE TRANSACTION`. False: it is not open any more.
    pub(crate) fn prepare(&mut self, xact: Xact, now_ms: u64) -> bool {
        match self.locals.get_mut(&xact) {
            Some(local) if local.end == End::Open => {
                local.end = End::Prepared { since_ms: now_ms };
                true
            }
            _ => false,
        }
    }

    /// `COMMIT` or `ROLLBACK` of what is open. False: it is not.
    pub(crate) fn end_open(&mut self, xact: Xact, commit: bool) -> bool {
        let is_open = self.locals.get(&xact).is_some_and(|local| local.end == End::Open);
        if is_open {
            self.end(xact, commit);
        }
        is_open
    }

    /// `COMMIT PREPARED` or `ROLLBACK PREPARED`, by name. Answers the number of what was ended; `None`: nothing is prepared under it.
    pub(crate) fn end_prepared(&mut self, gid: &Gid, branch: u32, commit: bool) -> Option<Xact> {
        let found = self.locals.iter().find(|(_, local)| {
            (&local.gid, local.branch) == (gid, branch) && matches!(local.end, End::Prepared { .. })
        });
        let xact = *found?.0;
        self.end(xact, commit);
        Some(xact)
    }

    fn end(&mut self, xact: Xact, commit: bool) {
        let local = self.locals.get_mut(&xact).expect("it was found");
        local.end = if commit { End::Committed } else { End::Aborted };
        if commit {
            for (row, delta) in &local.changes {
                self.rows[*row] += delta;
            }
        }
    }

    /// What is prepared: its name and since when.
    pub(crate) fn in_doubt(&self) -> impl Iterator<Item = (&Gid, u32, u64)> {
        self.locals.values().filter_map(|local| match local.end {
            End::Prepared { since_ms } => Some((&local.gid, local.branch, since_ms)),
            End::Open | End::Committed | End::Aborted => None,
        })
    }

    /// PostgreSQL restarts: what is open is gone, what is prepared stays.
    pub(crate) fn restart(&mut self) -> Vec<Xact> {
        let open: Vec<Xact> = self
            .locals
            .iter()
            .filter(|(_, local)| local.end == End::Open)
            .map(|(xact, _)| *xact)
            .collect();
        for xact in &open {
            self.end(*xact, false);
        }
        open
    }

    /// The agent `source@NAME` is called: ends by name what it finds; where nothing is prepared, the number alone is a proof.
    pub(crate) fn called(&mut self, call: &Call) -> (Carried, Option<Xact>) {
        let gid = Gid::parse(&call.key.gid).expect("a key is made of a gid");
        let commit = call.op == Op::Commit;
        let ended = self.end_prepared(&gid, call.key.branch, commit);
        let said = match ended {
            Some(_) => Said::Done,
            None => self.judge(commit, xact_of(&call.payload)),
        };
        let carried =
            Carried { call: call.clone(), verdict: Verdict::Proceed, said, postings: Vec::new() };
        (carried, ended)
    }

    fn judge(&self, commit: bool, xact: Xact) -> Said {
        match (commit, self.locals.get(&xact).map(|local| local.end)) {
            (true, Some(End::Committed)) | (false, Some(End::Aborted) | None) => Said::Done,
            (_, Some(End::Open | End::Prepared { .. })) => Said::Unknown,
            (_, Some(End::Committed | End::Aborted)) => Said::Refused("ended-otherwise".to_owned()),
            (true, None) => Said::Refused("no-proof".to_owned()),
        }
    }
}

/// What a branch of mode XA carries: the number of its local transaction.
pub(crate) fn payload(xact: Xact) -> String {
    format!("xact {xact} 0")
}

fn xact_of(payload: &[u8]) -> Xact {
    super::database::words(payload)[1].parse().expect("a router says the number")
}

#[cfg(test)]
mod tests {
    use holdfast_ledger::BranchKey;

    use super::*;

    fn gid(text: &str) -> Gid {
        Gid::parse(text).unwrap()
    }

    #[test]
    fn what_is_prepared_outlives_a_restart_and_holds_its_rows_and_what_is_open_does_not() {
        let mut source = Source::new();
        let kept = source.write(&gid("a"), 1, &[(0, -10)]).unwrap();
        let lost = source.write(&gid("b"), 1, &[(1, -10)]).unwrap();
        assert!(source.prepare(kept, 5));
        assert_eq!(source.restart(), [lost]);
        assert_eq!(source.write(&gid("c"), 1, &[(0, 1)]), Err(NotWritten::Locked));
        assert_eq!(source.write(&gid("c"), 1, &[(1, -101)]), Err(NotWritten::TooLittle));
        assert_eq!(source.in_doubt().count(), 1);
        assert_eq!(source.end_prepared(&gid("a"), 1, true), Some(kept));
        assert_eq!((source.total(), source.in_doubt().count()), (Source::opening() - 10, 0));
    }

    #[test]
    fn does_not_exist_is_taken_for_done_only_behind_the_number() {
        let mut source = Source::new();
        let xact = source.write(&gid("a"), 1, &[(0, -10)]).unwrap();
        let call = |op, xact| Call {
            key: BranchKey::new("a", 1),
            op,
            payload: payload(xact).into_bytes().into(),
            refusal_waits: false,
        };
        assert_eq!(source.called(&call(Op::Commit, xact)).0.said, Said::Unknown, "it is open");
        assert!(source.end_open(xact, false));
        let refused = |code: &str| Said::Refused(code.to_owned());
        assert_eq!(source.called(&call(Op::Commit, xact)).0.said, refused("ended-otherwise"));
        assert_eq!(source.called(&call(Op::Commit, 99)).0.said, refused("no-proof"));
        assert_eq!(source.called(&call(Op::RollBack, xact)).0.said, Said::Done);
    }
}
