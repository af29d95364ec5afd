//! `holdfast rules plan` and `simulate`: what a DBA is told before rules are applied.

#![allow(clippy::unwrap_used, reason = "a test ends at what must not happen")]

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

/// The exit code, and standard output as JSON.
fn asked(args: &[&str]) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(args)
        .args(["--output", "json"])
        .output()
        .expect("the binary runs");
    let said = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&said);
    let error = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), value.unwrap_or_else(|_| panic!("no JSON: {said} {error}")))
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const RULES: &str = r#"
[group.branch]
key = "branch_no"
function = "range(100, 200, 300)"
slots = [
  { first = 0, last = 1, shard = "a" },
  { first = 2, last = 1023, shard = "b" },
]
[table.branch]
group = "branch"
[table.country]
reference = true
[shard.a]
source = "pg-1"
[shard.b]
source = "pg-2"
[source.pg-1]
address = "127.0.0.1:5431"
[source.pg-2]
address = "127.0.0.1:5432"
"#;

const STATEMENTS: &str = "SELECT * FROM branch WHERE branch_no = 7;
SELECT * FROM branch WHERE branch_no BETWEEN 120 AND 199;
SELECT * FROM branch;
SELECT * FROM country";

#[test]
fn a_plan_tells_slots_that_move_statements_that_go_elsewhere_and_how_even_the_keys_lie() {
    let folder = tempfile::tempdir().unwrap();
    let old = file(folder.path(), "old.toml", RULES);
    let moved = RULES.replace("last = 1,", "last = 0,").replace("first = 2,", "first = 1,");
    let new = file(folder.path(), "new.toml", &moved);
    let statements = file(folder.path(), "day.sql", STATEMENTS);
    let keys = file(folder.path(), "keys.txt", "1\n2\n3\n150\n250\n350\nx\n");
    let args = ["rules", "plan", &old, &new, "--statements", &statements];
    let sample = ["--group", "branch", "--keys", &keys];
    let (code, told) = asked(&[&args[..], &sample].concat());
    assert_eq!(code, Some(0));
    let moves = json!([{
        "group": "branch", "from": "pg-1", "to": "pg-2", "slots": 1,
        "ranges": [{ "first": 1, "last": 1 }],
    }]);
    assert_eq!(told["moves"], moves);
    assert_eq!((&told["captured"], &told["newly_refused"]), (&json!(4), &json!(0)));
    let changed = told["statements"].as_array().unwrap();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert!(changed[0]["sql"].as_str().unwrap().contains("BETWEEN 120"));
    assert!(changed[0]["was"].as_str().unwrap().starts_with("pg-1, slot 1"));
    assert!(changed[0]["is"].as_str().unwrap().starts_with("pg-2, slot 1"));
    assert_eq!(told["misplaced"], json!([]));
    let spread = &told["keys"];
    assert_eq!(spread["by_source"], json!({ "pg-1": 3, "pg-2": 3 }));
    assert_eq!((&spread["outside"], &spread["outside_first"]), (&json!(1), &json!(["x"])));
    assert_eq!(spread["fullest_slot"], json!({ "slot": 0, "keys": 3 }));
    assert_eq!((&spread["slots_used"], &spread["unevenness_of_sources"]), (&json!(4), &json!(1.0)));
}

/// As people are told: that nothing moves is said, and so is what else changes.
#[test]
fn a_plan_of_rules_that_move_nothing_says_so_and_what_else_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let old = file(folder.path(), "old.toml", RULES);
    let wider = RULES.replace("key = \"branch_no\"", "key = \"branch_no\"\nscatter = \"read\"")
        + "[table.desk]\ngroup = \"branch\"\nscatter = \"write\"\n\
           [lookup.phone]\ntable = \"branch\"\ncolumn = \"phone\"\n";
    let new = file(folder.path(), "new.toml", &wider);
    let told = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_holdfast")).args(args).output();
        String::from_utf8(output.expect("the binary runs").stdout).unwrap()
    };
    assert_eq!(told(&["rules", "plan", &old, &old]), "No slot moves.\n");
    let plan = "No slot moves.\n\n\
        WHAT ELSE CHANGES        IS      WOULD BE\n\
        lookup phone             -       branch.phone\n\
        scatter of group branch  refuse  read\n\
        scatter of table desk    -       write\n\
        table desk               -       in group branch: branch_no by range(100, 200, 300)\n";
    assert_eq!(told(&["rules", "plan", &old, &new]), plan);
    let (_, answer) = asked(&["rules", "plan", &old, &new]);
    assert_eq!(answer["others"].as_array().map(Vec::len), Some(4));
    let checked = told(&["rules", "check", &new]);
    let lookups = "LOOKUP  FROM          TO\nphone   branch.phone  branch_no of group branch\n";
    assert!(checked.contains(lookups), "{checked}");
}

/// Rows stay where the old function put them: that is no move of slots, and it is told apart.
#[test]
fn a_plan_tells_of_rows_that_would_be_looked_for_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let old = file(folder.path(), "old.toml", RULES);
    let other = RULES
        .replace("range(100, 200, 300)", "mod")
        .replace("[table.country]\nreference = true", "[table.country]\nsingle = \"pg-2\"");
    let new = file(folder.path(), "new.toml", &other);
    let (code, told) = asked(&["rules", "plan", &old, &new]);
    assert_eq!(code, Some(0));
    assert_eq!(told["moves"], json!([]));
    let misplaced = told["misplaced"].as_array().unwrap();
    let what: Vec<&str> = misplaced.iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["group branch", "table branch", "table country"]);
    assert_eq!(misplaced[0]["was"], "range(100, 200, 300) of integer");
    assert_eq!(misplaced[0]["is"], "mod of integer");
}

#[test]
fn a_simulation_counts_where_statements_go_and_ends_with_3_when_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let rules = file(folder.path(), "rules.toml", RULES);
    let statements = file(folder.path(), "day.sql", STATEMENTS);
    let (code, told) = asked(&["rules", "simulate", &rules, "--statements", &statements]);
    assert_eq!(code, Some(3));
    assert_eq!(told["by_class"], json!({ "one": 2, "no_key": 1, "any": 1 }));
    let permitted = RULES.replace("key = \"branch_no\"", "key = \"branch_no\"\nscatter = \"read\"");
    let rules = file(folder.path(), "permitted.toml", &permitted);
    let (code, told) = asked(&["rules", "simulate", &rules, "--statements", &statements]);
    assert_eq!(code, Some(0));
    assert_eq!(told["by_class"], json!({ "one": 2, "several": 1, "any": 1 }));
}
