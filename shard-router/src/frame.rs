//! Frames of the PostgreSQL protocol: their headers, checked before anything is allocated, and the messages that the router says itself.

/// Bytes of a tag and a length.
pub(crate) const HEADER: usize = 5;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which message.
    pub(crate) tag: u8,
    /// Bytes of the whole frame, header included.
    pub(crate) total: usize,
}

/// A length that no frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message {tag:?} announces {announced} bytes; 4 to {max} are allowed")]
pub(crate) struct BadLength {
    pub(crate) tag: char,
    pub(crate) announced: u32,
    pub(crate) max: usize,
}

/// The header at the front of `bytes`, if all of it is there.
/// # Errors
/// [`BadLength`]: shorter than itself, or a body longer than `max`.
pub(crate) fn header(bytes: &[u8], max: usize) -> Result<Option<Header>, BadLength> {
    let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let announced = u32::from_be_bytes([a, b, c, d]);
    let length = usize::try_from(announced).unwrap_or(usize::MAX);
    if length < 4 || length > max {
        return Err(BadLength { tag: char::from(tag), announced, max });
    }
    Ok(Some(Header { tag, total: length + 1 }))
}

/// Reads a body from its front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'b>(pub(crate) &'b [u8]);

impl<'b> Body<'b> {
    /// A text up to its zero byte.
    pub(crate) fn text(&mut self) -> Option<&'b [u8]> {
        let end = memchr::memchr(0, self.0)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(text)
    }

    /// One byte.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Two bytes.
    pub(crate) fn int16(&mut self) -> Option<i16> {
        let (first, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(i16::from_be_bytes(*first))
    }

    /// Four bytes.
    pub(crate) fn int32(&mut self) -> Option<i32> {
        let (first, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(i32::from_be_bytes(*first))
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'b [u8]> {
        let (first, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(first)
    }
}

/// Appends a frame whose body `write` appends.
pub(crate) fn put(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_sized(out, write);
}

/// Appends a length and what `write` appends: a start-up message, which has no tag.
pub(crate) fn put_sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at).expect("the router says nothing of 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a text and its zero byte; a zero byte inside would end it early, so it ends there.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.push(0);
}

/// `ReadyForQuery`.
pub(crate) fn put_ready(out: &mut Vec<u8>, status: u8) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// `CommandComplete`.
pub(crate) fn put_complete(out: &mut Vec<u8>, tag: &str) {
    put(out, b'C', |out| put_text(out, tag.as_bytes()));
}

/// A message without a body.
pub(crate) fn put_bare(out: &mut Vec<u8>, tag: u8) {
    out.extend_from_slice(&[tag, 0, 0, 0, 4]);
}

/// `ParameterStatus`.
pub(crate) fn put_parameter(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, b'S', |out| {
        put_text(out, name);
        put_text(out, value);
    });
}

/// A simple query.
pub(crate) fn put_query(out: &mut Vec<u8>, sql: &[u8]) {
    put(out, b'Q', |out| put_text(out, sql));
}

/// A call of the server's function with this number, without arguments, answered by a text: no parser and no planner has a part in it.
pub(crate) fn put_call(out: &mut Vec<u8>, function: u32) {
    put(out, b'F', |out| {
        out.extend_from_slice(&function.to_be_bytes());
        // Formats of arguments, arguments, the format of the answer: none, none, text.
        out.extend_from_slice(&[0; 6]);
    });
}

/// `RowDescription` of text columns.
pub(crate) fn put_columns(out: &mut Vec<u8>, names: &[&str]) {
    put(out, b'T', |out| {
        out.extend_from_slice(&count16(names.len()));
        for name in names {
            put_text(out, name.as_bytes());
            out.extend_from_slice(&0_i32.to_be_bytes());
            out.extend_from_slice(&0_i16.to_be_bytes());
            // text: oid 25, of variable length, no modifier, in text format.
            out.extend_from_slice(&25_i32.to_be_bytes());
            out.extend_from_slice(&(-1_i16).to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&0_i16.to_be_bytes());
        }
    });
}

/// `DataRow` of texts; `None` is NULL.
pub(crate) fn put_row<T: AsRef<[u8]>>(out: &mut Vec<u8>, values: &[Option<T>]) {
    put(out, b'D', |out| {
        out.extend_from_slice(&count16(values.len()));
        for value in values {
            match value {
                None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
                Some(value) => {
                    let value = value.as_ref();
                    let length = i32::try_from(value.len()).expect("a value of the router's own");
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(value);
                }
            }
        }
    });
}

fn count16(count: usize) -> [u8; 2] {
    u16::try_from(count).expect("a table of the router's own has few columns").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_judged_before_its_body_arrives() {
        assert_eq!(header(b"Q\0\0\0", 100), Ok(None));
        assert_eq!(header(b"Q\0\0\0\x64", 100), Ok(Some(Header { tag: b'Q', total: 101 })));
        assert!(header(b"Q\0\0\0\x65", 100).is_err(), "one past the limit");
        assert!(header(b"Q\0\0\0\x03", 100).is_err(), "shorter than itself");
        assert!(header(b"Q\xff\xff\xff\xff", 100).is_err());
    }

    #[test]
    fn what_is_put_is_read_again() {
        let mut out = Vec::new();
        put_parameter(&mut out, b"TimeZone", b"UTC\0tail");
        let header = header(&out, 100).expect("it is right").expect("it is whole");
        assert_eq!(header.total, out.len());
        let mut body = Body(&out[HEADER..]);
        assert_eq!(body.text(), Some(&b"TimeZone"[..]));
        assert_eq!(body.text(), Some(&b"UTC"[..]));
        assert_eq!(body.byte(), None);
    }
}
