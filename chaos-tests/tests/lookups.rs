//! Lookups through a router: an entry is written with its owner's row or not at all, wherever the two lie.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{ROUTERS, RULES, SOON, Sharded, holdfast, until};
use holdfast_client::wire::ApplyRulesRequest;
use holdfast_route::{SourceIndex, Topology};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

/// Owners, half of which have their entry on another source, more or less.
const OWNERS: usize = 16;

fn rules() -> String {
    format!("{RULES}\n[lookup.phone]\ntable = \"account\"\ncolumn = \"phone\"\n")
}

fn phone(n: usize) -> String {
    // Numbers that differ in one digit alone have slots side by side.
    format!("+49-30-{:05}", (n + 1) * 7_919 % 100_000)
}

/// Whose a number is, and on which shard that one lives; nothing if it is nobody's.
async fn locate(client: &Client, phone: &str) -> anyhow::Result<Option<(String, String)>> {
    let said = client.simple_query(&format!("SELECT holdfast.locate('phone', '{phone}')")).await?;
    Ok(said.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((row.get("key")?.to_owned(), row.get("shard")?.to_owned()))
        }
        _ => None,
    }))
}

async fn owner(client: &Client, phone: &str) -> anyhow::Result<Option<String>> {
    Ok(locate(client, phone).await?.map(|(key, _)| key))
}

