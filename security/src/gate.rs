//! The gate before a door: accepts connections, bounds them in number and time, and finds out who is at the other end.
//!
//! A failed accept, mostly a want of file descriptors, is paused for and tried again; it never ends the door. Handshakes run
//! beside the accepting, bounded in number: when all places are taken, the oldest that is not done makes room, so that ten
//! thousand connections that say nothing delay an honest one by nothing but the accepting.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    ClientAuth, Credentials, certificate,
    read_ahead::ReadAhead,
    stream::{Bytes, Peer, Secured},
};

/// Connections of one door at once, where file descriptors allow it; one more waits in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Handshakes of one door at once.
pub const HANDSHAKES_MAX: usize = 1_024;
/// For a handshake, and again for the first bytes behind it.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// File descriptors that connections of callers never take: the log, snapshots, peers, and some.
const FDS_KEPT: u64 = 384;
/// The pauses after failed accepts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait for their door to take them.
const READY_MAX: usize = 64;

/// How a door is guarded.
#[derive(Clone, Debug)]
pub enum Door {
    /// Nothing is encrypted and everybody is dev; for loopback addresses alone.
    DevPlaintext,
    /// TLS 1.3 with certificates on both sides.
    MutualTls {
        /// This node's.
        credentials: Credentials,
        /// Whether a client may come without one.
        auth: ClientAuth,
    },
}

/// A listener with its guard.
#[derive(Debug)]
pub struct Gate {
    listener: TcpListener,
    name: &'static str,
    door: Door,
    protocol: &'static [u8],
    connections_max: usize,
    handshakes_max: usize,
}

impl Gate {
    /// The gate of door `name` (`grpc`, `http` or `raft`), which speaks `protocol` (ALPN: `h2` or `http/1.1`).
    #[must_use]
    pub fn new(
        listener: TcpListener,
        name: &'static str,
        door: Door,
        protocol: &'static [u8],
    ) -> Self {
        let (connections_max, handshakes_max) = (within_the_fd_limit(), HANDSHAKES_MAX);
        Self { listener, name, door, protocol, connections_max, handshakes_max }
    }

    /// With other bounds, each at least 1.
    #[must_use]
    pub fn bounded(mut self, connections_max: usize, handshakes_max: usize) -> Self {
        self.connections_max = connections_max.clamp(1, CONNECTIONS_MAX);
        self.handshakes_max = handshakes_max.clamp(1, HANDSHAKES_MAX);
        self
    }

    /// Accepts until `closing`; then, or when the stream is dropped, the listener is closed: soon, see [`Incoming::closed`].
    #[must_use]
    pub fn open(self, closing: CancellationToken) -> Incoming {
        let (ready, taken) = mpsc::channel(READY_MAX);
        let closed = CancellationToken::new();
        let letting_go = closed.clone().drop_guard();
        // Ends with the stream: a send to nobody fails, and the door cancels before it drops it.
        let task = tokio::spawn(async move {
            self.run(ready, closing).await;
            drop(letting_go);
        });
        Incoming { taken, task: task.abort_handle(), closed }
    }

