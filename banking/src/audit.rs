//! Proves the books by plain SQL: on each data source by itself, and over all of them for every global transaction.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

use crate::BankError;

/// What the names of our prepared transactions begin with.
pub const XID_PREFIX: &str = "holdfast";

/// Rows of the comparison that are in memory at a time, for each data source.
const CHUNK: usize = 10_000;
/// Global transactions that a verdict names; of the others it gives the number.
const EXAMPLES_MAX: usize = 10;

const CURRENCIES: &str = "
    SELECT coalesce(a.currency, j.currency), coalesce(a.balance, 0)::text, coalesce(a.held_out, 0)::text,
           coalesce(a.held_in, 0)::text, coalesce(j.opening, 0)::text, coalesce(j.debits, 0)::text,
           coalesce(j.credits, 0)::text
    FROM (SELECT currency, sum(balance_minor) AS balance, sum(held_out_minor) AS held_out,
                 sum(held_in_minor) AS held_in
          FROM bank.account GROUP BY currency) AS a
    FULL JOIN (SELECT coalesce(k.currency, '???') AS currency,
                      sum(balance_delta) FILTER (WHERE kind = 'opening') AS opening,
                      sum(-balance_delta) FILTER (WHERE kind <> 'opening' AND balance_delta < 0) AS debits,
                      sum(balance_delta) FILTER (WHERE kind <> 'opening' AND balance_delta > 0) AS credits
               FROM bank.journal AS r LEFT JOIN bank.account AS k ON k.id = r.account
               GROUP BY coalesce(k.currency, '???')) AS j USING (currency)
    ORDER BY 1";

/// The order of the columns is that of [`SourceAudit`]'s fields.
const FIGURES: &str = "
    WITH fold AS (
        SELECT account, sum(balance_delta) AS balance, sum(held_out_delta) AS held_out,
               sum(held_in_delta) AS held_in
        FROM bank.journal GROUP BY account
    ), held AS (
        SELECT account, sum(amount_minor) FILTER (WHERE direction = 'out') AS held_out,
               sum(amount_minor) FILTER (WHERE direction = 'in') AS held_in
        FROM bank.hold WHERE ended IS NULL GROUP BY account
    )
    SELECT
        (SELECT count(*) FROM bank.account),
        (SELECT count(*) FROM bank.journal),
        (SELECT count(*) FROM bank.hold),
        (SELECT count(*) FROM bank.hold WHERE ended IS NULL),
        (SELECT count(*) FROM bank.journal AS e
         LEFT JOIN bank.journal AS p ON p.gid = e.gid AND p.branch = e.branch AND p.account = e.account
                                    AND p.kind = 'hold_placed'
         WHERE e.kind IN ('hold_captured', 'hold_released')
           AND (p.gid IS NULL OR e.held_out_delta <> -p.held_out_delta OR e.held_in_delta <> -p.held_in_delta
                OR NOT CASE WHEN e.kind = 'hold_released' THEN e.balance_delta = 0
                            WHEN p.held_in_delta = 0 THEN e.balance_delta BETWEEN -p.held_out_delta AND -1
                            ELSE e.balance_delta BETWEEN 1 AND p.held_in_delta END)),
        (SELECT count(*) FROM (SELECT FROM bank.journal WHERE kind = 'hold_placed'
                               GROUP BY gid, branch HAVING count(*) > 1) AS more),
        (SELECT count(*) FROM bank.account AS a FULL JOIN fold AS f ON f.account = a.id
         WHERE a.id IS NULL OR a.balance_minor <> coalesce(f.balance, 0)
            OR a.held_out_minor <> coalesce(f.held_out, 0) OR a.held_in_minor <> coalesce(f.held_in, 0)),
        (SELECT count(*) FROM bank.account AS a FULL JOIN held AS h ON h.account = a.id
         WHERE a.id IS NULL OR a.held_out_minor <> coalesce(h.held_out, 0)
            OR a.held_in_minor <> coalesce(h.held_in, 0)),
        (SELECT count(*) FROM bank.account
         WHERE balance_minor < 0 OR held_out_minor < 0 OR held_in_minor < 0
            OR held_out_minor > balance_minor),
        (SELECT count(*) FROM pg_catalog.pg_prepared_xacts
         WHERE database = current_database() AND starts_with(gid, $1))";

