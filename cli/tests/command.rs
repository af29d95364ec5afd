//! The command as a script meets it: help with examples everywhere, one exit code for each ending, pages for every code.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn holdfast(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .current_dir(root())
        .args(arguments)
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("what we print is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("what we print is UTF-8")
}

/// The subcommands that a help page lists.
fn listed(help: &str) -> Vec<String> {
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn every_help_page_has_examples() {
    let mut todo = vec![Vec::new()];
    let mut pages = 0;
    while let Some(path) = todo.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = holdfast(&arguments);
        let help = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "holdfast {}", arguments.join(" "));
        assert!(help.contains("Examples:\n"), "holdfast {}:\n{help}", arguments.join(" "));
        assert!(help.contains("\n  "), "{help}");
        pages += 1;
        for name in listed(&help) {
            let mut deeper = path.clone();
            deeper.push(name);
            todo.push(deeper);
        }
    }
    // 11 subcommands and what is below tx, cluster, rules, barrier and config, and the root itself.
    assert!(pages >= 23, "only {pages} pages were found");
}

#[test]
fn an_act_and_an_option_are_known_by_their_other_spelling_too() {
    let help = |word| stdout(&holdfast(&["tx", word, "--help"]));
    assert!(help("rollback").contains("Ask for rollback"), "{}", help("rollback"));
    assert_eq!(help("rollback"), help("roll-back"));
    // It is read before the bench begins: out of its range, which starts at 1,000.
    let refused = holdfast(&["bench", "history", "--transactions", "1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("1000"), "{}", stderr(&refused));
}

#[test]
fn a_version_says_what_was_built() {
    let output = holdfast(&["--version"]);
    let version = stdout(&output);
    assert!(version.starts_with(&format!("holdfast {} (", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.contains("rustc 1.") && version.contains("wire holdfast.v1"), "{version}");
}

#[test]
fn every_code_is_explained_by_its_page() {
    let mut codes = 0;
    for entry in fs::read_dir(root().join("docs/reference/errors")).expect("the pages") {
        let file = entry.expect("a page").path();
        let code = file.file_stem().expect("a name").to_str().expect("ASCII").to_owned();
        let output = holdfast(&["explain", &code.to_lowercase()]);
        let page = fs::read_to_string(&file).expect("a page can be read");
        assert_eq!(stdout(&output).trim_end(), page.trim_end(), "{code}");
        assert!(page.starts_with(&format!("# {code}: ")), "{code}: {page}");
        assert_eq!(output.status.code(), Some(0));
        codes += 1;
    }
    assert!(codes >= 40, "only {codes} pages");
    let list = stdout(&holdfast(&["explain", "--output", "json"]));
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(codes));
}

#[test]
fn a_code_that_is_not_there_is_usage_with_a_hint() {
    let output = holdfast(&["explain", "HF10004"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Did you mean HF1004?"), "{}", stderr(&output));
}

#[test]
fn a_key_is_located_by_the_shipped_rules() {
    let output = holdfast(&["locate", "--rules", "config/shards.toml", "account", "A-17", "B-42"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let expected = "\
KEY   SLOT  SHARD    SOURCE  ADDRESS         EPOCH
A-17  643   shard-3  pg-3    127.0.0.1:5433  1
B-42  525   shard-3  pg-3    127.0.0.1:5433  1
";
    assert_eq!(stdout(&output), expected);
    let output = holdfast(&[
        "locate",
        "--rules",
        "config/shards.toml",
        "account",
        "A-17",
        "--output",
        "json",
    ]);
    let place: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(place[0]["key"], "A-17");
    assert_eq!(place[0]["slot"], 643);
    assert_eq!(place[0]["shard"], "shard-3");
}

#[test]
fn an_account_number_carries_the_slot_of_its_customer_and_a_mistyped_one_is_refused() {
    let rules = ["--rules", "examples/genes.toml", "--prefix", "49"];
    let new: Vec<&str> = ["account", "new"].into_iter().chain(rules).collect();
    let made =
        holdfast(&[&new[..], &["--key", "C-17", "--output", "json", "--count", "3"]].concat());
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let number = made[2]["number"].as_str().expect("a number");
    let located =
        ["locate", "--rules", "examples/genes.toml", "customer", "C-17", "--output", "json"];
    let located: serde_json::Value =
        serde_json::from_slice(&holdfast(&located).stdout).expect("JSON");
    assert_eq!(made[2]["slot"], located[0]["slot"]);
    assert_eq!(made[2]["source"], located[0]["source"]);
    let check: Vec<&str> = ["account", "check"].into_iter().chain(rules).collect();
    let output = holdfast(&[&check[..], &[number]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let last = if number.ends_with('0') { "1" } else { "0" };
    let mistyped = format!("{}{last}", &number[..number.len() - 1]);
    // One that is wrong does not hide those that are right.
    let output = holdfast(&[&check[..], &[&mistyped, number]].concat());
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains(&format!("{mistyped}: HF3024")), "{}", stderr(&output));
    assert!(stdout(&output).contains(number), "{}", stdout(&output));
    let output = holdfast(&[&new[..], &["--slot", "643", "--serial", "17"]].concat());
    assert!(stdout(&output).contains("4906430000000176  643"), "{}", stdout(&output));
    let output = holdfast(&[&new[..], &["--slot", "643", "--length", "7"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("HF3023"), "{}", stderr(&output));
}

#[test]
fn a_group_that_is_not_there_is_refused() {
    let output = holdfast(&["locate", "--rules", "config/shards.toml", "acount", "A-17"]);
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert!(said.contains("HF3020") && said.contains("Did you mean \"account\"?"), "{said}");
}

#[test]
fn rules_are_checked_and_shown() {
    let output = holdfast(&["rules", "check", "config/shards.toml"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).starts_with("config/shards.toml: no mistake; epoch 1.\n"));
    let output = holdfast(&["rules", "check", "cli/tests/config/rules_with_mistakes.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("HF3007"), "{}", stderr(&output));
}

#[test]
fn usage_ends_with_2_and_an_absent_cluster_with_1() {
    assert_eq!(holdfast(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(holdfast(&["tx", "list", "--limit", "1001"]).status.code(), Some(2));
    let output = holdfast(&["tx", "list", "--status", "finished"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("needs_attention"), "{}", stderr(&output));
    let output = holdfast(&["coordinator", "--set", "node=2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("HF1019"), "{}", stderr(&output));
    // Port 1 is reserved and nothing listens there.
    let output =
        holdfast(&["tx", "get", "g-1", "--coordinator", "127.0.0.1:1", "--patience-ms", "200"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn a_transaction_that_is_no_json_is_usage_and_nothing_is_sent() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("transfer.json");
    fs::write(&file, "{\"mode\":\"tcc\",\n \"timeout\": 3}").expect("a file");
    let output = holdfast(&["tx", "submit", "--file", file.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("HF1023") && said.contains("line 2"), "{said}");
}

#[test]
fn the_barrier_is_printed_as_sql() {
    let output = holdfast(&["barrier", "sql"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("CREATE SCHEMA"), "{}", stdout(&output));
}

#[test]
fn a_barrier_is_not_installed_where_the_text_is_no_database() {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["barrier", "install"])
        .env("HOLDFAST_DATABASE", "password=sesame open")
        .output()
        .expect("the binary runs");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("HF1020") && !said.contains("sesame"), "{said}");
}
