//! Names of participants and headers, each kept once: transactions say the same few again and again. A name of its own for each branch
//! would be a piece of memory that is made, forgotten while it cools, and given back a hundred thousand transactions later.

use std::{array, cell::RefCell, hash::BuildHasher as _};

use foldhash::fast::FixedState;
use holdfast_txn::{BadName, Labels, Participant};

/// Of each kind, as many as a thread keeps; another one with the same place takes it over.
const KEPT: usize = 256;
/// Bytes of labels that are kept: what is longer is seldom said twice.
const LABELS_BYTES_MAX: usize = 256;

/// Names and values as they lie in a record.
type Pair<'r> = (&'r [u8], &'r [u8]);

thread_local! {
    static PARTICIPANTS: Kept<Participant> = Kept::default();
    static LABELS: Kept<Labels> = Kept::default();
}

/// Each at the place that its hash names.
struct Kept<T>(RefCell<[Option<T>; KEPT]>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(RefCell::new(array::from_fn(|_| None)))
    }
}

impl<T: Clone> Kept<T> {
    /// The one that is kept at the place of `hash`, if it is the one; otherwise a new one, which is kept in its place.
    fn get<E>(
        &self,
        hash: u64,
        is_it: impl FnOnce(&T) -> bool,
        new: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let kept = &mut self.0.borrow_mut()[hash as usize % KEPT];
        match kept {
            Some(known) if is_it(known) => Ok(known.clone()),
            _ => Ok(kept.insert(new()?).clone()),
        }
    }
}

/// As [`Participant::parse`].
pub(super) fn participant(text: &str) -> Result<Participant, BadName> {
    let hash = FixedState::default().hash_one(text.as_bytes());
    PARTICIPANTS
        .with(|kept| kept.get(hash, |known| known.as_str() == text, || Participant::parse(text)))
}

/// As [`Labels::in_order`].
pub(super) fn labels(labels: &[Pair<'_>]) -> Option<Labels> {
    let new = || Labels::in_order(labels.iter().copied());
    let bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes == 0 || bytes > LABELS_BYTES_MAX {
        return new();
    }
    let hash = FixedState::default().hash_one(labels);
    LABELS.with(|kept| {
        let is_it = |known: &Labels| {
            let known = known.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            known.eq(labels.iter().copied())
        };
        kept.get(hash, is_it, || new().ok_or(())).ok()
    })
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

    #[test]
    fn labels_that_were_said_lately_are_the_same_piece_of_memory_and_long_ones_their_own() {
        let said = |value: &str| labels(&[(b"tenant", value.as_bytes())]).unwrap();
        let lies_at = |labels: &Labels| labels.get("tenant").unwrap().as_ptr();
        let (one, again) = (said("retail"), said("retail"));
        assert_eq!(lies_at(&one), lies_at(&again));
        let values = || (0..2 * KEPT).map(|number| format!("tenant-{number}"));
        for value in values().chain(values()) {
            assert_eq!(said(&value).get("tenant"), Some(&*value));
        }
        let most = "x".repeat(LABELS_BYTES_MAX - "tenant".len());
        for (value, is_kept) in [(most.clone(), true), (most + "x", false)] {
            let (one, again) = (said(&value), said(&value));
            assert_eq!(one, again);
            assert_eq!(lies_at(&one) == lies_at(&again), is_kept, "{}", value.len());
        }
        for bad in [
            &[(&b"b"[..], &b"1"[..]), (b"a", b"2")][..],
            &[(b"a", b"\xff")],
            &[(b"a", b"1"), (b"a", b"1")],
        ] {
            assert_eq!((labels(bad), labels(bad)), (None, None));
        }
        assert_eq!(labels(&[]), Some(Labels::EMPTY));
    }
}
