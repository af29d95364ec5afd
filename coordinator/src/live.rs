//! What of the configuration may change while a node runs, and the hook by which its file is read again.
//!
//! The node knows its values and carries a change out; whoever started it knows the file, the environment and the flags, and says what
//! differs. So nothing here reads a file.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::{Config, Retention, Timeouts};

/// The values that count from the next request, entry or sheet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// From begin to decision, for transactions that do not say, ms.
    pub global_timeout_ms: u64,
    /// For one call to a participant, for transactions that do not say, ms.
    pub call_timeout_ms: u64,
    /// Commands in one log entry.
    pub batch_max: usize,
    /// What the history keeps.
    pub history: Retention,
}

/// What became of a key whose value in the file is another than the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It counts from now on; of a dry run, it would.
    TakenOver,
    /// It counts when the process is started again.
    AfterRestart,
    /// It does not count, and a restart would be turned away or of no effect.
    Refused,
}

impl Verdict {
    /// The word on the wire and in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::TakenOver => "taken_over",
            Self::AfterRestart => "after_restart",
            Self::Refused => "refused",
        }
    }
}

/// One key that says something else than what the process runs with. Secrets are masked by whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Difference {
    /// `section.key`.
    pub key: String,
    /// What counts; empty if nothing was said.
    pub from: String,
    /// What the file, the environment and the flags say now.
    pub to: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why, where it is not plain.
    pub cause: String,
}

/// Reads the configuration again.
pub trait Reread: Send + Sync + fmt::Debug {
    /// Every difference, carried out unless `dry_run`. May read files: never called where a thread must not wait.
    /// # Errors
    /// In words: what is said has mistakes. Nothing changed.
    fn reread(&self, dry_run: bool) -> Result<Vec<Difference>, String>;
}

/// The values as they count now.
#[derive(Debug)]
pub(crate) struct Now(watch::Sender<Live>);

impl Now {
    pub(crate) fn of(config: &Config) -> Arc<Self> {
        Arc::new(Self::from(Live::of(config)))
    }

    pub(crate) fn get(&self) -> Live {
        *self.0.borrow()
    }

    pub(crate) fn set(&self, live: Live) {
        self.0.send_replace(live);
    }

    /// The timeouts, with what counts now.
    pub(crate) fn timeouts(&self, configured: Timeouts) -> Timeouts {
        let Live { global_timeout_ms, call_timeout_ms, .. } = self.get();
        Timeouts { global_timeout_ms, call_timeout_ms, ..configured }
    }
}

impl From<Live> for Now {
    fn from(live: Live) -> Self {
        Self(watch::channel(live).0)
    }
}

impl Live {
    /// What `config` says.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            global_timeout_ms: config.timeouts.global_timeout_ms,
            call_timeout_ms: config.timeouts.call_timeout_ms,
            batch_max: config.limits.batch_max,
            history: config.history,
        }
    }

    /// `config` with these values instead of its own.
    pub(crate) fn over(self, config: &Config) -> Config {
        let mut config = config.clone();
        config.timeouts.global_timeout_ms = self.global_timeout_ms;
        config.timeouts.call_timeout_ms = self.call_timeout_ms;
        config.limits.batch_max = self.batch_max;
        config.history = self.history;
        config
    }
}