/// What a global transaction moved here, by currency: net for each account first, so that what was reversed counts as nothing.
const EFFECTS: &str = "
    DECLARE effects NO SCROLL CURSOR FOR
    SELECT gid, currency, (sum(net) FILTER (WHERE net > 0))::text, (sum(-net) FILTER (WHERE net < 0))::text,
           sum(rows)::bigint
    FROM (SELECT j.gid, coalesce(a.currency, '???') AS currency, sum(j.balance_delta) AS net, count(*) AS rows
          FROM bank.journal AS j LEFT JOIN bank.account AS a ON a.id = j.account
          WHERE j.kind <> 'opening'
          GROUP BY j.gid, j.account, a.currency) AS nets
    GROUP BY gid, currency
    ORDER BY gid COLLATE \"C\", currency COLLATE \"C\"";

/// Sums over one data source in one currency, minor units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CurrencySums {
    /// All balances.
    pub balance: i128,
    /// All that is held to leave.
    pub held_out: i128,
    /// All that is held to arrive.
    pub held_in: i128,
    /// All that accounts were opened with.
    pub opening: i128,
    /// All that left accounts since.
    pub debits: i128,
    /// All that arrived on accounts since.
    pub credits: i128,
}

/// The books of one data source at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceAudit {
    /// Sums by currency. What stands for no account is under `???`.
    pub sums: BTreeMap<String, CurrencySums>,
    /// How many accounts there are.
    pub accounts: u64,
    /// How many rows the journal has.
    pub journal_rows: u64,
    /// How many holds were ever placed.
    pub holds: u64,
    /// Holds that have not ended.
    pub holds_open: u64,
    /// Ends of a hold that is not there, or of more or less than it held.
    pub ends_wrong: u64,
    /// Branches with more than one hold: a branch holds on one account, once.
    pub branches_with_more_holds: u64,
    /// Accounts whose counters are not the fold of their journal, and journals without an account.
    pub fold_mismatches: u64,
    /// Accounts whose hold counters are not the sum of their open holds, and open holds without an account.
    pub hold_mismatches: u64,
    /// Accounts with a counter below zero, or more held than there is.
    pub negative: u64,
    /// Prepared transactions of ours that wait for a decision.
    pub prepared: u64,
}

/// What one global transaction has moved in one currency, over all data sources, minor units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GidEffect {
    /// The global transaction.
    pub gid: String,
    /// The currency; `???` for rows that stand for no account.
    pub currency: String,
    /// What accounts gained by it, each account's own ups and downs set off first.
    pub gained: i128,
    /// What accounts lost by it, likewise.
    pub lost: i128,
    /// Its journal rows.
    pub rows: u64,
}

/// The books of all data sources, and of every global transaction over them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// By name, in the order they were given.
    pub sources: Vec<(String, SourceAudit)>,
    /// Global transactions that have a journal row anywhere.
    pub gids: u64,
    /// Of these, those that moved money.
    pub gids_moved: u64,
    /// Of these, those where what was lost is not what was gained: the branches did not end alike.
    pub gids_unbalanced: u64,
    /// The first few of them.
    pub unbalanced_examples: Vec<GidEffect>,
}

