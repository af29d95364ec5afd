//! The text of a COPY: its table, its columns, and its options, in today's form and in the one before PostgreSQL 9.0 that psql's users still write.

use std::collections::BTreeSet;

use super::{Form, Quoted};
use crate::{
    RefusalClass, Refused,
    template::{Lexer, TokenKind},
};

/// What the text of a COPY says.
#[derive(Debug)]
pub(crate) struct Text {
    /// The table as it is written; empty for a query.
    pub(crate) table: String,
    /// The query, if it is one.
    pub(crate) query: Option<String>,
    pub(crate) named: Option<Vec<String>>,
    /// A condition on the rows.
    pub(crate) filters: bool,
    pub(crate) form: Form,
    /// What PostgreSQL would not take of a COPY to the client, where no server is sent its text.
    pub(crate) contradicts: Option<&'static str>,
}

fn refused(what: &str) -> Refused {
    let cause = format!("COPY of rows on several sources with {what}");
    let remedy = "Copy as text or csv, from STDIN or to STDOUT, with DELIMITER, NULL, HEADER, QUOTE and ESCAPE of one byte each";
    Refused::new(RefusalClass::Unsupported, cause, remedy)
}

/// One piece of the text.
struct Piece<'t> {
    kind: TokenKind,
    text: &'t str,
    start: usize,
}

struct Pieces<'t> {
    pieces: Vec<Piece<'t>>,
    at: usize,
}

impl<'t> Pieces<'t> {
    fn of(sql: &'t str) -> Result<Self, Refused> {
        let mut lexer = Lexer::new(sql);
        let mut pieces = Vec::new();
        while let Some(token) = lexer.next().map_err(|_| refused("a text that has no end"))? {
            let text = &sql[token.place.clone()];
            if text == ";" {
                break;
            }
            pieces.push(Piece { kind: token.kind, text, start: token.place.start });
        }
        Ok(Self { pieces, at: 0 })
    }

    fn peek(&self) -> Option<&Piece<'t>> {
        self.pieces.get(self.at)
    }

    /// Whether the next piece is this word or sign.
    fn is(&self, word: &str) -> bool {
        self.peek().is_some_and(|piece| {
            matches!(piece.kind, TokenKind::Word | TokenKind::Sign)
                && piece.text.eq_ignore_ascii_case(word)
        })
    }

    /// Takes the next piece if it is this word or sign.
    fn take(&mut self, word: &str) -> bool {
        let is = self.is(word);
        self.at += usize::from(is);
        is
    }

    fn name(&mut self) -> Result<String, Refused> {
        let name = self.peek().and_then(|piece| match piece.kind {
            TokenKind::Word => Some(piece.text.to_ascii_lowercase()),
            TokenKind::QuotedName => {
                let inner = piece.text.strip_prefix('"')?.strip_suffix('"')?;
                Some(inner.replace("\"\"", "\""))
            }
            TokenKind::Number
            | TokenKind::Text
            | TokenKind::OtherText
            | TokenKind::Parameter
            | TokenKind::Operator
            | TokenKind::Sign => None,
        });
        self.at += 1;
        name.ok_or_else(|| refused("a name that is none"))
    }

    /// Up to behind the parenthesis that closes the one here; where that one stands.
    fn skip_parentheses(&mut self) -> Result<usize, Refused> {
        let mut depth = 0_usize;
        while let Some(piece) = self.peek() {
            match piece.text {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                _ => {}
            }
            let start = piece.start;
            self.at += 1;
            if depth == 0 {
                return Ok(start);
            }
        }
        Err(refused("a parenthesis that is not closed"))
    }

    /// A list of names in parentheses.
    fn names(&mut self) -> Result<Vec<String>, Refused> {
        let mut names = Vec::new();
        if !self.take("(") {
            return Err(refused("a list without parentheses"));
        }
        loop {
            names.push(self.name()?);
            if self.take(")") {
                return Ok(names);
            }
            if !self.take(",") {
                return Err(refused("a list of what is no name"));
            }
        }
    }

    /// A string.
    fn string(&mut self) -> Result<String, Refused> {
        let string = self.peek().and_then(|piece| match piece.kind {
            TokenKind::Text => {
                let inner = piece.text.strip_prefix('\'')?.strip_suffix('\'')?;
                Some(inner.replace("''", "'"))
            }
            TokenKind::OtherText => escaped(piece.text),
            TokenKind::Word
            | TokenKind::QuotedName
            | TokenKind::Number
            | TokenKind::Parameter
            | TokenKind::Operator
            | TokenKind::Sign => None,
        });
        self.at += 1;
        string.ok_or_else(|| refused("a string in a form that is not read"))
    }

    /// A word in lower case, a number, or a string as it is; `None` if none stands here.
    fn value(&mut self) -> Result<Option<String>, Refused> {
        match self.peek().map(|piece| (piece.kind, piece.text)) {
            Some((TokenKind::Word, text)) if !text.eq_ignore_ascii_case("e") => {
                self.at += 1;
                Ok(Some(text.to_ascii_lowercase()))
            }
            Some((TokenKind::Number, text)) => {
                self.at += 1;
                Ok(Some(text.to_owned()))
            }
            Some((TokenKind::Text | TokenKind::OtherText, _)) => self.string().map(Some),
            _ => Ok(None),
        }
    }
}

