//! I21: what can lose money is done by two people, whatever names the door writes down.

use std::collections::BTreeMap;

use super::{Checked, hold};

/// Who really did what, by the reason that they gave: reasons of this world are unique.
#[derive(Debug, Default)]
pub(crate) struct People(BTreeMap<String, String>);

impl People {
    /// This person acts, and gives this reason.
    pub(crate) fn acts(&mut self, reason: &str, by: &str) {
        self.0.insert(reason.to_owned(), by.to_owned());
    }

    /// What was proposed for the one reason was approved for the other, and took effect.
    pub(crate) fn approved(&self, proposed: &str, approved: &str) -> Checked {
        let (one, other) = (self.0.get(proposed), self.0.get(approved));
        hold(one.is_some() && other.is_some() && one != other, "I21", || {
            format!(
                "what {one:?} proposed ({proposed}) was approved by {other:?} ({approved}), alone"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_person_who_approves_their_own_proposal_is_found() {
        let mut people = People::default();
        people.acts("reason 1", "user/alice");
        people.acts("reason 2", "user/bob");
        people.acts("reason 3", "user/alice");
        people.approved("reason 1", "reason 2").unwrap();
        assert_eq!(people.approved("reason 1", "reason 3").unwrap_err().promise, "I21");
        assert!(people.approved("reason 1", "reason 4").is_err(), "nobody gave that reason");
    }
}
