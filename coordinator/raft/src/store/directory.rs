//! Whose directory this is: a lock against a second process, and the names of the node and the cluster.

use std::{
    fs::{self, File, TryLockError},
    io::Write as _,
    path::Path,
};

use super::{
    error::{During as _, StoreError},
    segment::sync_dir,
};

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const FIRST_LINE: &str = "holdfast coordinator 1";

/// Takes the directory for this process and this node; creates it, or gives an empty one its name.
///
/// The lock lives as long as the returned file.
pub(crate) fn claim(dir: &Path, cluster: &str, node: u64) -> Result<File, StoreError> {
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
    let stated = format!("{FIRST_LINE}\nnode {node}\ncluster {cluster}\n");
    if !path.try_exists().during("look for the identity", &path)? {
        if let Some(stray) = first_stray(dir)? {
            return Err(StoreError::Damaged {
                file: path,
                offset: 0,
                cause: format!("the file is missing, while the directory holds {stray:?}"),
            });
        }
        let tmp = dir.join("IDENTITY.tmp");
        let mut file = File::create(&tmp).during("create the identity", &tmp)?;
        file.write_all(stated.as_bytes()).during("write the identity", &tmp)?;
        file.sync_all().during("sync the identity", &tmp)?;
        fs::rename(&tmp, &path).during("name the identity", &path)?;
        sync_dir(dir).during("sync the directory", dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).during("sync the directory", parent)?;
        }
        return Ok(lock);
    }
    let found = fs::read_to_string(&path).during("read the identity", &path)?;
    if found == stated {
        return Ok(lock);
    }
    let Some((found_node, found_cluster)) = parse(&found) else {
        return Err(StoreError::Damaged {
            file: path,
            offset: 0,
            cause: "the file does not name a node and a cluster".to_owned(),
        });
    };
    Err(StoreError::AnotherNodes {
        dir: dir.to_owned(),
        found_node,
        found_cluster: found_cluster.to_owned(),
        node,
        cluster: cluster.to_owned(),
    })
}

fn parse(identity: &str) -> Option<(u64, &str)> {
    let rest = identity.strip_prefix(FIRST_LINE)?.strip_prefix("\nnode ")?;
    let (node, rest) = rest.split_once('\n')?;
    let cluster = rest.strip_prefix("cluster ")?.strip_suffix('\n')?;
    Some((node.parse().ok()?, cluster))
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
    fn a_log_without_an_identity_is_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("log"))?;
        let error = claim(dir.path(), "bank", 1).expect_err("there is a log of nobody");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        Ok(())
    }
}
