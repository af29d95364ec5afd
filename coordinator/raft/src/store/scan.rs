//! Opening the log: read every segment, believe what checks out, cut a torn tail, refuse damage.
//!
//! A crash can tear only the last group of records that was being written, since a group is written only when the one
//! before it is on disk. So bytes that are no record are a torn tail if they stand in the last segment and no record of
//! a *later* group stands behind them; anything else is damage to what was durable. A wrong bit in the very last group
//! looks like a torn tail and is cut like one: no log can tell the two apart.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_proto::v1;
use prost::Message as _;

use super::{
    durable::sync_file,
    error::{During as _, StoreError},
    record::{self, Flaw, Kind, Place, Record, record_bytes},
    segment::{self, HEAD_BYTES},
};
use crate::{
    config::SEGMENT_BYTES_MAX,
    consensus::{Ballot, LogId, log_id},
    convert::{ballot_from_proto, ballot_to_proto, position_from_proto, position_to_proto},
};

/// What is true of the log as a whole at some point of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) ballot: Option<Ballot>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    /// The last entry, or what was purged if there is none behind that.
    pub(crate) last: Option<LogId>,
}

impl Facts {
    /// An entry was appended.
    pub(crate) fn append(&mut self, entry: LogId) {
        self.last = Some(entry);
    }

    /// Entries after this one were removed.
    pub(crate) fn truncate(&mut self, after: Option<LogId>) {
        self.last = after.max(self.purged);
    }

    /// Entries up to this one, present or not, were given up for a snapshot.
    pub(crate) fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
    }

    /// The payload of the record that begins a segment.
    pub(crate) fn to_base(&self) -> Vec<u8> {
        v1::RaftSegmentBase {
            ballot: self.ballot.as_ref().map(ballot_to_proto),
            purged: self.purged.as_ref().map(position_to_proto),
            committed: self.committed.as_ref().map(position_to_proto),
            last: self.last.as_ref().map(position_to_proto),
        }
        .encode_to_vec()
    }

    fn from_base(payload: &[u8]) -> Result<Self, String> {
        let base = v1::RaftSegmentBase::decode(payload).map_err(|error| error.to_string())?;
        let position =
            |position: Option<v1::RaftPosition>| position.as_ref().map(position_from_proto);
        Ok(Self {
            ballot: base.ballot.map(|ballot| ballot_from_proto(Some(ballot)).expect("it is there")),
            purged: position(base.purged),
            committed: position(base.committed),
            last: position(base.last),
        })
    }
}

/// Where the payload of an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) term: u64,
    pub(crate) place: Place,
    pub(crate) payload_bytes: u32,
}

/// A segment that holds records.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) file: Arc<File>,
    /// For each log, the highest index of any entry in it, live or not.
    pub(crate) index_max: Vec<Option<u64>>,
}

impl Held {
    pub(crate) fn new(file: &Arc<File>, logs: usize) -> Self {
        Self { file: Arc::clone(file), index_max: vec![None; logs] }
    }

    /// Whether nothing in it is of use to any log.
    pub(crate) fn is_purged(&self, facts: &[Facts]) -> bool {
        facts.iter().enumerate().all(|(log, facts)| self.is_purged_of(log, facts))
    }

    /// Whether nothing in it is of use to this log.
    pub(crate) fn is_purged_of(&self, log: usize, facts: &Facts) -> bool {
        let purged = facts.purged.as_ref().map(|purged| purged.index);
        self.index_max[log].is_none_or(|index| purged.is_some_and(|purged| index <= purged))
    }
}

/// One log as it is found on disk.
#[derive(Debug, Default)]
pub(crate) struct OneLog {
    pub(crate) facts: Facts,
    /// The index of the first of `entries`.
    pub(crate) first_index: u64,
    pub(crate) entries: VecDeque<Located>,
}

/// The logs of a node as they are found on disk.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// One a Raft group.
    pub(crate) logs: Vec<OneLog>,
    pub(crate) segments: BTreeMap<u64, Held>,
    /// The segment to go on with: its life, where its records end, and its size. None: begin a new one.
    pub(crate) open: Option<(u64, u32, u32)>,
    /// Bytes of torn records that were cut.
    pub(crate) bytes_cut: u64,
}

/// Reads so many logs in `dir`. Changes nothing but a torn tail.
pub(crate) fn recover(dir: &Path, logs: usize) -> Result<Recovered, StoreError> {
    let lives = lives_in(dir)?;
    let logs: Vec<OneLog> = (0..logs).map(|_| OneLog::default()).collect();
    let mut recovered = Recovered { logs, ..Recovered::default() };
    let Some((&last_life, _)) = lives.last_key_value() else { return Ok(recovered) };
    let mut previous: Option<u64> = None;
    for (&life, path) in &lives {
        if let Some(previous) = previous
            && life != previous + 1
        {
            let file = dir.join(segment::log_name(previous + 1));
            return Err(damaged(&file, 0, "a segment within the log is missing".to_owned()));
        }
        Scan { path, life, is_first: previous.is_none(), is_last: life == last_life }
            .run(&mut recovered)?;
        previous = Some(life);
    }
    recovered.check_whole(dir)?;
    Ok(recovered)
}

