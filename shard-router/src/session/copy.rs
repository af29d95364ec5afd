//! COPY over several sources, on the servers of one transaction or, where it only reads, on some of the pools. Rows of a query that are merged
//! come as those of the query itself, and are written here.
//!
//! Rows of the client go on as they come: the mind says of each which server it is for. No more is held of the stream than the row under way and
//! what the slowest server has not taken yet; a client that is faster waits. Servers are listened to all the while, since one that fails
//! says so at once, and one that has much to say would otherwise stop taking.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::future::join_all;
use holdfast_route::{Copy, CopyIn, CopyOut, CopyRow, Divider, Tag, merge::Fields};

use super::{
    End, Session, Stopped,
    global::within,
    scatter::{Part, Scatter, WRITE_AT, lost, part_ends},
    scatter_within::{How, sum},
    traffic::{BACKLOG_MAX, poll_writes},
};
use crate::{
    backend::literal,
    frame::{self, HEADER},
    refusal::{self, Refusal},
};

/// Bytes that a message of COPY data may announce, as PostgreSQL has it. They stream.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// Bytes of any other message of a client meanwhile.
const OTHER_BYTES_MAX: usize = 64 * 1024;
/// Bytes of rows in one message to a server.
const PIECE_BYTES: usize = 64 * 1024;
/// The first server for which a line `\.` ends no CSV any more.
const CSV_GOES_ON_SINCE: u32 = 180_000;
/// What a server is told whose COPY ends with that of another one.
const FAILED: &[u8] = b"f\0\0\0\x31holdfast ends the COPY that failed elsewhere\0";

/// What waits for one server.
#[derive(Debug, Default)]
struct Outgoing {
    rows: Vec<u8>,
    frames: Vec<u8>,
    written: usize,
}

impl Outgoing {
    /// Makes messages of the rows; where one ends need not be where a row does.
    fn seal(&mut self) {
        for piece in self.rows.chunks(PIECE_BYTES) {
            frame::put(&mut self.frames, b'd', |out| out.extend_from_slice(piece));
        }
        self.rows.clear();
        self.rows.shrink_to(PIECE_BYTES);
    }

    fn waiting(&self) -> usize {
        self.frames.len() - self.written
    }
}

/// What the client has said of its rows so far.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// More is to come.
    More,
    Done,
    /// It gives up; in its words.
    Fail(Vec<u8>),
}

impl Session {
    /// Runs a COPY on these servers, from its text to the end of their answers. The tag of the whole.
    pub(super) async fn run_copy(
        &mut self,
        scatter: &Scatter,
        copy: &Copy,
        parts: &mut [Part],
    ) -> Result<String, Stopped> {
        match copy {
            Copy::Out { header } => self.copy_out(scatter, *header, parts).await,
            Copy::Written(_) => {
                let how = How { execute: true, described: true, rows_max: 0 };
                self.run_parts(scatter, parts, &how).await
            }
            Copy::In(copy) => {
                let copied = self.copy_in(scatter, copy, parts).await;
                if copied.is_err() {
                    self.end_copies(parts).await;
                }
                copied
            }
        }
    }

    /// A COPY that only reads, outside of a transaction.
    pub(super) async fn copy_alone(
        &mut self,
        scatter: &Scatter,
        copy: &Copy,
    ) -> Result<(), Stopped> {
        let mut parts = self.take_parts(scatter).await?;
        let tag = self.run_copy(scatter, copy, &mut parts).await?;
        self.say_complete(&tag);
        Ok(())
    }

    // === To the client ===

