//! The values of one execution: literals of the text, parameters of the bind message, and what each is as a key.

use std::borrow::Cow;

use super::array;
use crate::{
    KeyType,
    calendar::Date,
    limit::KEY_BYTES_MAX,
    template::{Literal, LiteralKind},
};

/// How a parameter's bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As text in UTF-8, which must be the client's encoding.
    Text,
    /// As PostgreSQL's binary form of its type.
    Binary,
}

/// One parameter of a bind message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter<'v> {
    /// Its type as the parse message or a parameter description gave it, 0 if neither did.
    pub oid: u32,
    /// How `value` is written.
    pub format: Format,
    /// Its bytes; `None` is NULL.
    pub value: Option<&'v [u8]>,
}

impl Parameter<'_> {
    /// Its type; 0 also where a driver declares it as `unknown`, which PostgreSQL takes as not declared.
    pub(crate) fn declared(&self) -> u32 {
        if self.oid == UNKNOWN { 0 } else { self.oid }
    }
}

/// Everything that differs between two executions of one shape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Values<'v> {
    /// The client's text, into which the literals point.
    pub sql: &'v str,
    /// The literals that the template left out, in order.
    pub literals: &'v [Literal],
    /// The parameters `$1`, `$2`, ...
    pub parameters: &'v [Parameter<'v>],
}

/// A value in a statement, as far as its text tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Constant {
    pub(crate) place: Place,
    /// A minus before it.
    pub(crate) negative: bool,
    /// The type that it is cast to.
    pub(crate) cast: Option<Cast>,
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A literal that the template left out.
    Literal(usize),
    /// A parameter. It has a type of its own if `alone`: nothing else in the statement could have given it another.
    Parameter {
        index: usize,
        alone: bool,
    },
    Null,
    /// A string that stands in the template itself.
    Text(String),
    Number(String),
}

/// The types whose casts keep what a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cast {
    Integer,
    Text,
    Uuid,
    Date,
}

/// What a value is as a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known<'v> {
    Key(Cow<'v, str>),
    /// Equal to no key at all, such as 5.5 among integers.
    NoKey,
    Null,
    Unknown(&'static str),
}

const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const UNKNOWN: u32 = 705;
const BPCHAR: u32 = 1042;
const DATE: u32 = 1082;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;
const UUID: u32 = 2950;

const OTHER_TYPE: Known<'static> = Known::Unknown("its type is not the key's");
const NOT_UTF8: Known<'static> = Known::Unknown("it is not UTF-8");

/// What `constant` is as a key of type `key_type`.
pub(crate) fn known<'v>(
    constant: &'v Constant,
    key_type: KeyType,
    values: &Values<'v>,
) -> Known<'v> {
    match &constant.place {
        Place::Null => Known::Null,
        Place::Text(text) => written(constant, LiteralKind::Text, Cow::Borrowed(text), key_type),
        Place::Number(text) => {
            written(constant, LiteralKind::Number, Cow::Borrowed(text), key_type)
        }
        Place::Literal(index) => match values.literals.get(*index) {
            None => Known::Unknown("its literal is not there"),
            Some(literal) => {
                let text = literal_text(literal, values.sql);
                written(constant, literal.kind, text, key_type)
            }
        },
        Place::Parameter { index, alone } => match values.parameters.get(*index) {
            None => Known::Unknown("its parameter is not bound"),
            Some(parameter) => bound(constant, parameter, *alone, key_type),
        },
    }
}

/// A literal's value: a string without its quotes, a number as it is written.
pub(crate) fn literal_text<'v>(literal: &Literal, sql: &'v str) -> Cow<'v, str> {
    let raw = literal.raw(sql);
    match literal.kind {
        LiteralKind::Number => Cow::Borrowed(raw),
        LiteralKind::Text => {
            let inner = raw.strip_prefix('\'').and_then(|raw| raw.strip_suffix('\''));
            let inner = inner.unwrap_or_default();
            if inner.contains('\'') {
                Cow::Owned(inner.replace("''", "'"))
            } else {
                Cow::Borrowed(inner)
            }
        }
    }
}

fn written<'v>(
    constant: &Constant,
    kind: LiteralKind,
    text: Cow<'v, str>,
    key_type: KeyType,
) -> Known<'v> {
    match (kind, constant.cast, key_type) {
        (LiteralKind::Number, None | Some(Cast::Integer), KeyType::Integer) => {
            let known = number(&text, constant.negative);
            // A cast would round; a comparison does not.
            if constant.cast.is_some() && known == Known::NoKey { OTHER_TYPE } else { known }
        }
        _ if constant.negative => OTHER_TYPE,
        (LiteralKind::Text, None | Some(Cast::Integer), KeyType::Integer) => integer(&text),
        (
            LiteralKind::Text,
            None | Some(Cast::Text),
            KeyType::Text | KeyType::Varchar | KeyType::Char,
        ) => characters(text, key_type),
        (LiteralKind::Text, None | Some(Cast::Uuid), KeyType::Uuid) => uuid(&text),
        (LiteralKind::Text, None | Some(Cast::Date), KeyType::Date) => date(&text),
        _ => OTHER_TYPE,
    }
}

