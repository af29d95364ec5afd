//! The extended protocol: parse, bind, describe, execute, close, sync. A parse waits until something says which server it is for.

use std::rc::Rc;

use super::{
    Bound, End, Scatter, ScatterPortal, Session, Statement, consume::Taken, ending::check_setting,
    expect::Expect, prepared::Portal,
};
use crate::{
    backend::put_name,
    classify::Act,
    frame::{self, Body, HEADER},
    meaning::Aim,
    refusal::Refusal,
};

fn malformed(what: &str) -> End {
    let cause = format!("a {what} message is malformed");
    End::Refused(Refusal::new("HF3209", "08P01", cause, "Mend the driver"))
}

fn unknown(kind: &str, name: &[u8], sqlstate: &'static str) -> Refusal {
    let cause = format!("{kind} {:?} does not exist", String::from_utf8_lossy(name));
    Refusal::new("HF3214", sqlstate, cause, "Prepare or bind it first")
}

impl Session {
    pub(super) fn parse(&mut self, body: &[u8]) -> Result<Taken, End> {
        let mut rest = Body(body);
        let name = rest.text().ok_or_else(|| malformed("parse"))?;
        Ok(match self.parse_as(name, rest.0) {
            Ok(()) => Taken::Done,
            Err(refusal) => {
                self.refuse_batch(&refusal);
                Taken::Done
            }
        })
    }

    fn parse_as(&mut self, name: &[u8], tail: &[u8]) -> Result<(), Refusal> {
        let worker = Rc::clone(&self.worker);
        let statement =
            worker.statements.borrow_mut().intern(tail, &mut worker.meanings.borrow_mut())?;
        if name.is_empty() {
            self.unnamed = Some(Rc::clone(&statement));
        } else {
            if self.statements.contains_key(name) {
                let cause = format!(
                    "prepared statement {:?} already exists",
                    String::from_utf8_lossy(name)
                );
                return Err(Refusal::new(
                    "HF3214",
                    "42P05",
                    cause,
                    "Close it first, or choose another name",
                ));
            }
            let max = worker.limits().statements_max;
            if self.statements.len() >= max {
                let cause = format!("the session holds {max} prepared statements");
                return Err(Refusal::new(
                    "HF3208",
                    "54000",
                    cause,
                    "Close some, or raise limits.statements_max",
                ));
            }
            self.statements.insert(name.into(), Rc::clone(&statement));
        }
        if self.bound.is_some() {
            let _named_or_not = self.send_parse(&statement, true);
        } else {
            self.unsent.push(statement);
        }
        Ok(())
    }

    /// Makes sure that the server in use has the statement, read as this session's settings are now, and answers the number in its name
    /// there; `None` is the one without a name. `asked`: the client waits for its `ParseComplete`.
    fn send_parse(&mut self, statement: &Rc<Statement>, asked: bool) -> Option<u64> {
        let reading = self.reading();
        let Some(Bound { server, .. }) = &mut self.bound else { return None };
        let named = !self.unnamed.as_ref().is_some_and(|unnamed| Rc::ptr_eq(unnamed, statement));
        if named && let Some(name) = server.knows(statement.id, &reading) {
            if asked {
                self.say(|out| frame::put_bare(out, b'1'));
            }
            return Some(name);
        }
        if !named && !asked && server.unnamed == Some(statement.id) {
            return None;
        }
        let mut name = None;
        if named {
            let max = self.worker.limits().server_statements_max;
            let lesson = server.learn(statement.id, reading, max);
            name = Some(lesson.name);
            if lesson.close.is_some() {
                frame::put(&mut self.to_server, b'C', |out| {
                    out.push(b'S');
                    put_name(lesson.close, out);
                });
                self.expected.push_back(Expect::HiddenClose);
            }
        } else {
            server.unnamed = Some(statement.id);
        }
        frame::put(&mut self.to_server, b'P', |out| {
            put_name(name, out);
            out.extend_from_slice(&statement.tail);
        });
        self.batch_open = true;
        let expected = if asked { Expect::Parse } else { Expect::HiddenParse };
        self.expected.push_back(expected(Rc::clone(statement)));
        name
    }

    /// The statements that waited for a server go to the one in use.
    fn send_unsent(&mut self) {
        for statement in std::mem::take(&mut self.unsent) {
            self.send_parse(&statement, true);
        }
    }

    /// The statements that waited for a server are known to the router, which is enough for what it answers itself.
    fn answer_unsent(&mut self) {
        for _ in std::mem::take(&mut self.unsent) {
            self.say(|out| frame::put_bare(out, b'1'));
        }
    }

