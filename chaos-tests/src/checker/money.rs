//! Money at consistent cuts, while everything runs: balances and holds of all shards, read when no local transaction is between them.
//!
//! A hold takes nothing from a balance, and a capture moves money on one shard before it does on the other. So the sum of balances
//! alone may be off in the middle of a transfer; what may never be off is the sum of balances plus what is decided and not captured
//! yet. Each shard is read in one snapshot of its own; a global transaction whose legs stand on one side of the cut only is set
//! against its other leg, which must be held at the other side.

use std::collections::BTreeMap;

use anyhow::ensure;
use tokio_postgres::Client;

/// One shard at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// Sum of all balances, minor units.
    pub balance_minor: i128,
    /// Sum of all openings.
    pub opening_minor: i128,
    /// By gid: what has changed balances.
    pub moved: BTreeMap<String, i128>,
    /// By gid: what is held and not resolved; incoming positive, outgoing negative.
    pub held: BTreeMap<String, i128>,
    /// Accounts below nothing, or held below nothing.
    pub negative: u64,
}

/// What a cut says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Money is conserved, with so many transfers on their way.
    Conserved {
        /// Global transactions with one leg done and the other held.
        under_way: usize,
    },
    /// The balances of a shard are not its openings and what has moved, or something is negative.
    Torn(String),
    /// A gid has moved money on one side, and nothing is held on the other.
    HalfDone(String),
}

/// Judges shards that were read one after the other while everything ran; `later` are the same shards read again, behind all of
/// `first`. What was half done at the first reading is done, or held, at the second.
#[must_use]
pub fn judge(first: &[Shard], later: &[Shard]) -> Cut {
    for (at, shard) in first.iter().chain(later).enumerate() {
        let moved: i128 = shard.moved.values().sum();
        if shard.opening_minor + moved != shard.balance_minor {
            return Cut::Torn(format!("reading {at}: {shard:?}"));
        }
        if shard.negative > 0 {
            return Cut::Torn(format!("reading {at}: {} accounts are negative", shard.negative));
        }
    }
    let sum = |shards: &[Shard]| {
        let mut sum: BTreeMap<String, i128> = BTreeMap::new();
        for (gid, minor) in shards.iter().flat_map(|shard| &shard.moved) {
            *sum.entry(gid.clone()).or_default() += minor;
        }
        sum
    };
    let mut under_way = 0;
    let (before, after) = (sum(first), sum(later));
    for (gid, minor) in before.iter().filter(|(_, minor)| **minor != 0) {
        let still = after.get(gid).copied().unwrap_or(*minor);
        let held: i128 = later.iter().filter_map(|shard| shard.held.get(gid)).sum();
        if still != 0 && still + held != 0 {
            return Cut::HalfDone(format!("{gid}: {still} moved, {held} held"));
        }
        under_way += 1;
    }
    Cut::Conserved { under_way }
}

/// Reads every shard in one snapshot each.
/// # Errors
/// What PostgreSQL says.
pub async fn read(sources: &mut [(String, Client)]) -> anyhow::Result<Vec<Shard>> {
    let mut shards = Vec::with_capacity(sources.len());
    for (_, client) in sources {
        let cut = client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        let row = cut
            .query_one(
                "SELECT coalesce(sum(balance_minor), 0)::text,
                        count(*) FILTER (WHERE balance_minor < 0 OR held_out_minor < 0 OR held_in_minor < 0)
                 FROM bank.account",
                &[],
            )
            .await?;
        let negative: i64 = row.get(1);
        let mut shard = Shard {
            balance_minor: row.get::<_, &str>(0).parse()?,
            negative: u64::try_from(negative)?,
            ..Shard::default()
        };
        for row in cut
            .query(
                "SELECT kind, gid, sum(balance_delta)::bigint FROM bank.journal GROUP BY 1, 2",
                &[],
            )
            .await?
        {
            let (kind, gid, minor): (&str, Option<&str>, i64) =
                (row.get(0), row.get(1), row.get(2));
            match (kind, gid) {
                ("opening", _) | (_, None) => shard.opening_minor += i128::from(minor),
                (_, Some(gid)) => {
                    *shard.moved.entry(gid.to_owned()).or_default() += i128::from(minor)
                }
            }
        }
        for row in cut
            .query(
                "SELECT gid, CASE direction WHEN 'in' THEN amount_minor ELSE -amount_minor END
                 FROM bank.hold WHERE ended IS NULL",
                &[],
            )
            .await?
        {
            *shard.held.entry(row.get(0)).or_default() += i128::from(row.get::<_, i64>(1));
        }
        cut.rollback().await?;
        shard.moved.retain(|_, minor| *minor != 0);
        shards.push(shard);
    }
    Ok(shards)
}

/// Reads twice and judges.
/// # Errors
/// What PostgreSQL says, or that money is not conserved.
pub async fn check(sources: &mut [(String, Client)]) -> anyhow::Result<usize> {
    let first = read(sources).await?;
    let later = read(sources).await?;
    match judge(&first, &later) {
        Cut::Conserved { under_way } => Ok(under_way),
        wrong => {
            ensure!(false, "money is not conserved: {wrong:?}");
            Ok(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(moved: &[(&str, i128)], held: &[(&str, i128)]) -> Shard {
        let map = |pairs: &[(&str, i128)]| {
            pairs.iter().map(|(gid, minor)| ((*gid).to_owned(), *minor)).collect::<BTreeMap<_, _>>()
        };
        let moved = map(moved);
        let balance_minor = 100 + moved.values().sum::<i128>();
        Shard { balance_minor, opening_minor: 100, moved, held: map(held), negative: 0 }
    }

    #[test]
    fn a_transfer_may_be_seen_in_its_middle() {
        let whole = [shard(&[("g1", -5)], &[]), shard(&[("g1", 5)], &[])];
        assert_eq!(judge(&whole, &whole), Cut::Conserved { under_way: 0 });
        let half = [shard(&[("g1", -5)], &[]), shard(&[], &[("g1", 5)])];
        assert_eq!(judge(&half, &half), Cut::Conserved { under_way: 1 });
        assert_eq!(judge(&half, &whole), Cut::Conserved { under_way: 1 });
    }

    #[test]
    fn every_planted_bug_is_found() {
        let lost = [shard(&[("g1", -5)], &[]), shard(&[], &[])];
        assert!(matches!(judge(&lost, &lost), Cut::HalfDone(_)), "the credit never comes");
        let other = [shard(&[("g1", -5)], &[]), shard(&[], &[("g1", 4)])];
        assert!(matches!(judge(&other, &other), Cut::HalfDone(_)), "another amount is held");
        let mut torn = [shard(&[("g1", -5)], &[]), shard(&[("g1", 5)], &[])];
        torn[1].balance_minor += 1;
        assert!(matches!(judge(&torn, &torn), Cut::Torn(_)), "a balance without a journal row");
        let mut negative = [shard(&[], &[])];
        negative[0].negative = 1;
        assert!(matches!(judge(&negative, &negative), Cut::Torn(_)));
    }
}
