//! Changing who is in the cluster, while it works: learner, voter, gone. Each change is checked by the leader before it begins, so
//! that none that it makes can cost the quorum.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers, Instant as _, RaftMetrics,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    vote::RaftCommittedLeaderId,
};
use tokio::sync::MutexGuard;

use crate::{
    ChangeError, Log, Member, StateMachine,
    config::MEMBERS_MAX,
    consensus::{Addresses, Consensus, Membership},
    convert::member_from_proto,
    log::format_of,
};

/// Entries that a learner may lack when it becomes a voter: what it catches up within moments.
pub const LAG_MAX: u64 = 1_000;

/// How long a change waits for another on the same node: what a leader takes that records what members say of themselves.
const TURN_PATIENCE: Duration = Duration::from_secs(2);

type Changes = ChangeMembers<u64, Addresses>;

impl<S: StateMachine> Log<S> {
    /// Makes the node that listens at `raft` a learner under the number `node`: it receives the log, and has no vote. It must have
    /// been started with an empty directory, to join. Repeating it is refused, so that two nodes never share a number.
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::Unknown`] leaves open whether it happened.
    pub async fn add_learner(&self, node: u64, raft: &str) -> Result<Member, ChangeError> {
        let _turn = self.turn().await?;
        self.must_lead()?;
        let membership = self.membership();
        let address: Result<tonic::codegen::http::uri::Authority, _> = raft.parse();
        if !address.is_ok_and(|address| address.port().is_some()) {
            return Err(ChangeError::refused("HF2503", format!("{raft:?} is not host:port")));
        }
        if membership.get_node(&node).is_none() {
            must_have_room(membership.nodes().count())?;
        }
        let said = self.meet(node, raft).await?;
        if let Some(recorded) = membership.get_node(&node) {
            return Err(known(node, recorded, &said));
        }
        let taken = membership.nodes().find(|(_, member)| member.raft == said.raft);
        if let Some((other, _)) = taken {
            return Err(ChangeError::refused(
                "HF2504",
                format!(
                    "node {other} has the address {} already. Give node {node} its own, or remove node {other} first",
                    said.raft
                ),
            ));
        }
        let member = said.member(node);
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node, said)]))).await?;
        Ok(member)
    }

    /// Gives a learner a vote. It must have caught up but for [`LAG_MAX`] entries.
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::Unknown`] leaves open whether it happened.
    pub async fn promote(&self, node: u64) -> Result<(), ChangeError> {
        let _turn = self.turn().await?;
        self.must_lead()?;
        let membership = self.membership();
        must_be_member(node, &membership)?;
        if membership.voter_ids().any(|voter| voter == node) {
            return Err(ChangeError::refused("HF2504", format!("node {node} has a vote already")));
        }
        self.must_have_caught_up(node)?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([node]))).await
    }

    /// Takes a node out of the cluster, voter or learner. It goes on running, alone, and may be stopped then. The leader itself is
    /// refused: hand over first.
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::Unknown`] leaves open whether it happened.
    pub async fn remove(&self, node: u64) -> Result<(), ChangeError> {
        let _turn = self.turn().await?;
        self.must_lead()?;
        let membership = self.membership();
        must_be_member(node, &membership)?;
        if !membership.voter_ids().any(|voter| voter == node) {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node]))).await;
        }
        self.must_not_be_leader(node, &membership)?;
        self.must_keep_a_quorum(&[node], &[])?;
        // What loses its vote is no member afterwards.
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([node]))).await
    }

    /// Has the learner `new` take the vote of `old`, which leaves the cluster, in one change.
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::Unknown`] leaves open whether it happened.
    pub async fn swap(&self, old: u64, new: u64) -> Result<(), ChangeError> {
        let _turn = self.turn().await?;
        self.must_lead()?;
        let membership = self.membership();
        must_be_member(old, &membership)?;
        must_be_member(new, &membership)?;
        self.must_have_caught_up(new)?;
        self.must_not_be_leader(old, &membership)?;
        self.must_keep_a_quorum(&[old], &[new])?;
        let [old, new] = [old, new].map(|node| BTreeSet::from([node]));
        // What loses its vote is no member afterwards.
        self.change(ChangeMembers::Batch(vec![
            ChangeMembers::AddVoterIds(new),
            ChangeMembers::RemoveVoters(old),
        ]))
        .await
    }

    fn metrics<T>(&self, look: impl FnOnce(&RaftMetrics<Consensus>) -> T) -> T {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        look(&metrics)
    }

    pub(crate) fn membership(&self) -> Membership {
        self.metrics(|metrics| metrics.membership_config.membership().clone())
    }

    fn must_lead(&self) -> Result<(), ChangeError> {
        let now = self.inner.leadership.borrow();
        if now.leads_here {
            return Ok(());
        }
        let own = self.metrics(|metrics| metrics.id);
        Err(ChangeError::NotLeader {
            leader: now.leader.clone().filter(|leader| leader.node != own),
        })
    }

    fn must_not_be_leader(&self, node: u64, membership: &Membership) -> Result<(), ChangeError> {
        // Alone, it has nobody to hand over to, and is refused for another reason.
        let alone = membership.voter_ids().count() == 1;
        if alone || self.metrics(|metrics| metrics.id) != node {
            return Ok(());
        }
        Err(ChangeError::refused(
            "HF2512",
            format!("node {node} leads. Hand over first: holdfast cluster transfer"),
        ))
    }

    fn must_have_caught_up(&self, node: u64) -> Result<(), ChangeError> {
        if !self.answers(node) {
            return Err(ChangeError::refused(
                "HF2503",
                format!(
                    "node {node} has not answered for {} ms. Start it, or mend the network, and try again",
                    2 * self.inner.lease_patience.as_millis()
                ),
            ));
        }
        let status = self.status();
        let matched = status.members.iter().find(|member| member.member.node == node);
        let matched = matched.and_then(|member| member.matched_index).unwrap_or(0);
        must_be_close(node, status.last_index.saturating_sub(matched))
    }

    /// Whether the node answered this leader within twice the longest election timeout.
    fn answers(&self, node: u64) -> bool {
        self.metrics(|metrics| {
            let at =
                metrics.heartbeat.as_ref().and_then(|heard| heard.get(&node)?.as_ref().copied());
            node == metrics.id || at.is_some_and(|at| at.elapsed() <= 2 * self.inner.lease_patience)
        })
    }

    /// Whether those who vote after the change can decide without those who do not answer now.
    fn must_keep_a_quorum(&self, leaving: &[u64], coming: &[u64]) -> Result<(), ChangeError> {
        let voters = self.membership().voter_ids().collect::<BTreeSet<_>>();
        let mut left: BTreeSet<u64> =
            voters.into_iter().filter(|voter| !leaving.contains(voter)).collect();
        left.extend(coming);
        if left.is_empty() {
            return Err(ChangeError::refused(
                "HF2501",
                format!(
                    "node {} is the last voter: without it there is no cluster. Add another first",
                    leaving[0]
                ),
            ));
        }
        let up: Vec<u64> = left.iter().copied().filter(|&voter| self.answers(voter)).collect();
        let needed = left.len() / 2 + 1;
        if up.len() >= needed {
            return Ok(());
        }
        Err(ChangeError::refused(
            "HF2502",
            format!(
                "of the {} voters that would be left, {} answer and {needed} must: the cluster would stop. Start the others first",
                left.len(),
                up.len()
            ),
        ))
    }

    /// Asks the node at that address who it is, and whether it may join.
    async fn meet(&self, node: u64, raft: &str) -> Result<Addresses, ChangeError> {
        let reply = self.inner.peers.hello(raft, node).await.map_err(|cause| {
            ChangeError::refused("HF2503", format!(
                "node {node} does not answer at {raft}: {cause}. Start it with cluster.join = true and the same cluster.name"
            ))
        })?;
        let own = self.inner.store.founding().number();
        if reply.founding != 0 && reply.founding != own {
            return Err(ChangeError::refused(
                "HF2505",
                format!(
                    "node {node} belongs to founding {:016x}, this cluster is {own:016x}: their logs must not meet. Empty its directory \
                 and start it with cluster.join = true",
                    reply.founding
                ),
            ));
        }
        if reply.groups != self.inner.groups {
            return Err(ChangeError::refused(
                "HF2505",
                format!(
                    "node {node} has cluster.groups = {}, this cluster {}. Correct its configuration, and empty its directory",
                    reply.groups, self.inner.groups
                ),
            ));
        }
        let Some((_, said)) = reply.member.map(member_from_proto) else {
            return Err(ChangeError::refused(
                "HF2503",
                format!("node {node} does not say who it is"),
            ));
        };
        let written = format_of(&self.membership());
        let reads = said.reads_format.max(1);
        if reads < written {
            return Err(ChangeError::refused(
                "HF2507",
                format!(
                    "node {node} runs {} and reads entries up to format {reads}, while the cluster may write format {written}. Run the \
                 version of the others on it",
                    reply.version
                ),
            ));
        }
        Ok(said)
    }

    /// Waits until nobody on this node changes the membership. A change of voters takes two steps; what came between them would
    /// leave the second one's outcome unknown, and a change judged by members that another is about to remove could cost the quorum.
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, ChangeError> {
        let turn = tokio::time::timeout(TURN_PATIENCE, self.inner.changing.lock()).await;
        turn.map_err(|_| under_way())
    }

    async fn change(&self, changes: Changes) -> Result<(), ChangeError> {
        // A change of voters removes what leaves; nobody stays on as a learner unasked.
        match self.inner.raft.change_membership(changes, false).await {
            Ok(_) => Ok(()),
            Err(RaftError::Fatal(_)) => {
                Err(ChangeError::Unknown { cause: "this node is stopping".to_owned() })
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                let metrics = self.inner.raft.metrics();
                let metrics = metrics.borrow_watched();
                let leader = forward.leader_id.filter(|&node| node != metrics.id);
                let leader = leader.map(|node| self.inner.directory.member(node, &metrics));
                Err(ChangeError::NotLeader { leader })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(not_now(&error)
                    .unwrap_or_else(|| ChangeError::Unknown { cause: error.to_string() }))
            }
            Err(error) => Err(ChangeError::Unknown { cause: error.to_string() }),
        }
    }
}

