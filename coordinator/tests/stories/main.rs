//! A coordinator over real sockets and a real log, with agents that do as the story says.

mod agent;
mod budget;
mod cluster;
mod failover;
mod saga;
mod sessions;
mod tcc;
