//! Words and signs of SQL, as far as the router must know them before the mind reads a text.

/// One word or sign of SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'s> {
    /// An identifier or keyword without quotes, as written.
    Word(&'s str),
    /// A quoted identifier without its quotes (doubled ones stay doubled).
    Quoted(&'s str),
    /// A string, number or parameter.
    Value(&'s str),
    /// Any other sign.
    Sign(u8),
}

impl<'s> Token<'s> {
    /// Whether it is that word, in any case.
    pub(crate) fn is(self, word: &str) -> bool {
        matches!(self, Token::Word(text) if text.eq_ignore_ascii_case(word))
    }

    /// As a name, in lower case where it is not quoted.
    pub(crate) fn name(self) -> Option<String> {
        match self {
            Token::Word(text) => Some(text.to_ascii_lowercase()),
            Token::Quoted(text) => Some(text.replace("\"\"", "\"")),
            Token::Value(_) | Token::Sign(_) => None,
        }
    }
}

/// Walks through SQL without understanding it: strings, dollar quotes and comments are skipped as PostgreSQL skips them.
#[derive(Clone, Debug)]
pub(crate) struct Tokens<'s> {
    text: &'s str,
    /// Where the next token is looked for.
    pub(crate) at: usize,
}

impl<'s> Tokens<'s> {
    pub(crate) fn new(text: &'s str) -> Self {
        Self { text, at: 0 }
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blanks(&mut self) {
        loop {
            match self.byte(0) {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'-' if self.byte(1) == b'-' => {
                    let rest = &self.text.as_bytes()[self.at..];
                    self.at += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                }
                b'/' if self.byte(1) == b'*' => self.skip_comment(),
                _ => return,
            }
        }
    }

    fn skip_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.text.len() {
            match (self.byte(0), self.byte(1)) {
                (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                break;
            }
        }
        self.at = self.at.min(self.text.len());
    }

    /// Skips to behind the closing `quote`; the opening one is behind us. Doubled quotes and, with `escapes`, backslashes are inside.
    fn skip_quoted(&mut self, quote: u8, escapes: bool) -> &'s str {
        let from = self.at;
        while self.at < self.text.len() {
            match self.byte(0) {
                b'\\' if escapes => self.at += 2,
                byte if byte == quote && self.byte(1) == quote => self.at += 2,
                byte if byte == quote => {
                    self.at += 1;
                    return &self.text[from..self.at - 1];
                }
                _ => self.at += 1,
            }
        }
        self.at = self.text.len();
        self.text.get(from..).unwrap_or_default()
    }

    /// Skips a dollar-quoted string, if one opens here.
    fn skip_dollars(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let Some(end) = rest[1..].find('$').map(|end| end + 2) else { return false };
        let tag = &rest[..end];
        let inner = &tag[1..end - 1];
        let is_tag = inner.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric() || b >= 0x80)
            && !inner.starts_with(|c: char| c.is_ascii_digit());
        if is_tag {
            self.at += rest[end..].find(tag).map_or(rest.len(), |found| end + found + end);
        }
        is_tag
    }
}

impl<'s> Iterator for Tokens<'s> {
    type Item = Token<'s>;

    fn next(&mut self) -> Option<Token<'s>> {
        self.skip_blanks();
        let from = self.at;
        let first = *self.text.as_bytes().get(from)?;
        match first {
            b'\'' => {
                self.at += 1;
                Some(Token::Value(self.skip_quoted(b'\'', false)))
            }
            b'"' => {
                self.at += 1;
                Some(Token::Quoted(self.skip_quoted(b'"', false)))
            }
            b'e' | b'E' if self.byte(1) == b'\'' => {
                self.at += 2;
                Some(Token::Value(self.skip_quoted(b'\'', true)))
            }
            b'$' if self.skip_dollars() => Some(Token::Value(&self.text[from..self.at])),
            b'$' | b'0'..=b'9' => {
                self.at += 1;
                while matches!(self.byte(0), b'0'..=b'9' | b'.' | b'_' | b'a'..=b'z' | b'A'..=b'Z')
                {
                    self.at += 1;
                }
                Some(Token::Value(&self.text[from..self.at]))
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => {
                while matches!(self.byte(0), b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'$' | 0x80..)
                {
                    self.at += 1;
                }
                Some(Token::Word(&self.text[from..self.at]))
            }
            sign => {
                self.at += 1;
                Some(Token::Sign(sign))
            }
        }
    }
}
