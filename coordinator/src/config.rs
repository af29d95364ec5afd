//! What a coordinator node is told: the sections and keys of `config/coordinator.toml` as plain data.

use std::{net::SocketAddr, path::PathBuf};

use holdfast_raft::Member;

/// One coordinator node. The command line reads it from file, environment and flags.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[bind]`.
    pub bind: Bind,
    /// `[security]`.
    pub security: Security,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[limits]`.
    pub limits: Limits,
    /// `[log]`.
    pub log: LogFiles,
}

/// Who this node is, and where it keeps things.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number, 1 or more; unique in the cluster and never used again for another node.
    pub id: u64,
    /// The log, the vote and the snapshots. Created if missing.
    pub data_dir: PathBuf,
}

/// The cluster this node belongs to.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name; nodes of another name are turned away.
    pub name: String,
    /// Every node, this one included, with the addresses at which the others reach it.
    pub members: Vec<Member>,
}

/// Where this node listens.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    /// HTTP/JSON, metrics and health.
    pub http: SocketAddr,
    /// gRPC: callers and agent sessions.
    pub grpc: SocketAddr,
    /// Peers.
    pub raft: SocketAddr,
}

/// How the doors are guarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// No TLS; every bind must be a loopback address.
    #[default]
    DevPlaintext,
}

/// Periods, ms.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Between two heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// The shortest wait before an election.
    pub election_min_ms: u64,
    /// The longest.
    pub election_max_ms: u64,
    /// From begin to decision, for transactions that do not say.
    pub global_timeout_ms: u64,
    /// For one call to a participant, for transactions that do not say.
    pub call_timeout_ms: u64,
}

/// The most that is taken in at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Commands waiting for a proposal; one more is told to try again.
    pub queue_max: usize,
    /// Commands in one log entry.
    pub batch_max: usize,
    /// Log entries under way at once.
    pub in_flight_max: usize,
    /// Bytes of one request at the HTTP and gRPC doors.
    pub request_bytes_max: usize,
}

/// The log's files.
#[derive(Clone, Copy, Debug)]
pub struct LogFiles {
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Log entries between snapshots.
    pub snapshot_every: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            heartbeat_ms: 60,
            election_min_ms: 300,
            election_max_ms: 400,
            global_timeout_ms: 30_000,
            call_timeout_ms: 3_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_max: 65_536,
            batch_max: 1_024,
            in_flight_max: 4,
            request_bytes_max: 2 * 1024 * 1024,
        }
    }
}

impl Default for LogFiles {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, snapshot_every: 50_000 }
    }
}

/// Bounds that no file changes. Each is tested at the limit and one past it.
pub mod limit {
    /// Bytes of commands in one log entry; a single command may be larger, up to its own limits.
    pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
    /// Callers waiting for a decision or an end at once.
    pub const WAITERS_MAX: usize = 100_000;
    /// Agent sessions at once.
    pub const SESSIONS_MAX: usize = 10_000;
    /// Answers, or calls, in one message of a session.
    pub const BATCH_PER_MESSAGE_MAX: usize = 1_024;
    /// Bytes of one message of a session.
    pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
    /// Transactions that one page of a list holds.
    pub const LIST_MAX: usize = 1_000;
    /// A session that is silent for so long ends, ms.
    pub const SILENCE_MAX_MS: u64 = 6_000;
}
