//! A PostgreSQL database as a participant reaches it: its address, whether what travels there is encrypted, and what its server may ask for.

use std::{
    future::{self, Future},
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use deadpool_postgres::{Connect, Manager, ManagerConfig, RecyclingMethod};
use holdfast_security::{ServerTls, ServerTlsStream};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::UnixStream,
    sync::Notify,
    task::JoinHandle,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, NoTls, SimpleQueryMessage, Socket,
    config::{Host, SslMode, SslNegotiation, TargetSessionAttrs},
    tls::{MakeTlsConnect, NoTlsStream, TlsConnect},
};
use tokio_util::either::Either;

use super::login::Guarded;

/// Where PostgreSQL listens if nothing else is said.
const PORT: u16 = 5_432;

/// Where a database is. Its `Debug` leaves out the password. A server that asks for the password in clear or as MD5 is left
/// ([`WeakLogin`](super::WeakLogin)) unless that is permitted, encrypted or not.
#[derive(Clone, Debug)]
pub struct Database {
    config: Config,
    tls: Option<ServerTls>,
    weak_login: bool,
}

impl Database {
    /// The database of `config`, encrypted as `tls` says or not at all; what `config` itself says about encryption does not count.
    #[must_use]
    pub fn new(config: Config, tls: Option<ServerTls>) -> Self {
        let mut config = config;
        // The library hands a connection to what encrypts it, and to nothing else: so ours is asked in any case. What goes in the clear
        // is asked at once, and not behind a question to the server.
        config.ssl_mode(SslMode::Require).ssl_negotiation(match tls {
            Some(_) => SslNegotiation::Postgres,
            None => SslNegotiation::Direct,
        });
        if config.get_hosts().is_empty() {
            // It also wants a host's name then.
            for address in config.get_hostaddrs().to_owned() {
                config.host(address.to_string());
            }
        }
        Self { config, tls, weak_login: false }
    }

    /// Whether its server may ask for the password in clear or as MD5.
    #[must_use]
    pub fn permit_weak_login(self, permitted: bool) -> Self {
        Self { weak_login: permitted, ..self }
    }

    /// Address, account and settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same, to be changed.
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// One connection, and the task that carries it; the task ends when the client is dropped or the connection breaks.
    /// # Errors
    /// What the server or the way to it says.
    pub async fn connect(&self) -> Result<(Client, JoinHandle<Result<(), Error>>), Error> {
        let (client, line) = self.line().await?;
        Ok((client, tokio::spawn(line.carry(None))))
    }

    /// As [`Self::connect`]; each notification that arrives wakes `wake`.
    /// # Errors
    /// What the server or the way to it says.
    pub(crate) async fn connect_listening(
        &self,
        wake: Arc<Notify>,
    ) -> Result<(Client, JoinHandle<Result<(), Error>>), Error> {
        let (client, line) = self.line().await?;
        Ok((client, tokio::spawn(line.carry(Some(wake)))))
    }

    /// What makes the connections of a pool.
    pub(crate) fn manager(&self) -> Manager {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Manager::from_connect(self.config.clone(), self.clone(), recycling)
    }

    async fn line(&self) -> Result<(Client, Line), Error> {
        let mut failed = None;
        for (folder, port) in self.sockets() {
            match self.over_socket(folder, port).await {
                Ok((client, connection)) => return Ok((client, Line::Local(Box::new(connection)))),
                Err(error) => failed = Some(error),
            }
        }
        let hosts = self.config.get_hosts();
        match failed {
            Some(error) if hosts.iter().all(|host| matches!(host, Host::Unix(_))) => Err(error),
            _ => {
                let (client, connection) = self.config.connect(ToHosts(self)).await?;
                Ok((client, Line::Network(Box::new(connection))))
            }
        }
    }

    /// Sockets in folders of this machine, which the library cannot dial with a guard. It leaves them out by itself: nothing is encrypted
    /// there, so nor are they for whoever wants that.
    fn sockets(&self) -> impl Iterator<Item = (&Path, u16)> {
        let ports = self.config.get_ports();
        let usable = self.tls.is_none() && self.config.get_hostaddrs().is_empty();
        self.config.get_hosts().iter().enumerate().filter_map(move |(n, host)| match host {
            Host::Unix(folder) if usable => {
                Some((&**folder, ports.get(n).or(ports.first()).copied().unwrap_or(PORT)))
            }
            _ => None,
        })
    }

