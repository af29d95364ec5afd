//! COMMIT AND CHAIN, ROLLBACK AND CHAIN: the next transaction begins as the one before it did, and waits for its first statement like any
//! other.

use super::{
    FAILED, IDLE, IN_TRANSACTION, Session, Stopped, act::impossible, global::Verb, opening::Opening,
};
use crate::{
    classify::Act,
    refusal::Refusal,
    tokens::{Token, Tokens},
};

/// What of these statements says what the transaction itself is like: its BEGIN, and each SET TRANSACTION.
/// # Errors
/// They do not say it: what the next one would be like is not known.
fn chained(statements: &[Box<str>]) -> Result<Vec<Box<str>>, Refusal> {
    let mut kept: Vec<Box<str>> = Vec::new();
    for (at, sql) in statements.iter().enumerate() {
        let mut tokens = Tokens::new(sql);
        let first = word(tokens.next());
        // Also with SESSION or LOCAL before it, which say nothing there.
        let is_transaction = |token| word(Some(token)) == "transaction";
        if at == 0 || (first == "set" && tokens.take(2).any(is_transaction)) {
            kept.push(sql.clone());
        } else if first == "rollback" && kept.len() > 1 {
            // It may have taken one of them back.
            return Err(impossible("AND CHAIN behind SET TRANSACTION and ROLLBACK TO"));
        } else if Tokens::new(sql).any(sets_characteristics) {
            return Err(impossible("AND CHAIN behind a setting of what transactions are like"));
        }
    }
    let snapshot = |sql: &str| Tokens::new(sql).any(|token| word(Some(token)) == "snapshot");
    if kept.iter().any(|sql| snapshot(sql)) {
        return Err(impossible("AND CHAIN behind a transaction with the snapshot of another one"));
    }
    Ok(kept)
}

fn word(token: Option<Token<'_>>) -> String {
    match token {
        Some(Token::Word(text) | Token::Quoted(text)) => text.to_ascii_lowercase(),
        _ => String::new(),
    }
}

/// `default_transaction_isolation`, `transaction_read_only`, and SESSION CHARACTERISTICS.
fn sets_characteristics(token: Token<'_>) -> bool {
    let word = word(Some(token));
    word.starts_with("default_transaction_")
        || word.starts_with("transaction_")
        || word == "characteristics"
}

impl Session {
    /// Whether the router itself ends the transaction at hand and begins the next one: it has a server, and how it began is known.
    pub(super) fn ends_chain(&self) -> bool {
        let held = self.must_not_commit().is_some();
        let known = self.opening.statements().is_ok() && !self.is_visiting();
        let open = self.bound.is_some() && self.status != IDLE && !self.worker.passes_everything();
        self.global.is_some() || held || (open && known)
    }

    /// Whether a COMMIT must reach a server though no statement has: the transaction has set something for the session.
    pub(super) fn keeps_settings(&self) -> bool {
        self.status != FAILED && !self.touched.is_empty()
    }

    /// How a transaction begins that is chained to one without a server; nothing for other ends.
    /// # Errors
    /// That is not known; nothing has ended.
    pub(super) fn next_in_chain(&self, act: &Act) -> Result<Vec<Box<str>>, Refusal> {
        match act {
            Act::CommitAndChain | Act::RollbackAndChain => chained(&self.deferred),
            _ => Ok(Vec::new()),
        }
    }

    /// A transaction is open again that began with these, and waits for its server. Nothing happens without any.
    pub(super) fn chain(&mut self, statements: Vec<Box<str>>) {
        if !statements.is_empty() {
            self.deferred_bytes = statements.iter().map(|sql| sql.len()).sum();
            self.deferred = statements;
            self.status = IN_TRANSACTION;
        }
    }

    /// Ends the transaction on all its servers and begins the next one. What to say.
    pub(super) async fn end_and_chain(&mut self, verb: Verb) -> Result<String, Stopped> {
        let next = Opening::statements(&self.opening).map_err(|why| {
            let cause = format!("AND CHAIN behind a transaction of which {why}");
            Refusal::new("HF3211", "0A000", cause, "COMMIT, then BEGIN")
        });
        let next = match next.and_then(chained) {
            Ok(next) => next,
            Err(refusal) => {
                self.fail_members().await;
                return Err(refusal.into());
            }
        };
        let said = match verb {
            Verb::RollbackAndChain => {
                self.roll_back().await;
                "ROLLBACK"
            }
            _ => self.commit().await?,
        };
        self.chain(next);
        Ok(said.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(statements: &[&str]) -> Result<Vec<String>, &'static str> {
        let statements: Vec<Box<str>> = statements.iter().map(|sql| (*sql).into()).collect();
        let next = chained(&statements).map_err(|refusal| refusal.code)?;
        Ok(next.into_iter().map(String::from).collect())
    }

    #[test]
    fn the_next_transaction_is_like_the_one_before_and_has_nothing_of_what_it_did() {
        let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE";
        let only = Ok(vec![begin.to_owned()]);
        assert_eq!(next(&[begin]), only);
        let within = ["SAVEPOINT a", "SET LOCAL TimeZone = 'UTC'", "ROLLBACK TO a", "RELEASE a"];
        assert_eq!(next(&[&[begin], &within[..]].concat()), only);
        let set = "set /* */ transaction read only";
        for set in [set, "SET LOCAL TRANSACTION READ ONLY", "SET SESSION TRANSACTION READ ONLY"] {
            assert_eq!(next(&[begin, set]), Ok(vec![begin.to_owned(), set.to_owned()]));
        }
    }

    #[test]
    fn what_it_would_be_like_is_never_guessed() {
        for statements in [
            &["BEGIN", "SAVEPOINT a", "SET TRANSACTION READ ONLY", "ROLLBACK TO a"][..],
            &["BEGIN", "SET LOCAL transaction_read_only = on"],
            &["BEGIN", "SET default_transaction_isolation = 'serializable'"],
            &["BEGIN", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"],
            &["BEGIN", "SET TRANSACTION SNAPSHOT '00000003-0000001B-1'"],
        ] {
            assert_eq!(next(statements), Err("HF3211"), "{statements:?}");
        }
    }
}
