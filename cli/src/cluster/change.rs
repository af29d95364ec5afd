//! Changes of the members: each step is the leader's; this waits between them, and says how far it is.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holdfast_client::{Change, Client, ClientError, wire};

use crate::{
    exit,
    output::{self, Output},
};

/// Between two looks at a learner, and between two words about it.
const LOOK: Duration = Duration::from_millis(200);
const SAY: Duration = Duration::from_secs(2);
/// Entries behind which a learner is given its vote; the leader checks by its own limit.
const BEHIND_MAX: u64 = 500;

/// Nodes that are asked who leads.
const ASKED_MAX: usize = 32;

/// A change under way.
pub(super) struct Changing {
    client: Client,
    patience: Duration,
    output: Output,
    begun: Instant,
}

/// A member as the leader sees it.
struct Seen {
    member: wire::Member,
    behind: u64,
}

impl Changing {
    pub(super) fn new(client: Client, patience_ms: u64, output: Output) -> Self {
        let patience = Duration::from_millis(patience_ms);
        Self { client, patience, output, begun: Instant::now() }
    }

    pub(super) async fn add(
        self,
        node: u64,
        raft: Option<String>,
        learner: bool,
    ) -> anyhow::Result<ExitCode> {
        match self.seen(node).await? {
            Some(seen)
                if seen.member.voter
                    || raft.as_ref().is_some_and(|raft| *raft != seen.member.raft) =>
            {
                bail!(ClientError::Refused {
                    code: "HF2504".to_owned(),
                    message: format!("node {node} is a member already, at {}", seen.member.raft),
                });
            }
            // A learner that an earlier call left behind.
            Some(_) => {}
            None => {
                let raft = raft.context(
                    "node is not a member yet: say where it listens with --raft HOST:PORT",
                )?;
                self.client.change(&Change::Add { node, raft }).await?;
            }
        }
        if learner {
            return self.done("learner", node);
        }
        self.promote(node).await?;
        self.done("voter", node)
    }

    pub(super) async fn remove(self, node: u64) -> anyhow::Result<ExitCode> {
        self.take_out(node).await?;
        self.done("removed", node)
    }

    pub(super) async fn replace(
        self,
        node: u64,
        with: Option<u64>,
        raft: Option<String>,
    ) -> anyhow::Result<ExitCode> {
        let new = with.unwrap_or(node);
        let former = self.seen(node).await?;
        let raft = raft.or_else(|| former.as_ref().map(|seen| seen.member.raft.clone()));
        let raft = raft.with_context(|| {
            format!("node {node} is no member: say where node {new} listens with --raft HOST:PORT")
        })?;
        if new == node {
            if former.is_some() {
                self.must_be_another(node, &raft).await?;
                self.take_out(node).await?;
            }
            self.client.change(&Change::Add { node, raft }).await?;
            self.promote(node).await?;
            return self.done("replaced", node);
        }
        if self.seen(new).await?.is_none() {
            self.client.change(&Change::Add { node: new, raft }).await?;
        }
        self.catch_up(new).await?;
        if let Err(error) = self.client.change(&Change::Swap { old: node, new }).await {
            self.stand_aside(&error).await?;
            self.client.change(&Change::Swap { old: node, new }).await?;
        }
        self.done("replaced", new)
    }

