//! I18: each key lies on exactly one shard in each epoch, whoever asks; epochs follow each other and no router goes back.

use std::collections::BTreeMap;

use holdfast_ledger::AccountId;
use holdfast_route::Topology;

use super::{Checked, hold};

/// Which rules were in force, and where keys lay by them.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// What the log says.
    in_log: BTreeMap<u64, String>,
    /// By epoch: the shard of each account, as a router was told.
    places: BTreeMap<u64, Vec<String>>,
    /// Of the router.
    last: u64,
}

impl Rules {
    /// The log puts rules into force that follow those of the epoch `expected`.
    pub(crate) fn applied(&mut self, expected: u64, text: &str) -> Checked {
        let before = self.in_log.last_key_value().map_or(0, |(&epoch, _)| epoch);
        hold(before == expected, "I18", || {
            format!("rules that follow epoch {expected} are applied behind epoch {before}")
        })?;
        self.in_log.insert(before + 1, text.to_owned());
        Ok(())
    }

    /// A router takes rules.
    pub(crate) fn taken(
        &mut self,
        epoch: u64,
        topology: &Topology,
        accounts: &[(AccountId, usize)],
    ) -> Checked {
        hold(epoch > self.last, "I18", || {
            format!("a router that has epoch {} takes epoch {epoch}", self.last)
        })?;
        self.last = epoch;
        let mut places = Vec::new();
        for (account, shard) in accounts {
            let found = topology.locate("account", account.as_str());
            let found = found.map(|located| located.shard.as_str().to_owned());
            let expected = format!("shard-{shard}");
            hold(found.as_deref().ok() == Some(expected.as_str()), "I18", || {
                format!("{account} lies on {expected}, a router says {found:?}")
            })?;
            places.push(expected);
        }
        let known = self.places.entry(epoch).or_insert_with(|| places.clone());
        hold(*known == places, "I18", || format!("epoch {epoch} says two things"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_overwrite_others_and_a_router_that_goes_back_are_found() {
        let mut rules = Rules::default();
        rules.applied(0, "a").unwrap();
        assert_eq!(rules.applied(0, "b").unwrap_err().promise, "I18");
        rules.applied(1, "b").unwrap();
        let text = crate::workload::rules_of(2);
        let topology = Topology::parse(&text).unwrap();
        rules.taken(2, &topology, &[]).unwrap();
        assert_eq!(rules.taken(1, &topology, &[]).unwrap_err().promise, "I18");
        let nowhere = [(AccountId::parse("acct-0").unwrap(), 9)];
        assert_eq!(rules.taken(3, &topology, &nowhere).unwrap_err().promise, "I18");
    }
}
