//! The thread that writes the history.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use holdfast_history::{Archive, Retention, ShelfError, SledShelf};
use holdfast_txn::{GlobalTransaction, Timestamp};
use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::{News, QUEUE_MAX, Shared, ended::Ended, gathered::Gathered, together};
use crate::replica::SharedState;

/// News that are worked off together; of many transactions each, under load.
const TOGETHER_MAX: usize = 1_024;
/// Transactions taken from the machine under one hold of it.
const PER_HOLD_MAX: usize = 512;
/// Transactions that may wait while the writer leaves its processor to whoever waits for one. Where nothing is idle that may be for long:
/// beyond it the writer takes the share that it has.
const LEAVES_WAY_MAX: usize = QUEUE_MAX / 4;
/// Between two writes of a sheet that is not full.
const FLUSH: Duration = Duration::from_secs(10);
/// Between two looks when nothing arrives.
const QUIET: Duration = Duration::from_millis(500);

/// What the thread works with.
pub(super) struct Writer {
    pub(super) node: u64,
    pub(super) folder: PathBuf,
    pub(super) state: SharedState,
    pub(super) lagging: Arc<AtomicBool>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) shared: Arc<Shared>,
}

impl Writer {
    /// Until the node stops. A fault of the store ends it; the node goes on.
    pub(super) fn run(self, heard: &Receiver<News>) {
        describe();
        let ended = self.open().and_then(|()| self.write(heard));
        if let Err(fault) = ended {
            tracing::error!(%fault, "the history is written no more");
            // A first fault is told and not replaced.
            let _first = self.shared.failed.set(fault.to_string());
            // Whoever stops the node waits until the word to stop is heard.
            while !matches!(heard.recv(), Ok(News::Stop) | Err(_)) {}
        }
    }

    fn open(&self) -> Result<(), ShelfError> {
        let (shelf, anew) = SledShelf::open(&self.folder)?;
        let archive = match Archive::open(Arc::new(shelf), self.retention()) {
            Ok(archive) => archive,
            // Files that sled reads and we do not are as good as unreadable ones.
            Err(fault) if !anew => {
                let aside = self.folder.with_extension("unreadable");
                tracing::error!(folder = %self.folder.display(), %fault, "HF2403 the history cannot be read; it is moved aside and begun anew");
                let moved = if aside.exists() { std::fs::remove_dir_all(&aside) } else { Ok(()) };
                let moved = moved.and_then(|()| std::fs::rename(&self.folder, &aside));
                moved.map_err(|fault| ShelfError(fault.to_string()))?;
                Archive::open(Arc::new(SledShelf::open(&self.folder)?.0), self.retention())?
            }
            Err(fault) => return Err(fault),
        };
        // Nobody else sets it.
        let _only = self.shared.archive.set(archive);
        Ok(())
    }