fn bound<'v>(
    constant: &Constant,
    parameter: &Parameter<'v>,
    alone: bool,
    key_type: KeyType,
) -> Known<'v> {
    if constant.negative {
        return OTHER_TYPE;
    }
    let Some(bytes) = parameter.value else { return Known::Null };
    let oid = match (parameter.declared(), constant.cast) {
        (0, Some(Cast::Text)) => TEXT,
        (0, Some(Cast::Uuid)) => UUID,
        (0, Some(Cast::Date)) => DATE,
        // The width of the bytes tells which integer it is.
        (0, Some(Cast::Integer)) => 0,
        (0, None) if !alone => {
            return Known::Unknown("its parameter has no type and is used elsewhere as well");
        }
        (oid, _) => oid,
    };
    let cast_fits = match constant.cast {
        None => true,
        Some(Cast::Integer) => matches!(oid, 0 | INT2 | INT4 | INT8),
        Some(Cast::Text) => matches!(oid, 0 | TEXT | VARCHAR),
        Some(Cast::Uuid) => matches!(oid, 0 | UUID),
        Some(Cast::Date) => matches!(oid, 0 | DATE),
    };
    if !cast_fits {
        return OTHER_TYPE;
    }
    of_bytes(bytes, parameter.format, oid, key_type)
}

/// What a value of type `oid` (0: the key's own) is as a key.
pub(crate) fn of_bytes(bytes: &[u8], format: Format, oid: u32, key_type: KeyType) -> Known<'_> {
    match (key_type, format, oid) {
        (KeyType::Integer, Format::Binary, 0 | INT2 | INT4 | INT8) => match *bytes {
            [a, b] => decimal(i64::from(i16::from_be_bytes([a, b]))),
            [a, b, c, d] => decimal(i64::from(i32::from_be_bytes([a, b, c, d]))),
            [a, b, c, d, e, f, g, h] => decimal(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
            _ => Known::Unknown("it is no integer in binary form"),
        },
        (KeyType::Uuid, Format::Binary, 0 | UUID) => {
            let Ok(bytes) = <[u8; 16]>::try_from(bytes) else {
                return Known::Unknown("it is no uuid in binary form");
            };
            Known::Key(Cow::Owned(uuid_text(u128::from_be_bytes(bytes))))
        }
        (KeyType::Text | KeyType::Varchar, _, 0 | TEXT | VARCHAR)
        | (KeyType::Char, _, 0 | TEXT | VARCHAR | BPCHAR) => match std::str::from_utf8(bytes) {
            Ok(text) => characters(Cow::Borrowed(text), key_type),
            Err(_) => NOT_UTF8,
        },
        (KeyType::Integer, Format::Text, 0 | INT2 | INT4 | INT8) => {
            std::str::from_utf8(bytes).map_or(NOT_UTF8, integer)
        }
        (KeyType::Integer, Format::Text, NUMERIC) => {
            std::str::from_utf8(bytes).map_or(NOT_UTF8, signed_number)
        }
        (KeyType::Uuid, Format::Text, 0 | UUID) => {
            std::str::from_utf8(bytes).map_or(NOT_UTF8, uuid)
        }
        (KeyType::Date, Format::Text, 0 | DATE) => {
            std::str::from_utf8(bytes).map_or(NOT_UTF8, date)
        }
        (KeyType::Date, Format::Binary, 0 | DATE) => {
            let days = <[u8; 4]>::try_from(bytes).ok().map(i32::from_be_bytes);
            let date = days.and_then(|days| Date::of_days(i64::from(days) + DAYS_TO_2000));
            date.map_or(NO_DATE, |date| Known::Key(Cow::Owned(date.to_string())))
        }
        _ => OTHER_TYPE,
    }
}

/// What a text by itself is as a key, or why it is none.
pub(crate) fn of_text(text: &str, key_type: KeyType) -> Result<Cow<'_, str>, &'static str> {
    match of_bytes(text.as_bytes(), Format::Text, 0, key_type) {
        Known::Key(key) => Ok(key),
        Known::Unknown(cause) => Err(cause),
        Known::NoKey | Known::Null => Err("it equals no key"),
    }
}

/// The day from which PostgreSQL counts, in days since 1970-01-01.
const DAYS_TO_2000: i64 = 10_957;
const NO_DATE: Known<'static> =
    Known::Unknown("it is no date written YYYY-MM-DD of the years 0001 to 9999");

fn date<'a>(text: &str) -> Known<'a> {
    Date::parse(text).map_or(NO_DATE, |date| Known::Key(Cow::Owned(date.to_string())))
}

fn decimal(value: i64) -> Known<'static> {
    Known::Key(Cow::Owned(value.to_string()))
}

/// What the input function of an integer takes, in the forms that every server version takes.
fn integer<'a>(text: &str) -> Known<'a> {
    let trimmed = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let digits = trimmed.strip_prefix(['+', '-']).unwrap_or(trimmed);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Known::Unknown("it is no integer");
    }
    trimmed.parse::<i64>().map_or(Known::Unknown("it is no 64-bit integer"), decimal)
}

