//! Rules are checked against the sources before they are applied: what is missing there is told while nothing depends on it yet, and so is
//! where rows lie.

use std::{fs, process::Command};

use anyhow::Context as _;
use holdfast_chaos_tests::{Folder, Postgres, RULES, SOON, holdfast, until};
use holdfast_route::Topology;
use serde_json::{Value, json};
use tokio_postgres::Client;

const ACCOUNT: &str = "CREATE TABLE account (id text PRIMARY KEY, balance bigint NOT NULL)";
const CURRENCY: &str = "CREATE TABLE currency (code text PRIMARY KEY)";
const SECRET: &str = "correct horse battery staple";

/// Two sources, empty, and a router's configuration that knows them.
struct Stage {
    one: Client,
    two: Client,
    // Where fields are dropped, the server ends before its folder goes.
    postgres: Postgres,
    folder: Folder,
}

impl Stage {
    async fn set(rules: &str) -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        let postgres = Postgres::start(folder.path()).await?;
        folder.write("rules.toml", rules)?;
        for name in ["pg-1", "pg-2"] {
            postgres.create(name).await?;
        }
        let [one, two] = [postgres.connect("pg-1").await?, postgres.connect("pg-2").await?];
        let stage = Self { one, two, postgres, folder };
        stage.configure("")?;
        Ok(stage)
    }

    /// Writes the router's configuration; the account of pg-2 has `more`.
    fn configure(&self, more: &str) -> anyhow::Result<()> {
        let mut text = "[router]\nrules = \"rules.toml\"\n".to_owned();
        for (name, more) in [("pg-1", ""), ("pg-2", more)] {
            let database = self.postgres.connection_string(name) + more;
            text += &format!("[[sources.source]]\nname = \"{name}\"\ndatabase = \"{database}\"\n");
        }
        text += "[coordinators]\naddresses = [\"127.0.0.1:7401\"]\n[auth]\nmode = \"trust-loopback\"\n\
                 [security]\nmode = \"dev-plaintext\"\n";
        self.folder.write("router.toml", text)?;
        Ok(())
    }

    /// Carries out statements at both sources.
    async fn both(&self, sql: &str) -> anyhow::Result<()> {
        self.one.batch_execute(sql).await?;
        Ok(self.two.batch_execute(sql).await?)
    }

    /// How `holdfast rules` with these words ends, and what it says as JSON.
    fn told(&self, words: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
        let mut command = Command::new(holdfast()?);
        command.arg("rules").args(words).args(["--sources", "router.toml", "--output", "json"]);
        let ended =
            command.current_dir(self.folder.path()).output().context("starting holdfast")?;
        let told = serde_json::from_slice(&ended.stdout);
        let error = String::from_utf8_lossy(&ended.stderr).into_owned();
        Ok((ended.status.code(), told.context(error)?))
    }

    /// How `rules check` ends, and what it finds.
    fn findings(&self) -> anyhow::Result<(Option<i32>, Vec<Finding>)> {
        let (code, told) = self.told(&["check", "rules.toml"])?;
        Ok((code, found(&told["findings"])))
    }
}

/// A source, the code of what is wrong there, and the text.
type Finding = (String, String, String);

fn found(findings: &Value) -> Vec<Finding> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = findings.as_array().into_iter().flatten();
    findings.map(|one| (text(one, "source"), text(one, "code"), text(one, "text"))).collect()
}

