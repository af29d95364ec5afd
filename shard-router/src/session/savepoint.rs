//! Savepoints of a transaction that no server has seen yet: a statement that was refused takes no more with it than in PostgreSQL.

use super::{FAILED, IN_TRANSACTION, Session};
use crate::{
    classify::Act,
    meaning::Meaning,
    refusal::Refusal,
    tokens::{Token, Tokens},
};

/// What is done with a savepoint.
#[derive(Debug, PartialEq, Eq)]
enum Savepoint {
    Set(String),
    Release(String),
    BackTo(String),
}

impl Savepoint {
    /// Reads `SAVEPOINT a`, `RELEASE a`, `ROLLBACK TO a` in all their forms.
    fn of(sql: &str) -> Option<Self> {
        let mut tokens = Tokens::new(sql).peekable();
        let is = |token: Option<&Token<'_>>, word: &str| matches!(token, Some(Token::Word(text)) if text.eq_ignore_ascii_case(word));
        let first = tokens.next();
        let make: fn(String) -> Self = if is(first.as_ref(), "savepoint") {
            Self::Set
        } else if is(first.as_ref(), "release") {
            Self::Release
        } else if is(first.as_ref(), "rollback") {
            while tokens.next_if(|token| !is(Some(token), "to")).is_some() {}
            tokens.next()?;
            Self::BackTo
        } else {
            return None;
        };
        let mut name = tokens.next()?;
        if is(Some(&name), "savepoint")
            && let Some(next @ (Token::Word(_) | Token::Quoted(_))) = tokens.next()
        {
            name = next;
        }
        match name {
            Token::Word(word) => Some(make(word.to_ascii_lowercase())),
            Token::Quoted(word) => Some(make(word.replace("\"\"", "\""))),
            Token::Value(_) | Token::Sign(_) => None,
        }
    }
}

/// Where savepoints stand among the statements that wait, the outermost first.
fn standing(deferred: &[Box<str>]) -> Vec<(String, usize)> {
    let mut standing: Vec<(String, usize)> = Vec::new();
    let find = |standing: &[(String, usize)], name: &str| {
        standing.iter().rposition(|(known, _)| known == name)
    };
    for (at, sql) in deferred.iter().enumerate() {
        match Savepoint::of(sql) {
            Some(Savepoint::Set(name)) => standing.push((name, at)),
            Some(Savepoint::Release(name)) => {
                if let Some(found) = find(&standing, &name) {
                    standing.truncate(found);
                }
            }
            Some(Savepoint::BackTo(name)) => {
                if let Some(found) = find(&standing, &name) {
                    standing.truncate(found + 1);
                }
            }
            None => {}
        }
    }
    standing
}

impl Session {
    /// Whether the transaction has failed without a server, and this is none of the statements that it may still have.
    pub(super) fn must_end(&self, meaning: &Meaning) -> bool {
        let back = matches!(meaning.act(), Act::InTransaction) && !self.deferred.is_empty();
        self.status == FAILED && self.bound.is_none() && !meaning.ends_transaction() && !back
    }

    /// A statement about savepoints, or about what the transaction is like, waits for the transaction's server.
    /// # Errors
    /// There is no such savepoint; or the transaction has failed, and this does not lead back to one.
    pub(super) fn savepoint(&mut self, sql: &str) -> Result<(), Refusal> {
        let meant = Savepoint::of(sql);
        if self.status == FAILED && !matches!(meant, Some(Savepoint::BackTo(_))) {
            return Err(self.aborted());
        }
        match meant {
            Some(Savepoint::BackTo(name)) => {
                let at = self.waiting_savepoint(&name)?;
                self.deferred.truncate(at + 1);
                self.deferred_bytes = self.deferred.iter().map(|sql| sql.len()).sum();
                self.status = IN_TRANSACTION;
                Ok(())
            }
            Some(Savepoint::Release(name)) => {
                self.waiting_savepoint(&name)?;
                self.defer(sql)
            }
            Some(Savepoint::Set(_)) | None => self.defer(sql),
        }
    }

    fn waiting_savepoint(&self, name: &str) -> Result<usize, Refusal> {
        let standing = standing(&self.deferred);
        let found = standing.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, at)| *at).ok_or_else(|| {
            let cause = format!("savepoint {name:?} does not exist");
            Refusal::new("HF3214", "3B001", cause, "Set it first")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(sql: &[&str]) -> Vec<String> {
        let deferred: Vec<Box<str>> = sql.iter().map(|sql| (*sql).into()).collect();
        standing(&deferred).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_form_is_read() {
        let back = || Some(Savepoint::BackTo("a b".to_owned()));
        assert_eq!(Savepoint::of("savepoint A"), Some(Savepoint::Set("a".to_owned())));
        assert_eq!(Savepoint::of("RELEASE \"A\""), Some(Savepoint::Release("A".to_owned())));
        assert_eq!(Savepoint::of("release savepoint x"), Some(Savepoint::Release("x".to_owned())));
        assert_eq!(Savepoint::of("ROLLBACK TO \"a b\""), back());
        assert_eq!(Savepoint::of("ROLLBACK /* */ WORK TO SAVEPOINT \"a b\""), back());
        assert_eq!(Savepoint::of("SET TRANSACTION READ ONLY"), None);
        assert_eq!(Savepoint::of("ROLLBACK"), None);
    }

    #[test]
    fn the_same_name_again_hides_the_one_before_and_comes_back_with_its_release() {
        assert_eq!(
            waiting(&["BEGIN", "SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a"]),
            ["a", "b", "a"]
        );
        assert_eq!(
            waiting(&["SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a", "RELEASE a"]),
            ["a", "b"]
        );
        assert_eq!(waiting(&["SAVEPOINT a", "SAVEPOINT b", "RELEASE a"]), [""; 0]);
        assert_eq!(waiting(&["SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO a"]), ["a"]);
    }
}
