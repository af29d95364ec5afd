//! Where a drill of this user says that it runs, and leaves its last report: files in the system's temporary folder.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// A drill that runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Running {
    pub(crate) drill: String,
    /// The runner.
    pub(crate) pid: i32,
    pub(crate) doors: Vec<String>,
    /// Each fault ends by itself after so long.
    pub(crate) held_ms: u64,
}

fn path(name: &str) -> PathBuf {
    let user = nix::unistd::geteuid();
    std::env::temp_dir().join(format!("holdfast-drill-{user}-{name}.json"))
}

/// The last report of this user.
pub(crate) fn last_report() -> PathBuf {
    path("report")
}

/// Says that a drill runs; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Notice(PathBuf);

impl Notice {
    /// Writes it.
    /// # Errors
    /// The temporary folder cannot be written.
    pub(crate) fn put(running: &Running) -> anyhow::Result<Self> {
        let path = path("running");
        // Never through a link that somebody else has put there.
        let _ = fs::remove_file(&path);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("writing {}", path.display()))?;
        file.write_all(serde_json::to_string(running)?.as_bytes())?;
        Ok(Self(path))
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The drill of this user that runs, or that died without a word.
pub(crate) fn running() -> Option<Running> {
    serde_json::from_str(&fs::read_to_string(path("running")).ok()?).ok()
}
