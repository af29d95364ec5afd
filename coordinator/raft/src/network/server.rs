//! Answering peers.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use holdfast_proto::v1::{
    self,
    raft_peer_server::{RaftPeer, RaftPeerServer},
};
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
    CHUNK_BYTES_MAX, CONNECTION_WINDOW_BYTES, GROUP, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
    is_cut_off,
    wire::{TcpListener, incoming},
};
use crate::{
    Config, StateMachine,
    consensus::Consensus,
    convert::{
        Malformed, ballot_from_proto, ballot_to_proto, entry_from_proto, position_from_proto,
        position_to_proto,
    },
    machine::{Replica, Snapshots},
    store::{directory::Founding, snapshot::SnapshotStore},
};

/// Streams that one connection may have open at once.
const STREAMS_MAX: u32 = 64;
/// Entries of one append.
const ENTRIES_MAX: usize = 4096;

/// The service. Everything a peer says is checked against who it is before openraft hears of it.
pub(crate) struct Door<S: StateMachine> {
    raft: Raft<Consensus, Replica<S>>,
    snapshots: SnapshotStore,
    cluster: String,
    node: u64,
    members: HashSet<u64>,
    entry_bytes_max: usize,
    founding: Founding,
    /// One snapshot is taken in at a time.
    snapshot_turn: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
}

impl<S: StateMachine> Door<S> {
    pub(crate) fn new(
        config: &Config,
        raft: Raft<Consensus, Replica<S>>,
        snapshots: SnapshotStore,
        founding: Founding,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            raft,
            snapshots,
            cluster: config.cluster.clone(),
            node: config.node,
            members: config.members.iter().map(|member| member.node).collect(),
            entry_bytes_max: config.entry_bytes_max(),
            founding,
            snapshot_turn: Arc::new(Semaphore::new(1)),
            closing,
        }
    }

    /// Serves until closing is announced; then every connection ends.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        patience: Duration,
    ) -> Result<(), tonic::transport::Error> {
        let mut closing = self.closing.clone();
        let service = RaftPeerServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let incoming = incoming(listener);
        Server::builder()
            .http2_keepalive_interval(Some(patience))
            .http2_keepalive_timeout(Some(2 * patience))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move {
                // An error means that the replica is gone, which is as good a reason to stop.
                let _ = closing.wait_for(|closing| *closing).await;
            })
            .await
    }

    async fn admit(&self, peer: Option<&v1::RaftAddress>) -> Result<(), Status> {
        if is_cut_off() {
            return Err(Status::unavailable("a drill holds this node apart"));
        }
        let refuse = |cause: String| {
            tracing::warn!(%cause, "turned a peer away");
            Err(Status::permission_denied(cause))
        };
        let Some(peer) = peer else { return refuse("the request names no peer".to_owned()) };
        if peer.cluster != self.cluster {
            return refuse(format!("this is cluster {:?}, not {:?}", self.cluster, peer.cluster));
        }
        if peer.group != GROUP {
            return refuse(format!("there is no group {}", peer.group));
        }
        if peer.to != self.node {
            return refuse(format!("this is node {}, not node {}", self.node, peer.to));
        }
        let recorded = || {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_node(&peer.from).is_some()
        };
        let known = self.members.contains(&peer.from) || recorded();
        if !known || peer.from == self.node {
            return refuse(format!("node {} is no peer in this cluster", peer.from));
        }
        let mut own = self.founding.number();
        if own == 0 {
            let (founding, theirs) = (self.founding.clone(), peer.founding);
            own = tokio::task::spawn_blocking(move || founding.keep(theirs))
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|error| Status::internal(error.to_string()))?;
        }
        if own == 0 || own != peer.founding {
            return refuse(format!(
                "node {} is of founding {:016x} of the cluster, this node of {own:016x}: their logs must not meet. \
                 One of the two began with an empty directory; give that node a new number",
                peer.from, peer.founding
            ));
        }
        Ok(())
    }
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

    async fn vote(
        &self,
        request: Request<v1::RaftVoteRequest>,
    ) -> Result<Response<v1::RaftVoteResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.peer.as_ref()).await?;
        let asked = VoteRequest {
            vote: ballot_from_proto(request.ballot)?,
            last_log_id: request.last.as_ref().map(position_from_proto),
            leadership_transfer: request.leadership_transfer,
        };
        let answer = if request.pre_vote {
            self.raft.pre_vote(asked).await
        } else {
            self.raft.vote(asked).await
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
        let first = Appends {
            incoming: request.into_inner(),
            admitted: false,
            closing: self.closing.clone(),
        };
        let refusal = Arc::new(Mutex::new(None));
        let refused = Arc::clone(&refusal);
        let door = self.clone();
        let requests = stream::unfold(first, move |mut appends| {
            let door = door.clone();
            let refused = Arc::clone(&refused);
            async move {
                match appends.next(&door).await {
                    Ok(next) => next.map(|request| (request, appends)),
                    Err(status) => {
                        *refused.lock().expect("no holder panics") = Some(status);
                        None
                    }
                }
            }
        });
        let answers = self.raft.stream_append(requests).map(|answer| match answer {
            Ok(answer) => Ok(append_to_proto(&answer)),
            Err(fatal) => Err(stopped(&fatal)),
        });
        let last = stream::once(async move { refusal.lock().expect("no holder panics").take() })
            .filter_map(|refusal| async move { refusal.map(Err) });
        Ok(Response::new(answers.chain(last).boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftSnapshotResponse>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("the snapshot is empty"))?;
        self.admit(first.peer.as_ref()).await?;
        let ballot = ballot_from_proto(first.ballot)?;
        let _turn = self
            .snapshot_turn
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("another snapshot is being installed"))?;
        let failed = |error: std::io::Error| Status::internal(error.to_string());
        let joined = |error: tokio::task::JoinError| Status::internal(error.to_string());
        let store = self.snapshots.clone();
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
        let answer = self
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
        let request = request.into_inner();
        self.admit(request.peer.as_ref()).await?;
        let ballot = ballot_from_proto(request.ballot)?;
        let last = request.last.as_ref().map(position_from_proto);
        let asked = TransferLeaderRequest::new(ballot, request.next_leader, last);
        let answer =
            self.raft.handle_transfer_leader(asked).await.map_err(|error| stopped(&error))?;
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
            raft: self.raft.clone(),
            snapshots: self.snapshots.clone(),
            cluster: self.cluster.clone(),
            node: self.node,
            members: self.members.clone(),
            entry_bytes_max: self.entry_bytes_max,
            founding: self.founding.clone(),
            snapshot_turn: Arc::clone(&self.snapshot_turn),
            closing: self.closing.clone(),
        }
    }
}

