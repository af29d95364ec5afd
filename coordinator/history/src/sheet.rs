//! One sheet: how records become blocks, pages and a head, and how they are found in them again.

use std::{fmt, ops::Range};

use holdfast_proto::{
    v1::{HistoryPage, HistoryRecord, HistorySheetHead},
    write_varint,
};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

use crate::{
    filter::Filter,
    keys::Keys,
    limit,
    open_sheet::OpenSheet,
    pages,
    shelf::{Change, Shelf, ShelfError},
    term::Scheme,
};

/// Bytes that a block or a page may unfold to; what says more is not ours.
const UNFOLDED_MAX: usize = 256 * 1024 * 1024;
/// The field of [`HistoryBlock`](holdfast_proto::v1::HistoryBlock) that holds its records.
const BLOCK_RECORDS_TAG: u32 = 1;
/// The format that is written. In the first one amounts have no classes, only their size; until the second one terms had 64 bits, pages were
/// compressed messages, and blocks half as large.
const FORMAT: u32 = 3;
/// The oldest that is read.
const FORMAT_MIN: u32 = 1;
/// The oldest that knows classes of amounts.
const FORMAT_OF_CLASSES: u32 = 2;
/// The oldest with pages and terms as they are written today.
const FORMAT_OF_PAGES: u32 = 3;
/// Records in a block before that.
const BLOCK_RECORDS_BEFORE: usize = 32;

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
    pub(crate) terms: &'s [u32],
}

/// The changes that put `sheet` on a shelf, in the order of the history. `between` is called behind each block.
pub(crate) fn encode(
    number: u64,
    sheet: &OpenSheet,
    press: &mut Press,
    between: impl Fn(),
) -> (Head, Vec<Change>) {
    let mut changes = Vec::with_capacity(sheet.len() / limit::BLOCK_RECORDS + 64);
    let mut order = std::mem::take(&mut press.order);
    sheet.in_order(&mut order, &mut press.alike);
    let mut keys = std::mem::take(&mut press.keys);
    keys.clear();
    for (n, chunk) in (0_u32..).zip(order.chunks(limit::BLOCK_RECORDS)) {
        let first = n * limit::BLOCK_RECORDS as u32;
        for (place, record) in (first..).zip(chunk.iter().map(|at| sheet.encoded(*at))) {
            write_record(&record, &mut press.bytes);
            keys.push(record.terms, place);
        }
        changes.push((key(b'b', number, Some(n)), Some(press.fold())));
        between();
    }
    let blocks = u32::try_from(changes.len()).expect("a sheet is bounded");
    keys.sort();
    let terms = keys.by_term().map(|same| pages::term_of(same[0]));
    let filter = Filter::of(keys.by_term().count(), terms);
    let mut fences = Vec::new();
    pages::write(keys.by_term(), &mut press.bytes, |first, page| {
        changes.push((key(b'x', number, Some(fences.len() as u32)), Some(page.to_vec())));
        fences.push(first);
    });
    press.bytes.clear();
    let bytes = changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
    let finished_ms = |at: Option<&u32>| at.map_or(0, |at| sheet.encoded(*at).finished_ms);
    let head = Head {
        number,
        records: sheet.len(),
        first_ms: finished_ms(order.first()),
        last_ms: finished_ms(order.last()),
        bytes: bytes.sum::<usize>() as u64,
        format: FORMAT,
        blocks,
        fences,
        filter,
    };
    (press.order, press.keys) = (order, keys);
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
        let filter = Filter::from_bytes(head.filter.to_vec(), scheme_of(head.format));
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
        self.format >= FORMAT_OF_CLASSES
    }

    /// How its terms are told.
    pub(crate) fn scheme(&self) -> Scheme {
        scheme_of(self.format)
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
        if self.format >= FORMAT_OF_PAGES {
            return pages::places(&bytes, term).ok_or_else(|| bad_part("cannot be read"));
        }
        let page = unfold(&bytes)?;
        let page = HistoryPage::decode(&*page).map_err(|_| bad_part("cannot be read"))?;
        let Ok(at) = page.terms.binary_search_by_key(&term, |one| one.term) else {
            return Ok(Vec::new());
        };
        let places = page.terms[at].places.iter().scan(0_u32, |place, step| {
            *place = place.saturating_add(*step);
            Some(*place)
        });
        Ok(places.collect())
    }

    fn block_records(&self) -> u32 {
        let records = if self.format >= FORMAT_OF_PAGES {
            limit::BLOCK_RECORDS
        } else {
            BLOCK_RECORDS_BEFORE
        };
        records as u32
    }

    /// The block that holds the record at `place`, by its number.
    pub(crate) fn block_of(&self, place: u32) -> u32 {
        place / self.block_records()
    }

    /// Where in its block the record at `place` lies.
    pub(crate) fn within_block(&self, place: u32) -> usize {
        (place % self.block_records()) as usize
    }

    /// A block; an empty one if the sheet is gone.
    pub(crate) fn block(&self, shelf: &dyn Shelf, block: u32) -> Result<Block, ShelfError> {
        match shelf.get(&key(b'b', self.number, Some(block)))? {
            Some(bytes) => Block::of(unfold(&bytes)?),
            None => Ok(Block::default()),
        }
    }

    /// Every record of the sheet.
    pub(crate) fn all(&self, shelf: &dyn Shelf) -> Result<Vec<HistoryRecord>, ShelfError> {
        let mut records = Vec::with_capacity(self.records);
        for block in 0..self.blocks {
            for record in self.block(shelf, block)?.all() {
                records.push(record?);
            }
        }
        Ok(records)
    }

    /// Bytes of it in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.filter.as_bytes().len() + self.fences.len() * 8
    }
}

