//! What a replica is told: who it is, who the others are, where it keeps its files, how patient it is.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use holdfast_security::{Credentials, Name, Subject};

use crate::store::record::ENTRY_BYTES_MAX;

/// The smallest segment of the log, bytes; for tests. An entry must fit into a segment.
pub const SEGMENT_BYTES_MIN: u64 = 16 * 1024;
/// The largest segment of the log, bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The most Raft groups of a cluster.
pub const GROUPS_MAX: u32 = 16;
/// The most nodes of a cluster, learners among them.
pub const MEMBERS_MAX: usize = 9;

/// A node of the cluster and the addresses at which others reach it, each `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its number, 1 or more. With another disk it is another node, even under the same number, and is let in only after the
    /// former was removed.
    pub node: u64,
    /// Where peers reach it.
    pub raft: String,
    /// Where gRPC callers and agents reach it.
    pub grpc: String,
    /// Where HTTP callers reach it.
    pub http: String,
}

/// One replica. Every bound is checked by [`Log::open`](crate::Log::open), which reports all mistakes at once.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's number; one of `members`.
    pub node: u64,
    /// The cluster's name, 1 to 64 bytes. Peers of another name are refused, and so is a directory of another name.
    pub cluster: String,
    /// Where the log, the vote and the snapshots live. Created if missing. Never shared by two processes.
    pub dir: PathBuf,
    /// Where to listen for peers.
    pub bind: SocketAddr,
    /// The nodes that found the cluster, this one included. Later, the log says who is a member, and this list where
    /// each of them is reached.
    pub members: Vec<Member>,
    /// Whether this node waits, with an empty log, to be added to a cluster that exists; it never founds one.
    pub join: bool,
    /// Raft groups, 1 to [`GROUPS_MAX`]; fixed when the cluster is founded.
    pub groups: u32,
    /// The highest format of entries that this version reads, 1 or more.
    pub reads_format: u32,
    /// Mutual TLS between replicas: this node's certificate, which must name it. `None`: nothing is encrypted, on loopback alone.
    pub credentials: Option<Credentials>,
    /// Between two heartbeats of the leader, ms.
    pub heartbeat_ms: u64,
    /// The shortest wait before an election, ms; above three heartbeats.
    pub election_min_ms: u64,
    /// The longest, ms. Keep it close to the shortest: a failover takes between the sum of the two and twice this.
    pub election_max_ms: u64,
    /// Bytes of one segment of the log; the files are that large from the beginning.
    pub segment_bytes: u64,
    /// Entries between two snapshots. Half as many stay in the log behind a snapshot, for followers that lag a little.
    pub snapshot_every: u64,
    /// Bytes by which the log grows before a snapshot is taken whatever the number of entries, or the bytes of the last
    /// snapshot if those are more. Half as many stay in the log at most.
    pub snapshot_bytes: u64,
}

impl Config {
    /// The largest entry that can be proposed, bytes: 8 MiB, or what a segment holds if that is less.
    #[must_use]
    pub fn entry_bytes_max(&self) -> usize {
        let room = usize::try_from(self.segment_bytes / 2).unwrap_or(usize::MAX);
        room.min(ENTRY_BYTES_MAX)
    }

    /// This node as the others should reach it.
    pub(crate) fn own(&self) -> Member {
        let own = self.members.iter().find(|member| member.node == self.node);
        own.cloned().unwrap_or_default()
    }

    /// Every mistake, each with its remedy.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut check = |sound: bool, mistake: String| {
            if !sound {
                mistakes.push(mistake);
            }
        };
        check(
            (1..=64).contains(&self.cluster.len()) && !self.cluster.contains(char::is_control),
            format!("cluster = {:?} is no name of 1 to 64 printable bytes", self.cluster),
        );
        let nodes: BTreeSet<u64> = self.members.iter().map(|member| member.node).collect();
        check(
            nodes.contains(&self.node),
            format!("node {} is not among the members. Add it", self.node),
        );
        check(!nodes.contains(&0), "node 0 is among the members. Number nodes from 1".to_owned());
        check(
            nodes.len() == self.members.len(),
            "two members have the same number. Give each its own".to_owned(),
        );
        check(
            (1..=GROUPS_MAX).contains(&self.groups),
            format!("groups = {} must be from 1 to {GROUPS_MAX}", self.groups),
        );
        for member in &self.members {
            check(
                member
                    .raft
                    .parse::<tonic::codegen::http::uri::Authority>()
                    .is_ok_and(|a| a.port().is_some()),
                format!("member {}: raft = {:?} is not host:port", member.node, member.raft),
            );
        }
        if let Some(credentials) = &self.credentials {
            let own = Name { cluster: self.cluster.clone(), subject: Subject::Node(self.node) };
            let named = credentials.name().map(|name| name.to_string()).unwrap_or_default();
            check(
                named == own.to_string(),
                format!(
                    "the certificate names {named:?}, and this is {own}. Give the node its own"
                ),
            );
        }
        check(
            self.heartbeat_ms >= 1 && self.election_min_ms > 3 * self.heartbeat_ms,
            format!(
                "election_min_ms = {} is not above three heartbeats of {} ms. Raise the first or lower the second",
                self.election_min_ms, self.heartbeat_ms
            ),
        );
        check(
            self.election_max_ms > self.election_min_ms && self.election_max_ms <= 60_000,
            format!(
                "election_max_ms = {} must be above election_min_ms = {} and at most 60000",
                self.election_max_ms, self.election_min_ms
            ),
        );
        check(
            (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
                && self.segment_bytes.is_multiple_of(4096),
            format!(
                "segment_bytes = {} must be a multiple of 4096 from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}",
                self.segment_bytes
            ),
        );
        check(
            (1..=100_000_000).contains(&self.snapshot_every),
            format!("snapshot_every = {} must be from 1 to 100000000", self.snapshot_every),
        );
        check(
            self.snapshot_bytes >= 1,
            "snapshot_bytes = 0 asks for snapshots without end. Raise it".to_owned(),
        );
        mistakes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sound() -> Config {
        Config {
            node: 1,
            cluster: "bank".to_owned(),
            dir: PathBuf::from("unused"),
            bind: ([127, 0, 0, 1], 0).into(),
            members: vec![Member {
                node: 1,
                raft: "127.0.0.1:7402".to_owned(),
                grpc: "127.0.0.1:7401".to_owned(),
                http: "127.0.0.1:7400".to_owned(),
            }],
            join: false,
            groups: 1,
            reads_format: 1,
            credentials: None,
            heartbeat_ms: 60,
            election_min_ms: 250,
            election_max_ms: 320,
            segment_bytes: 64 * 1024 * 1024,
            snapshot_every: 50_000,
            snapshot_bytes: 128 * 1024 * 1024,
        }
    }

    #[test]
    fn as_many_groups_as_allowed_are_taken_and_none_are_not() {
        let mut config = sound();
        config.groups = GROUPS_MAX;
        assert_eq!(config.mistakes(), Vec::<String>::new());
        config.groups = 0;
        assert_eq!(config.mistakes().len(), 1);
    }

    #[test]
    fn the_shipped_values_are_sound() {
        assert_eq!(sound().mistakes(), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mut config = sound();
        config.cluster.clear();
        config.groups = GROUPS_MAX + 1;
        config.node = 4;
        config.members[0].raft = "nowhere".to_owned();
        config.election_min_ms = 180;
        config.election_max_ms = 180;
        config.segment_bytes = 5;
        config.snapshot_every = 0;
        config.snapshot_bytes = 0;
        assert_eq!(config.mistakes().len(), 9, "{:#?}", config.mistakes());
    }
}
