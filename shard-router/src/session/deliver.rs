//! The server's messages: passed on, kept back, or replaced, by what is expected.

use std::rc::Rc;

use super::{FAILED, IDLE, Session, Statement, expect::Expect};
use crate::{
    backend::{Server, tag_of},
    frame::{self, Body, HEADER},
    refusal::{self, Refusal},
};

/// Bytes of a message that is passed on row by row; PostgreSQL makes none longer.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// Bytes of a message that must be whole before it is understood.
const WHOLE_BYTES_MAX: usize = 16 << 20;

/// SQLSTATE of a transaction whose server was lost.
const LOST: &str = "08006";
/// And of what was canceled.
const CANCELED: &str = "57014";

/// What becomes of one message.
enum Fate {
    Pass,
    Drop,
    Say(Vec<u8>),
}

/// The server says what no PostgreSQL says here.
#[derive(Debug, thiserror::Error)]
#[error("the server says {0}, which is no answer to what it was asked")]
pub(crate) struct Hostile(String);

impl Session {
    /// Takes what has arrived from the server. `true` if an answer came to its end.
    pub(super) fn deliver(&mut self) -> Result<bool, Hostile> {
        let Some(mut bound) = self.bound.take() else { return Ok(false) };
        let delivered = self.deliver_from(&mut bound.server);
        self.bound = Some(bound);
        delivered
    }

