//! Changes of the members: each step is a leader's; this waits between them, and says how far it is.
//!
//! Each Raft group has members of its own. What shall hold for the cluster is done in one group after the other; a command that broke off may
//! be repeated, and goes on in the group where it was.

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

fn already_member(node: u64, raft: &str) -> ClientError {
    ClientError::Refused {
        code: "HF2504".to_owned(),
        message: format!("node {node} is a member already, at {raft}"),
    }
}

/// Whether the member was refused for being the one that the group has.
fn is_itself(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ClientError>().is_some_and(|error| error.code() == Some("HF2504"))
}

/// A change under way.
pub(super) struct Changing {
    client: Client,
    patience: Duration,
    output: Output,
    begun: Instant,
    groups: u32,
    /// The one in which it is done now.
    group: u32,
}

/// A member as the leader sees it.
struct Seen {
    member: wire::Member,
    behind: u64,
}

impl Changing {
    /// # Errors
    /// No node says how many groups there are.
    pub(super) async fn new(
        client: Client,
        patience_ms: u64,
        output: Output,
    ) -> anyhow::Result<Self> {
        let patience = Duration::from_millis(patience_ms);
        let groups = client.node_status().await?.groups.max(1);
        Ok(Self { client, patience, output, begun: Instant::now(), groups, group: 0 })
    }

    pub(super) async fn add(
        mut self,
        node: u64,
        raft: Option<String>,
        learner: bool,
    ) -> anyhow::Result<ExitCode> {
        let mut member_at = None;
        for group in 0..self.groups {
            self.group = group;
            match self.add_in_group(node, raft.clone(), learner).await? {
                None => member_at = Some(None),
                Some(raft) if member_at.is_none() => member_at = Some(Some(raft)),
                Some(_) => {}
            }
        }
        if let Some(Some(raft)) = member_at {
            // The leader knows whether it is the node that listens there, or one that came back with another directory.
            self.change(&Change::Add { node, raft: raft.clone() }).await?;
            bail!(already_member(node, &raft));
        }
        self.done(if learner { "learner" } else { "voter" }, node)
    }

    /// Where it listens, if it has a vote already.
    async fn add_in_group(
        &self,
        node: u64,
        raft: Option<String>,
        learner: bool,
    ) -> anyhow::Result<Option<String>> {
        match self.seen(node).await? {
            Some(seen) if raft.as_ref().is_some_and(|raft| *raft != seen.member.raft) => {
                bail!(already_member(node, &seen.member.raft));
            }
            Some(seen) if seen.member.voter => return Ok(Some(seen.member.raft)),
            // A learner that an earlier call left behind.
            Some(_) => {}
            None => {
                let raft = raft.context(
                    "node is not a member yet: say where it listens with --raft HOST:PORT",
                )?;
                self.change(&Change::Add { node, raft }).await?;
            }
        }
        if !learner {
            self.promote(node).await?;
        }
        Ok(None)
    }

    pub(super) async fn remove(mut self, node: u64) -> anyhow::Result<ExitCode> {
        let mut taken_out = false;
        for group in 0..self.groups {
            self.group = group;
            // The last group tells why there is nothing to remove.
            let last = group + 1 == self.groups && !taken_out;
            if last || self.seen(node).await?.is_some() {
                self.take_out(node).await?;
                taken_out = true;
            }
        }
        self.done("removed", node)
    }

    pub(super) async fn replace(
        mut self,
        node: u64,
        with: Option<u64>,
        raft: Option<String>,
    ) -> anyhow::Result<ExitCode> {
        for group in 0..self.groups {
            self.group = group;
            self.replace_in_group(node, with, raft.clone()).await?;
        }
        self.done("replaced", with.unwrap_or(node))
    }

    async fn replace_in_group(
        &self,
        node: u64,
        with: Option<u64>,
        raft: Option<String>,
    ) -> anyhow::Result<()> {
        let new = with.unwrap_or(node);
        let former = self.seen(node).await?;
        let raft = raft.or_else(|| former.as_ref().map(|seen| seen.member.raft.clone()));
        let raft = raft.with_context(|| {
            format!("node {node} is no member: say where node {new} listens with --raft HOST:PORT")
        })?;
        if new == node {
            if let Some(former) = former {
                match self.must_be_another(node, &raft).await {
                    Ok(()) => self.take_out(node).await?,
                    // An earlier call broke off behind its first half.
                    Err(error) if is_itself(&error) && !former.member.voter => {
                        return self.promote(node).await;
                    }
                    // An earlier call came as far as this group.
                    Err(error) if self.groups > 1 && is_itself(&error) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            self.change(&Change::Add { node, raft }).await?;
            return self.promote(node).await;
        }
        // An earlier call came further than this group.
        if former.is_none() && self.seen(new).await?.is_some_and(|seen| seen.member.voter) {
            return Ok(());
        }
        if self.seen(new).await?.is_none() {
            self.change(&Change::Add { node: new, raft }).await?;
        }
        self.catch_up(new).await?;
        if let Err(error) = self.change(&Change::Swap { old: node, new }).await {
            self.stand_aside(&error).await?;
            self.change(&Change::Swap { old: node, new }).await?;
        }
        Ok(())
    }

    pub(super) async fn transfer(
        mut self,
        to: Option<u64>,
        group: u32,
    ) -> anyhow::Result<ExitCode> {
        self.group = group;
        let took_ms = self.change(&Change::Transfer(to.unwrap_or(0))).await?;
        let leader = self.leader().await?;
        match self.output {
            Output::Table => {
                let what = if self.groups == 1 { String::new() } else { format!(" group {group}") };
                output::print(&format!("node {} leads{what}, after {took_ms} ms", leader.node))?;
            }
            Output::Json => {
                output::print_json(&serde_json::json!({
                    "group": group, "leader": leader.node, "took_ms": took_ms,
                }))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Refuses to remove a member that is well: a node that is added again under its number must have another directory.
    async fn must_be_another(&self, node: u64, raft: &str) -> anyhow::Result<()> {
        // The leader tells the two apart when it is asked to add a member that it has: HF2504 for itself, HF2510 for another one.
        let add = Change::Add { node, raft: raft.to_owned() };
        match self.change(&add).await {
            Err(ClientError::Refused { code, .. }) if code == "HF2510" => Ok(()),
            Err(error) => Err(error).context("the member is not replaced"),
            Ok(_) => {
                bail!("node {node} was no member and is a learner now: holdfast cluster add {node}")
            }
        }
    }

    async fn change(&self, change: &Change) -> Result<u64, ClientError> {
        self.client.change(self.group, change).await
    }

    async fn take_out(&self, node: u64) -> anyhow::Result<()> {
        if let Err(error) = self.change(&Change::Remove(node)).await {
            self.stand_aside(&error).await?;
            self.change(&Change::Remove(node)).await?;
        }
        Ok(())
    }

    /// Has another node lead, if that was the trouble.
    async fn stand_aside(&self, error: &ClientError) -> anyhow::Result<()> {
        if error.code() != Some("HF2512") {
            bail!(error.clone());
        }
        self.change(&Change::Transfer(0)).await?;
        Ok(())
    }

    async fn promote(&self, node: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.catch_up(node).await?;
            match self.change(&Change::Promote(node)).await {
                Ok(_) => return Ok(()),
                // Behind again, or silent for a moment.
                Err(error)
                    if matches!(error.code(), Some("HF2506" | "HF2503"))
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
                let Ok(status) = self.client.node_status_of(&address, self.group).await else {
                    continue;
                };
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
