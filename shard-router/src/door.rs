//! The door: accepts clients, deals them to workers, and recovers from running out of anything.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use holdfast_route::{RuleMistakes, Topology};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{config::RouterConfig, shared::Shared, worker};

/// Clients on their way to one worker.
const ARRIVALS_MAX: usize = 1024;
/// Between two looks at the rules file.
const LOOK_AT_RULES: Duration = Duration::from_secs(1);
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
    /// Reads the rules and opens the door.
    /// # Errors
    /// [`NoStart`].
    pub async fn start(config: RouterConfig) -> Result<Self, NoStart> {
        let rules = match &config.rules {
            None => None,
            Some(path) => Some(Arc::new(read_rules(path)?)),
        };
        check_sources(&config, rules.as_deref())?;
        let address = config.listen;
        let opened = async {
            let socket = match address {
                SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(4096)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = opened.await.map_err(|error| NoStart::Door { address, error })?;
        Ok(Self { shared: Arc::new(Shared::new(config, rules)), listener, address })
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
            let lost = shared.sources.iter().find(|source| !source.is_reachable());
            lost.map_or(Ok(()), |source| Err(format!("source {} was not reached", source.name())))
        }
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
                    if let Err(error) = worker::run(shared, number, receiver, &stop) {
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
            () = self.watch_rules() => {}
            () = stop.cancelled() => {}
        }
        drop(doors);
        for end in threads {
            let _ended = end.await;
        }
        Ok(())
    }

    /// Reads the rules file again when it has changed. Mistaken rules are told and not taken; no session notices either.
    async fn watch_rules(&self) {
        let (Some(path), Some(first)) = (&self.shared.config.rules, &self.shared.rules) else {
            return std::future::pending().await;
        };
        let mut known = std::fs::read_to_string(path).unwrap_or_default();
        let mut epoch = first.epoch();
        loop {
            tokio::time::sleep(LOOK_AT_RULES).await;
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            if text == known {
                continue;
            }
            let read = read_rules(path)
                .and_then(|rules| check_sources(&self.shared.config, Some(&rules)).map(|()| rules));
            match read {
                Ok(rules) => {
                    epoch += 1;
                    tracing::info!(epoch, "new rules");
                    self.shared.publish(Arc::new(rules.at_epoch(epoch)));
                }
                Err(error) => tracing::error!(%error, "the new rules are not taken"),
            }
            known = text;
        }
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

fn read_rules(path: &std::path::Path) -> Result<Topology, NoStart> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| NoStart::Unreadable { file: file.clone(), error })?;
    Ok(Topology::parse(&text).map_err(|mistakes| RuleMistakes { file, mistakes })?)
}

/// Every source of the rules has addresses, and without rules there is one.
fn check_sources(config: &RouterConfig, rules: Option<&Topology>) -> Result<(), NoStart> {
    let configured = |name: &str| config.sources.iter().any(|source| &*source.name == name);
    let Some(rules) = rules else {
        return match config.sources.len() {
            1 => Ok(()),
            count => Err(NoStart::Sources(format!(
                "{count} sources and no rules. Name the rules file (router.rules), or keep one source"
            ))),
        };
    };
    for name in rules.sources().keys() {
        if !configured(name.as_str()) {
            return Err(NoStart::Sources(format!(
                "the rules name source {name}, which the router's configuration does not have. Add it to [[sources.source]]"
            )));
        }
    }
    for source in &config.sources {
        if !rules.sources().contains_key(&*source.name) {
            return Err(NoStart::Sources(format!(
                "source {} is in the router's configuration and not in the rules. Remove it, or add it to the rules",
                source.name
            )));
        }
    }
    Ok(())
}
