//! Divides the stream of a COPY from the client into rows, and says of each which source it is for.

use std::sync::Arc;

use super::{
    CopyIn,
    field::{self, Field},
    line::Scanner,
};
use crate::{
    Format, Key, KeyColumn, KeyType, RefusalClass, Refused, Slot,
    plan::{Known, of_bytes},
};

/// A row as it came, its end included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'b> {
    /// The part of the plan that it is for, by its place there; `None`: all of them.
    pub part: Option<usize>,
    /// Its bytes.
    pub bytes: &'b [u8],
}

/// Divides one stream.
#[derive(Debug)]
pub struct Divider {
    copy: Arc<CopyIn>,
    /// Which key columns have a field, and at which place of a row.
    places: Vec<(usize, usize)>,
    row_bytes_max: usize,
    csv_ends: bool,
    scanner: Scanner,
    /// The beginning of the row under way, where it came in an earlier piece.
    begun: Vec<u8>,
    header: bool,
    /// A mark has ended the stream: what follows is nothing.
    ended: bool,
    rows: u64,
    value: Vec<u8>,
}

impl Divider {
    pub(super) fn new(
        copy: Arc<CopyIn>,
        places: Vec<(usize, usize)>,
        row_bytes_max: usize,
        csv_ends: bool,
    ) -> Self {
        let scanner = Scanner::new(&copy.form);
        let header = copy.form.header;
        Self {
            copy,
            places,
            row_bytes_max,
            csv_ends,
            scanner,
            begun: Vec::new(),
            header,
            ended: false,
            rows: 0,
            value: Vec::new(),
        }
    }

    /// Rows that have been told, a line of names not among them.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes the next bytes of the stream and gives each row that ends among them to `tell`.
    /// # Errors
    /// A row has no key, a key without a slot, or an end that PostgreSQL would not take. Rows before it have been told.
    pub fn push(&mut self, bytes: &[u8], tell: &mut dyn FnMut(Row<'_>)) -> Result<(), Refused> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.ended {
            // No further than one byte past the limit, so that what is told of a row does not depend on how it comes in pieces.
            let room = self.row_bytes_max.saturating_sub(self.begun.len());
            let looked = &rest[..rest.len().min(room.saturating_add(1))];
            let found = self.scanner.scan(looked).map_err(|why| self.bad(why))?;
            let length = found.unwrap_or(looked.len());
            if length > room {
                return Err(self.too_long());
            }
            let (here, behind) = rest.split_at(length);
            rest = behind;
            if found.is_none() {
                self.begun.extend_from_slice(here);
            } else if self.begun.is_empty() {
                self.line(here, tell)?;
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(here);
                self.line(&whole, tell)?;
                whole.clear();
                self.begun = whole;
            }
        }
        Ok(())
    }

    /// The stream has come to its end, and with it the row under way, if there is one.
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self, tell: &mut dyn FnMut(Row<'_>)) -> Result<(), Refused> {
        self.scanner.finish().map_err(|why| self.bad(why))?;
        let whole = std::mem::take(&mut self.begun);
        if whole.is_empty() || self.ended {
            return Ok(());
        }
        // Servers take it for a mark only with the end of its line behind it.
        if whole == b"\\." {
            return Err(self.bad("a mark \\. without the end of its line"));
        }
        self.line(&whole, tell)
    }

    fn line(&mut self, line: &[u8], tell: &mut dyn FnMut(Row<'_>)) -> Result<(), Refused> {
        let content = self.scanner.content(line);
        let marked = self.scanner.next_line();
        let ends = if self.copy.form.csv { self.csv_ends } else { true };
        if ends && content == b"\\." {
            self.ended = true;
            return Ok(());
        }
        if marked {
            return Err(self.bad("a mark \\. that is not alone on its line"));
        }
        if std::mem::take(&mut self.header) {
            tell(Row { part: None, bytes: line });
            return Ok(());
        }
        self.rows += 1;
        let part = match self.copy.by_key() {
            true => Some(self.part(content)?),
            false => None,
        };
        tell(Row { part, bytes: line });
        Ok(())
    }

    /// The part that has the slot to which all key columns of a row lead.
    fn part(&mut self, content: &[u8]) -> Result<usize, Refused> {
        let copy = Arc::clone(&self.copy);
        let mut value = std::mem::take(&mut self.value);
        let mut found: Option<(Slot, &str)> = None;
        for (key, place) in &self.places {
            let column = &copy.keys[*key];
            let read = field::read(&copy.form, content, *place, &mut value);
            match read.map_err(|why| self.bad(why))? {
                Field::Value => {}
                Field::NoValue(what) => {
                    return Err(self.refuse(column, &format!("is not known: {what}")));
                }
                Field::Missing => {
                    return Err(self.bad(&format!("no field for column {}", column.name)));
                }
            }
            let slot = slot(&value, column).map_err(|why| self.refuse(column, &why))?;
            match found {
                Some((other, name)) if other != slot => {
                    let why = format!("leads to slot {slot}, and {name} to slot {other}");
                    return Err(self.refuse(column, &why));
                }
                _ => found = Some((slot, &column.name)),
            }
        }
        self.value = value;
        let (slot, _) = found.expect("a divider by key has a key");
        Ok(usize::from(copy.parts[usize::from(slot.number())]))
    }

    fn refuse(&self, column: &KeyColumn, why: &str) -> Refused {
        let cause =
            format!("COPY into {}, row {}: key {} {why}", self.copy.table, self.rows, column.name);
        let remedy = "Give it a value of the key's type, in its usual form; nothing was copied";
        Refused::new(RefusalClass::UnknownValue, cause, remedy)
    }

    fn bad(&self, why: &str) -> Refused {
        let cause = format!("COPY into {}, row {}: {why}", self.copy.table, self.rows.max(1));
        Refused::new(RefusalClass::BadRow, cause, "Mend the row; nothing was copied")
    }

    fn too_long(&self) -> Refused {
        let cause = format!(
            "COPY into {}, row {}: it is longer than {} bytes",
            self.copy.table,
            self.rows + 1,
            self.row_bytes_max
        );
        let remedy = "Look for a quote that is not closed, or raise limits.message_bytes_max";
        Refused::new(RefusalClass::TooLarge, cause, remedy)
    }
}

/// The slot of a key as COPY gives it.
fn slot(value: &[u8], column: &KeyColumn) -> Result<Slot, String> {
    let key = match of_bytes(value, Format::Text, 0, column.key_type) {
        Known::Key(key) if column.key_type == KeyType::Varchar && key.ends_with(' ') => {
            return Err("ends in a blank, which varchar(n) may cut".to_owned());
        }
        Known::Key(key) => key,
        Known::NoKey => return Err("is not known: it would be rounded".to_owned()),
        Known::Null => return Err("is not known: NULL".to_owned()),
        Known::Unknown(why) => return Err(format!("is not known: {why}")),
    };
    let key = Key::parse(&key).map_err(|bad| format!("is none: {bad}"))?;
    column.function.slot(key).map_err(|outside| format!("has no slot: {outside}"))
}
