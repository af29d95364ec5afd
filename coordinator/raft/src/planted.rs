//! Bugs that the simulated network plants in the real log, each of which its oracle must find. They are there with the feature `simulation` alone.

use std::cell::Cell;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Entries and votes are acknowledged first and written later, as on a disk whose sync does nothing.
    FsyncSkipped,
    /// A node takes what is meant for another directory of its number.
    IncarnationIgnored,
}

impl Planted {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::FsyncSkipped, Self::IncarnationIgnored];

    /// Its name in the reference.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FsyncSkipped => "fsync-skipped",
            Self::IncarnationIgnored => "incarnation-ignored",
        }
    }
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Plants a bug in every log that runs on this thread, or takes it out.
pub fn plant(bug: Option<Planted>) {
    PLANTED.set(bug);
}

/// Whether that bug is planted here.
pub(crate) fn is_planted(bug: Planted) -> bool {
    PLANTED.get() == Some(bug)
}
