//! Where a row of COPY ends: a scanner that is fed bytes in pieces of any size and remembers what it must between them.

use super::Form;

/// How lines end, known from the first one. PostgreSQL allows one way within a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Unknown,
    Lf,
    Cr,
    CrLf,
}

/// Finds the ends of lines.
#[derive(Debug)]
pub(super) struct Scanner {
    csv: bool,
    quote: u8,
    /// `None` where it is the quote itself, which then toggles.
    escape: Option<u8>,
    end: End,
    /// A carriage return that may have a line feed behind it.
    returned: bool,
    quoted: bool,
    /// In quotes: the byte before was an escape that escapes. In text: the byte before was a backslash.
    escaped: bool,
    /// In text: a `\.` stands in the line.
    marked: bool,
}

const CR_TWICE: &str =
    "a carriage return where lines do not end so; write it as \\r, or quote the value in csv";
const LF_TWICE: &str =
    "a line feed where lines do not end so; write it as \\n, or quote the value in csv";

impl Scanner {
    pub(super) fn new(form: &Form) -> Self {
        Self {
            csv: form.csv,
            quote: form.quote,
            escape: (form.escape != form.quote).then_some(form.escape),
            end: End::Unknown,
            returned: false,
            quoted: false,
            escaped: false,
            marked: false,
        }
    }

    /// How many of these bytes belong to the line under way, its end included, if it ends among them. All of them belong to it otherwise.
    /// # Errors
    /// It ends in a way that PostgreSQL would not take.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.returned {
                self.returned = false;
                return match (byte, self.end) {
                    (b'\n', _) => {
                        self.end = End::CrLf;
                        Ok(Some(at + 1))
                    }
                    (_, End::CrLf) => Err(CR_TWICE),
                    _ => {
                        self.end = End::Cr;
                        Ok(Some(at))
                    }
                };
            }
            if self.is_inside(byte) {
                continue;
            }
            match (byte, self.end) {
                (b'\r', End::Unknown | End::CrLf) => self.returned = true,
                (b'\r', End::Cr) => return Ok(Some(at + 1)),
                (b'\r', End::Lf) => return Err(CR_TWICE),
                (b'\n', End::Unknown | End::Lf) => {
                    self.end = End::Lf;
                    return Ok(Some(at + 1));
                }
                (b'\n', End::Cr | End::CrLf) => return Err(LF_TWICE),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether a byte cannot end the line, by what stands before it.
    fn is_inside(&mut self, byte: u8) -> bool {
        if !self.csv {
            if self.escaped {
                self.escaped = false;
                self.marked |= byte == b'.';
                return true;
            }
            self.escaped = byte == b'\\';
            return self.escaped;
        }
        if self.quoted && Some(byte) == self.escape {
            self.escaped = !self.escaped;
        }
        if byte == self.quote && !self.escaped {
            self.quoted = !self.quoted;
        }
        if Some(byte) != self.escape {
            self.escaped = false;
        }
        self.quoted
    }

    /// The bytes have come to their end, and with them the line under way.
    /// # Errors
    /// As [`Self::scan`].
    pub(super) fn finish(&mut self) -> Result<(), &'static str> {
        match (self.returned, self.end) {
            (true, End::CrLf) => return Err(CR_TWICE),
            (true, _) => self.end = End::Cr,
            (false, _) => {}
        }
        Ok(())
    }

    /// A line without its end.
    pub(super) fn content<'l>(&self, line: &'l [u8]) -> &'l [u8] {
        let end: &[u8] = match self.end {
            End::Unknown => b"",
            End::Lf => b"\n",
            End::Cr => b"\r",
            End::CrLf => b"\r\n",
        };
        // The last one may have none, and then it does not end like one: an escape before that would have taken it.
        line.strip_suffix(end).unwrap_or(line)
    }

    /// The next line begins. Whether a `\.` stood in the one before, outside of quotes: in text only.
    pub(super) fn next_line(&mut self) -> bool {
        self.quoted = false;
        self.escaped = false;
        std::mem::take(&mut self.marked)
    }
}
