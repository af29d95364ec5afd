//! The client's messages in order, as far as they can be taken without waiting.

use std::io;

use holdfast_route::Access;

use super::{
    Bound, End, FAILED, IDLE, IN_TRANSACTION, Next, Scatter, Session, Span, ask::Question,
    expect::Expect,
};
use crate::{
    frame::{self, HEADER},
    refusal::Refusal,
};

/// What became of one message.
pub(super) enum Taken {
    /// It is done with.
    Done,
    /// It must wait until everything before it is answered.
    Later,
    /// It needs a server of this source.
    Server(usize),
    /// It needs this source at work in the transaction.
    Join(usize),
    /// It would touch slots that are on their way.
    Held,
    /// It must wait until what the session committed before is carried out.
    Settle,
    /// A statement about a transaction on several sources, taken.
    Span(Box<Span>),
    /// A question to others, taken; whether it came as a simple query.
    Ask(Question, bool),
    /// A simple query over several sources, taken.
    Scatter(Box<Scatter>),
    /// A portal over several sources, taken: its name, whether it is described, rows at most.
    Portal(Box<[u8]>, bool, u64),
    /// A simple query of several statements, taken, that are carried out one behind the other.
    Sequence(Vec<Box<str>>),
}

impl Session {
    /// Takes messages until one must wait. What is not taken stays in the inbox and is looked at again.
    pub(super) fn consume(&mut self) -> Result<Next, End> {
        if self.torn {
            return Err(End::Client(io::Error::other(
                "its server was lost in the middle of a row",
            )));
        }
        self.worker.follow_rules();
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut taken = 0;
        let next = loop {
            let bytes = &inbox.filled()[taken..];
            if self.ends_sequence(bytes) {
                break Ok(Next::SequenceEnds);
            }
            if self.passing > 0 && !bytes.is_empty() {
                let count = self.passing.min(bytes.len());
                self.passing -= count;
                taken += count;
                self.pass_on(&bytes[..count]);
                continue;
            }
            if self.to_server.len() > WRITE_AT {
                self.held_back = true;
                break Ok(Next::Traffic);
            }
            let header = match frame::header(bytes, self.frame_bytes_max(bytes.first())) {
                Ok(Some(header)) => header,
                Ok(None) => break Ok(Next::Traffic),
                Err(bad) => break Err(End::Refused(too_large(&bad.to_string()))),
            };
            if matches!(header.tag, b'd' | b'c' | b'f')
                && !self.copying_in
                && !self.expected.is_empty()
            {
                // The statement before it may turn out to be the COPY that they belong to.
                break Ok(Next::Traffic);
            }
            if header.tag == b'd' {
                // Rows of a COPY go on as they come; one may be larger than any message.
                let count = header.total.min(bytes.len());
                self.passing = header.total - count;
                self.pass_on(&bytes[..count]);
                taken += count;
                continue;
            }
            if bytes.len() < header.total {
                break Ok(Next::Traffic);
            }
            let message = &bytes[..header.total];
            if self.to_server.is_empty() {
                self.worker.shelf.borrow_mut().lend_writes(&mut self.to_server);
            }
            let taking = self.take_message(header.tag, message);
            if self.held.is_some() && !matches!(taking, Ok(Taken::Held)) {
                self.held = None;
                self.ticket.waits_no_more();
            }
            match taking {
                Ok(Taken::Done) => taken += header.total,
                Ok(Taken::Scatter(scatter)) => {
                    taken += header.total;
                    break Ok(Next::Scatter(scatter));
                }
                Ok(Taken::Portal(name, describe, rows_max)) => {
                    taken += header.total;
                    break Ok(Next::Portal(name, describe, rows_max));
                }
                Ok(Taken::Span(span)) => {
                    taken += header.total;
                    break Ok(Next::Span(span));
                }
                Ok(Taken::Ask(question, simple)) => {
                    taken += header.total;
                    break Ok(Next::Ask(question, simple));
                }
                Ok(Taken::Sequence(statements)) => {
                    taken += header.total;
                    break Ok(Next::Sequence(statements));
                }
                Ok(Taken::Join(source)) => break Ok(Next::Join(source)),
                Ok(Taken::Held) => break Ok(Next::Held),
                Ok(Taken::Settle) => break Ok(Next::Settle),
                Ok(Taken::Later) => break Ok(Next::Traffic),
                Ok(Taken::Server(source)) => break Ok(Next::Server(source)),
                Err(end) => break Err(end),
            }
        };
        inbox.consume(taken);
        self.inbox = inbox;
        // A server that was reached and had nothing to do is not kept.
        if self.bound.is_some() && matches!(next, Ok(Next::Traffic | Next::Held)) {
            self.release_if_settled();
        }
        // What waits, and what is answered, is not under way; what waits for a server is planned anew when it has one.
        if matches!(next, Ok(Next::Traffic | Next::Held | Next::Server(_) | Next::Settle))
            && self.is_free()
        {
            self.planned = None;
        }
        let mut shelf = self.worker.shelf.borrow_mut();
        shelf.take_back(&mut self.inbox);
        next
    }

