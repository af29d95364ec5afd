//! What is answered in JSON: the messages that gRPC carries, with words for numbers and RFC 3339 for instants.

use std::collections::BTreeMap;

use holdfast_proto::{Pairs, v1};
use schemars::JsonSchema;
use serde::Serialize;

use super::instant::rfc3339;
use crate::rpc::{Told, show};

/// The answer about one transaction.
#[derive(Serialize, JsonSchema)]
pub(super) struct Reply {
    gid: String,
    outcome: &'static str,
    repeated: bool,
    /// The machine has forgotten it; this is what the history says.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    from_history: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<Transaction>,
}

/// A page of transactions.
#[derive(Serialize, JsonSchema)]
pub(super) struct Page {
    transactions: Vec<Transaction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<String>,
}

/// One transaction.
#[derive(Serialize, JsonSchema)]
pub(super) struct Transaction {
    gid: String,
    mode: &'static str,
    status: String,
    branches: Vec<Branch>,
    begun_at: Option<String>,
    deadline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
struct Branch {
    branch: u32,
    participant: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pivot: bool,
}

#[derive(Serialize, JsonSchema)]
struct Refusal {
    code: String,
    message: String,
}

/// What a node says of itself. Transactions are counted over all Raft groups; what is of a log is group 0's, and `groups` has each.
#[derive(Serialize, JsonSchema)]
pub(super) struct Node {
    node: u64,
    role: String,
    term: u64,
    leader: Option<u64>,
    leader_grpc: Option<String>,
    applied_index: u64,
    last_index: u64,
    members: Vec<Member>,
    /// Hash of the whole state after `applied_index`; null: not asked for.
    state_hash: Option<String>,
    open_transactions: u64,
    needs_attention: u64,
    by_status: BTreeMap<String, u64>,
    groups: Vec<Group>,
}

/// A node in one Raft group.
#[derive(Serialize, JsonSchema)]
struct Group {
    group: u32,
    role: String,
    term: u64,
    leader: Option<u64>,
    leader_grpc: Option<String>,
    applied_index: u64,
    last_index: u64,
    state_hash: Option<String>,
    open_transactions: u64,
    needs_attention: u64,
    by_status: BTreeMap<String, u64>,
}

#[derive(Serialize, JsonSchema)]
struct Member {
    node: u64,
    http: String,
    grpc: String,
    raft: String,
    voter: bool,
}

impl From<Told> for Reply {
    fn from(told: Told) -> Self {
        let outcome = match told.reply.outcome() {
            v1::Outcome::Committed => "committed",
            v1::Outcome::RolledBack => "rolled_back",
            v1::Outcome::Unknown | v1::Outcome::Unspecified => "unknown",
        };
        let transaction = told.reply.transaction.map(Transaction::from);
        let from_history = told.reply.from_history;
        Self { gid: told.gid, outcome, repeated: told.reply.repeated, from_history, transaction }
    }
}

impl From<v1::ListReply> for Page {
    fn from(reply: v1::ListReply) -> Self {
        Self {
            transactions: reply.transactions.into_iter().map(Transaction::from).collect(),
            next_after: Some(reply.next_after_gid).filter(|gid| !gid.is_empty()),
        }
    }
}

impl From<v1::Transaction> for Transaction {
    fn from(known: v1::Transaction) -> Self {
        let mode = match known.mode() {
            v1::Mode::Tcc => "tcc",
            v1::Mode::Saga => "saga",
            v1::Mode::Xa => "xa",
            v1::Mode::Unspecified => "unknown",
        };
        let status = show::status_from_wire(known.status());
        Self {
            mode,
            status: status.map_or_else(|| "unknown".to_owned(), show::status_word),
            branches: known.branches.into_iter().map(Branch::from).collect(),
            begun_at: rfc3339(known.begun_at_ms),
            deadline: rfc3339(known.deadline_ms),
            decided_at: rfc3339(known.decided_at_ms),
            finished_at: rfc3339(known.finished_at_ms),
            reason: known.reason,
            tags: Pairs::from(known.tags).owned().collect(),
            gid: known.gid,
        }
    }
}

impl From<v1::Branch> for Branch {
    fn from(known: v1::Branch) -> Self {
        let refusal = (known.state == "refused" || !known.refusal_code.is_empty())
            .then_some(Refusal { code: known.refusal_code, message: known.refusal_message });
        Self {
            branch: known.branch,
            participant: known.participant,
            state: known.state,
            refusal,
            after: known.after,
            pivot: known.pivot,
        }
    }
}

impl Node {
    /// What the node says of each group, in their order; `first` is group 0.
    pub(super) fn of(first: v1::NodeStatusReply, others: Vec<v1::NodeStatusReply>) -> Self {
        let node = first.node;
        let members = first.members.iter().map(Member::from).collect();
        let zero = Group::from(first);
        let mut all = Self {
            node,
            role: zero.role.clone(),
            term: zero.term,
            leader: zero.leader,
            leader_grpc: zero.leader_grpc.clone(),
            applied_index: zero.applied_index,
            last_index: zero.last_index,
            members,
            state_hash: zero.state_hash.clone(),
            open_transactions: 0,
            needs_attention: 0,
            by_status: BTreeMap::new(),
            groups: std::iter::once(zero).chain(others.into_iter().map(Group::from)).collect(),
        };
        for group in &all.groups {
            all.open_transactions += group.open_transactions;
            all.needs_attention += group.needs_attention;
            for (status, count) in &group.by_status {
                *all.by_status.entry(status.clone()).or_default() += count;
            }
        }
        all
    }
}

impl From<v1::NodeStatusReply> for Group {
    fn from(known: v1::NodeStatusReply) -> Self {
        Self {
            group: known.group,
            role: known.role,
            term: known.term,
            leader: Some(known.leader).filter(|leader| *leader > 0),
            leader_grpc: Some(known.leader_grpc).filter(|leader| !leader.is_empty()),
            applied_index: known.applied_index,
            last_index: known.last_index,
            state_hash: Some(known.state_hash).filter(|hash| !hash.is_empty()),
            open_transactions: known.open_transactions,
            needs_attention: known.needs_attention,
            by_status: known.by_status.into_iter().collect(),
        }
    }
}

impl From<&v1::Member> for Member {
    fn from(known: &v1::Member) -> Self {
        Self {
            node: known.node,
            http: known.http.clone(),
            grpc: known.grpc.clone(),
            raft: known.raft.clone(),
            voter: known.voter,
        }
    }
}
