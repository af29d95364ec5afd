//! Templates: a statement without its literals, so that statements that differ only in literals share one shape.
//!
//! `SELECT b FROM t WHERE k = 'A-17' AND n < 5` has the template `SELECT b FROM t WHERE k = $h1 AND n < $h2` and two literals. `$h` is no
//! PostgreSQL, so no client's text can look like a template of ours. Comments go and white space is made even; nothing else changes.
//! A literal stays where it is more than a value: a position in ORDER BY or GROUP BY, the length of a type, a string behind a type's name.

mod lift;
mod token;
mod word;

use std::{fmt::Write as _, ops::Range};

pub(crate) use token::{Lexer, Token, TokenKind};

use self::{lift::Context, word::Word};
use crate::{
    RefusalClass, Refused,
    limit::{CHAIN_MAX, NESTING_MAX, STATEMENT_BYTES_MAX},
};

/// A literal that a template left out. It points into the client's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Literal {
    /// Its first byte.
    pub start: u32,
    /// The byte behind its last one.
    pub end: u32,
    /// What it is.
    pub kind: LiteralKind,
}

/// What a literal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiteralKind {
    /// Digits, perhaps with a fraction or an exponent; never with a sign.
    Number,
    /// A string in single quotes, in which a doubled quote stands for one.
    Text,
}

impl Literal {
    /// Its bytes in the client's text, quotes included.
    #[must_use]
    pub fn raw<'t>(&self, sql: &'t str) -> &'t str {
        sql.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// A statement without its literals. Kept by its owner and filled again and again, so that nothing is allocated a second time.
#[derive(Debug, Clone, Default)]
pub struct Template {
    text: String,
    literals: Vec<Literal>,
}

impl Template {
    /// The template of `sql`, which is one statement (see [`statements`]).
    /// # Errors
    /// Class `NotUnderstood` or `TooLarge`.
    pub fn of(sql: &str) -> Result<Self, Refused> {
        let mut template = Self::default();
        template.fill(sql)?;
        Ok(template)
    }

    /// Makes this the template of `sql`. What it was before is gone, also after an error.
    /// # Errors
    /// As [`Template::of`].
    pub fn fill(&mut self, sql: &str) -> Result<(), Refused> {
        self.text.clear();
        self.literals.clear();
        bounded(sql)?;
        let mut lexer = Lexer::new(sql);
        let mut context = Context::default();
        let mut depth = Depth::default();
        while let Some(token) = lexer.next().map_err(broken)? {
            let piece = &sql[token.place.clone()];
            if piece == ";" {
                ensure_nothing_follows(&mut lexer)?;
                break;
            }
            let is_word = token.kind == TokenKind::Word;
            let word = if is_word { Word::of(piece) } else { Word::NOTHING };
            depth.count(&token, piece, word)?;
            if token.spaced && !self.text.is_empty() {
                self.text.push(' ');
            }
            match context.next(&token, piece, word)? {
                None => self.text.push_str(piece),
                Some(kind) => self.lift(&token.place, kind),
            }
        }
        Ok(())
    }

    fn lift(&mut self, place: &Range<usize>, kind: LiteralKind) {
        // Bounded by the statement's limit, so both fit.
        let at = |byte: usize| u32::try_from(byte).expect("a statement is shorter than 4 GiB");
        self.literals.push(Literal { start: at(place.start), end: at(place.end), kind });
        self.text.push_str("$h");
        match u8::try_from(self.literals.len()) {
            // Most statements have few, and a formatter costs as much as a word.
            Ok(count @ ..=9) => self.text.push(char::from(b'0' + count)),
            _ => write!(self.text, "{}", self.literals.len()).expect("a String takes all"),
        }
        // `1and` is refused by the lexer, so a literal is never followed by a word without a space.
    }

    /// The text without literals: the key under which a shape is kept.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What was left out, in order.
    #[must_use]
    pub fn literals(&self) -> &[Literal] {
        &self.literals
    }
}

/// The statements of a simple query, divided at semicolons, without those that are empty. Each is a range of `sql`.
/// # Errors
/// Class `NotUnderstood` or `TooLarge`.
pub fn statements(sql: &str) -> Result<Vec<Range<usize>>, Refused> {
    bounded(sql)?;
    let mut lexer = Lexer::new(sql);
    let mut found = Vec::new();
    let mut current: Option<Range<usize>> = None;
    let mut depth = 0_usize;
    let mut words = 0_usize;
    while let Some(token) = lexer.next().map_err(broken)? {
        match &sql[token.place.clone()] {
            // BEGIN ATOMIC ... END holds semicolons; it is known by its second word, and refused rather than cut in pieces.
            piece if piece.eq_ignore_ascii_case("atomic") && words > 0 => {
                return Err(not_understood("a body written as BEGIN ATOMIC ... END"));
            }
            ";" if depth == 0 => {
                found.extend(current.take());
                words = 0;
                continue;
            }
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        words += 1;
        let range = current.get_or_insert(token.place.clone());
        range.end = token.place.end;
    }
    found.extend(current);
    Ok(found)
}

fn bounded(sql: &str) -> Result<(), Refused> {
    if sql.len() <= STATEMENT_BYTES_MAX {
        return Ok(());
    }
    let cause = format!("a statement of {} bytes, more than {STATEMENT_BYTES_MAX}", sql.len());
    Err(Refused::new(RefusalClass::TooLarge, cause, "Divide it, or use COPY"))
}

pub(crate) fn broken(broken: token::BrokenText) -> Refused {
    not_understood(broken.0)
}

fn not_understood(what: &str) -> Refused {
    let remedy = "Write it another way, or send it to the source itself";
    Refused::new(RefusalClass::NotUnderstood, what, remedy)
}

fn ensure_nothing_follows(lexer: &mut Lexer<'_>) -> Result<(), Refused> {
    match lexer.next().map_err(broken)? {
        None => Ok(()),
        Some(_) => Err(not_understood("more than one statement where one may stand")),
    }
}

/// Bounds what a parser would have to recurse into: nested parentheses, and chains of operators.
#[derive(Debug, Default)]
struct Depth {
    /// Operators seen since the last comma, outside of parentheses.
    outermost: usize,
    /// The same, one count for each open parenthesis.
    chains: Vec<usize>,
}

impl Depth {
    fn count(&mut self, token: &Token, piece: &str, word: Word) -> Result<(), Refused> {
        match (token.kind, piece) {
            (TokenKind::Sign, "(" | "[") => self.chains.push(0),
            (TokenKind::Sign, ")" | "]") => {
                self.chains.pop();
            }
            (TokenKind::Sign, ",") => *self.chain() = 0,
            (TokenKind::Operator, _) | (TokenKind::Sign, "::") => *self.chain() += 1,
            (TokenKind::Word, _) if word.is(Word::CHAINS) => *self.chain() += 1,
            _ => {}
        }
        let (nested, chain) = (self.chains.len(), *self.chain());
        if nested >= NESTING_MAX || chain > CHAIN_MAX {
            let cause = format!(
                "a statement nested {nested} deep with {chain} operators in a row; {NESTING_MAX} and {CHAIN_MAX} are the most"
            );
            let remedy = "Write = ANY (array) instead of a chain of OR";
            return Err(Refused::new(RefusalClass::TooLarge, cause, remedy));
        }
        Ok(())
    }

    fn chain(&mut self) -> &mut usize {
        self.chains.last_mut().unwrap_or(&mut self.outermost)
    }
}
