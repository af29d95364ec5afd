//! Draws values: keys in every form in which an application may write them.

use rand::{Rng as _, seq::IndexedRandom as _};

use super::{
    statement::Pen,
    world::{KeyKind, World},
};

/// Keys that occur.
pub(super) const KEYS: u32 = 40;

/// A parameter as it is bound.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) oid: u32,
    /// Whether the parse message tells its type.
    pub(super) declared: bool,
    pub(super) as_text: bool,
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) shown: String,
    /// How many keys it holds as an array; 0 for a key by itself.
    elements: usize,
}

impl Bound {
    /// Another value of the same type in the same format, as a prepared statement is executed again.
    pub(super) fn again(&self, world: &World, pen: &mut Pen<'_, '_>) -> Self {
        match self.elements {
            0 => {
                let text = world.key(pen.key_number());
                self.with(text.clone(), encode(world.kind, self.oid, &text), pen)
            }
            count => {
                let texts: Vec<String> = (0..count).map(|_| world.key(pen.key_number())).collect();
                let array = array(world.kind, element_of(self.oid), &texts);
                self.with(text_array(&texts), array, pen)
            }
        }
    }

    fn with(&self, text: String, binary: Vec<u8>, pen: &mut Pen<'_, '_>) -> Self {
        let bytes = if self.as_text { text.clone().into_bytes() } else { binary };
        let bytes = (!pen.rng.random_bool(0.03)).then_some(bytes);
        let shown = if bytes.is_some() { text } else { "NULL".to_owned() };
        Self { bytes, shown, ..*self }
    }
}

impl Pen<'_, '_> {
    pub(super) fn any<'s>(&mut self, of: &[&'s str]) -> &'s str {
        of.choose(self.rng).copied().unwrap_or_default()
    }

    pub(super) fn number(&mut self, below: i64) -> String {
        let value = self.rng.random_range(0..below);
        if self.rng.random_bool(0.1) { "NULL".to_owned() } else { value.to_string() }
    }

    /// Which key: within a transaction mostly the one that it is about.
    pub(super) fn key_number(&mut self) -> u32 {
        match self.focus {
            Some(number) if self.rng.random_bool(0.93) => number,
            _ => self.rng.random_range(0..KEYS),
        }
    }

    /// A value of the key: a literal in one of its forms, or a parameter.
    pub(super) fn key(&mut self) -> String {
        let number = self.key_number();
        self.key_of(number)
    }

    pub(super) fn key_of(&mut self, number: u32) -> String {
        let text = self.world.key(number);
        if !self.simple && self.rng.random_bool(0.6) {
            return self.parameter(&text);
        }
        let quoted = format!("'{}'", text.replace('\'', "''"));
        match self.world.kind {
            KeyKind::Integer(_) => match self.rng.random_range(0..9) {
                0 => format!("'{text}'"),
                1 => format!("{text}::bigint"),
                2 => format!("{text}.0"),
                3 => format!("'0{text}'::bigint"),
                4 => format!("CAST('{text}' AS int)"),
                5 => format!("' {text} '"),
                _ => text,
            },
            KeyKind::Text | KeyKind::Varchar => match self.rng.random_range(0..5) {
                0 => format!("{quoted}::text"),
                1 => format!("CAST({quoted} AS varchar)"),
                _ => quoted,
            },
            KeyKind::Char if self.rng.random_bool(0.3) => {
                format!("{}  '", &quoted[..quoted.len() - 1])
            }
            KeyKind::Char => quoted,
            KeyKind::Uuid => match self.rng.random_range(0..5) {
                0 => quoted.to_uppercase(),
                1 => format!("{quoted}::uuid"),
                2 => format!("'{}'", text.replace('-', "")),
                3 => format!("'{{{text}}}'"),
                _ => quoted,
            },
            KeyKind::Date => match self.rng.random_range(0..8) {
                0 => format!("DATE {quoted}"),
                1 => format!("{quoted}::date"),
                2 => format!("CAST({quoted} AS date)"),
                // Understood by PostgreSQL alone.
                3 if self.rng.random_bool(0.3) => format!("'{}'", text.replace('-', "")),
                _ => quoted,
            },
        }
    }

    fn parameter(&mut self, text: &str) -> String {
        let declared = self.rng.random_bool(0.5);
        let kind = self.world.kind;
        let oid = match kind {
            // A declared type may be another integer than the column's.
            KeyKind::Integer(_) if declared => *[21, 23, 20].choose(self.rng).expect("three"),
            _ => kind.oid(),
        };
        let as_text = self.rng.random_bool(0.4);
        let written = match kind {
            KeyKind::Integer(_) if as_text => match self.rng.random_range(0..4) {
                0 => format!(" {text}"),
                1 => format!("0{text}"),
                2 => format!("+{text}"),
                _ => text.to_owned(),
            },
            KeyKind::Uuid if as_text && self.rng.random_bool(0.3) => text.to_uppercase(),
            KeyKind::Char if self.rng.random_bool(0.3) => format!("{text}  "),
            _ => text.to_owned(),
        };
        let binary = match kind {
            KeyKind::Char => written.clone().into_bytes(),
            _ => encode(kind, oid, text),
        };
        let bound =
            Bound { oid, declared, as_text, bytes: None, shown: String::new(), elements: 0 };
        let bound = bound.with(written, binary, self);
        self.push(bound)
    }

    /// A parameter that is an array of keys.
    pub(super) fn array_parameter(&mut self) -> String {
        let declared = self.rng.random_bool(0.5);
        let kind = self.world.kind;
        let element = match kind {
            KeyKind::Integer(_) if declared => *[21, 23, 20].choose(self.rng).expect("three"),
            // Behind = ANY PostgreSQL looks for an operator between the column's type and the element's.
            KeyKind::Varchar => 25,
            _ => kind.oid(),
        };
        let elements = self.rng.random_range(1..4);
        let bound = Bound {
            oid: array_of(element),
            declared,
            as_text: self.rng.random_bool(0.4),
            bytes: None,
            shown: String::new(),
            elements,
        };
        let world = self.world;
        let bound = bound.again(world, self);
        self.push(bound)
    }

    fn push(&mut self, bound: Bound) -> String {
        self.parameters.push(bound);
        format!("${}", self.parameters.len())
    }
}

