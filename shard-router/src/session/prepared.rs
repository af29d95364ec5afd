//! Prepared statements: a client's names for them, and the one statement that all clients with the same text share.

use std::{cell::Cell, collections::HashMap, rc::Rc};

use holdfast_route::Literal;

use super::Session;
use crate::{
    frame,
    meaning::{Meaning, Meanings},
    refusal::Refusal,
};

/// Bytes that a remembered statement costs beside its text.
const STATEMENT_COST: usize = 512;

/// A statement as a parse message gives it: text and parameter types.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Its number in this worker.
    pub(crate) id: u64,
    /// The parse message behind the name: text, zero byte, types.
    pub(crate) tail: Box<[u8]>,
    pub(crate) meaning: Rc<Meaning>,
    /// Whether a server has taken it before.
    pub(crate) valid: Cell<bool>,
    /// The literals in the text.
    pub(crate) literals: Box<[Literal]>,
}

impl Statement {
    /// The text.
    pub(crate) fn sql(&self) -> &str {
        let end = memchr::memchr(0, &self.tail).unwrap_or(self.tail.len());
        std::str::from_utf8(&self.tail[..end]).unwrap_or_default()
    }

    /// The type of each parameter as far as the client gave them, 0 for those that it left open.
    pub(crate) fn types(&self) -> impl Iterator<Item = u32> {
        let end = memchr::memchr(0, &self.tail).unwrap_or(self.tail.len());
        let types = self.tail.get(end + 3..).unwrap_or_default();
        types.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// A portal that the router answers itself. Others are the server's own affair.
#[derive(Clone, Debug)]
pub(crate) struct Portal {
    pub(crate) statement: Rc<Statement>,
}

/// The statements of one worker, by text and types: two generations, so that what is used stays and what is not goes, in bounded memory.
#[derive(Debug)]
pub(crate) struct Statements {
    young: HashMap<Rc<[u8]>, Rc<Statement>>,
    old: HashMap<Rc<[u8]>, Rc<Statement>>,
    young_bytes: usize,
    bytes_max: usize,
    last_id: u64,
}

impl Statements {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, bytes_max, last_id: 0 }
    }

    /// From now on, as many bytes; what is there goes with its generation.
    pub(crate) fn bound(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// The statement of this parse message's tail.
    /// # Errors
    /// The text is not UTF-8, or ends early.
    pub(crate) fn intern(
        &mut self,
        tail: &[u8],
        meanings: &mut Meanings,
    ) -> Result<Rc<Statement>, Refusal> {
        if let Some(known) = self.young.get(tail) {
            return Ok(Rc::clone(known));
        }
        if let Some((key, known)) = self.old.remove_entry(tail) {
            self.keep(key, Rc::clone(&known));
            return Ok(known);
        }
        let malformed =
            || Refusal::new("HF3209", "08P01", "a parse message is malformed", "Mend the driver");
        let mut body = frame::Body(tail);
        let sql = body.text().ok_or_else(malformed)?;
        let types =
            body.int16().and_then(|count| body.bytes(usize::from(count.cast_unsigned()) * 4));
        if types.is_none() || !body.0.is_empty() {
            return Err(malformed());
        }
        let sql = std::str::from_utf8(sql).map_err(|_| not_utf8())?;
        self.last_id += 1;
        let (meaning, literals) = meanings.of_prepared(sql);
        let id = self.last_id;
        let statement = Rc::new(Statement {
            id,
            tail: tail.into(),
            meaning,
            literals,
            valid: Cell::new(false),
        });
        self.keep(tail.into(), Rc::clone(&statement));
        Ok(statement)
    }

    fn keep(&mut self, key: Rc<[u8]>, statement: Rc<Statement>) {
        let cost = 2 * key.len() + STATEMENT_COST;
        // A giant is used and not remembered.
        if cost > self.bytes_max / 8 {
            return;
        }
        self.young_bytes += cost;
        self.young.insert(key, statement);
        if self.young_bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// Texts in other encodings could hide a quote inside a letter.
pub(crate) fn not_utf8() -> Refusal {
    Refusal::new("HF3209", "22021", "a statement is not UTF-8", "Set client_encoding to UTF8")
}

impl Session {
    /// The statement that the client calls `name`.
    pub(super) fn statement(&self, name: &[u8]) -> Option<Rc<Statement>> {
        if name.is_empty() { self.unnamed.clone() } else { self.statements.get(name).cloned() }
    }

    /// Drops all of a client's statements, as `DISCARD ALL` and `DEALLOCATE ALL` do.
    pub(super) fn drop_statements(&mut self) {
        self.statements.clear();
        self.unnamed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(sql: &str) -> Vec<u8> {
        let mut tail = sql.as_bytes().to_vec();
        tail.extend([0, 0, 1, 0, 0, 0, 23]);
        tail
    }

    #[test]
    fn the_same_text_is_the_same_statement_and_memory_is_bounded() {
        let mut statements = Statements::new(64 * 1024);
        let mut meanings = Meanings::for_one_source();
        let first = statements.intern(&tail("SELECT $1"), &mut meanings).expect("it is right");
        assert_eq!((first.sql(), first.types().collect::<Vec<_>>()), ("SELECT $1", vec![23]));
        for n in 0..10_000 {
            statements.intern(&tail(&format!("SELECT {n}")), &mut meanings).expect("right");
            // What is used stays.
            let again = statements.intern(&tail("SELECT $1"), &mut meanings).expect("right");
            assert!(Rc::ptr_eq(&again, &first));
        }
        assert!(statements.len() < 64 * 1024 / STATEMENT_COST, "{}", statements.len());
        let giant = tail(&"x".repeat(64 * 1024));
        let before = statements.len();
        statements.intern(&giant, &mut meanings).expect("right");
        assert_eq!(statements.len(), before);
    }

    #[test]
    fn malformed_parse_messages_are_refused() {
        let mut statements = Statements::new(1024);
        let mut meanings = Meanings::for_one_source();
        for wrong in
            [&b""[..], b"SELECT 1", b"SELECT 1\0", b"SELECT 1\0\0\x01", b"S\0\0\0x", b"\xff\0\0\0"]
        {
            assert!(statements.intern(wrong, &mut meanings).is_err(), "{wrong:?}");
        }
    }
}
