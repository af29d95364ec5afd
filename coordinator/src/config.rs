//! What a coordinator node is told: the sections and keys of `config/coordinator.toml` as plain data.

use std::{net::SocketAddr, path::PathBuf};

use holdfast_client::ClientOptions;
pub use holdfast_history::Retention;
use holdfast_raft::Member;
use holdfast_security::{Access, ClientAuth, Credentials};
use holdfast_txn::limit::TIMEOUT_MS_MAX;

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
    /// `[history]`.
    pub history: Retention,
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
    /// Whether this node waits, with an empty directory, to be added to a cluster that exists. Of no effect once it was.
    pub join: bool,
    /// Raft groups, 1 to [`GROUPS_MAX`](holdfast_raft::GROUPS_MAX); fixed when the cluster is founded.
    pub groups: u32,
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
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// No TLS; every bind must be a loopback address.
    #[default]
    DevPlaintext,
    /// TLS 1.3 with certificates on both sides, roles and rights.
    MutualTls {
        /// This node's certificate, which names it, and the authority of all others.
        credentials: Credentials,
        /// What callers may do beside what their certificates say, and the tokens.
        access: Access,
        /// Whether callers may come with a token alone. Peers may not.
        callers: ClientAuth,
    },
}

impl Security {
    /// The credentials, if there is TLS.
    #[must_use]
    pub fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::DevPlaintext => None,
            Self::MutualTls { credentials, .. } => Some(credentials),
        }
    }

    /// How this node speaks to others as their client.
    pub(crate) fn client(&self) -> ClientOptions {
        ClientOptions { credentials: self.credentials().cloned(), ..ClientOptions::default() }
    }

    /// How a door for callers and agents is guarded.
    #[must_use]
    pub fn door(&self) -> holdfast_security::Door {
        match self {
            Self::DevPlaintext => holdfast_security::Door::DevPlaintext,
            Self::MutualTls { credentials, callers, .. } => holdfast_security::Door::MutualTls {
                credentials: credentials.clone(),
                auth: *callers,
            },
        }
    }
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
    /// The longest lease of a router, ms; alike on all nodes, since a new leader waits out what another granted.
    pub router_lease_max_ms: u64,
}

/// The log's files.
#[derive(Clone, Copy, Debug)]
pub struct LogFiles {
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Log entries between snapshots.
    pub snapshot_every: u64,
    /// Bytes of the log between snapshots, or those of the last snapshot if they are more.
    pub snapshot_bytes: u64,
}

impl Config {
    /// Checks what the log does not check itself.
    /// # Errors
    /// Every mistake, with its remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut mistakes = Vec::new();
        let mut check = |sound: bool, mistake: String| {
            if !sound {
                mistakes.push(mistake);
            }
        };
        for (door, address) in
            [("http", self.bind.http), ("grpc", self.bind.grpc), ("raft", self.bind.raft)]
        {
            check(
                self.security.credentials().is_some() || address.ip().is_loopback(),
                format!(
                    "bind.{door} = {address} is reachable from outside, and security.mode is dev-plaintext. Bind a loopback address"
                ),
            );
        }
        let Limits { queue_max, batch_max, in_flight_max, request_bytes_max, router_lease_max_ms } =
            self.limits;
        for (name, value, most) in [
            ("queue_max", queue_max, 1_000_000),
            ("batch_max", batch_max, 65_536),
            ("in_flight_max", in_flight_max, 64),
            ("request_bytes_max", request_bytes_max, 16 * 1024 * 1024),
        ] {
            let sound = (1..=most).contains(&value);
            check(sound, format!("limits.{name} = {value} must be from 1 to {most}"));
        }
        check(
            limit::ROUTER_LEASE_MS.contains(&router_lease_max_ms),
            format!(
                "limits.router_lease_max_ms = {router_lease_max_ms} must be from 100 to 3600000"
            ),
        );
        let groups = self.cluster.groups;
        check(
            (1..=holdfast_raft::GROUPS_MAX).contains(&groups),
            format!("cluster.groups = {groups} must be from 1 to {}", holdfast_raft::GROUPS_MAX),
        );
        let segment_bytes = self.log.segment_bytes;
        check(
            segment_bytes >= limit::SEGMENT_BYTES_MIN,
            format!(
                "log.segment_bytes = {segment_bytes} must be at least {}, so that the largest command fits in",
                limit::SEGMENT_BYTES_MIN
            ),
        );
        let Timeouts { global_timeout_ms, call_timeout_ms, .. } = self.timeouts;
        check(
            (1..=TIMEOUT_MS_MAX).contains(&global_timeout_ms),
            format!(
                "timeouts.global_timeout_ms = {global_timeout_ms} must be from 1 to {TIMEOUT_MS_MAX}"
            ),
        );
        check(
            call_timeout_ms >= 1 && call_timeout_ms <= global_timeout_ms,
            format!(
                "timeouts.call_timeout_ms = {call_timeout_ms} must be from 1 to global_timeout_ms = {global_timeout_ms}. Lower the first or raise the second"
            ),
        );
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("; ")) }
    }

    /// What the log is told.
    pub(crate) fn log_config(&self) -> holdfast_raft::Config {
        holdfast_raft::Config {
            node: self.node.id,
            cluster: self.cluster.name.clone(),
            dir: self.node.data_dir.clone(),
            bind: self.bind.raft,
            members: self.cluster.members.clone(),
            join: self.cluster.join,
            groups: self.cluster.groups,
            reads_format: crate::record::FORMAT,
            credentials: self.security.credentials().cloned(),
            heartbeat_ms: self.timeouts.heartbeat_ms,
            election_min_ms: self.timeouts.election_min_ms,
            election_max_ms: self.timeouts.election_max_ms,
            segment_bytes: self.log.segment_bytes,
            snapshot_every: self.log.snapshot_every,
            snapshot_bytes: self.log.snapshot_bytes,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            heartbeat_ms: 60,
            election_min_ms: 250,
            election_max_ms: 320,
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
            router_lease_max_ms: 300_000,
        }
    }
}