/// The value of `E'..'`, of the escapes that stand for one byte.
fn escaped(text: &str) -> Option<String> {
    let inner = text.strip_prefix(['e', 'E'])?.strip_prefix('\'')?.strip_suffix('\'')?;
    let mut value = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(next) = rest.next() {
        match next {
            '\'' => {
                rest.next();
                value.push('\'');
            }
            '\\' => value.push(match rest.next()? {
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                // In other bases, and of more than one byte.
                'u' | 'U' | 'x' | '0'..='7' => return None,
                other => other,
            }),
            other => value.push(other),
        }
    }
    Some(value)
}

/// What options said so far.
#[derive(Default)]
struct Said {
    csv: bool,
    header: bool,
    forces_null: bool,
    quoted: Quoted,
    /// The options so far, and whether one was said twice.
    names: BTreeSet<String>,
    twice: bool,
    delimiter: Option<String>,
    quote: Option<String>,
    escape: Option<String>,
    null: Option<String>,
    default: Option<String>,
}

impl Said {
    fn form(self) -> Result<Form, Refused> {
        let byte = |said: Option<String>, otherwise: u8, what: &str| match said.as_deref() {
            None => Ok(otherwise),
            Some(text) => match text.as_bytes() {
                [byte] => Ok(*byte),
                _ => Err(refused(&format!("a {what} that is not one byte"))),
            },
        };
        let delimiter = byte(self.delimiter, if self.csv { b',' } else { b'\t' }, "DELIMITER")?;
        let quote = byte(self.quote, b'"', "QUOTE")?;
        let escape = byte(self.escape, quote, "ESCAPE")?;
        // A mark that ends the stream begins with it.
        if delimiter == b'\\' || quote == b'\\' {
            return Err(refused("a backslash as DELIMITER or QUOTE"));
        }
        let null = self.null.unwrap_or_else(|| if self.csv { "" } else { "\\N" }.to_owned());
        Ok(Form {
            csv: self.csv,
            delimiter,
            quote,
            escape,
            null: null.into_bytes(),
            default: self.default.map(String::into_bytes),
            header: self.header,
            forces_null: self.forces_null,
            quoted: self.quoted,
        })
    }

