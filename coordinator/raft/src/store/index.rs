//! The log as the process sees it: where every entry stands on disk, and the recent ones themselves.

use std::collections::VecDeque;

use super::{
    record::{Place, record_bytes},
    scan::{Facts, Located},
};
use crate::consensus::{Entry, LogId, Payload, log_id};

/// Bytes of recent entries that are kept in memory, beside those that are not on disk yet.
pub(crate) const RECENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What an entry takes in memory beside its payload, about.
const ENTRY_OVERHEAD_BYTES: usize = 128;

#[derive(Debug)]
struct Slot {
    term: u64,
    /// None until it is written.
    located: Option<Located>,
    /// None once it made room for newer ones.
    entry: Option<Entry>,
    /// Bytes of the records of the log up to its own.
    end: u64,
}

/// Where to find an entry.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Recent(Entry),
    OnDisk(LogId, Located),
}

/// Every entry of the log, from the first that is not purged.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) facts: Facts,
    first: u64,
    slots: VecDeque<Slot>,
    /// As `Slot::end`, of the entry before the first.
    begin: u64,
    /// Entries from here on are in memory.
    recent_from: u64,
    recent_bytes: usize,
    recent_bytes_max: usize,
}

pub(crate) fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Blank => 0,
        Payload::Normal(opaque) => opaque.0.len(),
        // Close enough for a bound: a member is a few short strings.
        Payload::Membership(membership) => 256 * membership.nodes().count(),
    }
}

fn bytes_in_memory(entry: &Entry) -> usize {
    payload_bytes(entry) + ENTRY_OVERHEAD_BYTES
}

impl Index {
    pub(crate) fn new(
        facts: Facts,
        first: u64,
        located: VecDeque<Located>,
        recent_bytes_max: usize,
    ) -> Self {
        let mut end = 0;
        let slots: VecDeque<Slot> = located
            .into_iter()
            .map(|located| {
                end += record_bytes(located.payload_bytes as usize) as u64;
                Slot { term: located.term, located: Some(located), entry: None, end }
            })
            .collect();
        let recent_from = first + slots.len() as u64;
        Self { facts, first, slots, begin: 0, recent_from, recent_bytes: 0, recent_bytes_max }
    }

    fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn slot_of(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Takes an entry in, readable at once. `Err`: it does not follow the last.
    pub(crate) fn append(&mut self, entry: Entry) -> Result<(), String> {
        let named = entry.log_id;
        if let Some(last) = self.facts.last
            && named.index != last.index + 1
        {
            return Err(format!("the entry {named} cannot follow the entry {last}"));
        }
        if self.slots.is_empty() {
            self.first = named.index;
            self.recent_from = named.index;
        }
        self.recent_bytes += bytes_in_memory(&entry);
        let term = **named.committed_leader_id();
        let before = self.slots.back().map_or(self.begin, |slot| slot.end);
        let end = before + record_bytes(payload_bytes(&entry)) as u64;
        self.slots.push_back(Slot { term, located: None, entry: Some(entry), end });
        self.facts.append(named);
        Ok(())
    }

    /// The writer wrote this entry. It may be gone meanwhile, or replaced by one of another term.
    pub(crate) fn written(&mut self, index: u64, located: Located) {
        if let Some(slot) = self.slot_of(index)
            && slot.term == located.term
        {
            slot.located = Some(located);
        }
    }

    /// Lets go of the oldest entries in memory, as far as there are too many and they are on disk.
    pub(crate) fn make_room(&mut self) {
        while self.recent_bytes > self.recent_bytes_max {
            let index = self.recent_from;
            let Some(slot) = self.slot_of(index) else { return };
            if slot.located.is_none() {
                return;
            }
            let freed = slot.entry.take().as_ref().map_or(0, bytes_in_memory);
            self.recent_bytes -= freed;
            self.recent_from += 1;
        }
    }

    /// Whether there are entries behind this one.
    pub(crate) fn reaches_beyond(&self, after: Option<&LogId>) -> bool {
        let keep = after.map_or(0, |after| after.index + 1);
        self.next() > keep && !self.slots.is_empty()
    }

    /// Removes the entries after this one.
    pub(crate) fn truncate(&mut self, after: Option<LogId>) {
        let keep = after.as_ref().map_or(0, |after| after.index + 1).max(self.first);
        while self.next() > keep {
            let gone = self.slots.pop_back().and_then(|slot| slot.entry);
            self.recent_bytes -= gone.as_ref().map_or(0, bytes_in_memory);
        }
        self.recent_from = self.recent_from.min(self.next());
        self.facts.truncate(after);
    }

    /// Drops the entries up to this one, of which there may be none.
    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index
            && let Some(slot) = self.slots.pop_front()
        {
            self.begin = slot.end;
            self.recent_bytes -= slot.entry.as_ref().map_or(0, bytes_in_memory);
            self.first += 1;
        }
        if self.slots.is_empty() {
            self.first = self.first.max(upto.index + 1);
        }
        self.recent_from = self.recent_from.max(self.first);
        self.facts.purge(upto);
    }

