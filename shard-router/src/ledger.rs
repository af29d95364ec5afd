//! What is not finished yet, by the epoch of the rules by which it was planned.
//!
//! A worker has one, and no other thread looks into it: whoever plans has its entry in the same breath, so nothing planned is ever missing. What
//! the worker tells others of it ([`crate::shared::Shared::tell_oldest`]) it tells behind having taken new rules itself, so it is never too new.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// One worker's work.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// By which something may be unfinished, the oldest first; the last one is what counts now.
    turns: RefCell<VecDeque<Rc<Turn>>>,
}

/// What is planned by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// Of the rules.
    pub(crate) epoch: u64,
    /// Of what this router knows beside them; it grows with each thing that workers are told.
    pub(crate) version: u64,
}

/// Something that is not finished, until it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Planned(Rc<Turn>);

impl Planned {
    /// By which it was planned.
    pub(crate) fn turn(&self) -> Turn {
        *self.0
    }
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { turns: RefCell::new([Rc::default()].into()) }
    }

    /// From here on what is planned is planned by this.
    pub(crate) fn turn_to(&self, turn: Turn) {
        let mut turns = self.turns.borrow_mut();
        if turns.back().is_some_and(|last| **last == turn) {
            return;
        }
        turns.retain(|known| Rc::strong_count(known) > 1);
        turns.push_back(Rc::new(turn));
    }

    /// What counts now.
    pub(crate) fn now(&self) -> Turn {
        self.turns.borrow().back().map_or_else(Turn::default, |turn| **turn)
    }

    /// An entry for what is planned now.
    pub(crate) fn enter(&self) -> Planned {
        let turns = self.turns.borrow();
        Planned(Rc::clone(turns.back().expect("the last one stays")))
    }

    /// The oldest by which something is unfinished; what counts now, if nothing older is.
    pub(crate) fn oldest(&self) -> Turn {
        let turns = self.turns.borrow();
        let open = turns.iter().find(|known| Rc::strong_count(known) > 1);
        open.or(turns.back()).map_or_else(Turn::default, |turn| **turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_turn_is_that_of_the_oldest_work_that_is_not_finished() {
        let ledger = Ledger::new();
        let turn = |epoch| Turn { epoch, version: 10 * epoch };
        ledger.turn_to(turn(4));
        assert_eq!(ledger.oldest(), turn(4));
        let (first, second) = (ledger.enter(), ledger.enter());
        ledger.turn_to(turn(5));
        ledger.turn_to(turn(5));
        let third = ledger.enter();
        ledger.turn_to(turn(7));
        assert_eq!((first.turn(), third.turn(), ledger.now()), (turn(4), turn(5), turn(7)));
        assert_eq!(ledger.oldest(), turn(4));
        drop(first);
        assert_eq!(ledger.oldest(), turn(4), "there is a second one");
        drop(second);
        assert_eq!(ledger.oldest(), turn(5));
        let behind = third.clone();
        drop(third);
        assert_eq!(ledger.oldest(), turn(5), "what goes on behind an answer counts");
        drop(behind);
        assert_eq!(ledger.oldest(), turn(7));
    }
}
