//! One connection, whatever carries it: TCP, TLS over TCP, or a Unix socket to a PostgreSQL on this machine.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsStream;

/// A connection to a client or a server.
#[derive(Debug)]
pub(crate) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Reads what there is into `room`, which is not empty; 0 is the end.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(room);
        let polled = match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, &mut room),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, &mut room),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, &mut room),
        };
        polled.map_ok(|()| room.filled().len())
    }

    /// Writes a part of `bytes`.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    /// Sends what TLS has not sent yet; the others keep nothing back.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    /// Writes all of `bytes`.
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = std::future::poll_fn(|context| self.poll_write(context, bytes)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        std::future::poll_fn(|context| self.poll_flush(context)).await
    }

    /// Reads until `bytes` is full, and not one byte more.
    /// # Errors
    /// The connection is gone or ended.
    pub(crate) async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let room = &mut bytes[filled..];
            match std::future::poll_fn(|context| self.poll_read(context, room)).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Reads one frame of at most `max` bytes behind its tag: used before the data phase, where frames are few and small.
    /// # Errors
    /// The connection is gone, or the length is none.
    pub(crate) async fn read_frame(&mut self, max: usize) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; crate::frame::HEADER];
        self.read_exact(&mut head).await?;
        let header = crate::frame::header(&head, max)
            .map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad.to_string()))?
            .expect("five bytes are a header");
        let mut body = vec![0; header.total - crate::frame::HEADER];
        self.read_exact(&mut body).await?;
        Ok((header.tag, body))
    }
}