    pub(super) fn bind(&mut self, message: &[u8]) -> Result<Taken, End> {
        let mut rest = Body(&message[HEADER..]);
        let (Some(portal), Some(name)) = (rest.text(), rest.text()) else {
            return Err(malformed("bind"));
        };
        match self.bind_as(portal, name, rest.0) {
            Ok(taken) => Ok(taken),
            Err(refusal) => {
                self.answer_unsent();
                self.refuse_batch(&refusal);
                Ok(Taken::Done)
            }
        }
    }

    fn bind_as(&mut self, portal: &[u8], name: &[u8], rest: &[u8]) -> Result<Taken, Refusal> {
        let statement =
            self.statement(name).ok_or_else(|| unknown("prepared statement", name, "26000"))?;
        let meaning = Rc::clone(&statement.meaning);
        check_setting(meaning.act(), statement.sql())?;
        if self.must_end(&meaning) {
            return Err(self.aborted());
        }
        let outdated = self.outdated();
        if meaning.asks_for_rows()
            && let Some(refusal) = outdated
        {
            return Err(refusal);
        }
        if let Act::Impossible(why) = meaning.act()
            && !self.worker.passes_everything()
        {
            return Err(super::act::impossible(why));
        }
        if self.answers(&meaning) {
            self.answer_unsent();
            self.portals.insert(portal.into(), Portal { statement });
            self.say(|out| frame::put_bare(out, b'2'));
            return Ok(Taken::Done);
        }
        if !self.portals.is_empty() {
            self.portals.remove(portal);
        }
        if !self.scatters.is_empty() {
            self.scatters.remove(portal);
        }
        let worker = Rc::clone(&self.worker);
        self.means_the_same_here(statement.sql().as_bytes())?;
        self.means_the_same_here(rest)?;
        let slots = self.slots();
        let aim = worker.meanings.borrow().aim_bind(&statement, rest, slots)?;
        if self.is_to_settle(&meaning) {
            return Ok(Taken::Settle);
        }
        let (source, access) = match aim {
            Aim::Any(access) => (None, access),
            Aim::One(source, access) => (Some(source), access),
            Aim::Awaits => return self.hold_up(),
            Aim::Several(plan) => {
                self.end_turn();
                if !self.expected.is_empty() {
                    return Ok(Taken::Later);
                }
                self.may_scatter(&plan)?;
                self.answer_unsent();
                let scatter = Scatter::of_bind(plan, &statement, rest);
                self.scatters.insert(portal.into(), ScatterPortal { scatter, running: None });
                self.say(|out| frame::put_bare(out, b'2'));
                return Ok(Taken::Done);
            }
        };
        if let Some(wait) = self.choose_replica(&meaning, statement.sql(), source, access) {
            return Ok(wait);
        }
        if let Some(wait) = self.reach(source, access)? {
            return Ok(wait);
        }
        self.note(&meaning, statement.sql())?;
        if let Some(bound) = &self.bound {
            if !portal.is_empty() && self.status != super::IDLE && self.pools.len() > 1 {
                self.portal_homes.insert(portal.into(), bound.source);
            }
            worker.shared().counts.routed[bound.source].increment(1);
            if self.replica.is_some() {
                worker.shared().counts.by_replica[bound.source].increment(1);
            }
        }
        self.send_unsent();
        let name = self.send_parse(&statement, false);
        frame::put(&mut self.to_server, b'B', |out| {
            frame::put_text(out, portal);
            put_name(name, out);
            out.extend_from_slice(rest);
        });
        (self.batch_open, self.batch_ran) = (true, true);
        self.expected.push_back(Expect::Bind);
        Ok(Taken::Done)
    }

    /// Whether the router answers this statement itself as things are now. What it will say is decided when it is executed.
    fn answers(&self, meaning: &crate::meaning::Meaning) -> bool {
        let unbound = self.bound.is_none();
        let open = self.status != super::IDLE;
        if self.spans(meaning).is_some() {
            return true;
        }
        match meaning.act() {
            Act::Begin => unbound,
            Act::Rollback | Act::RollbackAndChain => unbound && open,
            Act::Commit | Act::CommitAndChain => unbound && open && !self.keeps_settings(),
            // Back to a savepoint that no server has seen, also from a statement that was refused.
            Act::InTransaction => unbound && open,
            Act::SetLocal | Act::Set(_) => unbound && self.status == super::IN_TRANSACTION,
            Act::ResetAll | Act::DiscardAll => unbound && !open,
            Act::DeallocateAll | Act::Deallocate(_) => self.pinned.is_none(),
            Act::Show(_) | Act::ExplainRoute(_) | Act::Locate(..) => true,
            Act::Empty => unbound && !open,
            Act::Impossible(_) | Act::Pin(_) | Act::Several { .. } | Act::Statement => false,
        }
    }

