//! Answering peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use holdfast_proto::v1::{
    self,
    raft_peer_server::{RaftPeer, RaftPeerServer},
};
use holdfast_security::{ClientAuth, Credentials, Name, Peer, Subject};
use openraft::{
    Raft,
    async_runtime::WatchReceiver as _,
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, VoteRequest,
    },
};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    CHUNK_BYTES_MAX, CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
    client::Peers,
    is_cut_off,
    wire::{TcpListener, incoming},
};
use crate::{
    Config, StateMachine,
    consensus::{Addresses, Consensus},
    convert::{
        Malformed, ballot_from_proto, ballot_to_proto, entry_from_proto, member_to_proto,
        position_from_proto, position_to_proto,
    },
    heartbeat::Heard,
    machine::{Replica, Snapshots},
    store::{directory::Founding, snapshot::SnapshotStore},
};

/// Streams that one connection may have open at once.
const STREAMS_MAX: u32 = 256;
/// Entries of one append.
const ENTRIES_MAX: usize = 4096;

/// Refusals that are remembered to have been said.
const SAID_MAX: usize = 64;
/// Strangers that members vouched for and that are remembered.
const VOUCHED_MAX: usize = 64;

/// The service. Everything a peer says is checked against who it is before openraft hears of it.
pub(crate) struct Door<S: StateMachine> {
    /// One a group.
    seats: Arc<Vec<Seat<S>>>,
    host: Arc<Host>,
    closing: watch::Receiver<bool>,
}

/// One group at this node.
pub(crate) struct Seat<S: StateMachine> {
    pub(crate) raft: Raft<Consensus, Replica<S>>,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) heard: Heard,
}

/// What the groups of this node have in common.
struct Host {
    cluster: String,
    own: v1::RaftMember,
    groups: u32,
    members: BTreeMap<u64, String>,
    entry_bytes_max: usize,
    founding: Founding,
    credentials: Option<Credentials>,
    peers: Peers,
    /// Nodes that are in no membership here, and in that of a member.
    vouched: tokio::sync::Mutex<BTreeSet<u64>>,
    /// One snapshot is taken in at a time.
    snapshot_turn: Semaphore,
    /// Why peers were turned away, as far as it was said: they try again many times a second.
    said: Mutex<BTreeSet<String>>,
}

impl Host {
    fn say_once(&self, cause: &str) {
        let mut said = self.said.lock().expect("no holder panics");
        if said.len() >= SAID_MAX {
            said.clear();
        }
        if said.insert(cause.to_owned()) {
            tracing::warn!(cause, "turned a peer away");
        }
    }
}

impl<S: StateMachine> Door<S> {
    pub(crate) fn new(
        config: &Config,
        seats: Vec<Seat<S>>,
        peers: Peers,
        founding: Founding,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let mut own = Addresses::of(&config.own());
        own.incarnation = founding.incarnation();
        own.reads_format = config.reads_format;
        let members = config.members.iter();
        let host = Host {
            cluster: config.cluster.clone(),
            own: member_to_proto(config.node, &own),
            groups: config.groups,
            members: members.map(|member| (member.node, member.raft.clone())).collect(),
            entry_bytes_max: config.entry_bytes_max(),
            founding,
            credentials: config.credentials.clone(),
            peers,
            vouched: tokio::sync::Mutex::default(),
            snapshot_turn: Semaphore::new(1),
            said: Mutex::default(),
        };
        Self { seats: Arc::new(seats), host: Arc::new(host), closing }
    }

