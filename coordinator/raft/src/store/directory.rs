//! Whose directory this is: a lock against a second process, and the names of the node and the cluster.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{
    durable::{sync_dir, sync_file},
    error::{During as _, StoreError},
};
use crate::config::GROUPS_MAX;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const FIRST_LINE: &str = "holdfast coordinator 2";
/// Of a directory made before directories had an incarnation.
const FIRST_LINE_OLDER: &str = "holdfast coordinator 1";

/// A directory that this process holds for this node.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Held as long as the claim.
    pub(crate) lock: File,
    pub(crate) founding: Founding,
}

/// Whose directory this is beyond its number: which founding of the cluster it belongs to, and which incarnation of the node
/// it is. A handle: clones are the same.
///
/// The founding is a number that the founder drew, and that every node keeps from the first message on. Logs of different
/// foundings name different entries alike, so they must never meet. The incarnation is drawn when the directory is made,
/// and dies with it: a node that comes back with another one has forgotten its vote and what it acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Founding(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    dir: PathBuf,
    number: Mutex<u64>,
    stated: Stated,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stated {
    pub(crate) node: u64,
    pub(crate) cluster: String,
    /// 0: none yet.
    pub(crate) founding: u64,
    /// Never 0.
    pub(crate) incarnation: u64,
    /// Made before members were recorded with their incarnations: a peer may not know this one's yet.
    pub(crate) older: bool,
    /// Raft groups in the log.
    pub(crate) groups: u32,
}

impl Founding {
    /// The number; 0 while this node has not heard of any.
    pub(crate) fn number(&self) -> u64 {
        *self.0.number.lock().expect("no holder panics")
    }

    /// Of this directory.
    pub(crate) fn incarnation(&self) -> u64 {
        self.0.stated.incarnation
    }

    /// Whether a message that names this incarnation is for this directory. One that names none is for a directory that was
    /// made before there were any.
    pub(crate) fn is_meant_by(&self, incarnation: u64) -> bool {
        let Stated { incarnation: own, older, .. } = self.0.stated;
        #[cfg(feature = "simulation")]
        if crate::planted::is_planted(crate::planted::Planted::IncarnationIgnored) {
            return true;
        }
        incarnation == own || (incarnation == 0 && older)
    }

    /// Keeps the number of a cluster that this node founds or joins, unless it has one; returns which it has. Blocks.
    pub(crate) fn keep(&self, number: u64) -> Result<u64, StoreError> {
        let mut kept = self.0.number.lock().expect("no holder panics");
        if *kept == 0 && number != 0 {
            let stated = Stated { founding: number, ..self.0.stated.clone() };
            write(&self.0.dir, &stated.to_string())?;
            *kept = number;
        }
        Ok(*kept)
    }
}

/// A number that no other draw gives, never 0.
pub(crate) fn draw() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, cluster, founding, incarnation, older, groups } = self;
        let older = if *older { " older" } else { "" };
        write!(
            f,
            "{FIRST_LINE}\nnode {node}\ncluster {cluster}\nfounding {founding:016x}\nincarnation {incarnation:016x}{older}\ngroups {groups}\n"
        )
    }
}

/// Reads the file; says whether it must be written anew, since it was made before there were incarnations.
fn parse(identity: &str) -> Option<(Stated, bool)> {
    let (first, rest) = identity.split_once('\n')?;
    let mut lines = rest.lines();
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let node = value("node")?.parse().ok()?;
    let cluster = value("cluster")?.to_owned();
    let founding = hex(value("founding")?)?;
    if first == FIRST_LINE_OLDER {
        let stated =
            Stated { node, cluster, founding, incarnation: draw(), older: true, groups: 1 };
        return (lines.next().is_none()).then_some((stated, true));
    }
    let incarnation = value("incarnation")?;
    let (incarnation, older) =
        incarnation.strip_suffix(" older").map_or((incarnation, false), |number| (number, true));
    let incarnation = hex(incarnation).filter(|number| *number != 0)?;
    let groups =
        value("groups")?.parse().ok().filter(|groups| (1..=GROUPS_MAX).contains(groups))?;
    let whole = first == FIRST_LINE && lines.next().is_none() && identity.ends_with('\n');
    whole.then_some((Stated { node, cluster, founding, incarnation, older, groups }, false))
}

fn write(dir: &Path, identity: &str) -> Result<(), StoreError> {
    let tmp = dir.join("IDENTITY.tmp");
    let mut file = File::create(&tmp).during("create the identity", &tmp)?;
    file.write_all(identity.as_bytes()).during("write the identity", &tmp)?;
    sync_file(&file, &tmp).during("sync the identity", &tmp)?;
    let path = dir.join(IDENTITY);
    fs::rename(&tmp, &path).during("name the identity", &path)?;
    sync_dir(dir).during("sync the directory", dir)
}

/// Takes the directory for this process and this node; creates it, or gives an empty one its name.
pub(crate) fn claim(
    dir: &Path,
    cluster: &str,
    node: u64,
    groups: u32,
) -> Result<Claim, StoreError> {
    let lock = lock(dir)?;
    let path = dir.join(IDENTITY);
    let damaged = |cause| StoreError::Damaged { file: path.clone(), offset: 0, cause };
    let stated = if path.try_exists().during("look for the identity", &path)? {
        let found = fs::read_to_string(&path).during("read the identity", &path)?;
        let (found, older) = parse(&found).ok_or_else(|| {
            damaged("the file does not name a node, a cluster and an incarnation".to_owned())
        })?;
        if (found.node, found.cluster.as_str()) != (node, cluster) {
            return Err(StoreError::AnotherNodes {
                dir: dir.to_owned(),
                found_node: found.node,
                found_cluster: found.cluster,
                node,
                cluster: cluster.to_owned(),
            });
        }
        if found.groups != groups {
            let dir = dir.to_owned();
            return Err(StoreError::OtherGroups { dir, found: found.groups, configured: groups });
        }
        if older {
            write(dir, &found.to_string())?;
        }
        found
    } else {
        if let Some(stray) = first_stray(dir)? {
            return Err(damaged(format!(
                "the file is missing, while the directory holds {stray:?}"
            )));
        }
        let cluster = cluster.to_owned();
        let stated =
            Stated { node, cluster, founding: 0, incarnation: draw(), older: false, groups };
        write(dir, &stated.to_string())?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).during("sync the directory", parent)?;
        }
        stated
    };
    let kept = Kept { dir: dir.to_owned(), number: Mutex::new(stated.founding), stated };
    Ok(Claim { lock, founding: Founding(Arc::new(kept)) })
}

