//! Statements in other words: a syntax tree as text again, with literals and parameters put in at each execution.

use sqlparser::ast::Statement;

use super::read;
use crate::{
    Refused, Rewritten, Values,
    template::{Lexer, TokenKind},
};

/// A statement in other words, cut where values go in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Literal(usize),
    Parameter(u16),
}

/// `statement` as text, if the text means the same tree.
pub(super) fn render(statement: &Statement) -> Result<Rendered, Refused> {
    let text = statement.to_string();
    let same = read::parse(&text).is_ok_and(|again| again == *statement);
    let rendered = if same { cut(&text) } else { None };
    rendered
        .ok_or_else(|| super::gather::refused("a statement that cannot be written in other words"))
}

/// Cuts a text where values go in. `None` if it cannot be divided into tokens.
pub(super) fn cut(text: &str) -> Option<Rendered> {
    let mut lexer = Lexer::of_template(text);
    let mut pieces = Vec::new();
    let mut copied = 0;
    while let Some(token) = lexer.next().ok()? {
        if token.kind != TokenKind::Parameter {
            continue;
        }
        let name = &text[token.place.clone()];
        let piece = match name.strip_prefix("$h") {
            Some(number) => Piece::Literal(number.parse::<usize>().ok()?.checked_sub(1)?),
            None => Piece::Parameter(name[1..].parse::<u16>().ok()?.checked_sub(1)?),
        };
        pieces.push(Piece::Text(text[copied..token.place.start].to_owned()));
        pieces.push(piece);
        copied = token.place.end;
    }
    pieces.push(Piece::Text(text[copied..].to_owned()));
    Some(Rendered(pieces))
}

impl Rendered {
    /// With the values of one execution, and `behind` at the end.
    pub(crate) fn with(&self, values: &Values<'_>, behind: &str) -> Rewritten {
        let mut sql = String::new();
        let mut parameters: Vec<u16> = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Literal(index) => {
                    let literal = values.literals.get(*index);
                    sql.push_str(literal.map_or("NULL", |literal| literal.raw(values.sql)));
                }
                Piece::Parameter(index) => {
                    let known = parameters.iter().position(|known| known == index);
                    let at = known.unwrap_or_else(|| {
                        parameters.push(*index);
                        parameters.len() - 1
                    });
                    sql.push_str(&format!("${}", at + 1));
                }
            }
        }
        sql.push_str(behind);
        Rewritten { sql, parameters }
    }
}