    /// Serves until closing is announced; then every connection ends, and the address is free when this returns.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        patience: Duration,
    ) -> Result<(), tonic::transport::Error> {
        let mut closing = self.closing.clone();
        let guard = match &self.host.credentials {
            None => holdfast_security::Door::DevPlaintext,
            Some(credentials) => holdfast_security::Door::MutualTls {
                credentials: credentials.clone(),
                auth: ClientAuth::Required,
            },
        };
        let service = RaftPeerServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (incoming, closed) = incoming(listener, guard);
        let served = Server::builder()
            .http2_keepalive_interval(Some(10 * patience))
            .http2_keepalive_timeout(Some(2 * patience))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(holdfast_proto::FRAME_BYTES_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move {
                // An error means that the replica is gone, which is as good a reason to stop.
                let _ = closing.wait_for(|closing| *closing).await;
            })
            .await;
        closed.cancelled().await;
        served
    }

    /// Lets in who says that it is a member, and whose certificate says the same.
    async fn admit(&self, by: &Peer, peer: Option<&v1::RaftAddress>) -> Result<&Seat<S>, Status> {
        may_listen()?;
        let host = &*self.host;
        let refuse = |cause: String| {
            host.say_once(&cause);
            Err(Status::permission_denied(cause))
        };
        let Some(peer) = peer else { return refuse("the request names no peer".to_owned()) };
        if peer.cluster != host.cluster {
            return refuse(format!("this is cluster {:?}, not {:?}", host.cluster, peer.cluster));
        }
        if let Err(cause) = host.certified(by, peer.from) {
            return refuse(cause);
        }
        let seat = usize::try_from(peer.group).ok().and_then(|group| self.seats.get(group));
        let Some(seat) = seat else { return refuse(format!("there is no group {}", peer.group)) };
        if peer.to != host.own.node {
            return refuse(format!("this is node {}, not node {}", host.own.node, peer.to));
        }
        if !host.founding.is_meant_by(peer.to_incarnation) {
            return refuse(format!(
                "HF2510 node {} came back with another directory: node {} knows it as {:016x}, and this one is {:016x}. What the \
                 former had voted and acknowledged is forgotten here, so it is let in only after: holdfast cluster replace {}",
                peer.to, peer.from, peer.to_incarnation, host.own.incarnation, peer.to
            ));
        }
        if peer.from == peer.to {
            return refuse(format!("node {} is no peer of itself", peer.from));
        }
        let mut own = host.founding.number();
        // A node that belongs to no cluster yet knows nobody; that its own directory is meant is what it can tell.
        if own != 0 && !self.is_peer(seat, peer.from).await {
            return refuse(format!("node {} is no peer in this cluster", peer.from));
        }
        if own == 0 {
            let (founding, theirs) = (host.founding.clone(), peer.founding);
            own = tokio::task::spawn_blocking(move || founding.keep(theirs))
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|error| Status::internal(error.to_string()))?;
        }
        if own == 0 || own != peer.founding {
            return refuse(format!(
                "node {} is of founding {:016x} of the cluster, this node of {own:016x}: their logs must not meet. \
                 One of the two began with an empty directory, or was restored from a backup; empty its directory and add it anew",
                peer.from, peer.founding
            ));
        }
        Ok(seat)
    }

    /// Whether the membership, the configuration or a member that knows more has this node.
    async fn is_peer(&self, seat: &Seat<S>, node: u64) -> bool {
        let members = recorded(seat);
        // A log without members is empty: it was told of its founding just now, by the one who meant its directory.
        if members.is_empty()
            || members.contains_key(&node)
            || self.host.members.contains_key(&node)
        {
            return true;
        }
        // This node may have missed the entry that made it a member, and the sender may be the leader that would send it.
        let mut vouched = self.host.vouched.lock().await;
        if vouched.contains(&node) {
            return true;
        }
        let asked = members.into_iter().map(|(member, raft)| async move {
            let answer = self.host.peers.hello(&raft, member).await.ok()?;
            let ours = answer.founding == self.host.founding.number();
            (ours && answer.members.contains(&node)).then_some(())
        });
        let found = futures::future::join_all(asked).await.into_iter().any(|one| one.is_some());
        if found && vouched.len() < VOUCHED_MAX {
            vouched.insert(node);
        }
        found
    }
}