fn scheme_of(format: u32) -> Scheme {
    if format >= FORMAT_OF_PAGES { Scheme::Words } else { Scheme::Bytes }
}

/// Some records, of which each is read when somebody asks for it: most searches want one of a block.
#[derive(Debug, Default)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    records: Vec<Range<usize>>,
}

impl Block {
    /// Of a [`HistoryBlock`](holdfast_proto::v1::HistoryBlock) in bytes.
    fn of(bytes: Vec<u8>) -> Result<Self, ShelfError> {
        let bad = || bad_part("cannot be read");
        let mut records = Vec::with_capacity(limit::BLOCK_RECORDS);
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            let key = decode_key(&mut left).map_err(|_| bad())?;
            let length = decode_varint(&mut left).map_err(|_| bad())?;
            let length = usize::try_from(length).ok().filter(|length| *length <= left.len());
            let length = length.filter(|_| key == (BLOCK_RECORDS_TAG, WireType::LengthDelimited));
            let from = bytes.len() - left.len();
            let until = from + length.ok_or_else(bad)?;
            records.push(from..until);
            left = &bytes[until..];
        }
        Ok(Self { bytes, records })
    }

    /// The record at this place of the block.
    pub(crate) fn read(&self, at: usize) -> Result<Option<HistoryRecord>, ShelfError> {
        self.records.get(at).map(|range| self.decoded(range)).transpose()
    }

    /// Each of its records.
    pub(crate) fn all(&self) -> impl Iterator<Item = Result<HistoryRecord, ShelfError>> {
        self.records.iter().map(|range| self.decoded(range))
    }

    fn decoded(&self, range: &Range<usize>) -> Result<HistoryRecord, ShelfError> {
        let record = &self.bytes[range.clone()];
        HistoryRecord::decode(record).map_err(|_| bad_part("cannot be read"))
    }
}

/// Writes a record of a [`HistoryBlock`](holdfast_proto::v1::HistoryBlock).
fn write_record(record: &Encoded<'_>, to: &mut Vec<u8>) {
    prost::encoding::encode_key(BLOCK_RECORDS_TAG, WireType::LengthDelimited, to);
    let length: usize = record.parts.iter().map(|part| part.len()).sum();
    write_varint(length as u64, to);
    record.parts.iter().for_each(|part| to.extend_from_slice(part));
}

/// The buffers in which sheets are made, one after the other.
#[derive(Default)]
pub(crate) struct Press {
    /// What is to be compressed.
    bytes: Vec<u8>,
    folded: Vec<u8>,
    table: CompressTable,
    /// Records in the order of the history.
    order: Vec<u32>,
    /// Those of one time, while they are put in order.
    alike: Vec<(u64, u32)>,
    /// Terms with places.
    keys: Keys,
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

fn bad_part(what: &str) -> ShelfError {
    ShelfError(format!("a part of a sheet {what}"))
}

fn unfold(bytes: &[u8]) -> Result<Vec<u8>, ShelfError> {
    let cut = |_| bad_part("is cut");
    let (size, folded) = lz4_flex::block::uncompressed_size(bytes).map_err(cut)?;
    if size > UNFOLDED_MAX || size / 255 > folded.len() {
        return Err(bad_part("says that it is larger than it can be"));
    }
    lz4_flex::decompress(folded, size).map_err(|_| bad_part("cannot be unfolded"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use holdfast_proto::v1::{HistoryBlock, Transaction};

    use super::*;

    #[test]
    fn between_two_blocks_there_is_time_for_others() {
        for (records, blocks) in [(1, 1), (limit::BLOCK_RECORDS, 1), (limit::BLOCK_RECORDS + 1, 2)]
        {
            let mut sheet = OpenSheet::default();
            for number in 0..records {
                let transaction =
                    Transaction { gid: format!("g{number}"), ..Transaction::default() };
                let record =
                    HistoryRecord { transaction: Some(transaction), ..HistoryRecord::default() };
                let free = sheet.free(gid_of(&record).as_bytes()).unwrap();
                sheet.push(&record, free);
            }
            let times = Cell::new(0);
            encode(0, &sheet, &mut Press::default(), || times.set(times.get() + 1));
            assert_eq!(times.get(), blocks, "{records}");
        }
    }

    #[test]
    fn a_block_is_written_as_its_message_is_and_each_record_read_by_itself() {
        let record = |node| HistoryRecord { attempts_node: node, ..HistoryRecord::default() };
        let records = [1, 2].map(record);
        let mut press = Press::default();
        for record in &records {
            let bytes = record.encode_to_vec();
            let encoded = Encoded { finished_ms: 0, parts: [&bytes, &[]], terms: &[] };
            write_record(&encoded, &mut press.bytes);
        }
        let bytes = unfold(&press.fold()).unwrap();
        assert_eq!(bytes, HistoryBlock { records: records.clone().into() }.encode_to_vec());
        let block = Block::of(bytes.clone()).unwrap();
        assert_eq!(block.read(1).unwrap().as_ref(), Some(&records[1]));
        assert_eq!(block.read(2).unwrap(), None);
        let all: Result<Vec<_>, _> = block.all().collect();
        assert_eq!(all.unwrap(), records);
        assert!(Block::of(bytes[..bytes.len() - 1].to_vec()).is_err(), "it is cut");
        assert!(Block::of([&[0x12, 0], &*bytes].concat()).is_err(), "another field");
        assert!(Block::of(vec![0x0a, 0xff, 0xff, 0x03]).is_err(), "longer than it is");
    }
}
