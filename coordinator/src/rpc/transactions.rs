//! The gRPC service of callers: unary requests, and the exchange stream that carries thousands at once.

use std::{future::Future as _, pin::Pin, sync::Arc, task::Poll};

use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use holdfast_client::{FORWARD_HEADER, FORWARD_NEVER, LEADS_HERE};
use holdfast_proto::v1::{
    AddBranchRequest, BeginRequest, ExchangeReply, ExchangeRequest, FinishRequest, GetRequest,
    ListReply, ListRequest, OnBehalf, OperateRequest, RetryManyReply, RetryManyRequest,
    RetryRequest, RollBackRequest, SubmitBegunRequest, SubmitRequest, TransactionReply,
    WaitRequest,
    exchange_reply::Reply,
    exchange_request::Request as Asked,
    transactions_server::{Transactions as Service, TransactionsServer},
};
use holdfast_security::{Right, Role};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use super::{
    desk::{Desk, Hop},
    fault::{Class, Fault},
    forward::asked_by,
    traced,
};
use crate::rights::{Shown, enter, mistaken};

/// Requests of one exchange stream that are under way at once; the next is read when one is answered.
pub const EXCHANGE_UNDER_WAY_MAX: usize = 4_096;

/// `holdfast.v1.Transactions` at one node's desk.
#[derive(Clone, Debug)]
pub struct Transactions {
    desk: Desk,
}

/// The service as tonic serves it, with the configured bound on a request's bytes.
#[must_use]
pub fn service(desk: Desk) -> TransactionsServer<Transactions> {
    let bytes = desk.coordinator().config().limits.request_bytes_max;
    TransactionsServer::new(Transactions { desk }).max_decoding_message_size(bytes)
}

impl Transactions {
    async fn unary<T>(
        &self,
        request: Request<T>,
        kind: impl FnOnce(T) -> Asked,
    ) -> Result<Response<TransactionReply>, Status> {
        let hop = hop(request.metadata());
        let desk = self.desk.serving(request.extensions().get()).map_err(|f| f.to_status())?;
        let traceparent = request.metadata().get(holdfast_trace::HEADER).cloned();
        let mut asked = kind(request.into_inner());
        let traceparent = traceparent.as_ref().and_then(|value| value.to_str().ok());
        traced::belongs_to(&mut asked, traceparent);
        match desk.answer(asked, hop).await {
            Ok(told) => Ok(Response::new(told.reply)),
            Err(fault) => Err(fault.to_status()),
        }
    }

    /// What whoever opens a stream should know of the cluster: whether this node leads, who does, and who else there is.
    fn introduce(&self, metadata: &mut MetadataMap) {
        let coordinator = self.desk.coordinator();
        let (leads, leader) = self.desk.leading();
        let nodes = coordinator.doors();
        let groups = coordinator.each_group().map(|group| match group.leader() {
            _ if group.leads() => LEADS_HERE.to_owned(),
            leader => leader.map(|leader| leader.grpc).unwrap_or_default(),
        });
        let groups: Vec<String> = groups.collect();
        let pairs = [
            ("holdfast-groups", groups.join(",")),
            ("holdfast-leads", leads.to_string()),
            ("holdfast-leader", leader.unwrap_or_default()),
            ("holdfast-nodes", nodes.join(",")),
        ];
        for (name, value) in pairs {
            if let Ok(value) = AsciiMetadataValue::try_from(value) {
                metadata.insert(name, value);
            }
        }
    }
}

#[tonic::async_trait]
impl Service for Transactions {
    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Submit).await
    }

    async fn begin(
        &self,
        request: Request<BeginRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Begin).await
    }

    async fn add_branch(
        &self,
        request: Request<AddBranchRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::AddBranch).await
    }

    async fn submit_begun(
        &self,
        request: Request<SubmitBegunRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::SubmitBegun).await
    }

    async fn roll_back(
        &self,
        request: Request<RollBackRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::RollBack).await
    }

    async fn retry(
        &self,
        request: Request<RetryRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Retry).await
    }

    async fn operate(
        &self,
        request: Request<OperateRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Operate).await
    }

    async fn finish(
        &self,
        request: Request<FinishRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Finish).await
    }

    async fn get(
        &self,
        request: Request<GetRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Get).await
    }

    async fn wait(
        &self,
        request: Request<WaitRequest>,
    ) -> Result<Response<TransactionReply>, Status> {
        self.unary(request, Asked::Wait).await
    }

    async fn retry_many(
        &self,
        request: Request<RetryManyRequest>,
    ) -> Result<Response<RetryManyReply>, Status> {
        let hop = hop(request.metadata());
        let desk = self.desk.serving(request.extensions().get()).map_err(|f| f.to_status())?;
        let retried = desk.retry_many(request.get_ref(), hop).await;
        retried.map(Response::new).map_err(|fault| fault.to_status())
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let desk = self.desk.serving(request.extensions().get()).map_err(|f| f.to_status())?;
        let listed = desk.list(request.get_ref()).await;
        listed.map(Response::new).map_err(|fault| fault.to_status())
    }

    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ExchangeReply, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let hop = hop(request.metadata());
        let shown = request.extensions().get::<Shown>().cloned();
        let replies = exchange(self.desk.clone(), shown, request.into_inner(), hop);
        let mut response: Response<Self::ExchangeStream> = Response::new(Box::pin(replies));
        self.introduce(response.metadata_mut());
        Ok(response)
    }
}

