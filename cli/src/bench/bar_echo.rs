//! Bar (d): what gRPC itself costs between two processes: a unary call, and a message with its answer on an open stream.

use std::{path::Path, pin::Pin, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use futures::Stream;
use holdfast_client::{
    ClientOptions, Link,
    wire::{
        AddBranchRequest, BeginRequest, ExchangeReply, ExchangeRequest, FinishRequest, GetRequest,
        ListReply, ListRequest, OperateRequest, RetryManyReply, RetryManyRequest, RetryRequest,
        RollBackRequest, SubmitBegunRequest, SubmitRequest, TransactionReply, WaitRequest,
        exchange_reply, exchange_request,
        transactions_client::TransactionsClient,
        transactions_server::{Transactions, TransactionsServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

use super::{
    load::{self, Sample, Shape},
    meters::cpu_us,
    submission,
    worker::{Worker, obey},
};
use crate::demo::ports;

/// Connections that unary calls are spread over; more clients on one stand in each other's way.
pub(crate) const CONNECTIONS: usize = 4;
/// Answers on their way back.
const ANSWERS_MAX: usize = 1_024;
/// For the server to listen.
const LISTENS_MAX: Duration = Duration::from_secs(10);

/// A server that answers at once.
#[derive(Debug, clap::Args)]
pub(crate) struct EchoArgs {
    /// Where it listens
    #[arg(long)]
    port: u16,
}

/// Answers what the real door answers, without doing anything for it.
struct Echo;

/// Serves until standard input ends.
/// # Errors
/// The port is taken.
pub(crate) async fn serve(args: EchoArgs) -> anyhow::Result<ExitCode> {
    let served = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .add_service(TransactionsServer::new(Echo))
        .serve(([127, 0, 0, 1], args.port).into());
    tokio::select! {
        served = served => served?,
        ended = obey(async |_| Ok(true)) => ended?,
    }
    Ok(ExitCode::SUCCESS)
}

fn unsupported<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the echo knows submit and exchange"))
}

#[tonic::async_trait]
impl Transactions for Echo {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ExchangeReply, Status>> + Send>>;

    async fn submit(
        &self,
        _: Request<SubmitRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        Ok(Response::new(TransactionReply::default()))
    }

    async fn exchange(
        &self,
        requests: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut requests = requests.into_inner();
        let (answers, queue) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let reply = Some(exchange_reply::Reply::Transaction(TransactionReply::default()));
                let answer = ExchangeReply { request_id: request.request_id, reply };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn begin(&self, _: Request<BeginRequest>) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn add_branch(
        &self,
        _: Request<AddBranchRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn submit_begun(
        &self,
        _: Request<SubmitBegunRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn roll_back(
        &self,
        _: Request<RollBackRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn retry(&self, _: Request<RetryRequest>) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn operate(
        &self,
        _: Request<OperateRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn retry_many(
        &self,
        _: Request<RetryManyRequest>,
    ) -> Result<Response<RetryManyReply>, Status> {
        unsupported()
    }

    async fn finish(
        &self,
        _: Request<FinishRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn wait(&self, _: Request<WaitRequest>) -> Result<Response<TransactionReply>, Status> {
        unsupported()
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        unsupported()
    }
}

/// The server's process, and connections to it.
#[derive(Debug)]
pub(crate) struct EchoBar {
    server: Worker,
    unary: Vec<TransactionsClient<Channel>>,
    link: Arc<Link>,
}

/// Unary clients of one address, a connection each.
pub(crate) async fn unary(address: &str) -> anyhow::Result<Vec<TransactionsClient<Channel>>> {
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024);
        clients.push(TransactionsClient::new(endpoint.connect().await?));
    }
    Ok(clients)
}

impl EchoBar {
    /// Starts the server and connects.
    pub(crate) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let port = ports::free(1)?[0];
        let arguments = ["echo".to_owned(), "--port".to_owned(), port.to_string()];
        let mut server = Worker::start("echo", &arguments, folder)?;
        server.ask::<bool>("up").await?;
        let address = format!("127.0.0.1:{port}");
        let connected = async {
            loop {
                if let Ok(unary) = unary(&address).await {
                    return unary;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let unary =
            tokio::time::timeout(LISTENS_MAX, connected).await.context("the echo is mute")?;
        let link = Arc::new(Link::open(&address, true, &ClientOptions::default()).await?);
        Ok(Self { server, unary, link })
    }

    /// Unary calls; also what one costs both processes together, us of CPU.
    pub(crate) async fn run_unary(&self, shape: Shape) -> anyhow::Result<(Sample, f64)> {
        let clients = self.unary.clone();
        let ask = move |client: u32| {
            let mut unary = clients[client as usize % CONNECTIONS].clone();
            async move { unary.submit(submission::to_wire()).await.is_ok() }
        };
        self.metered(shape, ask).await
    }

    /// Messages on one stream.
    pub(crate) async fn run_stream(&self, shape: Shape) -> anyhow::Result<(Sample, f64)> {
        let link = Arc::clone(&self.link);
        let ask = move |_| {
            let link = Arc::clone(&link);
            async move {
                link.call(exchange_request::Request::Submit(submission::to_wire())).await.is_ok()
            }
        };
        self.metered(shape, ask).await
    }

    async fn metered<A, F>(&self, shape: Shape, ask: A) -> anyhow::Result<(Sample, f64)>
    where
        A: Fn(u32) -> F + Clone + Send + 'static,
        F: Future<Output = bool> + Send + 'static,
    {
        let pids = [self.server.pid()?, std::process::id()];
        let meters = async || pids.iter().map(|pid| cpu_us(*pid)).sum::<anyhow::Result<f64>>();
        let (sample, before, after) = load::run(shape, meters, ask).await?;
        Ok((sample, (after - before) / sample.between_readings))
    }
}
