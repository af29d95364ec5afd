//! Terms: what a record can be found by, as 64-bit hashes that are the same on every node and in every version.

use holdfast_proto::{
    Pairs,
    v1::{self, HistoryRecord},
};

use crate::{amount::Amount, limit};

/// FNV-1a, finished by a mixer: small, stable, and good enough to find by; every find is checked.
fn hash(kind: u8, parts: &[&[u8]]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    let mut eat = |byte: u8| {
        state ^= u64::from(byte);
        state = state.wrapping_mul(0x0000_0100_0000_01b3);
    };
    eat(kind);
    for part in parts {
        part.iter().copied().for_each(&mut eat);
        // No part can hold it, so that two parts never read like two others.
        eat(0xff);
    }
    state ^= state >> 32;
    state = state.wrapping_mul(0xd6e8_feb8_6659_fd93);
    state ^ (state >> 32)
}

pub(crate) fn gid(gid: &str) -> u64 {
    hash(1, &[gid.as_bytes()])
}

pub(crate) fn tag(name: &str, value: &str) -> u64 {
    hash(2, &[name.as_bytes(), value.as_bytes()])
}

pub(crate) fn participant(name: &str) -> u64 {
    hash(3, &[name.as_bytes()])
}

pub(crate) fn status(status: i32) -> u64 {
    hash(4, &[&status.to_le_bytes()])
}

pub(crate) fn mode(mode: i32) -> u64 {
    hash(5, &[&mode.to_le_bytes()])
}

pub(crate) fn amount(currency: [u8; 3], size_class: u8) -> u64 {
    hash(6, &[&currency, &[size_class]])
}

/// An amount of this class on this level.
pub(crate) fn amount_class(currency: [u8; 3], (level, class): (u32, u32)) -> u64 {
    hash(7, &[&currency, &level.to_le_bytes(), &class.to_le_bytes()])
}

/// The amount that a transaction is tagged with.
pub(crate) fn amount_of(transaction: &v1::Transaction) -> Option<Amount> {
    Pairs::find(&transaction.tags, Amount::TAG).and_then(Amount::parse)
}

/// Every term of a record, sorted, each once.
pub(crate) fn all_of(record: &HistoryRecord) -> Vec<u64> {
    let mut terms = Vec::with_capacity(16);
    let Some(transaction) = &record.transaction else { return terms };
    terms.push(gid(&transaction.gid));
    terms.push(status(transaction.status));
    terms.push(mode(transaction.mode));
    if let Some(one) = amount_of(transaction) {
        terms.push(amount(one.currency, one.size_class()));
        terms.extend(one.classes().map(|class| amount_class(one.currency, class)));
    }
    terms.extend(transaction.branches.iter().map(|branch| participant(&branch.participant)));
    terms.extend(Pairs::among(&transaction.tags).map(|(name, value)| tag(name, value)));
    terms.truncate(limit::TERMS_MAX);
    terms.sort_unstable();
    terms.dedup();
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_never_changes_from_one_version_to_the_next() {
        // What lies on disk is found by these numbers.
        assert_eq!(gid("g1"), hash(1, &[b"g1"]));
        assert_ne!(tag("a", "bc"), tag("ab", "c"));
        assert_ne!(gid("x"), participant("x"));
        assert_eq!(format!("{:016x}", tag("run", "payroll")), GOLDEN);
    }

    const GOLDEN: &str = "a55ec6adc712faac";
}
