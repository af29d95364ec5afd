//! The way to a database server, which is left where it asks for the password in a form that tells it: whoever listens there may ask for
//! anything, and has not shown yet that it is the server.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// Bytes of a server's first message that say how it lets clients in: the tag, four of the length, four of the kind.
const QUESTION_BYTES: usize = 9;
/// The password in clear, and as MD5.
const WEAK: [[u8; 4]; 2] = [3_u32.to_be_bytes(), 5_u32.to_be_bytes()];

/// A server asks for the password in a form that tells it, or lets it be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "HF4107 the server wants the password in clear or as MD5, which is not permitted; it was not told. Have its pg_hba.conf say scram-sha-256 and set the password anew, or permit it by weak_authentication"
)]
pub struct WeakLogin;

/// A way to a server, with what SCRAM binds to there.
pub(super) struct Guarded<S> {
    stream: S,
    binding: Option<Vec<u8>>,
    /// The beginning of what the server says. The client library answers a question for the password as the first message or not at all.
    heard: Vec<u8>,
    permitted: bool,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, binding: Option<Vec<u8>>, permitted: bool) -> Self {
        Self { stream, binding, heard: Vec::with_capacity(QUESTION_BYTES), permitted }
    }

    /// Looks at what was read until the first question is known.
    fn look(&mut self, said: &[u8]) -> io::Result<()> {
        let lacks = QUESTION_BYTES - self.heard.len();
        self.heard.extend(said.iter().take(lacks));
        let weak = match *self.heard {
            [b'R', _, _, _, _, ref kind @ ..] => WEAK.iter().any(|weak| weak == kind),
            _ => false,
        };
        if weak && !self.permitted { Err(io::Error::other(WeakLogin)) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, room);
        if self.heard.len() < QUESTION_BYTES && matches!(read, Poll::Ready(Ok(()))) {
            let looked = self.look(&room.filled()[before..]);
            if looked.is_err() {
                // The library completes a message of what it is given: it is not given this one.
                room.set_filled(before);
                return Poll::Ready(looked);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Guarded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.binding {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.clone()),
            None => ChannelBinding::none(),
        }
    }
}
