//! The log store alone, for measuring what the disk and the writer give without consensus; no part of the public interface.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use openraft::{
    storage::{IOFlushed, RaftLogStorage as _},
    type_config::TypeConfigExt as _,
};
use tokio::sync::Mutex;

use crate::{
    StoreError,
    consensus::{Consensus, Entry, Opaque, Payload, log_id},
    store::{LogStore, Options, index::RECENT_BYTES_MAX, record::ENTRY_BYTES_MAX},
};

/// Entries between two purges, and how many stay behind: what a replica does with its default settings.
const PURGE_EVERY: u64 = 50_000;

/// The log store of a replica, without a replica. A handle: clones are the same store.
#[derive(Clone, Debug)]
pub struct BareStore {
    /// The store, and the number of the next entry: entries must come in their order.
    tail: Arc<Mutex<(LogStore, u64)>>,
}

impl BareStore {
    /// Opens the store in `dir`, which must be fresh, with segments of so many bytes. Blocks.
    /// # Errors
    /// What the disk says.
    pub fn open(dir: PathBuf, segment_bytes: u64) -> Result<Self, StoreError> {
        let options = Options {
            dir,
            cluster: "bench".to_owned(),
            node: 1,
            groups: 1,
            segment_bytes,
            entry_bytes_max: ENTRY_BYTES_MAX,
            recent_bytes_max: RECENT_BYTES_MAX,
        };
        let store = LogStore::open(&options)?;
        Ok(Self { tail: Arc::new(Mutex::new((store, 0))) })
    }

    /// Appends an entry and waits until it is on disk. What is appended at the same time shares a write and a sync.
    /// # Errors
    /// The store is closed, or the entry is too large.
    pub async fn append(&self, entry: Bytes) -> std::io::Result<()> {
        let (done, told) = Consensus::oneshot();
        {
            let mut tail = self.tail.lock().await;
            let (store, next) = &mut *tail;
            let log_id = log_id(1, *next);
            let entry = Entry { log_id, payload: Payload::Normal(Opaque(entry)) };
            store.append([entry], IOFlushed::signal(done)).await?;
            *next += 1;
            if *next % PURGE_EVERY == 0 && *next > PURGE_EVERY {
                store.purge(crate::consensus::log_id(1, *next - PURGE_EVERY)).await?;
            }
        }
        told.await.map_err(|_| std::io::Error::other("the log is closed"))?
    }
}