    /// Bytes that a message of this kind may announce. COPY data streams, so only PostgreSQL bounds it.
    fn frame_bytes_max(&self, tag: Option<&u8>) -> usize {
        match tag {
            Some(b'd') => 1 << 30,
            Some(b'Q' | b'P' | b'B') => self.worker.limits().message_bytes_max,
            // Names and nothing else.
            _ => 64 * 1024,
        }
    }

    fn take_message(&mut self, tag: u8, message: &[u8]) -> Result<Taken, End> {
        let body = &message[HEADER..];
        match tag {
            b'Q' => return self.query(message),
            b'S' => return Ok(self.sync()),
            b'X' => return Err(End::Goodbye),
            b'c' | b'f' => {
                // A late one, behind an error that ended the COPY, is ignored as PostgreSQL does.
                if self.copying_in {
                    self.copying_in = false;
                    self.to_server.extend_from_slice(message);
                }
            }
            _ if self.skipping => {}
            b'P' => return self.parse(body),
            b'B' => return self.bind(message),
            b'D' => return self.describe(body),
            b'E' => return self.execute(message),
            b'C' => return self.close(body),
            b'H' => return Ok(self.flush()),
            b'F' => {
                let cause = "the function call message is not routed";
                let refusal = Refusal::new("HF3211", "0A000", cause, "Call the function by SELECT");
                return Err(End::Refused(refusal));
            }
            other => {
                let cause = format!("a message {:?} is none of a client's", char::from(other));
                return Err(End::Refused(Refusal::new(
                    "HF3209",
                    "08P01",
                    cause,
                    "Mend the driver",
                )));
            }
        }
        Ok(Taken::Done)
    }

    /// COPY data goes to the server, or nowhere if the COPY has ended with an error.
    fn pass_on(&mut self, bytes: &[u8]) {
        if self.copying_in {
            self.to_server.extend_from_slice(bytes);
        }
    }

    /// Makes sure that a server of `source` (`None`: any) is in use, and that the transaction has begun there.
    pub(super) fn reach(
        &mut self,
        source: Option<usize>,
        access: Access,
    ) -> Result<Option<Taken>, Refusal> {
        if let (Some(bound), Some(other)) = (&self.bound, source)
            && bound.source != other
            && self.pinned.is_none()
            && self.is_free()
            && !self.is_visiting()
        {
            // It was had for what is planned otherwise by now, and has done nothing.
            self.release();
        }
        if let (Some(bound), Some(other)) = (&self.bound, source)
            && bound.source != other
        {
            if self.is_visiting() && self.batch_open {
                // It was asked for a description only; an end of its own sets it free.
                frame::put_bare(&mut self.to_server, b'S');
                self.expected.push_back(Expect::HiddenBatch);
                (self.batch_open, self.batch_ran) = (false, false);
            } else {
                self.end_turn();
            }
            if !self.expected.is_empty() && !self.batch_open {
                // The transaction may be over, or the visit, by the time that everything is answered.
                return Ok(Some(Taken::Later));
            }
            if self.status == FAILED {
                return Err(self.aborted());
            }
            let from = self.bound.as_ref().map_or(other, |bound| bound.source);
            let join = self.second_source(from, other)?;
            if access != Access::Read {
                self.may_write(other)?;
            }
            return Ok(Some(join));
        }
        let wait = self.visit(source)?;
        if wait.is_none() {
            self.begin_deferred();
            if access != Access::Read {
                let here = self.bound.as_ref().map(|bound| bound.source);
                if self.global.is_some()
                    && let Some(here) = here
                {
                    self.may_write(here)?;
                }
                self.wrote = true;
            }
        }
        Ok(wait)
    }