    /// What PostgreSQL would not take of these for a COPY to the client.
    fn contradicts(&self) -> Option<&'static str> {
        let breaks = |text: &str| text.contains(['\r', '\n']);
        let delimiter = self.delimiter.as_deref().unwrap_or(if self.csv { "," } else { "\t" });
        let quote = self.quote.as_deref().unwrap_or("\"");
        let null = self.null.as_deref().unwrap_or(if self.csv { "" } else { "\\N" });
        let of_csv = self.quote.is_some() || self.escape.is_some() || self.quoted != Quoted::None;
        let means_more = |c: char| c == '.' || c.is_ascii_lowercase() || c.is_ascii_digit();
        if self.twice {
            Some("an option that is said twice")
        } else if self.default.is_some() || self.forces_null {
            Some("DEFAULT, FORCE_NULL or FORCE_NOT_NULL for what is not read")
        } else if of_csv && !self.csv {
            Some("QUOTE, ESCAPE or FORCE_QUOTE for what is no csv")
        } else if breaks(delimiter) || breaks(null) || (self.csv && breaks(quote)) {
            Some("a mark that ends a line")
        } else if self.csv && delimiter == quote {
            Some("one mark as DELIMITER and as QUOTE")
        } else if null.contains(delimiter) || (self.csv && null.contains(quote)) {
            Some("a NULL that holds another mark")
        } else if !self.csv && delimiter.contains(means_more) {
            Some("a DELIMITER that means something else in text")
        } else {
            None
        }
    }

    fn encoding(name: &str) -> Result<(), Refused> {
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        match plain.eq_ignore_ascii_case("utf8") || plain.eq_ignore_ascii_case("unicode") {
            true => Ok(()),
            false => Err(refused("an ENCODING other than UTF8")),
        }
    }

    fn flag(value: Option<&str>) -> Option<bool> {
        match value.map(str::to_ascii_lowercase).as_deref() {
            None | Some("true" | "on" | "1") => Some(true),
            Some("false" | "off" | "0") => Some(false),
            Some(_) => None,
        }
    }

    /// `name [value]` within parentheses.
    fn option(&mut self, pieces: &mut Pieces<'_>, into: bool) -> Result<(), Refused> {
        let name = pieces.name()?;
        self.twice |= !self.names.insert(name.clone());
        match name.as_str() {
            "force_quote" | "force_not_null" | "force_null" => {
                let star = pieces.peek().is_some_and(|piece| piece.text == "*");
                self.forces(name == "force_quote", star);
                if star {
                    pieces.at += 1;
                    return Ok(());
                }
                return pieces.names().map(drop);
            }
            _ => {}
        }
        let value = pieces.value()?;
        let text = || value.clone().ok_or_else(|| refused("an option without its value"));
        match name.as_str() {
            "format" => match text()?.as_str() {
                "text" => self.csv = false,
                "csv" => self.csv = true,
                _ => return Err(refused("a FORMAT other than text and csv")),
            },
            "header" => {
                let matched = value.as_deref().is_some_and(|v| v.eq_ignore_ascii_case("match"));
                self.header = match Self::flag(value.as_deref()) {
                    Some(flag) => flag,
                    None if matched && into => true,
                    None => return Err(refused("this value of HEADER")),
                };
            }
            "delimiter" => self.delimiter = Some(text()?),
            "quote" => self.quote = Some(text()?),
            "escape" => self.escape = Some(text()?),
            "null" => self.null = Some(text()?),
            "default" => self.default = Some(text()?),
            "encoding" => Self::encoding(&text()?)?,
            "freeze" if Self::flag(value.as_deref()) == Some(false) => {}
            _ => return Err(refused(&format!("the option {}", name.to_uppercase()))),
        }
        Ok(())
    }

    fn forces(&mut self, quotes: bool, all: bool) {
        self.forces_null |= !quotes;
        if quotes {
            self.quoted = if all { Quoted::All } else { Quoted::Some };
        }
    }

    /// The options without parentheses.
    fn old_option(&mut self, pieces: &mut Pieces<'_>) -> Result<(), Refused> {
        let name = pieces.name()?;
        // FORCE stands before what is forced.
        self.twice |= !self.names.insert(name.clone()) && name != "force";
        if name == "csv" || name == "header" {
            self.csv |= name == "csv";
            self.header |= name == "header";
            return Ok(());
        }
        if name == "force" {
            let quotes = pieces.take("quote");
            if !quotes {
                pieces.take("not");
                if !pieces.take("null") {
                    return Err(refused("this FORCE"));
                }
            }
            let star = pieces.peek().is_some_and(|piece| piece.text == "*");
            self.forces(quotes, star);
            if star {
                pieces.at += 1;
                return Ok(());
            }
            pieces.name()?;
            while pieces.take(",") {
                pieces.name()?;
            }
            return Ok(());
        }
        if !matches!(name.as_str(), "delimiter" | "quote" | "escape" | "null" | "encoding") {
            return Err(refused(&format!("the option {}", name.to_uppercase())));
        }
        pieces.take("as");
        let value = pieces.string()?;
        match name.as_str() {
            "delimiter" => self.delimiter = Some(value),
            "quote" => self.quote = Some(value),
            "escape" => self.escape = Some(value),
            "null" => self.null = Some(value),
            _ => Self::encoding(&value)?,
        }
        Ok(())
    }
}

