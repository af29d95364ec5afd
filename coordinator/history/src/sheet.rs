//! One sheet: how records become blocks, pages and a head, and how they are found in them again.

use std::{cmp::Ordering, sync::Arc};

use holdfast_proto::v1::{HistoryBlock, HistoryPage, HistoryRecord, HistorySheetHead, HistoryTerm};
use prost::Message;

use crate::{
    filter::Filter,
    limit,
    shelf::{Change, Shelf, ShelfError},
    term,
};

/// Terms on a page.
const PAGE_TERMS: usize = 512;
/// Bytes that a block or a page may unfold to; what says more is not ours.
const UNFOLDED_MAX: usize = 256 * 1024 * 1024;
/// The field of [`HistoryBlock`] that holds its records.
const BLOCK_RECORDS_TAG: u32 = 1;
/// The format that is written. In the first one amounts have no classes, only their size.
const FORMAT: u32 = 2;
/// The oldest that is read.
const FORMAT_MIN: u32 = 1;

/// What memory keeps of a sheet.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) number: u64,
    pub(crate) records: usize,
    pub(crate) first_ms: u64,
    pub(crate) last_ms: u64,
    pub(crate) bytes: u64,
    format: u32,
    blocks: u32,
    fences: Vec<u64>,
    filter: Filter,
}

/// Key of every head.
pub(crate) const HEADS: &[u8] = b"h";

fn key(kind: u8, sheet: u64, part: Option<u32>) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(sheet.to_be_bytes());
    key.extend(part.iter().flat_map(|part| part.to_be_bytes()));
    key
}

/// When a record's transaction finished, ms since epoch.
pub(crate) fn finished_ms(record: &HistoryRecord) -> u64 {
    record.transaction.as_ref().map_or(0, |known| known.finished_at_ms)
}

pub(crate) fn gid_of(record: &HistoryRecord) -> &str {
    record.transaction.as_ref().map_or("", |known| known.gid.as_str())
}

/// The order of the history: by the time of finishing, then by gid.
pub(crate) fn order(one: &HistoryRecord, other: &HistoryRecord) -> Ordering {
    (finished_ms(one), gid_of(one)).cmp(&(finished_ms(other), gid_of(other)))
}

/// The changes that put a sheet of `records`, sorted by [`order`], on a shelf.
pub(crate) fn encode(number: u64, records: &[Arc<HistoryRecord>]) -> (Head, Vec<Change>) {
    let mut changes = Vec::new();
    for (n, chunk) in (0..).zip(records.chunks(limit::BLOCK_RECORDS)) {
        changes.push((key(b'b', number, Some(n)), Some(fold_bytes(&block_of_records(chunk)))));
    }
    let blocks = u32::try_from(changes.len()).expect("a sheet is bounded");
    let mut places: Vec<(u64, u32)> = Vec::with_capacity(records.len() * 8);
    for (place, record) in (0..).zip(records) {
        places.extend(term::all_of(record).into_iter().map(|term| (term, place)));
    }
    places.sort_unstable();
    let mut terms: Vec<HistoryTerm> = Vec::new();
    let mut before = 0;
    for (term, place) in places {
        match terms.last_mut() {
            Some(last) if last.term == term => last.places.push(place - before),
            _ => terms.push(HistoryTerm { term, places: vec![place] }),
        }
        before = place;
    }
    let filter = Filter::of(terms.iter().map(|one| one.term));
    let mut fences = Vec::new();
    let mut terms = terms.into_iter().peekable();
    while let Some(first) = terms.peek() {
        let (number_of_page, first) = (fences.len() as u32, first.term);
        let page = HistoryPage { terms: terms.by_ref().take(PAGE_TERMS).collect() };
        changes.push((key(b'x', number, Some(number_of_page)), Some(fold(&page))));
        fences.push(first);
    }
    let bytes = changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
    let head = Head {
        number,
        records: records.len(),
        first_ms: records.first().map_or(0, |first| finished_ms(first)),
        last_ms: records.last().map_or(0, |last| finished_ms(last)),
        bytes: bytes.sum::<usize>() as u64,
        format: FORMAT,
        blocks,
        fences,
        filter,
    };
    changes.push((key(b'h', number, None), Some(head.to_bytes())));
    (head, changes)
}

impl Head {
    fn to_bytes(&self) -> Vec<u8> {
        HistorySheetHead {
            format: self.format,
            records: u32::try_from(self.records).expect("a sheet is bounded"),
            first_ms: self.first_ms,
            last_ms: self.last_ms,
            blocks: self.blocks,
            fences: self.fences.clone(),
            filter: self.filter.as_bytes().to_vec().into(),
            bytes: self.bytes,
        }
        .encode_to_vec()
    }

    /// A head as it lies on the shelf.
    pub(crate) fn read(key: &[u8], value: &[u8]) -> Result<Self, ShelfError> {
        let bad = |what: &str| ShelfError(format!("a sheet's head {what}"));
        let number = key.get(1..).and_then(|rest| rest.try_into().ok());
        let number = u64::from_be_bytes(number.ok_or_else(|| bad("has a bad key"))?);
        let head = HistorySheetHead::decode(value).map_err(|_| bad("cannot be read"))?;
        if !(FORMAT_MIN..=FORMAT).contains(&head.format) {
            return Err(bad("has a format that this version does not know"));
        }
        let filter = Filter::from_bytes(head.filter.to_vec());
        Ok(Self {
            number,
            records: head.records as usize,
            first_ms: head.first_ms,
            last_ms: head.last_ms,
            bytes: head.bytes,
            format: head.format,
            blocks: head.blocks,
            fences: head.fences,
            filter: filter.ok_or_else(|| bad("has no filter"))?,
        })
    }

