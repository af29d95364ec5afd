//! The history of one node: takes records in, keeps as much as it should, and is searched.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use holdfast_proto::v1::HistoryRecord;

use crate::{
    limit,
    open_sheet::{Free, OpenSheet},
    recorded::Recorded,
    sheet::{self, Block, Head, Press},
    shelf::{Shelf, ShelfError},
};

/// Blocks whose gids are remembered while records come again.
const AGAIN_BLOCKS_MAX: usize = 8;

/// How much is kept. The oldest sheet goes as a whole when one of these is passed without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records. 0 says to whoever writes that nothing is to be written; an archive keeps the sheet that is filled.
    pub records_max: u64,
    /// Bytes of sheets, compressed; the disk holds up to twice as much.
    pub bytes_max: u64,
    /// Since it finished, ms.
    pub age_ms_max: u64,
}

impl Default for Retention {
    /// 20,000,000 records, 20 GiB, 400 days.
    fn default() -> Self {
        Self {
            records_max: 20_000_000,
            bytes_max: 20 * 1024 * 1024 * 1024,
            age_ms_max: 400 * 86_400_000,
        }
    }
}

/// What a history holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Records.
    pub records: u64,
    /// Sheets, the one that is filled included.
    pub sheets: u64,
    /// Bytes of full sheets, compressed.
    pub bytes: u64,
    /// Bytes on disk as the shelf tells them.
    pub disk_bytes: u64,
    /// Bytes of filters and fences in memory.
    pub memory_bytes: u64,
    /// When the oldest one finished, ms since epoch; 0: none.
    pub oldest_ms: u64,
    /// When the newest one finished.
    pub newest_ms: u64,
}

/// Finished transactions of one node. Shared: one thread writes, any may search.
#[derive(Debug)]
pub struct Archive {
    pub(crate) shelf: Arc<dyn Shelf>,
    retention: Mutex<Retention>,
    inner: RwLock<Inner>,
    /// Held by whoever writes a sheet.
    writing: Mutex<Press>,
    leaves_way: AtomicBool,
    /// Gids of the blocks in which records were found that came again, newest first. A restart brings hundreds of thousands of
    /// them in the order in which they lie here, and unfolding a page and a block for each took longer than all else.
    again: Mutex<VecDeque<HashSet<Vec<u8>>>>,
}

/// Why the sheet that is filled takes no more for now.
#[derive(Debug)]
enum Stopped<R> {
    /// This one belongs to the next sheet.
    Full(R),
    /// This one is no newer than what the shelf has, so it may be there.
    Doubted(R),
}

#[derive(Debug, Default)]
struct Inner {
    /// Full ones, oldest first.
    sheets: VecDeque<Arc<Head>>,
    records: u64,
    bytes: u64,
    memory_bytes: u64,
    /// The one that is filled.
    open_number: u64,
    open: OpenSheet,
    dirty: bool,
    newest_ms: u64,
}

impl Archive {
    /// The history on `shelf`.
    /// # Errors
    /// [`ShelfError`]: what lies there is no history of this version.
    pub fn open(shelf: Arc<dyn Shelf>, retention: Retention) -> Result<Self, ShelfError> {
        let mut inner = Inner::default();
        for (key, value) in shelf.scan(sheet::HEADS)? {
            inner.seal(Head::read(&key, &value)?);
        }
        inner.open_number = inner.sheets.back().map_or(0, |last| last.number + 1);
        let last = inner.sheets.back().filter(|last| last.records < limit::SHEET_RECORDS).cloned();
        if let Some(last) = last {
            // It was not full: it goes on being filled.
            inner.unseal_newest();
            inner.open_number = last.number;
            for record in last.all(&*shelf)? {
                inner.push_new(&record);
            }
            inner.dirty = false;
        }
        let (inner, retention) = (RwLock::new(inner), Mutex::new(retention));
        let (writing, again) = (Mutex::default(), Mutex::default());
        let leaves_way = AtomicBool::new(false);
        Ok(Self { shelf, retention, inner, writing, leaves_way, again })
    }

    /// From now on whoever writes a sheet gives its processor to whoever waits for one behind each block, or does not.
    pub fn leave_way(&self, leaves: bool) {
        self.leaves_way.store(leaves, Ordering::Relaxed);
    }