pub(super) fn hop(metadata: &MetadataMap) -> Hop {
    match metadata.get(FORWARD_HEADER) {
        Some(value) if value.as_bytes() == FORWARD_NEVER.as_bytes() => Hop::Never,
        _ => Hop::May,
    }
}

/// The replies of one stream. Everything that has arrived is taken in before anything is waited for, so that requests which
/// came together are proposed together; replies that are ready together leave in one write. No task and no queue of its
/// own: a caller that does not read its replies is not read from. When the node stops, what was taken in is answered
/// and the rest is left unread, so its senders ask the next leader.
fn exchange(
    desk: Desk,
    shown: Option<Shown>,
    mut requests: Streaming<ExchangeRequest>,
    hop: Hop,
) -> impl Stream<Item = Result<ExchangeReply, Status>> + Send {
    let mut under_way = FuturesUnordered::new();
    let mut ended = None;
    // A caller keeps its stream open; a node that stops must end it, or it would wait for the caller to go.
    let mut stopping = Box::pin(desk.coordinator().stopping().cancelled_owned());
    futures::stream::poll_fn(move |context| {
        if ended.is_none() && stopping.as_mut().poll(context).is_ready() {
            ended = Some(Ok(()));
        }
        while ended.is_none() && under_way.len() < EXCHANGE_UNDER_WAY_MAX {
            match requests.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(request))) => {
                    under_way.push(answer(desk.clone(), shown.clone(), request, hop))
                }
                Poll::Ready(Some(Err(status))) => ended = Some(Err(status)),
                Poll::Ready(None) => ended = Some(Ok(())),
                Poll::Pending => break,
            }
        }
        match under_way.poll_next_unpin(context) {
            Poll::Ready(Some(reply)) => Poll::Ready(Some(Ok(reply))),
            Poll::Ready(None) => match &mut ended {
                None => Poll::Pending,
                // What was asked before is answered; now the stream ends as it was ended.
                Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
            },
            Poll::Pending => Poll::Pending,
        }
    })
}

/// The desk as it serves whom a node asks for.
pub(super) fn behalf(desk: Desk, on_behalf_of: Option<&OnBehalf>) -> Result<Desk, Fault> {
    let (dev, node) = (desk.caller().is_dev(), desk.caller().roles.contains(&Role::Node));
    match on_behalf_of {
        None => Ok(desk),
        Some(_) if dev => Ok(desk),
        Some(told) if node => Ok(desk.serving_caller(Arc::new(asked_by(told)))),
        Some(_) => {
            let words = "nothing was done: only a node asks on behalf of somebody else".to_owned();
            Err(Fault::new(Class::Denied, "HF2602", words))
        }
    }
}

async fn answer(
    desk: Desk,
    shown: Option<Shown>,
    request: ExchangeRequest,
    hop: Hop,
) -> ExchangeReply {
    let ExchangeRequest { request_id, request, on_behalf_of } = request;
    let answer = counted(&desk, shown.as_ref(), on_behalf_of.as_ref(), request, hop).await;
    let reply = answer.map_or_else(|fault| Reply::Error(fault.to_wire()), Reply::Transaction);
    ExchangeReply { request_id, reply: Some(reply) }
}

/// The answer to one message, which counts among its caller's requests as a call of its own would.
async fn counted(
    desk: &Desk,
    shown: Option<&Shown>,
    on_behalf_of: Option<&OnBehalf>,
    request: Option<Asked>,
    hop: Hop,
) -> Result<TransactionReply, Fault> {
    let desk = desk.serving(shown)?;
    let pass = enter(&desk.coordinator().registry(), desk.caller(), Right::Transact)?;
    let answer = match (behalf(desk, on_behalf_of), request) {
        (Ok(desk), Some(asked)) => desk.answer(asked, hop).await.map(|told| told.reply),
        (Err(fault), _) => Err(fault),
        (Ok(_), None) => {
            let words =
                "nothing was done: the request is empty, or of a kind that this node does not know"
                    .to_owned();
            Err(Fault::new(Class::BadInput, "HF2301", words))
        }
    };
    if let Some(pass) = pass {
        pass.ended(answer.as_ref().is_err_and(|fault| mistaken(fault.class)));
    }
    answer
}
