//! I9: one gid is one transaction: the same content has the same fate, other content is refused.

use std::collections::BTreeMap;

use holdfast_txn::{Command, Gid};

use super::{Checked, hold};
use crate::workload::VARIANT;

/// The content that owns each gid.
#[derive(Debug, Default)]
pub(crate) struct Owners(BTreeMap<Gid, String>);

/// What tells this begin from another of the same gid.
pub(crate) fn variant(command: &Command) -> Option<String> {
    match command {
        Command::Begin { options, .. } => {
            Some(options.tags.get(VARIANT).unwrap_or_default().to_owned())
        }
        _ => None,
    }
}

impl Owners {
    /// A begin took effect in the log.
    pub(crate) fn begun(&mut self, gid: &Gid, command: &Command) -> Checked {
        let Some(variant) = variant(command) else { return Ok(()) };
        let before = self.0.insert(gid.clone(), variant);
        hold(before.is_none(), "I9", || format!("{gid} was begun twice"))
    }

    /// A begin was answered as known or taken.
    pub(crate) fn accepted(&self, gid: &Gid, command: &Command) -> Checked {
        let Some(variant) = variant(command) else { return Ok(()) };
        let owner = self.0.get(gid);
        hold(owner == Some(&variant), "I9", || {
            format!("{gid} belongs to {owner:?}, and {variant} was answered as its repeat")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        settings::Settings,
        workload::{Places, Plan},
    };

    #[test]
    fn other_content_that_is_accepted_is_found() {
        let places = Places::of(&Settings::of(1));
        let (one, other) = (&places.accounts[0].0, &places.accounts[1].0);
        let plan = Plan::plain("g", &places, one.as_str(), other.as_str(), 1);
        let mut owners = Owners::default();
        owners.begun(&plan.gid, &plan.begin()).unwrap();
        owners.accepted(&plan.gid, &plan.begin()).unwrap();
        let broken = owners.accepted(&plan.gid, &plan.rival().begin()).unwrap_err();
        assert_eq!(broken.promise, "I9");
    }
}
