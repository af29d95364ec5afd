//! Names of participants, each kept once: transactions name the same few again and again. A name of its own for each branch would be a
//! piece of memory that is made, forgotten while it cools, and given back a hundred thousand transactions later.

use std::{array, cell::RefCell, hash::BuildHasher as _};

use foldhash::fast::FixedState;
use holdfast_txn::{BadName, Participant};

/// Names that a thread keeps; another one with the same place takes it over.
const KEPT: usize = 256;

thread_local! {
    static NAMES: RefCell<Names> = RefCell::new(Names(array::from_fn(|_| None)));
}

struct Names([Option<Participant>; KEPT]);

impl Names {
    fn participant(&mut self, text: &str) -> Result<Participant, BadName> {
        let place = FixedState::default().hash_one(text.as_bytes()) as usize % KEPT;
        let kept = &mut self.0[place];
        if let Some(known) = kept
            && known.as_str() == text
        {
            return Ok(known.clone());
        }
        let new = Participant::parse(text)?;
        *kept = Some(new.clone());
        Ok(new)
    }
}

/// As [`Participant::parse`].
pub(super) fn participant(text: &str) -> Result<Participant, BadName> {
    NAMES.with_borrow_mut(|names| names.participant(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once_and_more_than_there_are_places_for_are_told_apart() {
        let lies_at = |text: &str| participant(text).unwrap().as_str().as_ptr();
        assert_eq!(lies_at("debit@shard-1"), lies_at("debit@shard-1"));
        let names = || (0..2 * KEPT).map(|number| format!("bank@shard-{number}"));
        for name in names().chain(names()) {
            assert_eq!(participant(&name).unwrap().as_str(), name);
        }
        assert!(participant("No Name").is_err());
        assert!(participant("No Name").is_err(), "nor the second time");
    }
}
