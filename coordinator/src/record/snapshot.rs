//! The machine's whole state as a record, both ways.

use std::sync::Arc;

use holdfast_proto::{
    fields::{Fields, Value, once},
    v1,
};
use holdfast_txn::{
    Branch, BranchState, Decision, Digest, GlobalTransaction, Mode, Snapshot, Status, Timestamp,
};
use prost::Message as _;

use super::{
    RecordError, books,
    closed_sets::Numbered,
    command::{captures_of_record, options_of_record, refusal_of_record, spec_of_record},
    direct, gid, readable, write,
};
use crate::fields;

/// The numbers of these fields of [`v1::MachineSnapshot`].
const OPEN: u32 = 3;
const FINISHED: u32 = 4;

/// Transactions by whose size that of all is guessed.
const SAMPLE: usize = 1_024;
/// Transactions that are written at a stretch.
const FEW: usize = 64;

/// Writes `snapshot`, the state after the entry `applied_index`. Equal snapshots give equal bytes. `between` is called behind each few transactions.
///
/// One transaction after the other, each from where it lies: a million of them take more memory as messages than they do as bytes, and a
/// message is a dozen small pieces of memory. It is the encoding of [`v1::MachineSnapshot`], which reads them back.
pub(crate) fn encode_snapshot(
    snapshot: &Snapshot,
    applied_index: u64,
    between: impl Fn(),
) -> Vec<u8> {
    let Snapshot { clock, open, finished, books } = snapshot;
    let of_books = books::format_of_all(books);
    let all = || open.iter().chain(finished).map(AsRef::as_ref);
    let format = all().map(format_of).max().unwrap_or(1).max(of_books);
    // In the order of the fields' numbers, so each piece is an encoding of its own and all are one.
    let head = v1::MachineSnapshot { format, clock_ms: clock.0, ..Default::default() };
    let mut bytes = head.encode_to_vec();
    for (field, some) in [(OPEN, open), (FINISHED, finished)] {
        let from = bytes.len();
        for (written, transaction) in some.iter().enumerate() {
            if written == SAMPLE {
                // Growing by half again and again would copy most of it, and touch twice the memory.
                let each = (bytes.len() - from).div_ceil(SAMPLE);
                bytes.reserve((some.len() - written).saturating_mul(each + each / 8));
            }
            fields::message(field, &mut bytes, |to| fields_of(transaction, to));
            if written % FEW == FEW - 1 {
                between();
            }
        }
    }
    let tail = v1::MachineSnapshot {
        applied_index,
        books: (!books.is_empty()).then(|| books::books_to_record(books)),
        ..Default::default()
    };
    tail.encode(&mut bytes).expect("memory grows");
    bytes
}

/// Reads what [`encode_snapshot`] wrote.
/// # Errors
/// [`RecordError`]; nothing is skipped and nothing is assumed.
pub(crate) fn decode_snapshot(bytes: &[u8]) -> Result<(Snapshot, u64), RecordError> {
    let Some(Parts { record, open, finished }) = parts(bytes) else { return decode_whole(bytes) };
    let read = |bytes: &[u8]| match direct::transaction(bytes) {
        Some(transaction) => Ok(transaction),
        None => of_record(v1::RecordedTransaction::decode(bytes)?),
    };
    snapshot_of(record, open.into_iter().map(read), finished.into_iter().map(read))
}

/// The same by way of the message, which knows what is wrong with bytes.
pub(super) fn decode_whole(bytes: &[u8]) -> Result<(Snapshot, u64), RecordError> {
    let mut record = v1::MachineSnapshot::decode(bytes)?;
    let open = std::mem::take(&mut record.open).into_iter().map(of_record);
    let finished = std::mem::take(&mut record.finished).into_iter().map(of_record);
    snapshot_of(record, open, finished)
}

/// A snapshot whose transactions are still to be read: as messages together a million of them take several times the memory of what is made
/// of them.
struct Parts<'b> {
    /// All but the transactions.
    record: v1::MachineSnapshot,
    open: Vec<&'b [u8]>,
    finished: Vec<&'b [u8]>,
}

/// `None`: it is not written as this version writes it.
fn parts(bytes: &[u8]) -> Option<Parts<'_>> {
    let (mut format, mut clock_ms, mut applied_index, mut of_books) = (None, None, None, None);
    let (mut open, mut finished) = (Vec::new(), Vec::new());
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(number)) => once(&mut format, number.try_into().ok()?)?,
            (2, Value::Number(number)) => once(&mut clock_ms, number)?,
            (OPEN, Value::Bytes(transaction)) => open.push(transaction),
            (FINISHED, Value::Bytes(transaction)) => finished.push(transaction),
            (5, Value::Number(number)) => once(&mut applied_index, number)?,
            (6, Value::Bytes(message)) => {
                once(&mut of_books, v1::RecordedBooks::decode(message).ok()?)?;
            }
            _ => return None,
        }
    }
    let record = v1::MachineSnapshot {
        format: format.unwrap_or_default(),
        clock_ms: clock_ms.unwrap_or_default(),
        applied_index: applied_index.unwrap_or_default(),
        books: of_books,
        ..Default::default()
    };
    Some(Parts { record, open, finished })
}