impl Host {
    /// Whether the connection is of node `from`, by its certificate. Without credentials nobody has one.
    fn certified(&self, by: &Peer, from: u64) -> Result<(), String> {
        if self.credentials.is_none() {
            return Ok(());
        }
        let said = Name { cluster: self.cluster.clone(), subject: Subject::Node(from) };
        match by {
            Peer::Named(name) if **name == said => Ok(()),
            Peer::Named(name) => {
                Err(format!("HF2606 the holder of the certificate {name} says that it is {said}"))
            }
            Peer::Dev | Peer::Anonymous => {
                Err(format!("HF2606 somebody without a certificate says that it is {said}"))
            }
        }
    }
}

/// Who the connection is of, by its certificate.
fn by<T>(request: &Request<T>) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or(Peer::Anonymous)
}

/// The members of a group as this node knows them, itself excepted.
fn recorded<S: StateMachine>(seat: &Seat<S>) -> BTreeMap<u64, String> {
    let metrics = seat.raft.metrics();
    let metrics = metrics.borrow_watched();
    let nodes = metrics.membership_config.nodes();
    let others = nodes.filter(|(node, _)| **node != metrics.id);
    others.map(|(&node, addresses)| (node, addresses.raft.clone())).collect()
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.to_string())
    }
}

fn stopped(error: &impl ToString) -> Status {
    Status::unavailable(error.to_string())
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::RaftAppendResponse, Status>> + Send>>;

#[tonic::async_trait]
impl<S: StateMachine> RaftPeer for Door<S> {
    type AppendEntriesStream = Answers;

    async fn hello(
        &self,
        request: Request<v1::RaftHello>,
    ) -> Result<Response<v1::RaftHelloReply>, Status> {
        may_listen()?;
        let by = by(&request);
        let request = request.into_inner();
        let host = &*self.host;
        host.certified(&by, request.from).map_err(Status::permission_denied)?;
        if request.cluster != host.cluster {
            let cause = format!("this is cluster {:?}, not {:?}", host.cluster, request.cluster);
            return Err(Status::permission_denied(cause));
        }
        if request.to != 0 && request.to != host.own.node {
            let cause = format!("this is node {}, not node {}", host.own.node, request.to);
            return Err(Status::permission_denied(cause));
        }
        let members = self.seats.first().map(recorded).unwrap_or_default();
        Ok(Response::new(v1::RaftHelloReply {
            member: Some(host.own.clone()),
            founding: host.founding.number(),
            groups: host.groups,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            members: members.into_keys().collect(),
        }))
    }

    async fn vote(
        &self,
        request: Request<v1::RaftVoteRequest>,
    ) -> Result<Response<v1::RaftVoteResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let seat = self.admit(&by, request.peer.as_ref()).await?;
        let asked = VoteRequest {
            vote: ballot_from_proto(request.ballot)?,
            last_log_id: request.last.as_ref().map(position_from_proto),
            leadership_transfer: request.leadership_transfer,
        };
        let answer = if request.pre_vote {
            seat.raft.pre_vote(asked).await
        } else {
            seat.raft.vote(asked).await
        }
        .map_err(|error| stopped(&error))?;
        Ok(Response::new(v1::RaftVoteResponse {
            ballot: Some(ballot_to_proto(&answer.vote)),
            granted: answer.vote_granted,
            last: answer.last_log_id.as_ref().map(position_to_proto),
        }))
    }

    async fn append_entries(
        &self,
        request: Request<Streaming<v1::RaftAppendRequest>>,
    ) -> Result<Response<Answers>, Status> {
        // Answered at once, for the sender may wait for the beginning of the answer before it has anything to send.
        let by = by(&request);
        let mut incoming = request.into_inner();
        let door = self.clone();
        let answers = stream::once(async move {
            let mut closing = door.closing.clone();
            let first = tokio::select! {
                first = incoming.message() => first,
                _ = closing.wait_for(|closing| *closing) => Ok(None),
            };
            match first {
                Ok(None) => stream::empty().boxed(),
                Ok(Some(first)) => match door.admit(&by, first.peer.as_ref()).await {
                    Ok(seat) => answers(seat, first, incoming, closing, &door.host),
                    Err(refusal) => stream::iter([Err(refusal)]).boxed(),
                },
                Err(broken) => stream::iter([Err(broken)]).boxed(),
            }
        });
        Ok(Response::new(answers.flatten().boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftSnapshotResponse>, Status> {
        let by = by(&request);
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("the snapshot is empty"))?;
        let seat = self.admit(&by, first.peer.as_ref()).await?;
        let ballot = ballot_from_proto(first.ballot)?;
        let _turn = self
            .host
            .snapshot_turn
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("another snapshot is being installed"))?;
        let failed = |error: std::io::Error| {
            end_if_unwritable(&error);
            Status::internal(error.to_string())
        };
        let joined = |error: tokio::task::JoinError| Status::internal(error.to_string());
        let store = seat.snapshots.clone();
        let bytes_total = first.bytes_total;
        let mut file = tokio::task::spawn_blocking(move || store.receive(bytes_total))
            .await
            .map_err(joined)?
            .map_err(failed)?;
        let mut next = Some(first);
        while let Some(chunk) = next {
            if chunk.data.len() > CHUNK_BYTES_MAX {
                let bytes = chunk.data.len();
                return Err(Status::invalid_argument(format!("a chunk has {bytes} bytes")));
            }
            file = tokio::task::spawn_blocking(move || file.add(&chunk.data).map(|()| file))
                .await
                .map_err(joined)?
                .map_err(failed)?;
            next = incoming.message().await?;
        }
        let (meta, snapshot) = tokio::task::spawn_blocking(move || file.finish())
            .await
            .map_err(joined)?
            .map_err(failed)?;
        let snapshot = Snapshots { meta, snapshot };
        let answer = seat
            .raft
            .install_full_snapshot(ballot, snapshot)
            .await
            .map_err(|error| stopped(&error))?;
        let ballot = Some(ballot_to_proto(&answer.vote));
        Ok(Response::new(v1::RaftSnapshotResponse { ballot }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::RaftTransferRequest>,
    ) -> Result<Response<v1::RaftTransferResponse>, Status> {
        use v1::raft_transfer_response::Outcome;
        let by = by(&request);
        let request = request.into_inner();
        let seat = self.admit(&by, request.peer.as_ref()).await?;
        let ballot = ballot_from_proto(request.ballot)?;
        let last = request.last.as_ref().map(position_from_proto);
        let asked = TransferLeaderRequest::new(ballot, request.next_leader, last);
        let answer =
            seat.raft.handle_transfer_leader(asked).await.map_err(|error| stopped(&error))?;
        let outcome = match answer {
            Ok(()) => Outcome::Accepted(v1::RaftNothing {}),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Outcome::BallotChanged(ballot_to_proto(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                let position = actual.as_ref().map(position_to_proto);
                Outcome::NotCaughtUp(v1::RaftMatched { position })
            }
        };
        Ok(Response::new(v1::RaftTransferResponse { outcome: Some(outcome) }))
    }
}

impl<S: StateMachine> Clone for Door<S> {
    fn clone(&self) -> Self {
        Self {
            seats: Arc::clone(&self.seats),
            host: Arc::clone(&self.host),
            closing: self.closing.clone(),
        }
    }
}

fn may_listen() -> Result<(), Status> {
    if is_cut_off() {
        return Err(Status::unavailable("a drill holds this node apart"));
    }
    Ok(())
}

/// A disk that takes no snapshot takes no log soon: the node stops before it has to lie.
fn end_if_unwritable(error: &std::io::Error) {
    use std::io::ErrorKind;
    // Errors of the sender are these two, and one that was refused before anything was written.
    if matches!(
        error.kind(),
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof
    ) {
        return;
    }
    tracing::error!(%error, "HF1202 cannot write a snapshot that the leader sends; aborting. Check the disk and its space, then start again");
    std::process::abort()
}

/// The answers to the requests of one stream, of which the first has arrived.
fn answers<S: StateMachine>(
    seat: &Seat<S>,
    first: v1::RaftAppendRequest,
    incoming: Streaming<v1::RaftAppendRequest>,
    closing: watch::Receiver<bool>,
    host: &Host,
) -> Answers {
    let appends =
        Appends { first: Some(first), incoming, closing, entry_bytes_max: host.entry_bytes_max };
    let refusal = Arc::new(Mutex::new(None));
    let refused = Arc::clone(&refusal);
    let requests = stream::unfold(appends, move |mut appends| {
        let refused = Arc::clone(&refused);
        async move {
            match appends.next().await {
                Ok(next) => next.map(|request| (request, appends)),
                Err(status) => {
                    *refused.lock().expect("no holder panics") = Some(status);
                    None
                }
            }
        }
    });
    let heard = seat.heard.clone();
    let answers = seat.raft.stream_append(requests).map(move |answer| match answer {
        Ok(answer) => {
            // One whom this node does not follow any more is no leader to wait for.
            if !matches!(answer, Err(StreamAppendError::HigherVote(_))) {
                heard.note();
            }
            Ok(append_to_proto(&answer))
        }
        Err(fatal) => Err(stopped(&fatal)),
    });
    let last = stream::once(async move { refusal.lock().expect("no holder panics").take() })
        .filter_map(|refusal| async move { refusal.map(Err) });
    answers.chain(last).boxed()
}

/// The requests of one stream.
struct Appends {
    /// The one that told who is speaking.
    first: Option<v1::RaftAppendRequest>,
    incoming: Streaming<v1::RaftAppendRequest>,
    closing: watch::Receiver<bool>,
    entry_bytes_max: usize,
}

impl Appends {
    async fn next(&mut self) -> Result<Option<AppendEntriesRequest<Consensus>>, Status> {
        let message = match self.first.take() {
            Some(first) => Some(first),
            None => tokio::select! {
                message = self.incoming.message() => message?,
                _ = self.closing.wait_for(|closing| *closing) => None,
            },
        };
        if message.is_some() {
            may_listen()?;
        }
        message.map(|message| append_from_proto(message, self.entry_bytes_max)).transpose()
    }
}

/// Checks an append before openraft hears of it.
pub(crate) fn append_from_proto(
    message: v1::RaftAppendRequest,
    entry_bytes_max: usize,
) -> Result<AppendEntriesRequest<Consensus>, Status> {
    if message.entries.len() > ENTRIES_MAX {
        let count = message.entries.len();
        return Err(Status::invalid_argument(format!("an append has {count} entries")));
    }
    let entries = message.entries.into_iter();
    let entries = entries.map(|entry| entry_from_proto(entry, entry_bytes_max));
    Ok(AppendEntriesRequest {
        vote: ballot_from_proto(message.ballot)?,
        prev_log_id: message.previous.as_ref().map(position_from_proto),
        entries: entries.collect::<Result<_, _>>()?,
        leader_commit: message.committed.as_ref().map(position_from_proto),
    })
}

fn append_to_proto(answer: &StreamAppendResult<Consensus>) -> v1::RaftAppendResponse {
    use v1::raft_append_response::Outcome;
    let outcome = match answer {
        Ok(matched) => {
            let position = matched.as_ref().map(position_to_proto);
            Outcome::Matched(v1::RaftMatched { position })
        }
        Err(StreamAppendError::Conflict(conflict)) => {
            Outcome::Conflict(position_to_proto(conflict))
        }
        Err(StreamAppendError::HigherVote(ballot)) => {
            Outcome::HigherBallot(ballot_to_proto(ballot))
        }
    };
    v1::RaftAppendResponse { outcome: Some(outcome) }
}
