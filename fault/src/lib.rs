//! Faults that a process holds against itself, at the places where a shell touches the world.
//!
//! Two kinds, for two purposes:
//!
//! - [`kill_point`]: named sites at which a test makes the process abort. They exist in debug builds and with the feature `armed`;
//!   in an ordinary release build [`kill_point::reached`] is empty, and nothing in the environment can make it otherwise.
//! - [`held`]: what a drill asks for. Nothing is held in a process whose configuration did not consent. Each fault is a
//!   deadline on this process's own steady clock, so it ends by itself, whatever becomes of the one who asked for it.
//!
//! A shell asks at its site; what it then does (sleep, drop, abort) is the shell's own affair and stands where it happens.

pub mod held;
pub mod kill_point;
mod site;

pub use held::Held;
pub use kill_point::reached;
pub use site::{Role, Site};
