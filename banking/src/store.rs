//! Loads what a batch concerns and writes what was decided: set-based, in one round trip each, however large the batch.

use std::collections::BTreeMap;

use futures::future;
use holdfast_ledger::{
    Account, AccountId, AccountState, Amount, Book, BranchKey, Counters, Currency, Direction, Hold,
    Instruction, Money, Posting, Refusal, Resolution, decide,
};
use holdfast_tcc_agent::LocalTransaction;
use tokio_postgres::{Error, Row};

/// Locks and reads the accounts that the instructions name and those that the holds lie on, in the order of their ids, so that
/// two batches never wait for each other in a circle. No id ever changes, so the weaker row lock is enough. One index look-up an
/// account: the inner query depends on the outer row, and its lock keeps the planner from making a join of both.
const LOCK_ACCOUNTS: &str = "
    SELECT a.id, a.currency, a.state, a.balance_minor, a.held_out_minor, a.held_in_minor
    FROM (SELECT h.account AS id
          FROM unnest($2::text[], $3::int[]) AS c (gid, branch)
          CROSS JOIN LATERAL (SELECT account FROM bank.hold
                              WHERE gid = c.gid AND branch = c.branch OFFSET 0) AS h
          UNION
          SELECT unnest($1::text[]) COLLATE \"C\"
          ORDER BY id) AS c
    CROSS JOIN LATERAL (SELECT * FROM bank.account WHERE id = c.id FOR NO KEY UPDATE) AS a";

/// OFFSET 0 keeps the planner at one index look-up a hold, whatever it believed of the tables when it planned.
const READ_HOLDS: &str = "
    SELECT c.gid, c.branch, h.account, h.direction, h.amount_minor, h.currency, r.kind, r.amount_minor
    FROM unnest($1::text[], $2::int[]) AS c (gid, branch)
    CROSS JOIN LATERAL (SELECT * FROM bank.hold
                        WHERE gid = c.gid AND branch = c.branch OFFSET 0) AS h
    LEFT JOIN LATERAL (SELECT kind, amount_minor FROM bank.hold_resolution
                       WHERE gid = c.gid AND branch = c.branch OFFSET 0) AS r ON true";

/// One row for each account that changed, however many branches changed it. The LIMIT cuts nothing: it has the planner expect few
/// rows, and so look each account up by its id instead of reading through all of them.
const WRITE_ACCOUNTS: &str = "
    UPDATE bank.account AS a
    SET balance_minor = c.balance, held_out_minor = c.held_out, held_in_minor = c.held_in
    FROM (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
              AS c (id, balance, held_out, held_in) LIMIT cardinality($1)) AS c
    WHERE a.id = c.id";

const INSERT_HOLDS: &str = "
    INSERT INTO bank.hold (gid, branch, account, direction, amount_minor, currency)
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::bigint[], $6::text[])";

const INSERT_RESOLUTIONS: &str = "
    INSERT INTO bank.hold_resolution (gid, branch, kind, amount_minor)
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[])";

const INSERT_JOURNAL: &str = "
    INSERT INTO bank.journal
        (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
    SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[],
                         $6::bigint[], $7::bigint[], $8::bigint[])";

/// The accounts and holds of one batch, locked, and what was decided about them so far.
pub(crate) struct Batch {
    book: Book,
    /// Counters as they were read, of every account that was found sound.
    before: BTreeMap<AccountId, Counters>,
    /// Accounts that were found, but not sound.
    damaged: BTreeMap<AccountId, Refusal>,
    placed: Vec<BranchKey>,
    resolved: Vec<BranchKey>,
    postings: Vec<Posting>,
}