    /// Bytes of the records from the first that is held to that of this entry.
    fn end_of(&self, index: u64) -> u64 {
        let many = index.saturating_add(1).saturating_sub(self.first);
        let many = usize::try_from(many).unwrap_or(usize::MAX).min(self.slots.len());
        many.checked_sub(1).map_or(self.begin, |last| self.slots[last].end)
    }

    /// Bytes of the records behind the entry `after`, as far as they are held, up to that of `upto`.
    pub(crate) fn bytes_between(&self, after: Option<u64>, upto: u64) -> u64 {
        let begin = after.map_or(self.begin, |after| self.end_of(after));
        self.end_of(upto).saturating_sub(begin)
    }

    /// The last entry that may go if of those up to `upto` no more than so many, and no more than so many bytes, are kept. `None`: all
    /// of them may stay.
    pub(crate) fn last_beyond(&self, upto: u64, entries: u64, bytes: u64) -> Option<u64> {
        let gone = self.end_of(upto).saturating_sub(bytes);
        let whole = self.slots.partition_point(|slot| slot.end < gone) as u64;
        let by_bytes = (gone > self.begin).then(|| self.first + whole);
        let by_number = upto.checked_sub(entries).filter(|last| *last >= self.first);
        by_bytes.max(by_number)
    }

    /// The entries of `[start, end)` that are there: in order and without a gap, at least one if there is any, and
    /// then as many as `bytes_max` allows.
    pub(crate) fn find(&self, start: u64, end: u64, bytes_max: usize) -> Vec<Found> {
        let start = start.max(self.first);
        let end = end.min(self.next());
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in start..end {
            let at = usize::try_from(index - self.first).expect("an offset into a deque");
            let slot = &self.slots[at];
            let (size, one) = match (&slot.entry, slot.located) {
                (Some(entry), _) => (payload_bytes(entry), Found::Recent(entry.clone())),
                (None, Some(located)) => {
                    let named = log_id(slot.term, index);
                    (located.payload_bytes as usize, Found::OnDisk(named, located))
                }
                (None, None) => unreachable!("an entry leaves memory only when it is written"),
            };
            bytes += size;
            if !found.is_empty() && bytes > bytes_max {
                break;
            }
            found.push(one);
        }
        found
    }

    /// Whether the entry is still there, for a reader whose file was given another life meanwhile.
    pub(crate) fn holds(&self, index: u64) -> bool {
        (self.first..self.next()).contains(&index)
    }
}

