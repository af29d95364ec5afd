//! One sheet: how records become blocks, pages and a head, and how they are found in them again.

use std::fmt;

use holdfast_proto::v1::{HistoryBlock, HistoryPage, HistoryRecord, HistorySheetHead, HistoryTerm};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use prost::{Message, encoding::WireType};

use crate::{
    filter::Filter,
    limit,
    shelf::{Change, Shelf, ShelfError},
};

/// Terms on a page.
const PAGE_TERMS: usize = 512;
/// Bytes that a block or a page may unfold to; what says more is not ours.
const UNFOLDED_MAX: usize = 256 * 1024 * 1024;
/// The field of [`HistoryBlock`] that holds its records.
const BLOCK_RECORDS_TAG: u32 = 1;
/// The field of [`HistoryPage`] that holds its terms.
const PAGE_TERMS_TAG: u32 = 1;
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

/// A record as it lies in memory, with what it can be found by.
pub(crate) struct Encoded<'s> {
    pub(crate) finished_ms: u64,
    /// Of a [`HistoryRecord`]; one behind the other they are the whole.
    pub(crate) parts: [&'s [u8]; 2],
    pub(crate) terms: &'s [u64],
}

/// A term, and the place of a record that has it.
type Place = (u64, u32);

/// The changes that put a sheet of `records`, in the order of the history, on a shelf.
pub(crate) fn encode(
    number: u64,
    records: &[Encoded<'_>],
    press: &mut Press,
) -> (Head, Vec<Change>) {
    let mut changes = Vec::new();
    for (n, chunk) in (0..).zip(records.chunks(limit::BLOCK_RECORDS)) {
        write_block(chunk, &mut press.bytes);
        changes.push((key(b'b', number, Some(n)), Some(press.fold())));
    }
    let blocks = u32::try_from(changes.len()).expect("a sheet is bounded");
    let mut places = std::mem::take(&mut press.places);
    places.clear();
    places.extend(
        (0..)
            .zip(records)
            .flat_map(|(place, record)| record.terms.iter().map(move |term| (*term, place))),
    );
    places.sort_unstable();
    let terms = || places.chunk_by(|one, other| one.0 == other.0);
    let filter = Filter::of(terms().count(), terms().map(|one| one[0].0));
    let mut fences = Vec::new();
    let mut terms = terms().peekable();
    while let Some(first) = terms.peek() {
        let number_of_page = fences.len() as u32;
        fences.push(first[0].0);
        write_page(terms.by_ref().take(PAGE_TERMS), &mut press.bytes);
        changes.push((key(b'x', number, Some(number_of_page)), Some(press.fold())));
    }
    press.places = places;
    let bytes = changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
    let head = Head {
        number,
        records: records.len(),
        first_ms: records.first().map_or(0, |first| first.finished_ms),
        last_ms: records.last().map_or(0, |last| last.finished_ms),
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
    pub(crate) fn all(&self, shelf: &dyn Shelf) -> Result<Vec<HistoryRecord>, ShelfError> {
        let mut records = Vec::with_capacity(self.records);
        for block in 0..self.blocks {
            records.extend(self.block(shelf, block)?);
        }
        Ok(records)
    }

    /// Bytes of it in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.filter.as_bytes().len() + self.fences.len() * 8
    }
}

/// Writes a [`HistoryBlock`] of `records`.
fn write_block(records: &[Encoded<'_>], to: &mut Vec<u8>) {
    for record in records {
        prost::encoding::encode_key(BLOCK_RECORDS_TAG, WireType::LengthDelimited, to);
        let length: usize = record.parts.iter().map(|part| part.len()).sum();
        prost::encoding::encode_varint(length as u64, to);
        record.parts.iter().for_each(|part| to.extend_from_slice(part));
    }
}

/// Writes a [`HistoryPage`] of `terms`, each with its places.
fn write_page<'p>(terms: impl IntoIterator<Item = &'p [Place]>, to: &mut Vec<u8>) {
    let mut one = HistoryTerm::default();
    for places in terms {
        one.term = places[0].0;
        one.places.clear();
        let mut before = 0;
        one.places
            .extend(places.iter().map(|(_, place)| place - std::mem::replace(&mut before, *place)));
        prost::encoding::message::encode(PAGE_TERMS_TAG, &one, to);
    }
}

/// The buffers in which sheets are made, one after the other.
#[derive(Default)]
pub(crate) struct Press {
    /// What is to be compressed.
    bytes: Vec<u8>,
    folded: Vec<u8>,
    table: CompressTable,
    places: Vec<Place>,
}

impl fmt::Debug for Press {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Press").finish_non_exhaustive()
    }
}

impl Press {
    /// Compresses what was written, and is empty again.
    fn fold(&mut self) -> Vec<u8> {
        let Self { bytes, folded, table, .. } = self;
        let size = u32::try_from(bytes.len()).expect("a part of a sheet is bounded");
        let most = get_maximum_output_size(bytes.len());
        if folded.len() < most {
            folded.resize(most, 0);
        }
        let length = compress_into_with_table(bytes, folded, table).expect("there is room for it");
        bytes.clear();
        [&size.to_le_bytes(), &folded[..length]].concat()
    }
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
    fn blocks_and_pages_are_written_as_their_messages_are() {
        let record = |node| HistoryRecord { attempts_node: node, ..HistoryRecord::default() };
        let parts = [1, 2].map(|node| record(node).encode_to_vec());
        let encoded = |part| Encoded { finished_ms: 0, parts: [part, &[]], terms: &[] };
        let mut press = Press::default();
        write_block(&[encoded(&parts[0]), encoded(&parts[1])], &mut press.bytes);
        let block = HistoryBlock { records: [1, 2].map(record).into() };
        assert_eq!(unfold::<HistoryBlock>(&press.fold()).unwrap(), block);
        // The second part is shorter: nothing of the first is in it.
        let terms: [&[Place]; 2] = [&[(5, 2), (5, 9), (5, 10)], &[(7, 0)]];
        write_page(terms, &mut press.bytes);
        let term = |term, places: &[u32]| HistoryTerm { term, places: places.to_vec() };
        let page = HistoryPage { terms: vec![term(5, &[2, 7, 1]), term(7, &[0])] };
        assert_eq!(unfold::<HistoryPage>(&press.fold()).unwrap(), page);
    }
}