#[track_caller]
fn assert_found(found: (Option<i32>, Vec<Finding>), wanted: &[(&str, &str, &str)]) {
    let (code, found) = found;
    let found: Vec<_> = found.iter().map(|(a, b, c)| (&**a, &**b, &**c)).collect();
    assert_eq!((code, &found[..]), (Some(i32::from(!wanted.is_empty())), wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lacks_what_the_rules_send_there_is_told_of() -> anyhow::Result<()> {
    let rules = RULES.replace("[table.currency]", "[table.\"bank.currency\"]");
    let stage = Stage::set(&rules).await?;
    let Stage { one, two, .. } = &stage;
    let currency = "CREATE SCHEMA bank; CREATE TABLE bank.currency (code text PRIMARY KEY)";
    one.batch_execute(&format!("{ACCOUNT}; {currency}")).await?;
    two.batch_execute("CREATE SCHEMA bank; CREATE TABLE bank.account (number text, balance int)")
        .await?;
    let wanted = [
        ("pg-2", "HF1026", "table account has no column id, which the rules name"),
        (
            "pg-2",
            "HF1026",
            "table account is not like that of source pg-1: balance integer, number text here alone, PRIMARY KEY (id), balance bigint NOT NULL, id text NOT NULL there alone. Make them alike",
        ),
        ("pg-2", "HF1026", "there is no table bank.currency. Make it before rows are sent there"),
    ];
    assert_found(stage.findings()?, &wanted);

    two.batch_execute(&format!("DROP SCHEMA bank CASCADE; {ACCOUNT}; {currency}")).await?;
    assert_found(stage.findings()?, &[]);

    stage.configure(" dbname=pg-1")?;
    let same = "it is the same database as source pg-1, so rows would be read twice. \
                Correct one of them in the router's configuration";
    assert_found(stage.findings()?, &[("pg-2", "HF1026", same)]);
    stage.configure("")?;

    one.batch_execute("ALTER DATABASE \"pg-2\" WITH ALLOW_CONNECTIONS false").await?;
    let (code, found) = stage.findings()?;
    let [(source, _, text)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((code, source.as_str()), (Some(1), "pg-2"));
    assert!(text.contains("not currently accepting connections"), "{text}");
    Ok(())
}

/// Who must change what is told; the password is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_refuses_a_password_is_told_of_with_the_account_and_no_secret()
-> anyhow::Result<()> {
    let stage = Stage::set(RULES).await?;
    stage.both(&format!("{ACCOUNT}; {CURRENCY}")).await?;
    let clerk = format!(
        "CREATE USER clerk PASSWORD '{SECRET}'; GRANT SELECT ON account, currency TO clerk"
    );
    stage.two.batch_execute(&clerk).await?;
    let file: String = stage.one.query_one("SHOW hba_file", &[]).await?.get(0);
    let before = fs::read_to_string(&file)?;
    fs::write(&file, format!("host all clerk 127.0.0.1/32 scram-sha-256\n{before}"))?;
    stage.one.batch_execute("SELECT pg_reload_conf()").await?;

    stage.configure(&format!(" user=clerk password='{SECRET}, nearly'"))?;
    let wanted = "user clerk has no answer: password authentication failed for user \"clerk\". \
                  Check user and password of this source in the router's configuration, and pg_hba.conf there";
    until("the server reads who may come", SOON, async || {
        let found = stage.findings().ok()?.1;
        (!found.is_empty()).then_some(())
    })
    .await?;
    let (code, told) = stage.told(&["check", "rules.toml"])?;
    assert_found((code, found(&told["findings"])), &[("pg-2", "HF1026", wanted)]);
    assert!(!told.to_string().contains("horse"), "{told}");

    stage.configure(&format!(" user=clerk password='{SECRET}'"))?;
    assert_found(stage.findings()?, &[]);

    // What may not be read is not taken for right.
    stage.two.batch_execute("REVOKE SELECT ON account FROM clerk").await?;
    let wanted = "rows of table account could not be read: permission denied for table account. \
                  The account needs SELECT on it, and an answer within 10 s";
    assert_found(stage.findings()?, &[("pg-2", "HF1028", wanted)]);
    Ok(())
}

/// Beside what a source lacks: what cannot hold where rows are spread, told once.
#[tokio::test(flavor = "multi_thread")]
async fn keys_constraints_and_extensions_that_differ_or_cannot_hold_are_told_of()
-> anyhow::Result<()> {
    let rules = RULES.replace(
        "[table.currency]",
        "[table.entry]\ngroup = \"account\"\nkey = \"account\"\n[table.audit]\nsingle = \"pg-1\"\n[table.currency]",
    );
    let stage = Stage::set(&rules).await?;
    let entry = "CREATE TABLE entry (id bigint PRIMARY KEY, account text NOT NULL REFERENCES account, \
                 currency text REFERENCES currency)";
    stage.both(&format!("{ACCOUNT}; {CURRENCY}; {entry}")).await?;
    stage.one.batch_execute("CREATE TABLE audit (id bigint PRIMARY KEY)").await?;
    let no_key = (
        "pg-1",
        "HF1027",
        "no unique key of table entry holds account, so two sources may each have a row that is one by its key. Put it into the primary key",
    );
    assert_found(stage.findings()?, &[no_key]);

    let mended = "ALTER TABLE entry DROP CONSTRAINT entry_pkey, ADD PRIMARY KEY (account, id)";
    stage.both(mended).await?;
    assert_found(stage.findings()?, &[]);

    stage
        .one
        .batch_execute(
            "CREATE EXTENSION pg_trgm; ALTER TABLE account ADD CHECK (balance >= 0); \
             ALTER TABLE entry ADD CONSTRAINT audited FOREIGN KEY (id) REFERENCES audit",
        )
        .await?;
    stage
        .two
        .batch_execute(
            "ALTER TABLE account ADD twin text UNIQUE; \
             ALTER TABLE entry ADD CONSTRAINT of_twin FOREIGN KEY (currency) REFERENCES account (twin); \
             ALTER TABLE entry DROP CONSTRAINT entry_pkey; ALTER TABLE entry ALTER account DROP NOT NULL; \
             CREATE UNIQUE INDEX partial ON entry (account, id) WHERE id > 7; \
             ALTER TABLE currency ALTER code TYPE varchar(3)",
        )
        .await
        .context("at pg-2")?;
    let version: String = stage
        .one
        .query_one("SELECT extversion FROM pg_extension WHERE extname = 'pg_trgm'", &[])
        .await?
        .get(0);
    let extension = format!(
        "there is no extension pg_trgm, and source pg-1 has {version}. CREATE EXTENSION pg_trgm, or drop it there"
    );
    let wanted = [
        (
            "pg-1",
            "HF1027",
            "foreign key audited of table entry leads to table audit, which lies on pg-1 alone. Drop it, put the shard key of both into it, or make audit a reference table",
        ),
        ("pg-2", "HF1026", &*extension),
        (
            "pg-2",
            "HF1026",
            "table account is not like that of source pg-1: UNIQUE (twin), twin text here alone, CHECK ((balance >= 0)) there alone. Make them alike",
        ),
        (
            "pg-2",
            "HF1026",
            "table currency is not like that of source pg-1: code character varying(3) NOT NULL here alone, code text NOT NULL there alone. Make them alike",
        ),
        (
            "pg-2",
            "HF1026",
            "table entry is not like that of source pg-1: FOREIGN KEY (currency) REFERENCES public.account(twin), UNIQUE (account, id) WHERE (id > 7), account text here alone, FOREIGN KEY (id) REFERENCES public.audit(id), PRIMARY KEY (account, id), account text NOT NULL there alone. Make them alike",
        ),
        (
            "pg-2",
            "HF1026",
            "column account of table entry may be NULL, and a row without its key is found by nobody. ALTER TABLE entry ALTER COLUMN account SET NOT NULL",
        ),
        ("pg-2", "HF1027", no_key.2),
        (
            "pg-2",
            "HF1027",
            "foreign key of_twin of table entry leads to table account, whose rows are spread by id, and it does not hold that. Drop it, put the shard key of both into it, or make account a reference table",
        ),
    ];
    assert_found(stage.findings()?, &wanted);
    Ok(())
}

/// A move by hand: what would move is told before, what fills its place is told, and behind it nothing lies elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_lie_elsewhere_are_counted_before_and_behind_a_move() -> anyhow::Result<()> {
    let entry = "[table.entry]\ngroup = \"account\"\nkey = \"account\"\n[table.currency]";
    let before = RULES.replace("[table.currency]", entry);
    let stage = Stage::set(&before).await?;
    let Stage { one, two, folder, .. } = &stage;
    let after =
        before.replace("last = 511,", "last = 767,").replace("first = 512,", "first = 768,");
    folder.write("after.toml", after)?;
    // Slots 638 and 394; 816.
    stage
        .both(&format!(
            "{ACCOUNT}; {CURRENCY}; CREATE TABLE entry (account text REFERENCES account, id bigint, PRIMARY KEY (account, id))"
        ))
        .await?;
    one.batch_execute("INSERT INTO account VALUES ('A-2', 5)").await?;
    two.batch_execute(
        "INSERT INTO account VALUES ('A-1', 7), ('a', 8); \
         INSERT INTO entry SELECT 'A-1', n FROM generate_series(1, 1500) n",
    )
    .await?;
    assert_found(stage.findings()?, &[]);

    let plan = ["plan", "rules.toml", "after.toml"];
    let (code, told) = stage.told(&plan)?;
    let slots = json!([{ "first": 638, "last": 638 }]);
    let moves = json!([
        { "table": "account", "from": "pg-2", "to": "pg-1", "rows": 1, "slots": slots },
        { "table": "entry", "from": "pg-2", "to": "pg-1", "rows": 1500, "slots": slots },
    ]);
    let sources = &told["sources"];
    assert_eq!((code, &sources["moves"], &sources["findings"]), (Some(0), &moves, &json!([])));
    assert_eq!(sources["copy_order"], json!({ "tables": ["account", "entry"], "deferred": false }));

    // As people are told.
    let mut command = Command::new(holdfast()?);
    command.arg("rules").args(plan).args(["--sources", "router.toml", "--rows-max", "1000"]);
    let ended = command.current_dir(folder.path()).output().context("starting holdfast")?;
    let text = String::from_utf8(ended.stdout)?;
    let told = "ROWS THAT WOULD HAVE TO MOVE  ROWS  FROM  TO    OF SLOTS\n\
        account                       1     pg-2  pg-1  638\n\
        entry                         1000  pg-2  pg-1  638\n\n\
        In all, 1003 rows were read, and there are more (--rows-max) of entry at pg-2.\n\n\
        Copy in this order, delete in the reverse: account, entry.\n";
    assert!(text.ends_with(told), "{text}");

    // So many rows are read, and what is beyond is said to be.
    let read = |max: &'static str| -> anyhow::Result<Value> {
        let (_, told) = stage.told(&["check", "rules.toml", "--rows-max", max])?;
        let read = told["read"].as_array().context("what was read")?.clone();
        let of_entry = |one: &&Value| one["table"] == "entry" && one["source"] == "pg-2";
        Ok(read.iter().find(of_entry).cloned().unwrap_or_default())
    };
    let all = |rows: u64, all: bool| json!({ "source": "pg-2", "table": "entry", "rows": rows, "all": all });
    assert_eq!(read("1500")?, all(1500, true));
    assert_eq!(read("1499")?, all(1499, false));
    assert_eq!(read("1000")?, all(1000, false));
    assert_eq!(read("0")?, Value::Null);

    // Half of the move: by the rules in force the copy lies where nobody looks.
    one.batch_execute("INSERT INTO account VALUES ('A-1', 7)").await?;
    let (code, told) = stage.told(&plan)?;
    let filled = "rows of table account that belong to source pg-2: 1 (slots 638), the first id = 'A-1'. \
                  Move them there, or delete them here if they are there";
    assert_found((code, found(&told["sources"]["findings"])), &[("pg-1", "HF1028", filled)]);

    // The rules are applied too early: so much is still to be moved.
    fs::rename(folder.path().join("after.toml"), folder.path().join("rules.toml"))?;
    let wanted = [
        (
            "pg-2",
            "HF1028",
            "rows of table account that belong to source pg-1: 1 (slots 638), the first id = 'A-1'. Move them there, or delete them here if they are there",
        ),
        (
            "pg-2",
            "HF1028",
            "rows of table entry that belong to source pg-1: 1500 (slots 638), the first account = 'A-1'. Move them there, or delete them here if they are there",
        ),
    ];
    assert_found(stage.findings()?, &wanted);

    one.batch_execute("INSERT INTO entry SELECT 'A-1', n FROM generate_series(1, 1500) n").await?;
    two.batch_execute(
        "DELETE FROM entry WHERE account = 'A-1'; DELETE FROM account WHERE id = 'A-1'",
    )
    .await?;
    assert_found(stage.findings()?, &[]);
    Ok(())
}

/// No order of copying keeps two tables that lead to each other, unless one of the keys can wait.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_lead_in_a_circle_are_told_of_before_a_move() -> anyhow::Result<()> {
    let entry =
        "[table.entry]\ngroup = \"account\"\n[table.page]\ngroup = \"account\"\n[table.currency]";
    let before = RULES.replace("[table.currency]", entry);
    let stage = Stage::set(&before).await?;
    let after =
        before.replace("last = 511,", "last = 767,").replace("first = 512,", "first = 768,");
    stage.folder.write("after.toml", after)?;
    stage
        .both(&format!(
            "{ACCOUNT}; {CURRENCY}; CREATE TABLE entry (id text PRIMARY KEY REFERENCES account); \
             ALTER TABLE account ADD CONSTRAINT account_entry FOREIGN KEY (id) REFERENCES entry; \
             CREATE TABLE page (id text PRIMARY KEY REFERENCES entry)"
        ))
        .await?;
    let plan = ["plan", "rules.toml", "after.toml"];
    let (code, told) = stage.told(&plan)?;
    let circle = "foreign keys lead in a circle and none of them can be deferred, so no order of copying keeps them: \
                  account_entry of table account, entry_id_fkey of table entry. \
                  ALTER TABLE ... ALTER CONSTRAINT ... DEFERRABLE for one of them";
    assert_found((code, found(&told["sources"]["findings"])), &[("pg-1", "HF1027", circle)]);

    stage.both("ALTER TABLE account ALTER CONSTRAINT account_entry DEFERRABLE").await?;
    let (code, told) = stage.told(&plan)?;
    let order = json!({ "tables": ["account", "entry", "page"], "deferred": true });
    assert_eq!((code, &told["sources"]["copy_order"]), (Some(0), &order), "{told}");
    Ok(())
}

/// Entries of lookups lie where their values lead, and move with these slots; whoever writes owners keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_lookups_that_lie_elsewhere_or_are_not_kept_are_told_of() -> anyhow::Result<()> {
    let lookup = "[lookup.phone]\ntable = \"account\"\ncolumn = \"phone\"\n";
    let rules = format!("{RULES}\n{lookup}");
    let stage = Stage::set(&rules).await?;
    let phone = "ALTER TABLE account ADD phone text UNIQUE";
    stage.both(&format!("{ACCOUNT}; {CURRENCY}; {phone}")).await?;
    let no_table = "there is no table holdfast.lookup. Make it before rows are sent there";
    let no_trigger = "table account has no trigger holdfast_lookup_phone, so entries of lookup phone would not be kept. \
                      Run there what holdfast rules lookups prints";
    let wanted = [
        ("pg-1", "HF1026", no_trigger),
        ("pg-1", "HF1026", no_table),
        ("pg-2", "HF1026", no_trigger),
        ("pg-2", "HF1026", no_table),
    ];
    assert_found(stage.findings()?, &wanted);

    let rules = Topology::parse(&rules).expect("good rules");
    stage.both(&rules.lookup_sql()).await?;
    assert_found(stage.findings()?, &[]);

    let place = rules.entry_place("phone", "+49").context("it has one")?;
    let [(right, there), (wrong, here)] = match place.source.0 {
        0 => [(&stage.one, "pg-1"), (&stage.two, "pg-2")],
        _ => [(&stage.two, "pg-2"), (&stage.one, "pg-1")],
    };
    let entry = "INSERT INTO holdfast.lookup VALUES ('phone', '+49', 'A-1'), ('gone', 'x', 'A-1')";
    right.batch_execute(entry).await?;
    // Its owner, slot 638, past the router.
    let owner =
        "SET session_replication_role = replica; INSERT INTO account VALUES ('A-1', 7, '+49')";
    stage.two.batch_execute(owner).await?;
    assert_found(stage.findings()?, &[]);
    wrong.batch_execute(entry).await?;
    let astray = format!(
        "rows of table holdfast.lookup that belong to source {there}: 1 (slots {}), the first value = '+49'. \
         Move them there, or delete them here if they are there",
        place.slot
    );
    assert_found(stage.findings()?, &[(here, "HF1028", &astray)]);
    Ok(())
}