/// A key in the binary form of type `oid`.
fn encode(kind: KeyKind, oid: u32, text: &str) -> Vec<u8> {
    match kind {
        KeyKind::Integer(_) => {
            let value: i64 = text.trim().parse().expect("a key is a number");
            match oid {
                21 => i16::try_from(value).expect("keys are small").to_be_bytes().to_vec(),
                23 => i32::try_from(value).expect("keys are small").to_be_bytes().to_vec(),
                _ => value.to_be_bytes().to_vec(),
            }
        }
        KeyKind::Text | KeyKind::Varchar | KeyKind::Char => text.as_bytes().to_vec(),
        KeyKind::Uuid => {
            let value = u128::from_str_radix(&text.replace('-', ""), 16).expect("a uuid");
            value.to_be_bytes().to_vec()
        }
        KeyKind::Date => (julian_day(text) - julian_day("2000-01-01")).to_be_bytes().to_vec(),
    }
}

fn julian_day(text: &str) -> i32 {
    let mut parts = text.split('-').map(|part| part.parse::<u16>().expect("a key is a date"));
    let mut part = || parts.next().expect("a date has three parts");
    let (year, month, day) = (part(), part(), part());
    let month = u8::try_from(month).ok().and_then(|month| time::Month::try_from(month).ok());
    let day = u8::try_from(day).expect("a day of a month");
    time::Date::from_calendar_date(year.into(), month.expect("a month"), day)
        .expect("a key is a date")
        .to_julian_day()
}

/// One dimension, no NULL, counted from 1.
fn array(kind: KeyKind, element: u32, texts: &[String]) -> Vec<u8> {
    let count = i32::try_from(texts.len()).expect("a short list");
    let mut bytes = Vec::new();
    for word in [1_i32, 0, element.cast_signed(), count, 1] {
        bytes.extend(word.to_be_bytes());
    }
    for text in texts {
        let value = encode(kind, element, text);
        bytes.extend(i32::try_from(value.len()).expect("a short key").to_be_bytes());
        bytes.extend(value);
    }
    bytes
}

pub(super) fn text_array(texts: &[String]) -> String {
    let quote = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\"));
    format!("{{{}}}", texts.iter().map(quote).collect::<Vec<_>>().join(","))
}

/// Types and their arrays, by oid.
const ARRAYS: [(u32, u32); 8] = [
    (1082, 1182),
    (20, 1016),
    (21, 1005),
    (23, 1007),
    (25, 1009),
    (1042, 1014),
    (1043, 1015),
    (2950, 2951),
];

fn array_of(element: u32) -> u32 {
    ARRAYS.iter().find(|(of, _)| *of == element).map_or(0, |(_, array)| *array)
}

fn element_of(array: u32) -> u32 {
    ARRAYS.iter().find(|(_, of)| *of == array).map_or(0, |(element, _)| *element)
}