/// The requests of one stream.
struct Appends {
    incoming: Streaming<v1::RaftAppendRequest>,
    admitted: bool,
    closing: watch::Receiver<bool>,
}

impl Appends {
    async fn next<S: StateMachine>(
        &mut self,
        door: &Door<S>,
    ) -> Result<Option<AppendEntriesRequest<Consensus>>, Status> {
        let message = tokio::select! {
            message = self.incoming.message() => message?,
            _ = self.closing.wait_for(|closing| *closing) => None,
        };
        let Some(message) = message else { return Ok(None) };
        if !self.admitted || is_cut_off() {
            door.admit(message.peer.as_ref()).await?;
            self.admitted = true;
        }
        if message.entries.len() > ENTRIES_MAX {
            let count = message.entries.len();
            return Err(Status::invalid_argument(format!("an append has {count} entries")));
        }
        let limit = door.entry_bytes_max;
        let entries = message.entries.into_iter().map(|entry| entry_from_proto(entry, limit));
        Ok(Some(AppendEntriesRequest {
            vote: ballot_from_proto(message.ballot)?,
            prev_log_id: message.previous.as_ref().map(position_from_proto),
            entries: entries.collect::<Result<_, _>>()?,
            leader_commit: message.committed.as_ref().map(position_from_proto),
        }))
    }
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
