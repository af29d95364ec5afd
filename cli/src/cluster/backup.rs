//! Backup, verify, restore: the state of a cluster as one file.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use holdfast_client::{Client, wire::BackupChunk};
use holdfast_coordinator::backup::{self, BackupError, Verified};
use tonic::Streaming;

use crate::{
    config::{self, ConfigArgs, CoordinatorConfig},
    exit,
    output::{self, Output},
};

/// Between two words about the progress, bytes.
const SAY_EVERY_BYTES: u64 = 64 * 1024 * 1024;

/// Writes the state of the first node that answers into a new file, and verifies it there.
pub(super) async fn take(
    client: &Client,
    addresses: &[String],
    to: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let draft = Draft::of(to)?;
    let mut last = anyhow::anyhow!("no address was given");
    for address in addresses {
        match client.backup_of(address).await {
            Ok(chunks) => {
                let verified = draft.fill(chunks).await?;
                draft.keep()?;
                return show(to, &verified, None, output);
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// A new file on its way to its name. What is not kept is kept under no name.
#[derive(Debug)]
pub(super) struct Draft {
    to: PathBuf,
    part: PathBuf,
    file: File,
}

impl Draft {
    /// # Errors
    /// HF1302: there is a file of this name, or none can be made.
    pub(super) fn of(to: &Path) -> Result<Self, BackupError> {
        if to.try_exists().map_err(|source| failed(to, source))? {
            let taken = "there is a file of this name, and a backup replaces none";
            return Err(failed(to, io::Error::new(io::ErrorKind::AlreadyExists, taken)));
        }
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let file = File::create(&part).map_err(|source| failed(to, source))?;
        Ok(Self { to: to.to_owned(), part: part.into(), file })
    }

    /// Writes what comes, and verifies it.
    /// # Errors
    /// It breaks off, cannot be written, or is not sound.
    pub(super) async fn fill(
        &self,
        mut chunks: Streaming<BackupChunk>,
    ) -> anyhow::Result<Verified> {
        let (mut bytes, mut said) = (0u64, 0u64);
        while let Some(chunk) = chunks.message().await.context("the backup broke off")? {
            self.write(&chunk.data)?;
            bytes += chunk.data.len() as u64;
            if bytes - said >= SAY_EVERY_BYTES {
                said = bytes;
                exit::tell(&format!("{} MiB", bytes / (1024 * 1024)));
            }
        }
        self.sync()?;
        check(self.part.clone()).await
    }

    /// Writes on.
    /// # Errors
    /// HF1302.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), BackupError> {
        (&self.file).write_all(bytes).map_err(|source| failed(&self.to, source))
    }

    fn sync(&self) -> Result<(), BackupError> {
        self.file.sync_all().map_err(|source| failed(&self.to, source))
    }

    /// Gives the file its name, durably.
    /// # Errors
    /// HF1302.
    pub(super) fn keep(self) -> Result<(), BackupError> {
        self.sync()?;
        let folder = self.to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let named = fs::rename(&self.part, &self.to)
            .and_then(|()| File::open(folder))
            .and_then(|folder| folder.sync_all());
        named.map_err(|source| failed(&self.to, source))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once it has its name there is none.
        drop(fs::remove_file(&self.part));
    }
}

fn failed(to: &Path, source: io::Error) -> BackupError {
    BackupError::Io { path: to.to_owned(), source }
}

async fn check(path: PathBuf) -> anyhow::Result<Verified> {
    Ok(tokio::task::spawn_blocking(move || backup::verify(&path)).await??)
}

/// Verifies a file.
pub(super) async fn verify(file: PathBuf, output: Output) -> anyhow::Result<ExitCode> {
    let verified = check(file.clone()).await?;
    show(&file, &verified, None, output)
}

/// Makes a directory out of a file.
pub(super) async fn restore(
    file: &Path,
    config: &ConfigArgs,
    data_dir: Option<String>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let loaded = config::load::<CoordinatorConfig>(&config.inputs(vec![(
        "node.data_dir",
        data_dir,
        "--data-dir",
    )]))?;
    let (verified, founding) = backup::restore(file, &loaded.config.node).await?;
    show(&loaded.config.node.node.data_dir, &verified, Some(founding), output)
}

fn show(
    path: &Path,
    verified: &Verified,
    founding: Option<u64>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let Verified { head, bytes, open, finished } = verified;
    let parts: Vec<_> = head
        .parts
        .iter()
        .map(|part| {
            serde_json::json!({"group": part.group, "index": part.index, "term": part.term, "state_hash": part.state_hash, "bytes": part.bytes})
        })
        .collect();
    match output {
        Output::Json => output::print_json(&serde_json::json!({
            "path": path.display().to_string(),
            "bytes": bytes,
            "cluster": head.cluster,
            "founding": format!("{:016x}", head.founding),
            "new_founding": founding.map(|number| format!("{number:016x}")),
            "format": head.format,
            "version": head.version,
            "node": head.node,
            "made_at_ms": head.made_at_ms,
            "open_transactions": open,
            "finished_transactions": finished,
            "parts": parts,
        }))?,
        Output::Table => {
            let mut lines = vec![
                format!("{}: sound, {bytes} bytes", path.display()),
                format!(
                    "cluster   {}, founding {:016x}, taken from node {}",
                    head.cluster, head.founding, head.node
                ),
                format!("holds     {open} open transactions, {finished} finished ones"),
            ];
            for part in &head.parts {
                lines.push(format!(
                    "group {}   up to {}@{}, state {}",
                    part.group, part.index, part.term, part.state_hash
                ));
            }
            if let Some(founding) = founding {
                lines.push(format!(
                    "restored  as founding {founding:016x}; start the node, then add the others: holdfast cluster add"
                ));
            }
            output::print(&lines.join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
