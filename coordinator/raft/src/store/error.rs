//! Why a directory is not opened.

use std::{io, path::PathBuf};

/// Why a replica's directory is not opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{}: another process uses this directory. Stop it, or give this node a directory of its own", .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It is another node's, or another cluster's.
    #[error(
        "{}: this directory belongs to node {found_node} of cluster {found_cluster:?}, not to node {node} of cluster \
         {cluster:?}. Correct dir, node or cluster in the configuration", .dir.display()
    )]
    AnotherNodes {
        /// The directory.
        dir: PathBuf,
        /// The node that it belongs to.
        found_node: u64,
        /// The cluster that it belongs to.
        found_cluster: String,
        /// The node that was configured.
        node: u64,
        /// The cluster that was configured.
        cluster: String,
    },
    /// It should be empty.
    #[error("{}: this directory is not empty. Give a new one; nothing was changed", .dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// It was made for another number of Raft groups.
    #[error(
        "{}: this directory was made for {found} Raft groups, and cluster.groups = {configured}. The number is fixed when the \
         cluster is founded; set cluster.groups = {found}", .dir.display()
    )]
    OtherGroups {
        /// The directory.
        dir: PathBuf,
        /// What it was made for.
        found: u32,
        /// What was configured.
        configured: u32,
    },
    /// A file says what cannot be, at a place where no crash leaves such a thing.
    #[error(
        "{}, at byte {offset}: {cause}. The disk, or somebody, damaged what was durable. Do not delete anything: keep \
         the directory as evidence, start this node with an empty one and cluster.join = true, and run: holdfast \
         cluster replace", .file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        cause: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Adds the path and the action to an I/O error.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, StoreError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { path: path.into(), action, source })
    }
}
