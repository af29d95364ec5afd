//! Whose directory this is: a lock against a second process, and the names of the node and the cluster.

use std::{
    fs::{self, File, TryLockError},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{
    error::{During as _, StoreError},
    segment::sync_dir,
};

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const FIRST_LINE: &str = "holdfast coordinator 1";

/// A directory that this process holds for this node.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Held as long as the claim.
    pub(crate) lock: File,
    pub(crate) founding: Founding,
}

/// Which founding of the cluster the log belongs to: a number that the founder drew, and that every node keeps from
/// the first message on. Logs of different foundings name different entries alike, so they must never meet.
/// A handle: clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Founding(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    dir: PathBuf,
    node: u64,
    cluster: String,
    /// 0: none yet.
    number: Mutex<u64>,
}

impl Founding {
    /// The number; 0 while this node has not heard of any.
    pub(crate) fn number(&self) -> u64 {
        *self.0.number.lock().expect("no holder panics")
    }

    /// Keeps the number of a cluster that this node founds or joins, unless it has one; returns which it has. Blocks.
    pub(crate) fn keep(&self, number: u64) -> Result<u64, StoreError> {
        let mut kept = self.0.number.lock().expect("no holder panics");
        if *kept == 0 && number != 0 {
            write(&self.0.dir, &stated(self.0.node, &self.0.cluster, number))?;
            *kept = number;
        }
        Ok(*kept)
    }
}

fn stated(node: u64, cluster: &str, founding: u64) -> String {
    format!("{FIRST_LINE}\nnode {node}\ncluster {cluster}\nfounding {founding:016x}\n")
}

fn parse(identity: &str) -> Option<(u64, &str, u64)> {
    let rest = identity.strip_prefix(FIRST_LINE)?.strip_prefix("\nnode ")?;
    let (node, rest) = rest.split_once('\n')?;
    let (cluster, rest) = rest.strip_prefix("cluster ")?.split_once('\n')?;
    let founding = rest.strip_prefix("founding ")?.strip_suffix('\n')?;
    Some((node.parse().ok()?, cluster, u64::from_str_radix(founding, 16).ok()?))
}

fn write(dir: &Path, identity: &str) -> Result<(), StoreError> {
    let tmp = dir.join("IDENTITY.tmp");
    let mut file = File::create(&tmp).during("create the identity", &tmp)?;
    file.write_all(identity.as_bytes()).during("write the identity", &tmp)?;
    file.sync_all().during("sync the identity", &tmp)?;
    let path = dir.join(IDENTITY);
    fs::rename(&tmp, &path).during("name the identity", &path)?;
    sync_dir(dir).during("sync the directory", dir)
}

/// Takes the directory for this process and this node; creates it, or gives an empty one its name.
pub(crate) fn claim(dir: &Path, cluster: &str, node: u64) -> Result<Claim, StoreError> {
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
    let path = dir.join(IDENTITY);
    let damaged = |cause| StoreError::Damaged { file: dir.join(IDENTITY), offset: 0, cause };
    let mut founding = 0;
    if path.try_exists().during("look for the identity", &path)? {
        let found = fs::read_to_string(&path).during("read the identity", &path)?;
        let (found_node, found_cluster, found_founding) = parse(&found)
            .ok_or_else(|| damaged("the file does not name a node and a cluster".to_owned()))?;
        if (found_node, found_cluster) != (node, cluster) {
            return Err(StoreError::AnotherNodes {
                dir: dir.to_owned(),
                found_node,
                found_cluster: found_cluster.to_owned(),
                node,
                cluster: cluster.to_owned(),
            });
        }
        founding = found_founding;
    } else {
        if let Some(stray) = first_stray(dir)? {
            return Err(damaged(format!(
                "the file is missing, while the directory holds {stray:?}"
            )));
        }
        write(dir, &stated(node, cluster, 0))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).during("sync the directory", parent)?;
        }
    }
    let (dir, cluster) = (dir.to_owned(), cluster.to_owned());
    let kept = Kept { dir, node, cluster, number: Mutex::new(founding) };
    Ok(Claim { lock, founding: Founding(Arc::new(kept)) })
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
        let first = claim(dir.path(), "bank", 1)?;
        let second = claim(dir.path(), "bank", 1).expect_err("the lock is held");
        assert!(matches!(second, StoreError::InUse { .. }), "{second}");
        drop(first);
        claim(dir.path(), "bank", 1)?;
        Ok(())
    }

    #[test]
    fn another_nodes_directory_is_refused_by_name() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        drop(claim(dir.path(), "bank", 1)?);
        for (cluster, node) in [("bank", 2), ("other", 1)] {
            let error = claim(dir.path(), cluster, node).expect_err("it is node 1 of bank");
            assert!(matches!(error, StoreError::AnotherNodes { found_node: 1, .. }), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_founding_is_kept_once_and_for_all() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let claimed = claim(dir.path(), "bank", 1)?;
        assert_eq!(claimed.founding.number(), 0);
        assert_eq!(claimed.founding.keep(0)?, 0);
        assert_eq!(claimed.founding.keep(77)?, 77);
        assert_eq!(claimed.founding.keep(78)?, 77);
        drop(claimed);
        assert_eq!(claim(dir.path(), "bank", 1)?.founding.number(), 77);
        Ok(())
    }

    #[test]
    fn a_log_without_an_identity_is_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("log"))?;
        let error = claim(dir.path(), "bank", 1).expect_err("there is a log of nobody");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        Ok(())
    }
}
