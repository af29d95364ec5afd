//! The node's history: finished transactions leave the apply path over a bounded queue, and a thread of its own writes them.
//!
//! The queue never makes the apply path wait. When it is full, what comes is dropped and *lagging* is marked; the writer then
//! throws away what it holds and takes from the machine whatever finished since the last record it wrote. So it is with a new
//! start and with a snapshot that replaced the state: the machine's window of finished transactions is what history is rebuilt from, and
//! what left the window before is a gap, which is counted and told to whoever searches.
//!
//! Nothing of it may slow the work down. So the writer gathers what arrives for a moment and takes it at once: whoever applies then
//! seldom has a thread to wake, and the thread seldom sleeps. It and those who search stand back: they have a processor when the work
//! leaves one. With `history.records_max = 0` nothing is written at all.

mod ended;
mod gathered;
mod merged;
mod requests;
mod writer;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use holdfast_history::{Archive, Figures, Page, Query, Retention, ShelfError};
use holdfast_proto::v1::HistoryRecord;
use holdfast_raft::stand_back;
use holdfast_txn::{Gid, GlobalTransaction};
use tokio::sync::{Semaphore, oneshot};

pub(crate) use merged::merged;
pub(crate) use requests::{check_narrow, check_search, shown};
use writer::Writer;

use crate::{config, dispatcher::attempts::Attempts, replica::SharedState};

/// Transactions that wait for the writer, and news of any kind.
const QUEUE_MAX: usize = 65_536;
/// Searches at once; one more is told to try again.
const SEARCHES_MAX: usize = 8;
/// From the first of the news to when they are taken. Waking for each one cost the writer more than all of its work.
const GATHER: Duration = Duration::from_millis(50);

/// What the writer is told.
#[derive(Debug)]
enum News {
    /// They finished just now.
    Finished(Vec<Arc<GlobalTransaction>>),
    /// What the leader saw of their calls.
    Attempts(Vec<(Gid, Attempts)>),
    /// The state was replaced, or a start: take what the machine has.
    Everything,
    /// Another retention counts: take away what is too much now.
    Retain,
    /// The node stops: write what is there.
    Stop,
}

impl News {
    /// Transactions that it is about, one by one.
    fn transactions(&self) -> usize {
        match self {
            Self::Finished(finished) => finished.len(),
            Self::Attempts(attempts) => attempts.len(),
            Self::Everything | Self::Retain | Self::Stop => 0,
        }
    }
}