    pub(super) fn describe(&mut self, body: &[u8]) -> Result<Taken, End> {
        let mut rest = Body(body);
        let (Some(kind @ (b'S' | b'P')), Some(name)) = (rest.byte(), rest.text()) else {
            return Err(malformed("describe"));
        };
        match self.describe_as(kind, name) {
            Ok(taken) => Ok(taken),
            Err(refusal) => {
                self.answer_unsent();
                self.refuse_batch(&refusal);
                Ok(Taken::Done)
            }
        }
    }

    fn describe_as(&mut self, kind: u8, name: &[u8]) -> Result<Taken, Refusal> {
        if kind == b'P' {
            if let Some(portal) = self.portals.get(name) {
                let columns = crate::admin::columns(portal.statement.meaning.act());
                self.say(|out| put_columns(out, columns));
            } else if self.scatters.contains_key(name) {
                return Ok(match self.expected.is_empty() {
                    true => Taken::Portal(name.into(), true, 0),
                    false => Taken::Later,
                });
            } else if let Some(wait) = self.portal_at(name)? {
                return Ok(wait);
            } else if self.bound.is_some() {
                frame::put(&mut self.to_server, b'D', |out| {
                    out.push(b'P');
                    frame::put_text(out, name);
                });
                self.expected.push_back(Expect::Describe);
                self.batch_open = true;
            } else {
                return Err(unknown("portal", name, "34000"));
            }
            return Ok(Taken::Done);
        }
        let statement =
            self.statement(name).ok_or_else(|| unknown("prepared statement", name, "26000"))?;
        let own = matches!(
            statement.meaning.act(),
            Act::Show(_) | Act::ExplainRoute(_) | Act::Locate(..)
        );
        if own || (self.answers(&statement.meaning) && statement.types().next().is_none()) {
            self.answer_unsent();
            let columns = crate::admin::columns(statement.meaning.act());
            self.say(|out| {
                frame::put(out, b't', |out| out.extend_from_slice(&[0, 0]));
                put_columns(out, columns);
            });
            return Ok(Taken::Done);
        }
        let source = self.worker.meanings.borrow().describer(&statement);
        if let Some(wait) = self.visit(source)? {
            return Ok(wait);
        }
        self.send_unsent();
        let name = self.send_parse(&statement, false);
        frame::put(&mut self.to_server, b'D', |out| {
            out.push(b'S');
            put_name(name, out);
        });
        self.batch_open = true;
        self.expected.push_back(Expect::Describe);
        Ok(Taken::Done)
    }

    pub(super) fn execute(&mut self, message: &[u8]) -> Result<Taken, End> {
        let mut rest = Body(&message[HEADER..]);
        let (Some(name), Some(rows_max)) = (rest.text(), rest.int32()) else {
            return Err(malformed("execute"));
        };
        if self.scatters.contains_key(name) {
            // It was planned when it was bound.
            if let Some(refusal) = self.outdated() {
                self.refuse_batch(&refusal);
                return Ok(Taken::Done);
            }
            let rows_max = u64::try_from(rows_max).unwrap_or(0);
            return Ok(match self.expected.is_empty() {
                true => Taken::Portal(name.into(), false, rows_max),
                false => Taken::Later,
            });
        }
        if let Some(portal) = self.portals.get(name).cloned() {
            let sql = portal.statement.sql();
            let meaning = Rc::clone(&portal.statement.meaning);
            let verb = self.spans(&meaning);
            let question = self.question(&meaning);
            if verb.is_some() || question.is_some() {
                self.end_turn();
                if !self.expected.is_empty() {
                    return Ok(Taken::Later);
                }
                if let Some(question) = &question
                    && self.awaits_answer(question)
                {
                    return Ok(match self.hold_up() {
                        Ok(held) => held,
                        Err(refusal) => {
                            self.refuse_batch(&refusal);
                            Taken::Done
                        }
                    });
                }
                return Ok(match (verb, question) {
                    (Some(verb), _) => {
                        Taken::Span(Box::new(super::Span { verb, sql: sql.into(), simple: false }))
                    }
                    (None, Some(question)) => Taken::Ask(question, false),
                    (None, None) => unreachable!("one of them is there"),
                });
            }
            match self.answer_itself(&portal.statement.meaning, sql) {
                // Rows without their description: the client has asked for that before.
                Ok(Some(answer)) => self.say(|out| out.extend_from_slice(behind_columns(&answer))),
                Ok(None) => {
                    let cause = "what this portal answers depends on a transaction that began behind its bind";
                    let refusal = Refusal::new("HF3214", "34000", cause, "Bind it again");
                    self.refuse_batch(&refusal);
                }
                Err(refusal) => self.refuse_batch(&refusal),
            }
        } else if self.bound.is_some() {
            match self.portal_at(name) {
                Ok(None) => {}
                Ok(Some(wait)) => return Ok(wait),
                Err(refusal) => {
                    self.refuse_batch(&refusal);
                    return Ok(Taken::Done);
                }
            }
            self.to_server.extend_from_slice(message);
            (self.batch_open, self.batch_ran) = (true, true);
            self.expected.push_back(Expect::Execute);
        } else {
            self.refuse_batch(&unknown("portal", name, "34000"));
        }
        Ok(Taken::Done)
    }

