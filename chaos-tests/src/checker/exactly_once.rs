//! Exactly once on both legs: joins what clients were told with what the journals hold.

use std::collections::BTreeMap;

use super::history::{Told, Word};
use crate::journal::Effects;

/// What is wrong, a gid each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Told committed, and a leg or both are missing.
    pub lost: Vec<String>,
    /// An effect stands more often than once.
    pub doubled: Vec<String>,
    /// Told committed, and the books hold other legs.
    pub other: Vec<String>,
    /// In the books, and nobody was told committed.
    pub ghosts: Vec<String>,
}

impl Findings {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Holds the journals against what clients were told; `effect` says what a committed transaction does, sorted.
pub fn check(
    told: &BTreeMap<String, Word>,
    effects: &Effects,
    effect: impl Fn(&str) -> Option<Vec<(String, i64)>>,
) -> Findings {
    let mut findings = Findings::default();
    let none = Vec::new();
    for (gid, word) in told {
        let found = effects.get(gid).unwrap_or(&none);
        let expected = match word.told {
            Told::Committed => effect(gid).unwrap_or_default(),
            Told::RolledBack => Vec::new(),
        };
        if *found == expected {
            continue;
        }
        let twice = found.iter().any(|leg| {
            let count = |legs: &[(String, i64)]| legs.iter().filter(|other| *other == leg).count();
            count(found) > count(&expected).max(1)
        });
        let missing = expected.iter().any(|leg| !found.contains(leg));
        let list = match (word.told, twice, missing) {
            (Told::RolledBack, ..) => &mut findings.ghosts,
            (Told::Committed, true, _) => &mut findings.doubled,
            (Told::Committed, false, true) => &mut findings.lost,
            (Told::Committed, false, false) => &mut findings.other,
        };
        list.push(gid.clone());
    }
    findings.ghosts.extend(effects.keys().filter(|gid| !told.contains_key(*gid)).cloned());
    findings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn word(told: Told) -> Word {
        Word { asked_at: Duration::ZERO, told_at: Duration::ZERO, told, repeats: 0 }
    }

    fn legs() -> Vec<(String, i64)> {
        vec![("A".to_owned(), -5), ("B".to_owned(), 5)]
    }

    fn judged(told: Option<Told>, found: &[(String, i64)]) -> Findings {
        let told = told.map(|told| ("g1".to_owned(), word(told)));
        let mut effects = Effects::new();
        if !found.is_empty() {
            effects.insert("g1".to_owned(), found.to_vec());
        }
        check(&told.into_iter().collect(), &effects, |_| Some(legs()))
    }

    #[test]
    fn books_that_say_what_was_told_are_clean() {
        assert!(judged(Some(Told::Committed), &legs()).is_clean());
        assert!(judged(Some(Told::RolledBack), &[]).is_clean());
        assert!(judged(None, &[]).is_clean());
    }

    #[test]
    fn every_planted_bug_is_found_and_named() {
        let gid = vec!["g1".to_owned()];
        let (both, mut twice) = (legs(), legs());
        twice.extend(legs());
        twice.sort_unstable();
        assert_eq!(
            judged(Some(Told::Committed), &[]).lost,
            gid,
            "an acknowledged transfer is gone"
        );
        assert_eq!(judged(Some(Told::Committed), &both[..1]).lost, gid, "one leg of two");
        assert_eq!(judged(Some(Told::Committed), &twice).doubled, gid, "carried out twice");
        let three = [both.clone(), vec![("B".to_owned(), 5)]].concat();
        assert_eq!(judged(Some(Told::Committed), &three).doubled, gid, "one leg twice");
        let more = [both.clone(), vec![("C".to_owned(), 1)]].concat();
        assert_eq!(judged(Some(Told::Committed), &more).other, gid, "a leg that nobody asked for");
        assert_eq!(judged(Some(Told::RolledBack), &both).ghosts, gid, "told no, and moved");
        assert_eq!(judged(None, &both).ghosts, gid, "moved, and nobody asked");
    }
}