/// A foreign key to what the rules do not name is kept by nobody once the rows that have it are spread.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_of_spread_rows_to_tables_that_the_rules_do_not_name_are_told_of()
-> anyhow::Result<()> {
    let stage = Stage::set(RULES).await?;
    stage
        .both(&format!(
            "{ACCOUNT}; {CURRENCY}; CREATE SCHEMA bank; CREATE TABLE bank.branch (id int PRIMARY KEY); \
             ALTER TABLE account ADD branch int CONSTRAINT of_branch REFERENCES bank.branch; \
             ALTER TABLE currency ADD branch int REFERENCES bank.branch"
        ))
        .await?;
    let outside = "foreign key of_branch of table account leads to table bank.branch, which the rules do not name, \
                   so a row and the one that it leads to may be on two sources. Name bank.branch in the rules, or drop the foreign key";
    assert_found(stage.findings()?, &[("pg-1", "HF1027", outside)]);

    let one_source = RULES.replace("source = \"pg-2\"", "source = \"pg-1\"");
    stage.folder.write("rules.toml", one_source)?;
    assert_found(stage.findings()?, &[]);
    Ok(())
}

/// Whoever reads a copy is told by any source, so all of them must say the same.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_reference_table_that_differ_are_told_of() -> anyhow::Result<()> {
    let stage = Stage::set(RULES).await?;
    let Stage { one, two, .. } = &stage;
    one.batch_execute(&format!(
        "{ACCOUNT}; CREATE TABLE currency (code text PRIMARY KEY, rate float8, since timestamptz)"
    ))
    .await?;
    // The same columns in another order; and another account's habits.
    two.batch_execute(&format!(
        "{ACCOUNT}; CREATE TABLE currency (since timestamptz, rate float8, code text PRIMARY KEY)"
    ))
    .await?;
    two.batch_execute("ALTER DATABASE \"pg-2\" SET DateStyle = 'German'; ALTER DATABASE \"pg-2\" SET TimeZone = 'Asia/Tokyo'")
        .await?;
    let euro =
        "INSERT INTO currency (code, rate, since) VALUES ('EUR', 1.1, '1999-01-01 00:00:00+00')";
    stage.both(euro).await?;
    assert_found(stage.findings()?, &[]);

    two.batch_execute("UPDATE currency SET rate = 1.2").await?;
    let told = |what: &str| {
        format!(
            "table currency is a copy, and not as that of source pg-1: {what}. Make them alike; whoever reads it is told by any source"
        )
    };
    let differs = told("1 rows at both, and some differ");
    assert_found(stage.findings()?, &[("pg-2", "HF1028", &differs)]);
    one.batch_execute("INSERT INTO currency (code) VALUES ('CHF')").await?;
    let differs = told("1 rows here, 2 there");
    assert_found(stage.findings()?, &[("pg-2", "HF1028", &differs)]);

    // So many rows are read; of more, nothing is said but that there are more.
    for (max, all) in [("2", true), ("1", false)] {
        let (code, told) = stage.told(&["check", "rules.toml", "--rows-max", max])?;
        let read = told["read"].as_array().context("what was read")?;
        let there = |one: &&Value| one["table"] == "currency" && one["source"] == "pg-1";
        let read = read.iter().find(there).context("it was read")?;
        assert_eq!((code, &read["all"]), (Some(i32::from(all)), &json!(all)), "{told}");
    }
    Ok(())
}