impl SourceAudit {
    /// What is wrong with this data source by itself. Money in flight, which ends, is among it: an audit is for quiet times.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let mut found = |count: u64, what: &str| {
            if count > 0 {
                findings.push(format!("{count} {what}"));
            }
        };
        found(self.negative, "accounts below zero");
        found(self.fold_mismatches, "accounts whose counters are not the fold of their journal");
        found(
            self.hold_mismatches,
            "accounts whose hold counters are not the sum of their open holds",
        );
        found(self.holds_open, "holds without an end");
        found(self.ends_wrong, "ends that do not fit their hold");
        found(self.branches_with_more_holds, "branches with more than one hold");
        found(self.prepared, "prepared transactions left");
        for (currency, sums) in &self.sums {
            if sums.held_out != 0 || sums.held_in != 0 {
                let (held_out, held_in) = (sums.held_out, sums.held_in);
                findings.push(format!("{currency}: {held_out} held to leave, {held_in} to arrive"));
            }
            if sums.opening + sums.credits - sums.debits != sums.balance {
                findings.push(format!(
                    "{currency}: opened with {}, {} arrived, {} left, but the balances are {}",
                    sums.opening, sums.credits, sums.debits, sums.balance
                ));
            }
        }
        findings
    }
}

impl Audit {
    /// The sums over all data sources, by currency.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<&str, CurrencySums> {
        let mut totals: BTreeMap<&str, CurrencySums> = BTreeMap::new();
        for (currency, sums) in self.sources.iter().flat_map(|(_, source)| &source.sums) {
            let total = totals.entry(currency).or_default();
            total.balance += sums.balance;
            total.held_out += sums.held_out;
            total.held_in += sums.held_in;
            total.opening += sums.opening;
            total.debits += sums.debits;
            total.credits += sums.credits;
        }
        totals
    }

    /// Everything that is wrong, each in a line; empty when the books are right.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut findings: Vec<String> = self
            .sources
            .iter()
            .flat_map(|(name, source)| {
                source.findings().into_iter().map(move |finding| format!("{name}: {finding}"))
            })
            .collect();
        for (currency, total) in self.totals() {
            if total.balance != total.opening {
                findings.push(format!(
                    "{currency}: all accounts were opened with {}, and now have {}",
                    total.opening, total.balance
                ));
            }
            if total.debits != total.credits {
                findings.push(format!(
                    "{currency}: {} was debited and {} credited",
                    total.debits, total.credits
                ));
            }
        }
        if self.gids_unbalanced > 0 {
            let examples: Vec<String> = self
                .unbalanced_examples
                .iter()
                .map(|effect| {
                    let GidEffect { gid, currency, gained, lost, .. } = effect;
                    format!("{gid} ({currency}: lost {lost}, gained {gained})")
                })
                .collect();
            findings.push(format!(
                "{} global transactions did not end alike everywhere: {}",
                self.gids_unbalanced,
                examples.join(", ")
            ));
        }
        findings
    }

    /// Whether the books are right.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.findings().is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = self.findings();
        if findings.is_empty() {
            let (sources, gids) = (self.sources.len(), self.gids);
            return write!(
                f,
                "the books are right: {sources} data sources, {gids} global transactions"
            );
        }
        write!(f, "the books are WRONG:")?;
        findings.iter().try_for_each(|finding| write!(f, "\n- {finding}"))
    }
}

/// Audits one data source as of one moment. It locks nothing and changes nothing.
/// # Errors
/// What PostgreSQL says.
pub async fn audit(client: &mut Client) -> Result<SourceAudit, BankError> {
    let local = read_only(client).await?;
    let figures = figures(&local).await?;
    local.rollback().await?;
    Ok(figures)
}

