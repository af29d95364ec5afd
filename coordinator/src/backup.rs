//! A backup: one file that holds the state of a node whole, says what is in it, and shows any byte that changed.
//!
//! `BackupHead` in admin.proto describes the file. It is made of a snapshot, so it is the state after one entry of the log, whichever
//! node it is taken from; reading it back needs no running node. What is restored is the beginning of a *new* founding: nodes
//! of the former one are turned away, since their logs name other entries alike.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use holdfast_proto::v1;
use holdfast_raft::{SavedSnapshot, SnapshotContent, found_from, parse_snapshot};
use holdfast_txn::{Machine, Status};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::{Config, Coordinator, clock::Clock, record};

const MAGIC: &[u8; 8] = b"HFBACKUP";
/// The only format so far.
const FORMAT: u32 = 1;
/// Of the head: sixteen parts of a few hundred bytes are far below.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Of the whole file; it is read whole.
const FILE_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
/// Of one message while it is sent.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// Why a backup is not made, not believed or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// HF1301: the file is damaged, or no backup.
    #[error("HF1301 {}: {cause}. Do not restore it; take another backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// HF1302: the file cannot be read or written.
    #[error("HF1302 {}: {source}. Check the path, the rights and the space", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// HF1303: the directory cannot be made of it.
    #[error("HF1303 cannot restore: {cause}")]
    Restore {
        /// Why, with the remedy.
        cause: String,
    },
    /// HF1304: this node cannot give one now.
    #[error("HF1304 no backup of this node: {cause}. Ask another node, or try again")]
    Unready {
        /// Why.
        cause: String,
    },
}

/// A backup that was read whole, decoded, and found sound.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What its head says.
    pub head: v1::BackupHead,
    /// Of the file.
    pub bytes: u64,
    /// Transactions that are open in it, and finished ones.
    pub open: usize,
    /// As far as they are remembered.
    pub finished: usize,
}

/// A backup on its way to whoever asked for it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    front: Vec<u8>,
    /// One a group, in their order.
    snapshots: Vec<SavedSnapshot>,
}

impl Coordinator {
    /// The state of this node as a backup: of each group after one entry of its log. Groups know nothing of each other, so nothing is
    /// torn apart by their being taken one after another.
    pub(crate) async fn backup(&self) -> Result<Outgoing, BackupError> {
        let unready = |cause: String| BackupError::Unready { cause };
        let mut snapshots = Vec::new();
        for group in self.each_group() {
            if group.leader().is_none() {
                // Also one that was removed from the cluster: its state stands still.
                return Err(unready("it knows no leader, so its state may be old".to_owned()));
            }
            let saved = group.log.save().await;
            snapshots.push(saved.map_err(|error| unready(error.to_string()))?);
        }
        let founding = self.log().status().founding;
        let config = self.config().clone();
        let made = tokio::task::spawn_blocking(move || {
            let parts = snapshots.iter().map(part_of).collect::<Result<_, _>>().map_err(unready)?;
            let head = v1::BackupHead {
                format: FORMAT,
                cluster: config.cluster.name,
                founding,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                node: config.node.id,
                made_at_ms: Clock::new().now().0,
                parts,
            };
            Ok(Outgoing { front: front_of(&head), snapshots })
        });
        made.await.map_err(|error| unready(error.to_string()))?
    }
}

/// What the head says of a group's snapshot, of which every record is read.
fn part_of(snapshot: &SavedSnapshot) -> Result<v1::BackupPart, String> {
    let whole = snapshot.chunk(0, usize::MAX).map_err(|error| error.to_string())?;
    let content = parse_snapshot(&whole)?;
    let machine = machine_of(&content)?;
    Ok(v1::BackupPart {
        group: content.group,
        index: content.position.index,
        term: content.position.term,
        state_hash: machine.state_hash().to_string(),
        bytes: snapshot.bytes,
    })
}

fn front_of(head: &v1::BackupHead) -> Vec<u8> {
    let head = head.encode_to_vec();
    let mut front = MAGIC.to_vec();
    front.extend_from_slice(&u32::try_from(head.len()).expect("a head is small").to_le_bytes());
    front.extend_from_slice(&head);
    front
}

impl Outgoing {
    /// Hands the file out piece by piece until `send` wants no more. Blocks.
    pub(crate) fn write(self, mut send: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
        let mut hasher = Sha256::new();
        hasher.update(&self.front);
        if !send(self.front) {
            return Ok(());
        }
        for snapshot in &self.snapshots {
            let mut offset = 0;
            loop {
                let chunk = snapshot.chunk(offset, CHUNK_BYTES)?;
                if chunk.is_empty() {
                    break;
                }
                offset += chunk.len() as u64;
                hasher.update(&chunk);
                if !send(chunk) {
                    return Ok(());
                }
            }
        }
        send(hasher.finalize().to_vec());
        Ok(())
    }
}

fn machine_of(content: &SnapshotContent<'_>) -> Result<Machine, String> {
    if content.state.is_empty() {
        return Ok(Machine::new());
    }
    let (snapshot, _) =
        record::decode_snapshot(content.state).map_err(|fault| fault.to_string())?;
    Ok(Machine::restore(snapshot))
}

