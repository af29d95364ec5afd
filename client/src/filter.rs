//! Which transactions a caller has listed.

use crate::{
    Mode, Status,
    wire::{self, ListRequest},
};

/// Which transactions a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these; empty = all.
    pub statuses: Vec<Status>,
    /// Only behind this gid.
    pub after: Option<String>,
    /// 1 to 1,000; 0 = 100.
    pub limit: u32,
    /// Only these modes; empty = all.
    pub modes: Vec<Mode>,
    /// Only with a branch of this participant.
    pub participant: Option<String>,
    /// Only with each of these tags, at most 8: names and values.
    pub tags: Vec<(String, String)>,
    /// Only with the tag `amount` from the first to the second, both included, as `50.00 EUR`.
    pub amount: Option<(String, String)>,
    /// Only begun at this time or later, ms since epoch.
    pub from_ms: u64,
    /// Only begun before this time, ms since epoch; 0 = no bound.
    pub until_ms: u64,
}

impl Filter {
    pub(crate) fn into_wire(self) -> ListRequest {
        let (amount_min, amount_max) = self.amount.unwrap_or_default();
        let tag = |(name, value)| wire::Tag { name, value };
        ListRequest {
            statuses: self.statuses.iter().map(|status| status.to_wire().into()).collect(),
            after_gid: self.after.unwrap_or_default(),
            limit: self.limit,
            modes: self.modes.iter().map(|mode| mode.to_wire().into()).collect(),
            participant: self.participant.unwrap_or_default(),
            tags: self.tags.into_iter().map(tag).collect(),
            amount_min,
            amount_max,
            from_ms: self.from_ms,
            until_ms: self.until_ms,
        }
    }
}
