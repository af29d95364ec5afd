//! What is not finished yet, by the epoch of the rules by which it was planned.
//!
//! A worker has one, and no other thread looks into it: whoever plans has its entry in the same breath, so nothing planned is ever missing. What
//! the worker tells others of it ([`crate::shared::Shared::tell_oldest`]) it tells behind having taken new rules itself, so it is never too new.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// One worker's work.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Epochs by which something may be unfinished, the oldest first; the last one is that of the rules in force.
    epochs: RefCell<VecDeque<Rc<u64>>>,
}

/// Something that is not finished, until it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Planned(Rc<u64>);

impl Planned {
    /// Of the rules by which it was planned.
    pub(crate) fn epoch(&self) -> u64 {
        *self.0
    }
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { epochs: RefCell::new([Rc::new(0)].into()) }
    }

    /// From here on what is planned is planned by rules of this epoch.
    pub(crate) fn turn_to(&self, epoch: u64) {
        let mut epochs = self.epochs.borrow_mut();
        if epochs.back().is_some_and(|last| **last == epoch) {
            return;
        }
        epochs.retain(|known| Rc::strong_count(known) > 1);
        epochs.push_back(Rc::new(epoch));
    }

    /// An entry for what is planned now.
    pub(crate) fn enter(&self) -> Planned {
        let epochs = self.epochs.borrow();
        Planned(Rc::clone(epochs.back().expect("the last one stays")))
    }

    /// The oldest epoch by which something is unfinished; that of the rules in force, if nothing older is.
    pub(crate) fn oldest(&self) -> u64 {
        let epochs = self.epochs.borrow();
        let open = epochs.iter().find(|known| Rc::strong_count(known) > 1);
        open.or(epochs.back()).map_or(0, |epoch| **epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_epoch_is_that_of_the_oldest_work_that_is_not_finished() {
        let ledger = Ledger::new();
        ledger.turn_to(4);
        assert_eq!(ledger.oldest(), 4);
        let (first, second) = (ledger.enter(), ledger.enter());
        ledger.turn_to(5);
        ledger.turn_to(5);
        let third = ledger.enter();
        ledger.turn_to(7);
        assert_eq!((first.epoch(), third.epoch(), ledger.enter().epoch()), (4, 5, 7));
        assert_eq!(ledger.oldest(), 4);
        drop(first);
        assert_eq!(ledger.oldest(), 4, "there is a second one");
        drop(second);
        assert_eq!(ledger.oldest(), 5);
        let behind = third.clone();
        drop(third);
        assert_eq!(ledger.oldest(), 5, "what goes on behind an answer counts");
        drop(behind);
        assert_eq!(ledger.oldest(), 7);
    }
}
