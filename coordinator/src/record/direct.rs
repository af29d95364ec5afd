//! Entries, the two kinds of command that nearly all of a log consists of, begins and reports, and the transactions of a snapshot, read straight
//! from their bytes.
//!
//! A generated message has a string for each name and a list for each repetition, all of which are thrown away once the command is made
//! of them. Here is read only what is written as this version writes it, each field once and in its usual form; whatever else it may be
//! is left to the message (`None`), which alone knows what is wrong with bytes. What is read here is what the message would say (a
//! property).

use bytes::Bytes;
use holdfast_proto::fields::{Fields, Value, once};
use holdfast_txn::{
    Answer, Branch, BranchId, BranchSpec, BranchState, Captures, Command, Decision, Digest, Gid,
    GlobalTransaction, Headers, Labels, Mode, Op, Options, Order, Recovery, Report, RetryPolicy,
    Status, Timestamp, Traceparent, TriedBy,
};
use prost::encoding::decode_varint;

use super::{COMMANDS_FIELD, closed_sets::Numbered, names};

/// Format, time and commands of the entry that `bytes` are.
pub(super) fn entry(bytes: &[u8]) -> Option<(u32, u64, Vec<&[u8]>)> {
    let (mut format, mut at_ms, mut commands) = (None, None, Vec::new());
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(number)) => once(&mut format, number.try_into().ok()?)?,
            (2, Value::Number(number)) => once(&mut at_ms, number)?,
            (COMMANDS_FIELD, Value::Bytes(command)) => commands.push(command),
            _ => return None,
        }
    }
    Some((format?, at_ms.unwrap_or_default(), commands))
}

/// The command that `bytes` say, if they are a begin or a report.
pub(super) fn command(bytes: &[u8]) -> Option<Command> {
    let (mut gid, mut kind) = (None, None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => once(&mut gid, Gid::parse(text_of(text)?).ok()?)?,
            (number @ (2 | 6), Value::Bytes(message)) => once(&mut kind, (number, message))?,
            _ => return None,
        }
    }
    let gid = gid?;
    match kind? {
        (2, message) => begin(gid, message),
        (_, message) => Some(Command::Report { gid, reports: list(message, report)? }),
    }
}

/// The transaction that `bytes` say, if no branch of it was refused and nothing was captured.
pub(super) fn transaction(bytes: &[u8]) -> Option<GlobalTransaction> {
    /// By the number of the field; the first is no field.
    const NUMBERS: usize = 16;
    let mut numbers = [None; NUMBERS];
    let (mut gid, mut with, mut content, mut reason) = (None, None, None, None);
    let mut branches = Vec::new();
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => once(&mut gid, Gid::parse(text_of(text)?).ok()?)?,
            (3, Value::Bytes(message)) => once(&mut with, options(message)?)?,
            (4, Value::Bytes(hash)) => once(&mut content, Digest(hash.try_into().ok()?))?,
            (8, Value::Bytes(message)) => branches.push(branch_state(message)?),
            (14, Value::Bytes(text)) => once(&mut reason, text_of(text)?.to_owned())?,
            (field @ (2 | 5..=7 | 9..=13 | 15), Value::Number(number)) => {
                once(&mut numbers[field as usize], number)?;
            }
            _ => return None,
        }
    }
    // A million of them are kept for long.
    branches.shrink_to_fit();
    let number = |field: usize| numbers[field].unwrap_or_default();
    Some(GlobalTransaction {
        gid: gid?,
        mode: member::<Mode>(number(2))?,
        options: with?,
        content: content?,
        enlisted: number(5) != 0,
        status: member::<Status>(number(6))?,
        interrupted: optional_member::<Status>(number(7))?,
        branches,
        captures: Captures::default(),
        begun_at: Timestamp(number(9)),
        deadline: Timestamp(number(10)),
        decision: optional_member::<Decision>(number(11))?,
        decided_at: numbers[12].map(Timestamp),
        finished_at: numbers[13].map(Timestamp),
        pivot_reached: number(15) != 0,
        reason,
    })
}

fn branch_state(bytes: &[u8]) -> Option<Branch> {
    let (mut of, mut state) = (None, None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(message)) => once(&mut of, spec(message)?)?,
            (2, Value::Number(number)) => once(&mut state, member::<BranchState>(number)?)?,
            _ => return None,
        }
    }
    Some(Branch { spec: of?, state: state?, refusal: None })
}

fn begin(gid: Gid, bytes: &[u8]) -> Option<Command> {
    let (mut mode, mut with, mut enlisted, mut content) = (None, None, None, None);
    let mut branches = Vec::new();
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(number)) => once(&mut mode, member::<Mode>(number)?)?,
            (2, Value::Bytes(message)) => once(&mut with, options(message)?)?,
            (3, Value::Bytes(message)) => branches.push(spec(message)?),
            (4, Value::Number(number)) => once(&mut enlisted, number != 0)?,
            (5, Value::Bytes(hash)) => once(&mut content, Digest(hash.try_into().ok()?))?,
            _ => return None,
        }
    }
    let enlisted = enlisted.unwrap_or_default();
    Some(Command::Begin { gid, mode: mode?, options: with?, branches, enlisted, content })
}

