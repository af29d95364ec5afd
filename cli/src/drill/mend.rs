//! What a runner does, or waits for, beside the passing of time: a planned hand-over, and the replacement of a node that lost its disk.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    process::Command,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{catalog::Mend, fleet::Fleet, target::Target};
use crate::identity::Identity;

/// For a node with an empty disk to answer at its door.
const BACK_MAX: Duration = Duration::from_secs(15);
/// For each step of a replacement that makes no headway.
const PATIENCE_MS: &str = "15000";
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Begins what ends the fault, where that is not time alone.
pub(super) fn begin(
    mend: Mend,
    fleet: &Fleet,
    victim: &Target,
) -> Option<JoinHandle<anyhow::Result<()>>> {
    match mend {
        Mend::ByItself => None,
        Mend::Replace => {
            let others = fleet.coordinators().into_iter().filter(|other| *other != victim);
            let grpc: Vec<String> = others.filter_map(|other| other.grpc.clone()).collect();
            Some(tokio::spawn(replace(grpc, victim.clone(), fleet.identity.clone())))
        }
    }
}

/// Has the node replaced once it runs again, as an operator would.
async fn replace(grpc: Vec<String>, victim: Target, identity: Identity) -> anyhow::Result<()> {
    let node = victim.node.context("a coordinator says its number at its door")?;
    let until = Instant::now() + BACK_MAX;
    while victim.look().await.is_none() {
        ensure!(Instant::now() < until, "{} did not come back", victim.name);
        sleep(LOOK_AGAIN * 10).await;
    }
    let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
    command.args(["cluster", "replace", &node.to_string(), "--patience-ms", PATIENCE_MS]);
    command.args(identity.words());
    grpc.iter().for_each(|grpc| {
        command.args(["--coordinator", grpc]);
    });
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if !ended.status.success() {
        bail!("{}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(())
}

/// Waits until another coordinator than `former` leads.
pub(super) async fn another_leads(fleet: &Fleet, former: &Target, within: Duration) -> bool {
    let others = fleet.coordinators().into_iter().filter(|other| *other != former);
    let grpc: Vec<&str> = others.filter_map(|other| other.grpc.as_deref()).collect();
    let until = Instant::now() + within;
    while Instant::now() < until {
        let said = futures::future::join_all(grpc.iter().map(|grpc| fleet.status(grpc))).await;
        if said.iter().flatten().any(|said| said.role == "leader") {
            return true;
        }
        sleep(LOOK_AGAIN).await;
    }
    false
}
