//! Who the members are beyond their numbers: the founding, and a leader that keeps the membership true.
//!
//! A member is its number *and* the incarnation of its directory. Nothing is sent to a node before the membership records its
//! incarnation, and a node takes nothing that is meant for another. So a directory that was lost and made anew never acts
//! for the one that voted and acknowledged before. The founder learns the incarnations of a majority before it founds; the
//! leader asks the others later, and records what it hears through that majority. What has been recorded once is changed only
//! by people: remove, then add.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use holdfast_proto::v1;
use openraft::{
    ChangeMembers,
    errors::{InitializeError, RaftError},
};
use tokio::sync::watch;

use crate::{
    Config, Log, StateMachine,
    compaction::Compactor,
    consensus::{Addresses, Membership},
    convert::member_from_proto,
    network::client::Peers,
    store::directory::draw,
};

/// Between two looks while somebody is not known yet, and while everybody is.
const LOOK_SOON: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_secs(3);

/// Founds the cluster if that is this node's part, and begins to keep the membership true. A founder that is alone has founded
/// when this returns.
pub(crate) async fn begin<S: StateMachine>(config: &Config, logs: &[Log<S>]) -> Result<(), String> {
    let home = &logs[0].inner.home;
    let founder = config.members.iter().map(|member| member.node).min();
    let mut tasks = home.tasks.lock().await;
    if founder == Some(config.node) && !config.join && !all_founded(logs).await? {
        let founder = Founder { config: config.clone(), logs: logs.to_vec() };
        if config.members.len() == 1 {
            founder.found(BTreeMap::new()).await?;
        } else {
            let closing = home.closing.subscribe();
            tasks.push(tokio::spawn(until_closed(closing, async move { founder.run().await })));
        }
    }
    for log in logs {
        let mut own = Addresses::of(&config.own());
        own.incarnation = log.inner.store.founding().incarnation();
        own.reads_format = config.reads_format;
        let keeper = Keeper { log: log.clone(), node: config.node, own, told: BTreeMap::new() };
        tasks.push(tokio::spawn(until_closed(home.closing.subscribe(), keeper.run())));
        let compactor = Compactor::new(config, log.clone());
        tasks.push(tokio::spawn(until_closed(home.closing.subscribe(), compactor.run())));
    }
    Ok(())
}