fn options(bytes: &[u8]) -> Option<Options> {
    /// By the number of the field; the first is no field.
    const NUMBERS: usize = 12;
    let mut numbers = [None; NUMBERS];
    let (mut headers, mut tags, mut traceparent) = (Few::default(), Few::default(), None);
    for field in Fields(bytes) {
        match field? {
            (9, Value::Bytes(message)) => headers.push(label(message)?)?,
            (10, Value::Bytes(message)) => tags.push(label(message)?)?,
            (12, Value::Bytes(bytes)) => once(&mut traceparent, Traceparent::of_bytes(bytes)?)?,
            (field, Value::Number(number)) => {
                once(numbers.get_mut(field as usize)?, number)?;
            }
            _ => return None,
        }
    }
    let [None, .., None, None, _] = numbers else { return None };
    let number = |field: usize| numbers[field].unwrap_or_default();
    Some(Options {
        timeout_ms: number(1),
        call_timeout_ms: number(2),
        retry: RetryPolicy {
            first_ms: number(3),
            ceiling_ms: number(4),
            attempts_max: number(5).try_into().ok()?,
        },
        order: member::<Order>(number(6))?,
        recovery: member::<Recovery>(number(7))?,
        tried_by: member::<TriedBy>(number(8))?,
        headers: self::headers(&headers, traceparent)?,
        tags: Labels::in_order(tags.all().iter().copied())?,
        second_phase_grace_ms: number(11),
    })
}

/// Names and values of a transaction that has few of them, without memory of their own.
#[derive(Default)]
struct Few<'r> {
    kept: [(&'r [u8], &'r [u8]); FEW],
    count: usize,
}

/// Headers, or tags, that are read here; with more, the transaction is left to the message.
const FEW: usize = 8;

impl<'r> Few<'r> {
    /// `None`: it is one too many.
    fn push(&mut self, label: (&'r [u8], &'r [u8])) -> Option<()> {
        *self.kept.get_mut(self.count)? = label;
        self.count += 1;
        Some(())
    }

    fn all(&self) -> &[(&'r [u8], &'r [u8])] {
        &self.kept[..self.count]
    }
}

/// Names in order, each once, the context of a trace among them or beside.
fn headers(headers: &Few<'_>, mut traceparent: Option<Traceparent>) -> Option<Headers> {
    if !headers.all().is_sorted_by(|one, next| one.0 < next.0) {
        return None;
    }
    let mut others = Few::default();
    for &(name, value) in headers.all() {
        if name == Traceparent::HEADER.as_bytes() {
            if traceparent.is_some() {
                return None;
            }
            traceparent = Traceparent::parse(value);
            if traceparent.is_some() {
                continue;
            }
        }
        others.push((name, value))?;
    }
    Some(Headers::new(names::labels(others.all())?, traceparent))
}

fn label(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut name, mut value) = (None, None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => once(&mut name, text)?,
            (2, Value::Bytes(text)) => once(&mut value, text)?,
            _ => return None,
        }
    }
    Some((name.unwrap_or_default(), value.unwrap_or_default()))
}

fn spec(bytes: &[u8]) -> Option<BranchSpec> {
    let (mut participant, mut payload, mut after, mut pivot) = (None, None, None, None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                once(&mut participant, names::participant(text_of(text)?).ok()?)?;
            }
            // A copy: a slice would keep the whole entry in memory for as long as the transaction is open.
            (2, Value::Bytes(bytes)) => once(&mut payload, Bytes::copy_from_slice(bytes))?,
            (3, Value::Bytes(message)) => once(&mut after, branches(message)?)?,
            (4, Value::Number(number)) => once(&mut pivot, number != 0)?,
            _ => return None,
        }
    }
    Some(BranchSpec {
        participant: participant?,
        payload: payload.unwrap_or_default(),
        after,
        pivot: pivot.unwrap_or_default(),
    })
}

/// A message that has nothing but branches in its first field, packed.
fn branches(bytes: &[u8]) -> Option<Vec<BranchId>> {
    let mut packed = None;
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(numbers)) => once(&mut packed, numbers)?,
            _ => return None,
        }
    }
    let mut left = packed.unwrap_or_default();
    let mut branches = Vec::new();
    while !left.is_empty() {
        branches.push(branch(varint(&mut left)?)?);
    }
    Some(branches)
}

fn report(bytes: &[u8]) -> Option<Report> {
    let (mut of, mut op, mut done) = (None, None, None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(number)) => once(&mut of, branch(number)?)?,
            (2, Value::Number(number)) => once(&mut op, member::<Op>(number)?)?,
            (3, Value::Bytes([])) => once(&mut done, Answer::Done)?,
            _ => return None,
        }
    }
    Some(Report { branch: of.unwrap_or(BranchId(0)), op: op?, answer: done? })
}

/// A message that has nothing but a list in its first field.
fn list<T>(bytes: &[u8], read: fn(&[u8]) -> Option<T>) -> Option<Vec<T>> {
    let read = |field: Option<_>| match field? {
        (1, Value::Bytes(message)) => read(message),
        _ => None,
    };
    Fields(bytes).map(read).collect()
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    decode_varint(from).ok()
}

fn text_of(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

fn branch(number: u64) -> Option<BranchId> {
    number.try_into().ok().map(BranchId)
}

fn member<T: Numbered>(number: u64) -> Option<T> {
    T::of_number(number.try_into().ok()?)
}

/// Where 0 stands for none.
fn optional_member<T: Numbered>(number: u64) -> Option<Option<T>> {
    if number == 0 { Some(None) } else { member(number).map(Some) }
}