    /// Takes in records in the order in which they finished; one that is known already changes nothing. Says how many were
    /// new. A full sheet is written on the way. Who searches may wait until each was made, so that none needs memory beside the others.
    /// # Errors
    /// [`ShelfError`]; what was taken in before stays.
    pub fn add<R: Recorded>(
        &self,
        records: impl IntoIterator<Item = R>,
    ) -> Result<usize, ShelfError> {
        let mut added = 0;
        let mut records = records.into_iter();
        let mut next = records.next();
        while let Some(record) = next.take() {
            // As many as the sheet takes without a look at the shelf, under one hold.
            let (taken, stopped) = self.held_alone().push_all(record, &mut records);
            added += taken;
            match stopped {
                None => return Ok(added),
                Some(Stopped::Full(record)) => {
                    self.write_open(true)?;
                    next = Some(record);
                }
                Some(Stopped::Doubted(record)) => {
                    if !self.is_on_shelf(record.gid())? {
                        added += usize::from(self.held_alone().push_new(&record));
                    }
                    next = records.next();
                }
            }
        }
        Ok(added)
    }

    /// Adds to a transaction that is not on a full sheet yet what its leader saw of its calls; `write` appends it as
    /// [`Recorded::write_seen`] does. False: it is not there.
    pub fn attach(&self, gid: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut inner = self.held_alone();
        let attached = inner.open.attach(gid, write);
        inner.dirty |= attached;
        attached
    }

