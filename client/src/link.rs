//! One open stream to one coordinator node: many requests under way, answered by number in any order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Streaming,
    metadata::{AsciiMetadataValue, MetadataMap},
    service::interceptor::{InterceptedService, Interceptor},
    transport::{Channel, Endpoint},
};

use crate::{
    ClientOptions, LEADS_HERE,
    wire::{
        ExchangeReply, ExchangeRequest, OnBehalf, exchange_reply::Reply, exchange_request,
        transactions_client::TransactionsClient,
    },
};

/// Metadata by which a request or a stream says whether a follower may hand it to the leader.
pub const FORWARD_HEADER: &str = "holdfast-forward";
/// The value that says it must not: the follower answers with the leader's address instead.
pub const FORWARD_NEVER: &str = "never";
/// Metadata of an answered stream: whether the node leads.
const LEADS_HEADER: &str = "holdfast-leads";
/// Metadata of an answered stream: the gRPC address of the leader, where it is known.
const LEADER_HEADER: &str = "holdfast-leader";
/// Metadata of an answered stream: who leads each Raft group, comma-separated: `*` for the node itself, nothing where it is not known.
const GROUPS_HEADER: &str = "holdfast-groups";
/// Metadata of an answered stream: the gRPC addresses of all nodes, comma-separated.
const NODES_HEADER: &str = "holdfast-nodes";

/// Requests waiting for the stream to take them; a sender waits for its turn.
const QUEUE_MAX: usize = 1_024;
/// Replies taken in at once.
const BATCH_MAX: usize = 256;
/// Groups that a node may say it has; far above what there can be.
const GROUPS_MAX: usize = 64;
/// Bytes of one reply.
const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One open stream to one coordinator node. Cheap to call from many tasks; ends when it is dropped.
#[derive(Debug)]
pub struct Link {
    address: String,
    requests: mpsc::Sender<ExchangeRequest>,
    pending: Arc<Pending>,
    next: AtomicU64,
    reader: JoinHandle<()>,
    told: Told,
    opened: Instant,
}

/// What the node said of its cluster when the stream was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Who leads each group: [`LEADS_HERE`], or a gRPC address, or nothing where it is not known. At least one.
    pub(crate) groups: Vec<String>,
    /// gRPC addresses of all nodes.
    pub(crate) nodes: Vec<String>,
}

/// The stream broke before the answer came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream to {address} broke{}", if *.sent { "; the request may have arrived" } else { " before the request was sent" })]
pub struct Lost {
    /// The node.
    pub address: String,
    /// Whether the request may have arrived.
    pub sent: bool,
}

/// No stream could be opened. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address}: {cause}")]
pub struct OpenError {
    /// The node.
    pub address: String,
    /// Why, for people.
    pub cause: String,
    /// The code of a refusal that another attempt cannot change: the node does not let this caller in.
    pub code: Option<String>,
}

/// Who waits for which answer; `None` once the stream has ended.
#[derive(Debug)]
struct Pending(Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>);

impl Pending {
    fn with<T>(
        &self,
        act: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Reply>>>) -> T,
    ) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Forgets a request whose caller has gone.
struct Waiting<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pending.with(|open| open.as_mut().and_then(|map| map.remove(&self.id)));
    }
}

impl Link {
    /// Opens a stream to the node at `address` (`host:port`). With `forward`, a follower hands requests on to the leader;
    /// otherwise it answers with the leader's address.
    /// # Errors
    /// [`OpenError`]; nothing was sent.
    pub async fn open(
        address: &str,
        forward: bool,
        options: &ClientOptions,
    ) -> Result<Self, OpenError> {
        let failed = |cause: String| OpenError { address: address.to_owned(), cause, code: None };
        let channel = channel(address, options).await?;
        let mut client =
            TransactionsClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let mut request = Request::new(ReceiverStream::new(queue));
        if !forward {
            let never = AsciiMetadataValue::from_static(FORWARD_NEVER);
            request.metadata_mut().insert(FORWARD_HEADER, never);
        }
        let response = timeout(options.connect_timeout(), client.exchange(request))
            .await
            .map_err(|_| failed(format!("no stream within {} ms", options.connect_timeout_ms)))?
            .map_err(|status| OpenError {
                code: not_let_in(&status),
                ..failed(format!("{}: {}", status.code(), status.message()))
            })?;
        let told = Told::of(response.metadata());
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
        let reader = tokio::spawn(read(response.into_inner(), Arc::clone(&pending)));
        Ok(Self {
            address: address.to_owned(),
            requests,
            pending,
            next: AtomicU64::new(1),
            reader,
            told,
            opened: Instant::now(),
        })
    }

    /// Sends `request` and waits for its reply, without a bound in time: bound it at the caller. Dropping the future
    /// gives up the answer, not the request.
    /// # Errors
    /// [`Lost`], which says whether the request may have arrived.
    pub async fn call(&self, request: exchange_request::Request) -> Result<Reply, Lost> {
        self.call_for(request, None).await
    }

