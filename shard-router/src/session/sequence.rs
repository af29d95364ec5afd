//! A query of several statements that no single source can take as it came: they are carried out one behind the other, as PostgreSQL does with
//! those of one message. Outside of a transaction they have one of their own, which ends with the query or with a COMMIT among them; behind an
//! error the rest is dropped; the client hears once that it may go on. It hears that a statement is complete when the next one begins, and of the
//! last one behind the COMMIT: what that meets is told in place of it, as PostgreSQL has it.
//!
//! Each statement is put into the inbox as a query by itself, in front of whatever the client says next, so that it is planned, waits and is
//! answered like any other.

use super::{End, IDLE, IN_TRANSACTION, Session, Stopped};
use crate::{
    buffer::Buffer,
    classify::Act,
    frame,
    refusal::Refusal,
    tokens::{Token, Tokens},
    worker::HOME,
};

/// Statements of one query.
const STATEMENTS_MAX: usize = 1_000;
/// How their own transaction begins.
const BEGIN: &str = "BEGIN";

/// Statements of one query that are under way.
pub(super) struct Sequence {
    /// What the client has said behind them.
    behind: Buffer,
    /// The transaction is the query's own.
    own: bool,
    /// One of them has failed, so that the others are not carried out.
    failed: bool,
    /// What says that the statement before is complete, and is not said yet.
    complete: Vec<u8>,
}

/// The statements of `sql`, as many as may stand in one query.
/// # Errors
/// There are more; or the rows of a COPY would have to be told from what follows it.
pub(super) fn statements(sql: &str) -> Result<Vec<Box<str>>, Refusal> {
    let parts = crate::classify::split(sql).into_iter();
    let parts: Vec<&str> =
        parts.filter(|part| Tokens::new(part).next().is_some()).take(STATEMENTS_MAX + 1).collect();
    if parts.len() > STATEMENTS_MAX {
        let cause = format!("more than {STATEMENTS_MAX} statements for several sources in a query");
        return Err(Refusal::new("HF3208", "54000", cause, "Send them in portions"));
    }
    let is = |token: Token<'_>, word: &str| matches!(token, Token::Word(text) if text.eq_ignore_ascii_case(word));
    let copies = |part: &&&str| {
        let mut tokens = Tokens::new(part);
        tokens.next().is_some_and(|first| is(first, "copy"))
            && tokens.any(|token| is(token, "stdin"))
    };
    if parts.iter().find(copies).is_some() {
        let cause = "COPY FROM STDIN stands among statements for several sources in one query";
        return Err(Refusal::new("HF3210", "0A000", cause, "Send it as a query of its own"));
    }
    Ok(parts.into_iter().map(Box::from).collect())
}

/// A `BEGIN` that says nothing of what the transaction is like.
fn is_plain(begin: &str) -> bool {
    Tokens::new(begin).all(|token| match token {
        Token::Word(word) => ["begin", "start", "work", "transaction"]
            .iter()
            .any(|plain| word.eq_ignore_ascii_case(plain)),
        _ => false,
    })
}

impl Session {
    /// Puts statements before whatever the client says next.
    pub(super) fn begin_sequence(&mut self, statements: &[Box<str>]) {
        let mut out = Vec::new();
        for sql in statements {
            frame::put_query(&mut out, sql.as_bytes());
        }
        let behind = std::mem::replace(&mut self.inbox, Buffer::of(out));
        self.sequence =
            Some(Box::new(Sequence { behind, own: false, failed: false, complete: Vec::new() }));
    }

    /// Whether nothing of a sequence is left to be carried out, and all of it is answered. To be asked before each of its statements: what the
    /// router answers itself is over at once, and may be the last.
    pub(super) fn ends_sequence(&self, left: &[u8]) -> bool {
        let over = |sequence: &Sequence| sequence.failed || left.is_empty();
        self.expected.is_empty() && self.sequence.as_deref().is_some_and(over)
    }

    /// One of several statements has failed.
    pub(super) fn fail_sequence(&mut self) {
        if let Some(sequence) = &mut self.sequence {
            sequence.failed = true;
        }
    }

    /// Says that a statement is complete; of one of several this is kept for a while.
    pub(super) fn say_complete(&mut self, tag: &str) {
        match &mut self.sequence {
            Some(sequence) => frame::put_complete(&mut sequence.complete, tag),
            None => self.say(|out| frame::put_complete(out, tag)),
        }
    }

    /// Says an answer of the router's own, whose last message says that the statement is complete.
    pub(super) fn say_answer(&mut self, answer: &[u8]) {
        let Some(sequence) = &mut self.sequence else {
            return self.say(|out| out.extend_from_slice(answer));
        };
        let (mut last, mut rest) = (0, answer);
        while let Ok(Some(header)) = frame::header(rest, answer.len()) {
            last = answer.len() - rest.len();
            rest = &rest[header.total..];
        }
        let (before, complete) = answer.split_at(last);
        sequence.complete.extend_from_slice(complete);
        self.say(|out| out.extend_from_slice(before));
    }

    /// Says what is kept.
    pub(super) fn say_kept(&mut self) {
        if let Some(sequence) = &mut self.sequence {
            let kept = std::mem::take(&mut sequence.complete);
            self.say(|out| out.extend_from_slice(&kept));
        }
    }