/// The history as everybody on this node shares it.
pub(crate) struct History {
    news: SyncSender<News>,
    /// Transactions that the news in the queue are about.
    waiting: Arc<AtomicUsize>,
    /// News were dropped since the writer last took from the machine.
    lagging: Arc<AtomicBool>,
    shared: Arc<Shared>,
    searches: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer and the readers share.
#[derive(Debug, Default)]
struct Shared {
    /// Absent until it is open, and if it cannot be opened.
    archive: OnceLock<Archive>,
    failed: OnceLock<String>,
    gaps: AtomicU64,
    /// Nothing is to be kept: what happens is neither told nor written.
    off: AtomicBool,
    /// Of one group.
    retention: Mutex<Retention>,
}

/// A history that cannot answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryFault {
    #[error("{0}")]
    Shelf(String),
    #[error(
        "HF2406 {SEARCHES_MAX} searches are under way, which is the limit. Nothing happened; try again in a moment"
    )]
    Busy,
    #[error(
        "HF2412 this node keeps no history: history.records_max is 0. Nothing happened; ask another node, or set it and read the configuration again"
    )]
    Off,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl History {
    /// Begins to write the history of group `group`, on a thread of its own. Opening happens there too, so that a long one keeps nobody
    /// waiting. Each group has its own folder and its part of what may be kept: the order in which its transactions finished is
    /// the order of its log, and between groups there is none.
    pub(crate) fn start(config: &config::Config, group: u32, state: SharedState) -> Arc<Self> {
        let (news, heard) = sync_channel(QUEUE_MAX);
        let retention = Mutex::new(part_of(config.history, config.cluster.groups));
        let off = AtomicBool::new(config.history.records_max == 0);
        let shared = Arc::new(Shared { retention, off, ..Shared::default() });
        let (lagging, waiting) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let writer = Writer {
            node: config.node.id,
            folder: config.node.data_dir.join(match group {
                0 => "history".to_owned(),
                group => format!("history-{group}"),
            }),
            state,
            lagging: Arc::clone(&lagging),
            waiting: Arc::clone(&waiting),
            shared: Arc::clone(&shared),
        };
        let run = move || {
            stand_back();
            writer.run(&heard);
        };
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(run);
        let thread = thread
            .map_err(|fault| tracing::error!(%fault, "HF2402 no thread for the history"))
            .ok();
        let searches = Arc::new(Semaphore::new(SEARCHES_MAX));
        Arc::new(Self { news, waiting, lagging, shared, searches, thread: Mutex::new(thread) })
    }

    /// They finished, in this order. Never waits.
    pub(crate) fn finished(&self, transactions: Vec<Arc<GlobalTransaction>>) {
        self.tell(News::Finished(transactions));
    }

    /// What the leader saw of the calls of transactions, once they are finished. Never waits.
    pub(crate) fn attempts(&self, attempts: Vec<(Gid, Attempts)>) {
        self.tell(News::Attempts(attempts));
    }

    /// The state was replaced.
    pub(crate) fn everything(&self) {
        self.tell(News::Everything);
    }

    fn tell(&self, news: News) {
        if self.shared.is_off() {
            return;
        }
        let more = news.transactions();
        let fits = self.waiting.fetch_add(more, Ordering::AcqRel) + more <= QUEUE_MAX;
        // A writer that is gone has said why; its queue is full soon and stays so.
        if !fits || self.news.try_send(news).is_err() {
            self.waiting.fetch_sub(more, Ordering::AcqRel);
            self.lagging.store(true, Ordering::Release);
        }
    }

    /// Keeps as much as `config` says from now on; what is too much goes when the writer hears of it, or within seconds if its queue is
    /// full.
    pub(crate) fn keep(&self, config: &config::Config) {
        let retention = part_of(config.history, config.cluster.groups);
        *self.shared.retention.lock().expect("nobody panics while holding it") = retention;
        if config.history.records_max == 0 {
            // Whoever switches it on again lacks what finished meanwhile.
            self.lagging.store(true, Ordering::Release);
        }
        self.shared.off.store(config.history.records_max == 0, Ordering::Release);
        let _full = self.news.try_send(News::Retain);
    }

    /// A page of finished transactions.
    pub(crate) async fn search(self: &Arc<Self>, query: Query) -> Result<Page, HistoryFault> {
        self.read(move |archive| archive.search(&query)).await
    }

    /// The record of one.
    pub(crate) async fn get(
        self: &Arc<Self>,
        gid: String,
    ) -> Result<Option<Arc<HistoryRecord>>, HistoryFault> {
        self.read(move |archive| archive.get(&gid)).await
    }

    /// What it holds, and how often it fell so far behind that the machine had forgotten some.
    pub(crate) fn figures(&self) -> (Figures, u64) {
        let figures = self.shared.archive.get().map(Archive::figures).unwrap_or_default();
        (figures, self.shared.gaps.load(Ordering::Relaxed))
    }

    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Archive) -> Result<T, ShelfError> + Send + 'static,
    ) -> Result<T, HistoryFault> {
        if self.shared.is_off() {
            return Err(HistoryFault::Off);
        }
        let turn = Arc::clone(&self.searches).try_acquire_owned();
        let turn = turn.map_err(|_| HistoryFault::Busy)?;
        let shared = Arc::clone(&self.shared);
        let (tell, told) = oneshot::channel();
        // A thread that stood back cannot come forward again: it ends with its search.
        let search = move || {
            stand_back();
            let read = shared.read(read);
            drop(turn);
            let _asker_left = tell.send(read);
        };
        let thread = std::thread::Builder::new().name("search".to_owned()).spawn(search);
        let no_thread = |fault| {
            format!(
                "HF2402 no thread for a search: {fault}. Nothing happened; try again in a moment"
            )
        };
        thread.map_err(|fault| HistoryFault::Shelf(no_thread(fault)))?;
        let broke = |_| HistoryFault::Shelf("HF2402 a search broke".to_owned());
        told.await.map_err(broke)?.map_err(HistoryFault::Shelf)
    }

    /// Writes what is there and ends the thread.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().expect("nobody panics while holding it").take();
        // A full queue is worked off first; what is dropped now comes again at the next start.
        let _gone = self.news.send(News::Stop);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("HF2402 the history's thread broke");
        }
    }
}

impl Shared {
    fn read<T>(&self, read: impl FnOnce(&Archive) -> Result<T, ShelfError>) -> Result<T, String> {
        match self.archive.get() {
            Some(archive) => read(archive).map_err(|fault| fault.to_string()),
            None => Err(self.failed.get().cloned().unwrap_or_else(|| {
                "HF2402 the history is being opened. Nothing happened; try again in a moment"
                    .to_owned()
            })),
        }
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::Acquire)
    }
}

/// What one of `groups` may keep; of nothing, nothing.
fn part_of(all: Retention, groups: u32) -> Retention {
    let groups = u64::from(groups.max(1));
    Retention {
        records_max: (all.records_max / groups).max(all.records_max.min(1)),
        bytes_max: (all.bytes_max / groups).max(1),
        age_ms_max: all.age_ms_max,
    }
}

