//! How servers are reached: connections, their login, and the pools that share them among clients.

mod connect;
mod pool;
mod server;
mod talk;

pub(crate) use connect::{Account, cancel, connect};
pub(crate) use pool::{Bounds, Pool};
pub(crate) use server::{Reading, Server, Settings, put_name};
pub(crate) use talk::{Reply, Row, literal, messages, tag_of};