    async fn copy_out(
        &mut self,
        scatter: &Scatter,
        header: bool,
        parts: &mut [Part],
    ) -> Result<String, Stopped> {
        self.worker.shared().counts.scattered.increment(1);
        let answer = begin(scatter, parts, b'H').await?;
        self.say(|out| frame::put(out, b'H', |out| out.extend_from_slice(&answer)));
        for (at, part) in parts.iter_mut().enumerate() {
            // A server sends each row, and the line of names, in a message of its own.
            let mut hidden = header && at > 0;
            while !part.ended {
                match part.message().await? {
                    (b'd', _) if std::mem::take(&mut hidden) => {}
                    (b'd', row) => {
                        self.say(|out| frame::put(out, b'd', |out| out.extend_from_slice(&row)));
                        if self.to_client.len() > WRITE_AT {
                            self.flush_client().await.map_err(Stopped::End)?;
                        }
                    }
                    (b'c', _) => {}
                    (b'C', body) => part.tag = crate::backend::tag_of(&body),
                    (b'Z', _) => part.ended = true,
                    (tag, _) => return Err(part.nonsense(tag)),
                }
            }
        }
        self.say(|out| frame::put_bare(out, b'c'));
        let tags: Vec<&str> = parts.iter().map(|part| part.tag.as_str()).collect();
        Ok(sum(&tags, 0))
    }

    /// Says that lines follow, and the first of them if it is one of names.
    pub(super) fn begin_written(&mut self, written: &CopyOut, fields: &Fields) {
        let count = u16::try_from(fields.0.len()).expect("a row has at most 1,664 columns");
        self.say(|out| {
            frame::put(out, b'H', |out| {
                // Text, as a whole and in each column.
                out.push(0);
                out.extend_from_slice(&count.to_be_bytes());
                out.resize(out.len() + 2 * usize::from(count), 0);
            });
            if let Some(names) = written.header(fields) {
                frame::put(out, b'd', |out| out.extend_from_slice(&names));
            }
        });
    }

    /// Whether no sign in the client's encoding holds a byte that means something in a line of COPY.
    pub(super) async fn reads_plainly(&self, part: &mut Part) -> Result<(), Stopped> {
        let limit = self.worker.limits().commit_timeout;
        let ask = ["SELECT pg_catalog.current_setting('client_encoding')"];
        let server = part.server.as_mut().expect("it was just put there");
        let told = within(limit, server, &ask).await;
        part.ended = !server.broken;
        let reply = told.map_err(|why| lost(&part.pool, &io::Error::other(why)))?;
        if let Some(error) = reply.error {
            return Err(Stopped::told(&error));
        }
        let encoding = reply.rows.into_iter().flatten().next().flatten().unwrap_or_default();
        in_utf8(
            "COPY of rows that are merged of several sources, to a client that reads",
            &encoding,
        )
    }

    // === From the client ===

    async fn copy_in(
        &mut self,
        scatter: &Scatter,
        copy: &Arc<CopyIn>,
        parts: &mut [Part],
    ) -> Result<String, Stopped> {
        self.worker.shared().counts.scattered.increment(1);
        let mut divider = self.divider(copy, parts).await?;
        let answer = begin(scatter, parts, b'G').await?;
        self.say(|out| frame::put(out, b'G', |out| out.extend_from_slice(&answer)));
        self.flush_client().await.map_err(Stopped::End)?;
        let mut outgoing: Vec<Outgoing> = parts.iter().map(|_| Outgoing::default()).collect();
        loop {
            match self.take_rows(&mut divider, &mut outgoing)? {
                Said::More => {}
                Said::Done => break,
                Said::Fail(words) => {
                    for out in &mut outgoing {
                        frame::put(&mut out.frames, b'f', |out| frame::put_text(out, &words));
                    }
                    poll_fn(|context| poll_outgoing(parts, &mut outgoing, context)).await?;
                    // The first one says it as PostgreSQL does.
                    let told = parts[0].message().await;
                    return Err(told.err().unwrap_or_else(|| parts[0].nonsense(b'C')));
                }
            }
            outgoing.iter_mut().for_each(Outgoing::seal);
            let read = poll_fn(|context| {
                if let Poll::Ready(Err(stopped)) = poll_outgoing(parts, &mut outgoing, context) {
                    return Poll::Ready(Err(stopped));
                }
                if outgoing.iter().map(Outgoing::waiting).sum::<usize>() > BACKLOG_MAX {
                    return Poll::Pending;
                }
                let read = ready!(self.poll_client_reads(context));
                Poll::Ready(read.map_err(|error| Stopped::End(End::Client(error))))
            });
            if read.await? == 0 {
                return Err(Stopped::End(End::Goodbye));
            }
        }
        divider.finish(&mut |row| keep(&mut outgoing, row))?;
        for out in &mut outgoing {
            out.seal();
            frame::put_bare(&mut out.frames, b'c');
        }
        poll_fn(|context| poll_outgoing(parts, &mut outgoing, context)).await?;
        for part in parts.iter_mut() {
            part.hear_out().await.map_err(|stopped| located(stopped, part.pool.source.name()))?;
        }
        let tags: Vec<&str> = parts.iter().map(|part| part.tag.as_str()).collect();
        let same = scatter.plan.tag == Tag::Same;
        match same && tags.windows(2).any(|pair| pair[0] != pair[1]) {
            false if same => Ok(tags[0].to_owned()),
            false => Ok(sum(&tags, 0)),
            true => {
                let cause = format!("the copies of a reference table differ: {}", tags.join(", "));
                let remedy = "Make them equal; nothing was changed";
                Err(Refusal::new("HF3113", "XX001", cause, remedy).into())
            }
        }
    }

