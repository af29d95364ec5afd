//! I7: statuses move only along the legal graph, and what is finished stays so.

use std::collections::BTreeMap;

use holdfast_txn::{Command, Gid, Mode, Moved, Status};

use super::{Checked, hold};

/// Where each transaction was last.
#[derive(Debug, Default)]
pub(crate) struct Moves(BTreeMap<Gid, Status>);

impl Moves {
    pub(crate) fn moved(&mut self, gid: &Gid, command: &Command, moved: Moved) -> Checked {
        let before = self.0.insert(gid.clone(), moved.to);
        hold(before == moved.from, "I7", || {
            format!("{gid} was {before:?}, and moved from {:?}", moved.from)
        })?;
        let legal = match moved.from {
            None => match command {
                // What is prepared is decided as it is begun, and what is fenced is over.
                Command::Begin { mode: Mode::Xa, .. } => moved.to == Status::Committing,
                Command::Fence { .. } => moved.to == Status::RolledBack,
                _ => matches!(moved.to, Status::Active | Status::Trying | Status::Running),
            },
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
        let command = Command::Expire { gid: gid.clone() };
        let mut moves = Moves::default();
        let step = |from, to| Moved { from, to };
        moves.moved(&gid, &command, step(None, Status::Running)).unwrap();
        moves.moved(&gid, &command, step(Some(Status::Running), Status::Committed)).unwrap();
        let broken = moves.moved(&gid, &command, step(Some(Status::Committed), Status::Running));
        assert_eq!(broken.unwrap_err().promise, "I7");
        let (fence, other) = (Gid::parse("f").unwrap(), Gid::parse("h").unwrap());
        let command = Command::Fence { gid: fence.clone(), reason: String::new() };
        moves.moved(&fence, &command, step(None, Status::RolledBack)).unwrap();
        let broken = moves.moved(&other, &command, step(None, Status::Committing));
        assert_eq!(broken.unwrap_err().promise, "I7");
    }
}
