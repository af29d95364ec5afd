//! What a history stands on: an ordered map of bytes.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A change of one key: its new value, or none.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// The shelf failed. Nothing is lost that the machine does not remember, and nothing was decided by it.
#[derive(Debug, thiserror::Error)]
#[error(
    "HF2402 the history's store failed: {0}. The node goes on without it; free the disk or remove the folder, and restart"
)]
pub struct ShelfError(pub String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered map of bytes on disk.
pub trait Shelf: std::fmt::Debug + Send + Sync {
    /// Carries out all changes or none, and syncs them to the disk.
    /// # Errors
    /// [`ShelfError`].
    fn write(&self, changes: Vec<Change>) -> Result<(), ShelfError>;

    /// The value of `key`.
    /// # Errors
    /// [`ShelfError`].
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ShelfError>;

    /// Every key that begins with `prefix`, with its value, in order.
    /// # Errors
    /// [`ShelfError`].
    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, ShelfError>;

    /// Bytes on disk.
    fn bytes_on_disk(&self) -> u64;
}

/// A shelf in memory, for tests and for the simulator.
#[derive(Debug, Default)]
pub struct MemoryShelf {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryShelf {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf for MemoryShelf {
    fn write(&self, changes: Vec<Change>) -> Result<(), ShelfError> {
        let mut map = self.held();
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ShelfError> {
        Ok(self.held().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, ShelfError> {
        let map = self.held();
        let behind = map.range(prefix.to_vec()..);
        let found = behind.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn bytes_on_disk(&self) -> u64 {
        self.held().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