    /// Asks the servers what must be known before a row can be divided.
    async fn divider(&self, copy: &Arc<CopyIn>, parts: &mut [Part]) -> Result<Divider, Stopped> {
        let limit = self.worker.limits().commit_timeout;
        let mut ask = vec![
            "SELECT pg_catalog.current_setting('client_encoding'), pg_catalog.current_setting('server_version_num')"
                .to_owned(),
        ];
        let unnamed = copy.by_key() && copy.named().is_none();
        if unnamed {
            ask.push(format!(
                "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = {}::pg_catalog.regclass \
                 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                literal(copy.table())
            ));
        }
        let asked = parts.iter_mut().map(async |part| {
            let server = part.server.as_mut().expect("it was just put there");
            let told = within(limit, server, &ask).await;
            part.ended = !server.broken;
            told.map_err(|why| lost(&part.pool, &io::Error::other(why)))
        });
        let mut known: Option<Vec<Vec<Option<String>>>> = None;
        for told in join_all(asked).await {
            let reply = told?;
            if let Some(error) = reply.error {
                return Err(Stopped::told(&error));
            }
            match &known {
                Some(known) if *known != reply.rows => {
                    let cause = format!(
                        "the sources disagree about the columns of {}, the client's encoding, or their own version",
                        copy.table()
                    );
                    let remedy = "Name the columns in the COPY, or make the sources alike";
                    return Err(Refusal::new("HF3113", "0A000", cause, remedy).into());
                }
                _ => known = Some(reply.rows),
            }
        }
        let mut rows = known.unwrap_or_default().into_iter();
        let mut settings = rows.next().unwrap_or_default().into_iter().flatten();
        let encoding = settings.next().unwrap_or_default();
        in_utf8("COPY into several sources from a client that writes", &encoding)?;
        let version = settings.next().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
        let columns: Vec<String> = match copy.named() {
            Some(named) => named.to_vec(),
            None => rows.filter_map(|row| row.into_iter().next()?).collect(),
        };
        let max = self.worker.limits().message_bytes_max;
        Ok(copy.divider(&columns, max, version < CSV_GOES_ON_SINCE)?)
    }