    async fn over_socket(&self, folder: &Path, port: u16) -> Result<(Client, Local), Error> {
        let dialed = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await;
        let mut config = self.config.clone();
        config.ssl_mode(SslMode::Disable);
        let stream = match dialed {
            Ok(stream) => stream,
            Err(error) => return Err(as_told_by_the_library(&config, error).await),
        };
        let guarded = Guarded::new(stream, None, self.weak_login);
        let (client, mut connection) = config.connect_raw(guarded, NoTls).await?;
        let wanted = match config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => "off",
            TargetSessionAttrs::ReadOnly => "on",
            _ => return Ok((client, connection)),
        };
        let said = tokio::select! {
            said = client.simple_query("SHOW transaction_read_only") => said?,
            ended = &mut connection => {
                let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(match ended {
                    Err(error) => error,
                    Ok(()) => as_told_by_the_library(&config, gone).await,
                });
            }
        };
        let fits = said.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0) == Some(wanted),
            _ => false,
        });
        if fits {
            return Ok((client, connection));
        }
        let other = io::Error::other("the server does not take what it is wanted for");
        Err(as_told_by_the_library(&config, other).await)
    }
}

/// Without encryption, as within one machine.
impl From<Config> for Database {
    fn from(config: Config) -> Self {
        Self::new(config, None)
    }
}

/// An error of our own as one of the library, which makes its errors itself: it meets this one when it first reads.
async fn as_told_by_the_library(config: &Config, error: io::Error) -> Error {
    let broken = tokio::io::join(Broken(Some(error)), tokio::io::sink());
    let connected = config.connect_raw(broken, NoTls).await;
    connected.err().expect("nobody is at the other end")
}

/// Says why nothing can be read.
struct Broken(Option<io::Error>);

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.take().map_or(Ok(()), Err))
    }
}

type Network = Connection<Socket, Guarded<Way>>;
type Local = Connection<Guarded<UnixStream>, NoTlsStream>;

/// A connection that has to be carried.
enum Line {
    Network(Box<Network>),
    Local(Box<Local>),
}

impl Line {
    /// Carries it to its end; each notification wakes `wake`.
    async fn carry(mut self, wake: Option<Arc<Notify>>) -> Result<(), Error> {
        while let Some(message) = future::poll_fn(|context| self.poll_message(context)).await {
            if let (AsyncMessage::Notification(_), Some(wake)) = (message?, &wake) {
                wake.notify_one();
            }
        }
        Ok(())
    }

    fn poll_message(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, Error>>> {
        match self {
            Self::Network(connection) => connection.poll_message(context),
            Self::Local(connection) => connection.poll_message(context),
        }
    }
}

impl Connect for Database {
    fn connect(
        &self,
        _: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + '_>> {
        Box::pin(async move {
            let (client, line) = self.line().await?;
            let carried = async move {
                if let Err(error) = line.carry(None).await {
                    tracing::warn!(%error, "a connection to the database broke");
                }
            };
            Ok((client, tokio::spawn(carried)))
        })
    }
}

/// In the clear, or encrypted.
type Way = Either<Socket, ServerTlsStream<Socket>>;

/// What the library takes for encryption: our part of a connection that it has dialed.
struct ToHosts<'d>(&'d Database);

/// The same, to one host.
struct ToHost<'d> {
    database: &'d Database,
    host: String,
}

impl<'d> MakeTlsConnect<Socket> for ToHosts<'d> {
    type Stream = Guarded<Way>;
    type TlsConnect = ToHost<'d>;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<ToHost<'d>, Self::Error> {
        Ok(ToHost { database: self.0, host: host.to_owned() })
    }
}

impl<'d> TlsConnect<Socket> for ToHost<'d> {
    type Stream = Guarded<Way>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send + 'd>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            let (way, binding) = match &self.database.tls {
                None => (Either::Left(stream), None),
                Some(tls) => {
                    let stream = tls.encrypt(&self.host, stream).await?;
                    let binding = ServerTls::binding(&stream);
                    (Either::Right(stream), binding)
                }
            };
            Ok(Guarded::new(way, binding, self.database.weak_login))
        })
    }
}
