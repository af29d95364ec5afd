//! PostgreSQL's words, numbers, strings and signs, as its own scanner divides them. Nothing is allocated.

use std::ops::Range;

/// What a piece of a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// An unquoted word.
    Word,
    /// `"a name"`.
    QuotedName,
    /// Digits, with a fraction or an exponent.
    Number,
    /// `'text'` without escapes.
    Text,
    /// `E'..'`, `B'..'`, `X'..'`, `N'..'`, `U&'..'`, `$tag$..$tag$`: left as they are.
    OtherText,
    /// `$1`.
    Parameter,
    /// One or more operator characters.
    Operator,
    /// `(`, `)`, `[`, `]`, `,`, `;`, `.`, `:`, and what else stands alone.
    Sign,
}

/// One piece of a text.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: TokenKind,
    /// Where it stands, in bytes.
    pub(crate) place: Range<usize>,
    /// Whether white space or a comment stands before it.
    pub(crate) spaced: bool,
}

/// A text that ends within a string, a quoted name or a comment, or holds a number that runs into a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrokenText(pub(crate) &'static str);

/// Divides a text into tokens.
#[derive(Debug, Clone)]
pub(crate) struct Lexer<'t> {
    text: &'t [u8],
    at: usize,
    /// Whether the text is a template, in which `$h1` stands for a literal.
    template: bool,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_operator(byte: u8) -> bool {
    b"+-*/<>=~!@#%^&|`?".contains(&byte)
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { text: text.as_bytes(), at: 0, template: false }
    }

    /// Of a text in which `$h1` is a parameter as well.
    pub(crate) fn of_template(text: &'t str) -> Self {
        Self { template: true, ..Self::new(text) }
    }

    /// The next token, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Token>, BrokenText> {
        let before = self.at;
        self.skip_space()?;
        let spaced = self.at > before;
        let start = self.at;
        let Some(&first) = self.text.get(start) else { return Ok(None) };
        let kind = match first {
            b'\'' => self.plain_text().map(|()| TokenKind::Text)?,
            b'"' => {
                self.quoted(b'"', "a quoted name has no end").map(|()| TokenKind::QuotedName)?
            }
            b'$' => self.dollar()?,
            b'0'..=b'9' => self.number()?,
            b'.' if self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) => self.number()?,
            _ if starts_word(first) => self.word()?,
            _ if is_operator(first) => self.operator(),
            b':' if self.peek(1) == Some(b':') => {
                self.at += 2;
                TokenKind::Sign
            }
            _ => {
                self.at += 1;
                TokenKind::Sign
            }
        };
        Ok(Some(Token { kind, place: start..self.at, spaced }))
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    fn skip_space(&mut self) -> Result<(), BrokenText> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c), _) => self.at += 1,
                (Some(b'-'), Some(b'-')) => self.skip_line(),
                (Some(b'/'), Some(b'*')) => self.skip_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn skip_line(&mut self) {
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        self.at += length.unwrap_or(rest.len());
    }

    /// Comments nest in PostgreSQL.
    fn skip_comment(&mut self) -> Result<(), BrokenText> {
        let mut depth = 0_u32;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(BrokenText("a comment has no end")),
            }
        }
    }

    /// From an opening quote to its closing one; a doubled quote stands for itself.
    fn quoted(&mut self, quote: u8, open_end: &'static str) -> Result<(), BrokenText> {
        self.at += 1;
        loop {
            let rest = &self.text[self.at..];
            let length = rest.iter().position(|byte| *byte == quote).ok_or(BrokenText(open_end))?;
            self.at += length + 1;
            if self.peek(0) != Some(quote) {
                return Ok(());
            }
            self.at += 1;
        }
    }

    fn plain_text(&mut self) -> Result<(), BrokenText> {
        self.quoted(b'\'', "a string has no end")
    }

    /// `E'..'`, where a backslash takes the next character with it.
    fn escaped_text(&mut self) -> Result<(), BrokenText> {
        self.at += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'\\'), Some(_)) | (Some(b'\''), Some(b'\'')) => self.at += 2,
                (Some(b'\''), _) => {
                    self.at += 1;
                    return Ok(());
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(BrokenText("a string has no end")),
            }
        }
    }

    fn word(&mut self) -> Result<TokenKind, BrokenText> {
        let prefix = self.text[self.at].to_ascii_lowercase();
        match (prefix, self.peek(1), self.peek(2)) {
            (b'e', Some(b'\''), _) => {
                self.at += 1;
                return self.escaped_text().map(|()| TokenKind::OtherText);
            }
            (b'b' | b'x' | b'n', Some(b'\''), _) => {
                self.at += 1;
                return self.plain_text().map(|()| TokenKind::OtherText);
            }
            (b'u', Some(b'&'), Some(b'\'')) => {
                self.at += 2;
                return self.plain_text().map(|()| TokenKind::OtherText);
            }
            (b'u', Some(b'&'), Some(b'"')) => {
                return Err(BrokenText("a name is written as U&\"..\""));
            }
            _ => {}
        }
        while self.peek(0).is_some_and(continues_word) {
            self.at += 1;
        }
        Ok(TokenKind::Word)
    }

    fn digits(&mut self) {
        while self.peek(0).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<TokenKind, BrokenText> {
        self.digits();
        // `1..2` is two numbers in PL/pgSQL; here it is nothing at all.
        if self.peek(0) == Some(b'.') {
            self.at += 1;
            self.digits();
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.peek(1), Some(b'+' | b'-')));
            if self.peek(1 + sign).is_some_and(|byte| byte.is_ascii_digit()) {
                self.at += 1 + sign;
                self.digits();
            }
        }
        // Servers differ about `123abc`: an error, a name behind a number, or a number in another base.
        if self.peek(0).is_some_and(continues_word) || self.peek(0) == Some(b'.') {
            return Err(BrokenText("a number runs into a word"));
        }
        Ok(TokenKind::Number)
    }

    fn operator(&mut self) -> TokenKind {
        while let Some(byte) = self.peek(0) {
            let comment = matches!((byte, self.peek(1)), (b'-', Some(b'-')) | (b'/', Some(b'*')));
            if !is_operator(byte) || comment {
                break;
            }
            self.at += 1;
        }
        TokenKind::Operator
    }

    /// `$1`, or a string between two equal tags.
    fn dollar(&mut self) -> Result<TokenKind, BrokenText> {
        self.at += 1;
        if self.peek(0).is_some_and(|byte| byte.is_ascii_digit()) {
            self.digits();
            if self.peek(0).is_some_and(continues_word) {
                return Err(BrokenText("a parameter's number runs into a word"));
            }
            return Ok(TokenKind::Parameter);
        }
        let start = self.at;
        while self.peek(0).is_some_and(|byte| continues_word(byte) && byte != b'$') {
            self.at += 1;
        }
        if self.peek(0) != Some(b'$') {
            if self.template && self.text.get(start) == Some(&b'h') {
                return Ok(TokenKind::Parameter);
            }
            return Err(BrokenText("a dollar sign begins neither a parameter nor a string"));
        }
        self.at += 1;
        let tag = &self.text[start - 1..self.at];
        let rest = &self.text[self.at..];
        let end = rest.windows(tag.len()).position(|window| window == tag);
        let end = end.ok_or(BrokenText("a dollar-quoted string has no end"))?;
        self.at += end + tag.len();
        Ok(TokenKind::OtherText)
    }
}
