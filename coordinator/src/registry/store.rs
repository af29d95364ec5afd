//! The policies of this node: a watched value with a file behind it.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_proto::v1;
use prost::Message as _;
use tokio::sync::{Mutex, watch};

use super::{
    callers::{Callers, Pass, TurnedAway},
    policy::{Policies, limit},
};

/// What stands before the document: a mark with the format, then the checksum of the rest.
const MARK: [u8; 8] = *b"HFPOLIC1";

/// The current policies. Everybody who obeys them watches.
#[derive(Debug)]
pub(crate) struct Registry {
    file: PathBuf,
    current: watch::Sender<Arc<Policies>>,
    /// One change at a time: read, change, write, tell.
    changing: Mutex<()>,
    callers: Arc<Callers>,
}

impl Registry {
    /// Reads what is in `dir`. A file that cannot be read is moved aside: the other nodes have the same document and send
    /// it, and a node that serves without its policies is better than one that does not serve.
    pub(crate) fn open(dir: &Path) -> Self {
        let file = dir.join("services.policy");
        let policies = match read(&file) {
            Ok(policies) => policies.unwrap_or_default(),
            Err(fault) => {
                let aside = dir.join("services.policy.unreadable");
                let moved = fs::rename(&file, &aside);
                tracing::error!(file = %file.display(), %fault, moved = moved.is_ok(), "HF2601 the policies of services cannot be read; they are moved aside, and the other nodes' count");
                Policies::default()
            }
        };
        let current = watch::channel(Arc::new(policies)).0;
        Self { file, current, changing: Mutex::default(), callers: Arc::new(Callers::new()) }
    }

    pub(crate) fn current(&self) -> Arc<Policies> {
        Arc::clone(&self.current.borrow())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Policies>> {
        self.current.subscribe()
    }

    /// Lets a request of `caller` in at a door; `None`: nothing was decided about it.
    /// # Errors
    /// [`TurnedAway`]: it is one past a bound.
    pub(crate) fn admit(&self, caller: &str) -> Result<Option<Pass>, TurnedAway> {
        let policies = self.current.borrow();
        if policies.callers.is_empty() {
            return Ok(None);
        }
        self.callers.admit(&policies, caller)
    }

    /// Every caller with a policy, as it goes at this node.
    pub(crate) fn callers(&self) -> Vec<v1::CallerState> {
        self.callers.seen(&self.current.borrow())
    }

    /// Changes the policies by what `change` makes of the current ones; they are on disk before anybody obeys them.
    /// # Errors
    /// Those of `change`; that the disk failed is made one by `failed`, and nothing is changed then.
    pub(crate) async fn change<E>(
        &self,
        change: impl FnOnce(&Policies) -> Result<Policies, E>,
        failed: impl FnOnce(io::Error) -> E,
    ) -> Result<Arc<Policies>, E> {
        let _turn = self.changing.lock().await;
        let next = Arc::new(change(&self.current())?);
        let (file, written) = (self.file.clone(), Arc::clone(&next));
        let write = tokio::task::spawn_blocking(move || write(&file, &written));
        write.await.unwrap_or_else(|fault| Err(io::Error::other(fault))).map_err(failed)?;
        self.current.send_replace(Arc::clone(&next));
        Ok(next)
    }

    /// Takes `other` if it is newer. Answers what counts now.
    /// # Errors
    /// The disk failed; nothing is changed.
    pub(crate) async fn adopt(&self, other: Policies) -> io::Result<Arc<Policies>> {
        if other.version <= self.current().version {
            return Ok(self.current());
        }
        let newer = |current: &Policies| {
            Ok(if other.version > current.version { other } else { current.clone() })
        };
        self.change(newer, |fault| fault).await
    }
}

fn read(file: &Path) -> Result<Option<Policies>, String> {
    let bytes = match fs::metadata(file) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault.to_string()),
        Ok(known) if known.len() > limit::DOCUMENT_BYTES_MAX as u64 + 12 => {
            return Err(format!("it has {} bytes", known.len()));
        }
        Ok(_) => fs::read(file).map_err(|fault| fault.to_string())?,
    };
    let rest = bytes.strip_prefix(&MARK).ok_or("it does not begin as such a file does")?;
    let (sum, document) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
    if crc32fast::hash(document) != u32::from_le_bytes(*sum) {
        return Err("its checksum is wrong".to_owned());
    }
    let document = v1::PolicyDocument::decode(document).map_err(|fault| fault.to_string())?;
    Policies::from_wire(document).map(Some).map_err(|fault| fault.message)
}

/// Whole or not at all: beside the file, synced, then in its place, and the folder synced.
fn write(file: &Path, policies: &Policies) -> io::Result<()> {
    let document = policies.to_wire().encode_to_vec();
    let beside = file.with_extension("policy.new");
    let mut new = fs::File::create(&beside)?;
    new.write_all(&MARK)?;
    new.write_all(&crc32fast::hash(&document).to_le_bytes())?;
    new.write_all(&document)?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::policy::Version;

    fn policies(revision: u64) -> Policies {
        let policy = v1::ServicePolicy {
            service: "deposit".into(),
            calls_per_s: revision as u32,
            ..Default::default()
        };
        let mut policies = Policies::default().with_service(policy).unwrap();
        policies.version = Version { term: 1, revision };
        policies
    }

    #[tokio::test]
    async fn what_was_adopted_is_there_after_a_restart_and_the_older_never_wins() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path());
        registry.adopt(policies(2)).await.unwrap();
        assert_eq!(*registry.adopt(policies(1)).await.unwrap(), policies(2));
        assert_eq!(*Registry::open(dir.path()).current(), policies(2));
    }

    #[test]
    fn a_document_past_its_limit_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let most = limit::DOCUMENT_BYTES_MAX as u64 + 12;
        for (bytes, told) in
            [(most, "it does not begin as such a file does"), (most + 1, "it has 2097165 bytes")]
        {
            file.as_file().set_len(bytes).unwrap();
            assert_eq!(read(file.path()).unwrap_err(), told);
        }
    }

    #[tokio::test]
    async fn any_byte_that_is_wrong_is_found_and_the_file_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        Registry::open(dir.path()).adopt(policies(2)).await.unwrap();
        let file = dir.path().join("services.policy");
        let sound = fs::read(&file).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x20;
            fs::write(&file, &bytes).unwrap();
            assert!(read(&file).is_err(), "byte {at}");
        }
        assert_eq!(*Registry::open(dir.path()).current(), Policies::default());
        assert!(!file.exists() && dir.path().join("services.policy.unreadable").exists());
    }
}
