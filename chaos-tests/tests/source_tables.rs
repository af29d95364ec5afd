//! Rules are checked against the sources before they are applied: what is missing there is told while nothing depends on it yet.

use std::process::Command;

use anyhow::Context as _;
use holdfast_chaos_tests::{Folder, Postgres, RULES, holdfast};
use serde_json::Value;

const ACCOUNT: &str = "CREATE TABLE account (id text PRIMARY KEY, balance bigint NOT NULL)";
const CURRENCY: &str = "CREATE TABLE currency (code text PRIMARY KEY)";

/// A source, and what it lacks.
type Finding = (String, String);

/// How `rules check --sources` ends, and what it finds.
fn findings(folder: &Folder) -> anyhow::Result<(Option<i32>, Vec<Finding>)> {
    let mut command = Command::new(holdfast()?);
    command.args(["rules", "check", "rules.toml", "--sources", "router.toml", "--output", "json"]);
    let ended = command.current_dir(folder.path()).output().context("starting holdfast")?;
    let told: Value = serde_json::from_slice(&ended.stdout)
        .with_context(|| String::from_utf8_lossy(&ended.stderr).into_owned())?;
    let found = told["findings"].as_array().context("a list of findings")?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let pairs = found.iter().map(|finding| (text(finding, "source"), text(finding, "text")));
    Ok((ended.status.code(), pairs.collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lacks_what_the_rules_send_there_is_told_of() -> anyhow::Result<()> {
    let folder = Folder::make()?;
    let postgres = Postgres::start(folder.path()).await?;
    folder.write("rules.toml", RULES.replace("[table.currency]", "[table.\"public.currency\"]"))?;
    let mut sources = String::new();
    for name in ["pg-1", "pg-2"] {
        postgres.create(name).await?;
        let database = postgres.connection_string(name);
        sources += &format!("[[sources.source]]\nname = \"{name}\"\ndatabase = \"{database}\"\n");
    }
    let rest = "[coordinators]\naddresses = [\"127.0.0.1:7401\"]\n[auth]\nmode = \"trust-loopback\"\n\
                [security]\nmode = \"dev-plaintext\"\n";
    folder.write("router.toml", format!("[router]\nrules = \"rules.toml\"\n{sources}{rest}"))?;
    let [one, two] = [postgres.connect("pg-1").await?, postgres.connect("pg-2").await?];

    one.batch_execute(&format!("{ACCOUNT}; {CURRENCY}")).await?;
    two.batch_execute("CREATE SCHEMA bank; CREATE TABLE bank.account (number text, balance int)")
        .await?;
    let (code, found) = findings(&folder)?;
    let found: Vec<_> =
        found.iter().map(|(source, text)| (source.as_str(), text.as_str())).collect();
    let wanted = [
        ("pg-2", "table account has no column id, which the rules name"),
        (
            "pg-2",
            "table account is not like that of source pg-1: balance integer, number text here alone, balance bigint, id text there alone. Make them alike",
        ),
        ("pg-2", "there is no table public.currency. Make it before rows are sent there"),
    ];
    assert_eq!((code, found.as_slice()), (Some(1), wanted.as_slice()));

    two.batch_execute(&format!("DROP TABLE bank.account; {ACCOUNT}; {CURRENCY}")).await?;
    assert_eq!(findings(&folder)?, (Some(0), vec![]));

    let closed = "ALTER DATABASE \"pg-2\" WITH ALLOW_CONNECTIONS false";
    one.batch_execute(closed).await?;
    let (code, found) = findings(&folder)?;
    let [(source, text)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((code, source.as_str()), (Some(1), "pg-2"));
    assert!(text.contains("not currently accepting connections"), "{text}");
    Ok(())
}