    /// Keeps as much as `retention` says from the next [`Self::flush`] on.
    pub fn keep(&self, retention: Retention) {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner) = retention;
    }

    /// Writes what is not on the shelf yet, and takes away what is too old at `now_ms` or too much.
    /// # Errors
    /// [`ShelfError`].
    pub fn flush(&self, now_ms: u64) -> Result<(), ShelfError> {
        if self.held().dirty {
            self.write_open(false)?;
        }
        let retention = *self.retention.lock().unwrap_or_else(PoisonError::into_inner);
        let Retention { records_max, bytes_max, age_ms_max } = retention;
        loop {
            let oldest = {
                let inner = self.held();
                let all = inner.records + inner.open.len() as u64;
                let Some(oldest) = inner.sheets.front() else { return Ok(()) };
                let surplus = all - oldest.records as u64 >= records_max
                    || inner.bytes > bytes_max
                    || oldest.last_ms.saturating_add(age_ms_max) < now_ms;
                if !surplus {
                    return Ok(());
                }
                Arc::clone(oldest)
            };
            self.shelf.write(oldest.remove())?;
            self.held_alone().unseal_oldest();
        }
    }

    /// The record of `gid`.
    /// # Errors
    /// [`ShelfError`].
    pub fn get(&self, gid: &str) -> Result<Option<Arc<HistoryRecord>>, ShelfError> {
        let sheets: Vec<_> = {
            let inner = self.held();
            if let Some(record) = inner.open.get(gid.as_bytes()) {
                return Ok(Some(Arc::new(record)));
            }
            inner.sheets.iter().cloned().collect()
        };
        Ok(self.find_among(&sheets, gid.as_bytes())?.map(|(_, record)| Arc::new(record)))
    }

    /// The newest record of `gid` on `sheets`, and the block that has it.
    fn find_among(
        &self,
        sheets: &[Arc<Head>],
        gid: &[u8],
    ) -> Result<Option<(Block, HistoryRecord)>, ShelfError> {
        for head in sheets.iter().rev() {
            let term = head.scheme().gid(gid);
            if !head.may_have_any(&[term]) {
                continue;
            }
            for place in head.places(&*self.shelf, &[vec![term]])? {
                let block = head.block(&*self.shelf, head.block_of(place))?;
                if let Some(record) = block.read(head.within_block(place))?
                    && record.gid() == gid
                {
                    return Ok(Some((block, record)));
                }
            }
        }
        Ok(None)
    }

    /// What it holds.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let inner = self.held();
        let first = inner.sheets.front().map(|head| head.first_ms);
        Figures {
            records: inner.records + inner.open.len() as u64,
            sheets: inner.sheets.len() as u64 + 1,
            bytes: inner.bytes,
            disk_bytes: self.shelf.bytes_on_disk(),
            memory_bytes: inner.memory_bytes,
            oldest_ms: first.or(inner.open.oldest_ms()).unwrap_or_default(),
            newest_ms: inner.newest_ms,
        }
    }

    /// Every full sheet, oldest first, and what `look` finds on the one that is filled. It is held meanwhile: whoever writes waits for
    /// that, and nobody who applies does.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&OpenSheet) -> T) -> (Vec<Arc<Head>>, T) {
        let inner = self.held();
        (inner.sheets.iter().cloned().collect(), look(&inner.open))
    }

    /// Whether the record is on a full sheet already, as many are after a restart.
    fn is_on_shelf(&self, gid: &[u8]) -> Result<bool, ShelfError> {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if again.iter().any(|gids| gids.contains(gid)) {
            return Ok(true);
        }
        let sheets: Vec<_> = self.held().sheets.iter().cloned().collect();
        let Some((block, _)) = self.find_among(&sheets, gid)? else { return Ok(false) };
        let gids: Result<_, _> =
            block.all().map(|one| one.map(|record| record.gid().to_owned())).collect();
        again.truncate(AGAIN_BLOCKS_MAX - 1);
        again.push_front(gids?);
        Ok(true)
    }

    /// Writes the sheet that is filled; `seal`: it is full, and the next one begins.
    fn write_open(&self, seal: bool) -> Result<(), ShelfError> {
        let mut press = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.held_alone().dirty = false;
        let (head, changes) = {
            // Its buffers are not copied: who searches reads beside this, and nobody adds.
            let inner = self.held();
            if inner.open.len() == 0 {
                return Ok(());
            }
            let leave_way = || {
                if self.leaves_way.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            };
            sheet::encode(inner.open_number, &inner.open, &mut press, leave_way)
        };
        if let Err(fault) = self.shelf.write(changes) {
            self.held_alone().dirty = true;
            return Err(fault);
        }
        if seal {
            let mut inner = self.held_alone();
            inner.seal(head);
            inner.open_number += 1;
            inner.open.clear();
        }
        Ok(())
    }

    fn held(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_alone(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn seal(&mut self, head: Head) {
        self.records += head.records as u64;
        self.bytes += head.bytes;
        self.memory_bytes += head.memory_bytes() as u64;
        self.newest_ms = self.newest_ms.max(head.last_ms);
        self.sheets.push_back(Arc::new(head));
    }

    fn unseal_newest(&mut self) {
        let gone = self.sheets.pop_back();
        self.forget(gone);
    }

    fn unseal_oldest(&mut self) {
        let gone = self.sheets.pop_front();
        self.forget(gone);
    }

    fn forget(&mut self, gone: Option<Arc<Head>>) {
        let Some(gone) = gone else { return };
        self.records -= gone.records as u64;
        self.bytes -= gone.bytes;
        self.memory_bytes -= gone.memory_bytes() as u64;
    }

    /// Pushes `record` and what follows it until one cannot be pushed without more ado. Repeats of what is on this sheet are passed over.
    fn push_all<R: Recorded>(
        &mut self,
        record: R,
        rest: &mut impl Iterator<Item = R>,
    ) -> (usize, Option<Stopped<R>>) {
        let on_shelf_ms = self.sheets.back().map(|last| last.last_ms);
        let mut taken = 0;
        for record in std::iter::once(record).chain(rest) {
            let ms = record.finished_ms();
            if self.open.is_full(ms) {
                return (taken, Some(Stopped::Full(record)));
            }
            let Some(free) = self.open.free(record.gid()) else { continue };
            if on_shelf_ms.is_some_and(|last_ms| ms <= last_ms) {
                return (taken, Some(Stopped::Doubted(record)));
            }
            self.push(&record, free);
            taken += 1;
        }
        (taken, None)
    }

    /// Takes it in unless it is in the open sheet; says whether.
    fn push_new(&mut self, record: &impl Recorded) -> bool {
        let free = self.open.free(record.gid());
        free.map(|free| self.push(record, free)).is_some()
    }

    fn push(&mut self, record: &impl Recorded, free: Free) {
        self.newest_ms = self.newest_ms.max(record.finished_ms());
        self.open.push(record, free);
        self.dirty = true;
    }
}
