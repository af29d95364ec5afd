//! `holdfast demo` with each loss in the middle: it says that all is well, in the agreed shape, and leaves nothing behind.

use std::{fs, process::Stdio, time::Duration};

use anyhow::ensure;
use holdfast_chaos_tests::{Demo, SOON, demo::processes_of, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const SMALL: [&str; 6] = ["--transfers", "1000", "--accounts", "200", "--clients", "16"];

async fn loses(what: &str) -> anyhow::Result<()> {
    let mut arguments = vec!["--kill", what];
    arguments.extend(SMALL);
    let report = Demo::new()?.report(&arguments).await?;
    ensure!(report["transfers"]["submitted"] == 1000, "{report:#}");
    ensure!(report["coordinators"] == 3 && report["shards"] == 4, "{report:#}");
    ensure!(report["money"]["opening_minor"] == 200 * 100_000, "{report:#}");
    let kills = report["kills"].as_array().expect("its shape was checked");
    ensure!(kills.len() == 1 && kills[0]["what"] == what, "{report:#}");
    let sagas = ["committed", "compensated"].map(|name| report["saga"][name].as_u64());
    ensure!(sagas.iter().all(|count| *count > Some(0)), "{report:#}");
    Ok(())
}

#[tokio::test]
async fn the_leader_is_lost_and_no_money_is() -> anyhow::Result<()> {
    loses("leader").await
}

#[tokio::test]
async fn of_four_groups_a_node_that_leads_some_is_lost_and_no_money_is() -> anyhow::Result<()> {
    let mut arguments = vec!["--groups", "4", "--kill", "leader"];
    arguments.extend(SMALL);
    let report = Demo::new()?.report(&arguments).await?;
    ensure!(report["transfers"]["submitted"] == 1000, "{report:#}");
    ensure!(report["setup"]["groups"] == 4, "{report:#}");
    let kills = report["kills"].as_array().expect("its shape was checked");
    ensure!(kills.len() == 1 && kills[0]["what"] == "leader", "{report:#}");
    Ok(())
}

#[tokio::test]
async fn a_follower_is_lost_and_no_money_is() -> anyhow::Result<()> {
    loses("follower").await
}

#[tokio::test]
async fn a_bank_process_is_lost_and_no_money_is() -> anyhow::Result<()> {
    loses("agent").await
}

#[tokio::test]
async fn a_postgresql_server_is_lost_and_no_money_is() -> anyhow::Result<()> {
    loses("postgres").await
}

#[tokio::test]
async fn with_json_standard_output_holds_the_report_and_nothing_else() -> anyhow::Result<()> {
    let demo = Demo::new()?;
    let output = demo
        .run(&[
            "--transfers",
            "200",
            "--accounts",
            "200",
            "--kill",
            "none",
            "--json",
            "--seed",
            "7",
        ])
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["kills"].as_array().is_some_and(Vec::is_empty), "{report:#}");
    ensure!(report["verdict"] == "good" && report["setup"]["seed"] == 7, "{report:#}");
    demo.left_behind()
}

#[tokio::test]
async fn ctrl_c_in_the_middle_leaves_no_process_and_no_folder() -> anyhow::Result<()> {
    let demo = Demo::new()?;
    let log = fs::File::create(demo.file("told"))?;
    let mut command = demo.command(&["--duration", "10m", "--accounts", "200"])?;
    let mut child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    until("the load runs", 2 * SOON, async || {
        let told = fs::read_to_string(demo.file("told")).ok()?;
        told.contains("Ready after").then_some(())
    })
    .await?;
    let running = processes_of(&demo.tmp())?;
    // Three coordinators, four banks, four servers and the shell that cleans up.
    ensure!(running.len() >= 12, "only {running:?}");
    kill(Pid::from_raw(child.id().expect("it runs").try_into()?), Signal::SIGINT)?;
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await??;
    ensure!(ended.code() == Some(130), "{ended}");
    demo.left_behind()
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused_before_anything_starts() -> anyhow::Result<()> {
    let demo = Demo::new()?;
    for (arguments, word) in [
        (&["--kill", "everything"][..], "everything"),
        (&["--transfers", "0"], "0"),
        (&["--transfers", "5", "--duration", "5s"], "--duration"),
        (&["--duration", "5 fortnights"], "fortnights"),
        (&["--serial"], "--replay"),
    ] {
        let output = demo.run(arguments).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{arguments:?}: {}", output.status);
        ensure!(told.contains(word) && output.stdout.is_empty(), "{arguments:?}: {told}");
    }
    demo.left_behind()
}
