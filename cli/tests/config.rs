//! Configuration as people meet it: every mistake of a file in one report, word for word.
//!
//! Each `config/<case>.toml` says at its top how it is read (`#! role=`, `#! env=`, `#! set=`, `#! command=`); `<case>.expected` holds what the real
//! binary says about it. `UPDATE_GOLDENFILES=1 cargo test -p holdfast-cli --test config` rewrites them; read the difference.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Fewer cases than this, and something was lost.
const CASES_MIN: usize = 42;

fn holdfast(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.current_dir(dir);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("what we print is UTF-8");
    format!("{}{}exit {}\n", utf8(stdout), utf8(stderr), output.status.code().unwrap_or(-1))
}

/// Runs one case as its header says.
fn said_about(file: &Path) -> String {
    let source = fs::read_to_string(file).expect("a case can be read");
    let (mut role, mut line) = (None, "check".to_owned());
    let mut command = holdfast(file.parent().expect("in its folder"));
    let mut flags = Vec::new();
    for header in source.lines().map_while(|line| line.strip_prefix("#! ")) {
        match header.split_once('=').expect("a header is name=value") {
            ("role", value) => role = Some(value.to_owned()),
            ("command", value) => line = value.to_owned(),
            ("set", value) => flags.extend(["--set".to_owned(), value.to_owned()]),
            ("env", value) => {
                let (name, value) = value.split_once('=').expect("env=NAME=VALUE");
                command.env(name, value);
            }
            (name, _) => panic!("{}: no header is called {name}", file.display()),
        }
    }
    command.arg("config").args(line.split(' ')).arg(file.file_name().expect("a file"));
    command.args(["--role", &role.expect("every case names its role")]).args(flags);
    text(&command.output().expect("the binary runs"))
}

#[test]
fn every_mistake_is_told_at_once_word_for_word() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut cases: Vec<PathBuf> = fs::read_dir(&dir)
        .expect("the folder of cases")
        .map(|entry| entry.expect("a case").path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= CASES_MIN, "{} cases are left of {CASES_MIN}", cases.len());
    let update = std::env::var_os("UPDATE_GOLDENFILES").is_some();
    let mut wrong = Vec::new();
    for case in &cases {
        let said = said_about(case);
        assert!(!said.contains("sesame"), "{}: a password is shown:\n{said}", case.display());
        let golden = case.with_extension("expected");
        if update {
            fs::write(&golden, &said).expect("a golden file can be written");
            continue;
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            let name = case.file_name().expect("a file").to_string_lossy();
            wrong.push(format!("--- {name}: expected\n{expected}--- said\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_shipped_has_no_mistake() {
    for role in ["coordinator", "agent", "bank", "shards"] {
        let file = format!("config/{role}.toml");
        let output = holdfast(&root()).args(["config", "check", &file, "--role", role]).output();
        let said = text(&output.expect("the binary runs"));
        assert!(said.starts_with(&format!("{file}: no mistake")), "{said}");
        assert!(said.ends_with("exit 0\n"), "{said}");
    }
}

#[test]
fn what_is_shipped_says_the_defaults() {
    // A key that is left out means what the shipped file says: nobody finds two truths.
    for role in ["coordinator", "agent", "bank"] {
        let shipped =
            fs::read_to_string(root().join(format!("config/{role}.toml"))).expect("shipped");
        let sections = ["[timeouts]", "[limits]", "[log]", "[telemetry]"];
        let mut kept = String::new();
        let mut keep = true;
        for line in shipped.lines() {
            if line.starts_with('[') {
                keep = !sections.contains(&line);
            }
            if keep {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("short.toml");
        fs::write(&file, kept).expect("a short file");
        let show = |file: &Path| {
            let mut command = holdfast(&root());
            command.args(["config", "show", "--role", role]).arg(file);
            text(&command.output().expect("the binary runs"))
        };
        let long = show(&root().join(format!("config/{role}.toml")));
        assert!(long.ends_with("exit 0\n"), "{long}");
        assert_eq!(show(&file), long, "{role}");
    }
}

#[test]
fn a_file_that_is_not_there_is_told_with_a_remedy() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = holdfast(dir.path())
        .args(["config", "check", "nowhere.toml", "--role", "bank"])
        .output()
        .expect("the binary runs");
    let said = text(&output);
    assert!(said.contains("HF1001 nowhere.toml: cannot be read: No such file"), "{said}");
    assert!(said.ends_with("exit 2\n"), "{said}");
}

#[test]
fn a_file_that_is_not_utf_8_is_told_with_its_line() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("latin.toml"), b"[bank]\nshard = \"M\xfcnchen\"\n").expect("a file");
    let output = holdfast(dir.path())
        .args(["config", "check", "latin.toml", "--role", "bank"])
        .output()
        .expect("the binary runs");
    let said = text(&output);
    assert!(said.contains("HF1002 latin.toml: is not UTF-8 at byte 17, in line 2"), "{said}");
}

#[test]
fn a_file_at_the_limit_is_read_and_one_past_it_is_not() {
    let limit = 1024 * 1024;
    let dir = tempfile::tempdir().expect("a folder");
    let shipped = fs::read_to_string(root().join("config/agent.toml")).expect("shipped");
    for (bytes, expected) in [(limit, "no mistake"), (limit + 1, "HF1018")] {
        let mut padded = shipped.clone();
        padded.push('#');
        padded.push_str(&" ".repeat(bytes - padded.len()));
        fs::write(dir.path().join("large.toml"), padded).expect("a file");
        let output = holdfast(dir.path())
            .args(["config", "check", "large.toml", "--role", "agent"])
            .output()
            .expect("the binary runs");
        assert!(text(&output).contains(expected), "{bytes}: {}", text(&output));
    }
}

#[test]
fn a_report_can_be_read_by_scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let output = holdfast(&dir)
        .args(["config", "check", "values_out_of_range.toml", "--role", "coordinator"])
        .args(["--output", "json"])
        .output()
        .expect("the binary runs");
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    let mistakes = report["mistakes"].as_array().expect("a list");
    assert!(mistakes.len() >= 7, "{report:#}");
    assert_eq!(mistakes[0]["code"], "HF1007");
    assert_eq!(mistakes[0]["where"], "values_out_of_range.toml:3:6");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_schemas_that_are_published_are_those_of_the_readers() {
    for role in ["coordinator", "agent", "bank", "router"] {
        let output = holdfast(&root()).args(["config", "schema", "--role", role]).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{}", text(&output));
        let file = root().join(format!("docs/reference/schema/{role}.json"));
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            fs::write(&file, &output.stdout).expect("it is written");
        }
        let published = fs::read_to_string(&file).expect("it is published");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(published, said, "run with UPDATE_SCHEMA=1 and look at the difference");
    }
}

#[test]
fn every_key_of_a_schema_is_explained() {
    let page = fs::read_to_string(root().join("docs/reference/config.md")).expect("the page");
    for role in ["coordinator", "agent", "bank"] {
        let file = root().join(format!("docs/reference/schema/{role}.json"));
        let schema: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(file).expect("it is published"))
                .expect("JSON");
        for (section, table) in schema["properties"].as_object().expect("sections") {
            for key in table["properties"].as_object().expect("keys").keys() {
                let row = format!("| `{section}.{key}` |");
                assert!(page.contains(&row), "{role}: no row {row}");
            }
        }
    }
}
