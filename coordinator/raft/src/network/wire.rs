//! Where connections come from: the operating system, or, with the feature `simulation`, a simulated network whose time is made.

#[cfg(not(feature = "simulation"))]
mod real {
    use holdfast_security::{Credentials, Door, Gate, Incoming};
    pub(crate) use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tonic::transport::{Channel, Endpoint};

    /// Connections at once: three from each of the members there can be, and some that are about to end.
    const CONNECTIONS_MAX: usize = 256;

    /// Connections of peers, as `guard` lets them in, and what is canceled once the address is free again.
    pub(crate) fn incoming(listener: TcpListener, guard: Door) -> (Incoming, CancellationToken) {
        let gate = Gate::new(listener, "raft", guard, b"h2");
        // It closes with the server, which lets go of it.
        let gate = gate.bounded(CONNECTIONS_MAX, CONNECTIONS_MAX).open(CancellationToken::new());
        let closed = gate.closed();
        (gate, closed)
    }

    /// A channel that dials when it is needed. The address may be anybody's; with credentials only node `target` is spoken to.
    pub(crate) fn dial(
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
        target: u64,
    ) -> Channel {
        match credentials {
            None => endpoint.connect_lazy(),
            Some(credentials) => {
                endpoint.connect_with_connector_lazy(credentials.connector(Some(target)))
            }
        }
    }
}

#[cfg(feature = "simulation")]
mod simulated {
    use std::{
        cell::RefCell,
        io,
        pin::Pin,
        task::{Context, Poll},
        time::Duration,
    };

    use futures::{Stream, stream};
    use holdfast_security::{Credentials, Door};
    use hyper_util::rt::TokioIo;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio_util::sync::CancellationToken;
    use tonic::transport::{Channel, Endpoint, server::Connected};

    pub(crate) use turmoil::net::TcpListener;

    thread_local! {
        static DISKS: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
    }

    /// Draws all pauses of disks from `seed`, on this thread, from now on.
    pub fn seed_disks(seed: u64) {
        DISKS.with_borrow_mut(|disks| *disks = StdRng::seed_from_u64(seed));
    }

    /// What a disk takes for a group.
    pub(crate) async fn disk_pause() {
        let us = DISKS.with_borrow_mut(|disks| {
            if disks.random_ratio(1, 50) {
                disks.random_range(5_000..80_000)
            } else {
                disks.random_range(100..3_000)
            }
        });
        tokio::time::sleep(Duration::from_micros(us)).await;
    }

    /// A connection of the simulated network.
    pub(crate) struct Wire(turmoil::net::TcpStream);

    impl Connected for Wire {
        type ConnectInfo = ();

        fn connect_info(&self) {}
    }

    impl AsyncRead for Wire {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    /// Connections of peers. Whoever drops them has freed the address, so what follows is canceled already.
    pub(crate) fn incoming(
        listener: TcpListener,
        _guard: Door,
    ) -> (impl Stream<Item = io::Result<Wire>>, CancellationToken) {
        let accepted = stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| Wire(stream));
            Some((accepted, listener))
        });
        let closed = CancellationToken::new();
        closed.cancel();
        (accepted, closed)
    }

    /// A channel that dials when it is needed. Nothing is encrypted in a simulated network.
    pub(crate) fn dial(
        endpoint: &Endpoint,
        _credentials: Option<&Credentials>,
        _target: u64,
    ) -> Channel {
        endpoint.connect_with_connector_lazy(tower::service_fn(
            |uri: tonic::transport::Uri| async move {
                let (host, port) =
                    (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(0));
                let stream = turmoil::net::TcpStream::connect((host, port)).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            },
        ))
    }
}

#[cfg(not(feature = "simulation"))]
pub(crate) use real::{TcpListener, dial, incoming};
#[cfg(feature = "simulation")]
pub use simulated::seed_disks;
#[cfg(feature = "simulation")]
pub(crate) use simulated::{TcpListener, dial, disk_pause, incoming};