/// For [`Index::written`].
pub(crate) fn located(term: u64, place: Place, payload_bytes: usize) -> Located {
    let payload_bytes = u32::try_from(payload_bytes).expect("a payload is within its limit");
    Located { term, place, payload_bytes }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::consensus::Opaque;

    fn entry(term: u64, index: u64, bytes: usize) -> Entry {
        let payload = Payload::Normal(Opaque(Bytes::from(vec![7; bytes])));
        Entry { log_id: log_id(term, index), payload }
    }

    fn index(recent_bytes_max: usize) -> Index {
        Index::new(Facts::default(), 0, VecDeque::new(), recent_bytes_max)
    }

    fn written(index: &mut Index, at: u64, term: u64) {
        index.written(at, located(term, Place { life: 1, offset: 64 }, 10));
    }

    #[test]
    fn an_entry_leaves_memory_only_when_it_is_written() {
        let mut log = index(0);
        log.append(entry(1, 0, 10)).expect("it is the first");
        log.append(entry(1, 1, 10)).expect("it follows");
        log.make_room();
        assert!(matches!(log.find(0, 2, 1000)[..], [Found::Recent(_), Found::Recent(_)]));
        written(&mut log, 0, 1);
        log.make_room();
        assert!(matches!(log.find(0, 2, 1000)[..], [Found::OnDisk(..), Found::Recent(_)]));
    }

    #[test]
    fn a_late_note_of_a_truncated_entry_does_not_touch_its_successor() {
        let mut log = index(0);
        log.append(entry(1, 0, 10)).expect("it is the first");
        log.append(entry(1, 1, 10)).expect("it follows");
        log.truncate(Some(log_id(1, 0)));
        log.append(entry(2, 1, 10)).expect("it follows");
        written(&mut log, 0, 1);
        written(&mut log, 1, 1);
        log.make_room();
        let found = log.find(1, 2, 1000);
        assert!(matches!(&found[..], [Found::Recent(entry)] if entry.log_id == log_id(2, 1)));
    }

    #[test]
    fn a_read_is_bounded_but_never_empty() {
        let mut log = index(1_000_000);
        for at in 0..10 {
            log.append(entry(1, at, 100)).expect("it follows");
        }
        assert_eq!(log.find(0, 10, 0).len(), 1);
        assert_eq!(log.find(0, 10, 250).len(), 2);
        assert_eq!(log.find(3, 100, 100_000).len(), 7);
    }

    #[test]
    fn bytes_are_counted_between_any_two_entries_whatever_was_purged_truncated_or_recovered() {
        let one = record_bytes(100) as u64;
        let held = (0..10).map(|_| located(1, Place { life: 1, offset: 64 }, 100)).collect();
        let facts = Facts { last: Some(log_id(1, 14)), ..Facts::default() };
        let mut log = Index::new(facts, 5, held, 1_000_000);
        log.append(entry(1, 15, 100)).expect("it follows");
        assert_eq!(log.bytes_between(None, 15), 11 * one);
        assert_eq!(log.bytes_between(Some(2), 15), 11 * one, "what is gone does not count");
        assert_eq!(log.bytes_between(Some(9), 12), 3 * one);
        assert_eq!(log.bytes_between(Some(12), 9), 0);
        log.truncate(Some(log_id(1, 12)));
        assert_eq!(log.bytes_between(Some(9), u64::MAX), 3 * one);
        log.purge(log_id(1, 9));
        assert_eq!(log.bytes_between(None, 12), 3 * one);
        log.append(entry(2, 13, 100)).expect("it follows");
        assert_eq!(log.bytes_between(Some(11), 13), 2 * one);
        log.purge(log_id(2, 40));
        assert_eq!(log.bytes_between(None, 40), 0);
        log.append(entry(2, 41, 100)).expect("it follows what was purged");
        assert_eq!(log.bytes_between(Some(40), 41), one);
    }

    #[test]
    fn entries_are_kept_to_the_limit_of_bytes_and_one_byte_less_lets_one_more_go() {
        const ANY: u64 = 100;
        let one = record_bytes(100) as u64;
        let mut log = index(1_000_000);
        for at in 0..10 {
            log.append(entry(1, at, 100)).expect("it follows");
        }
        assert_eq!(log.last_beyond(7, ANY, 8 * one), None);
        assert_eq!(log.last_beyond(7, ANY, 8 * one - 1), Some(0));
        assert_eq!(log.last_beyond(7, ANY, 3 * one), Some(4));
        assert_eq!(log.last_beyond(7, ANY, 3 * one - 1), Some(5));
        assert_eq!(log.last_beyond(7, ANY, 0), Some(7));
        log.purge(log_id(1, 4));
        assert_eq!(log.last_beyond(7, ANY, 3 * one), None);
        assert_eq!(log.last_beyond(7, ANY, 3 * one - 1), Some(5));
        log.purge(log_id(1, 9));
        assert_eq!(log.last_beyond(9, ANY, 0), None);
    }

    #[test]
    fn entries_are_kept_to_the_limit_of_their_number_and_one_less_lets_one_more_go() {
        let mut log = index(1_000_000);
        for at in 0..10 {
            log.append(entry(1, at, 100)).expect("it follows");
        }
        assert_eq!(log.last_beyond(7, 8, u64::MAX), None);
        assert_eq!(log.last_beyond(7, 7, u64::MAX), Some(0));
        assert_eq!(log.last_beyond(7, 6, u64::MAX), Some(1));
        log.purge(log_id(1, 1));
        assert_eq!(log.last_beyond(7, 6, u64::MAX), None);
        assert_eq!(log.last_beyond(7, 0, u64::MAX), Some(7));
        // Whichever lets more go.
        let three = 3 * record_bytes(100) as u64;
        assert_eq!(log.last_beyond(7, 5, three), Some(4));
        assert_eq!(log.last_beyond(7, 2, three), Some(5));
    }

    #[test]
    fn a_purge_may_reach_beyond_the_end() {
        let mut log = index(1_000_000);
        log.append(entry(1, 0, 100)).expect("it is the first");
        log.purge(log_id(4, 20));
        assert_eq!(log.facts.last, Some(log_id(4, 20)));
        assert!(log.append(entry(4, 20, 1)).is_err());
        log.append(entry(4, 21, 1)).expect("it follows what was purged");
        assert_eq!(log.find(0, 100, 1000).len(), 1);
    }
}