    /// Says that a query is over; one of several statements is not before the last of them.
    pub(super) fn say_ready(&mut self) {
        if self.sequence.is_none() {
            let status = self.status;
            self.say(|out| frame::put_ready(out, status));
        }
    }

    /// Sees to the transaction in which a statement of several is carried out. Whether the statement is done with.
    /// # Errors
    /// PostgreSQL has no such statement within the transaction of one query.
    pub(super) fn within_sequence(&mut self, act: &Act, sql: &str) -> Result<bool, Refusal> {
        let Some(sequence) = &mut self.sequence else { return Ok(false) };
        let needs_block = |what: &str| {
            let cause = format!("{what} can only be used in a transaction that BEGIN has opened");
            Err(Refusal::new("HF3211", "25P01", cause, "BEGIN first"))
        };
        if self.status == IDLE {
            let opens = !matches!(act, Act::Begin | Act::Commit | Act::Rollback);
            sequence.own = opens;
            if opens {
                self.defer(BEGIN)?;
                self.status = IN_TRANSACTION;
            }
        }
        if !self.sequence.as_ref().is_some_and(|sequence| sequence.own) {
            return Ok(false);
        }
        match act {
            Act::Begin => {
                // What came before it belongs to the transaction that it opens.
                match self.deferred.as_slice() {
                    [only] if &**only == BEGIN => {
                        (self.deferred, self.deferred_bytes) = (vec![sql.into()], sql.len());
                    }
                    _ if is_plain(sql) => {}
                    _ => {
                        let cause =
                            "BEGIN says what the transaction is like, behind others of its query";
                        return Err(Refusal::new("HF3211", "25001", cause, "BEGIN first"));
                    }
                }
                let start = Tokens::new(sql).next();
                let started =
                    matches!(start, Some(Token::Word(word)) if word.eq_ignore_ascii_case("start"));
                let tag = if started { "START TRANSACTION" } else { "BEGIN" };
                self.say(|out| frame::put_complete(out, tag));
                self.sequence.as_mut().expect("it was just there").own = false;
                Ok(true)
            }
            Act::CommitAndChain | Act::RollbackAndChain => needs_block("AND CHAIN"),
            Act::InTransaction => {
                let first = Tokens::new(sql).next();
                match first {
                    Some(Token::Word(word)) if word.eq_ignore_ascii_case("set") => Ok(false),
                    _ => needs_block("a savepoint"),
                }
            }
            _ => Ok(false),
        }
    }

    /// Ends it: the transaction, if it is the query's own, and the answer.
    pub(super) async fn end_sequence(&mut self) -> Result<(), End> {
        let Some(sequence) = self.sequence.take() else { return Ok(()) };
        // What is left of its statements is dropped.
        self.inbox = sequence.behind;
        let ends = sequence.own && self.status != IDLE;
        let ended = match ends {
            true if sequence.failed => {
                self.roll_back().await;
                self.leave_transaction();
                Ok(())
            }
            true => self.commit_own().await,
            false => Ok(()),
        };
        match ended {
            Err(stopped) => self.say_stopped(stopped)?,
            Ok(()) if sequence.failed => {}
            Ok(()) => self.say(|out| out.extend_from_slice(&sequence.complete)),
        }
        self.say_ready();
        Ok(())
    }

    async fn commit_own(&mut self) -> Result<(), Stopped> {
        if self.is_visiting() {
            self.release();
        }
        if self.bound.is_none() {
            if !self.keeps_settings() {
                self.leave_transaction();
                return Ok(());
            }
            // No statement has said where, and what was set for the session is judged by a server.
            self.opening.begin(std::mem::take(&mut self.deferred));
            let mut members = Vec::new();
            let first = self.admit(&mut members, HOME).await;
            if let Err(refusal) = first {
                self.leave_transaction();
                return Err(refusal.into());
            }
            self.put_members(members, 0);
        }
        self.commit().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_as_many_statements_as_the_limit_and_not_one_more() {
        let query = |count: usize| vec!["SELECT 1"; count].join(" ;; ");
        let told = statements(&query(STATEMENTS_MAX)).expect("at the limit");
        assert_eq!(told.len(), STATEMENTS_MAX);
        let refused = statements(&query(STATEMENTS_MAX + 1)).expect_err("one past the limit");
        assert_eq!(refused.code, "HF3208");
    }

    #[test]
    fn rows_of_the_client_are_not_looked_for_among_statements() {
        let refused = statements("BEGIN; copy t (a) from /* */ STDIN; COMMIT").expect_err("rows");
        assert_eq!(refused.code, "HF3210");
        for taken in ["COPY t TO STDOUT; SELECT 'stdin'", "SELECT copy FROM stdin; SELECT 1"] {
            assert_eq!(statements(taken).map(|parts| parts.len()), Ok(2), "{taken}");
        }
    }

    #[test]
    fn a_plain_begin_says_nothing_of_its_transaction() {
        for plain in ["BEGIN", "begin work", "START /* */ TRANSACTION"] {
            assert!(is_plain(plain), "{plain}");
        }
        assert!(!is_plain("BEGIN READ ONLY"));
    }
}
