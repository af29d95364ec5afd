//! The coordinator process: doors, proposer, replica and dispatcher around the transaction machine.

pub mod config;
mod coordinator;
pub mod http;
pub mod rpc;

pub use config::Config;
pub use coordinator::{
    Applied, Coordinator, Freshness, NodeStatus, ProposeError, ServeError, StartError, WaitEnd,
    WaitUntil, Waited,
};
