//! Accounts themselves: opened in bulk, read, closed. No global transaction does that.

use holdfast_ledger::{Account, AccountId, AccountState, Currency, Posting};
use tokio_postgres::Client;

use crate::{BankError, store::account_from};

/// Accounts in one statement.
const CHUNK: usize = 10_000;

/// Makes the accounts that are missing, with the journal row that says where their first balance comes from.
const OPEN: &str = "
    WITH opened AS (
        INSERT INTO bank.account (id, currency, balance_minor)
        SELECT c.id, c.currency, c.balance_minor
        FROM unnest($1::text[], $2::text[], $3::bigint[]) AS c (id, currency, balance_minor)
        ORDER BY c.id COLLATE \"C\"
        ON CONFLICT (id) DO NOTHING
        RETURNING id, balance_minor
    ), posted AS (
        INSERT INTO bank.journal
            (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
        SELECT id, $4, 0, 'open', 'opening', balance_minor, 0, 0 FROM opened WHERE balance_minor > 0
    )
    SELECT count(*) FROM opened";

/// The first account that is there, but not as asked for. OFFSET 0 keeps the planner at index look-ups: it does not know these
/// tables yet.
const DIFFERS: &str = "
    SELECT c.id
    FROM unnest($1::text[], $2::text[], $3::bigint[]) AS c (id, currency, balance_minor)
    CROSS JOIN LATERAL (SELECT currency FROM bank.account WHERE id = c.id OFFSET 0) AS a
    LEFT JOIN LATERAL (SELECT balance_delta FROM bank.journal
                       WHERE gid = $4 AND branch = 0 AND account = c.id AND kind = 'opening'
                       OFFSET 0) AS j ON true
    WHERE a.currency <> c.currency OR coalesce(j.balance_delta, 0) <> c.balance_minor
    ORDER BY c.id COLLATE \"C\" LIMIT 1";

/// An account to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAccount {
    /// Its id.
    pub id: AccountId,
    /// The one currency it will be kept in.
    pub currency: Currency,
    /// Its first balance, minor units, at least 0.
    pub balance_minor: i64,
}

/// What came of opening accounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// Made now.
    pub opened: u64,
    /// There already, as asked for.
    pub present: u64,
}

/// What came of closing an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It is closed, now or already.
    Closed,
    /// It has money on it, or holds; nothing was changed.
    InUse,
    /// There is none of this id.
    Unknown,
}

/// Opens accounts; may be repeated with the same values. Each chunk of 10,000 is opened wholly or not at all.
/// # Errors
/// [`BankError::AccountDiffers`] when one exists with other values (the missing ones of its chunk are open then), and what
/// PostgreSQL says, also about a negative balance.
pub async fn open_accounts(client: &Client, accounts: &[NewAccount]) -> Result<Opened, BankError> {
    let mut result = Opened::default();
    for chunk in accounts.chunks(CHUNK) {
        let ids: Vec<&str> = chunk.iter().map(|account| account.id.as_str()).collect();
        let currencies: Vec<&str> = chunk.iter().map(|account| account.currency.code()).collect();
        let balances: Vec<i64> = chunk.iter().map(|account| account.balance_minor).collect();
        let row =
            client.query_one(OPEN, &[&ids, &currencies, &balances, &Posting::OPENING]).await?;
        let opened = u64::try_from(row.get::<_, i64>(0)).expect("a count is not negative");
        result.opened += opened;
        result.present += chunk.len() as u64 - opened;
        let differs =
            client.query_opt(DIFFERS, &[&ids, &currencies, &balances, &Posting::OPENING]).await?;
        if let Some(row) = differs {
            let account = AccountId::parse(row.get(0)).expect("it is one of those that were given");
            return Err(BankError::AccountDiffers { account });
        }
    }
    if result.opened > 0 {
        // The planner must know from the first batch on that the table is worth its index.
        client.batch_execute("ANALYZE bank.account").await?;
    }
    Ok(result)
}

/// Reads one account as it is now; `None` if it is not kept here.
/// # Errors
/// What PostgreSQL says.
pub async fn read_account(client: &Client, id: &AccountId) -> Result<Option<Account>, BankError> {
    let row = client
        .query_opt(
            "SELECT id, currency, state, balance_minor, held_out_minor, held_in_minor
             FROM bank.account WHERE id = $1",
            &[&id.as_str()],
        )
        .await?;
    Ok(row.and_then(|row| account_from(&row).ok()))
}

/// Closes an account that has nothing on it. May be repeated.
/// # Errors
/// What PostgreSQL says.
pub async fn close_account(client: &Client, id: &AccountId) -> Result<Closing, BankError> {
    let row = client
        .query_opt(
            "UPDATE bank.account
             SET state = CASE WHEN balance_minor = 0 AND held_out_minor = 0 AND held_in_minor = 0
                              THEN 'closed' ELSE state END
             WHERE id = $1 RETURNING state",
            &[&id.as_str()],
        )
        .await?;
    Ok(match row.and_then(|row| AccountState::named(row.get(0))) {
        Some(AccountState::Closed) => Closing::Closed,
        Some(AccountState::Open) => Closing::InUse,
        None => Closing::Unknown,
    })
}
