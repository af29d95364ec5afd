//! Decides which accounts there are and who pays whom: random but repeatable, or as a replay says.

use anyhow::{Context, ensure};
use holdfast_ledger::{AccountId, Amount, Currency};
use holdfast_route::Topology;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::replay::{self, Replay};

/// The data group of accounts in the rules.
const GROUP: &str = "account";
/// What each account is opened with, unless a replay says otherwise.
const OPENING_MINOR: i64 = 100_000;
/// Accounts of each shard that are set aside for Sagas.
const RESERVED_PER_SHARD: usize = 4;

/// One account before anything happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its number, as text.
    pub(crate) id: AccountId,
    /// In minor units.
    pub(crate) opening_minor: i64,
    /// Where its shard stands in the order of the rules.
    pub(crate) shard: usize,
}

/// One transfer between two accounts, by their places in [`Bank::accounts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// How much.
    pub(crate) amount: Amount,
}

/// All accounts, and the transfers to be made.
#[derive(Debug)]
pub(crate) struct Bank {
    /// In the order of their numbers.
    pub(crate) accounts: Vec<Account>,
    /// The shards' names, in the order of the rules.
    pub(crate) shards: Vec<String>,
    /// Of every account.
    pub(crate) currency: Currency,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Between the first so many accounts; the others are for Sagas.
    Random {
        seed: u64,
        payers: usize,
    },
    Replay(Vec<Transfer>),
}

impl Bank {
    /// So many accounts with 1,000.00 EUR each, and transfers without end.
    pub(crate) fn random(accounts: u32, seed: u64, topology: &Topology) -> anyhow::Result<Self> {
        let shards = shard_names(topology);
        let accounts = (1..=u64::from(accounts))
            .map(|number| account(&format!("{number:08}"), OPENING_MINOR, &shards, topology))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut missing = vec![RESERVED_PER_SHARD; shards.len()];
        let mut payers = accounts.len();
        while missing.iter().any(|count| *count > 0) && payers > 0 {
            payers -= 1;
            let shard = accounts[payers].shard;
            missing[shard] = missing[shard].saturating_sub(1);
        }
        ensure!(payers >= 2, "{} accounts are too few for {} shards", accounts.len(), shards.len());
        Ok(Self {
            accounts,
            shards,
            currency: Currency::parse("EUR")?,
            source: Source::Random { seed, payers },
        })
    }

    /// The accounts and transfers of a replay.
    pub(crate) fn replay(replay: &Replay, topology: &Topology) -> anyhow::Result<Self> {
        let shards = shard_names(topology);
        let accounts = replay
            .accounts
            .iter()
            .map(|(number, balance)| account(&number.to_string(), *balance, &shards, topology))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let numbers: Vec<u64> = replay.accounts.keys().copied().collect();
        let place = |number| {
            numbers.binary_search(&number).expect("the reader checked every transfer's accounts")
        };
        let transfers = replay
            .transfers
            .iter()
            .map(|line| Transfer {
                from: place(line.from),
                to: place(line.to),
                amount: line.amount,
            })
            .collect();
        Ok(Self {
            accounts,
            shards,
            currency: replay::currency(),
            source: Source::Replay(transfers),
        })
    }

    /// The transfer of that number, from 0; `None` behind the end of a replay. The same number, the same transfer.
    pub(crate) fn transfer(&self, number: u64) -> Option<Transfer> {
        match &self.source {
            Source::Random { seed, payers } => Some(random_transfer(*seed, number, *payers)),
            Source::Replay(transfers) => {
                usize::try_from(number).ok().and_then(|at| transfers.get(at)).copied()
            }
        }
    }

    /// How many transfers a replay has.
    pub(crate) fn replay_length(&self) -> Option<u64> {
        match &self.source {
            Source::Random { .. } => None,
            Source::Replay(transfers) => Some(transfers.len() as u64),
        }
    }

    /// Accounts that no transfer touches, by shard; none in a replay.
    pub(crate) fn reserved(&self) -> Vec<Vec<usize>> {
        let mut by_shard = vec![Vec::new(); self.shards.len()];
        if let Source::Random { payers, .. } = self.source {
            for place in payers..self.accounts.len() {
                by_shard[self.accounts[place].shard].push(place);
            }
        }
        by_shard
    }

    /// The sum of all opening balances, in minor units.
    pub(crate) fn opening_minor(&self) -> anyhow::Result<i64> {
        self.accounts
            .iter()
            .try_fold(0_i64, |sum, account| sum.checked_add(account.opening_minor))
            .context("the opening balances together are above the largest amount")
    }

