//! Words of the router's own on a quiet server: simple queries and calls, answered as a whole, with every answer bounded.

use std::{future::poll_fn, io};

use super::Server;
use crate::{
    frame::{self, Body, HEADER},
    refusal,
};

/// Bytes of one message.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Bytes of one message of an answer to the router's own words.
const OWN_BYTES_MAX: usize = 1 << 20;
/// Rows of such an answer; more are dropped.
const ROWS_MAX: usize = 10_000;

/// A row of texts; `None` is NULL.
pub(crate) type Row = Vec<Option<String>>;

/// What a server answered to one or more simple queries and calls.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// The rows of all of them; the answer of a call is a row of one.
    pub(crate) rows: Vec<Row>,
    /// The last command tag.
    pub(crate) tag: String,
    /// The body of the first error.
    pub(crate) error: Option<Vec<u8>>,
    /// Where the last `ReadyForQuery` left the transaction.
    pub(crate) status: u8,
}

impl Reply {
    /// The SQLSTATE of the error, if there was one.
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        let code = refusal::field(self.error.as_deref()?, b'C')?;
        std::str::from_utf8(code).ok()
    }

    /// The words of the error, for people.
    pub(crate) fn words(&self) -> String {
        let words = self.error.as_deref().and_then(|body| refusal::field(body, b'M'));
        String::from_utf8_lossy(words.unwrap_or_default()).chars().take(400).collect()
    }
}

impl Server {
    /// The next message, whole.
    /// # Errors
    /// The connection is gone, or what it says is no message.
    pub(crate) async fn next_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let (wire, inbox) = (&mut self.wire, &mut self.inbox);
        loop {
            let header = frame::header(inbox.filled(), FRAME_BYTES_MAX)
                .map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad.to_string()))?;
            if let Some(header) = header
                && inbox.len() >= header.total
            {
                let body = inbox.filled()[HEADER..header.total].to_vec();
                inbox.consume(header.total);
                return Ok((header.tag, body));
            }
            let count = poll_fn(|context| wire.poll_read(context, inbox.room())).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            inbox.filled_more(count);
        }
    }

    /// Sends these simple queries at once and hears all answers. A server whose answer did not come to its end is broken.
    /// # Errors
    /// The connection is gone. An error of SQL is in the reply.
    pub(crate) async fn run<Q: AsRef<str>>(&mut self, queries: &[Q]) -> io::Result<Reply> {
        self.tell(&messages(queries), queries.len()).await
    }

    /// The same with `count` messages that are written already, queries and calls.
    /// # Errors
    /// The connection is gone. An error of SQL is in the reply.
    pub(crate) async fn tell(&mut self, messages: &[u8], count: usize) -> io::Result<Reply> {
        let whole = !self.broken;
        // Should the caller stop waiting, what is still to come belongs to nobody.
        self.broken = true;
        let reply = self.converse(messages, count).await?;
        self.broken = !whole;
        Ok(reply)
    }

    async fn converse(&mut self, messages: &[u8], count: usize) -> io::Result<Reply> {
        self.unnamed = None;
        self.wire.write_all(messages).await?;
        let mut reply = Reply::default();
        let mut left = count;
        while left > 0 {
            let (tag, body) = self.next_frame().await?;
            if body.len() > OWN_BYTES_MAX {
                return Err(io::Error::other(format!("an answer of {} bytes", body.len())));
            }
            match tag {
                b'D' if reply.rows.len() < ROWS_MAX => reply.rows.push(texts(&body)?),
                b'V' if reply.rows.len() < ROWS_MAX => reply.rows.push(vec![value(&body)?]),
                b'C' => reply.tag = tag_of(&body),
                b'E' if reply.error.is_none() => {
                    let severity = refusal::field(&body, b'V').unwrap_or_default();
                    if matches!(severity, b"FATAL" | b"PANIC") {
                        let words = refusal::field(&body, b'M').unwrap_or_default();
                        return Err(io::Error::other(String::from_utf8_lossy(words).into_owned()));
                    }
                    reply.error = Some(body);
                }
                b'Z' => {
                    reply.status = body.first().copied().unwrap_or(b'I');
                    left -= 1;
                }
                _ => {}
            }
        }
        Ok(reply)
    }
}