fn under_way() -> ChangeError {
    let cause = "another change of the membership is under way. Wait for its end";
    ChangeError::refused("HF2508", cause.to_owned())
}

/// What the log does not begin at this moment, and why. Whatever else it says may come behind the first of two steps.
fn not_now<L: RaftCommittedLeaderId>(error: &ChangeMembershipError<L, u64>) -> Option<ChangeError> {
    match error {
        ChangeMembershipError::InProgress(_) => Some(under_way()),
        ChangeMembershipError::UncommittedLeaderLog(_) => {
            let cause = "the leader is new, and a quorum does not have its first entry yet. Wait a moment, and try again";
            Some(ChangeError::refused("HF2508", cause.to_owned()))
        }
        _ => None,
    }
}

/// Whether a cluster of so many members takes one more.
fn must_have_room(members: usize) -> Result<(), ChangeError> {
    if members < MEMBERS_MAX {
        return Ok(());
    }
    Err(ChangeError::refused(
        "HF2511",
        format!(
            "the cluster has {members} members, and {MEMBERS_MAX} are the limit. Remove one first"
        ),
    ))
}

/// Whether a learner that lacks so many entries may get its vote.
fn must_be_close(node: u64, behind: u64) -> Result<(), ChangeError> {
    if behind <= LAG_MAX {
        return Ok(());
    }
    Err(ChangeError::refused(
        "HF2506",
        format!(
            "node {node} is {behind} entries behind, and may be {LAG_MAX}. Wait until it has caught up"
        ),
    ))
}

