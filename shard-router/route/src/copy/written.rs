//! Rows of a merged answer as the lines of a COPY: byte for byte what PostgreSQL writes of the same values.

use super::{Form, Quoted};
use crate::{
    Refused,
    merge::{Fields, cells},
};

/// How merged rows are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOut {
    form: Form,
}

impl CopyOut {
    pub(crate) fn new(form: Form) -> Self {
        Self { form }
    }

    /// The line of names, if there is one.
    #[must_use]
    pub fn header(&self, fields: &Fields) -> Option<Vec<u8>> {
        let names = || fields.0.iter().map(|field| Some(field.name.as_slice()));
        self.form.header.then(|| self.line(names().collect(), Quoted::None))
    }

    /// The line of a row whose values are texts; `row` is the body of a DataRow.
    /// # Errors
    /// The body is cut short.
    pub fn row(&self, row: &[u8]) -> Result<Vec<u8>, Refused> {
        Ok(self.line(cells(row)?, self.form.quoted))
    }

    fn line(&self, values: Vec<Option<&[u8]>>, quoted: Quoted) -> Vec<u8> {
        let alone = values.len() == 1;
        let mut line = Vec::new();
        for (at, value) in values.into_iter().enumerate() {
            if at > 0 {
                line.push(self.form.delimiter);
            }
            match value {
                None => line.extend_from_slice(&self.form.null),
                Some(value) if self.form.csv => {
                    self.put_csv(&mut line, value, quoted == Quoted::All, alone);
                }
                Some(value) => self.put_text(&mut line, value),
            }
        }
        line.push(b'\n');
        line
    }

    fn put_text(&self, line: &mut Vec<u8>, value: &[u8]) {
        for byte in value {
            let mark = match byte {
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                b'\\' => b'\\',
                byte if *byte == self.form.delimiter => *byte,
                byte => {
                    line.push(*byte);
                    continue;
                }
            };
            line.extend_from_slice(&[b'\\', mark]);
        }
    }

    /// `alone`: it is the only value of its row, so that it may not look like the end of the rows.
    fn put_csv(&self, line: &mut Vec<u8>, value: &[u8], forced: bool, alone: bool) {
        let Form { delimiter, quote, escape, null, .. } = &self.form;
        let special = |byte: &u8| [*delimiter, *quote, b'\n', b'\r'].contains(byte);
        let ends = alone && value == b"\\.";
        if !(forced || ends || value == null.as_slice() || value.iter().any(special)) {
            line.extend_from_slice(value);
            return;
        }
        line.push(*quote);
        for byte in value {
            if byte == quote || byte == escape {
                line.push(*escape);
            }
            line.push(*byte);
        }
        line.push(*quote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, copy::Text, merge::Field};

    fn written(options: &str) -> CopyOut {
        let sql = format!("COPY (SELECT 1) TO STDOUT {options}");
        CopyOut::new(Text::read(&sql, false).expect("it is understood").form)
    }

    fn row(values: &[Option<&str>]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).expect("few").to_be_bytes().to_vec();
        for value in values {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).expect("short"));
            body.extend(length.to_be_bytes());
            body.extend(value.unwrap_or_default().as_bytes());
        }
        body
    }

    fn line(options: &str, values: &[Option<&str>]) -> String {
        let line = written(options).row(&row(values)).expect("a whole row");
        String::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn text_is_written_with_its_escapes() {
        let values = [Some("a\tb\n\\"), None, Some(""), Some("\u{8}\u{b}\u{c}\r|"), Some("zür")];
        assert_eq!(line("", &values), "a\\tb\\n\\\\\t\\N\t\t\\b\\v\\f\\r|\tzür\n");
        let other = "(DELIMITER '|', NULL 'nil')";
        assert_eq!(line(other, &[Some("a|b\t"), None]), "a\\|b\\t|nil\n");
        assert_eq!(line("", &[]), "\n");
    }

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        let values =
            [Some("a,b"), Some("say \"x\""), None, Some(""), Some("two\nlines"), Some(" ")];
        let wanted = "\"a,b\",\"say \"\"x\"\"\",,\"\",\"two\nlines\", \n";
        assert_eq!(line("CSV", &values), wanted);
        let other = "(FORMAT csv, QUOTE '$', ESCAPE '%', NULL 'nil', FORCE_QUOTE *)";
        assert_eq!(line(other, &[Some("1$2%"), None, Some("nil")]), "$1%$2%%$,nil,$nil$\n");
        assert_eq!(line("CSV", &[Some("\\.")]), "\"\\.\"\n");
        assert_eq!(line("CSV", &[Some("\\."), Some("b")]), "\\.,b\n");
    }

    #[test]
    fn names_are_a_line_of_their_own() {
        let field = |name: &str| Field {
            name: name.into(),
            origin: [0; 6],
            type_oid: 25,
            type_details: [0; 6],
            format: Format::Text,
        };
        let fields = Fields(vec![field("a"), field("b,c")]);
        assert_eq!(written("CSV").header(&fields), None);
        let header = written("CSV HEADER FORCE QUOTE *").header(&fields);
        assert_eq!(header.as_deref(), Some(&b"a,\"b,c\"\n"[..]));
    }

    #[test]
    fn a_row_that_is_cut_short_is_refused() {
        let whole = row(&[Some("a")]);
        assert!(written("").row(&whole[..whole.len() - 1]).is_err());
    }
}