    pub(super) async fn transfer(self, to: Option<u64>) -> anyhow::Result<ExitCode> {
        let took_ms = self.client.change(&Change::Transfer(to.unwrap_or(0))).await?;
        let leader = self.leader().await?;
        match self.output {
            Output::Table => {
                output::print(&format!("node {} leads, after {took_ms} ms", leader.node))?;
            }
            Output::Json => {
                output::print_json(&serde_json::json!({"leader": leader.node, "took_ms": took_ms}))?
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Refuses to remove a member that is well: a node that is added again under its number must have another directory.
    async fn must_be_another(&self, node: u64, raft: &str) -> anyhow::Result<()> {
        // The leader tells the two apart when it is asked to add a member that it has: HF2504 for itself, HF2510 for another one.
        let add = Change::Add { node, raft: raft.to_owned() };
        match self.client.change(&add).await {
            Err(ClientError::Refused { code, .. }) if code == "HF2510" => Ok(()),
            Err(error) => Err(error).context("the member is not replaced"),
            Ok(_) => {
                bail!("node {node} was no member and is a learner now: holdfast cluster add {node}")
            }
        }
    }

    async fn take_out(&self, node: u64) -> anyhow::Result<()> {
        if let Err(error) = self.client.change(&Change::Remove(node)).await {
            self.stand_aside(&error).await?;
            self.client.change(&Change::Remove(node)).await?;
        }
        Ok(())
    }

    /// Has another node lead, if that was the trouble.
    async fn stand_aside(&self, error: &ClientError) -> anyhow::Result<()> {
        if error.code() != Some("HF2512") {
            bail!(error.clone());
        }
        self.client.change(&Change::Transfer(0)).await?;
        Ok(())
    }

    async fn promote(&self, node: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.catch_up(node).await?;
            match self.client.change(&Change::Promote(node)).await {
                Ok(_) => return Ok(()),
                // Behind again, or silent for a moment, or the leader is busy recording what the node says of itself.
                Err(error)
                    if matches!(error.code(), Some("HF2506" | "HF2503" | "HF2508"))
                        && begun.elapsed() < self.patience =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                // It happened, and the answer was lost.
                Err(ClientError::Unknown { .. })
                    if self.seen(node).await?.is_some_and(|seen| seen.member.voter) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the learner holds nearly the whole log. As long as it comes nearer, patience begins anew.
    async fn catch_up(&self, node: u64) -> anyhow::Result<()> {
        let (mut nearest, mut since) = (u64::MAX, Instant::now());
        let mut said: Option<Instant> = None;
        loop {
            if let Some(seen) = self.seen(node).await? {
                if seen.behind <= BEHIND_MAX && seen.member.matched_index.is_some() {
                    return Ok(());
                }
                if seen.behind < nearest {
                    (nearest, since) = (seen.behind, Instant::now());
                }
                if said.is_none_or(|said| said.elapsed() >= SAY) {
                    said = Some(Instant::now());
                    exit::tell(&format!("node {node} catches up: {} entries behind", seen.behind));
                }
            }
            if since.elapsed() > self.patience {
                bail!(
                    "node {node} does not come nearer: {nearest} entries behind for {} ms. It stays a learner; mend what holds it up, and repeat the command",
                    self.patience.as_millis()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the leader says; waits for one.
    async fn leader(&self) -> anyhow::Result<wire::NodeStatusReply> {
        let begun = Instant::now();
        loop {
            // A node that was removed answers, too, and knows nothing new: everybody is asked.
            let mut addresses = self.client.addresses();
            let mut asked = 0;
            let mut leading: Option<wire::NodeStatusReply> = None;
            while let Some(address) = addresses.get(asked).cloned() {
                asked += 1;
                let Ok(status) = self.client.node_status_of(&address).await else { continue };
                let members = status.members.iter().map(|member| member.grpc.clone());
                for grpc in members.filter(|grpc| !grpc.is_empty()) {
                    if !addresses.contains(&grpc) && addresses.len() < ASKED_MAX {
                        addresses.push(grpc);
                    }
                }
                let newer = leading.as_ref().is_none_or(|known| known.term < status.term);
                if status.role == "leader" && newer {
                    leading = Some(status);
                }
            }
            if let Some(leader) = leading {
                return Ok(leader);
            }
            if begun.elapsed() > self.patience {
                bail!("no node leads: most nodes must be up and reach each other");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn seen(&self, node: u64) -> anyhow::Result<Option<Seen>> {
        let leader = self.leader().await?;
        let last = leader.last_index;
        let member = leader.members.into_iter().find(|member| member.node == node);
        Ok(member.map(|member| {
            let behind = last.saturating_sub(member.matched_index.unwrap_or(0));
            Seen { member, behind }
        }))
    }

    fn done(self, what: &str, node: u64) -> anyhow::Result<ExitCode> {
        let took_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.output {
            Output::Table => output::print(&format!("node {node}: {what}, after {took_ms} ms"))?,
            Output::Json => {
                output::print_json(
                    &serde_json::json!({"node": node, "result": what, "took_ms": took_ms}),
                )?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