fn must_be_member(node: u64, membership: &Membership) -> Result<(), ChangeError> {
    if membership.get_node(&node).is_some() {
        return Ok(());
    }
    let members: Vec<String> = membership.nodes().map(|(node, _)| node.to_string()).collect();
    Err(ChangeError::refused(
        "HF2509",
        format!("node {node} is no member of the cluster; the members are {}", members.join(", ")),
    ))
}

fn known(node: u64, recorded: &Addresses, said: &Addresses) -> ChangeError {
    if recorded.incarnation == said.incarnation {
        return ChangeError::refused(
            "HF2504",
            format!(
                "node {node} is a member already, at {}. Nothing has to be done; a learner is given its vote by: holdfast cluster add",
                recorded.raft
            ),
        );
    }
    ChangeError::refused(
        "HF2510",
        format!(
            "node {node} is a member with another directory ({:016x}, this one is {:016x}): it has forgotten what it voted and \
         acknowledged. Run: holdfast cluster replace {node}",
            recorded.incarnation, said.incarnation
        ),
    )
}

#[cfg(test)]
mod tests {
    use openraft::errors::{InProgress, UncommittedLeaderLog};

    use super::*;
    use crate::consensus::log_id;

    fn code(answer: Result<(), ChangeError>) -> Option<&'static str> {
        match answer {
            Ok(()) => None,
            Err(ChangeError::Refused { code, .. }) => Some(code),
            Err(other) => panic!("neither taken nor refused: {other}"),
        }
    }

    #[test]
    fn the_last_member_has_room_and_one_more_has_not() {
        assert_eq!(code(must_have_room(MEMBERS_MAX - 1)), None);
        assert_eq!(code(must_have_room(MEMBERS_MAX)), Some("HF2511"));
        assert_eq!(code(must_have_room(usize::MAX)), Some("HF2511"));
    }

    #[test]
    fn a_learner_at_the_limit_gets_its_vote_and_one_entry_further_behind_waits() {
        assert_eq!(code(must_be_close(4, 0)), None);
        assert_eq!(code(must_be_close(4, LAG_MAX)), None);
        assert_eq!(code(must_be_close(4, LAG_MAX + 1)), Some("HF2506"));
        assert_eq!(code(must_be_close(4, u64::MAX)), Some("HF2506"));
    }

    #[test]
    fn a_new_leader_is_told_as_the_cause_and_not_another_change() {
        let told = |error: ChangeMembershipError<_, u64>| match not_now(&error) {
            Some(ChangeError::Refused { code, cause }) => {
                (code, cause.split('.').next().unwrap_or_default().to_owned())
            }
            other => panic!("not refused: {other:?}"),
        };
        let (committed, leader_log_id) = (None, log_id(3, 7));
        let new = UncommittedLeaderLog { committed, leader_log_id };
        let cause = "the leader is new, and a quorum does not have its first entry yet";
        assert_eq!(told(new.into()), ("HF2508", cause.to_owned()));
        let other = InProgress { committed: Some(leader_log_id), membership_log_id: None };
        let cause = "another change of the membership is under way";
        assert_eq!(told(other.into()), ("HF2508", cause.to_owned()));
    }
}