/// These simple queries as messages.
pub(crate) fn messages<Q: AsRef<str>>(queries: &[Q]) -> Vec<u8> {
    let mut out = Vec::new();
    for query in queries {
        frame::put_query(&mut out, query.as_ref().as_bytes());
    }
    out
}

/// A command tag.
pub(crate) fn tag_of(body: &[u8]) -> String {
    let text = Body(body).text().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn texts(body: &[u8]) -> io::Result<Row> {
    let mut body = Body(body);
    let mut read = || {
        let count = usize::from(body.int16()?.cast_unsigned());
        let mut row = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            row.push(text(&mut body)?);
        }
        Some(row)
    };
    read().ok_or_else(ends_early)
}

/// What a call has answered.
fn value(body: &[u8]) -> io::Result<Option<String>> {
    text(&mut Body(body)).ok_or_else(ends_early)
}

#[expect(clippy::option_option, reason = "the message ends early, NULL, or a text")]
fn text(body: &mut Body<'_>) -> Option<Option<String>> {
    Some(match usize::try_from(body.int32()?) {
        Ok(length) => Some(String::from_utf8_lossy(body.bytes(length)?).into_owned()),
        Err(_) => None,
    })
}

fn ends_early() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a row that ends early")
}

/// `text` as a literal of SQL. Backslashes are written so that they mean themselves whatever the server's settings are.
pub(crate) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match doubled.contains('\\') {
        true => format!(" E'{}'", doubled.replace('\\', "\\\\")),
        false => format!("'{doubled}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_texts_and_a_short_one_is_an_error() {
        let mut out = Vec::new();
        frame::put_row(&mut out, &[Some("a"), None]);
        assert_eq!(texts(&out[HEADER..]).expect("whole"), [Some("a".to_owned()), None]);
        assert!(texts(&out[HEADER..out.len() - 2]).is_err());
        assert_eq!(value(b"\0\0\0\x02ab").expect("whole"), Some("ab".to_owned()));
        assert_eq!(value(b"\xff\xff\xff\xff").expect("whole"), None);
        assert!(value(b"\0\0\0\x03ab").is_err());
    }

    /// A server that answers one query with these messages.
    async fn told(messages: Vec<u8>) -> io::Result<Reply> {
        use tokio::io::AsyncWriteExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answers = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            // The asker may leave in the midst.
            let _heard = stream.write_all(&messages).await;
            io::Result::Ok(stream)
        });
        let stream = tokio::net::TcpStream::connect(address).await?;
        let endpoint = crate::config::Endpoint::parse("127.0.0.1:0");
        let mut server = Server::new(crate::wire::Wire::Tcp(stream), endpoint);
        let reply = server.run(&["SELECT 1"]).await;
        assert_eq!(server.broken, reply.is_err(), "an answer that was not heard out ends its use");
        drop(server);
        answers.await.expect("it does not panic")?;
        reply
    }

    #[tokio::test]
    async fn an_answer_has_as_many_rows_and_bytes_as_the_limits_and_no_more() {
        for (sent, kept) in [(ROWS_MAX, ROWS_MAX), (ROWS_MAX + 1, ROWS_MAX)] {
            let mut messages = Vec::new();
            (0..sent).for_each(|_| frame::put_row(&mut messages, &[Some("x")]));
            frame::put_ready(&mut messages, b'I');
            let reply = told(messages).await.expect("a long answer is heard out");
            assert_eq!(reply.rows.len(), kept, "of {sent}");
        }
        for (bytes, taken) in [(OWN_BYTES_MAX, true), (OWN_BYTES_MAX + 1, false)] {
            let mut messages = Vec::new();
            // Two bytes count the columns, four the length of the only one.
            frame::put_row(&mut messages, &[Some(vec![b'x'; bytes - 6])]);
            frame::put_ready(&mut messages, b'I');
            assert_eq!(told(messages).await.is_ok(), taken, "{bytes} bytes");
        }
    }

    #[test]
    fn a_literal_ends_where_it_should() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), " E'a\\\\''b'");
    }
}
