//! What the books say of each global transaction, by plain SQL.

use std::collections::BTreeMap;

use tokio_postgres::Client;

/// Of each gid: every change of a balance, as account and minor units, in order.
pub type Effects = BTreeMap<String, Vec<(String, i64)>>;

/// Reads the journals of these databases; openings are left out.
/// # Errors
/// What PostgreSQL says.
pub async fn effects(sources: &[(String, Client)]) -> anyhow::Result<Effects> {
    let mut effects = Effects::new();
    for (_, client) in sources {
        let rows = client
            .query(
                "SELECT gid, account, balance_delta FROM bank.journal
                 WHERE kind <> 'opening' AND balance_delta <> 0",
                &[],
            )
            .await?;
        for row in rows {
            effects.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
    }
    effects.values_mut().for_each(|changes| changes.sort_unstable());
    Ok(effects)
}

/// Money held for transactions that have not ended, minor units, in and out.
/// # Errors
/// What PostgreSQL says.
pub async fn held_minor(sources: &[(String, Client)]) -> anyhow::Result<i64> {
    let mut sum = 0;
    for (_, client) in sources {
        let row = client
            .query_one(
                "SELECT coalesce(sum(held_out_minor + held_in_minor), 0)::bigint FROM bank.account",
                &[],
            )
            .await?;
        sum += row.get::<_, i64>(0);
    }
    Ok(sum)
}
