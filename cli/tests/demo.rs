//! The demo as a visitor runs it: it ends well, says so in its report, and leaves nothing behind, however it ends.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A temporary folder of our own, so that what is left in it is the demo's. PostgreSQL's user must be able to pass.
fn scene() -> TempDir {
    let scene = tempfile::tempdir().unwrap();
    fs::set_permissions(scene.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(scene.path().join("tmp")).unwrap();
    scene
}

fn demo(scene: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.arg("demo").args(arguments).env("TMPDIR", scene.join("tmp")).current_dir(scene);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn left_in(scene: &Path) -> Vec<String> {
    let entries = fs::read_dir(scene.join("tmp")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Whether a process still has a file of the scene as its working directory or among its arguments.
fn runs_in(scene: &Path) -> bool {
    let scene = scene.join("tmp");
    let scene = scene.to_str().unwrap();
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|process| {
        fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(scene))
    })
}

fn await_nothing_left(scene: &Path) {
    let until = Instant::now() + Duration::from_secs(30);
    while !left_in(scene).is_empty() || runs_in(scene) {
        assert!(
            Instant::now() < until,
            "left behind: {:?}, running: {}",
            left_in(scene),
            runs_in(scene)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_run_that_loses_its_leader_ends_with_a_good_verdict_and_leaves_nothing() {
    let scene = scene();
    let arguments = [
        "--transfers",
        "400",
        "--accounts",
        "200",
        "--clients",
        "16",
        "--report",
        "made/report.json",
    ];
    let output = demo(scene.path(), &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Verdict: good"), "{said}");

    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(scene.path().join("made/report.json")).unwrap()).unwrap();
    assert_eq!(report["verdict"], "good", "{report}");
    let transfers = &report["transfers"];
    let count = |name: &str| transfers[name].as_u64().unwrap();
    assert_eq!(count("submitted"), 400);
    assert_eq!(count("committed") + count("refused"), 400);
    assert_eq!(count("cross_shard") + count("one_shard"), count("committed"));
    assert!(
        count("cross_shard") > 200 && count("one_shard") > 50 && count("refused") > 0,
        "{report}"
    );
    assert_eq!(report["kills"].as_array().unwrap().len(), 1);
    assert_eq!(report["kills"][0]["what"], "leader");
    assert!(report["kills"][0]["recovered_ms"].is_u64(), "{report}");
    assert!(report["saga"]["committed"].as_u64().unwrap() > 0);
    assert!(report["saga"]["compensated"].as_u64().unwrap() > 0);
    assert_eq!(report["money"]["opening_minor"], 200 * 100_000);
    assert_eq!(report["money"]["closing_minor"], 200 * 100_000);
    assert_eq!(report["router"]["money_minor"], 200 * 100_000, "{report}");
    assert_eq!(report["router"]["epoch"], 3, "checked, planned, applied twice, reverted");
    assert!(said.contains("EXPLAIN (ROUTE)") && said.contains("HF3104"), "{said}");
    for nothing in ["holds_left", "open_transactions_left", "prepared_left"] {
        assert_eq!(report[nothing], 0, "{nothing}");
    }
    await_nothing_left(scene.path());
}

#[test]
fn the_same_is_played_with_mutual_tls_between_all_roles() {
    let scene = scene();
    let arguments = ["--tls", "--keep", "--transfers", "100", "--accounts", "100", "--json"];
    let output = demo(scene.path(), &arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "good", "{report}");
    assert_eq!(report["kills"][0]["what"], "leader");
    assert_eq!(report["router"]["money_minor"], 100 * 100_000, "counted through a router");
    let [kept] = &left_in(scene.path())[..] else { panic!("one folder is kept: {told}") };
    for role in ["coordinator-1", "coordinator-2", "coordinator-3", "bank-shard-1", "router"] {
        let file = scene.path().join("tmp").join(kept).join(format!("{role}.toml"));
        let config: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
        assert_eq!(config["security"]["mode"].as_str(), Some("mutual-tls"), "{role}");
        if role == "router" {
            assert_eq!(config["tls"]["clients"].as_str(), Some("must"), "the DBA came in by TLS");
        }
    }
}

#[test]
fn a_serial_replay_ends_with_the_balances_that_arithmetic_says() {
    let scene = scene();
    let bank = scene.path().join("bank");
    fs::create_dir(&bank).unwrap();
    fs::write(
        bank.join("nodes.csv"),
        "nodeid,isFraud,init_balance,fraudStep\n9,0,10.00,-1\n10,0,5.5,-1\n2,0,0.00,-1\n",
    )
    .unwrap();
    // Each is possible only because of the one before it, or impossible because of it.
    let transactions = "sourceNodeId,targetNodeId,value,time\n\
        9,10,10.00,1\n9,2,0.01,1\n10,2,15.5,2\n10,9,0.01,2\n2,9,7.25,3\n9,10,7.24,4\n";
    fs::write(bank.join("transactions.csv"), transactions).unwrap();
    let arguments = ["--replay", "bank", "--serial", "--balances-out", "out.csv", "--json"];
    let output = demo(scene.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let balances = fs::read_to_string(scene.path().join("out.csv")).unwrap();
    assert_eq!(balances, "nodeid,balance_minor\n2,825\n9,1\n10,724\n");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["transfers"]["committed"], 4, "{report}");
    assert_eq!(report["transfers"]["refused"], 2, "{report}");
    await_nothing_left(scene.path());
}

#[test]
fn a_bad_file_is_told_before_anything_is_started() {
    let scene = scene();
    fs::write(scene.path().join("nodes.csv"), "nodeid,init_balance\n1,1.00\n1,2.00\n").unwrap();
    let output = demo(scene.path(), &["--replay", "."]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nodes.csv, line 3: account 1 stands here a second time"), "{said}");
    assert!(left_in(scene.path()).is_empty());
}

#[test]
fn a_killed_demo_leaves_neither_processes_nor_files() {
    let scene = scene();
    let mut child = demo(scene.path(), &["--duration", "60s", "--kill", "none"]).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = said.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("Ready")));
    assert!(ready.is_some(), "it ended before it was ready");
    assert_eq!(left_in(scene.path()).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    await_nothing_left(scene.path());
}