/// What arrived together, at most `most`, waiting `at_most` for the first and a moment for the others. `before`: how many it were the last
/// time. While they go on coming they are waited for asleep, so that nobody who tells one has a thread to wake.
fn together(
    heard: &Receiver<News>,
    before: usize,
    most: usize,
    at_most: Duration,
) -> Option<Vec<News>> {
    let mut news = Vec::new();
    if before > 0 {
        // As many as are taken at once: more are there already.
        if before < most {
            std::thread::sleep(GATHER);
        }
        news.extend(heard.try_iter().take(most));
        if !news.is_empty() {
            return Some(news);
        }
    }
    match heard.recv_timeout(at_most) {
        Ok(first) => news.push(first),
        Err(RecvTimeoutError::Timeout) => return Some(news),
        Err(RecvTimeoutError::Disconnected) => return None,
    }
    if !matches!(news[0], News::Stop) {
        std::thread::sleep(GATHER);
    }
    news.extend(heard.try_iter().take(most - 1));
    Some(news)
}

#[cfg(test)]
mod tests {
    use holdfast_history::MemoryShelf;

    use super::*;

    /// A history whose news nobody takes, and the end where they wait.
    fn unread() -> (Arc<History>, Receiver<News>) {
        let (news, heard) = sync_channel(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        let archive = Archive::open(Arc::new(MemoryShelf::default()), Retention::default());
        shared.archive.set(archive.unwrap()).unwrap();
        let history = History {
            news,
            waiting: Arc::default(),
            lagging: Arc::default(),
            shared,
            searches: Arc::new(Semaphore::new(SEARCHES_MAX)),
            thread: Mutex::default(),
        };
        (Arc::new(history), heard)
    }

    #[test]
    fn as_much_news_waits_as_allowed_and_one_more_is_taken_from_the_machine_instead() {
        let (history, heard) = unread();
        (0..QUEUE_MAX).for_each(|_| history.everything());
        assert!(!history.lagging.load(Ordering::Acquire), "all of it waits");
        history.everything();
        assert!(history.lagging.load(Ordering::Acquire), "one more does not");
        assert_eq!(heard.try_iter().count(), QUEUE_MAX);
    }

    #[test]
    fn as_many_transactions_wait_as_allowed_and_one_more_is_taken_from_the_machine_instead() {
        let (history, heard) = unread();
        let seen = |count: usize| {
            let one = |number| (Gid::parse(&format!("g{number}")).unwrap(), Attempts::default());
            (0..count).map(one).collect()
        };
        history.attempts(seen(QUEUE_MAX - 1));
        history.attempts(seen(1));
        assert!(!history.lagging.load(Ordering::Acquire), "all of them wait");
        history.attempts(seen(1));
        assert!(history.lagging.load(Ordering::Acquire), "one more does not");
        assert_eq!(heard.try_iter().count(), 2);
        assert_eq!(history.waiting.load(Ordering::Acquire), QUEUE_MAX, "and is not counted");
    }

    #[test]
    fn as_many_are_taken_together_as_allowed_and_one_more_is_taken_the_next_time() {
        let (history, heard) = unread();
        let taken =
            |before| together(&heard, before, 4, Duration::from_millis(1)).map(|it| it.len());
        (0..9).for_each(|_| history.everything());
        assert_eq!([0, 4, 4, 1, 0].map(taken), [4, 4, 1, 0, 0].map(Some));
        history.everything();
        assert_eq!(taken(3), Some(1));
        drop(history);
        assert_eq!([0, 3].map(taken), [None, None]);
    }

    #[test]
    fn nothing_waits_where_nothing_is_kept() {
        let (history, heard) = unread();
        history.shared.off.store(true, Ordering::Release);
        history.everything();
        assert_eq!(heard.try_iter().count(), 0);
    }

    #[test]
    fn a_part_of_nothing_is_nothing_and_of_little_at_least_one() {
        let part =
            |records_max| part_of(Retention { records_max, ..Retention::default() }, 4).records_max;
        assert_eq!([0, 1, 3, 8].map(part), [0, 1, 1, 2]);
    }

    #[tokio::test]
    async fn as_many_search_at_once_as_allowed_and_one_more_is_told_to_try_again() {
        let (history, _heard) = unread();
        let query = || Query { limit: 1, ..Query::default() };
        let others = u32::try_from(SEARCHES_MAX).unwrap() - 1;
        let under_way = history.searches.try_acquire_many(others).unwrap();
        assert!(history.search(query()).await.is_ok(), "the last place");
        let one_more = history.searches.try_acquire().unwrap();
        let refused = history.search(query()).await.unwrap_err().to_string();
        assert!(refused.starts_with("HF2406 8 searches"), "{refused}");
        drop((under_way, one_more));
        assert!(history.search(query()).await.is_ok());
        history.shared.off.store(true, Ordering::Release);
        let refused = history.search(query()).await.unwrap_err().to_string();
        assert!(refused.starts_with("HF2412"), "{refused}");
    }
}
