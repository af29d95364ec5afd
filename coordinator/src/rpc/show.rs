//! How a transaction is shown to callers.

use holdfast_proto::{Pairs, v1};
use holdfast_txn::{Decision, GlobalTransaction, Mode, Proposal, Remedy, Status};

use crate::{NodeStatus, StateHash};

/// What a caller is told of `transaction`: a decision is told as soon as it is known, anything else is unknown.
pub(crate) fn reply(
    transaction: Option<&GlobalTransaction>,
    repeated: bool,
) -> v1::TransactionReply {
    let outcome = match transaction.and_then(|known| known.decision) {
        Some(Decision::Commit) => v1::Outcome::Committed,
        Some(Decision::RollBack) => v1::Outcome::RolledBack,
        None => v1::Outcome::Unknown,
    };
    v1::TransactionReply {
        transaction: transaction.map(self::transaction),
        outcome: outcome.into(),
        repeated,
        ..Default::default()
    }
}

/// What a caller is told of a transaction that left the machine and that the history knows.
pub(crate) fn remembered(known: v1::Transaction) -> v1::TransactionReply {
    let outcome = match known.status() {
        v1::Status::Committed => v1::Outcome::Committed,
        v1::Status::RolledBack => v1::Outcome::RolledBack,
        _ => v1::Outcome::Unknown,
    };
    v1::TransactionReply {
        transaction: Some(known),
        outcome: outcome.into(),
        from_history: true,
        ..Default::default()
    }
}

/// The transaction without payloads, which are the participants' alone.
pub(crate) fn transaction(known: &GlobalTransaction) -> v1::Transaction {
    v1::Transaction {
        gid: known.gid.as_str().to_owned(),
        mode: mode_to_wire(known.mode).into(),
        status: status_to_wire(known.status).into(),
        branches: known.numbered().map(|(number, branch)| self::branch(number.0, branch)).collect(),
        begun_at_ms: known.begun_at.0,
        deadline_ms: known.deadline.0,
        decided_at_ms: known.decided_at.map_or(0, |at| at.0),
        finished_at_ms: known.finished_at.map_or(0, |at| at.0),
        reason: known.reason.clone().unwrap_or_default(),
        tags: known.options.tags.iter().collect::<Pairs>().into(),
    }
}

/// What waits for a second person.
pub(crate) fn proposal(known: &Proposal) -> v1::OpenProposal {
    let (act, branch) = match known.remedy {
        Remedy::MarkDone(branch) => (v1::OperatorAct::MarkDone, branch.0),
        Remedy::MarkRefused(branch) | Remedy::BelieveRefused(branch) => {
            (v1::OperatorAct::MarkRefused, branch.0)
        }
        Remedy::Abandon => (v1::OperatorAct::Abandon, 0),
    };
    v1::OpenProposal {
        act: act.into(),
        branch,
        by: known.by.clone(),
        reason: known.reason.clone(),
        at_ms: known.at.0,
        until_ms: known.until.0,
    }
}

fn branch(number: u32, known: &holdfast_txn::Branch) -> v1::Branch {
    let refusal = known.refusal.as_deref().cloned().unwrap_or_default();
    let after = known.spec.after.iter().flatten().map(|branch| branch.0).collect();
    v1::Branch {
        branch: number,
        participant: known.spec.participant.as_str().to_owned(),
        state: known.state.as_str().to_owned(),
        refusal_code: refusal.code,
        refusal_message: refusal.message,
        after,
        pivot: known.spec.pivot,
    }
}

/// What a node says of itself. With the hash of its state, it is as far as that state.
pub(crate) fn node(
    status: NodeStatus,
    hashed: Option<StateHash>,
    groups: u32,
) -> v1::NodeStatusReply {
    let open = |(status, count): (&Status, &usize)| if status.is_final() { 0 } else { *count };
    v1::NodeStatusReply {
        node: status.node,
        group: status.group,
        groups,
        role: status.role.to_owned(),
        term: status.term,
        leader: status.leader.as_ref().map_or(0, |leader| leader.node),
        leader_grpc: status.leader.map(|leader| leader.grpc).unwrap_or_default(),
        applied_index: hashed.map_or(status.applied_index, |hashed| hashed.applied_index),
        last_index: status.last_index,
        members: status
            .members
            .into_iter()
            .map(|one| v1::Member {
                node: one.member.node,
                grpc: one.member.grpc,
                http: one.member.http,
                raft: one.member.raft,
                voter: one.voter,
                matched_index: one.matched_index,
                answered_ms_ago: one.answered_ms_ago,
                incarnation: one.incarnation,
                reads_format: one.reads_format,
            })
            .collect(),
        cluster_format: status.cluster_format,
        founding: status.founding,
        incarnation: status.incarnation,
        snapshot_index: status.snapshot_index,
        joint: status.joint,
        state_hash: hashed.map(|hashed| hashed.digest.to_string()).unwrap_or_default(),
        open_transactions: status.by_status.iter().map(open).sum::<usize>() as u64,
        needs_attention: status.by_status.get(&Status::NeedsAttention).copied().unwrap_or(0) as u64,
        by_status: status
            .by_status
            .iter()
            .filter(|(status, _)| !status.is_final())
            .map(|(status, count)| (status_word(*status), *count as u64))
            .collect(),
    }
}

/// The word of a status in JSON and in filters, for example `rolling_back`.
pub(crate) fn status_word(status: Status) -> String {
    status.as_str().replace(' ', "_")
}

pub(crate) fn mode_to_wire(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Tcc => v1::Mode::Tcc,
        Mode::Saga => v1::Mode::Saga,
        Mode::Xa => v1::Mode::Xa,
    }
}

pub(crate) fn status_to_wire(status: Status) -> v1::Status {
    match status {
        Status::Active => v1::Status::Active,
        Status::Trying => v1::Status::Trying,
        Status::Running => v1::Status::Running,
        Status::Committing => v1::Status::Committing,
        Status::RollingBack => v1::Status::RollingBack,
        Status::Compensating => v1::Status::Compensating,
        Status::Committed => v1::Status::Committed,
        Status::RolledBack => v1::Status::RolledBack,
        Status::NeedsAttention => v1::Status::NeedsAttention,
    }
}

pub(crate) fn status_from_wire(status: v1::Status) -> Option<Status> {
    Status::ALL.into_iter().find(|known| status_to_wire(*known) == status)
}
