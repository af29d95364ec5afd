//! Log entries and snapshots as bytes, both ways: total to write, checked to read.
//!
//! Reading never guesses: bytes that do not say exactly one thing are a [`RecordError`], and a node that meets one in an
//! applied entry stops, because whatever it did instead could make its state another one than its peers'.

mod books;
mod closed_sets;
mod command;
mod direct;
#[cfg(test)]
mod golden;
mod names;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use bytes::Bytes;
use holdfast_proto::v1;
use holdfast_txn::{BadGid, BadName, Command, Gid, Participant, Timestamp};
use prost::Message as _;

use crate::fields;

pub(crate) use snapshot::{decode_snapshot, encode_snapshot};

/// The newest format of entries and of snapshots. 1: TCC and Saga. 2: XA, fences, second phases finished by the caller.
/// 3: operators' acts, shard rules, audit records. 4: partial capture. 5: a branch that people mark refused is undone.
/// 6: begins that bear the hash of their content, and a trace's context in its bytes.
///
/// Each entry and each snapshot is written in the oldest format that can say it, and every older one is read.
pub(crate) const FORMAT: u32 = 6;
/// The format in which a begin bears the hash of its content.
pub(crate) const HASHED_BEGINS: u32 = 6;

/// Bytes of a command without payloads and labels, or more.
const BYTES_OF_MOST: usize = 256;
/// Bytes of an entry's format and time, at most.
const HEAD_BYTES_MAX: usize = 24;

/// Number of the field `commands` in `LogEntry`.
const COMMANDS_FIELD: u32 = 3;

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// Not even a message.
    #[error("the bytes are no record: {0}")]
    Bytes(String),
    /// Written by another version.
    #[error(
        "the record has format {0}; this version reads 1 to {FORMAT}. Run the version that wrote it, or a newer one"
    )]
    Format(u32),
    /// A field that must be there is not.
    #[error("the record lacks {0}")]
    Missing(&'static str),
    /// A field holds what it must not.
    #[error("the record's {field} is {value}, which is unknown or out of range")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
}

impl RecordError {
    fn value(field: &'static str, value: impl std::fmt::Display) -> Self {
        Self::Value { field, value: value.to_string() }
    }
}

impl From<BadGid> for RecordError {
    fn from(bad: BadGid) -> Self {
        Self::value("gid", bad)
    }
}

impl From<BadName> for RecordError {
    fn from(bad: BadName) -> Self {
        Self::value("participant", bad)
    }
}

impl From<prost::DecodeError> for RecordError {
    fn from(bad: prost::DecodeError) -> Self {
        Self::Bytes(bad.to_string())
    }
}

/// One command, encoded by its caller, so that the proposer only copies.
#[derive(Clone, Debug)]
pub(crate) struct EncodedCommand {
    bytes: Vec<u8>,
    /// The oldest format that can say it.
    format: u32,
}

impl EncodedCommand {
    /// Encodes `command`.
    pub(crate) fn of(command: &Command) -> Self {
        let mut bytes = Vec::with_capacity(BYTES_OF_MOST + write::varying(command));
        write::command(command, &mut bytes);
        Self { bytes, format: command::format_of(command) }
    }

    /// Bytes that it adds to an entry.
    pub(crate) fn len_in_entry(&self) -> usize {
        prost::encoding::bytes::encoded_len(COMMANDS_FIELD, &self.bytes)
    }
}

/// The oldest format that can say `command`.
pub(crate) fn format_of(command: &Command) -> u32 {
    command::format_of(command)
}

/// One entry of `commands`, all carried out at `at`.
pub(crate) fn encode_entry<'a>(
    at: Timestamp,
    commands: impl Iterator<Item = &'a EncodedCommand> + Clone,
) -> Bytes {
    let format = commands.clone().map(|command| command.format).max().unwrap_or(1);
    let bytes: usize = commands.clone().map(EncodedCommand::len_in_entry).sum();
    let mut entry = Vec::with_capacity(bytes + HEAD_BYTES_MAX);
    fields::number(1, format.into(), &mut entry);
    fields::number(2, at.0, &mut entry);
    commands.for_each(|command| fields::any_bytes(COMMANDS_FIELD, &command.bytes, &mut entry));
    entry.into()
}

/// Reads what [`encode_entry`] wrote.
/// # Errors
/// [`RecordError`]; nothing is skipped and nothing is assumed.
pub(crate) fn decode_entry(bytes: &Bytes) -> Result<(Timestamp, Vec<Command>), RecordError> {
    let message;
    let (format, at_ms, records) = match direct::entry(bytes) {
        Some(entry) => entry,
        None => {
            message = v1::LogEntry::decode(bytes.clone())?;
            let records = message.commands.iter().map(|record| &**record).collect();
            (message.format, message.at_ms, records)
        }
    };
    readable(format)?;
    let mut commands = Vec::with_capacity(records.len());
    for record in records {
        commands.push(match direct::command(record) {
            Some(command) => command,
            None => command::of_record(v1::RecordedCommand::decode(record)?)?,
        });
    }
    Ok((Timestamp(at_ms), commands))
}

fn readable(format: u32) -> Result<(), RecordError> {
    if (1..=FORMAT).contains(&format) { Ok(()) } else { Err(RecordError::Format(format)) }
}

fn gid(text: &str) -> Result<Gid, RecordError> {
    Ok(Gid::parse(text)?)
}

fn participant(text: &str) -> Result<Participant, RecordError> {
    Ok(names::participant(text)?)
}
