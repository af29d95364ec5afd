//! Takes what has arrived on a connection at once.
//!
//! TLS by rustls reads 4 KiB at a time, since most connections never have more. A follower's has: entries of a batch, and four calls of the
//! kernel for each record of TLS. Here the first read goes straight through, and only one that was filled is followed by a large one, whose
//! rest is handed out from memory. A quiet connection has none.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes that are taken at once where there are many.
const AHEAD_BYTES: usize = 64 * 1024;

/// A connection of which more is read than was asked for, where more is there.
#[derive(Debug)]
pub struct ReadAhead<S> {
    stream: S,
    /// Read and not handed out yet.
    ahead: BytesMut,
    /// The last read was as large as it could be.
    more: bool,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, ahead: BytesMut::new(), more: false }
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Reads as much as there is, straight to where it is wanted as long as that is large enough.
    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !std::mem::take(&mut self.more) {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            self.more = buffer.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        let mut ahead = BytesMut::with_capacity(AHEAD_BYTES);
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), context, &mut ahead))?;
        self.more = read >= AHEAD_BYTES;
        self.ahead = ahead;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            ready!(this.poll_fill(context, buffer))?;
        }
        let now = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..now]);
        this.ahead.advance(now);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A connection on which these have arrived: each read takes at most one of them, and none waits for another. How large each read could be.
    #[derive(Default)]
    struct Arrived {
        parts: VecDeque<Vec<u8>>,
        asked: Vec<usize>,
    }

    impl AsyncRead for Arrived {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let room = buffer.remaining();
            self.asked.push(room);
            if let Some(mut part) = self.parts.pop_front() {
                let rest = part.split_off(part.len().min(room));
                buffer.put_slice(&part);
                if !rest.is_empty() {
                    self.parts.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    /// All that is read in pieces of `size`, and the reads that it took.
    async fn read(parts: &[Vec<u8>], size: usize) -> (Vec<u8>, Vec<usize>) {
        let arrived = Arrived { parts: parts.iter().cloned().collect(), asked: Vec::new() };
        let mut stream = ReadAhead::new(arrived);
        let (mut all, mut piece) = (Vec::new(), vec![0; size]);
        loop {
            match stream.read(&mut piece).await.expect("nothing fails") {
                0 => return (all, stream.stream.asked),
                read => all.extend_from_slice(&piece[..read]),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_as_it_is(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            large in 0_usize..3,
            size in 1_usize..200,
        ) {
            let mut parts = parts;
            parts.extend((0..large).map(|n| vec![n as u8; AHEAD_BYTES - 1 + n]));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (all, _) = runtime.block_on(read(&parts, size));
            prop_assert_eq!(all, parts.concat());
        }
    }

    #[tokio::test]
    async fn what_fills_a_read_is_followed_by_one_large_read_and_what_does_not_is_not() {
        let few = [vec![1; 99], vec![2; 99]];
        assert_eq!(read(&few, 100).await.1, [100, 100, 100]);
        let exactly = [vec![1; 100]];
        assert_eq!(read(&exactly, 100).await.1, [100, AHEAD_BYTES]);
        let many = [vec![1; 16_384]];
        assert_eq!(read(&many, 4_096).await.1, [4_096, AHEAD_BYTES, 4_096]);
        let most = [vec![1; 100 + AHEAD_BYTES]];
        assert_eq!(read(&most, 100).await.1, [100, AHEAD_BYTES, AHEAD_BYTES]);
    }

    #[tokio::test]
    async fn a_quiet_connection_keeps_no_memory() {
        let arrived = Arrived { parts: [vec![1; 9_000]].into(), asked: Vec::new() };
        let mut stream = ReadAhead::new(arrived);
        let mut all = vec![0; 9_000];
        let (first, rest) = all.split_at_mut(4_096);
        stream.read_exact(first).await.unwrap();
        stream.read_exact(&mut rest[..1]).await.unwrap();
        assert_eq!((stream.ahead.len(), stream.ahead.capacity()), (4_903, AHEAD_BYTES - 1));
        stream.read_exact(&mut rest[1..]).await.unwrap();
        assert_eq!((stream.ahead.len(), stream.ahead.capacity()), (0, 0));
    }
}
