//! The sheet that is filled: its records as bytes, in buffers that go from one sheet to the next.
//!
//! Kept as messages, a sheet of records is a hundred thousand small pieces of memory, made for each sheet and given back behind it. As bytes a
//! record is a few, smaller, and written as it lies here.

use std::{hash::BuildHasher, ops::Range, sync::Arc};

use foldhash::fast::RandomState;
use holdfast_proto::v1::HistoryRecord;
use prost::Message;

use crate::{limit, recorded::Recorded, sheet, term};

/// Bytes that are kept for the next sheet; what is beyond goes back.
const BYTES_KEPT_MAX: usize = 16 << 20;

/// Places of gids at first, a power of two.
const PLACES_MIN: usize = 64;

/// Records in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct OpenSheet {
    entries: Vec<Entry>,
    /// Numbers of entries and one more, each where the hash of its gid says, or behind it; 0: none.
    by_gid: Vec<u32>,
    /// Hashes a gid for `by_gid`; otherwise than elsewhere, so that nobody chooses gids that are alike.
    hashed: RandomState,
    gids: Vec<u8>,
    bytes: Vec<u8>,
    terms: Vec<u32>,
}

/// The hash of a gid that is not here, and where it would be found.
#[derive(Debug)]
pub(crate) struct Free {
    hash: u64,
    slot: usize,
}

/// Where the parts of a record lie.
#[derive(Debug)]
struct Entry {
    finished_ms: u64,
    /// Of its gid.
    hash: u64,
    gid: Range<usize>,
    transaction: Range<usize>,
    /// What its leader saw of its calls.
    seen: Range<usize>,
    terms: Range<usize>,
}

impl OpenSheet {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The hash of `gid` for [`Self::push`]. `None`: a record with that gid is here.
    pub(crate) fn free(&mut self, gid: &[u8]) -> Option<Free> {
        // Half of the places stay free, so that few lie far from where they belong.
        if self.by_gid.len() <= 2 * self.entries.len() {
            self.make_room();
        }
        let hash = self.hash(gid);
        self.find(gid, hash).err().map(|slot| Free { hash, slot })
    }

    fn hash(&self, gid: &[u8]) -> u64 {
        self.hashed.hash_one(gid)
    }

    fn make_room(&mut self) {
        let places = (2 * self.by_gid.len()).max(PLACES_MIN);
        self.by_gid.clear();
        self.by_gid.resize(places, 0);
        for (number, entry) in (1..).zip(&self.entries) {
            let free = self.slots(entry.hash).find(|slot| self.by_gid[*slot] == 0);
            self.by_gid[free.expect("half of them are free")] = number;
        }
    }