impl Batch {
    /// Locks and reads whatever `instructions` concern, in one round trip.
    pub(crate) async fn load(
        local: LocalTransaction<'_>,
        instructions: &[(BranchKey, Instruction)],
    ) -> Result<Self, Error> {
        let mut accounts: Vec<&str> = Vec::new();
        let (mut gids, mut branches): (Vec<&str>, Vec<i32>) = (Vec::new(), Vec::new());
        for (branch, instruction) in instructions {
            match instruction {
                Instruction::PlaceHold { account, .. }
                | Instruction::Debit { account, .. }
                | Instruction::Credit { account, .. }
                | Instruction::ReverseDebit { account, .. }
                | Instruction::ReverseCredit { account, .. } => accounts.push(account.as_str()),
                Instruction::Transfer { from, to, .. }
                | Instruction::ReverseTransfer { from, to, .. } => {
                    accounts.extend([from.as_str(), to.as_str()]);
                }
                Instruction::Capture { .. } | Instruction::Release => {
                    gids.push(&branch.gid);
                    branches.push(number(branch));
                }
            }
        }
        accounts.sort_unstable();
        accounts.dedup();
        let (lock, read) =
            future::try_join(local.prepare_cached(LOCK_ACCOUNTS), local.prepare_cached(READ_HOLDS))
                .await?;
        // Both are sent before either is answered.
        let (accounts, holds) =
            future::try_join(local.query(&lock, &[&accounts, &gids, &branches]), async {
                if gids.is_empty() {
                    return Ok(Vec::new());
                }
                local.query(&read, &[&gids, &branches]).await
            })
            .await?;

        let mut batch = Self {
            book: Book::default(),
            before: BTreeMap::new(),
            damaged: BTreeMap::new(),
            placed: Vec::new(),
            resolved: Vec::new(),
            postings: Vec::new(),
        };
        for row in &accounts {
            match account_from(row) {
                Ok(account) => {
                    batch.before.insert(account.id().clone(), account.counters());
                    batch.book.add_account(account);
                }
                Err((id, refusal)) => {
                    batch.damaged.insert(id, refusal);
                }
            }
        }
        for row in &holds {
            let branch: i32 = row.try_get(1)?;
            let branch = u32::try_from(branch).expect("only those asked for were read");
            if let Some(hold) = hold_from(row) {
                batch.book.add_hold(BranchKey::new(row.try_get(0)?, branch), hold);
            }
        }
        Ok(batch)
    }

    /// Has the ledger decide one instruction, after all before it.
    pub(crate) fn decide(
        &mut self,
        branch: &BranchKey,
        instruction: &Instruction,
    ) -> Result<(), Refusal> {
        let postings = decide(&mut self.book, branch, instruction).map_err(|refusal| {
            if let Refusal::AccountUnknown(id) = &refusal
                && let Some(damage) = self.damaged.get(id)
            {
                return damage.clone();
            }
            refusal
        })?;
        match instruction {
            Instruction::PlaceHold { .. } => self.placed.push(branch.clone()),
            Instruction::Capture { .. } | Instruction::Release => {
                self.resolved.push(branch.clone())
            }
            Instruction::Debit { .. }
            | Instruction::Credit { .. }
            | Instruction::Transfer { .. }
            | Instruction::ReverseDebit { .. }
            | Instruction::ReverseCredit { .. }
            | Instruction::ReverseTransfer { .. } => {}
        }
        self.postings.extend(postings);
        Ok(())
    }

    /// The hold of this branch, as it was read or placed.
    pub(crate) fn hold(&self, branch: &BranchKey) -> Option<&Hold> {
        self.book.hold(branch)
    }

    /// Writes everything that was decided, in one round trip. Nothing is sent when nothing was decided.
    pub(crate) async fn write(&self, local: LocalTransaction<'_>) -> Result<(), Error> {
        if self.postings.is_empty() {
            return Ok(());
        }
        future::try_join4(
            self.write_accounts(local),
            self.write_holds(local),
            self.write_resolutions(local),
            self.write_journal(local),
        )
        .await?;
        Ok(())
    }

    async fn write_accounts(&self, local: LocalTransaction<'_>) -> Result<(), Error> {
        let changed: Vec<(&str, Counters)> = self
            .before
            .iter()
            .filter_map(|(id, before)| {
                let after = self.book.account(id)?.counters();
                (after != *before).then_some((id.as_str(), after))
            })
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = changed.iter().map(|row| row.0).collect();
        let balances: Vec<i64> = changed.iter().map(|row| row.1.balance).collect();
        let held_out: Vec<i64> = changed.iter().map(|row| row.1.held_out).collect();
        let held_in: Vec<i64> = changed.iter().map(|row| row.1.held_in).collect();
        let write = local.prepare_cached(WRITE_ACCOUNTS).await?;
        let rows = local.execute(&write, &[&ids, &balances, &held_out, &held_in]).await?;
        assert_eq!(rows, changed.len() as u64, "every changed account is locked, so it is there");
        metrics::counter!("holdfast_bank_account_rows_written_total").increment(rows);
        Ok(())
    }

