//! Which literals a template leaves out: those that are values and nothing else.

use super::{LiteralKind, Token, TokenKind, word::Word};
use crate::{RefusalClass, Refused};

/// What stands before the current token.
#[derive(Debug, Default)]
pub(super) struct Context {
    /// Whether the statement is of a kind whose literals are lifted at all; known from its first word.
    lifts: Option<bool>,
    previous: Previous,
    /// One for each open parenthesis.
    open: Vec<Opened>,
    outermost: Opened,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Previous {
    #[default]
    Nothing,
    /// An operator, `(`, `[`, `,` or `::`.
    Sign,
    Comma,
    Opening,
    Closing,
    /// A word after which a string can only be a value.
    BeforeValue,
    By,
    Distinct,
    /// `ON` behind `DISTINCT`.
    DistinctOn,
    TypeName,
    Word,
    Text,
    Value,
}

/// What is open since the last parenthesis.
#[derive(Debug, Clone, Copy, Default)]
struct Opened {
    /// A list behind ORDER BY, GROUP BY or DISTINCT ON, where a number is a position.
    positions: bool,
    /// The length of a type.
    of_type: bool,
}

impl Context {
    /// What `token` is lifted as, if it is.
    /// # Errors
    /// Two strings in a row: one string to PostgreSQL if a new line divides them, an error otherwise; never understood here.
    pub(super) fn next(
        &mut self,
        token: &Token,
        piece: &str,
        word: Word,
    ) -> Result<Option<LiteralKind>, Refused> {
        if self.lifts.is_none() && piece != "(" {
            self.lifts = Some(word.is(Word::LIFTS));
        }
        let is_text = matches!(token.kind, TokenKind::Text | TokenKind::OtherText);
        if is_text && self.previous == Previous::Text {
            return Err(Refused::new(
                RefusalClass::NotUnderstood,
                "a string in two pieces",
                "Write it in one",
            ));
        }
        let lifted = self.lifted(token);
        self.previous = self.advance(token, piece, word);
        Ok(lifted)
    }

    fn lifted(&self, token: &Token) -> Option<LiteralKind> {
        if self.lifts != Some(true) {
            return None;
        }
        let opened = self.opened();
        match token.kind {
            TokenKind::Number => {
                let first_of_item = matches!(
                    self.previous,
                    Previous::By | Previous::Comma | Previous::Opening | Previous::DistinctOn
                );
                let position = opened.positions && first_of_item;
                (!position && !opened.of_type).then_some(LiteralKind::Number)
            }
            TokenKind::Text => {
                let value = matches!(
                    self.previous,
                    Previous::Sign | Previous::Comma | Previous::Opening | Previous::BeforeValue
                );
                (value && !opened.of_type).then_some(LiteralKind::Text)
            }
            TokenKind::Word
            | TokenKind::QuotedName
            | TokenKind::OtherText
            | TokenKind::Parameter
            | TokenKind::Operator
            | TokenKind::Sign => None,
        }
    }

    fn opened(&self) -> Opened {
        self.open.last().copied().unwrap_or(self.outermost)
    }

    fn opened_mut(&mut self) -> &mut Opened {
        self.open.last_mut().unwrap_or(&mut self.outermost)
    }

    fn advance(&mut self, token: &Token, piece: &str, word: Word) -> Previous {
        match token.kind {
            TokenKind::Operator => Previous::Sign,
            TokenKind::Text | TokenKind::OtherText => Previous::Text,
            TokenKind::Number | TokenKind::Parameter | TokenKind::QuotedName => Previous::Value,
            TokenKind::Word => self.word(word),
            TokenKind::Sign => match piece {
                "(" | "[" => {
                    let positions = self.previous == Previous::DistinctOn;
                    let of_type = self.previous == Previous::TypeName;
                    self.open.push(Opened { positions, of_type });
                    Previous::Opening
                }
                ")" | "]" => {
                    self.open.pop();
                    Previous::Closing
                }
                "," => Previous::Comma,
                _ => Previous::Sign,
            },
        }
    }

    fn word(&mut self, word: Word) -> Previous {
        if word.is(Word::BY) {
            self.opened_mut().positions = true;
            return Previous::By;
        }
        if word.is(Word::ENDS_POSITIONS) {
            self.opened_mut().positions = false;
        }
        if word.is(Word::ON) && self.previous == Previous::Distinct {
            return Previous::DistinctOn;
        }
        if word.is(Word::DISTINCT) {
            return Previous::Distinct;
        }
        if word.is(Word::TYPE) {
            return Previous::TypeName;
        }
        if word.is(Word::BEFORE_VALUE) { Previous::BeforeValue } else { Previous::Word }
    }
}
