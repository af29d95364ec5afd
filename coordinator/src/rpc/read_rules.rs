//! The shard rules that are kept, as the route mind reads them: each version once, and once whose plans it keeps.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_route::{RuleMistakes, Topology};
use holdfast_txn::{RulesVersion, limit};

use super::fault::{Class, Fault};

/// At most as many as are kept; the one that was read first makes room.
#[derive(Debug, Default)]
pub(super) struct ReadRules(Mutex<VecDeque<Read>>);

#[derive(Debug)]
struct Read {
    version: Arc<RulesVersion>,
    rules: Arc<Topology>,
    /// The epoch that was asked about last, and whether its rules keep plans of these.
    kept_by: Option<(u64, bool)>,
}

/// HF2408: the mistakes, each with line, column and remedy.
pub(super) fn read(text: &str) -> Result<Topology, Fault> {
    Topology::parse(text).map_err(|mistakes| {
        let mistakes = RuleMistakes { file: "the rules".to_owned(), mistakes };
        Fault::new(Class::BadInput, "HF2408", format!("nothing was done: {mistakes}"))
    })
}

impl ReadRules {
    /// What `version` says.
    /// # Errors
    /// HF2408: another version of this program took it for rules.
    pub(super) fn of(&self, version: &Arc<RulesVersion>) -> Result<Arc<Topology>, Fault> {
        let mut known = self.lock();
        let read = Self::find(&mut known, version)?;
        Ok(Arc::clone(&read.rules))
    }

    /// Whether work that was planned by `older` may go on and commit by `now`.
    pub(super) fn keep_plans(&self, now: &Arc<RulesVersion>, older: &Arc<RulesVersion>) -> bool {
        let Ok(rules) = self.of(now) else { return false };
        let mut known = self.lock();
        let Ok(read) = Self::find(&mut known, older) else { return false };
        match read.kept_by {
            Some((epoch, kept)) if epoch == now.epoch => kept,
            _ => {
                let kept = rules.keeps_plans_of(&read.rules);
                read.kept_by = Some((now.epoch, kept));
                kept
            }
        }
    }

    fn find<'r>(
        known: &'r mut VecDeque<Read>,
        version: &Arc<RulesVersion>,
    ) -> Result<&'r mut Read, Fault> {
        let place = known.iter().position(|read| Arc::ptr_eq(&read.version, version));
        let place = if let Some(place) = place {
            place
        } else {
            let rules = Arc::new(read(&version.text)?.at_epoch(version.epoch));
            while known.len() >= limit::RULES_KEPT_MAX {
                known.pop_front();
            }
            known.push_back(Read { version: Arc::clone(version), rules, kept_by: None });
            known.len() - 1
        };
        Ok(&mut known[place])
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Read>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_txn::Timestamp;

    use super::*;

    const RULES: &str = include_str!("../../../config/shards.toml");

    fn version(epoch: u64, text: &str) -> Arc<RulesVersion> {
        let (by, reason) = ("dan".to_owned(), "why".to_owned());
        Arc::new(RulesVersion { epoch, text: text.to_owned(), at: Timestamp(1), by, reason })
    }

    #[test]
    fn as_many_versions_are_read_as_are_kept_and_one_more_makes_the_first_be_read_again() {
        let rules = ReadRules::default();
        let versions: Vec<_> = (1..=9).map(|epoch| version(epoch, RULES)).collect();
        let read: Vec<_> = versions.iter().take(8).map(|one| rules.of(one).unwrap()).collect();
        assert_eq!(limit::RULES_KEPT_MAX, 8);
        assert!(Arc::ptr_eq(&rules.of(&versions[0]).unwrap(), &read[0]));
        rules.of(&versions[8]).unwrap();
        assert_eq!(rules.lock().len(), 8);
        assert!(!Arc::ptr_eq(&rules.of(&versions[0]).unwrap(), &read[0]));
    }

    #[test]
    fn plans_are_kept_as_the_rules_that_are_asked_say() {
        let rules = ReadRules::default();
        let moved = RULES.replace("last = 255", "last = 199").replace("first = 256", "first = 200");
        let (first, like, other) =
            (version(1, RULES), version(2, &format!("{RULES}\n# other words")), version(3, &moved));
        for _ in 0..2 {
            assert!(rules.keep_plans(&like, &first));
            assert!(!rules.keep_plans(&other, &first));
            assert!(!rules.keep_plans(&other, &like));
        }
        assert!(!rules.keep_plans(&version(4, "no rules"), &first), "nobody knows");
    }
}
