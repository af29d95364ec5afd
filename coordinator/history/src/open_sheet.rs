//! The sheet that is filled: its records as bytes, in buffers that go from one sheet to the next.
//!
//! Kept as messages, a sheet of records is a hundred thousand small pieces of memory, made for each sheet and given back behind it. As bytes a
//! record is a few, smaller, and written as it lies here.

use std::{collections::HashMap, hash::BuildHasher, ops::Range, sync::Arc};

use foldhash::fast::RandomState;
use holdfast_proto::v1::HistoryRecord;
use prost::Message;

use crate::{limit, recorded::Recorded, sheet, term};

/// Bytes that are kept for the next sheet; what is beyond goes back.
const BYTES_KEPT_MAX: usize = 16 << 20;

/// Records in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct OpenSheet {
    entries: Vec<Entry>,
    /// The newest entry with a gid of this hash.
    by_gid: HashMap<u64, u32, RandomState>,
    /// Hashes a gid for `by_gid`.
    hashed: RandomState,
    gids: String,
    bytes: Vec<u8>,
    terms: Vec<u32>,
}

/// The hash of a gid that is not here.
#[derive(Debug)]
pub(crate) struct Free(u64);

/// Where the parts of a record lie.
#[derive(Debug)]
struct Entry {
    finished_ms: u64,
    gid: Range<usize>,
    transaction: Range<usize>,
    /// What its leader saw of its calls.
    seen: Range<usize>,
    terms: Range<usize>,
    /// The one before whose gid has the same hash.
    before: Option<u32>,
}

impl OpenSheet {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The hash of `gid` for [`Self::push`]. `None`: a record with that gid is here.
    pub(crate) fn free(&self, gid: &str) -> Option<Free> {
        let hash = self.hashed.hash_one(gid);
        self.find(gid, hash).is_none().then_some(Free(hash))
    }