    /// Takes what has come of the client's rows, and no more of it than may wait.
    fn take_rows(
        &mut self,
        divider: &mut Divider,
        outgoing: &mut [Outgoing],
    ) -> Result<Said, Stopped> {
        loop {
            if self.passing > 0 {
                let count = self.passing.min(self.inbox.len());
                if count == 0 {
                    return Ok(Said::More);
                }
                self.passing -= count;
                let rows = &self.inbox.filled()[..count];
                let divided = divider.push(rows, &mut |row| keep(outgoing, row));
                self.inbox.consume(count);
                divided?;
            }
            let bytes = self.inbox.filled();
            let max = match bytes.first() {
                Some(b'd') => FRAME_BYTES_MAX,
                _ => OTHER_BYTES_MAX,
            };
            let header = frame::header(bytes, max).map_err(|bad| {
                let refusal = Refusal::new("HF3208", "54000", bad.to_string(), "Send less at once");
                Stopped::End(End::Refused(refusal))
            })?;
            let Some(header) = header else { return Ok(Said::More) };
            if header.tag == b'd' {
                self.passing = header.total - HEADER;
                self.inbox.consume(HEADER);
                continue;
            }
            if bytes.len() < header.total {
                return Ok(Said::More);
            }
            let words = frame::Body(&bytes[HEADER..header.total]).text().map(<[u8]>::to_vec);
            self.inbox.consume(header.total);
            match header.tag {
                // As PostgreSQL does: the ones behind the rows count.
                b'H' | b'S' => {}
                b'c' => return Ok(Said::Done),
                b'f' => return Ok(Said::Fail(words.unwrap_or_default())),
                b'X' => return Err(Stopped::End(End::Goodbye)),
                other => {
                    let cause = format!("a message {:?} among rows of COPY", char::from(other));
                    let remedy = "End the rows first, by CopyDone or CopyFail";
                    return Err(Refusal::new("HF3209", "08P01", cause, remedy).into());
                }
            }
        }
    }

    /// Servers that still wait for rows are told that none will come.
    async fn end_copies(&self, parts: &mut [Part]) {
        let limit = self.worker.limits().commit_timeout;
        let told = parts.iter_mut().filter(|part| !part.ended).map(async |part| {
            let Some(server) = &mut part.server else { return };
            let told = tokio::time::timeout(limit, server.wire.write_all(FAILED)).await;
            server.broken |= !matches!(told, Ok(Ok(())));
        });
        join_all(told).await;
    }
}

/// Rows are divided and written by their bytes.
fn in_utf8(what: &str, encoding: &str) -> Result<(), Stopped> {
    if ["UTF8", "SQL_ASCII"].contains(&encoding) {
        return Ok(());
    }
    let remedy = "SET client_encoding TO 'UTF8'";
    Err(Refusal::new("HF3211", "0A000", format!("{what} {encoding}"), remedy).into())
}

fn keep(outgoing: &mut [Outgoing], row: CopyRow<'_>) {
    match row.part {
        Some(part) => outgoing[part].rows.extend_from_slice(row.bytes),
        None => outgoing.iter_mut().for_each(|out| out.rows.extend_from_slice(row.bytes)),
    }
}

/// Has each server begin, and hears how it answers: what all of them say.
async fn begin(scatter: &Scatter, parts: &mut [Part], tag: u8) -> Result<Vec<u8>, Stopped> {
    let mut query = Vec::new();
    frame::put_query(&mut query, scatter.sql.as_bytes());
    for part in parts.iter_mut() {
        part.ended = false;
        let server = part.server.as_mut().expect("it was just put there");
        server.unnamed = None;
        server.wire.write_all(&query).await.map_err(|error| lost(&part.pool, &error))?;
    }
    let mut answer: Option<Vec<u8>> = None;
    for part in parts.iter_mut() {
        let body = match part.message().await? {
            (said, body) if said == tag => body,
            (said, _) => return Err(part.nonsense(said)),
        };
        if answer.as_ref().is_some_and(|known| *known != body) {
            let cause = "the sources disagree about the columns of a COPY";
            let remedy = "Make the table alike on every source";
            return Err(Refusal::new("HF3113", "0A000", cause, remedy).into());
        }
        answer = Some(body);
    }
    Ok(answer.expect("a plan over several sources has parts"))
}