fn snapshot_of(
    record: v1::MachineSnapshot,
    open: impl Iterator<Item = Result<GlobalTransaction, RecordError>>,
    finished: impl Iterator<Item = Result<GlobalTransaction, RecordError>>,
) -> Result<(Snapshot, u64), RecordError> {
    readable(record.format)?;
    let snapshot = Snapshot {
        clock: Timestamp(record.clock_ms),
        open: open.map(|one| one.map(Arc::new)).collect::<Result<_, _>>()?,
        finished: finished.map(|one| one.map(Arc::new)).collect::<Result<_, _>>()?,
        books: record.books.map(books::books_of_record).transpose()?.unwrap_or_default().into(),
    };
    Ok((snapshot, record.applied_index))
}

/// The oldest format that can say `transaction`.
fn format_of(transaction: &GlobalTransaction) -> u32 {
    match transaction.mode {
        Mode::Tcc | Mode::Saga if transaction.captures.is_empty() => 1,
        Mode::Tcc | Mode::Saga => 4,
        Mode::Xa => 2,
    }
}

pub(super) fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, RecordError> {
    let whole = <[u8; 32]>::try_from(bytes);
    whole.map(Digest).map_err(|_| RecordError::value(field, format!("{} bytes", bytes.len())))
}

/// The fields of a [`v1::RecordedTransaction`], in the order of their numbers.
fn fields_of(transaction: &GlobalTransaction, to: &mut Vec<u8>) {
    let GlobalTransaction {
        gid,
        mode,
        options,
        content,
        enlisted,
        status,
        interrupted,
        branches,
        captures,
        begun_at,
        deadline,
        decision,
        decided_at,
        finished_at,
        pivot_reached,
        reason,
    } = transaction;
    fields::text(1, gid.as_str(), to);
    fields::number(2, write::number(*mode), to);
    fields::message(3, to, |to| write::options(options, write::Context::Header, to));
    fields::bytes(4, &content.0, to);
    fields::number(5, (*enlisted).into(), to);
    fields::number(6, write::number(*status), to);
    fields::number(7, interrupted.map_or(0, write::number), to);
    for branch in branches {
        fields::message(8, to, |to| write_branch(branch, to));
    }
    fields::number(9, begun_at.0, to);
    fields::number(10, deadline.0, to);
    fields::number(11, decision.map_or(0, write::number), to);
    if let Some(at) = decided_at {
        fields::any_number(12, at.0, to);
    }
    if let Some(at) = finished_at {
        fields::any_number(13, at.0, to);
    }
    if let Some(reason) = reason {
        fields::any_text(14, reason, to);
    }
    fields::number(15, (*pivot_reached).into(), to);
    write::captures(16, captures, to);
}

fn write_branch(branch: &Branch, to: &mut Vec<u8>) {
    let Branch { spec, state, refusal } = branch;
    fields::message(1, to, |to| write::spec(spec, to));
    fields::number(2, write::number(*state), to);
    if let Some(refusal) = refusal {
        fields::message(3, to, |to| write::refusal(refusal, to));
    }
}

fn of_record(record: v1::RecordedTransaction) -> Result<GlobalTransaction, RecordError> {
    Ok(GlobalTransaction {
        gid: gid(&record.gid)?,
        mode: Mode::read(record.mode)?,
        options: options_of_record(record.options.ok_or(RecordError::Missing("options"))?)?,
        content: digest("content", &record.content)?,
        enlisted: record.enlisted,
        status: Status::read(record.status)?,
        interrupted: Status::read_optional(record.interrupted)?,
        branches: record.branches.into_iter().map(branch_of_record).collect::<Result<_, _>>()?,
        captures: captures_of_record(record.captures)?,
        begun_at: Timestamp(record.begun_at_ms),
        deadline: Timestamp(record.deadline_ms),
        decision: Decision::read_optional(record.decision)?,
        decided_at: record.decided_at_ms.map(Timestamp),
        finished_at: record.finished_at_ms.map(Timestamp),
        pivot_reached: record.pivot_reached,
        reason: record.reason,
    })
}

fn branch_of_record(record: v1::RecordedBranch) -> Result<Branch, RecordError> {
    Ok(Branch {
        spec: spec_of_record(record.spec.ok_or(RecordError::Missing("spec"))?)?,
        state: BranchState::read(record.state)?,
        refusal: record.refusal.map(refusal_of_record).map(Box::new),
    })
}
