//! Speaking to peers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use holdfast_proto::v1::{self, raft_peer_client::RaftPeerClient};
use openraft::{
    OptionalSend,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
        RPCTypes, RaftNetworkFactory,
    },
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    CHUNK_BYTES_MAX, CONNECTION_WINDOW_BYTES, GROUP, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
    is_cut_off, wire,
};
use crate::{
    Config,
    consensus::{Addresses, Ballot, Consensus},
    convert::{
        Malformed, ballot_from_proto, ballot_to_proto, entry_to_proto, position_from_proto,
        position_to_proto,
    },
    machine::Snapshots,
    store::{directory::Founding, snapshot::SnapshotFile},
};

/// What travels on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    /// Entries.
    Log,
    /// Heartbeats, votes, hand-overs: small and urgent.
    Control,
    /// Snapshots.
    Bulk,
}

/// Makes clients of peers; connections are opened when needed and shared.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cluster: String,
    node: u64,
    /// Where the configuration says that members are.
    members: HashMap<u64, String>,
    election_min: Duration,
    election_max: Duration,
    founding: Founding,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
    /// Members that entries could not be sent to when it was last tried.
    out_of_reach: Mutex<BTreeSet<u64>>,
}

impl Shared {
    /// Says when a member is lost and when it is found again, and nothing in between.
    fn note(&self, member: u64, reached: Result<(), &Status>) {
        let mut out_of_reach = self.out_of_reach.lock().expect("no holder panics");
        match reached {
            Ok(()) if out_of_reach.remove(&member) => {
                tracing::info!(member, "the member is within reach again");
            }
            Err(cause) if out_of_reach.insert(member) => {
                tracing::warn!(
                    member,
                    cause = cause.message(),
                    "the member is out of reach; it is tried again until it answers"
                );
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl Peers {
    pub(crate) fn new(config: &Config, founding: Founding) -> Self {
        let members =
            config.members.iter().map(|member| (member.node, member.raft.clone())).collect();
        Self {
            shared: Arc::new(Shared {
                cluster: config.cluster.clone(),
                node: config.node,
                members,
                election_min: Duration::from_millis(config.election_min_ms),
                election_max: Duration::from_millis(config.election_max_ms),
                founding,
                channels: Mutex::default(),
                out_of_reach: Mutex::default(),
            }),
        }
    }

    fn peer(&self, target: u64, recorded: &Addresses, lane: Lane) -> Peer {
        // The configuration is newer than the entry that made the node a member.
        let raft = self.shared.members.get(&target).unwrap_or(&recorded.raft);
        let client = |lane| {
            RaftPeerClient::new(self.channel(raft, lane))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
        Peer {
            shared: Arc::clone(&self.shared),
            node: self.shared.node,
            target,
            address: v1::RaftAddress {
                cluster: self.shared.cluster.clone(),
                group: GROUP,
                from: self.shared.node,
                to: target,
                // Whoever has something to say has a log, and with it a founding.
                founding: self.shared.founding.number(),
            },
            lane: client(lane),
            control: client(Lane::Control),
            stall_max: 2 * self.shared.election_max,
        }
    }

    fn channel(&self, raft: &str, lane: Lane) -> Channel {
        let mut channels = self.shared.channels.lock().expect("no holder panics");
        let channel = channels.entry((raft.to_owned(), lane)).or_insert_with(|| {
            let patience = self.shared.election_max.max(Duration::from_millis(500));
            let endpoint = Endpoint::from_shared(format!("http://{raft}"))
                // An address that was checked when the replica was opened, or came from a member that had been.
                .unwrap_or_else(|_| Endpoint::from_static("http://[100::]:1"))
                .tcp_nodelay(true)
                .connect_timeout(self.shared.election_min)
                .http2_keep_alive_interval(patience)
                .keep_alive_timeout(2 * patience)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
            wire::dial(&endpoint)
        });
        channel.clone()
    }
}

impl RaftNetworkFactory<Consensus> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Addresses) -> Peer {
        self.peer(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Addresses) -> Peer {
        self.peer(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Addresses) -> Peer {
        self.peer(target, node, Lane::Bulk)
    }
}

/// A client of one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    shared: Arc<Shared>,
    node: u64,
    target: u64,
    address: v1::RaftAddress,
    lane: RaftPeerClient<Channel>,
    control: RaftPeerClient<Channel>,
    /// A stream on which nothing is answered for so long is given up.
    stall_max: Duration,
}

type RpcResult<T> = Result<T, RPCError<Consensus>>;

impl Peer {
    /// A peer that cannot be reached, or turns this node away, is asked again only after a pause.
    fn failed(status: &Status) -> RPCError<Consensus> {
        match status.code() {
            Code::Unavailable | Code::PermissionDenied | Code::Unimplemented => {
                Unreachable::new(status).into()
            }
            _ => NetworkError::new(status).into(),
        }
    }

    /// Not while a drill holds this node apart.
    fn may_speak() -> RpcResult<()> {
        if is_cut_off() {
            return Err(Self::failed(&Status::unavailable("a drill holds this node apart")));
        }
        Ok(())
    }

    fn malformed(malformed: &Malformed) -> RPCError<Consensus> {
        Unreachable::new(malformed).into()
    }

    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RPCError<Consensus> {
        Timeout { action, id: self.node, target: self.target, timeout }.into()
    }

    async fn ask(
        &mut self,
        request: VoteRequest<Consensus>,
        pre_vote: bool,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<Consensus>> {
        let message = v1::RaftVoteRequest {
            peer: Some(self.address.clone()),
            ballot: Some(ballot_to_proto(&request.vote)),
            last: request.last_log_id.as_ref().map(position_to_proto),
            leadership_transfer: request.leadership_transfer,
            pre_vote,
        };
        let limit = option.hard_ttl();
        Self::may_speak()?;
        let answer = tokio::time::timeout(limit, self.control.vote(message))
            .await
            .map_err(|_| self.timed_out(RPCTypes::Vote, limit))?
            .map_err(|status| Self::failed(&status))?
            .into_inner();
        let ballot = ballot_from_proto(answer.ballot).map_err(|error| Self::malformed(&error))?;
        let last = answer.last.as_ref().map(position_from_proto);
        Ok(VoteResponse::new(ballot, last, answer.granted))
    }
}

impl NetBackoff<Consensus> for Peer {
    fn backoff(&self) -> Option<Backoff> {
        // A peer that restarts is found again well within an election; one that is gone costs ten attempts a second.
        Some(Backoff::new((0u32..).map(|nth| Duration::from_millis(100.min(20 << nth.min(8))))))
    }
}

impl NetVote<Consensus> for Peer {
    async fn vote(
        &mut self,
        rpc: VoteRequest<Consensus>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<Consensus>> {
        self.ask(rpc, false, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Consensus>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<Consensus>> {
        self.ask(rpc, true, option).await
    }
}

fn append_to_proto(
    request: &AppendEntriesRequest<Consensus>,
    address: Option<v1::RaftAddress>,
) -> v1::RaftAppendRequest {
    v1::RaftAppendRequest {
        peer: address,
        ballot: Some(ballot_to_proto(&request.vote)),
        previous: request.prev_log_id.as_ref().map(position_to_proto),
        entries: request.entries.iter().map(entry_to_proto).collect(),
        committed: request.leader_commit.as_ref().map(position_to_proto),
    }
}

fn append_from_proto(
    response: v1::RaftAppendResponse,
) -> Result<StreamAppendResult<Consensus>, Malformed> {
    use v1::raft_append_response::Outcome;
    Ok(match response.outcome.ok_or(Malformed::Missing("the outcome of an append"))? {
        Outcome::Matched(matched) => Ok(matched.position.as_ref().map(position_from_proto)),
        Outcome::Conflict(conflict) => {
            Err(StreamAppendError::Conflict(position_from_proto(&conflict)))
        }
        Outcome::HigherBallot(ballot) => {
            Err(StreamAppendError::HigherVote(ballot_from_proto(Some(ballot))?))
        }
    })
}

/// What is under way on a stream of appends.
#[derive(Debug, Default)]
struct Progress {
    sent: AtomicU64,
    answered: AtomicU64,
}

impl NetStreamAppend<Consensus> for Peer {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<Consensus>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + OptionalSend + Unpin + 'static,
    {
        let progress = Arc::new(Progress::default());
        let sending = Arc::clone(&progress);
        let mut address = Some(self.address.clone());
        async move {
            // openraft paces its attempts by the first request that it hands out, so nothing is dialed before it is here:
            // a peer that is gone would otherwise be dialed without a pause.
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            Self::may_speak()?;
            let outbound = stream::iter([first]).chain(input);
            let outbound =
                outbound.take_while(|_| std::future::ready(!is_cut_off())).map(move |request| {
                    sending.sent.fetch_add(1, Ordering::Relaxed);
                    append_to_proto(&request, address.take())
                });
            let limit = self.stall_max;
            let inbound = tokio::time::timeout(limit, self.lane.append_entries(outbound))
                .await
                .map_err(|_| self.timed_out(RPCTypes::AppendEntries, limit))?;
            self.shared.note(self.target, inbound.as_ref().map(|_| ()));
            let inbound = inbound.map_err(|status| Self::failed(&status))?.into_inner();
            let peer = &*self;
            let answers = stream::unfold(Some(inbound), move |inbound| {
                let progress = Arc::clone(&progress);
                async move {
                    let mut inbound = inbound?;
                    let answer = match peer.next_answer(&mut inbound, &progress).await {
                        Ok(None) => return None,
                        Ok(Some(answer)) => append_from_proto(answer)
                            .map_err(|malformed| Self::malformed(&malformed)),
                        Err(error) => Err(error),
                    };
                    // Whatever is not a success ends the stream.
                    let goes_on = matches!(answer, Ok(Ok(_)));
                    Some((answer, goes_on.then_some(inbound)))
                }
            });
            Ok(answers.boxed())
        }
        .boxed()
    }
}

impl Peer {
    /// The next answer, or an error if there is none while something sent before the wait began is unanswered.
    async fn next_answer(
        &self,
        inbound: &mut tonic::Streaming<v1::RaftAppendResponse>,
        progress: &Progress,
    ) -> RpcResult<Option<v1::RaftAppendResponse>> {
        let mut overdue = progress.sent.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(self.stall_max, inbound.message()).await {
                Ok(answer) => {
                    Self::may_speak()?;
                    progress.answered.fetch_add(1, Ordering::Relaxed);
                    return answer.map_err(|status| Self::failed(&status));
                }
                Err(_) if progress.answered.load(Ordering::Relaxed) < overdue => {
                    return Err(self.timed_out(RPCTypes::AppendEntries, self.stall_max));
                }
                Err(_) => overdue = progress.sent.load(Ordering::Relaxed),
            }
        }
    }
}

impl NetSnapshot<Consensus> for Peer {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Ballot,
        snapshot: Snapshots,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Consensus>, StreamingError<Consensus>> {
        let file = snapshot.snapshot;
        // A floor for the network, and time for the follower to restore the state.
        let limit = Duration::from_secs(60 + file.bytes / (1024 * 1024));
        Self::may_speak()?;
        let call = self.lane.install_snapshot(chunks(file, self.address.clone(), vote));
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = tokio::time::timeout(limit, call) => answer,
        };
        let answer = answer
            .map_err(|_| self.timed_out(RPCTypes::InstallSnapshot, limit))?
            .map_err(|status| Self::failed(&status))?
            .into_inner();
        let ballot = ballot_from_proto(answer.ballot).map_err(|error| Self::malformed(&error))?;
        Ok(SnapshotResponse::new(ballot))
    }
}

/// The file in chunks. If it cannot be read the stream ends early, which the receiver notices.
fn chunks(
    file: SnapshotFile,
    address: v1::RaftAddress,
    ballot: Ballot,
) -> impl Stream<Item = v1::RaftSnapshotChunk> + Send + 'static {
    stream::unfold((file, 0, Some(address)), move |(file, offset, mut address)| async move {
        let reader = file.clone();
        let read = tokio::task::spawn_blocking(move || reader.chunk(offset, CHUNK_BYTES_MAX)).await;
        let data = match read {
            Ok(Ok(data)) => data,
            Ok(Err(error)) => {
                tracing::error!(%error, offset, "cannot read the snapshot to send it");
                return None;
            }
            Err(_) => return None,
        };
        if data.is_empty() {
            return None;
        }
        let next = offset + data.len() as u64;
        let chunk = v1::RaftSnapshotChunk {
            peer: address.take(),
            ballot: Some(ballot_to_proto(&ballot)),
            bytes_total: file.bytes,
            data: data.into(),
        };
        Some((chunk, (file, next, address)))
    })
}

impl NetTransferLeader<Consensus> for Peer {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Consensus>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<Consensus>> {
        use v1::raft_transfer_response::Outcome;
        let message = v1::RaftTransferRequest {
            peer: Some(self.address.clone()),
            ballot: Some(ballot_to_proto(req.from_leader())),
            next_leader: *req.to_node_id(),
            last: req.last_log_id().map(position_to_proto),
        };
        let limit = option.hard_ttl();
        Self::may_speak()?;
        let answer = tokio::time::timeout(limit, self.control.transfer_leader(message))
            .await
            .map_err(|_| self.timed_out(RPCTypes::TransferLeader, limit))?
            .map_err(|status| Self::failed(&status))?
            .into_inner();
        Ok(match answer.outcome {
            Some(Outcome::Accepted(_)) => Ok(()),
            Some(Outcome::BallotChanged(ballot)) => Err(TransferLeaderError::VoteChanged {
                expected: *req.from_leader(),
                actual: ballot_from_proto(Some(ballot)).map_err(|error| Self::malformed(&error))?,
            }),
            Some(Outcome::NotCaughtUp(matched)) => Err(TransferLeaderError::LogNotFlushed {
                expected: req.last_log_id().copied(),
                actual: matched.position.as_ref().map(position_from_proto),
            }),
            None => {
                let missing = Malformed::Missing("the outcome of a hand-over");
                return Err(Self::malformed(&missing));
            }
        })
    }
}