    /// Whether amounts can be found by their classes, not by their size alone.
    pub(crate) fn has_amount_classes(&self) -> bool {
        self.format > FORMAT_MIN
    }

    /// False: no record of the sheet has any of `terms`.
    pub(crate) fn may_have_any(&self, terms: &[u64]) -> bool {
        terms.iter().any(|term| self.filter.may_have(*term))
    }

    /// The changes that take the sheet off its shelf.
    pub(crate) fn remove(&self) -> Vec<Change> {
        let parts = |kind, count| (0..count).map(move |part| (kind, part));
        let pages = u32::try_from(self.fences.len()).unwrap_or(u32::MAX);
        let parts = parts(b'b', self.blocks).chain(parts(b'x', pages));
        let keys = parts.map(|(kind, part)| key(kind, self.number, Some(part)));
        keys.chain([key(b'h', self.number, None)]).map(|key| (key, None)).collect()
    }

    /// Places of the records that have at least one of each set of `terms`, in order. No set: all.
    pub(crate) fn places(
        &self,
        shelf: &dyn Shelf,
        sets: &[Vec<u64>],
    ) -> Result<Vec<u32>, ShelfError> {
        let mut found: Option<Vec<u32>> = None;
        for set in sets {
            let mut places = Vec::new();
            for term in set.iter().filter(|term| self.filter.may_have(**term)) {
                places.extend(self.places_of(shelf, *term)?);
            }
            places.sort_unstable();
            places.dedup();
            if let Some(before) = &found {
                places.retain(|place| before.binary_search(place).is_ok());
            }
            if places.is_empty() {
                return Ok(places);
            }
            found = Some(places);
        }
        Ok(found.unwrap_or_else(|| (0..self.records as u32).collect()))
    }

    fn places_of(&self, shelf: &dyn Shelf, term: u64) -> Result<Vec<u32>, ShelfError> {
        let Some(page) = self.fences.partition_point(|fence| *fence <= term).checked_sub(1) else {
            return Ok(Vec::new());
        };
        // A sheet that retention took away meanwhile has nothing any more.
        let Some(bytes) = shelf.get(&key(b'x', self.number, Some(page as u32)))? else {
            return Ok(Vec::new());
        };
        let page: HistoryPage = unfold(&bytes)?;
        let Ok(at) = page.terms.binary_search_by_key(&term, |one| one.term) else {
            return Ok(Vec::new());
        };
        let places = page.terms[at].places.iter().scan(0_u32, |place, step| {
            *place = place.saturating_add(*step);
            Some(*place)
        });
        Ok(places.collect())
    }

    /// The block that holds the record at `place`, by its number.
    pub(crate) fn block_of(place: u32) -> u32 {
        place / limit::BLOCK_RECORDS as u32
    }

    /// The records of a block; none if the sheet is gone.
    pub(crate) fn block(
        &self,
        shelf: &dyn Shelf,
        block: u32,
    ) -> Result<Vec<HistoryRecord>, ShelfError> {
        match shelf.get(&key(b'b', self.number, Some(block)))? {
            Some(bytes) => Ok(unfold::<HistoryBlock>(&bytes)?.records),
            None => Ok(Vec::new()),
        }
    }

    /// Every record of the sheet.
    pub(crate) fn all(&self, shelf: &dyn Shelf) -> Result<Vec<Arc<HistoryRecord>>, ShelfError> {
        let mut records = Vec::with_capacity(self.records);
        for block in 0..self.blocks {
            records.extend(self.block(shelf, block)?.into_iter().map(Arc::new));
        }
        Ok(records)
    }

    /// Bytes of it in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.filter.as_bytes().len() + self.fences.len() * 8
    }
}

/// The bytes of a [`HistoryBlock`] of `records`, which are shared and therefore not moved into one.
fn block_of_records(records: &[Arc<HistoryRecord>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(records.len() * 256);
    for record in records {
        prost::encoding::message::encode(BLOCK_RECORDS_TAG, &**record, &mut bytes);
    }
    bytes
}

fn fold(message: &impl Message) -> Vec<u8> {
    fold_bytes(&message.encode_to_vec())
}

fn fold_bytes(bytes: &[u8]) -> Vec<u8> {
    lz4_flex::compress_prepend_size(bytes)
}

fn unfold<M: Message + Default>(bytes: &[u8]) -> Result<M, ShelfError> {
    let bad = |what: &str| ShelfError(format!("a part of a sheet {what}"));
    let (size, folded) = lz4_flex::block::uncompressed_size(bytes).map_err(|_| bad("is cut"))?;
    if size > UNFOLDED_MAX || size / 255 > folded.len() {
        return Err(bad("says that it is larger than it can be"));
    }
    let unfolded = lz4_flex::decompress(folded, size).map_err(|_| bad("cannot be unfolded"))?;
    M::decode(unfolded.as_slice()).map_err(|_| bad("cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_shared_records_reads_as_a_block() {
        let record = |node| HistoryRecord { attempts_node: node, ..HistoryRecord::default() };
        let shared: Vec<_> = [1, 2].map(record).into_iter().map(Arc::new).collect();
        let block = HistoryBlock { records: [1, 2].map(record).into() };
        assert_eq!(block_of_records(&shared), block.encode_to_vec());
    }
}
