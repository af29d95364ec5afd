//! The promises that a run is held to, one file each; a broken one ends the run.

pub(crate) mod alike;
pub(crate) mod answers;
pub(crate) mod bounds;
pub(crate) mod counters;
pub(crate) mod deeds;
pub(crate) mod equal;
pub(crate) mod expiry;
pub(crate) mod known;
pub(crate) mod late;
pub(crate) mod live;
pub(crate) mod money;
pub(crate) mod moves;
pub(crate) mod opposite;
pub(crate) mod outbox;
pub(crate) mod people;
pub(crate) mod prepared;
pub(crate) mod quiet;
pub(crate) mod repeats;
pub(crate) mod rules;
pub(crate) mod told;
pub mod vacuous;

/// A promise that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its number in the design, for example `I4`.
    pub promise: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Whether a promise holds.
pub(crate) type Checked = Result<(), Broken>;

/// Fails with `detail` unless `holds`.
pub(crate) fn hold(holds: bool, promise: &'static str, detail: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Broken { promise, detail: detail() }) }
}