impl Text {
    /// Reads `sql`, which is one COPY; `into`: from the client into a table.
    /// # Errors
    /// It says more than is understood.
    pub(crate) fn read(sql: &str, into: bool) -> Result<Self, Refused> {
        let mut pieces = Pieces::of(sql)?;
        pieces.take("copy");
        if pieces.is("binary") {
            return Err(refused("a FORMAT other than text and csv"));
        }
        let (mut named, mut query) = (None, None);
        let mut table = String::new();
        if pieces.is("(") {
            let from = pieces.peek().map_or(0, |piece| piece.start + 1);
            let to = pieces.skip_parentheses()?;
            query = Some(sql[from..to].to_owned());
        } else {
            let is_end =
                |pieces: &Pieces<'_>| ["(", "from", "to"].iter().any(|word| pieces.is(word));
            while pieces.peek().is_some() && !is_end(&pieces) {
                table.extend(pieces.peek().map(|piece| piece.text));
                pieces.at += 1;
            }
            if pieces.is("(") {
                named = Some(pieces.names()?);
            }
        }
        if !(pieces.take("from") || pieces.take("to")) {
            return Err(refused("neither FROM nor TO"));
        }
        if !(pieces.take("stdin") || pieces.take("stdout")) {
            return Err(refused("a file or a program of a server"));
        }
        pieces.take("with");
        let mut said = Said::default();
        if pieces.take("(") {
            loop {
                said.option(&mut pieces, into)?;
                if pieces.take(")") {
                    break;
                }
                if !pieces.take(",") {
                    return Err(refused("options that are not divided by commas"));
                }
            }
        } else {
            while pieces.peek().is_some() && !pieces.is("where") {
                said.old_option(&mut pieces)?;
            }
        }
        let filters = pieces.is("where");
        if !filters && pieces.peek().is_some() {
            return Err(refused("words behind its options"));
        }
        let contradicts = said.contradicts();
        Ok(Self { table, query, named, filters, form: said.form()?, contradicts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(options: &str) -> Form {
        let sql = format!("COPY t FROM STDIN {options}");
        Text::read(&sql, true).unwrap_or_else(|refused| panic!("{options}: {refused}")).form
    }

    #[test]
    fn both_forms_of_options_say_the_same() {
        let text = form("");
        assert!(!text.csv && text.delimiter == b'\t' && text.null == b"\\N" && !text.header);
        let csv = form("CSV HEADER");
        assert!(csv.csv && csv.delimiter == b',' && csv.null.is_empty() && csv.header);
        assert_eq!(csv, form("(FORMAT csv, HEADER)"));
        assert_eq!(csv, form("WITH (format 'csv', header on);"));
        assert_eq!(csv, form("with csv header force not null a, b").with_forced(false));
        assert_eq!(csv, form("(header match, format csv, force_null (a))").with_forced(false));
        let marked = form("DELIMITER AS '|' NULL 'x''y' CSV QUOTE '$' ESCAPE E'\\\\'");
        assert_eq!((marked.delimiter, marked.quote, marked.escape), (b'|', b'$', b'\\'));
        assert_eq!(marked.null, b"x'y");
        assert_eq!(form("DELIMITER E'\\t'"), text);
        assert_eq!(form("(ENCODING 'utf-8', DEFAULT 'd')").default, Some(b"d".to_vec()));
    }

    impl Form {
        fn with_forced(mut self, forces_null: bool) -> Self {
            self.forces_null = forces_null;
            self
        }
    }

    #[test]
    fn table_columns_and_conditions_are_told() {
        let read = |sql| Text::read(sql, true).expect("it is understood");
        let text = read("copy \"s\".\"T x\" (a, \"B\"\"c\") from stdin csv where a > 1");
        assert_eq!(text.table, "\"s\".\"T x\"");
        assert_eq!(text.named, Some(vec!["a".to_owned(), "B\"c".to_owned()]));
        assert!(text.filters && text.form.csv);
        let text = Text::read("COPY (SELECT (1), ')') TO STDOUT (HEADER)", false).expect("a query");
        assert!(text.table.is_empty() && text.form.header && !text.filters);
        assert_eq!(text.query.as_deref(), Some("SELECT (1), ')'"));
    }

    #[test]
    fn what_postgresql_would_not_write_is_known() {
        let read = |options: &str| {
            let sql = format!("COPY (SELECT 1) TO STDOUT {options}");
            Text::read(&sql, false).unwrap_or_else(|refused| panic!("{options}: {refused}"))
        };
        for options in [
            "",
            "CSV HEADER FORCE QUOTE *",
            "(FORMAT csv, DELIMITER 'a', QUOTE '''', ESCAPE E'\\\\', FORCE_QUOTE (a, b))",
            "(FORMAT text, DELIMITER '|', NULL 'x', FREEZE false)",
            "DELIMITER 'A'",
        ] {
            assert_eq!(read(options).contradicts, None, "{options}");
        }
        for options in [
            "(FORMAT csv, FORMAT text)",
            "CSV CSV",
            "(DEFAULT 'd')",
            "CSV FORCE NULL a",
            "(FORCE_NOT_NULL (a))",
            "QUOTE ''''",
            "(ESCAPE 'x')",
            "(FORCE_QUOTE *)",
            "(DELIMITER E'\\n')",
            "(NULL E'\\r')",
            "(FORMAT csv, QUOTE E'\\n')",
            "CSV DELIMITER '|' QUOTE '|'",
            "CSV DELIMITER '\"'",
            "NULL E'\\t'",
            "CSV NULL 'a,b'",
            "CSV NULL '\"'",
            "DELIMITER 'a'",
            "DELIMITER '7'",
            "DELIMITER '.'",
            "DELIMITER 'N'",
        ] {
            assert!(read(options).contradicts.is_some(), "{options}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for sql in [
            "COPY t FROM '/tmp/x'",
            "COPY t FROM PROGRAM 'ls'",
            "COPY BINARY t FROM STDIN",
            "COPY t FROM STDIN BINARY",
            "COPY t FROM STDIN (FORMAT binary)",
            "COPY t FROM STDIN (FREEZE)",
            "COPY t FROM STDIN (ON_ERROR ignore)",
            "COPY t FROM STDIN (DELIMITER 'ab')",
            "COPY t FROM STDIN (DELIMITER U&'x')",
            "COPY t FROM STDIN (ENCODING 'latin1')",
            "COPY t FROM STDIN (HEADER 2)",
            "COPY t FROM STDIN (FORMAT csv) x",
            "COPY t FROM STDIN (FORMAT csv",
            "COPY t FROM STDIN USING DELIMITERS ','",
            "COPY t (a b) FROM STDIN",
            "COPY t (1) FROM STDIN",
            "COPY t",
            "COPY (SELECT 1 TO STDOUT",
            "COPY t FROM STDIN (DELIMITER E'\\x41')",
        ] {
            let refused = Text::read(sql, true).expect_err(sql);
            assert_eq!(refused.class, RefusalClass::Unsupported, "{sql}");
        }
    }
}
