//! Opens connections to nodes, each judged by the name in its certificate.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};
use tower::Service;

use crate::{Credentials, read_ahead::ReadAhead};

/// Why no connection could be opened.
pub type ConnectError = tonic::transport::Error;

/// An encrypted connection to a node.
pub type Connection = TlsStream<ReadAhead<TcpStream>>;

/// A `tower` service from an address to a TLS connection.
#[derive(Clone, Debug)]
pub struct Connector {
    credentials: Credentials,
    node: Option<u64>,
}

impl Connector {
    pub(crate) fn new(credentials: Credentials, node: Option<u64>) -> Self {
        Self { credentials, node }
    }

    /// A connection to `address` (`host:port`) that speaks `protocol` (ALPN).
    /// # Errors
    /// Nobody listens there, or whoever does is not the node that is expected.
    pub async fn open(&self, address: &str, protocol: &[u8]) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The name in the certificate is judged, not this one.
        let unused = "holdfast".try_into().expect("a name of letters");
        let config = self.credentials.client(self.node, protocol);
        TlsConnector::from(Arc::clone(&config)).connect(unused, ReadAhead::new(stream)).await
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let address = uri.authority().map(|authority| authority.as_str().to_owned());
            let address = address.ok_or_else(|| io::Error::other("no address to connect to"))?;
            Ok(TokioIo::new(this.open(&address, b"h2").await?))
        })
    }
}

/// Connects `endpoint`, by TLS if there are credentials.
/// # Errors
/// [`ConnectError`].
pub async fn dial(
    endpoint: &Endpoint,
    credentials: Option<&Credentials>,
) -> Result<Channel, ConnectError> {
    match credentials {
        None => endpoint.connect().await,
        Some(credentials) => endpoint.connect_with_connector(credentials.connector(None)).await,
    }
}