    fn write(&self, heard: &Receiver<News>) -> Result<(), ShelfError> {
        let archive = self.shared.archive.get().expect("it was opened");
        let (records, lagged) =
            (counter!("holdfast_history_records_total"), counter!("holdfast_history_lags_total"));
        // They are written in the order in which they finished: what finished before the newest that is there is there, or in a gap. A start
        // brings hundreds of thousands of them again.
        let shelved = Timestamp(archive.figures().newest_ms);
        let leave_way = || {
            if self.may_leave_way(archive) {
                std::thread::yield_now();
            }
        };
        let mut flushed_at = Instant::now();
        let mut before = 0;
        loop {
            let news = together(heard, before, TOGETHER_MAX, QUIET);
            let Some(news) = news else { return Ok(()) };
            before = news.len();
            self.taken(&news);
            let (mut stops, mut retains) = (false, false);
            let off = self.shared.is_off();
            // What finishes while nothing is written stays lacking until it is again.
            if !off && self.lagging.swap(false, Ordering::AcqRel) {
                // What waits is in the machine as well, and more.
                stops = heard.try_iter().take(QUEUE_MAX).any(|one| {
                    self.taken(std::slice::from_ref(&one));
                    matches!(one, News::Stop)
                });
                lagged.increment(1);
                records.increment(self.catch_up(archive)? as u64);
            }
            let mut gathered = Gathered::default();
            for one in news {
                match one {
                    News::Finished(mut transactions) => {
                        transactions.retain(|one| one.finished_at >= Some(shelved));
                        gathered.finished(transactions);
                    }
                    News::Attempts(attempts) => gathered.attempts(attempts),
                    News::Everything if off => {}
                    News::Everything => {
                        records.increment(gathered.take_in(archive, self.node, leave_way)?);
                        records.increment(self.catch_up(archive)? as u64);
                    }
                    News::Retain => retains = true,
                    News::Stop => stops = true,
                }
            }
            records.increment(gathered.take_in(archive, self.node, leave_way)?);
            if stops || retains || flushed_at.elapsed() >= FLUSH {
                flushed_at = Instant::now();
                archive.keep(self.retention());
                archive.flush(self.now().0)?;
                measure(archive);
            }
            if stops {
                return Ok(());
            }
        }
    }

    /// Whether there is time for others; the archive is told so too. The thousand transactions of 50 ms, taken in at a stretch, had some answers
    /// wait for two milliseconds.
    fn may_leave_way(&self, archive: &Archive) -> bool {
        let may = self.waiting.load(Ordering::Relaxed) <= LEAVES_WAY_MAX;
        archive.leave_way(may);
        may
    }

    /// They wait no more.
    fn taken(&self, news: &[News]) {
        let transactions = news.iter().map(News::transactions).sum();
        self.waiting.fetch_sub(transactions, Ordering::AcqRel);
    }

    /// Takes from the machine what finished since the last record.
    fn catch_up(&self, archive: &Archive) -> Result<usize, ShelfError> {
        let (mut added, newest_ms) = (0, archive.figures().newest_ms);
        let mut from = Timestamp(newest_ms);
        let oldest = self.state.held().machine.finished_since(Timestamp(0)).next().cloned();
        if newest_ms > 0
            && let Some(oldest_ms) = oldest.and_then(|oldest| oldest.finished_at)
            && oldest_ms.0 > newest_ms
        {
            // The window has moved past what was written last: how many lie between, nobody knows any more.
            self.shared.gaps.fetch_add(1, Ordering::Relaxed);
            counter!("holdfast_history_gaps_total").increment(1);
            tracing::warn!(
                from_ms = newest_ms,
                until_ms = oldest_ms.0,
                "the history has a gap: what finished between is forgotten"
            );
        }
        let mut skipped = 0;
        loop {
            let batch: Vec<Arc<GlobalTransaction>> = {
                let state = self.state.held();
                let since = state.machine.finished_since(from).skip(skipped);
                since.take(PER_HOLD_MAX).cloned().collect()
            };
            let Some(last_ms) = batch.last().and_then(|last| last.finished_at) else {
                return Ok(added);
            };
            // Of the last millisecond there may be more: they are told apart by how many were taken.
            let same = |one: &Arc<GlobalTransaction>| one.finished_at == Some(last_ms);
            let of_last = batch.iter().filter(|one| same(one)).count();
            skipped = if last_ms == from { skipped + of_last } else { of_last };
            from = last_ms;
            let ended = |transaction| Ended { transaction, seen: None };
            added += archive.add(batch.into_iter().map(ended))?;
        }
    }

    /// What is kept, as it counts now. Where nothing is written, what was stays where it lies.
    fn retention(&self) -> Retention {
        let now = *self.shared.retention.lock().expect("nobody panics while holding it");
        match now.records_max {
            0 => Retention { records_max: u64::MAX, bytes_max: u64::MAX, age_ms_max: u64::MAX },
            _ => now,
        }
    }

