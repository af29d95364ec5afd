//! Backup, verify, restore: the state of a cluster as one file.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use holdfast_client::Client;
use holdfast_coordinator::backup::{self, BackupError, Verified};

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
    let failed = |source| BackupError::Io { path: to.to_owned(), source };
    let part = to.with_extension("part");
    if to.try_exists().map_err(failed)? {
        let taken = "there is a file of this name, and a backup replaces none";
        return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, taken)).into());
    }
    let mut file = File::create(&part).map_err(failed)?;
    let received = receive(client, addresses, &mut file).await;
    let written = received.and_then(|()| Ok(file.sync_all().map_err(failed)?));
    let verified = match written {
        Ok(()) => check(part.clone()).await,
        Err(error) => Err(error),
    };
    let verified = match verified {
        Ok(verified) => verified,
        Err(error) => {
            // What is not whole is not kept under any name.
            drop(fs::remove_file(&part));
            return Err(error);
        }
    };
    fs::rename(&part, to).map_err(failed)?;
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    show(to, &verified, None, output)
}

async fn receive(client: &Client, addresses: &[String], file: &mut File) -> anyhow::Result<()> {
    let mut last = None;
    for address in addresses {
        match client.backup_of(address).await {
            Ok(mut chunks) => {
                let (mut bytes, mut said) = (0u64, 0u64);
                while let Some(chunk) = chunks.message().await.context("the backup broke off")? {
                    file.write_all(&chunk.data)?;
                    bytes += chunk.data.len() as u64;
                    if bytes - said >= SAY_EVERY_BYTES {
                        said = bytes;
                        exit::tell(&format!("{} MiB", bytes / (1024 * 1024)));
                    }
                }
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no address was given"), anyhow::Error::from))
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
