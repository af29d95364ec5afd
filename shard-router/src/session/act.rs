//! What the router answers itself: transactions that have no server yet, settings that are put back, and questions about itself.

use super::{DEFERRED_BYTES_MAX, DEFERRED_MAX, FAILED, IDLE, IN_TRANSACTION, Session};
use crate::{
    admin,
    classify::Act,
    frame,
    meaning::Meaning,
    refusal::{self, Refusal},
    tokens::Tokens,
};

impl Session {
    /// The answer without `ReadyForQuery`, if it is the router's to give now; `None` if the statement goes to a server.
    /// # Errors
    /// The statement is refused.
    pub(super) fn answer_itself(
        &mut self,
        meaning: &Meaning,
        sql: &str,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        if matches!(meaning.act(), Act::Statement) {
            return Ok(None);
        }
        let mut out = Vec::new();
        let unbound = self.bound.is_none();
        let open = self.status != IDLE;
        match meaning.act() {
            Act::Impossible(why)
                if !self.worker.passes_everything()
                    || why.starts_with("SET SESSION")
                    || why.starts_with("RESET SESSION") =>
            {
                return Err(impossible(why));
            }
            Act::Begin if unbound && !open => {
                self.defer(sql)?;
                self.status = IN_TRANSACTION;
                let start = Tokens::new(sql).next();
                let started = matches!(start, Some(crate::tokens::Token::Word(w)) if w.eq_ignore_ascii_case("start"));
                frame::put_complete(&mut out, if started { "START TRANSACTION" } else { "BEGIN" });
            }
            Act::Begin if unbound => {
                refusal::put_warning(
                    &mut out,
                    "25001",
                    "there is already a transaction in progress",
                );
                frame::put_complete(&mut out, "BEGIN");
            }
            Act::Commit | Act::CommitAndChain if unbound && open && !self.keeps_settings() => {
                let next = self.next_in_chain(meaning.act())?;
                let (failed, untold) = (self.status == FAILED, self.untold.take());
                self.leave_transaction();
                // Nobody has heard yet that it failed, and most drivers take any answer to COMMIT but an error for a commit.
                if let Some(refusal) = untold {
                    return Err(refusal);
                }
                self.chain(next);
                frame::put_complete(&mut out, if failed { "ROLLBACK" } else { "COMMIT" });
            }
            Act::Rollback | Act::RollbackAndChain if unbound && open => {
                let next = self.next_in_chain(meaning.act())?;
                self.leave_transaction();
                self.chain(next);
                frame::put_complete(&mut out, "ROLLBACK");
            }
            Act::InTransaction if unbound && open => {
                self.savepoint(sql)?;
                frame::put_complete(&mut out, tag_of(sql));
            }
            Act::SetLocal | Act::Set(_) if unbound && self.status == IN_TRANSACTION => {
                self.defer(sql)?;
                if let Act::Set(names) = meaning.act() {
                    self.touch(names);
                } else {
                    self.touch(&[]);
                }
                frame::put_complete(&mut out, tag_of(sql));
            }
            Act::ResetAll if self.is_unbound_idle() => {
                self.reset_settings();
                frame::put_complete(&mut out, "RESET");
            }
            Act::DiscardAll if self.is_unbound_idle() => {
                self.drop_statements();
                self.reset_settings();
                frame::put_complete(&mut out, "DISCARD ALL");
            }
            Act::DeallocateAll if self.pinned.is_none() => {
                self.drop_statements();
                frame::put_complete(&mut out, "DEALLOCATE ALL");
            }
            Act::Deallocate(name) if self.pinned.is_none() => {
                if self.statements.remove(name.as_bytes()).is_none() {
                    let cause = format!("prepared statement {name:?} does not exist");
                    return Err(Refusal::new("HF3214", "26000", cause, "Prepare it first"));
                }
                frame::put_complete(&mut out, "DEALLOCATE");
            }
            Act::Show(what) => admin::show(&self.worker, what, &mut out)?,
            Act::Locate(group, key) => admin::locate(&self.worker, group, key, &mut out)?,
            Act::ExplainRoute(at) => {
                let statement = sql.get(*at..).unwrap_or_default();
                admin::explain(self, statement, &mut out)?;
            }
            Act::Empty if unbound && !open => frame::put_bare(&mut out, b'I'),
            _ => return Ok(None),
        }
        Ok(Some(out))
    }

    /// Keeps a statement until the transaction has a server.
    pub(super) fn defer(&mut self, sql: &str) -> Result<(), Refusal> {
        if self.deferred.len() == DEFERRED_MAX
            || self.deferred_bytes + sql.len() > DEFERRED_BYTES_MAX
        {
            let cause = format!(
                "{} statements came before one that says which shard; {DEFERRED_MAX} of {DEFERRED_BYTES_MAX} bytes are kept",
                self.deferred.len()
            );
            return Err(Refusal::new(
                "HF3208",
                "54000",
                cause,
                "Begin with a statement on a table",
            ));
        }
        self.deferred_bytes += sql.len();
        self.deferred.push(sql.into());
        Ok(())
    }

    pub(super) fn leave_transaction(&mut self) {
        self.drop_scatters();
        self.deferred.clear();
        self.deferred_bytes = 0;
        self.opening.clear();
        self.wrote = false;
        self.touched.clear();
        self.changes = 0;
        self.untold = None;
        self.status = IDLE;
    }
}

pub(super) fn impossible(why: &str) -> Refusal {
    Refusal::new("HF3211", "0A000", why, "Connect to the source itself for it")
}

/// The command tag of a statement that waits.
fn tag_of(sql: &str) -> &'static str {
    let first = Tokens::new(sql).next();
    let word = match first {
        Some(crate::tokens::Token::Word(word)) => word.to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "savepoint" => "SAVEPOINT",
        "release" => "RELEASE",
        "rollback" => "ROLLBACK",
        "reset" => "RESET",
        _ => "SET",
    }
}
