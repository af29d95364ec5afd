//! A replicated log of opaque entries: the only crate that knows openraft and the log store.
//!
//! A [`Log`] is one replica. Its user hands it a [`StateMachine`] and entries of bytes; the log brings every entry to
//! every replica in one order, and tells the proposer what applying it answered. What an entry means is not known here.
//!
//! # What is promised
//!
//! - **Acknowledged is durable.** [`Log::propose`] returns `Ok` when the entry is synced on a quorum of disks and
//!   applied here. It survives the loss of any minority, and a crash of all.
//! - **Three answers.** [`ProposeError::Unknown`] is the only error after which an entry may be applied; it is applied
//!   at most once. Every other error is given before anything was appended, and then nothing happened, ever.
//! - **A leader knows everything.** [`Leadership::leads_here`] turns true only when this node, as the leader of a term,
//!   has applied its own first entry of that term, and with it all that any earlier leader acknowledged. It turns false
//!   when no quorum was heard of for twice the longest election wait. It is a reason to begin work, not a proof at the
//!   moment of use: that is what [`Log::read_barrier`] and the outcome of a proposal are.
//! - **Equal logs, equal states.** Every replica applies the same entries in the same order to its state machine,
//!   beginning from nothing or from a snapshot.
//! - **Doubt stops the process.** A write of the log or any sync that fails, an entry that cannot be read back, a state
//!   machine that panics: the process aborts, at once and without retry, since the kernel may report success the second
//!   time for bytes that it has dropped. Damage that is found at the start is refused with file, offset, cause and remedy.
//!   A snapshot that cannot be written leaves no doubt: the log holds what would be in it, and it is tried again.
//! - **Everything is bounded.** Proposals under way (16,384 and 64 MiB), entries in the writer's queue (64 MiB), recent
//!   entries in memory (32 MiB), one message (16 MiB), one entry (8 MiB), one chunk of a snapshot (1 MiB).
//!
//! # What is on disk
//!
//! ```text
//! LOCK        locked while a process has the directory
//! IDENTITY    node, cluster, and which founding of the cluster
//! log/        00000000000000000001.log ...   segments, each filled with zeros ahead of its use, and used again
//! snapshot/   <index>-<term>.snap            the last snapshot
//! ```
//!
//! A segment is a head of 64 bytes and records; the first record of a segment repeats the facts of the log (vote, last,
//! purged, committed), so that older segments can go; the last one seals it. Votes, truncations and purges are records
//! among the entries, so that their order needs no further thought. A record has 40 bytes of head and a checksum over
//! its content, its place and the *life* of its segment: a record of an earlier life of the same file is never taken
//! for one of this.
//!
//! One thread writes. It takes everything queued, writes it at once, syncs once, and answers everyone: under load,
//! hundreds of entries share a sync. Each record names the group that it was written with, and a group is written only
//! when the one before is on disk. So, at the start, bytes that are no record are a torn tail, and are cut, if no record
//! of a *later* group stands behind them; otherwise something durable is damaged, and the log does not open. No log can
//! tell a torn last group from one that rotted on the disk: such a node forgets entries that it had acknowledged to a
//! leader. The others still hold them.
//!
//! # What is on the wire
//!
//! `raft.proto`: a stream of appends to each follower, answered in order, so that many are under way; heartbeats, on a stream
//! too, and votes on a connection of their own, snapshots on another. A peer is let in if it names this cluster, its founding,
//! this group, this node, and a member, and with [`Config::credentials`] only if its certificate names that very
//! member. Without them nothing is encrypted: bind to loopback.
//!
//! # What is deliberately absent
//!
//! - **Time limits on proposals.** Without a quorum a proposal waits; only its caller knows how long is too long.
//! - **Order among proposals.** Those that are under way together are appended in any order.
//! - **A way to repair a log.** A damaged or emptied replica is replaced by an empty one: a node that forgot its vote could
//!   vote twice. The membership records the incarnation of each member's directory, so that it cannot.
//!
//! # Metrics
//!
//! `holdfast_log_fsyncs_total`, `holdfast_log_bytes_total`, `holdfast_log_fsync_seconds`, `holdfast_raft_term`,
//! `holdfast_raft_leader_changes_total`, `holdfast_raft_applied_index`, `holdfast_raft_snapshot_failures_total`.

mod archive;
mod background;
#[doc(hidden)]
pub mod bench;
mod compaction;
mod config;
mod consensus;
mod convert;
mod enroll;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod heartbeat;
mod leadership;
mod log;
mod machine;
mod membership;
mod network;
mod offline;
mod open;
#[cfg(feature = "simulation")]
mod planted;
mod position;
mod status;
mod store;

pub use self::{
    archive::{SavedSnapshot, SnapshotContent, found_from, parse_snapshot},
    background::{Leisure, stand_back},
    config::{Config, GROUPS_MAX, MEMBERS_MAX, Member, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN},
    error::{ChangeError, ControlError, OpenError, ProposeError, StoreError},
    leadership::Leadership,
    log::Log,
    machine::{Capture, StateMachine},
    membership::LAG_MAX,
    offline::{StoppedLog, read_stopped},
    position::Position,
    status::{LogStatus, MemberStatus, Role},
};
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use self::{
    network::wire::seed_disks,
    planted::{Planted, plant},
};

/// What a log filter should say of the libraries below this crate: openraft warns of every attempt at a peer that is gone, which
/// this crate says once.
pub const LOG_DIRECTIVE: &str = "openraft=error";