/// Reads a backup whole: its checksums, every record in it, and the hash of the state. Needs no running node. Blocks.
/// # Errors
/// [`BackupError::Damaged`] says what is wrong, [`BackupError::Io`] that it cannot be read.
pub fn verify(path: &Path) -> Result<Verified, BackupError> {
    let bytes = read(path)?;
    let (verified, _) = check(&bytes).map_err(|cause| damaged(path, cause))?;
    Ok(verified)
}

/// Makes a directory for the node of `config` out of a backup, after verifying it; returns the number of the new founding. The
/// node starts from it as the only member of a cluster, to which others are added.
/// # Errors
/// [`BackupError`]; a directory that is not empty is left as it is.
pub async fn restore(path: &Path, config: &Config) -> Result<(Verified, u64), BackupError> {
    let at = path.to_owned();
    let failed = |cause: String| BackupError::Restore { cause };
    let bytes = tokio::task::spawn_blocking(move || read(&at))
        .await
        .map_err(|error| failed(error.to_string()))??;
    let (verified, contents) = check(&bytes).map_err(|cause| damaged(path, cause))?;
    let log_config = config.log_config();
    if contents.len() != log_config.groups as usize {
        return Err(failed(format!(
            "the backup holds {} Raft groups, cluster.groups is {}",
            contents.len(),
            log_config.groups
        )));
    }
    let founding =
        found_from(&log_config, &contents).await.map_err(|error| failed(error.to_string()))?;
    Ok((verified, founding))
}

fn damaged(path: &Path, cause: String) -> BackupError {
    BackupError::Damaged { path: path.to_owned(), cause }
}

fn read(path: &Path) -> Result<Vec<u8>, BackupError> {
    let io = |source| BackupError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if length > FILE_BYTES_MAX {
        let cause = format!("the file has {length} bytes, more than the limit of {FILE_BYTES_MAX}");
        return Err(damaged(path, cause));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

fn check(bytes: &[u8]) -> Result<(Verified, Vec<SnapshotContent<'_>>), String> {
    let (covered, sum) =
        bytes.split_last_chunk::<32>().ok_or("the file is shorter than a backup")?;
    if covered.get(..MAGIC.len()) != Some(MAGIC) {
        return Err("the file is no backup of this format".to_owned());
    }
    if Sha256::digest(covered)[..] != sum[..] {
        return Err("the checksum of the file does not match: it was damaged or cut".to_owned());
    }
    let rest = &covered[MAGIC.len()..];
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("the file ends within its head")?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > HEAD_BYTES_MAX {
        return Err(format!("the head announces {length} bytes"));
    }
    let (head, mut parts) = rest.split_at_checked(length).ok_or("the file ends within its head")?;
    let head = v1::BackupHead::decode(head).map_err(|error| error.to_string())?;
    if head.format != FORMAT {
        return Err(format!("the backup has format {}; this version reads {FORMAT}", head.format));
    }
    let mut contents = Vec::new();
    let (mut open, mut finished) = (0, 0);
    for (part, group) in head.parts.iter().zip(0..) {
        let bytes = usize::try_from(part.bytes).map_err(|error| error.to_string())?;
        let (snapshot, behind) =
            parts.split_at_checked(bytes).ok_or("the file ends within a part")?;
        parts = behind;
        let content = parse_snapshot(snapshot)?;
        let machine = machine_of(&content)?;
        let at = (content.group, content.position.index, content.position.term);
        if at != (group, part.index, part.term) || part.group != group {
            return Err(format!(
                "part {group} is of {}, and not of what the head says",
                content.position
            ));
        }
        let hash = machine.state_hash().to_string();
        if hash != part.state_hash {
            return Err(format!("the state has hash {hash}, its head says {}", part.state_hash));
        }
        let census = machine.census();
        let count = |of: bool| {
            let counted =
                census.iter().filter(|(status, _): &(&Status, &usize)| status.is_final() == of);
            counted.map(|(_, count)| count).sum::<usize>()
        };
        open += count(false);
        finished += count(true);
        contents.push(content);
    }
    if contents.is_empty() || !parts.is_empty() {
        return Err(format!(
            "the file holds {} parts, and {} bytes behind",
            contents.len(),
            parts.len()
        ));
    }
    Ok((Verified { head, bytes: bytes.len() as u64, open, finished }, contents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_backup_is_read_at_its_limit_and_refused_one_past_it() {
        let announcing = |length: usize| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(u32::try_from(length).unwrap().to_le_bytes());
            let sum = Sha256::digest(&bytes);
            bytes.extend(sum);
            check(&bytes).err().unwrap()
        };
        assert_eq!(announcing(HEAD_BYTES_MAX), "the file ends within its head");
        assert_eq!(announcing(HEAD_BYTES_MAX + 1), "the head announces 65537 bytes");
    }

    #[test]
    fn a_file_that_is_too_large_for_a_backup_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Without a byte of it on the disk.
        file.as_file().set_len(FILE_BYTES_MAX + 1).unwrap();
        let told = read(file.path()).err().unwrap().to_string();
        assert!(told.contains("34359738369 bytes, more than the limit of 34359738368"), "{told}");
    }
}
