//! The bodies of DataRow and RowDescription messages, read and written. Every length is checked against what is there.

use crate::{Format, RefusalClass, Refused};

/// One column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, in the client's encoding.
    pub name: Vec<u8>,
    /// Table and column that it comes from, if it is one; bytes as they stand in the message.
    pub origin: [u8; 6],
    /// Its type.
    pub type_oid: u32,
    /// Its type's length and modifier; bytes as they stand in the message.
    pub type_details: [u8; 6],
    /// How its values are written.
    pub format: Format,
}

impl Field {
    /// Its name for people, in quotes.
    pub(super) fn named(&self) -> String {
        format!("{:?}", String::from_utf8_lossy(&self.name))
    }
}

/// The columns of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<Field>);

pub(super) fn broken(what: &str) -> Refused {
    let remedy = "Look at the source's log, and send the statement again";
    Refused::new(RefusalClass::Disagreement, format!("a source sent {what}"), remedy)
}

impl Fields {
    /// Reads the body of a RowDescription.
    /// # Errors
    /// It is cut short, or says something else than it may.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        Self::read(body).ok_or_else(|| broken("a row description that is cut short"))
    }

    fn read(body: &[u8]) -> Option<Self> {
        let (count, mut rest) = body.split_first_chunk::<2>()?;
        let mut fields = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let end = rest.iter().position(|byte| *byte == 0)?;
            let name = rest[..end].to_vec();
            let (origin, behind) = rest[end + 1..].split_first_chunk::<6>()?;
            let (type_oid, behind) = behind.split_first_chunk::<4>()?;
            let (type_details, behind) = behind.split_first_chunk::<6>()?;
            let (format, behind) = behind.split_first_chunk::<2>()?;
            let format = match u16::from_be_bytes(*format) {
                0 => Format::Text,
                1 => Format::Binary,
                _ => return None,
            };
            fields.push(Field {
                name,
                origin: *origin,
                type_oid: u32::from_be_bytes(*type_oid),
                type_details: *type_details,
                format,
            });
            rest = behind;
        }
        rest.is_empty().then_some(Self(fields))
    }

    /// The body of a RowDescription.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.0.len()).expect("a row has at most 1,664 columns");
        let mut body = count.to_be_bytes().to_vec();
        for field in &self.0 {
            body.extend(&field.name);
            body.push(0);
            body.extend(field.origin);
            body.extend(field.type_oid.to_be_bytes());
            body.extend(field.type_details);
            body.extend(u16::from(field.format == Format::Binary).to_be_bytes());
        }
        body
    }
}

/// The cells of a DataRow's body; `None` is NULL.
pub(crate) fn cells(body: &[u8]) -> Result<Vec<Option<&[u8]>>, Refused> {
    read_cells(body).ok_or_else(|| broken("a row that is cut short"))
}

fn read_cells(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut cells = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        match i32::from_be_bytes(*length) {
            -1 => {
                cells.push(None);
                rest = behind;
            }
            length => {
                let (cell, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
                cells.push(Some(cell));
                rest = behind;
            }
        }
    }
    rest.is_empty().then_some(cells)
}

/// The body of a DataRow.
pub(super) fn encode<'c>(cells: impl ExactSizeIterator<Item = Option<&'c [u8]>>) -> Vec<u8> {
    let count = u16::try_from(cells.len()).expect("a row has at most 1,664 columns");
    let mut body = count.to_be_bytes().to_vec();
    for cell in cells {
        match cell {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(cell) => {
                let length = i32::try_from(cell.len()).expect("a message is shorter than 2 GiB");
                body.extend(length.to_be_bytes());
                body.extend(cell);
            }
        }
    }
    body
}
