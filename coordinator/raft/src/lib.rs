//! A replicated log of opaque entries: the only crate that knows openraft and the log store.

mod config;
mod consensus;
mod convert;
mod error;
mod leadership;
mod log;
mod machine;
mod network;
mod position;
mod status;
mod store;

pub use self::{
    config::{Config, Member, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN},
    error::{ControlError, OpenError, ProposeError, StoreError},
    leadership::Leadership,
    log::Log,
    machine::StateMachine,
    position::Position,
    status::{LogStatus, MemberStatus, Role},
};