/// Audits all data sources together: each by itself, and every global transaction over all of them. `visit` is shown what each
/// global transaction has moved, in the order of gids, so that a caller can compare it with its own records; those without
/// any effect on a balance come as well, with nothing gained and nothing lost.
///
/// Each data source is seen as of one moment of its own, so this is for quiet times; memory does not grow with the journal.
/// # Errors
/// What PostgreSQL says.
pub async fn audit_all(
    sources: &mut [(String, Client)],
    mut visit: impl FnMut(&GidEffect),
) -> Result<Audit, BankError> {
    let mut audit = Audit::default();
    let mut streams = Vec::with_capacity(sources.len());
    for (name, client) in sources.iter_mut() {
        let local = read_only(client).await?;
        audit.sources.push((name.clone(), figures(&local).await?));
        local.batch_execute(EFFECTS).await?;
        let mut stream = Effects { local, waiting: VecDeque::new(), ended: false };
        stream.refill().await?;
        streams.push(stream);
    }
    let mut last_gid = None;
    // The smallest head of all streams, with whatever the others have to say about the same.
    while let Some((gid, currency)) = streams.iter().filter_map(Effects::head).min() {
        let mut effect = GidEffect {
            gid: gid.to_owned(),
            currency: currency.to_owned(),
            gained: 0,
            lost: 0,
            rows: 0,
        };
        for stream in &mut streams {
            if stream.head() == Some((&effect.gid, &effect.currency)) {
                let part = stream.waiting.pop_front().expect("it has a head");
                effect.gained += part.gained;
                effect.lost += part.lost;
                effect.rows += part.rows;
                stream.refill().await?;
            }
        }
        if last_gid.as_ref() != Some(&effect.gid) {
            audit.gids += 1;
            audit.gids_moved += u64::from(effect.gained != 0 || effect.lost != 0);
            last_gid = Some(effect.gid.clone());
        }
        if effect.gained != effect.lost {
            audit.gids_unbalanced += 1;
            if audit.unbalanced_examples.len() < EXAMPLES_MAX {
                audit.unbalanced_examples.push(effect.clone());
            }
        }
        visit(&effect);
    }
    for stream in streams {
        stream.local.rollback().await?;
    }
    Ok(audit)
}

/// The effects of one data source, a chunk at a time.
struct Effects<'c> {
    local: Transaction<'c>,
    waiting: VecDeque<GidEffect>,
    ended: bool,
}

impl Effects<'_> {
    fn head(&self) -> Option<(&str, &str)> {
        self.waiting.front().map(|effect| (&*effect.gid, &*effect.currency))
    }

    async fn refill(&mut self) -> Result<(), BankError> {
        if !self.waiting.is_empty() || self.ended {
            return Ok(());
        }
        let rows = self.local.query(&format!("FETCH {CHUNK} FROM effects"), &[]).await?;
        self.ended = rows.len() < CHUNK;
        self.waiting.extend(rows.iter().map(|row| GidEffect {
            gid: row.get(0),
            currency: row.get(1),
            gained: sum(row, 2),
            lost: sum(row, 3),
            rows: count(row, 4),
        }));
        Ok(())
    }
}

async fn read_only(client: &mut Client) -> Result<Transaction<'_>, BankError> {
    let build = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    Ok(build.read_only(true).start().await?)
}

async fn figures(local: &Transaction<'_>) -> Result<SourceAudit, BankError> {
    let sums = local
        .query(CURRENCIES, &[])
        .await?
        .iter()
        .map(|row| {
            let sums = CurrencySums {
                balance: sum(row, 1),
                held_out: sum(row, 2),
                held_in: sum(row, 3),
                opening: sum(row, 4),
                debits: sum(row, 5),
                credits: sum(row, 6),
            };
            (row.get(0), sums)
        })
        .collect();
    let row = local.query_one(FIGURES, &[&XID_PREFIX]).await?;
    Ok(SourceAudit {
        sums,
        accounts: count(&row, 0),
        journal_rows: count(&row, 1),
        holds: count(&row, 2),
        holds_open: count(&row, 3),
        ends_wrong: count(&row, 4),
        branches_with_more_holds: count(&row, 5),
        fold_mismatches: count(&row, 6),
        hold_mismatches: count(&row, 7),
        negative: count(&row, 8),
        prepared: count(&row, 9),
    })
}

/// A sum of minor units, which PostgreSQL gives as a number without bounds; no row at all is 0.
fn sum(row: &Row, column: usize) -> i128 {
    let text: Option<&str> = row.get(column);
    text.map_or(0, |text| text.parse().expect("a sum of whole numbers is one"))
}

fn count(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).expect("a count is not negative")
}