    fn deliver_from(&mut self, server: &mut Server) -> Result<bool, Hostile> {
        let mut inbox = std::mem::take(&mut server.inbox);
        let mut settled = false;
        let mut result = Ok(());
        // Neighboring messages that pass are copied as one piece.
        let (mut from, mut at) = (0, 0);
        loop {
            let bytes = &inbox.filled()[at..];
            if server.passing > 0 && !bytes.is_empty() {
                let count = server.passing.min(bytes.len());
                server.passing -= count;
                at += count;
                continue;
            }
            let header = match frame::header(bytes, FRAME_BYTES_MAX) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(bad) => {
                    result = Err(Hostile(bad.to_string()));
                    break;
                }
            };
            let streams = matches!(header.tag, b'D' | b'd') && self.rows_pass();
            if bytes.len() < header.total && streams {
                server.passing = header.total - bytes.len();
                at += bytes.len();
                break;
            }
            if header.total > WHOLE_BYTES_MAX && !streams {
                result =
                    Err(Hostile(format!("{:?} of {} bytes", char::from(header.tag), header.total)));
                break;
            }
            if bytes.len() < header.total {
                break;
            }
            let fate = if streams {
                Ok(Fate::Pass)
            } else {
                settled = true;
                self.judge(server, header.tag, &bytes[HEADER..header.total])
            };
            match fate {
                Ok(Fate::Pass) => {}
                Ok(other) => {
                    self.to_client.extend_from_slice(&inbox.filled()[from..at]);
                    from = at + header.total;
                    if let Fate::Say(words) = other {
                        self.to_client.extend_from_slice(&words);
                    }
                }
                Err(hostile) => {
                    result = Err(hostile);
                    break;
                }
            }
            at += header.total;
            // What the router says itself comes behind the answer that was before it.
            if matches!(self.expected.front(), Some(Expect::Local(_))) {
                self.to_client.extend_from_slice(&inbox.filled()[from..at]);
                from = at;
                self.say_local();
            }
        }
        self.to_client.extend_from_slice(&inbox.filled()[from..at]);
        inbox.consume(at);
        server.inbox = inbox;
        result.map(|()| settled)
    }

    /// Whether rows that come now are the client's.
    fn rows_pass(&self) -> bool {
        matches!(self.expected.front(), Some(Expect::Query | Expect::Execute))
    }

    /// Says what is the router's turn to say.
    pub(super) fn say_local(&mut self) {
        while let Some(Expect::Local(words)) = self.expected.front() {
            self.to_client.extend_from_slice(words);
            self.expected.pop_front();
        }
    }

    fn judge(&mut self, server: &mut Server, tag: u8, body: &[u8]) -> Result<Fate, Hostile> {
        match tag {
            // Not an answer to anything: notices, notifications, changed parameters.
            b'N' | b'A' | b'S' => return Ok(self.judge_aside(tag)),
            b'E' if refusal::field(body, b'V').is_some_and(|s| s == b"FATAL" || s == b"PANIC") => {
                // The connection ends behind it. The client is told in the router's words, and keeps its session.
                let words = refusal::field(body, b'M').unwrap_or_default();
                let words = String::from_utf8_lossy(words).chars().take(400).collect();
                self.last_words = Some((LOST, words));
                server.broken = true;
                return Ok(Fate::Drop);
            }
            _ => {}
        }
        let mut skipped = self.expected.iter().take_while(|expected| expected.is_skipped());
        if tag == b'E' && skipped.any(|expected| matches!(expected, Expect::Opening)) {
            // It skips what stands behind that too, so nothing ran outside of the transaction.
            self.hidden_failed(server, body);
            return Err(Hostile("that the transaction did not begin".to_owned()));
        }
        // The server is held by `deliver`, so it is the waiting BEGIN alone that tells a visit.
        let visiting = !self.deferred.is_empty();
        let Some(expected) = self.expected.front_mut() else {
            return Err(Hostile(format!("{:?} unasked", char::from(tag))));
        };
        let (answered, fate) = match (&mut *expected, tag) {
            (Expect::Query, b'Z') => {
                self.status = status(body)?;
                self.end_portals();
                self.copying_in = false;
                (true, if self.sequence.is_some() { Fate::Drop } else { Fate::Pass })
            }
            (Expect::Query, b'G') => {
                self.copying_in = true;
                (false, Fate::Pass)
            }
            (Expect::Query, b'W') | (Expect::Execute, b'W') => {
                return Err(Hostile("a start of replication".to_owned()));
            }
            (Expect::Query, b'E') => {
                self.fail_sequence();
                (false, self.error(body))
            }
            (Expect::Query, b'C') if self.sequence.is_some() => {
                self.say_complete(&tag_of(body));
                (false, Fate::Drop)
            }
            (Expect::Query, _) => (false, Fate::Pass),
            (Expect::HiddenQuery, b'E') | (Expect::HiddenBatch | Expect::ReadBack, b'E') => {
                return Ok(self.hidden_failed(server, body));
            }
            (Expect::Opening, b'C') => (true, Fate::Drop),
            (Expect::Opening, b'1' | b'2') => (false, Fate::Drop),
            (Expect::HiddenQuery | Expect::HiddenBatch, b'Z') => (true, Fate::Drop),
            (Expect::HiddenQuery | Expect::HiddenBatch, _) => (false, Fate::Drop),
            (Expect::ReadBack, b'Z') => {
                self.end_read_back(server);
                return Ok(Fate::Drop);
            }
            (Expect::ReadBack, b'D') => {
                self.take_read_back(body);
                (false, Fate::Drop)
            }
            (Expect::ReadBack, _) => (false, Fate::Drop),
            (Expect::DoomedQuery(words), b'E') => (false, Fate::Say(std::mem::take(words))),
            (Expect::DoomedQuery(_), b'Z') => {
                self.status = status(body)?;
                (true, if self.sequence.is_some() { Fate::Drop } else { Fate::Pass })
            }
            (Expect::DoomedParse(words), b'E') => {
                let words = std::mem::take(words);
                self.skip_to_sync(server);
                return Ok(Fate::Say(words));
            }
            (Expect::Sync, b'Z') if visiting => {
                // The server is outside of the transaction that the client is in.
                let mut ready = Vec::new();
                frame::put_ready(&mut ready, self.status);
                (true, Fate::Say(ready))
            }
            (Expect::Sync, b'Z') => {
                self.status = status(body)?;
                self.end_portals();
                (true, Fate::Pass)
            }
            (Expect::Turn, b'Z') => {
                self.status = status(body)?;
                (true, Fate::Drop)
            }
            (expected, b'E') if expected.is_skipped() => {
                self.skip_to_sync(server);
                return Ok(self.error(body));
            }
            (Expect::Parse(statement), b'1') => {
                statement.valid.set(true);
                (true, Fate::Pass)
            }
            (Expect::Bind, b'2') | (Expect::Close, b'3') => (true, Fate::Pass),
            (Expect::HiddenParse(_), b'1') | (Expect::HiddenClose, b'3') => (true, Fate::Drop),
            (Expect::Describe, b't') => (false, Fate::Pass),
            (Expect::Describe, b'T' | b'n') => (true, Fate::Pass),
            (Expect::Execute, b'C' | b'I' | b's') => {
                self.copying_in = false;
                (true, Fate::Pass)
            }
            (Expect::Execute, b'G') => {
                self.copy_begins();
                (false, Fate::Pass)
            }
            (Expect::Execute, b'H' | b'c' | b'D' | b'd') => (false, Fate::Pass),
            (other, tag) => {
                return Err(Hostile(format!("{:?} where {other:?} is due", char::from(tag))));
            }
        };
        if answered {
            self.expected.pop_front();
        }
        if tag == b'Z' {
            self.status_told();
        }
        Ok(fate)
    }

    /// Portals over several sources end with their transaction, as those at servers do.
    fn end_portals(&mut self) {
        if self.status == IDLE && !self.scatters.is_empty() {
            self.scatters.clear();
        }
    }

    /// An error of a server, which goes on as it came, unless the router itself made the server say it.
    fn error(&self, body: &[u8]) -> Fate {
        match self.as_victim(body) {
            None => Fate::Pass,
            Some(refusal) => {
                let mut words = Vec::new();
                refusal.put(&mut words);
                Fate::Say(words)
            }
        }
    }

    fn judge_aside(&self, tag: u8) -> Fate {
        let hidden = matches!(
            self.expected.front(),
            Some(
                Expect::HiddenQuery
                    | Expect::Opening
                    | Expect::HiddenBatch
                    | Expect::ReadBack
                    | Expect::DoomedQuery(_)
            )
        );
        // A warning about the router's own messages is no concern of the client's.
        if hidden && tag != b'A' { Fate::Drop } else { Fate::Pass }
    }

    /// The server has met an error in a batch and skips what is left of it.
    fn skip_to_sync(&mut self, server: &mut Server) {
        if !self.deferred.is_empty() {
            self.status = FAILED;
        }
        self.copying_in = false;
        while self.expected.front().is_some_and(Expect::is_skipped) {
            match self.expected.pop_front() {
                Some(Expect::Parse(statement)) => self.forget(server, &statement, true),
                Some(Expect::HiddenParse(statement)) => self.forget(server, &statement, false),
                _ => {}
            }
        }
        if matches!(self.expected.front(), None | Some(Expect::Turn)) {
            // The batch's Sync is still to come from the client.
            self.skipping = true;
        }
    }

    /// A statement that the server did not prepare after all. `defined`: the client meant to define it just now.
    fn forget(&mut self, server: &mut Server, statement: &Rc<Statement>, defined: bool) {
        server.known.remove(&statement.id);
        if server.unnamed == Some(statement.id) {
            server.unnamed = None;
        }
        if defined {
            self.statements.retain(|_, known| !Rc::ptr_eq(known, statement));
            self.unnamed.take_if(|unnamed| Rc::ptr_eq(unnamed, statement));
        }
    }

    /// Flush and Sync that were sent before a COPY began are ignored by the server.
    fn copy_begins(&mut self) {
        self.copying_in = true;
        let execute = self.expected.pop_front();
        while matches!(self.expected.front(), Some(Expect::Sync)) {
            self.expected.pop_front();
            (self.batch_open, self.batch_ran) = (true, true);
        }
        self.expected.extend(execute);
        let behind = self.expected.len() - 1;
        self.expected.rotate_left(behind);
    }

    /// A message of the router's own failed: the session's settings or its `BEGIN` could not be had. The server goes, and the client
    /// is told what it said.
    fn hidden_failed(&mut self, server: &mut Server, body: &[u8]) -> Fate {
        let words = refusal::field(body, b'M').unwrap_or_default();
        let words = format!(
            "the session's settings or its BEGIN: {}",
            String::from_utf8_lossy(words).chars().take(400).collect::<String>()
        );
        // Whoever canceled looks for this.
        let canceled = refusal::field(body, b'C') == Some(CANCELED.as_bytes());
        self.last_words = Some((if canceled { CANCELED } else { LOST }, words));
        server.broken = true;
        Fate::Drop
    }

    /// The server is gone. Every answer that the client waits for is an error; what was in a transaction is rolled back.
    pub(super) fn server_lost(&mut self, why: &str) {
        let Some(bound) = self.bound.take() else { return };
        self.ticket.points_nowhere();
        self.torn |= bound.server.passing > 0;
        bound.pool.lost();
        bound.pool.closed();
        let source = bound.pool.source.name().to_owned();
        let (sqlstate, why) = self.last_words.take().unwrap_or_else(|| (LOST, why.to_owned()));
        tracing::warn!(source, why, "a server connection was lost");
        let in_transaction = self.status != IDLE;
        let refusal = if in_transaction {
            let cause = format!(
                "source {source}: the server connection was lost: {why}. The transaction is rolled back"
            );
            Refusal::new(
                "HF3206",
                sqlstate,
                cause,
                "Roll back and begin it again; if COMMIT was under way, look whether it took effect",
            )
        } else {
            let cause = format!(
                "source {source}: the server connection was lost while a statement ran: {why}"
            );
            Refusal::new(
                "HF3207",
                "08007",
                cause,
                "Look whether it took effect before you repeat it",
            )
        };
        self.close_parked();
        self.wrote = false;
        self.opening.clear();
        self.pinned = None;
        self.touched.clear();
        self.changes = 0;
        self.read_back = None;
        self.copying_in = false;
        (self.batch_open, self.batch_ran) = (false, false);
        self.to_server.clear();
        self.to_server_done = 0;
        self.unsent.clear();
        // In a transaction the client must end it itself: what it sends next must not run outside of one.
        self.status = if in_transaction { FAILED } else { IDLE };
        self.fail_sequence();
        let (mut said, mut told) = (false, false);
        while let Some(expected) = self.expected.pop_front() {
            match expected {
                Expect::Local(words) if !said => self.to_client.extend_from_slice(&words),
                Expect::Query | Expect::DoomedQuery(_) | Expect::Sync => {
                    if !said {
                        refusal.put(&mut self.to_client);
                        told = true;
                    }
                    if self.sequence.is_none() {
                        frame::put_ready(&mut self.to_client, self.status);
                    }
                    said = false;
                }
                Expect::HiddenQuery
                | Expect::Opening
                | Expect::HiddenBatch
                | Expect::ReadBack
                | Expect::Turn
                | Expect::Local(_) => {}
                _ if said => {}
                _ => {
                    refusal.put(&mut self.to_client);
                    (said, told) = (true, true);
                }
            }
        }
        if said {
            self.skipping = true;
        } else if !told && in_transaction {
            // Answers to what came before may still be on their way.
            self.untold = Some(refusal);
        }
    }
}

fn status(body: &[u8]) -> Result<u8, Hostile> {
    match Body(body).byte() {
        Some(status @ (b'I' | b'T' | b'E')) => Ok(status),
        other => Err(Hostile(format!("ready with status {other:?}"))),
    }
}