/// An entry at one source and its owner at another are laid side by side.
#[tokio::test(flavor = "multi_thread")]
async fn values_without_entries_and_entries_without_owners_are_told_of() -> anyhow::Result<()> {
    let rules = format!("{RULES}\n[lookup.phone]\ntable = \"account\"\ncolumn = \"phone\"\n");
    let stage = Stage::set(&rules).await?;
    let phone = "ALTER TABLE account ADD phone bigint UNIQUE";
    let rules = Topology::parse(&rules).expect("good rules");
    stage.both(&format!("{ACCOUNT}; {CURRENCY}; {phone}; {}", rules.lookup_sql())).await?;
    // Written past the router, by somebody who may.
    let owners = "SET session_replication_role = replica; INSERT INTO account SELECT id, 0, phone FROM (VALUES";
    let accounts: Vec<(String, i64)> = (1..=2_500).map(|n| (format!("A-{n}"), 4_900 + n)).collect();
    let (mut rows, mut entries) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let table = &rules.tables()["account"];
    for (id, phone) in &accounts {
        let holdfast_route::Home::On(source, _) = rules.home(table, [Some(&**id)].into_iter())
        else {
            anyhow::bail!("{id} belongs somewhere")
        };
        rows[usize::from(source.as_str() == "pg-2")].push(format!("('{id}', {phone})"));
        let place = rules.entry_place("phone", &phone.to_string()).context("it has one")?;
        entries[usize::from(place.source.0 == 1)].push(format!("('phone', '{phone}', '{id}')"));
    }
    for (source, n) in [(&stage.one, 0), (&stage.two, 1)] {
        let rows = rows[n].join(", ");
        let entries = entries[n].join(", ");
        source
            .batch_execute(&format!(
                "{owners} {rows}) AS v (id, phone); INSERT INTO account VALUES ('no phone {n}', 0, NULL); \
                 INSERT INTO holdfast.lookup VALUES {entries}"
            ))
            .await?;
    }
    stage.both("DELETE FROM account WHERE phone IS NULL").await?;
    assert_found(stage.findings()?, &[]);

    // Of one value the entry is gone, of one the owner, and one has another owner than its entry says.
    stage
        .both("DELETE FROM holdfast.lookup WHERE value = '4901'; UPDATE account SET phone = NULL WHERE phone = 4902; \
               UPDATE holdfast.lookup SET owner = 'A-9' WHERE value = '4903'")
        .await?;
    let at = |id: &str| match rules.home(table, [Some(id)].into_iter()) {
        holdfast_route::Home::On(source, _) => source.as_str().to_owned(),
        _ => String::new(),
    };
    let entry_at = rules
        .entry_place("phone", "4902")
        .map_or("", |place| ["pg-1", "pg-2"][usize::from(place.source.0)]);
    let mut wanted = vec![
        (
            at("A-1"),
            "rows of table account whose phone has no entry in lookup phone: 1, the first phone = '4901'. Make the entries; nobody finds the rows by it until then",
        ),
        (
            entry_at.to_owned(),
            "entries of lookup phone without an owner: 1, the first value = '4902'. Delete them; nobody else can have the value until then",
        ),
        (
            at("A-3"),
            "rows of table account whose phone has an entry in lookup phone that leads to another owner: 1, the first phone = '4903'. Correct the entries",
        ),
    ];
    wanted.sort();
    let (code, found) = stage.findings()?;
    let mut found: Vec<_> =
        found.iter().map(|(source, _, text)| (source.clone(), &**text)).collect();
    found.sort();
    assert_eq!((code, found), (Some(1), wanted));

    // Of more than may be read, nothing is said.
    let (code, _) = stage.told(&["check", "rules.toml", "--rows-max", "1000"])?;
    assert_eq!(code, Some(0));
    Ok(())
}
