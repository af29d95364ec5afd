//! The door: accepts clients, deals them to workers, and recovers from running out of anything.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use holdfast_route::RuleMistakes;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Live, RouterConfig},
    follow::Follower,
    rules::{Placed, Rules, read_file},
    shared::Shared,
    worker,
};

/// Clients on their way to one worker.
const ARRIVALS_MAX: usize = 1024;
/// Before the door looks again when the process has no descriptor left.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// A router whose door is open.
pub struct Router {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Why a router does not start.
#[derive(Debug, thiserror::Error)]
pub enum NoStart {
    /// The address cannot be listened on.
    #[error("HF1015 {address} cannot be listened on: {error}. Choose another address")]
    Door {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The rules file cannot be read.
    #[error("HF1001 {file} cannot be read: {error}. Check the path")]
    Unreadable {
        /// Which.
        file: String,
        /// What the system says.
        error: io::Error,
    },
    /// The rules are mistaken.
    #[error(transparent)]
    Rules(#[from] RuleMistakes),
    /// Sources and rules do not fit together.
    #[error("HF3216 {0}")]
    Sources(String),
    /// No thread can be started.
    #[error("no worker can be started: {0}")]
    Threads(io::Error),
}

impl Router {
    /// Gets the rules and opens the door. Where coordinators are named it waits for their word as long as it takes, and nobody is let in.
    /// # Errors
    /// [`NoStart`].
    pub async fn start(config: RouterConfig) -> Result<Self, NoStart> {
        let config = Arc::new(config);
        let address = config.listen;
        let opened = || {
            let socket = match address {
                SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        };
        // The address is taken at once, and nobody knocks before there is somebody to open.
        let no_door = |error| NoStart::Door { address, error };
        let socket = opened().map_err(no_door)?;
        let (rules, follower) = first_rules(&config).await?;
        let listener = socket.listen(4096).map_err(no_door)?;
        let address = listener.local_addr().map_err(no_door)?;
        let shared = Arc::new(Shared::new(config, rules, follower));
        Ok(Self { shared, listener, address })
    }

    /// Where clients connect; the port may have been 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says why the router cannot be used now, or nothing if it can.
    pub fn readiness(&self) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            if let Some(held) = shared.rules.as_ref().and_then(|rules| rules.in_force().held) {
                return Err(held.to_string());
            }
            let lost = shared.sources.iter().find(|source| !source.is_reachable());
            lost.map_or(Ok(()), |source| Err(format!("source {} was not reached", source.name())))
        }
    }

    /// Has the router go by other limits and users from now on.
    pub fn adjuster(&self) -> impl Fn(Live) + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move |live| drop(shared.live.send_replace(live))
    }

    /// Serves until `stop`, then lets every session end its transaction.
    /// # Errors
    /// No thread can be started.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), NoStart> {
        let mut doors = Vec::new();
        let mut threads = Vec::new();
        for number in 0..self.shared.config.workers {
            let (sender, receiver) = mpsc::channel(ARRIVALS_MAX);
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            let (ended, end) = tokio::sync::oneshot::channel();
            std::thread::Builder::new()
                .name(format!("router-{number}"))
                .spawn(move || {
                    if let Err(error) = worker::run(&shared, number, receiver, &stop) {
                        tracing::error!(%error, "a worker could not run");
                    }
                    let _nobody_waits_for_a_worker_that_never_ran = ended.send(());
                })
                .map_err(NoStart::Threads)?;
            doors.push(sender);
            threads.push(end);
        }
        tokio::select! {
            () = self.accept(&doors) => {}
            () = stop.cancelled() => {}
        }
        drop(doors);
        for end in threads {
            let _ended = end.await;
        }
        Ok(())
    }

    async fn accept(
        &self,
        doors: &[mpsc::Sender<(std::net::TcpStream, SocketAddr, crate::shared::Visitor)>],
    ) {
        let mut next = 0;
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or memory, or a client that left already: none of it is the end of the door.
                    tracing::warn!(%error, "a client could not be let in");
                    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                    continue;
                }
            };
            let Some(visitor) = self.shared.welcome() else { continue };
            let Ok(stream) = stream.into_std() else { continue };
            // Dealt in turn; one that is behind loses the client, which is better than the door standing still.
            next = (next + 1) % doors.len();
            if doors[next].try_send((stream, peer, visitor)).is_err() {
                tracing::warn!(%peer, "a worker is behind; a client was turned away");
            }
        }
    }
}

/// The rules to begin with, and who follows them.
async fn first_rules(
    config: &Arc<RouterConfig>,
) -> Result<(Option<Rules>, Option<Follower>), NoStart> {
    let sources = config.sources.len();
    match (&config.coordinator, &config.rules) {
        (_, None) if sources == 1 => Ok((None, None)),
        (None, None) => Err(NoStart::Sources(format!(
            "{sources} sources and no rules. Name the coordinators (coordinators.addresses) or the rules file (router.rules), or keep one source"
        ))),
        (None, Some(path)) => {
            let placed = Placed::new(config, read_file(path)?).map_err(NoStart::Sources)?;
            Ok((Some(Rules::new(placed, false)), None))
        }
        (Some(coordinator), _) => {
            let follower = Follower::new(config, coordinator)
                .map_err(|error| NoStart::Sources(error.to_string()))?;
            Ok((Some(follower.first().await?), Some(follower)))
        }
    }
}
