//! What is drilled: a demo cluster of our own, or processes that consented, found by their drill doors.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_client::{Client, ClientOptions, wire::NodeStatusReply};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::target::{Target, is_running};
use crate::{
    demo::{
        acts,
        cluster::{Cluster, status_as},
        layout::{Doors, Layout},
        scratch::Scratch,
        workload::Bank,
    },
    identity::Identity,
};

/// Doors that one drill may be told of.
pub(crate) const DOORS_MAX: usize = 64;
/// For the roles to drain at the end.
const DRAIN_MAX: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The processes of a drill.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) targets: Vec<Target>,
    pub(crate) client: Client,
    /// Who we are at the doors of the coordinators.
    pub(crate) identity: Identity,
    /// The same, as a client shows it.
    options: ClientOptions,
    /// Of our own; `None` where somebody else's cluster is drilled.
    pub(crate) own: Option<Own>,
}

/// A cluster that was started for the drill and goes with it.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) cluster: Cluster,
    pub(crate) bank: Arc<Bank>,
    scratch: Scratch,
}

impl Fleet {
    /// Starts a demo cluster whose roles all consent.
    /// # Errors
    /// It does not get ready.
    pub(crate) async fn start(accounts: u32, clients: u32, seed: u64) -> anyhow::Result<Self> {
        let scratch = tokio::task::spawn_blocking(|| Scratch::create(false)).await??;
        let folder: PathBuf = scratch.path().to_path_buf();
        let mut cluster =
            Cluster::start(&folder, Layout { doors: Doors::Open, ..Layout::default() }).await?;
        let bank = Arc::new(Bank::random(accounts, seed, &cluster.topology)?);
        acts::open(&cluster, &bank).await?;
        cluster.start_banks().await?;
        let (identity, options) = (Identity::default(), ClientOptions::default());
        let client = connect(cluster.addresses(), clients, options.clone()).await?;
        let doors: Vec<String> = cluster
            .coordinators
            .iter()
            .map(|coordinator| coordinator.drill.clone())
            .chain(cluster.banks.iter().map(|bank| bank.drill.clone()))
            .collect::<Option<_>>()
            .context("every role was started with a door")?;
        let targets = find(&doors).await?;
        let own = Some(Own { cluster, bank, scratch });
        Ok(Self { targets, client, identity, options, own })
    }

    /// Finds the processes behind `doors`, among which must be every coordinator.
    /// # Errors
    /// HF6102: nobody stands behind one of them, or none is a coordinator. HF1401: a file of `identity` is of no use.
    pub(crate) async fn join(
        doors: &[String],
        clients: u32,
        identity: Identity,
    ) -> anyhow::Result<Self> {
        ensure!(doors.len() <= DOORS_MAX, "{} doors; at most {DOORS_MAX}", doors.len());
        let targets = find(doors).await?;
        let grpc: Vec<String> = targets.iter().filter_map(|target| target.grpc.clone()).collect();
        ensure!(
            !grpc.is_empty(),
            "HF6102 none of the {} doors is a coordinator's; name the doors of all coordinators",
            doors.len()
        );
        let options = identity.options()?;
        let client = connect(grpc, clients, options.clone()).await?;
        Ok(Self { targets, client, identity, options, own: None })
    }

    /// The coordinators, by place.
    pub(crate) fn coordinators(&self) -> Vec<&Target> {
        self.targets.iter().filter(|target| target.role == "coordinator").collect()
    }

    /// The banks, by place.
    pub(crate) fn banks(&self) -> Vec<&Target> {
        self.targets.iter().filter(|target| target.role == "bank").collect()
    }

    /// What each coordinator says of itself.
    pub(crate) async fn statuses(&self) -> Vec<Option<NodeStatusReply>> {
        let asked = self.coordinators().into_iter().map(|target| {
            let grpc = target.grpc.clone().unwrap_or_default();
            async move { self.status(&grpc).await }
        });
        futures::future::join_all(asked).await
    }

    /// What the coordinator at that address says of itself.
    pub(crate) async fn status(&self, grpc: &str) -> Option<NodeStatusReply> {
        status_as(grpc, self.options.clone()).await
    }

    /// The coordinator that leads, and the others.
    /// # Errors
    /// None leads.
    pub(crate) async fn leader(&self, within: Duration) -> anyhow::Result<(Target, Vec<Target>)> {
        let until = Instant::now() + within;
        loop {
            let statuses = self.statuses().await;
            let leaders =
                statuses.iter().enumerate().filter_map(|(at, said)| Some((at, said.as_ref()?)));
            let leaders = leaders.filter(|(_, said)| said.role == "leader");
            if let Some((leads, _)) = leaders.max_by_key(|(_, said)| said.term) {
                let all = self.coordinators();
                let others = (0..all.len()).filter(|&at| at != leads).map(|at| all[at].clone());
                return Ok((all[leads].clone(), others.collect()));
            }
            ensure!(Instant::now() < until, "no coordinator led for {} s", within.as_secs());
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until every process answers at its door, holds nothing, and the coordinators know a leader.
    pub(crate) async fn is_well(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        loop {
            let mut well = true;
            for target in &self.targets {
                well &= target.is_well().await;
            }
            if well
                && self
                    .statuses()
                    .await
                    .iter()
                    .all(|said| said.as_ref().is_some_and(|said| said.leader != 0))
            {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends whatever is held anywhere, now.
    pub(crate) async fn end_all(&self) {
        for target in &self.targets {
            // Who does not answer holds nothing that outlasts its limit.
            let _ = target.end().await;
        }
    }

    /// Stops a cluster of our own, and waits until nothing of it is left.
    /// # Errors
    /// Something is left.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let Some(Own { mut cluster, scratch, .. }) = self.own else { return Ok(()) };
        let mut pids = Vec::new();
        for target in &self.targets {
            pids.extend(target.pid().await);
        }
        for pid in &pids {
            // One that was started again by its guard is nobody's child of ours.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
        }
        let stopped = cluster.stop().await;
        drop(cluster);
        let until = Instant::now() + DRAIN_MAX;
        while pids.iter().any(|pid| is_running(*pid)) && Instant::now() < until {
            sleep(LOOK_AGAIN).await;
        }
        tokio::task::spawn_blocking(|| scratch.clean_up()).await??;
        stopped
    }
}

async fn find(doors: &[String]) -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::with_capacity(doors.len());
    for door in doors {
        targets.push(Target::find(door).await?);
    }
    Ok(targets)
}

async fn connect(
    addresses: Vec<String>,
    clients: u32,
    options: ClientOptions,
) -> anyhow::Result<Client> {
    let options = ClientOptions { in_flight_max: 4_096.max(clients as usize), ..options };
    Client::connect(addresses, options).await.context("no leader was found")
}
