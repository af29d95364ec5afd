//! The sheet that is filled: its records as bytes, in buffers that go from one sheet to the next.
//!
//! Kept as messages, a sheet of records is a hundred thousand small pieces of memory, made for each sheet and given back behind it. As bytes a
//! record is a few, smaller, and written as it lies here.

use std::{collections::HashMap, ops::Range, sync::Arc};

use foldhash::fast::RandomState;
use holdfast_proto::v1::HistoryRecord;
use prost::Message;

use crate::{
    limit,
    sheet::{self, finished_ms, gid_of},
    term,
};

/// The field of [`HistoryRecord`] that holds the transaction.
const TRANSACTION_TAG: u32 = 1;
/// Bytes that are kept for the next sheet; what is beyond goes back.
const BYTES_KEPT_MAX: usize = 16 << 20;

/// Records in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct OpenSheet {
    entries: Vec<Entry>,
    by_gid: HashMap<Arc<str>, usize, RandomState>,
    bytes: Vec<u8>,
    terms: Vec<u64>,
}

/// Where the parts of a record lie.
#[derive(Debug)]
struct Entry {
    finished_ms: u64,
    gid: Arc<str>,
    transaction: Range<usize>,
    /// What its leader saw of its calls.
    attempts: Range<usize>,
    terms: Range<usize>,
}

impl OpenSheet {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn has(&self, gid: &str) -> bool {
        self.by_gid.contains_key(gid)
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

    /// Takes in a record that is not here.
    pub(crate) fn push(&mut self, mut record: HistoryRecord) {
        let (finished_ms, gid) = (finished_ms(&record), Arc::<str>::from(gid_of(&record)));
        let terms = self.terms.len()..{
            self.terms.extend(term::all_of(&record));
            self.terms.len()
        };
        let transaction = self.bytes.len()..{
            if let Some(transaction) = record.transaction.take() {
                prost::encoding::message::encode(TRANSACTION_TAG, &transaction, &mut self.bytes);
            }
            self.bytes.len()
        };
        let attempts = self.write(&record);
        self.by_gid.insert(Arc::clone(&gid), self.entries.len());
        self.entries.push(Entry { finished_ms, gid, transaction, attempts, terms });
    }

    /// Puts what was seen of the calls of `gid` beside it; `seen` has no transaction. False: it is not here.
    pub(crate) fn attach(&mut self, gid: &str, seen: &HistoryRecord) -> bool {
        let Some(at) = self.by_gid.get(gid).copied() else { return false };
        self.entries[at].attempts = self.write(seen);
        true
    }

    fn write(&mut self, part: &HistoryRecord) -> Range<usize> {
        let from = self.bytes.len();
        part.encode(&mut self.bytes).expect("a buffer grows");
        from..self.bytes.len()
    }

    pub(crate) fn get(&self, gid: &str) -> Option<HistoryRecord> {
        self.by_gid.get(gid).map(|at| self.read(&self.entries[*at]))
    }

    fn parts(&self, entry: &Entry) -> [&[u8]; 2] {
        [&self.bytes[entry.transaction.clone()], &self.bytes[entry.attempts.clone()]]
    }

    fn read(&self, entry: &Entry) -> HistoryRecord {
        let mut record = HistoryRecord::default();
        for part in self.parts(entry) {
            record.merge(part).expect("it was written here");
        }
        record
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
            is_meant(entry.finished_ms, &entry.gid)
                && sets.iter().all(|set| set.iter().any(|term| terms.contains(term)))
        };
        let mut found: Vec<&Entry> = self.entries.iter().filter(may_fit).collect();
        found.sort_unstable_by(|one, other| other.place().cmp(&one.place()));
        let read = found.into_iter().map(|entry| self.read(entry));
        read.filter(fits).take(limit).map(Arc::new).collect()
    }

    /// All of them in the order of the history.
    pub(crate) fn in_order(&self) -> Vec<sheet::Encoded<'_>> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_unstable_by(|one, other| one.place().cmp(&other.place()));
        let encoded = entries.into_iter().map(|entry| sheet::Encoded {
            finished_ms: entry.finished_ms,
            parts: self.parts(entry),
            terms: &self.terms[entry.terms.clone()],
        });
        encoded.collect()
    }

    /// Begins anew, in the same buffers.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.by_gid.clear();
        self.terms.clear();
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEPT_MAX);
    }
}

impl Entry {
    /// Its place in the history: by the time of finishing, then by gid.
    fn place(&self) -> (u64, &str) {
        (self.finished_ms, &self.gid)
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

    #[test]
    fn a_record_reads_as_it_was_and_the_attempts_that_are_told_last_count() {
        let mut sheet = OpenSheet::default();
        let whole = HistoryRecord { transaction: record("a", 7).transaction, ..seen("done") };
        sheet.push(whole.clone());
        sheet.push(record("b", 7));
        assert_eq!(sheet.get("a").as_ref(), Some(&whole));
        assert_eq!((sheet.get("b"), sheet.get("c")), (Some(record("b", 7)), None));
        assert!(sheet.attach("a", &seen("unknown")) && !sheet.attach("c", &seen("done")));
        let told = sheet.get("a").unwrap();
        assert_eq!(told.attempts, seen("unknown").attempts, "and not both");
        assert_eq!(told.transaction, whole.transaction);
    }

    #[test]
    fn a_cleared_sheet_is_empty_and_keeps_as_much_memory_as_allowed() {
        let mut sheet = OpenSheet::default();
        let mut large = record("a", 7);
        large.transaction.as_mut().unwrap().reason = "r".repeat(BYTES_KEPT_MAX + 1);
        sheet.push(large);
        assert!(sheet.bytes.capacity() > BYTES_KEPT_MAX);
        sheet.clear();
        assert_eq!((sheet.len(), sheet.has("a"), sheet.oldest_ms()), (0, false, None));
        assert!(sheet.bytes.capacity() <= BYTES_KEPT_MAX);
    }
}
