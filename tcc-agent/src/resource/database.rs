//! A PostgreSQL database as a participant reaches it: its address, and whether what travels there is encrypted.

use std::{
    future::{self, Future},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use holdfast_security::{ServerTls, ServerTlsStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    task::JoinHandle,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Socket,
    config::SslMode,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};

/// Where a database is. Its `Debug` leaves out the password.
#[derive(Clone, Debug)]
pub struct Database {
    config: Config,
    encryption: Encryption,
}

impl Database {
    /// The database of `config`, encrypted as `tls` says or not at all; what `config` itself says about encryption does not count.
    #[must_use]
    pub fn new(config: Config, tls: Option<ServerTls>) -> Self {
        let mut config = config;
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        Self { config, encryption: Encryption(tls) }
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
    pub async fn connect(
        &self,
    ) -> Result<(Client, JoinHandle<Result<(), tokio_postgres::Error>>), tokio_postgres::Error>
    {
        let (client, connection) = self.config.connect(self.encryption.clone()).await?;
        Ok((client, tokio::spawn(connection)))
    }

    /// As [`Self::connect`]; each notification that arrives wakes `wake`.
    /// # Errors
    /// What the server or the way to it says.
    pub(crate) async fn connect_listening(
        &self,
        wake: Arc<Notify>,
    ) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let (client, mut connection) = self.config.connect(self.encryption.clone()).await?;
        let carried = async move {
            while let Some(Ok(message)) = future::poll_fn(|cx| connection.poll_message(cx)).await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    wake.notify_one();
                }
            }
        };
        Ok((client, tokio::spawn(carried)))
    }

    /// What makes the connections of a pool.
    pub(crate) fn manager(&self) -> Manager {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Manager::from_config(self.config.clone(), self.encryption.clone(), recycling)
    }
}

/// Without encryption, as within one machine.
impl From<Config> for Database {
    fn from(config: Config) -> Self {
        Self::new(config, None)
    }
}

/// Lends our encryption to the client library.
#[derive(Clone, Debug)]
struct Encryption(Option<ServerTls>);

/// The same, for one host.
struct ForHost {
    tls: Option<ServerTls>,
    host: String,
}

/// An encrypted connection.
struct Encrypted(ServerTlsStream<Socket>);

impl MakeTlsConnect<Socket> for Encryption {
    type Stream = Encrypted;
    type TlsConnect = ForHost;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<ForHost, Self::Error> {
        Ok(ForHost { tls: self.0.clone(), host: host.to_owned() })
    }
}

impl TlsConnect<Socket> for ForHost {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            // The library asks only where the mode says so, and the mode is set by what is here.
            let tls = self.tls.ok_or_else(|| io::Error::other("no encryption was asked for"))?;
            tls.encrypt(&self.host, stream).await.map(Encrypted)
        })
    }
}

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        match ServerTls::binding(&self.0) {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, room)
    }
}

impl AsyncWrite for Encrypted {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
