//! Bytes in motion: to the client, to the server, and from both, in one wait. Whoever is slow slows the other down, and holds no memory.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use super::{End, IDLE, Session};
use crate::{frame, wire::Wire};

/// Bytes for the server that may wait before the client is no longer listened to.
pub(super) const BACKLOG_MAX: usize = 256 * 1024;

impl Session {
    /// Moves bytes until something new can be done with them.
    pub(super) async fn traffic(&mut self) -> Result<(), End> {
        poll_fn(|context| self.poll_traffic(context)).await
    }

    /// Writes everything that the client is to be told.
    pub(super) async fn flush_client(&mut self) -> Result<(), End> {
        poll_fn(|context| self.poll_client_writes(context)).await.map_err(End::Client)
    }

    fn poll_traffic(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        if let Some(global) = &self.global {
            global.entry.wakes(context.waker());
            if self.must_tag() {
                return Poll::Ready(Ok(()));
            }
        }
        loop {
            let client_ready = self.poll_client_writes(context).map_err(End::Client)?.is_ready();
            if let Err(error) = self.poll_server_writes(context) {
                self.server_lost(&error.to_string());
                return Poll::Ready(Ok(()));
            }
            if self.held_back && self.to_server.is_empty() {
                self.held_back = false;
                return Poll::Ready(Ok(()));
            }
            // A client that does not take its rows is sent no more, and neither is the router.
            if client_ready && self.bound.is_some() {
                match self.poll_server_reads(context) {
                    Poll::Ready(true) if self.to_client.is_empty() => return Poll::Ready(Ok(())),
                    Poll::Ready(true) => {
                        // What is settled must reach the client before its next message is looked at.
                        self.poll_client_writes(context).map_err(End::Client)?.is_ready();
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(false) => continue,
                    Poll::Pending => {}
                }
            }
            if self.to_server.len() - self.to_server_done > BACKLOG_MAX {
                return Poll::Pending;
            }
            let pending = self.inbox.len();
            return match self.poll_client_reads(context) {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(End::Goodbye)),
                Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(End::Client(error))),
                Poll::Pending => {
                    if pending == 0 && self.bound.is_none() && self.worker.is_draining() {
                        return match self.status {
                            IDLE => Poll::Ready(Err(End::Drained)),
                            _ => Poll::Pending,
                        };
                    }
                    Poll::Pending
                }
            };
        }
    }

    fn poll_client_writes(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(poll_writes(
            &mut self.client,
            &mut self.to_client,
            &mut self.to_client_done,
            context
        ))?;
        self.worker.shelf.borrow_mut().take_back_writes(&mut self.to_client);
        Poll::Ready(Ok(()))
    }

    fn poll_server_writes(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(bound) = &mut self.bound else { return Ok(()) };
        let wire = &mut bound.server.wire;
        match poll_writes(wire, &mut self.to_server, &mut self.to_server_done, context) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => {
                self.worker.shelf.borrow_mut().take_back_writes(&mut self.to_server);
                Ok(())
            }
            Poll::Pending => Ok(()),
        }
    }

    /// Reads and delivers once. `true` if an answer came to its end.
    fn poll_server_reads(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let Some(bound) = &mut self.bound else { return Poll::Pending };
        let server = &mut bound.server;
        self.worker.shelf.borrow_mut().lend(&mut server.inbox);
        let read = match server.wire.poll_read(context, server.inbox.room()) {
            Poll::Pending => {
                self.worker.shelf.borrow_mut().take_back(&mut server.inbox);
                return Poll::Pending;
            }
            Poll::Ready(read) => read,
        };
        match read {
            Ok(0) => {
                self.server_lost("it closed the connection");
                return Poll::Ready(true);
            }
            Err(error) => {
                self.server_lost(&error.to_string());
                return Poll::Ready(true);
            }
            Ok(count) => server.inbox.filled_more(count),
        }
        self.worker.shelf.borrow_mut().lend_writes(&mut self.to_client);
        match self.deliver() {
            Ok(settled) => {
                if settled {
                    self.release_if_settled();
                }
                Poll::Ready(settled)
            }
            Err(hostile) => {
                self.server_lost(&hostile.to_string());
                Poll::Ready(true)
            }
        }
    }

    pub(super) fn poll_client_reads(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        // What the client says next belongs behind the statements of its query.
        if self.sequence.is_some() {
            return Poll::Pending;
        }
        // A message that is not whole yet is bounded; whole ones that wait for their turn are not read on.
        let whole = frame::header(self.inbox.filled(), usize::MAX >> 1)
            .is_ok_and(|header| header.is_some_and(|header| header.total <= self.inbox.len()));
        if whole && self.inbox.len() > BACKLOG_MAX {
            return Poll::Pending;
        }
        self.worker.shelf.borrow_mut().lend(&mut self.inbox);
        let polled = self.client.poll_read(context, self.inbox.room());
        match polled {
            Poll::Ready(Ok(count)) => self.inbox.filled_more(count),
            Poll::Ready(Err(_)) | Poll::Pending => {
                self.worker.shelf.borrow_mut().take_back(&mut self.inbox);
            }
        }
        polled
    }
}

/// Writes `bytes` from `done` on; empties it when all is written.
pub(super) fn poll_writes(
    wire: &mut Wire,
    bytes: &mut Vec<u8>,
    done: &mut usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    if bytes.is_empty() {
        return Poll::Ready(Ok(()));
    }
    while *done < bytes.len() {
        match ready!(wire.poll_write(context, &bytes[*done..]))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => *done += count,
        }
    }
    ready!(wire.poll_flush(context))?;
    bytes.clear();
    *done = 0;
    Poll::Ready(Ok(()))
}
