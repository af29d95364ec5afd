//! Checkers: each holds a history against one promise, and is itself tested on histories with planted bugs.
//!
//! They see what anybody outside sees: what clients were told and when, what the books say by plain SQL, what each node says of
//! itself. Those that the protocol simulator uses as well live there: [`linear`] and [`replay`].

pub mod exactly_once;
pub mod history;
pub mod money;

pub use holdfast_sim::checker::{linear, replay};
