//! The formats of Holdfast on the wire and on disk; no logic.
//!
//! One package, `holdfast.v1`, generated from `proto/holdfast/v1/*.proto`, where every field is documented.

mod calls;
pub mod fields;
mod pairs;
mod varint;

pub use calls::{HeardCall, TRACE_CONTEXT_BYTES};
pub use pairs::Pairs;
pub use varint::{VARINT_WORD_BITS, varint_word, write_varint, write_word};

/// The largest HTTP/2 frame that coordinators, agents and clients take, bytes. Each is a write of its own to whoever sends it, and most entries of
/// the log are larger than the 16 KiB that are usual.
pub const FRAME_BYTES_MAX: u32 = 256 * 1024;

/// Messages and services of `holdfast.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::restriction,
    clippy::pedantic,
    reason = "generated from the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("holdfast.v1");
}

/// The compiled descriptors of every file, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
