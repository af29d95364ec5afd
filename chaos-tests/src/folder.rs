//! A folder for one story, removed behind it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::TempDir;

/// A folder below the system's temporary one, which other users may pass through: PostgreSQL does not run as root.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// Makes one.
    /// # Errors
    /// What the operating system says.
    pub fn make() -> anyhow::Result<Self> {
        let mut folder = tempfile::Builder::new().prefix("holdfast-story-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        folder.disable_cleanup(std::env::var_os("HOLDFAST_KEEP").is_some());
        Ok(Self(folder))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file in it.
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
