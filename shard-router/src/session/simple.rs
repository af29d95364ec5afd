//! Simple queries: one message, answered up to `ReadyForQuery` before the next one is looked at.

use holdfast_route::Access;

use super::{
    Bound, End, IDLE, Scatter, Session, Span, consume::Taken, ending::check_setting,
    expect::Expect, sequence,
};
use crate::{
    classify::Act,
    frame::HEADER,
    meaning::{Aim, Meaning},
    refusal::Refusal,
    tokens::{Token, Tokens},
};

impl Session {
    /// `Q`: plans it and passes it on, or answers it.
    pub(super) fn query(&mut self, message: &[u8]) -> Result<Taken, End> {
        if !self.expected.is_empty() {
            return Ok(Taken::Later);
        }
        self.skipping = false;
        self.say_kept();
        let Some((0, text)) = message[HEADER..].split_last() else {
            let refusal = Refusal::new(
                "HF3209",
                "08P01",
                "a query does not end with a zero byte",
                "Mend the driver",
            );
            return Err(End::Refused(refusal));
        };
        let taken = match std::str::from_utf8(text) {
            Ok(sql) => self.query_text(message, sql),
            Err(_) => Err(super::prepared::not_utf8()),
        };
        match taken {
            Ok(taken) => Ok(taken),
            Err(refusal) => {
                self.refuse_query(&refusal);
                Ok(Taken::Done)
            }
        }
    }

    fn query_text(&mut self, message: &[u8], sql: &str) -> Result<Taken, Refusal> {
        let worker = std::rc::Rc::clone(&self.worker);
        let meaning = worker.meanings.borrow_mut().of_query(sql);
        if self.must_end(&meaning) {
            return Err(self.aborted());
        }
        if self.within_sequence(meaning.act(), sql)? {
            return Ok(Taken::Done);
        }
        let outdated = self.outdated();
        if meaning.asks_for_rows()
            && let Some(refusal) = outdated
        {
            return Err(refusal);
        }
        check_setting(meaning.act(), sql)?;
        if let Some(verb) = self.spans(&meaning) {
            self.unnamed = None;
            return Ok(Taken::Span(Box::new(Span { verb, sql: sql.into(), simple: true })));
        }
        let slots = self.slots();
        if let Some(question) = self.question(&meaning) {
            if self.awaits_answer(&question) {
                return self.hold_up();
            }
            return Ok(Taken::Ask(question, true));
        }
        if let Some(answer) = self.answer_itself(&meaning, sql)? {
            self.unnamed = None;
            self.say_answer(&answer);
            self.say_ready();
            return Ok(Taken::Done);
        }
        if self.is_to_settle(&meaning) {
            return Ok(Taken::Settle);
        }
        self.means_the_same_here(sql.as_bytes())?;
        let aim = match meaning.act() {
            Act::Several { opens, .. } => {
                let opens = *opens || self.status != IDLE;
                worker.meanings.borrow().aim_several(sql, opens, slots)?
            }
            _ => Some(worker.meanings.borrow().aim_query(&meaning, sql, slots)?),
        };
        let Some(aim) = aim else { return Ok(Taken::Sequence(sequence::statements(sql)?)) };
        let (source, access) = match aim {
            Aim::Any(access) => (None, access),
            Aim::One(source, access) => (Some(source), access),
            Aim::Awaits => return self.hold_up(),
            Aim::Several(plan) => {
                self.may_scatter(&plan)?;
                self.unnamed = None;
                return Ok(Taken::Scatter(Box::new(Scatter::of_query(plan, sql))));
            }
        };
        match self.choose_replica(&meaning, sql, source, access) {
            Some(wait) => Ok(wait),
            None => self.send_query(message, sql, &meaning, source, access),
        }
    }

    fn send_query(
        &mut self,
        message: &[u8],
        sql: &str,
        meaning: &Meaning,
        source: Option<usize>,
        access: Access,
    ) -> Result<Taken, Refusal> {
        if let Some(wait) = self.reach(source, access)? {
            return Ok(wait);
        }
        self.note(meaning, sql)?;
        let Some(Bound { server, source, .. }) = &mut self.bound else {
            unreachable!("a server was reached")
        };
        self.worker.shared().counts.routed[*source].increment(1);
        if self.replica.is_some() {
            self.worker.shared().counts.by_replica[*source].increment(1);
        }
        // PostgreSQL drops the statement without a name at a simple query.
        server.unnamed = None;
        self.unnamed = None;
        self.to_server.extend_from_slice(message);
        // Whatever was left without a Sync ends with it.
        (self.batch_open, self.batch_ran) = (false, false);
        self.expected.push_back(Expect::Query);
        match meaning.act() {
            Act::ResetAll => self.begin_again(None),
            Act::Set(names) if goes_back(sql) => self.begin_again(Some(names)),
            _ => {}
        }
        Ok(Taken::Done)
    }

