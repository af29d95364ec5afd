//! The protocol simulator: the real minds in a modelled world, one seed one run.
//!
//! The machine, the barrier, the ledger and the router's rules are those that the product runs. Around them everything is a
//! model: the log at its interface, the dispatcher, agents and databases, clients, people, the network. One queue of
//! events, one seed for all chance, so a run is repeated bit by bit from its seed.
//!
//! ```
//! use holdfast_sim::{Words, run};
//!
//! let first = run(7, None, Words::None);
//! assert_eq!(first.broken, None);
//! assert_eq!(first.trace_hash, run(7, None, Words::None).trace_hash);
//! ```
//!
//! What a run is held to stands in `invariant/`, a file for each promise. [`Mutant`] plants bugs, each of which must be found.

mod campaign;
mod chance;
pub mod checker;
mod happening;
pub mod invariant;
mod mutant;
mod queue;
mod run;
mod settings;
mod trace;
mod workload;
mod world;

pub use campaign::{Campaign, Violation, campaign};
pub use happening::{Counts, Happening};
pub use invariant::Broken;
pub use mutant::Mutant;
pub use run::{Run, run};
pub use settings::{Settings, Strike};
pub use trace::Words;
