//! Opens the doors of a node, keeps them open until it is told to stop, and drains.

use std::{net::SocketAddr, time::Duration};

use holdfast_proto::{
    DESCRIPTORS,
    v1::{
        admin_server::AdminServer, participants_server::ParticipantsServer,
        services_server::ServicesServer, transactions_server::TransactionsServer,
    },
};
use holdfast_security::{Gate, Incoming};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    Coordinator, ServeError,
    config::Security,
    http,
    rights::RpcGuard,
    rpc::{
        self, Desk, admin::Admin, participants::Participants, services::Services,
        transactions::Transactions,
    },
};

/// Window of one stream, bytes.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Window of one connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Streams, so unary calls too, on one connection at once.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// Bytes of the headers of one call, which CONTINUATION frames cannot exceed.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// Streams that a caller opened and reset before they were looked at; one more ends its connection.
const RESETS_PENDING_MAX: usize = 64;
/// For requests under way to be answered after a shutdown began.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Between two pings of a quiet connection, and the wait for their answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

impl Coordinator {
    /// Listens for callers and agents until `shutdown`, then drains and stops the node.
    /// # Errors
    /// [`ServeError`] if an address cannot be bound or a door breaks; the node is stopped either way.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let bind = self.config().bind;
        let listeners =
            async { Ok((listen("grpc", bind.grpc).await?, listen("http", bind.http).await?)) };
        match listeners.await {
            Ok((grpc, http)) => self.serve_on(grpc, http, shutdown).await,
            Err(fault) => {
                self.stop().await;
                Err(fault)
            }
        }
    }

    /// As [`Self::serve`], on listeners that are bound already.
    /// # Errors
    /// [`ServeError`] if a door breaks; the node is stopped either way.
    pub async fn serve_on(
        self,
        grpc: TcpListener,
        http: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let closing = CancellationToken::new();
        self.keep_certificates_fresh(&closing);
        let mut grpc = tokio::spawn(
            self.clone().grpc_door(self.gate(grpc, "grpc", b"h2", &closing), closing.clone()),
        );
        let mut http = tokio::spawn(
            self.clone().http_door(self.gate(http, "http", b"http/1.1", &closing), closing.clone()),
        );
        let broken = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut grpc => Some(broken("grpc", ended)),
            ended = &mut http => Some(broken("http", ended)),
        };
        // Another node leads before the doors close: meanwhile callers are told where, and agents still answer.
        self.hand_over().await;
        tracing::info!("the doors close");
        closing.cancel();
        // Sessions end; what callers sent is answered while the log still runs.
        self.begin_stop();
        for door in [&mut grpc, &mut http] {
            if !door.is_finished() && timeout(DRAIN_MAX, &mut *door).await.is_err() {
                tracing::warn!("a door still had requests under way and was shut");
                door.abort();
            }
        }
        self.stop().await;
        broken.map_or(Ok(()), Err)
    }

    /// Takes over new certificates and entries while the doors are open.
    fn keep_certificates_fresh(&self, closing: &CancellationToken) {
        if let Security::MutualTls { credentials, access, .. } = &self.config().security {
            // Ends with the doors.
            holdfast_security::keep_fresh(Some(credentials), access.clone(), closing);
        }
    }

    fn gate(
        &self,
        listener: TcpListener,
        door: &'static str,
        protocol: &'static [u8],
        closing: &CancellationToken,
    ) -> Incoming {
        Gate::new(listener, door, self.config().security.door(), protocol).open(closing.clone())
    }

    async fn grpc_door(self, incoming: Incoming, closing: CancellationToken) -> Result<(), String> {
        let desk = Desk::new(self.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<TransactionsServer<Transactions>>().await;
        health.set_serving::<ParticipantsServer<Participants>>().await;
        health.set_serving::<AdminServer<Admin>>().await;
        health.set_serving::<ServicesServer<Services>>().await;
        let stopping = self.stopping();
        let leaving = async move {
            stopping.cancelled().await;
            health.set_not_serving::<TransactionsServer<Transactions>>().await;
            health.set_not_serving::<ParticipantsServer<Participants>>().await;
        };
        // Ends with the node: by then the token is cancelled.
        tokio::spawn(leaving);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|fault| fault.to_string())?;
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(holdfast_proto::FRAME_BYTES_MAX)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .http2_max_header_list_size(Some(HEADERS_BYTES_MAX))
            .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
            .layer(RpcGuard::new(self.clone()))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(rpc::transactions::service(desk.clone()))
            .add_service(rpc::services::service(desk.clone()))
            .add_service(rpc::history::service(desk.clone()))
            .add_service(rpc::shards::service(desk.clone()))
            .add_service(rpc::audit::service(desk.clone()))
            .add_service(rpc::admin::service(desk))
            .add_service(rpc::participants::service(&self))
            .serve_with_incoming_shutdown(incoming, async move { closing.cancelled().await })
            .await
            .map_err(|fault| fault.to_string())
    }

    async fn http_door(self, incoming: Incoming, closing: CancellationToken) -> Result<(), String> {
        let metrics = self.metrics();
        let router = http::router(Desk::new(self), metrics);
        http::serve(incoming, router, closing).await;
        Ok(())
    }
}

async fn listen(door: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).await.map_err(|cause| ServeError::Bind {
        door,
        address,
        cause,
    })?;
    tracing::info!(%address, door, "listening");
    Ok(listener)
}

/// A door that ended although nobody told it to.
fn broken(
    door: &'static str,
    ended: Result<Result<(), String>, tokio::task::JoinError>,
) -> ServeError {
    let cause = match ended {
        Ok(Ok(())) => "it ended by itself".to_owned(),
        Ok(Err(fault)) => fault,
        Err(fault) => fault.to_string(),
    };
    ServeError::Door { door, cause }
}