    /// Has a server in the midst of a batch answer, so that another source can be put to work: in a transaction, or where nothing was done yet.
    pub(super) fn end_turn(&mut self) {
        let harmless = self.status == IDLE && !self.batch_ran;
        if self.batch_open && (self.status == IN_TRANSACTION || harmless) && !self.is_visiting() {
            frame::put_bare(&mut self.to_server, b'S');
            self.expected.push_back(Expect::Turn);
            (self.batch_open, self.batch_ran) = (false, false);
        }
    }

    /// Makes sure that some server is in use, of `source` if none is yet; a transaction that waits for its server goes on waiting.
    pub(super) fn visit(&mut self, source: Option<usize>) -> Result<Option<Taken>, Refusal> {
        if self.bound.is_some() {
            return Ok(None);
        }
        if self.status == FAILED {
            // A server's own status would hide that this transaction has failed.
            return Err(self.aborted());
        }
        let source = source.unwrap_or(crate::worker::HOME);
        let pool = self.pool_to_use(source);
        match pool.take_idle() {
            Some(server) => {
                self.attach(Bound { server, pool, source, tagged: false });
                Ok(None)
            }
            None => Ok(Some(Taken::Server(source))),
        }
    }

    /// Says something in its turn.
    pub(super) fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.expected.is_empty() {
            self.worker.shelf.borrow_mut().lend_writes(&mut self.to_client);
            write(&mut self.to_client);
        } else {
            let mut words = Vec::new();
            write(&mut words);
            self.expected.push_back(Expect::Local(words));
        }
    }

    /// Refuses the message that waits at the front of the inbox: what it needed could not be had.
    pub(super) fn refuse_current(&mut self, refusal: &Refusal) -> Result<(), End> {
        let header = frame::header(self.inbox.filled(), usize::MAX >> 1);
        let header = header.ok().flatten().expect("a message waits for a server");
        self.inbox.consume(header.total);
        if header.tag == b'Q' {
            self.refuse_query(refusal);
        } else {
            self.unsent.clear();
            self.refuse_batch(refusal);
            if header.tag == b'S' {
                self.sync();
            }
        }
        Ok(())
    }

    /// Refuses a simple query: an error, and ready again.
    pub(super) fn refuse_query(&mut self, refusal: &Refusal) {
        crate::counts::Counts::refused(refusal.code);
        self.fail_sequence();
        if self.bound.is_some() && self.status != IDLE {
            // The server itself must know that the transaction has failed, so that its savepoints and its end mean the same.
            frame::put_query(&mut self.to_server, DOOMED);
            let mut words = Vec::new();
            refusal.put(&mut words);
            self.expected.push_back(Expect::DoomedQuery(words));
            return;
        }
        if self.status != IDLE {
            self.status = FAILED;
        }
        self.say(|out| refusal.put(out));
        self.say_ready();
    }

    /// Refuses a message of the extended protocol: an error, and nothing more until `Sync`.
    pub(super) fn refuse_batch(&mut self, refusal: &Refusal) {
        crate::counts::Counts::refused(refusal.code);
        self.skipping = true;
        let mut words = Vec::new();
        refusal.put(&mut words);
        match &mut self.bound {
            Some(bound) if self.status != IDLE || self.batch_open => {
                bound.server.unnamed = None;
                frame::put(&mut self.to_server, b'P', |out| {
                    out.push(0);
                    frame::put_text(out, DOOMED);
                    out.extend_from_slice(&[0, 0]);
                });
                self.batch_open = true;
                self.expected.push_back(Expect::DoomedParse(words));
            }
            _ => {
                if self.status != IDLE {
                    self.status = FAILED;
                }
                self.say(|out| out.extend_from_slice(&words));
            }
        }
    }
}

/// Bytes for the server beyond which they are written before more messages are taken.
const WRITE_AT: usize = 64 * 1024;
/// No SQL: a server that is sent this fails, and its log says why.
const DOOMED: &[u8] = b"holdfast refused the statement that stood here";

fn too_large(cause: &str) -> Refusal {
    Refusal::new("HF3208", "54000", cause, "Send less at once, or raise limits.message_bytes_max")
}