    pub(super) fn close(&mut self, body: &[u8]) -> Result<Taken, End> {
        let mut rest = Body(body);
        let (Some(kind @ (b'S' | b'P')), Some(name)) = (rest.byte(), rest.text()) else {
            return Err(malformed("close"));
        };
        let own_portal = kind == b'P'
            && (self.portals.remove(name).is_some() | self.scatters.remove(name).is_some());
        if kind == b'P' && !own_portal && self.bound.is_some() {
            match self.portal_at(name) {
                Ok(None) => {}
                Ok(Some(wait)) => return Ok(wait),
                Err(refusal) => {
                    self.refuse_batch(&refusal);
                    return Ok(Taken::Done);
                }
            }
            self.portal_homes.remove(name);
            frame::put(&mut self.to_server, b'C', |out| {
                out.push(b'P');
                frame::put_text(out, name);
            });
            self.batch_open = true;
            self.expected.push_back(Expect::Close);
            return Ok(Taken::Done);
        }
        if kind == b'S' {
            self.answer_unsent();
            // Servers keep it for others.
            if name.is_empty() {
                self.unnamed = None;
            } else {
                self.statements.remove(name);
            }
        }
        self.say(|out| frame::put_bare(out, b'3'));
        Ok(Taken::Done)
    }

    /// In a transaction on several sources, makes sure that the source of this portal is at work.
    fn portal_at(&mut self, name: &[u8]) -> Result<Option<Taken>, Refusal> {
        match self.portal_homes.get(name).copied() {
            Some(home) if self.bound.as_ref().is_some_and(|bound| bound.source != home) => {
                self.reach(Some(home), holdfast_route::Access::Read)
            }
            _ => Ok(None),
        }
    }

    pub(super) fn flush(&mut self) -> Taken {
        if !self.unsent.is_empty() {
            match self.visit(None) {
                Ok(None) => self.send_unsent(),
                Ok(Some(wait)) => return wait,
                Err(refusal) => self.refuse_batch(&refusal),
            }
        }
        if self.bound.is_some() && self.batch_open {
            frame::put_bare(&mut self.to_server, b'H');
        }
        Taken::Done
    }

    /// What servers have taken before, or the router answers itself, needs no server to be told as taken.
    fn answer_known(&mut self) {
        if self.unsent.iter().all(|unsent| unsent.valid.get() || self.answers(&unsent.meaning)) {
            self.answer_unsent();
        }
    }

    pub(super) fn sync(&mut self) -> Taken {
        if self.copying_in {
            // PostgreSQL ignores it; the one behind the end of the COPY counts.
            return Taken::Done;
        }
        if !self.skipping {
            self.answer_known();
        }
        if !self.unsent.is_empty() && !self.skipping {
            match self.visit(None) {
                Ok(None) => self.send_unsent(),
                Ok(Some(wait)) => return wait,
                Err(refusal) => {
                    self.unsent.clear();
                    self.refuse_batch(&refusal);
                }
            }
        }
        self.unsent.clear();
        self.skipping = false;
        if self.status == super::IDLE {
            self.portals.clear();
            self.drop_scatters();
        }
        if self.bound.is_some() && (self.batch_open || !self.expected.is_empty()) {
            frame::put_bare(&mut self.to_server, b'S');
            self.expected.push_back(Expect::Sync);
            (self.batch_open, self.batch_ran) = (false, false);
        } else {
            let status = self.status;
            self.say(|out| frame::put_ready(out, status));
        }
        Taken::Done
    }
}

fn put_columns(out: &mut Vec<u8>, columns: &[&str]) {
    if columns.is_empty() {
        frame::put_bare(out, b'n');
    } else {
        frame::put_columns(out, columns);
    }
}

/// An answer without the `RowDescription` that it may begin with.
fn behind_columns(answer: &[u8]) -> &[u8] {
    match frame::header(answer, usize::MAX >> 1) {
        Ok(Some(header)) if header.tag == b'T' => &answer[header.total..],
        _ => answer,
    }
}