async fn until_closed(mut closing: watch::Receiver<bool>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        // An error means that the replica is gone, which is as good a reason to stop.
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

async fn all_founded<S: StateMachine>(logs: &[Log<S>]) -> Result<bool, String> {
    for log in logs {
        if !log.inner.raft.is_initialized().await.map_err(|fatal| fatal.to_string())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The member with the lowest number, before there is a log.
struct Founder<S: StateMachine> {
    config: Config,
    logs: Vec<Log<S>>,
}

impl<S: StateMachine> Founder<S> {
    /// Waits until a majority of the configured members is there, then founds.
    async fn run(self) {
        let mut told = false;
        loop {
            let heard = self.ask().await;
            match self.judge(&heard) {
                Ok(true) => match self.found(heard).await {
                    Ok(()) => return,
                    Err(cause) => tracing::error!(%cause, "cannot found the cluster; trying again"),
                },
                Ok(false) => {}
                Err(cause) if !told => {
                    told = true;
                    tracing::error!("{cause}");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_SOON).await;
        }
    }

    async fn ask(&self) -> BTreeMap<u64, v1::RaftHelloReply> {
        let others = self.config.members.iter().filter(|member| member.node != self.config.node);
        let peers = &self.logs[0].inner.peers;
        let asked = others.map(|member| async move {
            Some((member.node, peers.hello(&member.raft, member.node).await.ok()?))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Whether so many are there that the cluster may be founded; an error if it was, without this node.
    fn judge(&self, heard: &BTreeMap<u64, v1::RaftHelloReply>) -> Result<bool, String> {
        let own = self.logs[0].inner.store.founding().number();
        if let Some((node, reply)) =
            heard.iter().find(|(_, reply)| reply.founding != 0 && reply.founding != own)
        {
            return Err(format!(
                "HF2505 node {node} belongs to founding {:016x} of the cluster, while the directory of this node, {}, is \
                 empty: it founds nothing. Set cluster.join = true here and run: holdfast cluster replace {}",
                reply.founding, self.config.node, self.config.node
            ));
        }
        Ok(2 * (heard.len() + 1) > self.config.members.len())
    }

    async fn found(&self, heard: BTreeMap<u64, v1::RaftHelloReply>) -> Result<(), String> {
        let Config { cluster, node, reads_format, .. } = &self.config;
        tracing::info!(cluster, node, "founding the cluster");
        // Drawn before the first entry is written, so that no log is ever without it.
        let founding = self.logs[0].inner.store.founding().clone();
        let incarnation = founding.incarnation();
        tokio::task::spawn_blocking(move || founding.keep(draw()))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let mut members: BTreeMap<u64, Addresses> =
            self.config.members.iter().map(|member| (member.node, Addresses::of(member))).collect();
        for (node, reply) in heard {
            let Some((_, said)) = reply.member.map(member_from_proto) else { continue };
            if let Some(member) = members.get_mut(&node) {
                member.incarnation = said.incarnation;
                member.reads_format = said.reads_format;
            }
        }
        if let Some(own) = members.get_mut(node) {
            own.incarnation = incarnation;
            own.reads_format = *reads_format;
        }
        for log in &self.logs {
            match log.inner.raft.initialize(members.clone()).await {
                Ok(()) => {}
                // It was, before a crash; or entries of another founder came first.
                Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}

/// While this node leads: records the incarnations that are not known yet, and what members say of themselves; and ends a change
/// of voters that a former leader left half done.
struct Keeper<S: StateMachine> {
    log: Log<S>,
    node: u64,
    own: Addresses,
    /// Members that came back as others, and were told of.
    told: BTreeMap<u64, u64>,
}

impl<S: StateMachine> Keeper<S> {
    async fn run(mut self) {
        let mut leadership = self.log.inner.leadership.clone();
        loop {
            let leads = leadership.borrow_and_update().leads_here;
            let known = !leads || self.look().await;
            let pause = if known { LOOK } else { LOOK_SOON };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = leadership.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns whether nothing is left to find out soon.
    async fn look(&mut self) -> bool {
        let log = self.log.clone();
        let inner = &*log.inner;
        let heard = ask_all(&inner.peers, self.node, &log.membership()).await;
        // Whoever is at it here ends it; then this looks again.
        let Ok(_turn) = inner.changing.try_lock() else { return false };
        let membership = log.membership();
        if membership.get_joint_config().len() > 1 {
            // A former leader began it. What loses its vote is no member afterwards, as in every change.
            let none = ChangeMembers::AddVoterIds(BTreeSet::new());
            if let Err(error) = inner.raft.change_membership(none, false).await {
                tracing::debug!(%error, "a change of voters goes on");
            }
            return false;
        }
        let own = self.own.clone();
        let mut changed = BTreeMap::new();
        let mut known = true;
        for (&node, recorded) in membership.nodes() {
            let said = if node == self.node { Some(&own) } else { heard.get(&node) };
            match said {
                None => known &= recorded.incarnation != 0,
                Some(said) if said == recorded => {}
                Some(said)
                    if recorded.incarnation == 0 || recorded.incarnation == said.incarnation =>
                {
                    changed.insert(node, said.clone());
                }
                Some(said) => self.tell(node, recorded, said),
            }
        }
        if changed.is_empty() {
            return known;
        }
        tracing::info!(nodes = ?changed.keys().collect::<Vec<_>>(), "recording what members say of themselves");
        if let Err(error) =
            inner.raft.change_membership(ChangeMembers::SetNodes(changed), true).await
        {
            tracing::info!(%error, "the members are not recorded yet; trying again");
        }
        false
    }

    fn tell(&mut self, node: u64, recorded: &Addresses, said: &Addresses) {
        if self.told.insert(node, said.incarnation) != Some(said.incarnation) {
            tracing::error!(
                node,
                recorded = format!("{:016x}", recorded.incarnation),
                found = format!("{:016x}", said.incarnation),
                "HF2510 a member came back with another directory and is not let in; run: holdfast cluster replace {node}"
            );
        }
    }
}

/// What the other members that answer say of themselves.
async fn ask_all(peers: &Peers, own: u64, membership: &Membership) -> BTreeMap<u64, Addresses> {
    let asked =
        membership.nodes().filter(|(node, _)| **node != own).map(|(&node, recorded)| async move {
            let reply = peers.hello(&recorded.raft, node).await.ok()?;
            let (node, said) = member_from_proto(reply.member?);
            // One of another founding says nothing of this cluster.
            (reply.founding == 0 || reply.founding == peers.founding()).then_some((node, said))
        });
    join_all(asked).await.into_iter().flatten().collect()
}