/// Writes what waits for each server, and hears those that say something. Ready when all is written.
fn poll_outgoing(
    parts: &mut [Part],
    outgoing: &mut [Outgoing],
    context: &mut Context<'_>,
) -> Poll<Result<(), Stopped>> {
    let mut all = true;
    for (part, out) in parts.iter_mut().zip(outgoing) {
        let server = part.server.as_mut().expect("it is kept until the end");
        match poll_writes(&mut server.wire, &mut out.frames, &mut out.written, context) {
            Poll::Ready(Ok(())) => out.frames.shrink_to(BACKLOG_MAX),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(&part.pool, &error).into())),
            Poll::Pending => all = false,
        }
        if let Poll::Ready(stopped) = poll_word(part, context) {
            return Poll::Ready(Err(located(stopped, part.pool.source.name())));
        }
    }
    if all { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// Hears a server that takes rows: nothing that it says matters but that it stops.
fn poll_word(part: &mut Part, context: &mut Context<'_>) -> Poll<Stopped> {
    let server = part.server.as_mut().expect("it is kept until the end");
    let (wire, inbox) = (&mut server.wire, &mut server.inbox);
    loop {
        let header = match frame::header(inbox.filled(), 1 << 20) {
            Ok(header) => header,
            Err(bad) => return Poll::Ready(lost(&part.pool, &io::Error::other(bad)).into()),
        };
        if let Some(header) = header
            && inbox.len() >= header.total
        {
            let stopped = match header.tag {
                b'N' | b'A' | b'S' => None,
                b'E' => Some(part_ends(&part.pool, &inbox.filled()[HEADER..header.total])),
                tag => Some(part.nonsense(tag)),
            };
            let server = part.server.as_mut().expect("it was just there");
            server.inbox.consume(header.total);
            match stopped {
                Some(stopped) => return Poll::Ready(stopped),
                None => return poll_word(part, context),
            }
        }
        let error = match ready!(wire.poll_read(context, inbox.room())) {
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            Ok(count) => {
                inbox.filled_more(count);
                continue;
            }
            Err(error) => error,
        };
        return Poll::Ready(lost(&part.pool, &error).into());
    }
}

/// An error of a server that has only some of the rows: the line that it names is one of those.
fn located(stopped: Stopped, source: &str) -> Stopped {
    let Stopped::Told(error) = stopped else { return stopped };
    let body = &error[HEADER..];
    if refusal::field(body, b'W').is_none() {
        return Stopped::Told(error);
    }
    let mut located = Vec::new();
    for field in body.split(|byte| *byte == 0).filter(|field| !field.is_empty()) {
        located.extend_from_slice(field);
        if field[0] == b'W' {
            located.extend_from_slice(b" (of the rows for source ");
            located.extend_from_slice(source.as_bytes());
            located.push(b')');
        }
        located.push(0);
    }
    located.push(0);
    Stopped::told(&located)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_told_to_end_is_told_a_whole_message() {
        let header = frame::header(FAILED, 1 << 10).expect("a length").expect("whole");
        assert_eq!((header.tag, header.total), (b'f', FAILED.len()));
    }

    #[test]
    fn rows_become_messages_of_bounded_length() {
        let mut out = Outgoing { rows: vec![b'x'; PIECE_BYTES + 1], ..Outgoing::default() };
        out.seal();
        assert_eq!(out.waiting(), PIECE_BYTES + 1 + 2 * HEADER);
        assert!(out.rows.is_empty());
        let header = frame::header(&out.frames, PIECE_BYTES + 4).expect("at the bound");
        assert_eq!(header.map(|header| header.total), Some(PIECE_BYTES + HEADER));
    }

    #[test]
    fn the_line_of_an_error_is_one_of_its_source() {
        let body = b"SERROR\0C22P02\0Mbad\0WCOPY t, line 2\0\0";
        let Stopped::Told(error) = located(Stopped::told(body), "pg-2") else { panic!("an error") };
        let context = refusal::field(&error[HEADER..], b'W').expect("it is there");
        assert_eq!(context, b"COPY t, line 2 (of the rows for source pg-2)");
        assert_eq!(refusal::field(&error[HEADER..], b'C'), Some(&b"22P02"[..]));
    }
}