    /// What a statement that goes to a server will leave behind in its session.
    pub(super) fn note(&mut self, meaning: &Meaning, sql: &str) -> Result<(), Refusal> {
        match meaning.act() {
            Act::Begin => {
                self.opening.clear();
                self.opening.begin(vec![sql.into()]);
            }
            Act::Set(names) => {
                self.opening.push(sql);
                self.touch(names);
            }
            Act::SetLocal => {
                self.opening.push(sql);
                self.touch(&[]);
            }
            // Savepoints and ends may take back what was set.
            Act::InTransaction
            | Act::Commit
            | Act::Rollback
            | Act::CommitAndChain
            | Act::RollbackAndChain => {
                match meaning.act() {
                    Act::InTransaction => self.opening.push(sql),
                    Act::CommitAndChain | Act::RollbackAndChain => {
                        self.opening.lose("it was chained to one whose BEGIN is not known");
                    }
                    _ => {}
                }
                if self.changes != 0 {
                    self.touch(&[]);
                }
            }
            Act::Several { touches, pins, .. } => {
                self.opening.lose("it holds a query of several statements");
                self.touch(touches);
                self.pin(*pins)?;
            }
            Act::Pin(why) => self.pin(Some(why))?,
            // In a transaction or on a pinned server they went there; what the router keeps of them follows.
            Act::ResetAll => {
                self.opening.push(sql);
                self.touch_all();
            }
            Act::DiscardAll => {
                self.drop_statements();
                self.reset_settings();
                if let Some(bound) = &mut self.bound {
                    bound.server.known.clear();
                    bound.server.settings = None;
                }
                self.pinned = None;
            }
            Act::DeallocateAll => {
                self.drop_statements();
                if let Some(bound) = &mut self.bound {
                    bound.server.known.clear();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What `EXPLAIN (ROUTE)` says of a statement: what it would do, and where.
    /// # Errors
    /// It would be refused.
    pub(crate) fn explain_route(&self, sql: &str) -> Result<Vec<(String, String)>, Refusal> {
        let row = |what: &str, value: String| (what.to_owned(), value);
        let plan = self.worker.meanings.borrow().plan_of(sql)?;
        let Some((plan, rules)) = plan else {
            let source = self.worker.sources()[crate::worker::HOME].name().to_owned();
            let reason = "there is one source only".to_owned();
            return Ok(vec![row("source", source), row("reason", reason)]);
        };
        let mut rows = vec![row("access", format!("{:?}", plan.access).to_lowercase())];
        if let Some(group) = &plan.group {
            rows.push(row("group", group.to_string()));
        }
        for line in plan.explain(&rules) {
            rows.push(row("source", line.source.unwrap_or_else(|| "any".to_owned())));
            if !line.shards.is_empty() {
                rows.push(row("shard", line.shards.join(", ")));
            }
            rows.extend(line.slot.map(|slot| row("slot", slot.to_string())));
            rows.push(row("reason", line.reason.to_owned()));
            rows.extend(line.rewritten.map(|sql| row("sent instead", sql)));
        }
        let meanings = self.worker.meanings.borrow();
        if plan.awaits && !meanings.awaited().is_empty() {
            let awaited = meanings.awaited().iter();
            let steps: Vec<&str> = awaited.map(|step| step.id.as_str()).collect();
            rows.push(row("waits", format!("a slot of it is being moved ({})", steps.join(", "))));
        }
        rows.push(row("epoch", plan.epoch.to_string()));
        Ok(rows)
    }

    /// Whether the statement must wait for what this session has committed.
    pub(super) fn is_to_settle(&mut self, meaning: &Meaning) -> bool {
        meaning.asks_for_rows() && self.must_settle()
    }

    fn pin(&mut self, why: Option<&'static str>) -> Result<(), Refusal> {
        let Some(why) = why else { return Ok(()) };
        if self.worker.sources().len() > 1 {
            let cause = format!(
                "{why} belongs to one server connection, and this database has several sources"
            );
            return Err(Refusal::new(
                "HF3211",
                "0A000",
                cause,
                "Connect to the source itself for it",
            ));
        }
        self.pinned = Some(why);
        Ok(())
    }

    /// Whether no server is in use and none is needed to say what the status is.
    pub(super) fn is_unbound_idle(&self) -> bool {
        self.bound.is_none() && self.status == IDLE
    }

    /// What a statement is told in a transaction that has failed without a server.
    pub(super) fn aborted(&mut self) -> Refusal {
        self.untold.take().unwrap_or_else(|| {
            let cause = "the transaction has failed; statements are ignored until it ends";
            Refusal::new("HF3206", "25P02", cause, "ROLLBACK, then begin it again")
        })
    }
}

/// Whether a statement that sets something puts it back: `RESET x`, `SET x TO DEFAULT`.
fn goes_back(sql: &str) -> bool {
    let word = |token: Option<Token<'_>>, wanted: &str| matches!(token, Some(Token::Word(text)) if text.eq_ignore_ascii_case(wanted));
    let mut tokens = Tokens::new(sql).filter(|token| *token != Token::Sign(b';'));
    word(tokens.next(), "reset") || word(tokens.last(), "default")
}
