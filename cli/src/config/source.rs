//! Reads a TOML text into a tree whose every key and value knows its line and column.

use std::{fs::File, io::Read, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    mistake::Mistake,
    origin::{Origin, Place},
};

/// Bytes of one configuration file. The largest honest one is a few kilobytes.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Syntax mistakes reported of one file: after the first few, the parser only guesses.
const SYNTAX_MISTAKES_MAX: usize = 8;

/// A value and where it starts.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// A value of TOML, as far as configurations use it.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    /// `None`: more than 128 bits.
    Integer(Option<i128>),
    Truth(bool),
    List(Vec<Node>),
    Table(Table),
    /// A kind that no key takes: float, datetime.
    Other(&'static str),
}

impl Value {
    /// The kind, in words for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Truth(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// Keys in the order of the text.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

/// One key of a table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) origin: Origin,
    pub(crate) node: Node,
}

impl Table {
    /// The entry called `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// Reads `path` as UTF-8 of at most [`FILE_BYTES_MAX`] bytes.
/// # Errors
/// HF1001 (cannot be read), HF1002 (not UTF-8), HF1018 (too large).
pub(crate) fn read_text(path: &Path) -> Result<String, Mistake> {
    let name = path.display().to_string();
    let origin = Origin::WholeFile(name);
    let unreadable = |error: &std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::NotFound => "Check the path, or start from a file in config/.",
            std::io::ErrorKind::PermissionDenied => "Give this user the right to read it.",
            _ => "Name a regular file that this user may read.",
        };
        Mistake::new("HF1001", origin.clone(), format!("cannot be read: {error}. {remedy}"))
    };
    let file = File::open(path).map_err(|e| unreadable(&e))?;
    let mut bytes = Vec::new();
    // One byte past the limit tells a full file from one that is too large, whatever its announced length.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| unreadable(&e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let text = format!(
            "is larger than {FILE_BYTES_MAX} bytes, the limit of a configuration file. Is it the right file?"
        );
        return Err(Mistake::new("HF1018", origin, text));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count();
        let text = format!(
            "is not UTF-8 at byte {offset}, in line {line}. Save the file as UTF-8 without a byte order mark."
        );
        Mistake::new("HF1002", origin, text)
    })
}

/// Parses `text`; places are told in `file`.
/// # Errors
/// HF1003, one for each syntax mistake. The keys are not looked at then: what a parser makes of broken text is a guess.
pub(crate) fn parse(file: &str, text: &str) -> Result<Table, Vec<Mistake>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let origin = |offset| Origin::File { file: file.to_owned(), place: place_of(text, offset) };
        return Ok(table_of(table.get_ref(), &origin));
    }
    let mistakes = errors.iter().take(SYNTAX_MISTAKES_MAX).map(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let origin = Origin::File { file: file.to_owned(), place: place_of(text, offset) };
        let words = error.message().trim().replace('\n', "; ");
        Mistake::new(
            "HF1003",
            origin,
            format!(
                "not TOML: {words}. Mend this line; keys are checked once the file can be read."
            ),
        )
    });
    Err(mistakes.collect())
}

/// Parses one value given by environment or flag, for example `[{ id = 1, ... }]`.
/// # Errors
/// HF1003.
pub(crate) fn parse_inline(origin: &Origin, text: &str) -> Result<Node, Mistake> {
    match DeValue::parse(text) {
        Ok(value) => Ok(node_of(&value, &|_| origin.clone())),
        Err(error) => {
            let words = error.message().trim().replace('\n', "; ");
            let text =
                format!("not a TOML value: {words}. Write it as it would stand in the file.");
            Err(Mistake::new("HF1003", origin.clone(), text))
        }
    }
}

fn table_of(table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Table {
    let entries = table.iter().map(|(key, value)| Entry {
        key: key.get_ref().to_string(),
        origin: origin(key.span().start),
        node: node_of(value, origin),
    });
    Table { entries: entries.collect() }
}

fn node_of(value: &Spanned<DeValue<'_>>, origin: &dyn Fn(usize) -> Origin) -> Node {
    let own = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => {
            Value::Integer(i128::from_str_radix(integer.as_str(), integer.radix()).ok())
        }
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| node_of(item, origin)).collect())
        }
        DeValue::Table(table) => Value::Table(table_of(table, origin)),
        DeValue::Boolean(value) => Value::Truth(*value),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Datetime(_) => Value::Other("a date or time"),
    };
    Node { value: own, origin: origin(value.span().start) }
}

fn place_of(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
    Place { line, column }
}
