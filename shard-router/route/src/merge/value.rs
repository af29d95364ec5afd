//! Cells as values that compare as PostgreSQL compares them. A closed list of types; everything else is refused.

use std::cmp::Ordering;

use super::{decimal::Decimal, row::Field};
use crate::{Format, RefusalClass, Refused, calendar::days_since_1970};

const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const NAME: u32 = 19;
pub(super) const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const OID: u32 = 26;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const UNKNOWN: u32 = 705;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const DATE: u32 = 1082;
const TIME: u32 = 1083;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
pub(super) const NUMERIC: u32 = 1700;
const UUID: u32 = 2950;

/// A value that compares.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Integer(i64),
    Decimal(Decimal),
    /// Of `numeric`: minus infinity, infinity, and NaN above all.
    Endless(i8),
    Float(f64),
    /// Bytes that sort as such.
    Bytes(Vec<u8>),
    /// Text, which sorts by its bytes only under the collation `C`.
    Text(Vec<u8>),
}

fn refuse(cause: String, remedy: &str) -> Refused {
    Refused::new(RefusalClass::NotMergeable, cause, remedy)
}

impl Value {
    /// Reads a cell.
    pub(super) fn read(cell: &[u8], field: &Field) -> Result<Self, Refused> {
        let value = match field.format {
            Format::Binary => Self::of_binary(cell, field.type_oid),
            Format::Text => {
                std::str::from_utf8(cell).ok().and_then(|text| Self::of_text(text, field.type_oid))
            }
        };
        value.ok_or_else(|| {
            refuse(
                format!(
                    "column {} (type {}) is of a type, or in a form, that is not compared here",
                    field.named(),
                    field.type_oid
                ),
                "Give a value for the group's key, or leave out what needs the comparison",
            )
        })
    }

    fn of_binary(cell: &[u8], oid: u32) -> Option<Self> {
        match oid {
            BOOL => Some(Self::Integer(i64::from(*cell.first()?))),
            INT2 => Some(Self::Integer(i64::from(i16::from_be_bytes(cell.try_into().ok()?)))),
            INT4 | DATE => {
                Some(Self::Integer(i64::from(i32::from_be_bytes(cell.try_into().ok()?))))
            }
            OID => Some(Self::Integer(i64::from(u32::from_be_bytes(cell.try_into().ok()?)))),
            INT8 | TIME | TIMESTAMP | TIMESTAMPTZ => {
                Some(Self::Integer(i64::from_be_bytes(cell.try_into().ok()?)))
            }
            FLOAT4 => Some(Self::Float(f64::from(f32::from_be_bytes(cell.try_into().ok()?)))),
            FLOAT8 => Some(Self::Float(f64::from_be_bytes(cell.try_into().ok()?))),
            NUMERIC => match cell.get(4..6)? {
                [0xc0, 0] => Some(Self::Endless(2)),
                [0xd0, 0] => Some(Self::Endless(1)),
                [0xf0, 0] => Some(Self::Endless(-1)),
                _ => Decimal::of_binary(cell).map(Self::Decimal),
            },
            BYTEA | UUID => Some(Self::Bytes(cell.to_vec())),
            TEXT | VARCHAR | NAME | UNKNOWN => Some(Self::Text(cell.to_vec())),
            BPCHAR => Some(Self::Text(without_blanks(cell).to_vec())),
            _ => None,
        }
    }

    fn of_text(text: &str, oid: u32) -> Option<Self> {
        match oid {
            BOOL => match text {
                "t" => Some(Self::Integer(1)),
                "f" => Some(Self::Integer(0)),
                _ => None,
            },
            INT2 | INT4 | INT8 | OID => text.parse().ok().map(Self::Integer),
            FLOAT4 | FLOAT8 => match text {
                "NaN" => Some(Self::Float(f64::NAN)),
                "Infinity" => Some(Self::Float(f64::INFINITY)),
                "-Infinity" => Some(Self::Float(f64::NEG_INFINITY)),
                _ => text.parse().ok().map(Self::Float),
            },
            NUMERIC => match text {
                "NaN" => Some(Self::Endless(2)),
                "Infinity" => Some(Self::Endless(1)),
                "-Infinity" => Some(Self::Endless(-1)),
                _ => Decimal::parse(text).map(Self::Decimal),
            },
            DATE => moment(text, false).map(Self::Integer),
            TIMESTAMP | TIMESTAMPTZ => moment(text, true).map(Self::Integer),
            TIME => clock(text).map(Self::Integer),
            BYTEA => text.starts_with("\\x").then(|| Self::Bytes(text.as_bytes().to_vec())),
            UUID => Some(Self::Bytes(text.as_bytes().to_vec())),
            TEXT | VARCHAR | NAME | UNKNOWN => Some(Self::Text(text.as_bytes().to_vec())),
            BPCHAR => Some(Self::Text(without_blanks(text.as_bytes()).to_vec())),
            _ => None,
        }
    }

