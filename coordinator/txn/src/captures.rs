//! Partial capture: what the confirm of a branch carries in place of what its try carried.
//!
//! A program that has tried more than it turns out to need says so at its submit: the hotel is cheaper than the hold on the
//! card. The machine never looks into it. It says which branch carries what, once, before the decision, and keeps it until
//! the end; whether so little may be captured is judged where the hold lies.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

use crate::BranchId;

/// Payloads for the confirms of some branches. The default is none: each confirm carries what its try carried.
///
/// One word of memory, since most transactions have none.
#[derive(Clone, Default, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "a map is three words in each of many transactions")]
pub struct Captures(Option<Box<BTreeMap<BranchId, Bytes>>>);

impl Captures {
    /// The payload that the confirm of `branch` carries, if it is another one than that of the try.
    #[must_use]
    pub fn of(&self, branch: BranchId) -> Option<&Bytes> {
        self.0.as_ref()?.get(&branch)
    }

    /// Whether every confirm carries what its try carried.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many branches have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |some| some.len())
    }

    /// Each with its branch, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (BranchId, &Bytes)> {
        self.0.iter().flat_map(|some| some.iter()).map(|(branch, payload)| (*branch, payload))
    }

    /// Bytes of all payloads.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.iter().map(|(_, payload)| payload.len()).sum()
    }
}

impl From<BTreeMap<BranchId, Bytes>> for Captures {
    fn from(some: BTreeMap<BranchId, Bytes>) -> Self {
        Self((!some.is_empty()).then(|| Box::new(some)))
    }
}

/// Leaves the payloads out, as [`crate::BranchSpec`] does.
impl fmt::Debug for Captures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(branch, payload)| (branch, payload.len()))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_one_value_and_no_payload_is_printed() {
        assert_eq!(Captures::from(BTreeMap::new()), Captures::default());
        assert_eq!(size_of::<Captures>(), size_of::<usize>());
        let one = BTreeMap::from([(BranchId(2), Bytes::from_static(b"secret"))]);
        let one = Captures::from(one);
        assert_eq!((one.len(), one.payload_bytes()), (1, 6));
        assert_eq!((one.of(BranchId(1)), one.of(BranchId(2)).map(Bytes::len)), (None, Some(6)));
        assert!(!format!("{one:?}").contains("secret") && !format!("{one:?}").contains("115"));
    }
}