fn signed_number<'a>(text: &str) -> Known<'a> {
    match text.strip_prefix('-') {
        Some(digits) => number(digits, true),
        None => number(text, false),
    }
}

/// A number compared with integers: its fraction must be nothing.
fn number<'a>(text: &str, negative: bool) -> Known<'a> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Known::Unknown("it is written with an exponent");
    }
    if fraction.bytes().any(|digit| digit != b'0') {
        return Known::NoKey;
    }
    let magnitude: Option<i128> = format!("0{whole}").parse().ok();
    let value = magnitude.map(|value| if negative { -value } else { value });
    value.and_then(|value| i64::try_from(value).ok()).map_or(Known::NoKey, decimal)
}

fn characters(text: Cow<'_, str>, key_type: KeyType) -> Known<'_> {
    let text = match (key_type, text) {
        (KeyType::Char, Cow::Borrowed(text)) => Cow::Borrowed(text.trim_end_matches(' ')),
        (KeyType::Char, Cow::Owned(text)) => Cow::Owned(text.trim_end_matches(' ').to_owned()),
        (_, text) => text,
    };
    if text.is_empty() || text.len() > KEY_BYTES_MAX {
        return Known::Unknown("a key has 1 to 256 bytes");
    }
    if text.contains('\0') {
        return Known::Unknown("it holds a zero byte");
    }
    Known::Key(text)
}

/// The usual form, in either case, with or without braces and hyphens.
fn uuid<'a>(text: &str) -> Known<'a> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let hex: String = inner.chars().filter(|c| *c != '-').collect();
    let hyphens: Vec<usize> = inner.match_indices('-').map(|(at, _)| at).collect();
    let usual = hyphens.is_empty() || hyphens == [8, 13, 18, 23];
    if !usual || hex.len() != 32 || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Known::Unknown("it is no uuid in its usual form");
    }
    let value = u128::from_str_radix(&hex, 16).expect("32 hexadecimal digits fit 128 bits");
    Known::Key(Cow::Owned(uuid_text(value)))
}

fn uuid_text(value: u128) -> String {
    let hex = format!("{value:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The value of a constant that is compared with integers and numerics: a number as PostgreSQL prints it, or NULL.
/// # Errors
/// Why it is not known.
pub(crate) fn exact_number(
    constant: &Constant,
    values: &Values<'_>,
) -> Result<Option<String>, &'static str> {
    let written = |text: &str| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return Err("it is written with an exponent");
        }
        // A cast to an integer would round.
        if constant.cast.is_some() && (constant.cast != Some(Cast::Integer) || text.contains('.')) {
            return Err("it is cast to another type");
        }
        let sign = if constant.negative { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        Ok(Some(format!("{sign}0{whole}{point}{fraction}")))
    };
    match &constant.place {
        Place::Null => Ok(None),
        Place::Number(text) => written(text),
        Place::Text(_) => Err("it is a text"),
        Place::Literal(index) => match values.literals.get(*index) {
            Some(literal) if literal.kind == LiteralKind::Number => {
                written(literal.raw(values.sql))
            }
            _ => Err("it is a text"),
        },
        Place::Parameter { index, .. } => {
            let parameter = values.parameters.get(*index).ok_or("its parameter is not bound")?;
            // Without a declared type it has that of the other side, of which nothing is known here.
            if !matches!(parameter.declared(), INT2 | INT4 | INT8) {
                return Err("its parameter is not declared as an integer");
            }
            match bound(constant, parameter, false, KeyType::Integer) {
                Known::Key(key) => Ok(Some(key.into_owned())),
                Known::Null => Ok(None),
                Known::NoKey => Err("it is no integer"),
                Known::Unknown(why) => Err(why),
            }
        }
    }
}

/// The keys of an array: of `= ANY ($1)`, `= ANY ('{1,2}')`. An element that is NULL equals nothing and is left out.
/// # Errors
/// Why they are not known.
pub(crate) fn known_elements<'v>(
    constant: &'v Constant,
    key_type: KeyType,
    values: &Values<'v>,
) -> Result<Vec<Known<'v>>, &'static str> {
    match &constant.place {
        Place::Null => Ok(Vec::new()),
        Place::Number(_) => Err("it is no array"),
        Place::Text(text) => array::of_text(text, key_type),
        Place::Literal(index) => {
            let literal = values.literals.get(*index).ok_or("its literal is not there")?;
            if literal.kind == LiteralKind::Number {
                return Err("it is no array");
            }
            array::of_text(&literal_text(literal, values.sql), key_type)
        }
        Place::Parameter { index, alone } => {
            let parameter = values.parameters.get(*index).ok_or("its parameter is not bound")?;
            if parameter.declared() == 0 && !alone && constant.cast.is_none() {
                return Err("its parameter has no type and is used elsewhere as well");
            }
            let Some(bytes) = parameter.value else { return Ok(Vec::new()) };
            array::of_parameter(bytes, parameter, key_type)
        }
    }
}