fn lives_in(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, StoreError> {
    let mut lives = BTreeMap::new();
    for entry in fs::read_dir(dir).during("list the log", dir)? {
        let path = entry.during("list the log", dir)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(life) = name.and_then(segment::life_of) {
            lives.insert(life, path);
        }
    }
    Ok(lives)
}

fn damaged(file: &Path, offset: usize, cause: String) -> StoreError {
    StoreError::Damaged { file: file.to_owned(), offset: offset as u64, cause }
}

struct Scan<'a> {
    path: &'a Path,
    life: u64,
    is_first: bool,
    is_last: bool,
}

impl Scan<'_> {
    fn run(&self, recovered: &mut Recovered) -> Result<(), StoreError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.path)
            .during("open the segment", self.path)?;
        let bytes = self.read(&file)?;
        let size =
            segment::check_head(&bytes, self.life).map_err(|cause| damaged(self.path, 0, cause))?;
        if !(HEAD_BYTES as u64..=SEGMENT_BYTES_MAX).contains(&size) || size < bytes.len() as u64 {
            return Err(damaged(self.path, 16, format!("the head says {size} bytes")));
        }
        let logs = recovered.logs.len();
        let mut offset = HEAD_BYTES;
        let mut index_max = vec![None; logs];
        let mut bases = 0;
        let sealed = loop {
            let place = Place { life: self.life, offset: fits_u32(offset) };
            let record = match record::decode(&bytes[offset..], place) {
                Ok(record) => record,
                Err(flaw) => {
                    if bases < logs {
                        // Bases are of use together only.
                        offset = HEAD_BYTES;
                    }
                    self.tail(&file, &bytes, offset, flaw, recovered)?;
                    break false;
                }
            };
            self.take_in(recovered, place, record, bases)
                .map_err(|cause| damaged(self.path, offset, cause))?;
            bases += usize::from(bases < logs);
            if matches!(record.kind, Kind::Blank | Kind::Normal | Kind::Membership) {
                let index_max = &mut index_max[usize::from(record.log)];
                *index_max = (*index_max).max(Some(record.index));
            }
            offset += record_bytes(record.payload.len());
            if record.kind == Kind::Seal {
                break true;
            }
        };
        if self.is_first && self.life > 1 && offset == HEAD_BYTES {
            let cause = "the segment is empty, and those before it were dropped".to_owned();
            return Err(damaged(self.path, offset, cause));
        }
        if self.is_last {
            if !sealed {
                // A file that was cut short takes records again up to its full size.
                file.set_len(size).during("restore the size of the segment", self.path)?;
                recovered.open = Some((self.life, fits_u32(offset), fits_u32_of(size)));
            }
            // Records may have survived in memory alone, if it was the process that crashed.
            sync_file(&file, self.path).during("sync the segment", self.path)?;
        }
        recovered.segments.insert(self.life, Held { file: Arc::new(file), index_max });
        Ok(())
    }

    /// Gives a record to the log that it is of. A segment begins with as many bases as there are logs.
    fn take_in(
        &self,
        recovered: &mut Recovered,
        place: Place,
        record: Record<'_>,
        bases: usize,
    ) -> Result<(), String> {
        let logs = recovered.logs.len();
        let due = bases < logs;
        if due != (record.kind == Kind::Base) || (due && usize::from(record.log) != bases) {
            return Err(format!(
                "a segment begins with a base for each of {logs} Raft groups, and has none behind them"
            ));
        }
        let of = usize::from(record.log);
        let log = recovered.logs.get_mut(of);
        let log = log.ok_or_else(|| format!("a record is of Raft group {of} of {logs}"))?;
        log.take_in(place, record, self.is_first)
    }

    fn read(&self, file: &File) -> Result<Vec<u8>, StoreError> {
        let length = file.metadata().during("examine the segment", self.path)?.len();
        if length > SEGMENT_BYTES_MAX {
            return Err(damaged(self.path, 0, format!("the file has {length} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(length).expect("at most a GiB")];
        file.read_exact_at(&mut bytes, 0).during("read the segment", self.path)?;
        Ok(bytes)
    }

    /// What is at `offset` is no record. Cuts a torn tail, or tells that it is something else.
    fn tail(
        &self,
        file: &File,
        bytes: &[u8],
        offset: usize,
        flaw: Flaw,
        recovered: &mut Recovered,
    ) -> Result<(), StoreError> {
        if !self.is_last {
            let cause = format!("{flaw}, and the segment is not sealed before it");
            return Err(damaged(self.path, offset, cause));
        }
        // A kind that is not known has a sound checksum: it was written so, by a newer version.
        if let Flaw::UnknownKind(_) = flaw {
            return Err(damaged(self.path, offset, flaw.to_string()));
        }
        let mark = record::mark(self.life);
        let mut dirty_end = offset;
        for at in (offset..bytes.len()).step_by(record::ALIGNMENT) {
            if bytes.len() - at < record::HEAD_BYTES || record::u32_at(bytes, at) != mark {
                continue;
            }
            let place = Place { life: self.life, offset: fits_u32(at) };
            match record::decode(&bytes[at..], place) {
                Ok(later) if later.group as usize > offset => {
                    let cause =
                        format!("{flaw}, while a record of a later write stands at byte {at}");
                    return Err(damaged(self.path, offset, cause));
                }
                Ok(torn) => dirty_end = dirty_end.max(at + record_bytes(torn.payload.len())),
                Err(_) => dirty_end = dirty_end.max(at + record::HEAD_BYTES),
            }
        }
        if dirty_end > offset {
            let zeros = vec![0; dirty_end - offset];
            file.write_all_at(&zeros, offset as u64).during("cut the torn tail of", self.path)?;
            recovered.bytes_cut = zeros.len() as u64;
            tracing::warn!(
                file = %self.path.display(), offset, bytes = zeros.len(), %flaw,
                "cut records that a crash had left half written; none of them had been acknowledged"
            );
        }
        Ok(())
    }
}

impl OneLog {
    fn next_index(&self) -> u64 {
        self.first_index + self.entries.len() as u64
    }

    fn take_in(
        &mut self,
        place: Place,
        record: Record<'_>,
        begins_log: bool,
    ) -> Result<(), String> {
        let named = log_id(record.term, record.index);
        match record.kind {
            Kind::Blank | Kind::Normal | Kind::Membership => {
                self.take_in_entry(place, &record, named)?;
            }
            Kind::Vote => {
                let ballot = v1::RaftBallot {
                    term: record.term,
                    node: record.index,
                    granted_by_quorum: record.payload == [1],
                };
                self.facts.ballot = ballot_from_proto(Some(ballot)).ok();
            }
            Kind::Truncate => {
                let after = (record.payload == [1]).then_some(named);
                let keep = after.as_ref().map_or(0, |after| after.index + 1);
                let keep = keep.saturating_sub(self.first_index);
                self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
                self.facts.truncate(after);
            }
            Kind::Purge => {
                let drop = (named.index + 1).saturating_sub(self.first_index);
                let drop = usize::try_from(drop).unwrap_or(usize::MAX).min(self.entries.len());
                self.entries.drain(..drop);
                self.first_index = self.first_index.max(named.index + 1);
                self.facts.purge(named);
            }
            Kind::Committed => {
                self.facts.committed = (record.payload == [1]).then_some(named);
            }
            Kind::Base => {
                let base = Facts::from_base(record.payload)?;
                if begins_log {
                    self.facts = base;
                } else if base != self.facts {
                    return Err(format!(
                        "the base of the segment is {base:?}, while the segments before it end with {:?}",
                        self.facts
                    ));
                }
            }
            Kind::Seal => {
                if record.term != place.life + 1 {
                    return Err(format!("the seal names segment {} as the next", record.term));
                }
            }
        }
        Ok(())
    }

    fn take_in_entry(
        &mut self,
        place: Place,
        record: &Record<'_>,
        named: LogId,
    ) -> Result<(), String> {
        if let Some(last) = &self.facts.last
            && (named.index != last.index + 1 || named < *last)
        {
            return Err(format!("the entry {named} follows the entry {last}"));
        }
        if self.entries.is_empty() {
            self.first_index = named.index;
        }
        self.entries.push_back(Located {
            term: record.term,
            place,
            payload_bytes: u32::try_from(record.payload.len()).expect("within the limit"),
        });
        self.facts.append(named);
        Ok(())
    }

    /// What is wrong if an entry behind what was purged is missing.
    fn check_whole(&self, is_only: bool, first_life: u64) -> Result<(), String> {
        let missing = match &self.facts.purged {
            Some(purged) if self.entries.is_empty() => {
                self.facts.last.as_ref().is_some_and(|last| last != purged)
            }
            Some(purged) => self.first_index > purged.index + 1,
            // Only a purge drops the segments of a log, so without one the first must be the first ever.
            None if is_only => first_life > 1,
            None if self.entries.is_empty() => self.facts.last.is_some(),
            None => self.first_index > 0,
        };
        if missing {
            return Err(format!(
                "the log is purged up to {:?}, but the first entry after that is {} of {}",
                self.facts.purged.as_ref().map(|purged| purged.index),
                self.first_index,
                self.next_index()
            ));
        }
        Ok(())
    }
}

impl Recovered {
    fn check_whole(&self, dir: &Path) -> Result<(), StoreError> {
        let Some((&first_life, _)) = self.segments.first_key_value() else { return Ok(()) };
        let file = dir.join(segment::log_name(first_life));
        let is_only = self.logs.len() == 1;
        for log in &self.logs {
            log.check_whole(is_only, first_life)
                .map_err(|cause| damaged(&file, HEAD_BYTES, cause))?;
        }
        Ok(())
    }
}

fn fits_u32(offset: usize) -> u32 {
    u32::try_from(offset).expect("a segment is at most a GiB")
}

fn fits_u32_of(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("a segment is at most a GiB")
}