    /// Where a gid of this hash may be, in order.
    fn slots(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.by_gid.len() - 1;
        (0..=mask).map(move |step| (hash as usize).wrapping_add(step) & mask)
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
    pub(crate) fn push(&mut self, record: &impl Recorded, Free { hash, slot }: Free) {
        self.by_gid[slot] = u32::try_from(self.entries.len() + 1).expect("a sheet is bounded");
        let from = (self.gids.len(), self.bytes.len(), self.terms.len());
        let gid = record.gid();
        self.gids.extend_from_slice(gid);
        term::tell(record, gid, &mut self.terms);
        record.write_transaction(&mut self.bytes);
        let between = self.bytes.len();
        record.write_seen(&mut self.bytes);
        self.entries.push(Entry {
            finished_ms: record.finished_ms(),
            hash,
            gid: from.0..self.gids.len(),
            transaction: from.1..between,
            seen: between..self.bytes.len(),
            terms: from.2..self.terms.len(),
        });
    }

    /// Puts what was seen of the calls of `gid`, as `write` appends it, in place of what is known of them. False: it is not here.
    pub(crate) fn attach(&mut self, gid: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(at) = self.find_any(gid) else { return false };
        let from = self.bytes.len();
        write(&mut self.bytes);
        self.entries[at].seen = from..self.bytes.len();
        true
    }

    pub(crate) fn get(&self, gid: &[u8]) -> Option<HistoryRecord> {
        self.find_any(gid).map(|at| self.read(&self.entries[at]))
    }

    fn find_any(&self, gid: &[u8]) -> Option<usize> {
        if self.entries.is_empty() { None } else { self.find(gid, self.hash(gid)).ok() }
    }

    /// The entry with `gid`, or the place where it would be.
    fn find(&self, gid: &[u8], hash: u64) -> Result<usize, usize> {
        for slot in self.slots(hash) {
            let Some(at) = (self.by_gid[slot] as usize).checked_sub(1) else { return Err(slot) };
            let entry = &self.entries[at];
            if entry.hash == hash && self.gid(entry) == gid {
                return Ok(at);
            }
        }
        unreachable!("half of the places are free")
    }

    fn gid(&self, entry: &Entry) -> &[u8] {
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
    fn place(&self, entry: &Entry) -> (u64, &[u8]) {
        (entry.finished_ms, self.gid(entry))
    }

    /// Newest first, at most `limit` of those that are meant by their place, have a term of each of `sets`, and fit.
    pub(crate) fn search(
        &self,
        is_meant: impl Fn(u64, &[u8]) -> bool,
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
    pub(crate) fn in_order(&self, order: &mut Vec<u32>, alike: &mut Vec<(u64, u32)>) {
        order.clear();
        order.extend(0..self.entries.len() as u32);
        if !self.entries.is_sorted_by_key(|entry| entry.finished_ms) {
            order.sort_by_key(|at| self.entries[*at as usize].finished_ms);
        }
        let ms = |at: &u32| self.entries[*at as usize].finished_ms;
        for same in order.chunk_by_mut(|one, other| ms(one) == ms(other)) {
            if same.len() > 1 {
                self.in_order_of_gids(same, alike);
            }
        }
    }

    /// Sorts by gid. Most begin alike, with a time: the eight characters behind that are compared as a number.
    fn in_order_of_gids(&self, same: &mut [u32], keyed: &mut Vec<(u64, u32)>) {
        let gid = |at: u32| self.gid(&self.entries[at as usize]);
        let first = gid(same[0]);
        let mut alike = first.len();
        for at in &same[1..] {
            let pairs = gid(*at).iter().zip(&first[..alike]);
            alike = pairs.take_while(|(one, other)| one == other).count();
        }
        keyed.clear();
        keyed.extend(same.iter().map(|at| (number(&gid(*at)[alike..]), *at)));
        keyed.sort_unstable_by(|(one, at), (other, also_at)| {
            one.cmp(other).then_with(|| gid(*at).cmp(gid(*also_at)))
        });
        same.iter_mut().zip(keyed).for_each(|(place, (_, at))| *place = *at);
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
        self.by_gid.fill(0);
        self.gids.clear();
        self.terms.clear();
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEPT_MAX);
    }
}

/// Its first eight bytes as a number that sorts as they do; what is missing is 0.
fn number(text: &[u8]) -> u64 {
    match text.first_chunk() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => {
            (0..8).fold(0, |number, at| number << 8 | u64::from(text.get(at).copied().unwrap_or(0)))
        }
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
        assert_eq!(sheet.get(b"a").as_ref(), Some(&whole));
        assert_eq!((sheet.get(b"b"), sheet.get(b"c")), (Some(record("b", 7)), None));
        let write = |outcome: &str| seen(outcome).encode_to_vec();
        assert!(sheet.attach(b"a", |to| to.extend(write("unknown"))));
        assert!(!sheet.attach(b"c", |to| to.extend(write("done"))));
        let told = sheet.get(b"a").unwrap();
        assert_eq!(told.attempts, seen("unknown").attempts, "and not both");
        assert_eq!(told.transaction, whole.transaction);
    }

    #[test]
    fn gids_whose_hashes_are_alike_are_told_apart() {
        let mut sheet = OpenSheet::default();
        // As if all three had the hash of the last place.
        let hash = u64::MAX;
        for gid in ["a", "b", "c"] {
            sheet.free(gid.as_bytes()).expect("it is not here");
            let slot = sheet.find(gid.as_bytes(), hash).unwrap_err();
            sheet.push(&record(gid, 7), Free { hash, slot });
        }
        let find = |sheet: &OpenSheet| [b"a", b"b", b"c"].map(|gid| sheet.find(gid, hash));
        assert_eq!(find(&sheet), [0, 1, 2].map(Ok));
        sheet.make_room();
        assert_eq!(find(&sheet), [0, 1, 2].map(Ok));
        assert_eq!(sheet.find(b"d", hash), Err(2), "behind the last place comes the first");
    }

    #[test]
    fn as_many_are_found_as_came_and_no_other() {
        let mut sheet = OpenSheet::default();
        let gids: Vec<String> = (0..1_000).map(|n| format!("g{n}")).collect();
        gids.iter().for_each(|gid| push(&mut sheet, &record(gid, 7)));
        assert!(gids.iter().all(|gid| sheet.free(gid.as_bytes()).is_none()));
        assert_eq!(sheet.get(b"g999"), Some(record("g999", 7)));
        assert_eq!(sheet.get(b"g1000"), None);
        sheet.clear();
        assert!(gids.iter().all(|gid| sheet.free(gid.as_bytes()).is_some()));
    }

    #[test]
    fn their_order_is_by_time_and_then_by_gid_however_they_arrived() {
        let mut sheet = OpenSheet::default();
        for (gid, ms) in [("d", 5), ("b", 7), ("a", 7), ("c", 6)] {
            push(&mut sheet, &record(gid, ms));
        }
        let mut order = vec![9];
        sheet.in_order(&mut order, &mut vec![(9, 9)]);
        assert_eq!(order, [0, 3, 2, 1]);
    }

    #[test]
    fn gids_of_one_time_are_in_order_wherever_they_differ() {
        let alike = "0123456789abcdef";
        let ends = ["", "x", "xy", "y", "01234567", "01234567a", "01234567b", "0123456"];
        let gids = ends.iter().flat_map(|end| [(*end).to_owned(), format!("{alike}{end}")]);
        for count in [1, 2, 3, 16] {
            let mut sheet = OpenSheet::default();
            let gids: Vec<String> = gids.clone().skip(16 - count).collect();
            let distinct: std::collections::BTreeSet<&String> = gids.iter().rev().collect();
            for gid in gids.iter().rev() {
                if sheet.free(gid.as_bytes()).is_some() {
                    push(&mut sheet, &record(gid, 7));
                }
            }
            let mut order = Vec::new();
            sheet.in_order(&mut order, &mut Vec::new());
            let found = order.iter().map(|at| sheet.gid(&sheet.entries[*at as usize]));
            assert!(found.eq(distinct.iter().map(|gid| gid.as_bytes())), "{count}");
        }
    }

    #[test]
    fn a_cleared_sheet_is_empty_and_keeps_as_much_memory_as_allowed() {
        let mut sheet = OpenSheet::default();
        let mut large = record("a", 7);
        large.transaction.as_mut().unwrap().reason = "r".repeat(BYTES_KEPT_MAX + 1);
        push(&mut sheet, &large);
        assert!(sheet.bytes.capacity() > BYTES_KEPT_MAX);
        sheet.clear();
        assert_eq!((sheet.len(), sheet.get(b"a").is_some(), sheet.oldest_ms()), (0, false, None));
        assert!(sheet.bytes.capacity() <= BYTES_KEPT_MAX);
    }
}