    /// When the oldest of them finished.
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.finished_ms).min()
    }

    /// Whether one that finished at `ms` begins a new sheet.
    pub(crate) fn is_full(&self, ms: u64) -> bool {
        let len = self.len();
        len >= limit::SHEET_RECORDS_MAX
            || (len >= limit::SHEET_RECORDS
                && self.entries.last().is_some_and(|last| last.finished_ms != ms))
    }

    /// Takes in a record that is not here, as its [`Self::free`] said.
    pub(crate) fn push(&mut self, record: &impl Recorded, Free(hash): Free) {
        let at = u32::try_from(self.entries.len()).expect("a sheet is bounded");
        let before = self.by_gid.insert(hash, at);
        let from = (self.gids.len(), self.bytes.len(), self.terms.len());
        let gid = record.gid();
        self.gids.push_str(gid);
        term::tell(record, gid, &mut self.terms);
        record.write_transaction(&mut self.bytes);
        let between = self.bytes.len();
        record.write_seen(&mut self.bytes);
        self.entries.push(Entry {
            finished_ms: record.finished_ms(),
            gid: from.0..self.gids.len(),
            transaction: from.1..between,
            seen: between..self.bytes.len(),
            terms: from.2..self.terms.len(),
            before,
        });
    }

    /// Puts what was seen of the calls of `gid`, as `write` appends it, in place of what is known of them. False: it is not here.
    pub(crate) fn attach(&mut self, gid: &str, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(at) = self.find(gid, self.hashed.hash_one(gid)) else { return false };
        let from = self.bytes.len();
        write(&mut self.bytes);
        self.entries[at].seen = from..self.bytes.len();
        true
    }

    pub(crate) fn get(&self, gid: &str) -> Option<HistoryRecord> {
        self.find(gid, self.hashed.hash_one(gid)).map(|at| self.read(&self.entries[at]))
    }

    fn find(&self, gid: &str, hash: u64) -> Option<usize> {
        let mut next = self.by_gid.get(&hash).copied();
        while let Some(at) = next {
            let entry = &self.entries[at as usize];
            if self.gid(entry) == gid {
                return Some(at as usize);
            }
            next = entry.before;
        }
        None
    }

    fn gid(&self, entry: &Entry) -> &str {
        &self.gids[entry.gid.clone()]
    }

    fn parts(&self, entry: &Entry) -> [&[u8]; 2] {
        [&self.bytes[entry.transaction.clone()], &self.bytes[entry.seen.clone()]]
    }

    fn read(&self, entry: &Entry) -> HistoryRecord {
        let mut record = HistoryRecord::default();
        for part in self.parts(entry) {
            record.merge(part).expect("it was written here");
        }
        record
    }

    /// Its place in the history: by the time of finishing, then by gid.
    fn place(&self, entry: &Entry) -> (u64, &str) {
        (entry.finished_ms, self.gid(entry))
    }

    /// Newest first, at most `limit` of those that are meant by their place, have a term of each of `sets`, and fit.
    pub(crate) fn search(
        &self,
        is_meant: impl Fn(u64, &str) -> bool,
        sets: &[Vec<u64>],
        fits: impl Fn(&HistoryRecord) -> bool,
        limit: usize,
    ) -> Vec<Arc<HistoryRecord>> {
        let may_fit = |entry: &&Entry| {
            let terms = &self.terms[entry.terms.clone()];
            let has = |term: &u64| terms.iter().any(|one| u64::from(*one) == *term);
            is_meant(entry.finished_ms, self.gid(entry))
                && sets.iter().all(|set| set.iter().any(has))
        };
        let mut found: Vec<&Entry> = self.entries.iter().filter(may_fit).collect();
        found.sort_unstable_by(|one, other| self.place(other).cmp(&self.place(one)));
        let read = found.into_iter().map(|entry| self.read(entry));
        read.filter(fits).take(limit).map(Arc::new).collect()
    }

    /// Puts the numbers of all of them into `order`, in the order of the history. They mostly arrived in the order of their time.
    pub(crate) fn in_order(&self, order: &mut Vec<u32>) {
        order.clear();
        order.extend(0..self.entries.len() as u32);
        let ms = |at: &u32| self.entries[*at as usize].finished_ms;
        let gid = |at: &u32| self.gid(&self.entries[*at as usize]);
        order.sort_by_key(ms);
        for same in order.chunk_by_mut(|one, other| ms(one) == ms(other)) {
            same.sort_unstable_by(|one, other| gid(one).cmp(gid(other)));
        }
    }

    /// The one with this number, as it lies here.
    pub(crate) fn encoded(&self, number: u32) -> sheet::Encoded<'_> {
        let entry = &self.entries[number as usize];
        sheet::Encoded {
            finished_ms: entry.finished_ms,
            parts: self.parts(entry),
            terms: &self.terms[entry.terms.clone()],
        }
    }

    /// Begins anew, in the same buffers.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.by_gid.clear();
        self.gids.clear();
        self.terms.clear();
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEPT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::{Attempt, Transaction};

    use super::*;

    fn record(gid: &str, finished_at_ms: u64) -> HistoryRecord {
        let transaction = Transaction { gid: gid.to_owned(), finished_at_ms, ..Default::default() };
        HistoryRecord { transaction: Some(transaction), ..Default::default() }
    }

    fn seen(outcome: &str) -> HistoryRecord {
        let attempt = Attempt { branch: 1, outcome: outcome.to_owned(), ..Default::default() };
        HistoryRecord { attempts: vec![attempt], attempts_node: 3, ..Default::default() }
    }

    fn push(sheet: &mut OpenSheet, record: &HistoryRecord) {
        let free = sheet.free(record.gid()).expect("it is not here");
        sheet.push(record, free);
    }

    #[test]
    fn a_record_reads_as_it_was_and_the_attempts_that_are_told_last_count() {
        let mut sheet = OpenSheet::default();
        let whole = HistoryRecord { transaction: record("a", 7).transaction, ..seen("done") };
        push(&mut sheet, &whole);
        push(&mut sheet, &record("b", 7));
        assert_eq!(sheet.get("a").as_ref(), Some(&whole));
        assert_eq!((sheet.get("b"), sheet.get("c")), (Some(record("b", 7)), None));
        let write = |outcome: &str| seen(outcome).encode_to_vec();
        assert!(sheet.attach("a", |to| to.extend(write("unknown"))));
        assert!(!sheet.attach("c", |to| to.extend(write("done"))));
        let told = sheet.get("a").unwrap();
        assert_eq!(told.attempts, seen("unknown").attempts, "and not both");
        assert_eq!(told.transaction, whole.transaction);
    }

    #[test]
    fn gids_whose_hashes_are_alike_are_told_apart() {
        let mut sheet = OpenSheet::default();
        ["a", "b", "c"].iter().for_each(|gid| push(&mut sheet, &record(gid, 7)));
        // As if all three had the hash of the last.
        (sheet.entries[1].before, sheet.entries[2].before) = (Some(0), Some(1));
        let alike = sheet.hashed.hash_one("a");
        sheet.by_gid.insert(alike, 2);
        assert_eq!(sheet.get("a"), Some(record("a", 7)));
        assert_eq!(sheet.find("c", alike), Some(2));
    }

    #[test]
    fn their_order_is_by_time_and_then_by_gid_however_they_arrived() {
        let mut sheet = OpenSheet::default();
        for (gid, ms) in [("d", 5), ("b", 7), ("a", 7), ("c", 6)] {
            push(&mut sheet, &record(gid, ms));
        }
        let mut order = vec![9];
        sheet.in_order(&mut order);
        assert_eq!(order, [0, 3, 2, 1]);
    }

    #[test]
    fn a_cleared_sheet_is_empty_and_keeps_as_much_memory_as_allowed() {
        let mut sheet = OpenSheet::default();
        let mut large = record("a", 7);
        large.transaction.as_mut().unwrap().reason = "r".repeat(BYTES_KEPT_MAX + 1);
        push(&mut sheet, &large);
        assert!(sheet.bytes.capacity() > BYTES_KEPT_MAX);
        sheet.clear();
        assert_eq!((sheet.len(), sheet.get("a").is_some(), sheet.oldest_ms()), (0, false, None));
        assert!(sheet.bytes.capacity() <= BYTES_KEPT_MAX);
    }
}
