//! Between replicas: gRPC over three connections to each peer, so that neither entries nor snapshots delay a heartbeat.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod wire;

use crate::store::record::ENTRY_BYTES_MAX;

/// Connections that are kept: three to each member, and some to members that are gone.
pub(crate) const CHANNELS_MAX: usize = 64;
/// The largest message: one entry at its limit, or several smaller ones, and what describes them.
pub(crate) const MESSAGE_BYTES_MAX: usize = ENTRY_BYTES_MAX + 8 * 1024 * 1024;
/// Bytes of one chunk of a snapshot.
pub(crate) const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// HTTP/2 windows: what may be under way unread on one stream and on one connection.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Whether a drill holds this node apart from its peers: what arrives is turned away, and nothing goes out.
fn is_cut_off() -> bool {
    holdfast_fault::held::measure(holdfast_fault::Held::Isolated).is_some()
}