    /// As [`Self::call`], by one node for whoever asked it. Anybody but a node is refused.
    /// # Errors
    /// [`Lost`].
    pub async fn call_for(
        &self,
        request: exchange_request::Request,
        on_behalf_of: Option<OnBehalf>,
    ) -> Result<Reply, Lost> {
        let lost = |sent| Lost { address: self.address.clone(), sent };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let permit = self.requests.reserve().await.map_err(|_| lost(false))?;
        let (tell, told) = oneshot::channel();
        self.pending
            .with(|open| open.as_mut().map(|map| map.insert(id, tell)))
            .ok_or_else(|| lost(false))?;
        let _waiting = Waiting { pending: &self.pending, id };
        permit.send(ExchangeRequest { request_id: id, request: Some(request), on_behalf_of });
        told.await.map_err(|_| lost(true))
    }

    /// The node at the other end.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the stream is still open, as far as is known here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.requests.is_closed() && self.pending.with(|open| open.is_some())
    }

    pub(crate) fn told(&self) -> &Told {
        &self.told
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Told {
    /// Whether it leads a group.
    pub(crate) fn leads(&self, group: usize) -> bool {
        self.groups.get(group).is_some_and(|leader| leader == LEADS_HERE)
    }

    /// The gRPC address of another node that leads a group, where it is known.
    pub(crate) fn leader(&self, group: usize) -> Option<&str> {
        let leader = self.groups.get(group).map(String::as_str);
        leader.filter(|leader| !leader.is_empty() && *leader != LEADS_HERE)
    }

    fn of(metadata: &MetadataMap) -> Self {
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        Self {
            groups: Self::groups_of(
                text(GROUPS_HEADER),
                text(LEADS_HEADER) == Some("true"),
                text(LEADER_HEADER),
            ),
            nodes: text(NODES_HEADER)
                .unwrap_or_default()
                .split(',')
                .filter(|node| !node.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }
}

impl Told {
    /// A node that says nothing of groups has one.
    fn groups_of(groups: Option<&str>, leads: bool, leader: Option<&str>) -> Vec<String> {
        match groups {
            Some(groups) => groups.split(',').take(GROUPS_MAX).map(str::to_owned).collect(),
            None if leads => vec![LEADS_HERE.to_owned()],
            None => vec![leader.unwrap_or_default().to_owned()],
        }
    }
}

/// Hands each reply to whoever waits for it, until the stream ends; then all others learn that it did.
async fn read(replies: Streaming<ExchangeReply>, pending: Arc<Pending>) {
    let mut batches = replies.ready_chunks(BATCH_MAX);
    'stream: while let Some(batch) = batches.next().await {
        let mut due = Vec::with_capacity(batch.len());
        let mut ended = false;
        pending.with(|open| {
            for reply in batch {
                let Ok(ExchangeReply { request_id, reply: Some(reply) }) = reply else {
                    ended = true;
                    break;
                };
                let tell = open.as_mut().and_then(|map| map.remove(&request_id));
                due.extend(tell.map(|tell| (tell, reply)));
            }
        });
        for (tell, reply) in due {
            // Whoever asked may have gone.
            let _ = tell.send(reply);
        }
        if ended {
            break 'stream;
        }
    }
    pending.with(Option::take);
}

/// The code of a refusal of whoever asks, whatever is asked.
fn not_let_in(status: &tonic::Status) -> Option<String> {
    let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
    let code = status.metadata().get("holdfast-code").filter(|_| refused)?;
    code.to_str().ok().map(str::to_owned)
}

/// A connection that shows the token, if there is one, with every request.
pub type Line = InterceptedService<Channel, Bearer>;

/// Adds the token to each request.
#[derive(Clone, Debug)]
pub struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Bearer {
    fn of(options: &ClientOptions) -> Self {
        let token = options.token.as_ref().filter(|_| options.credentials.is_some());
        Self(token.map(|token| {
            let mut value = AsciiMetadataValue::try_from(format!("Bearer {}", token.reveal()))
                .expect("a token is letters and digits");
            value.set_sensitive(true);
            value
        }))
    }
}

/// Whether nothing leaves this machine on the way to `address`.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A connection to the node at `address` (`host:port`), with pings that notice when it is gone.
/// # Errors
/// [`OpenError`].
pub async fn channel(address: &str, options: &ClientOptions) -> Result<Line, OpenError> {
    let failed = |cause: String| OpenError { address: address.to_owned(), cause, code: None };
    if options.credentials.is_none() && !is_loopback(address) {
        let cause =
            "without TLS only loopback addresses are spoken to; give the authority's certificate";
        return Err(failed(cause.to_owned()));
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| failed(format!("not an address of the form host:port ({error})")))?
        .connect_timeout(options.connect_timeout())
        .tcp_nodelay(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(holdfast_proto::FRAME_BYTES_MAX)
        .http2_keep_alive_interval(options.silence_max() / 2)
        .keep_alive_timeout(options.silence_max() / 2)
        .keep_alive_while_idle(true);
    let connecting = holdfast_security::dial(&endpoint, options.credentials.as_ref());
    let channel = timeout(options.connect_timeout(), connecting)
        .await
        .map_err(|_| failed(format!("no connection within {} ms", options.connect_timeout_ms)))?
        .map_err(|error| failed(causes(&error)))?;
    Ok(InterceptedService::new(channel, Bearer::of(options)))
}

/// An error with its causes, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