async fn insert(client: &Client, id: &str, phone: &str) -> Result<u64, tokio_postgres::Error> {
    let sql = "INSERT INTO account (id, balance, phone) VALUES ($1, 1, $2)";
    client.execute(sql, &[&id, &phone]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_written_with_its_owner_or_not_at_all() -> anyhow::Result<()> {
    let place = Sharded::start().await?;
    let rules = Topology::parse(&rules()).expect("good rules");
    install(&place, &rules).await?;
    let client = place.connect(0).await?;
    // Each statement is looked at from other connections, and not by way of this session.
    client.batch_execute("SET holdfast.read_own_writes = on").await?;
    owners_are_found_by_their_number(&place, &client, &rules).await?;
    the_command_asks_a_router(&place, &rules).await?;
    a_number_that_is_taken_is_refused(&client).await?;
    numbers_change_and_go(&client).await?;
    what_is_rolled_back_leaves_no_entry(&client).await?;
    nobody_writes_past_the_router(&place).await?;
    entries_and_owners_agree(&place, &rules).await
}

async fn install(place: &Sharded, rules: &Topology) -> anyhow::Result<()> {
    for source in place.sources().await? {
        source.batch_execute("ALTER TABLE account ADD COLUMN phone text").await?;
        // Twice, as a DBA would who is not sure.
        for _ in 0..2 {
            source.batch_execute(&rules.lookup_sql()).await?;
        }
    }
    let request = ApplyRulesRequest {
        text: self::rules(),
        reason: "accounts are found by phone".to_owned(),
        ..ApplyRulesRequest::default()
    };
    ensure!(place.cluster.client().await?.apply_rules(request).await?.epoch == 1);
    for at in 0..ROUTERS {
        let client = place.connect(at).await?;
        until("the router has the lookup", SOON, async || {
            locate(&client, "nobody").await.ok().filter(Option::is_none)
        })
        .await?;
    }
    let refused = place.cluster.client().await?.locate("phone", &[phone(1)]).await;
    let refused = refused.expect_err("only a source knows whose it is");
    ensure!(refused.code() == Some("HF3025"), "{refused}");
    Ok(())
}

async fn owners_are_found_by_their_number(
    place: &Sharded,
    client: &Client,
    rules: &Topology,
) -> anyhow::Result<()> {
    for n in 0..OWNERS / 2 {
        ensure!(insert(client, &format!("a-{n}"), &phone(n)).await? == 1);
    }
    let rows: Vec<String> =
        (OWNERS / 2..OWNERS).map(|n| format!("('a-{n}', 1, '{}')", phone(n))).collect();
    let sql = format!("INSERT INTO account (id, balance, phone) VALUES {}", rows.join(", "));
    let said = client.simple_query(&sql).await?;
    ensure!(matches!(said.last(), Some(SimpleQueryMessage::CommandComplete(8))), "{said:?}");
    let mut elsewhere = 0;
    for n in 0..OWNERS {
        let lives = rules.locate("account", &format!("a-{n}"))?;
        let found = locate(&place.connect(n % 2).await?, &phone(n)).await?;
        ensure!(found == Some((format!("a-{n}"), lives.shard.to_string())), "{n}: {found:?}");
        let entry = rules.entry_place("phone", &phone(n)).context("it has a place")?;
        elsewhere += usize::from(entry.shard != lives.shard);
    }
    ensure!((2..OWNERS - 1).contains(&elsewhere), "{elsewhere} entries lie apart");
    // A prepared question, as drivers ask it.
    let sql = format!("SELECT holdfast.locate('phone', '{}')", phone(3));
    let row = client.query_one(&sql, &[]).await?;
    ensure!(row.get::<_, &str>("key") == "a-3");
    Ok(())
}

async fn the_command_asks_a_router(place: &Sharded, rules: &Topology) -> anyhow::Result<()> {
    let locate = async |keys: &[&str]| {
        let router = format!("127.0.0.1:{}", place.port(1));
        let mut command = tokio::process::Command::new(holdfast()?);
        command.args(["locate", "--router", &router, "--user", "holdfast", "--dbname", "bank"]);
        let ran = command.args(["--output", "json"]).args(keys).output().await?;
        let words = String::from_utf8_lossy(&ran.stderr).into_owned();
        anyhow::Ok((ran.status.code(), serde_json::from_slice(&ran.stdout).ok(), words))
    };
    let numbers = [phone(2), phone(9)];
    let (code, told, words) = locate(&["phone", &numbers[0], &numbers[1]]).await?;
    let told: serde_json::Value = told.with_context(|| words.clone())?;
    ensure!(code == Some(0), "{words}");
    for (at, key) in ["a-2", "a-9"].into_iter().enumerate() {
        let place = rules.locate("account", key)?;
        let wanted = serde_json::json!({
            "asked": numbers[at], "key": key, "group": "account", "slot": place.slot.number(),
            "shard": place.shard.as_str(), "source": place.source.as_str(), "epoch": 1,
        });
        ensure!(told[at] == wanted, "{} and {wanted}", told[at]);
    }
    let (code, _, words) = locate(&["account", "it's"]).await?;
    ensure!(code == Some(0), "a key needs no entry: {words}");
    let (code, told, words) = locate(&["phone", "nobody"]).await?;
    ensure!(code == Some(3) && told.is_none(), "{code:?}: {words}");
    ensure!(words.contains("is nobody's"), "{words}");
    let (code, _, words) = locate(&["fax", "1"]).await?;
    ensure!(code == Some(3) && words.contains("HF30"), "{code:?}: {words}");
    Ok(())
}

async fn a_number_that_is_taken_is_refused(client: &Client) -> anyhow::Result<()> {
    for n in 0..4 {
        let id = format!("b-{n}");
        let error = insert(client, &id, &phone(n)).await.expect_err("it is taken");
        ensure!(error.code() == Some(&SqlState::UNIQUE_VIOLATION), "{error:?}");
        let sql = "SELECT count(*) FROM account WHERE id = $1";
        ensure!(client.query_one(sql, &[&id]).await?.get::<_, i64>(0) == 0, "{id} was kept");
        ensure!(owner(client, &phone(n)).await? == Some(format!("a-{n}")));
    }
    // One PostgreSQL would pass the row over. No source can say so of its own rows, and the router does not pretend.
    let insert = |id: &str, conflict: &str| {
        let phone = phone(0);
        format!(
            "INSERT INTO account (id, balance, phone) VALUES ('{id}', 1, '{phone}') ON CONFLICT {conflict}"
        )
    };
    for conflict in ["DO NOTHING", "(phone) DO NOTHING", "(phone) DO UPDATE SET balance = 2"] {
        let error = client.execute(&insert("b-9", conflict), &[]).await.expect_err("not known");
        ensure!(error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED), "{conflict}: {error:?}");
        ensure!(error.as_db_error().is_some_and(|told| told.message().contains("HF3111")));
    }
    // The row's own source knows its key: a row that is there is passed over, a number that is taken is told.
    ensure!(client.execute(&insert("a-1", "(id) DO NOTHING"), &[]).await? == 0);
    let error = client.execute(&insert("b-9", "(id) DO NOTHING"), &[]).await.expect_err("taken");
    ensure!(error.code() == Some(&SqlState::UNIQUE_VIOLATION), "{error:?}");
    Ok(())
}

async fn numbers_change_and_go(client: &Client) -> anyhow::Result<()> {
    let update = "UPDATE account SET phone = $2 WHERE id = $1 RETURNING phone";
    let new = "+49-40-1";
    let row = client.query_one(update, &[&"a-0", &new]).await?;
    ensure!(row.get::<_, &str>(0) == new);
    ensure!(owner(client, new).await?.as_deref() == Some("a-0"));
    ensure!(owner(client, &phone(0)).await?.is_none());
    // Two owners exchange theirs in one statement, wherever they lie.
    let exchange = format!(
        "UPDATE account SET phone = CASE id WHEN 'a-1' THEN '{}' ELSE '{}' END WHERE id IN ('a-1', 'a-2')",
        phone(2),
        phone(1)
    );
    ensure!(client.execute(&exchange, &[]).await? == 2);
    ensure!(owner(client, &phone(1)).await?.as_deref() == Some("a-2"));
    ensure!(owner(client, &phone(2)).await?.as_deref() == Some("a-1"));
    // Without a number, and with another balance only.
    client.execute("UPDATE account SET phone = NULL WHERE id = 'a-3'", &[]).await?;
    ensure!(owner(client, &phone(3)).await?.is_none());
    client.execute("UPDATE account SET balance = 2 WHERE id = 'a-4'", &[]).await?;
    ensure!(owner(client, &phone(4)).await?.as_deref() == Some("a-4"));
    ensure!(
        client.execute("DELETE FROM account WHERE id = ANY($1)", &[&vec!["a-5", "a-6"]]).await?
            == 2
    );
    for n in [5, 6] {
        ensure!(owner(client, &phone(n)).await?.is_none(), "{n}");
        ensure!(insert(client, &format!("c-{n}"), &phone(n)).await? == 1, "it is free again");
    }
    Ok(())
}

async fn what_is_rolled_back_leaves_no_entry(client: &Client) -> anyhow::Result<()> {
    client.batch_execute("BEGIN").await?;
    insert(client, "d-1", "+1").await?;
    client.batch_execute("SAVEPOINT s").await?;
    insert(client, "d-2", "+2").await?;
    client.batch_execute("ROLLBACK TO s").await?;
    insert(client, "d-3", "+3").await?;
    client.batch_execute("COMMIT").await?;
    client.batch_execute("BEGIN").await?;
    insert(client, "d-4", "+4").await?;
    client.batch_execute("ROLLBACK").await?;
    for (number, wanted) in [("+1", Some("d-1")), ("+2", None), ("+3", Some("d-3")), ("+4", None)] {
        ensure!(owner(client, number).await?.as_deref() == wanted, "{number}");
    }
    Ok(())
}

async fn nobody_writes_past_the_router(place: &Sharded) -> anyhow::Result<()> {
    for source in place.sources().await? {
        let update = "UPDATE account SET phone = phone || '9' WHERE phone IS NOT NULL";
        for sql in [update, "TRUNCATE account"] {
            let error = source.batch_execute(sql).await.expect_err("no entry would follow");
            let state = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
            ensure!(error.code() == Some(&state), "{sql}: {error:?}");
        }
        // What is not about numbers is nobody's business.
        source.batch_execute("UPDATE account SET balance = balance + 1").await?;
    }
    let through = place.connect(0).await?.batch_execute("TRUNCATE account").await;
    ensure!(through.is_err(), "not through the router either");
    Ok(())
}

/// Every number has one entry, at its place, which names its owner; and there are no others.
async fn entries_and_owners_agree(place: &Sharded, rules: &Topology) -> anyhow::Result<()> {
    let mut owners = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for (at, source) in (0_u16..).zip(place.sources().await?) {
        let sql = "SELECT phone, id FROM account WHERE phone IS NOT NULL";
        for row in source.query(sql, &[]).await? {
            owners.insert(row.get::<_, String>(0), row.get::<_, String>(1));
        }
        for row in source.query("SELECT value, owner FROM holdfast.lookup", &[]).await? {
            let (value, owner): (String, String) = (row.get(0), row.get(1));
            let home = rules.entry_place("phone", &value).context("it has a place")?;
            ensure!(home.source == SourceIndex(at), "{value} lies on source {at}");
            ensure!(entries.insert(value, owner).is_none(), "an entry lies twice");
        }
        let notes = source.query_one("SELECT count(*) FROM holdfast.lookup_note", &[]).await?;
        ensure!(notes.get::<_, i64>(0) == 0, "notes are left");
    }
    ensure!(owners == entries && owners.len() > OWNERS - 3, "{owners:?}\n{entries:?}");
    Ok(())
}