    async fn write_holds(&self, local: LocalTransaction<'_>) -> Result<(), Error> {
        if self.placed.is_empty() {
            return Ok(());
        }
        let gids: Vec<&str> = self.placed.iter().map(|branch| &*branch.gid).collect();
        let branches: Vec<i32> = self.placed.iter().map(number).collect();
        let holds: Vec<&Hold> = self.placed.iter().filter_map(|key| self.book.hold(key)).collect();
        assert_eq!(holds.len(), self.placed.len(), "every placed hold is in the book");
        let accounts: Vec<&str> = holds.iter().map(|hold| hold.account.as_str()).collect();
        let directions: Vec<&str> = holds.iter().map(|hold| hold.direction.name()).collect();
        let amounts: Vec<i64> = holds.iter().map(|hold| hold.money.amount.minor()).collect();
        let currencies: Vec<&str> = holds.iter().map(|hold| hold.money.currency.code()).collect();
        let insert = local.prepare_cached(INSERT_HOLDS).await?;
        local
            .execute(&insert, &[&gids, &branches, &accounts, &directions, &amounts, &currencies])
            .await?;
        Ok(())
    }

    async fn write_resolutions(&self, local: LocalTransaction<'_>) -> Result<(), Error> {
        if self.resolved.is_empty() {
            return Ok(());
        }
        let gids: Vec<&str> = self.resolved.iter().map(|branch| &*branch.gid).collect();
        let branches: Vec<i32> = self.resolved.iter().map(number).collect();
        let (kinds, amounts): (Vec<&str>, Vec<i64>) = self
            .resolved
            .iter()
            .filter_map(|key| self.book.hold(key)?.resolution)
            .map(|resolution| match resolution {
                Resolution::Captured(amount) => ("captured", amount.minor()),
                Resolution::Released => ("released", 0),
            })
            .unzip();
        assert_eq!(kinds.len(), self.resolved.len(), "every resolved hold says how it ended");
        let insert = local.prepare_cached(INSERT_RESOLUTIONS).await?;
        local.execute(&insert, &[&gids, &branches, &kinds, &amounts]).await?;
        Ok(())
    }

    async fn write_journal(&self, local: LocalTransaction<'_>) -> Result<(), Error> {
        let rows = &self.postings;
        let accounts: Vec<&str> = rows.iter().map(|row| row.account.as_str()).collect();
        let gids: Vec<&str> = rows.iter().map(|row| &*row.branch.gid).collect();
        let branches: Vec<i32> = rows.iter().map(|row| number(&row.branch)).collect();
        let ops: Vec<&str> = rows.iter().map(|row| row.kind.op()).collect();
        let kinds: Vec<&str> = rows.iter().map(|row| row.kind.name()).collect();
        let balances: Vec<i64> = rows.iter().map(|row| row.balance_delta).collect();
        let held_out: Vec<i64> = rows.iter().map(|row| row.held_out_delta).collect();
        let held_in: Vec<i64> = rows.iter().map(|row| row.held_in_delta).collect();
        let insert = local.prepare_cached(INSERT_JOURNAL).await?;
        local
            .execute(
                &insert,
                &[&accounts, &gids, &branches, &ops, &kinds, &balances, &held_out, &held_in],
            )
            .await?;
        Ok(())
    }
}

/// An account from its row: id, currency, state, balance, `held_out`, `held_in`. An unsound one comes back as the refusal to give.
pub(crate) fn account_from(row: &Row) -> Result<Account, (AccountId, Refusal)> {
    let id = AccountId::parse(row.get(0)).expect("the table's CHECK allows no other id");
    let currency: &str = row.get(1);
    let state = AccountState::named(row.get(2)).expect("the table's CHECK allows no other state");
    let counters = Counters { balance: row.get(3), held_out: row.get(4), held_in: row.get(5) };
    let Ok(currency) = Currency::parse(currency) else {
        let detail = format!("it is kept in {currency}, which is no currency");
        return Err((id.clone(), Refusal::Inconsistent { account: id, detail }));
    };
    Account::restore(id.clone(), currency, state, counters)
        .map_err(|damage| (id.clone(), Refusal::damaged(id, &damage)))
}

/// A hold from its row. `None` for one that the ledger did not write; it is then as if it were not there.
fn hold_from(row: &Row) -> Option<Hold> {
    let money = Money {
        amount: Amount::new(row.get(4)).ok()?,
        currency: Currency::parse(row.get(5)).ok()?,
    };
    let resolution = match row.get::<_, Option<&str>>(6) {
        None => None,
        Some("captured") => Some(Resolution::Captured(Amount::new(row.get(7)).ok()?)),
        Some(_) => Some(Resolution::Released),
    };
    Some(Hold {
        account: AccountId::parse(row.get(2)).ok()?,
        direction: Direction::named(row.get(3))?,
        money,
        resolution,
    })
}

fn number(branch: &BranchKey) -> i32 {
    i32::try_from(branch.branch).expect("the agent has checked that a branch fits")
}
