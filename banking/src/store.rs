//! Loads what a batch concerns and writes what was decided: set-based, in one round trip each, however large the batch.

use std::collections::BTreeMap;

use futures::future;
use holdfast_ledger::{
    Account, AccountId, AccountState, Book, BranchKey, Counters, Currency, Hold, Instruction, Kind,
    Posting, Refusal, decide,
};
use holdfast_tcc_agent::{LocalTransaction, Parameter};
use tokio_postgres::{Error, Row, Statement, types::ToSql};

/// Locks and reads the accounts that the instructions name and those that the holds lie on, in the order of their ids, so that
/// two batches never wait for each other in a circle. No id ever changes, so the weaker row lock is enough. One index look-up an
/// account: the inner query depends on the outer row, and its lock keeps the planner from making a join of both.
///
/// Beside an account stands what the journal has of one branch: it tells of its hold. Whoever could add to that has claimed the branch
/// at the barrier before, so it need not be read behind the lock. OFFSET 0 keeps the planner at one index look-up a branch, whatever it
/// believed of the table when it planned.
const LOAD: &str = "
    SELECT a.id, a.currency, a.state, a.balance_minor, a.held_out_minor, a.held_in_minor,
           c.gid, c.branch, c.account, c.kind, c.balance_delta, c.held_out_delta, c.held_in_delta
    FROM (SELECT j.account, b.gid, b.branch, j.kind, j.balance_delta, j.held_out_delta, j.held_in_delta
          FROM unnest($2::text[], $3::int[]) AS b (gid, branch)
          CROSS JOIN LATERAL (SELECT account, kind, balance_delta, held_out_delta, held_in_delta
                              FROM bank.journal
                              WHERE gid = b.gid AND branch = b.branch OFFSET 0) AS j
          UNION ALL
          SELECT unnest($1::text[]) COLLATE \"C\", NULL, NULL, NULL, NULL, NULL, NULL
          ORDER BY account) AS c
    LEFT JOIN LATERAL (SELECT * FROM bank.account WHERE id = c.account FOR NO KEY UPDATE) AS a ON true";

/// One row for each account that changed, however many branches changed it. The LIMIT cuts nothing: it has the planner expect few
/// rows, and so look each account up by its id instead of reading through all of them. Every account is locked, so it is there; were it
/// not, the division would fail, and with it the whole local transaction.
const WRITE_ACCOUNTS: &str = "
    WITH written AS (
        UPDATE bank.account AS a
        SET balance_minor = c.balance, held_out_minor = c.held_out, held_in_minor = c.held_in
        FROM (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
                  AS c (id, balance, held_out, held_in) LIMIT cardinality($1)) AS c
        WHERE a.id = c.id
        RETURNING 1)
    SELECT 1 / (count(*) = cardinality($1))::int FROM written";

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
        let load = local.prepare_cached(LOAD).await?;
        let rows = local.query(&load, &[&accounts, &gids, &branches]).await?;

        let mut batch = Self {
            book: Book::default(),
            before: BTreeMap::new(),
            damaged: BTreeMap::new(),
            postings: Vec::new(),
        };
        let mut told: BTreeMap<BranchKey, Option<Vec<Posting>>> = BTreeMap::new();
        let mut last = None;
        for row in &rows {
            let id: Option<&str> = row.get(0);
            // Rows of one account are together.
            if id.is_some() && id != last {
                last = id;
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
            let Some(branch) = branch_from(row) else { continue };
            let posting = posting_from(&branch, row);
            let postings = told.entry(branch).or_insert_with(|| Some(Vec::new()));
            // A row that nobody understands may be the end of the hold: then there is no hold that may end.
            *postings = postings.take().zip(posting).map(|(mut all, one)| {
                all.push(one);
                all
            });
        }
        for (branch, postings) in told {
            if let Some(hold) = postings.and_then(|postings| Hold::of(&postings)) {
                batch.book.add_hold(branch, hold);
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
        self.postings.extend(postings);
        Ok(())
    }

    /// The hold of this branch, as it was read or placed.
    pub(crate) fn hold(&self, branch: &BranchKey) -> Option<&Hold> {
        self.book.hold(branch)
    }

    /// Has everything that was decided written with the commit. Nothing is sent when nothing was decided.
    pub(crate) async fn write(self, local: LocalTransaction<'_>) -> Result<(), Error> {
        if self.postings.is_empty() {
            return Ok(());
        }
        let (accounts, journal) = future::try_join(
            local.prepare_cached(WRITE_ACCOUNTS),
            local.prepare_cached(INSERT_JOURNAL),
        )
        .await?;
        self.write_accounts(local, accounts).await?;
        self.write_journal(local, journal).await
    }

    async fn write_accounts(
        &self,
        local: LocalTransaction<'_>,
        write: Statement,
    ) -> Result<(), Error> {
        let (mut ids, mut balances) = (Vec::new(), Vec::new());
        let (mut held_out, mut held_in) = (Vec::new(), Vec::new());
        for (id, before) in &self.before {
            let Some(after) = self.book.account(id).map(Account::counters) else { continue };
            if after == *before {
                continue;
            }
            ids.push(id.as_str().to_owned());
            balances.push(after.balance);
            held_out.push(after.held_out);
            held_in.push(after.held_in);
        }
        if ids.is_empty() {
            return Ok(());
        }
        metrics::counter!("holdfast_bank_account_rows_written_total").increment(ids.len() as u64);
        let columns =
            vec![parameter(ids), parameter(balances), parameter(held_out), parameter(held_in)];
        local.execute_last(write, columns).await
    }

    async fn write_journal(
        self,
        local: LocalTransaction<'_>,
        insert: Statement,
    ) -> Result<(), Error> {
        let rows = self.postings;
        let columns = vec![
            parameter(rows.iter().map(|row| row.account.as_str().to_owned()).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| row.branch.gid.to_string()).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| number(&row.branch)).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| row.kind.op()).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| row.kind.name()).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| row.balance_delta).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| row.held_out_delta).collect::<Vec<_>>()),
            parameter(rows.iter().map(|row| row.held_in_delta).collect::<Vec<_>>()),
        ];
        local.execute_last(insert, columns).await
    }
}

/// A column of a statement.
fn parameter<T: ToSql + Sync + Send + 'static>(values: Vec<T>) -> Parameter {
    Box::new(values)
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

/// The branch that a row of [`LOAD`] tells of. `None` where it tells of an account alone.
fn branch_from(row: &Row) -> Option<BranchKey> {
    let gid: &str = row.get::<_, Option<&str>>(6)?;
    let branch = u32::try_from(row.get::<_, i32>(7)).expect("only those asked for were read");
    Some(BranchKey::new(gid, branch))
}

/// What a row of [`LOAD`] says of its branch. `None` for one that the ledger did not write.
fn posting_from(branch: &BranchKey, row: &Row) -> Option<Posting> {
    Some(Posting {
        branch: branch.clone(),
        account: AccountId::parse(row.get(8)).ok()?,
        kind: Kind::named(row.get(9))?,
        balance_delta: row.get(10),
        held_out_delta: row.get(11),
        held_in_delta: row.get(12),
    })
}

fn number(branch: &BranchKey) -> i32 {
    i32::try_from(branch.branch).expect("the agent has checked that a branch fits")
}