    fn now(&self) -> Timestamp {
        self.state.held().machine.clock()
    }
}

fn measure(archive: &Archive) {
    let figures = archive.figures();
    gauge!("holdfast_history_records").set(figures.records as f64);
    gauge!("holdfast_history_disk_bytes").set(figures.disk_bytes as f64);
    gauge!("holdfast_history_memory_bytes").set(figures.memory_bytes as f64);
}

fn describe() {
    describe_counter!("holdfast_history_records_total", "Finished transactions written down.");
    describe_counter!(
        "holdfast_history_lags_total",
        "Times that the history fell behind, or started, and took from the machine."
    );
    describe_counter!("holdfast_history_gaps_total", "Times that the machine had forgotten some.");
    describe_gauge!("holdfast_history_records", "Finished transactions in the history.");
    describe_gauge!("holdfast_history_disk_bytes", "Bytes of the history on disk.");
    describe_gauge!("holdfast_history_memory_bytes", "Bytes of the history's filters in memory.");
}

#[cfg(test)]
mod tests {
    use holdfast_history::{MemoryShelf, Query};
    use holdfast_txn::Gid;
    use proptest::{
        strategy::{Strategy as _, ValueTree as _},
        test_runner::TestRunner,
    };

    use super::*;
    use crate::record::tests::transactions;

    fn writer(folder: &std::path::Path, waiting: usize, shared: &Arc<Shared>) -> Writer {
        Writer {
            node: 1,
            folder: folder.to_owned(),
            state: SharedState::new(),
            lagging: Arc::default(),
            waiting: Arc::new(AtomicUsize::new(waiting)),
            shared: Arc::clone(shared),
        }
    }

    /// What a history in `folder` has once a writer of it was told that these finished, each at its time.
    fn told(folder: &std::path::Path, finished: &[(&str, u64)]) -> Vec<String> {
        let one = transactions().new_tree(&mut TestRunner::deterministic()).unwrap().current();
        let ended = finished.iter().map(|(gid, at)| {
            let (gid, at) = (Gid::parse(gid).unwrap(), Some(Timestamp(*at)));
            Arc::new(GlobalTransaction { gid, finished_at: at, ..one.clone() })
        });
        let (news, heard) = std::sync::mpsc::sync_channel(4);
        news.send(News::Finished(ended.collect())).unwrap();
        news.send(News::Stop).unwrap();
        let shared = Arc::new(Shared::default());
        writer(folder, finished.len(), &shared).run(&heard);
        let page = shared.archive.get().unwrap().search(&Query { limit: 9, ..Query::default() });
        let records = page.unwrap().records.into_iter();
        let gid =
            |record: &holdfast_proto::v1::HistoryRecord| record.transaction.clone().unwrap().gid;
        let mut gids: Vec<String> = records.map(|record| gid(&record)).collect();
        gids.sort();
        gids
    }

    #[test]
    fn what_finished_before_the_newest_that_is_there_is_passed_over_and_what_finished_with_it_is_not()
     {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("history");
        assert_eq!(told(&folder, &[("a", 999), ("b", 1_000)]), ["a", "b"]);
        let again = [("a", 999), ("lost", 999), ("b", 1_000), ("c", 1_000), ("d", 1_001)];
        assert_eq!(told(&folder, &again), ["a", "b", "c", "d"]);
    }

    #[test]
    fn it_leaves_way_while_as_many_wait_as_may_and_not_with_one_more() {
        let archive = Archive::open(Arc::new(MemoryShelf::default()), Retention::default());
        let (archive, folder) = (archive.unwrap(), std::path::Path::new("unused"));
        let leaves = |waiting| writer(folder, waiting, &Arc::default()).may_leave_way(&archive);
        assert!(leaves(0) && leaves(LEAVES_WAY_MAX));
        assert!(!leaves(LEAVES_WAY_MAX + 1));
    }
}
