//! I7: statuses move only along the legal graph, and what is finished stays so.

use std::collections::BTreeMap;

use holdfast_txn::{Gid, Moved, Status};

use super::{Checked, hold};

/// Where each transaction was last.
#[derive(Debug, Default)]
pub(crate) struct Moves(BTreeMap<Gid, Status>);

impl Moves {
    pub(crate) fn moved(&mut self, gid: &Gid, moved: Moved) -> Checked {
        let before = self.0.insert(gid.clone(), moved.to);
        hold(before == moved.from, "I7", || {
            format!("{gid} was {before:?}, and moved from {:?}", moved.from)
        })?;
        let legal = match moved.from {
            None => matches!(moved.to, Status::Active | Status::Trying | Status::Running),
            // One command may make two moves, for example from active over running to committed.
            Some(from) => {
                let over = |step: &Status| from.may_become(*step) && step.may_become(moved.to);
                from.may_become(moved.to) || (!from.is_final() && Status::ALL.iter().any(over))
            }
        };
        hold(legal, "I7", || format!("{gid} moved from {:?} to {:?}", moved.from, moved.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_out_of_the_end_is_found() {
        let gid = Gid::parse("g").unwrap();
        let mut moves = Moves::default();
        let step = |from, to| Moved { from, to };
        moves.moved(&gid, step(None, Status::Running)).unwrap();
        moves.moved(&gid, step(Some(Status::Running), Status::Committed)).unwrap();
        let broken = moves.moved(&gid, step(Some(Status::Committed), Status::Running));
        assert_eq!(broken.unwrap_err().promise, "I7");
    }
}
