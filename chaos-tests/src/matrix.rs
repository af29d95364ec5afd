//! The kill matrix: under load, a process dies at a named site, is started again, and transfers go on.
//!
//! A site is told to a running process by its kill file, so the process that holds the wanted role at that moment can be chosen. The
//! process itself says that it was there: it renames the file, names the site on standard error and aborts. A site that is not
//! reached within a bound fails the matrix, so no site is passed without being hit.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_fault::{Role, Site};
use nix::sys::signal::Signal;

use crate::{Cluster, Load, Process, SOON, checker::money, until};

/// From the order until the process is there.
const REACHED_MAX: Duration = Duration::from_secs(60);
/// Transfers that must be answered after each death.
const AFTERWARDS: usize = 20;
/// Entries by which a node is behind when it comes back, so that only a snapshot helps.
const BEHIND: u64 = 300;

/// One death.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Where.
    pub site: Site,
    /// Whose.
    pub victim: String,
    /// From the death until enough transfers were answered again, by those who had to wait for the restart as well.
    pub recovered: Duration,
}

/// Who is told to die.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Node(usize),
    Bank(usize),
}

impl Cluster {
    fn victim(&mut self, victim: Victim) -> &mut Process {
        match victim {
            Victim::Node(at) => &mut self.nodes[at].process,
            Victim::Bank(at) => &mut self.banks[at].process,
        }
    }

    fn name_of(&self, victim: Victim) -> String {
        match victim {
            Victim::Node(at) => format!("coordinator-{}", at + 1),
            Victim::Bank(at) => format!("bank-{}", self.banks[at].shard),
        }
    }

    fn order(&self, victim: Victim, site: Site) -> anyhow::Result<PathBuf> {
        let file = self.folder.path().join(format!("{}.kill", self.name_of(victim)));
        let hit = file.with_extension("hit");
        if hit.exists() {
            fs::remove_file(&hit)?;
        }
        // Named when it is whole: a process must not read half an order.
        let draft = file.with_extension("draft");
        fs::write(&draft, site.name())?;
        fs::rename(&draft, &file)?;
        Ok(hit)
    }
}

/// Has a process die at `site` while `load` runs, starts it again, and sees that transfers go on and money is conserved.
/// # Errors
/// The site is not reached, the process dies otherwise, or the cluster does not recover.
pub async fn strike(
    cluster: &mut Cluster,
    load: &std::sync::Arc<Load>,
    site: Site,
    turn: usize,
) -> anyhow::Result<Hit> {
    let mut lost = None;
    let told = match site.role() {
        Role::Leader => vec![Victim::Node(cluster.leader().await?)],
        Role::Coordinator => vec![Victim::Node(turn % cluster.nodes.len())],
        Role::Agent => vec![Victim::Bank(turn % cluster.banks.len())],
        Role::Router | Role::Relay | Role::Mover => {
            anyhow::bail!("{}: no such process runs here", site.name())
        }
        Role::Laggard if site == Site::DispatcherTakesUp => {
            let leader = cluster.leader().await?;
            let others = (0..cluster.nodes.len()).filter(|&at| at != leader);
            others.map(Victim::Node).collect()
        }
        Role::Laggard => vec![Victim::Node(fall_behind(cluster, load).await?)],
        Role::Changing => {
            lost = Some(cluster.lose_a_disk().await?);
            vec![Victim::Node(cluster.leader().await?)]
        }
    };
    let mut hits = Vec::new();
    for &victim in &told {
        hits.push((victim, cluster.order(victim, site)?));
    }
    match site.role() {
        Role::Laggard if site == Site::DispatcherTakesUp => {
            let leader = cluster.leader().await?;
            cluster.nodes[leader].process.kill().await?;
        }
        Role::Laggard => cluster.victim(told[0]).start()?,
        Role::Leader
        | Role::Coordinator
        | Role::Agent
        | Role::Router
        | Role::Changing
        | Role::Relay
        | Role::Mover => {}
    }
    let operator = cluster.operator();
    let replacing = lost.map(|at| tokio::spawn(async move { operator.replace(at).await }));
    let victim =
        until(&format!("kill point {} is reached", site.name()), REACHED_MAX, async || {
            hits.iter().find(|(_, hit)| hit.exists()).map(|(victim, _)| *victim)
        })
        .await?;
    let died = tokio::time::Instant::now();
    for (_, hit) in &hits {
        let order = hit.with_extension("kill");
        if order.exists() {
            fs::remove_file(order)?;
        }
    }
    let status = cluster.victim(victim).ended(SOON).await?;
    let aborted = status.signal() == Some(Signal::SIGABRT as i32);
    ensure!(aborted, cluster.victim(victim).complaint(&format!("ended by {status}")));
    let said = format!("kill point {} reached: aborting", site.name());
    ensure!(cluster.victim(victim).log_text().contains(&said), "it did not say where it died");

    cluster.victim(victim).start()?;
    if let Some(replacing) = replacing {
        replacing.await??;
    }
    cluster.start_nodes().await?;
    load.more(AFTERWARDS).await.with_context(|| format!("behind {}", site.name()))?;
    let recovered = died.elapsed();
    money::check(&mut cluster.sources().await?).await?;
    Ok(Hit { site, victim: cluster.name_of(victim), recovered })
}

/// Kills a follower and lets the others go on until they no longer hold the log that it needs.
async fn fall_behind(cluster: &mut Cluster, load: &Load) -> anyhow::Result<usize> {
    let at = cluster.follower().await?;
    cluster.nodes[at].process.kill().await?;
    let leader = cluster.leader().await?;
    let from = cluster.status(leader).await.context("the leader answers")?.last_index;
    until("the others have left it behind", 3 * SOON, async || {
        let status = cluster.status(leader).await?;
        (status.last_index > from + BEHIND).then_some(())
    })
    .await?;
    load.more(1).await?;
    Ok(at)
}
