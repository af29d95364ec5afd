//! A log bounded by bytes: snapshots beyond those that come with so many entries, and what goes behind any of them.
//!
//! openraft counts entries, and one may hold a command or a thousand. So a group also takes a snapshot when its log grew by as many
//! bytes as the last snapshot has, and by a configured number at least: what a restart has to read is bounded by that, and by what
//! is written between two looks and while a snapshot is made; and no more bytes are written for snapshots than for entries. Half as
//! many entries, and bytes, stay in the log behind it, for followers that lag a little.
//! A quiet group takes one too, when it alone keeps segments alive that others have long left behind: three of them, or more if its
//! snapshot is large, so that this costs no more than the bytes of those segments either.
//!
//! One that is asked for while another is made, or waits to be tried again because it could not be written, is left out: so no failure
//! is met by asking again at once.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;

use crate::{Config, ControlError, Log, StateMachine};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long a snapshot is waited for before the next look.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Segments that a quiet group may always keep alive behind the open one, before it takes a snapshot for their sake.
const HELD_BACK_MIN: u64 = 3;

/// One a group.
pub(crate) struct Compactor<S: StateMachine> {
    log: Log<S>,
    segment_bytes: u64,
    snapshot_every: u64,
    snapshot_bytes: u64,
}

impl<S: StateMachine> Compactor<S> {
    pub(crate) fn new(config: &Config, log: Log<S>) -> Self {
        let Config { segment_bytes, snapshot_every, snapshot_bytes, .. } = *config;
        Self { log, segment_bytes, snapshot_every, snapshot_bytes }
    }

    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look().await {
                tracing::info!(%error, "no snapshot for the sake of a shorter log yet");
            }
        }
    }

    async fn look(&self) -> Result<(), ControlError> {
        let inner = &*self.log.inner;
        let (held, held_bytes) = inner.snapshots.current().map_or((None, 0), |(meta, file)| {
            (meta.last_log_id.map(|log_id| log_id.index), file.bytes)
        });
        let applied = inner.raft.metrics().borrow_watched().last_applied.map(|log_id| log_id.index);
        let grown = applied.map_or(0, |applied| inner.store.bytes_between(held, applied));
        let grown_max = grown_max(self.snapshot_bytes, held_bytes);
        let held_back_max = held_back_max(inner.groups, held_bytes, self.segment_bytes);
        let held_back = inner.store.held_back() > held_back_max;
        if is_due(grown, grown_max, held_back) {
            inner.raft.trigger().snapshot().await.map_err(|_| ControlError::Stopped)?;
            inner
                .wait_for("the snapshot", SNAPSHOT_TIMEOUT, |metrics| {
                    metrics.snapshot.map(|log_id| log_id.index) > held
                })
                .await?;
        }
        let upto = inner.raft.metrics().borrow_watched().snapshot.map(|log_id| log_id.index);
        let (entries, bytes) =
            if held_back { (0, 0) } else { (self.snapshot_every / 2, grown_max / 2) };
        if let Some(last) = upto.and_then(|upto| inner.store.last_beyond(upto, entries, bytes)) {
            inner.raft.trigger().purge_log(last).await.map_err(|_| ControlError::Stopped)?;
        }
        Ok(())
    }
}

/// Bytes by which the log may grow behind a snapshot of `held_bytes`.
fn grown_max(snapshot_bytes: u64, held_bytes: u64) -> u64 {
    snapshot_bytes.max(held_bytes)
}

/// Whether a snapshot must be taken of what was applied behind the last one.
fn is_due(grown: u64, grown_max: u64, held_back: bool) -> bool {
    grown > grown_max || (grown > 0 && held_back)
}

/// How many segments behind the open one a group may keep alive before it takes a snapshot for their sake: as many as the snapshots of so
/// many groups would fill. A group that is alone never does: what it keeps is its own, and its snapshots come with what it writes.
fn held_back_max(groups: u32, held_bytes: u64, segment_bytes: u64) -> u64 {
    if groups == 1 {
        return u64::MAX;
    }
    HELD_BACK_MIN.max(u64::from(groups).saturating_mul(held_bytes) / segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_may_grow_by_the_configured_bytes_or_by_those_of_a_larger_snapshot() {
        assert_eq!(grown_max(1_000, 0), 1_000);
        assert_eq!(grown_max(1_000, 1_000), 1_000);
        assert_eq!(grown_max(1_000, 1_001), 1_001);
        assert!(!is_due(1_000, 1_000, false));
        assert!(is_due(1_001, 1_000, false));
        assert!(is_due(1, 1_000, true), "for the sake of the segments");
        assert!(!is_due(0, 1_000, true), "it would be the same snapshot again");
    }

    #[test]
    fn segments_are_held_back_to_the_limit_and_one_more_asks_for_a_snapshot() {
        let asks = |groups, held_bytes, held_back| {
            is_due(1, 1_000, held_back > held_back_max(groups, held_bytes, 100))
        };
        assert!(!asks(4, 0, 3));
        assert!(asks(4, 0, 4));
        assert!(!asks(4, 250, 10), "four snapshots of this size fill ten segments");
        assert!(asks(4, 250, 11));
        assert!(!asks(1, 0, 1_000), "they are its own");
    }
}