/// Makes the directory if need be, and locks it against other processes.
pub(crate) fn lock(dir: &Path) -> Result<File, StoreError> {
    fs::create_dir_all(dir).during("create the directory", dir)?;
    let path = dir.join(LOCK);
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .during("open the lock file", &path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => {
            return Err(StoreError::Io { path, action: "lock the file", source });
        }
    }
    Ok(lock)
}

/// Something that a directory without identity should not hold.
fn first_stray(dir: &Path) -> Result<Option<String>, StoreError> {
    for entry in fs::read_dir(dir).during("list the directory", dir)? {
        let name = entry.during("list the directory", dir)?.file_name();
        let name = name.to_string_lossy();
        if matches!(&*name, "log" | "snapshot") {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_refused_until_the_first_is_gone() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let first = claim(dir.path(), "bank", 1, 1)?;
        let second = claim(dir.path(), "bank", 1, 1).expect_err("the lock is held");
        assert!(matches!(second, StoreError::InUse { .. }), "{second}");
        drop(first);
        claim(dir.path(), "bank", 1, 1)?;
        Ok(())
    }

    #[test]
    fn another_nodes_directory_is_refused_by_name() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        drop(claim(dir.path(), "bank", 1, 1)?);
        for (cluster, node) in [("bank", 2), ("other", 1)] {
            let error = claim(dir.path(), cluster, node, 1).expect_err("it is node 1 of bank");
            assert!(matches!(error, StoreError::AnotherNodes { found_node: 1, .. }), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_founding_is_kept_once_and_for_all() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let claimed = claim(dir.path(), "bank", 1, 1)?;
        assert_eq!(claimed.founding.number(), 0);
        assert_eq!(claimed.founding.keep(0)?, 0);
        assert_eq!(claimed.founding.keep(77)?, 77);
        assert_eq!(claimed.founding.keep(78)?, 77);
        drop(claimed);
        assert_eq!(claim(dir.path(), "bank", 1, 1)?.founding.number(), 77);
        Ok(())
    }

    #[test]
    fn an_incarnation_lives_as_long_as_its_directory() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let first = claim(dir.path(), "bank", 1, 1)?.founding;
        let incarnation = first.incarnation();
        assert_eq!(claim(dir.path(), "bank", 1, 1)?.founding.incarnation(), incarnation);
        assert!(first.is_meant_by(incarnation));
        assert!(!first.is_meant_by(0) && !first.is_meant_by(incarnation ^ 1));
        let elsewhere = tempfile::tempdir()?;
        assert_ne!(claim(elsewhere.path(), "bank", 1, 1)?.founding.incarnation(), incarnation);
        Ok(())
    }

    #[test]
    fn a_directory_of_an_older_version_is_taken_and_has_one_incarnation_from_then_on()
    -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let older =
            format!("{FIRST_LINE_OLDER}\nnode 1\ncluster bank\nfounding 00000000000000ab\n");
        fs::write(dir.path().join(IDENTITY), older)?;
        let claimed = claim(dir.path(), "bank", 1, 1)?;
        let incarnation = claimed.founding.incarnation();
        assert_eq!(claimed.founding.number(), 0xab);
        assert!(claimed.founding.is_meant_by(0), "peers do not know it yet");
        drop(claimed);
        let claimed = claim(dir.path(), "bank", 1, 1)?;
        assert_eq!(claimed.founding.incarnation(), incarnation);
        assert!(claimed.founding.is_meant_by(0));
        Ok(())
    }

    #[test]
    fn the_number_of_groups_is_fixed_when_the_directory_is_made() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        drop(claim(dir.path(), "bank", 1, 4)?);
        let error = claim(dir.path(), "bank", 1, 1).expect_err("it has four");
        assert!(
            matches!(error, StoreError::OtherGroups { found: 4, configured: 1, .. }),
            "{error}"
        );
        claim(dir.path(), "bank", 1, 4)?;
        Ok(())
    }

    #[test]
    fn an_identity_that_is_cut_or_odd_is_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        drop(claim(dir.path(), "bank", 1, 1)?);
        let sound = fs::read_to_string(dir.path().join(IDENTITY))?;
        for end in 0..sound.len() {
            fs::write(dir.path().join(IDENTITY), &sound[..end])?;
            let error = claim(dir.path(), "bank", 1, 1).expect_err("it is cut");
            assert!(matches!(error, StoreError::Damaged { .. }), "{end}: {error}");
        }
        for odd in [sound.replace("groups 1", "groups 17"), format!("{sound}more 1\n")] {
            fs::write(dir.path().join(IDENTITY), odd)?;
            let error = claim(dir.path(), "bank", 1, 1).expect_err("it is odd");
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_log_without_an_identity_is_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("log"))?;
        let error = claim(dir.path(), "bank", 1, 1).expect_err("there is a log of nobody");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        Ok(())
    }
}
