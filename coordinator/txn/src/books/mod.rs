//! What is kept beside transactions: the shard rules in force, the audit trail, and what waits for a second person.

mod proposal;
mod rules;
mod trail;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use proposal::{Proposal, Remedy};
pub use rules::RulesVersion;
pub use trail::{AuditRecord, Broken, Deed, Trail, check_chain};

use crate::Gid;

/// All of it, as plain data. Equal books give equal snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Shard rules by epoch, the newest last; at most [`crate::limit::RULES_KEPT_MAX`].
    pub rules: VecDeque<Arc<RulesVersion>>,
    /// Who did what.
    pub trail: Trail,
    /// Remedies that wait for a second person, at most one for each transaction.
    pub proposals: BTreeMap<Gid, Proposal>,
}

impl Books {
    /// The rules in force, if any were ever set.
    #[must_use]
    pub fn rules_now(&self) -> Option<&Arc<RulesVersion>> {
        self.rules.back()
    }

    /// The epoch of the rules in force; 0: none were ever set.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.rules.back().map_or(0, |now| now.epoch)
    }

    /// Nothing was ever written into them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.trail.count == 0 && self.proposals.is_empty()
    }
}