    /// Whether values of a column are integers or numerics, which [`Value::number`] tells exactly.
    pub(super) fn is_exact_number(field: &Field) -> bool {
        matches!(field.type_oid, INT2 | INT4 | INT8 | NUMERIC)
    }

    /// The number that it is, if it is exact and has an end.
    pub(super) fn number(self) -> Option<Decimal> {
        match self {
            Self::Integer(value) => Some(Decimal::of_integer(value)),
            Self::Decimal(value) => Some(value),
            Self::Endless(_) | Self::Float(_) | Self::Bytes(_) | Self::Text(_) => None,
        }
    }

    /// An integer as the decimal that it is, so that it is compared with others.
    pub(super) fn widened(self) -> Self {
        match self {
            Self::Integer(value) => Self::Decimal(Decimal::of_integer(value)),
            Self::Decimal(_)
            | Self::Endless(_)
            | Self::Float(_)
            | Self::Bytes(_)
            | Self::Text(_) => self,
        }
    }

    /// Which of two values of one type comes first.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(one), Self::Integer(two)) => one.cmp(two),
            (Self::Decimal(one), Self::Decimal(two)) => one.compare(two),
            (Self::Endless(one), Self::Endless(two)) => one.cmp(two),
            (Self::Endless(one), Self::Decimal(_)) => one.cmp(&0),
            (Self::Decimal(_), Self::Endless(two)) => 0.cmp(two),
            // NaN is above everything else, and equal to itself; the two zeros are equal.
            (Self::Float(one), Self::Float(two)) => {
                one.partial_cmp(two).unwrap_or_else(|| one.is_nan().cmp(&two.is_nan()))
            }
            (Self::Bytes(one), Self::Bytes(two)) | (Self::Text(one), Self::Text(two)) => {
                one.cmp(two)
            }
            // The sources' columns are checked to be of one type, so this is never met.
            _ => Ordering::Equal,
        }
    }

    /// Refuses to sort by a text whose collation is not known to be `C`.
    pub(super) fn sorts(&self, field: &Field, collation_is_c: bool) -> Result<(), Refused> {
        // `name` has the collation C by itself.
        if matches!(self, Self::Text(_)) && !collation_is_c && field.type_oid != NAME {
            return Err(refuse(
                format!(
                    "column {} is a text, and texts may not sort by their bytes here",
                    field.named()
                ),
                "Say ORDER BY ... COLLATE \"C\"; or, where the databases of all sources sort so, say collation = \"C\" in [router] of \
                 the rules",
            ));
        }
        Ok(())
    }

    /// Equal for equal values, and only for these.
    pub(super) fn canonical(&self) -> Vec<u8> {
        match self {
            Self::Integer(value) => value.to_be_bytes().to_vec(),
            Self::Decimal(value) => value.canonical().into_bytes(),
            Self::Endless(which) => vec![b'e', which.to_be_bytes()[0]],
            Self::Float(value) if value.is_nan() => b"n".to_vec(),
            Self::Float(value) => (value + 0.0).to_be_bytes().to_vec(),
            Self::Bytes(bytes) | Self::Text(bytes) => bytes.clone(),
        }
    }
}

fn without_blanks(cell: &[u8]) -> &[u8] {
    let end = cell.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &cell[..end]
}

const SECOND: i64 = 1_000_000;

/// `HH:MM:SS.ffffff` in microseconds.
fn clock(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':').map(str::parse::<i64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    if parts.next().is_some() || fraction.len() > 6 {
        return None;
    }
    let fraction: i64 =
        if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").parse().ok()? };
    Some(((hours * 60 + minutes) * 60 + seconds) * SECOND + fraction)
}

/// A date, or a timestamp with or without an offset, in ISO form, in microseconds since 1970.
fn moment(text: &str, timed: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (date, rest) = if timed { text.split_once(' ')? } else { (text, "00:00:00") };
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if year.len() < 4 || month.len() != 2 || day.len() != 2 {
        return None;
    }
    let year: i64 = year.parse().ok()?;
    let year = if before_christ { 1 - year } else { year };
    let days = days_since_1970(year, month.parse().ok()?, day.parse().ok()?);
    let (time, offset) = match rest.find(['+', '-']) {
        Some(at) => (&rest[..at], offset(&rest[at..])?),
        None => (rest, 0),
    };
    days.checked_mul(86_400 * SECOND)?.checked_add(clock(time)?)?.checked_sub(offset * SECOND)
}

/// `+02`, `-03:30`, `+00:19:32` in seconds.
fn offset(text: &str) -> Option<i64> {
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let mut seconds = 0;
    for (part, unit) in text[1..].split(':').zip([3600, 60, 1]) {
        seconds += part.parse::<i64>().ok()? * unit;
    }
    Some(sign * seconds)
}