    async fn run(self, ready: mpsc::Sender<Secured>, closing: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.connections_max));
        let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepting = async {
                let place = self.place(&places, &mut handshakes).await;
                (self.listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepting => accepted,
                () = closing.cancelled() => break,
                () = ready.closed() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.make_room(&mut handshakes);
                    let task = greet(
                        self.name,
                        self.door.clone(),
                        self.protocol,
                        stream,
                        place,
                        ready.clone(),
                    );
                    handshakes.push_back(tokio::spawn(task).abort_handle());
                }
                Err(error) => {
                    count(self.name, "accept-failed");
                    tracing::warn!(%error, door = self.name, "a connection could not be accepted; pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        handshakes.iter().for_each(AbortHandle::abort);
    }

    /// A place for a connection. When all are taken, handshakes that are not done give theirs up, oldest first.
    async fn place(
        &self,
        places: &Arc<Semaphore>,
        handshakes: &mut VecDeque<AbortHandle>,
    ) -> OwnedSemaphorePermit {
        loop {
            if let Ok(place) = Arc::clone(places).try_acquire_owned() {
                return place;
            }
            match handshakes.pop_front() {
                Some(oldest) if !oldest.is_finished() => {
                    count(self.name, "pushed-out");
                    oldest.abort();
                    // It lets go of its place as soon as it runs.
                    tokio::task::yield_now().await;
                }
                Some(_) => {}
                None => {
                    let place = Arc::clone(places).acquire_owned().await;
                    return place.expect("the semaphore is never closed");
                }
            }
        }
    }

    fn make_room(&self, handshakes: &mut VecDeque<AbortHandle>) {
        if handshakes.len() >= self.handshakes_max {
            handshakes.retain(|one| !one.is_finished());
        }
        while handshakes.len() >= self.handshakes_max {
            if let Some(oldest) = handshakes.pop_front() {
                count(self.name, "pushed-out");
                oldest.abort();
            }
        }
    }
}

/// Connections that leave enough file descriptors for the log, the peers and the other door of callers.
fn within_the_fd_limit() -> usize {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let soft = limit.map_or(1_024, |(soft, _)| soft);
    let ours = usize::try_from(soft.saturating_sub(FDS_KEPT) / 2).unwrap_or(usize::MAX);
    ours.clamp(16, CONNECTIONS_MAX)
}

/// Connections that got through the gate.
#[derive(Debug)]
pub struct Incoming {
    taken: mpsc::Receiver<Secured>,
    task: AbortHandle,
    closed: CancellationToken,
}

impl Incoming {
    /// Canceled as soon as nobody listens any more, so that the address can be taken again.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// The next connection; `None` once the gate is closed.
    pub async fn next(&mut self) -> Option<Secured> {
        self.taken.recv().await
    }
}

impl Stream for Incoming {
    type Item = io::Result<Secured>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.taken.poll_recv(context).map(|taken| taken.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn count(door: &'static str, result: &'static str) {
    metrics::counter!("holdfast_door_connections_total", "door" => door, "result" => result)
        .increment(1);
}

async fn greet(
    name: &'static str,
    door: Door,
    protocol: &'static [u8],
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    ready: mpsc::Sender<Secured>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!(%error, door = name, "a connection ended before it began");
    }
    let greeted = match door {
        Door::DevPlaintext => Ok((Bytes::Plain(stream), Peer::Dev)),
        Door::MutualTls { credentials, auth } => {
            let shaking = shake(&credentials, auth, protocol, stream);
            let late = |_| Err("no handshake in time".to_owned());
            timeout(HANDSHAKE_MAX, shaking).await.unwrap_or_else(late)
        }
    };
    match greeted {
        Ok((bytes, peer)) => {
            count(name, "let-in");
            // A door that has closed takes nothing more.
            let _closed = ready.send(Secured::new(bytes, peer, place)).await;
        }
        Err(cause) => {
            count(name, "turned-away");
            // Strangers, scanners and clients with old certificates are everyday life at a door.
            tracing::debug!(cause, door = name, "a connection was turned away");
        }
    }
}

async fn shake(
    credentials: &Credentials,
    auth: ClientAuth,
    protocol: &[u8],
    stream: TcpStream,
) -> Result<(Bytes, Peer), String> {
    let config = credentials.server(auth, protocol).map_err(|error| error.to_string())?;
    let accepting = TlsAcceptor::from(config).accept(ReadAhead::new(stream));
    let stream = accepting.await.map_err(|error| error.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = match shown {
        None => Peer::Anonymous,
        Some(der) => {
            let name = certificate::read(der).map_err(|error| error.to_string())?.name;
            if credentials.name().is_none_or(|own| own.cluster != name.cluster) {
                return Err(format!("{name} is of another cluster"));
            }
            Peer::Named(Arc::new(name))
        }
    };
    Ok((Bytes::Tls(Box::new(stream)), peer))
}