    /// Whether both accounts of a transfer live on one shard.
    pub(crate) fn is_one_shard(&self, transfer: Transfer) -> bool {
        self.accounts[transfer.from].shard == self.accounts[transfer.to].shard
    }
}

fn shard_names(topology: &Topology) -> Vec<String> {
    topology.shards().keys().map(|shard| shard.as_str().to_owned()).collect()
}

fn account(
    name: &str,
    opening_minor: i64,
    shards: &[String],
    topology: &Topology,
) -> anyhow::Result<Account> {
    let located = topology.locate(GROUP, name)?;
    let id = AccountId::parse(name)?;
    let shard = shards.iter().position(|shard| shard == located.shard.as_str());
    let shard =
        shard.with_context(|| format!("account {name} is located on a shard that is not there"))?;
    Ok(Account { id, opening_minor, shard })
}

/// Mostly small amounts; one transfer in twenty asks for more than an account is opened with.
fn random_transfer(seed: u64, number: u64, payers: usize) -> Transfer {
    let mut rng = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let from = rng.random_range(0..payers);
    let to = (from + rng.random_range(1..payers)) % payers;
    let amount_minor = if rng.random_ratio(1, 20) {
        rng.random_range(150_000..500_000)
    } else {
        rng.random_range(1..=10_000)
    };
    Transfer {
        from,
        to,
        amount: Amount::new(amount_minor).expect("both ranges are within an amount"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use super::super::replay::ReplayedTransfer;

    fn topology() -> Topology {
        Topology::parse(include_str!("../../../config/shards.toml")).unwrap()
    }

    #[test]
    fn the_same_seed_makes_the_same_transfers() {
        let topology = topology();
        let (one, same, other) = (
            Bank::random(500, 7, &topology).unwrap(),
            Bank::random(500, 7, &topology).unwrap(),
            Bank::random(500, 8, &topology).unwrap(),
        );
        let drawn = |bank: &Bank| (0..200).map(|n| bank.transfer(n).unwrap()).collect::<Vec<_>>();
        assert_eq!(drawn(&one), drawn(&same));
        assert_ne!(drawn(&one), drawn(&other));
    }

    #[test]
    fn transfers_are_between_two_accounts_and_never_touch_those_of_the_sagas() {
        let bank = Bank::random(100, 1, &topology()).unwrap();
        let reserved: Vec<usize> = bank.reserved().concat();
        for shard in bank.reserved() {
            assert!(shard.len() >= RESERVED_PER_SHARD, "{shard:?}");
        }
        let (mut cross, mut too_much) = (0, 0);
        for number in 0..2_000 {
            let transfer = bank.transfer(number).unwrap();
            assert_ne!(transfer.from, transfer.to);
            assert!(!reserved.contains(&transfer.from) && !reserved.contains(&transfer.to));
            cross += u32::from(!bank.is_one_shard(transfer));
            too_much += u32::from(transfer.amount.minor() > OPENING_MINOR);
        }
        assert!(cross > 1_000, "{cross} of 2,000 across shards");
        assert!((50..200).contains(&too_much), "{too_much} of 2,000 are too much");
        assert_eq!(bank.opening_minor().unwrap(), 100 * OPENING_MINOR);
    }

    fn minor(minor: i64) -> Amount {
        Amount::new(minor).unwrap()
    }

    #[test]
    fn a_replay_is_played_as_it_stands_and_then_ends() {
        let replay = Replay {
            accounts: BTreeMap::from([(3, 100), (40, 200), (5, 300)]),
            transfers: vec![
                ReplayedTransfer { from: 40, to: 3, amount: minor(7) },
                ReplayedTransfer { from: 5, to: 5, amount: minor(8) },
            ],
        };
        let bank = Bank::replay(&replay, &topology()).unwrap();
        let names: Vec<&str> = bank.accounts.iter().map(|account| account.id.as_str()).collect();
        assert_eq!(names, ["3", "5", "40"]);
        assert_eq!(bank.transfer(0), Some(Transfer { from: 2, to: 0, amount: minor(7) }));
        assert_eq!(bank.transfer(1), Some(Transfer { from: 1, to: 1, amount: minor(8) }));
        assert_eq!(bank.transfer(2), None);
        assert_eq!(bank.replay_length(), Some(2));
        assert_eq!(bank.opening_minor().unwrap(), 600);
        assert!(bank.reserved().concat().is_empty());
    }
}