impl Default for LogFiles {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            snapshot_every: 50_000,
            snapshot_bytes: 128 * 1024 * 1024,
        }
    }
}

/// Bounds that no file changes. Each is tested at the limit and one past it.
pub mod limit {
    /// Bytes of commands in one log entry; a single command may be larger, up to its own limit.
    pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
    /// Bytes of one command as the log holds it: above the sum of what a transaction may hold.
    pub const COMMAND_BYTES_MAX: usize = 1536 * 1024;
    /// Bytes of a segment of the log, so that the largest command fits in.
    pub const SEGMENT_BYTES_MIN: u64 = 4 * 1024 * 1024;
    /// Callers waiting for a decision or an end at once.
    pub const WAITERS_MAX: usize = 100_000;
    /// Agent sessions at once.
    pub const SESSIONS_MAX: usize = 10_000;
    /// Services whose breakers have series of their own; the rest share one.
    pub const SERVICES_MEASURED_MAX: usize = 256;
    /// Answers, or calls, in one message of a session.
    pub const BATCH_PER_MESSAGE_MAX: usize = 1_024;
    /// Bytes of one message of a session.
    pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
    /// Watchers of moves at once.
    pub const WATCHERS_MAX: usize = 256;
    /// Moves that a watcher may be behind; then it is told and let go.
    pub const MOVES_BEHIND_MAX: usize = 4_096;
    /// Transactions that one page of a list holds.
    pub const LIST_MAX: usize = 1_000;
    /// How long commits are held for a restore point: at most, and if nobody says, ms.
    pub const HOLD_MS_MAX: u32 = 10_000;
    /// See [`HOLD_MS_MAX`].
    pub const HOLD_MS_DEFAULT: u32 = 5_000;
    /// Routers that attend at once.
    pub const ROUTERS_MAX: usize = 1_024;
    /// Bytes of a router's name.
    pub const ROUTER_BYTES_MAX: usize = 128;
    /// Bytes of a router's address.
    pub const ADDRESS_BYTES_MAX: usize = 256;
    /// What `limits.router_lease_max_ms` may be.
    pub const ROUTER_LEASE_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
    /// A session that is silent for so long ends, ms.
    pub const SILENCE_MAX_MS: u64 = 6_000;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Config {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            node: Node { id: 1, data_dir: PathBuf::from("unused") },
            cluster: Cluster {
                name: "bank".to_owned(),
                members: Vec::new(),
                join: false,
                groups: 1,
            },
            bind: Bind { http: loopback(7400), grpc: loopback(7401), raft: loopback(7402) },
            security: Security::DevPlaintext,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            log: LogFiles::default(),
            history: Retention::default(),
        }
    }

    #[test]
    fn the_shipped_values_are_sound_and_so_are_the_bounds() {
        assert_eq!(sound().check(), Ok(()));
        let mut config = sound();
        config.log.segment_bytes = limit::SEGMENT_BYTES_MIN;
        config.limits = Limits {
            queue_max: 1,
            batch_max: 1,
            in_flight_max: 1,
            request_bytes_max: 1,
            router_lease_max_ms: 100,
        };
        config.timeouts.call_timeout_ms = config.timeouts.global_timeout_ms;
        assert_eq!(config.check(), Ok(()));
        assert!(config.log_config().entry_bytes_max() >= limit::COMMAND_BYTES_MAX);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mut config = sound();
        config.bind.grpc = ([0, 0, 0, 0], 7401).into();
        config.log.segment_bytes = limit::SEGMENT_BYTES_MIN - 4096;
        config.limits.queue_max = 0;
        config.limits.in_flight_max = 65;
        config.limits.router_lease_max_ms = 3_600_001;
        config.timeouts.global_timeout_ms = TIMEOUT_MS_MAX + 1;
        config.timeouts.call_timeout_ms = 0;
        let mistakes = config.check().unwrap_err();
        assert_eq!(mistakes.split("; ").count(), 7, "{mistakes}");
        assert!(mistakes.contains("0.0.0.0:7401"), "{mistakes}");
    }
}
