//! Speaking to peers.

mod append;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error as _,
    iter,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, stream};
use holdfast_proto::v1::{self, raft_peer_client::RaftPeerClient};
use holdfast_security::Credentials;
use openraft::{
    OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetTransferLeader, NetVote, RPCOption, RPCTypes,
        RaftNetworkFactory,
    },
    raft::{
        SnapshotResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use self::append::Heartbeats;
use super::{
    CHANNELS_MAX, CHUNK_BYTES_MAX, CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
    is_cut_off, wire,
};
use crate::{
    Config,
    consensus::{Addresses, Ballot, Consensus, LogId, StoredMembership},
    convert::{
        Malformed, ballot_from_proto, ballot_to_proto, position_from_proto, position_to_proto,
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

/// Makes clients of the peers of one group; connections are opened when needed, and shared by the groups of a node.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
    group: u32,
    /// What the membership says of each node. A stream outlives a change of it, so each attempt looks here.
    recorded: Arc<Mutex<Recorded>>,
}

#[derive(Debug, Default)]
struct Recorded {
    /// The membership that was looked at last.
    at: Option<LogId>,
    members: BTreeMap<u64, Addresses>,
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
    credentials: Option<Credentials>,
    channels: Mutex<HashMap<(u64, String, Lane), Channel>>,
    /// Members that entries could not be sent to when it was last tried.
    out_of_reach: Mutex<BTreeSet<(u32, u64)>>,
    /// Members that were not where the log says, and are looked for where the configuration says.
    elsewhere: Mutex<BTreeSet<u64>>,
}

impl Shared {
    /// Says when a member is lost and when it is found again, and nothing in between.
    fn note(&self, group: u32, member: u64, reached: Result<(), &Status>) {
        let mut out_of_reach = self.out_of_reach.lock().expect("no holder panics");
        match reached {
            Ok(()) if out_of_reach.remove(&(group, member)) => {
                tracing::info!(member, group, "the member is within reach again");
            }
            Err(cause) if out_of_reach.insert((group, member)) => {
                tracing::warn!(
                    member,
                    group,
                    cause = cause.message(),
                    "the member is out of reach; it is tried again until it answers"
                );
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn channel(&self, target: u64, raft: &str, lane: Lane) -> Channel {
        let mut channels = self.channels.lock().expect("no holder panics");
        if channels.len() >= CHANNELS_MAX {
            // Addresses of nodes that were replaced; those in use are opened again.
            channels.clear();
        }
        let channel = channels.entry((target, raft.to_owned(), lane)).or_insert_with(|| {
            let patience = self.election_max.max(Duration::from_millis(500));
            let endpoint = Endpoint::from_shared(format!("http://{raft}"))
                // An address that was checked when the replica was opened, or came from a member that had been.
                .unwrap_or_else(|_| Endpoint::from_static("http://[100::]:1"))
                .tcp_nodelay(true)
                .connect_timeout(self.election_min)
                // An unanswered ping is how a connection to a machine that is gone ends. Who dials needs to know; who is dialed, only some day.
                .http2_keep_alive_interval(2 * patience)
                .keep_alive_timeout(2 * patience)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(holdfast_proto::FRAME_BYTES_MAX);
            wire::dial(&endpoint, self.credentials.as_ref(), target)
        });
        channel.clone()
    }

    /// A client of node `target` (0: whichever listens there) at `raft`.
    fn client(&self, target: u64, raft: &str, lane: Lane) -> RaftPeerClient<Channel> {
        RaftPeerClient::new(self.channel(target, raft, lane))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Peers {
    pub(crate) fn new(config: &Config, founding: Founding) -> Self {
        let members =
            config.members.iter().map(|member| (member.node, member.raft.clone())).collect();
        let shared = Shared {
            cluster: config.cluster.clone(),
            node: config.node,
            members,
            election_min: Duration::from_millis(config.election_min_ms),
            election_max: Duration::from_millis(config.election_max_ms),
            founding,
            credentials: config.credentials.clone(),
            channels: Mutex::default(),
            out_of_reach: Mutex::default(),
            elsewhere: Mutex::default(),
        };
        Self { shared: Arc::new(shared), group: 0, recorded: Arc::default() }
    }

    /// The same connections, for another group.
    pub(crate) fn of_group(&self, group: u32) -> Self {
        Self { shared: Arc::clone(&self.shared), group, recorded: Arc::default() }
    }

    /// Takes note of the membership.
    pub(crate) fn record(&self, membership: &StoredMembership) {
        let mut recorded = self.recorded.lock().expect("no holder panics");
        if recorded.at == *membership.log_id() {
            return;
        }
        recorded.at = *membership.log_id();
        recorded.members =
            membership.nodes().map(|(&node, addresses)| (node, addresses.clone())).collect();
    }

    /// Of this node; 0 while it has none.
    pub(crate) fn founding(&self) -> u64 {
        self.shared.founding.number()
    }

    /// Asks whoever listens there who it is.
    pub(crate) async fn hello(&self, raft: &str, to: u64) -> Result<v1::RaftHelloReply, String> {
        let Shared { cluster, node, .. } = &*self.shared;
        let question = v1::RaftHello { cluster: cluster.clone(), from: *node, to };
        let limit = 2 * self.shared.election_max.max(Duration::from_millis(500));
        let mut client = self.shared.client(to, raft, Lane::Control);
        let answer = tokio::time::timeout(limit, client.hello(question)).await;
        let answer = answer.map_err(|_| format!("no answer within {} ms", limit.as_millis()))?;
        Ok(answer.map_err(|status| with_cause(&status))?.into_inner())
    }

    fn peer(&self, target: u64, recorded: &Addresses, lane: Lane) -> Peer {
        let mut known = self.recorded.lock().expect("no holder panics");
        known.members.insert(target, recorded.clone());
        drop(known);
        let stall_max = 2 * self.shared.election_max;
        Peer { peers: self.clone(), target, lane, stall_max, heartbeats: None }
    }
}

/// What a status says, and what is behind it: "tcp connect error" alone does not tell a wrong port from a wrong address.
fn with_cause(status: &Status) -> String {
    let deepest = iter::successors(status.source(), |&error| error.source()).last();
    deepest.map_or_else(
        || status.message().to_owned(),
        |cause| format!("{}: {cause}", status.message()),
    )
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
    peers: Peers,
    target: u64,
    lane: Lane,
    /// A stream on which nothing is answered for so long is given up.
    stall_max: Duration,
    /// Of the last heartbeat, if it was answered.
    heartbeats: Option<Heartbeats>,
}

type RpcResult<T> = Result<T, RPCError<Consensus>>;

impl Peer {
    fn recorded(&self) -> Addresses {
        let recorded = self.peers.recorded.lock().expect("no holder panics");
        recorded.members.get(&self.target).cloned().unwrap_or_default()
    }

    /// What every conversation begins with.
    fn address(&self) -> v1::RaftAddress {
        let Shared { cluster, node, founding, .. } = &*self.peers.shared;
        v1::RaftAddress {
            cluster: cluster.clone(),
            group: self.peers.group,
            from: *node,
            to: self.target,
            // Whoever has something to say has a log, and with it a founding.
            founding: founding.number(),
            to_incarnation: self.recorded().incarnation,
        }
    }

    /// A client of the peer where the log says that it is; or, if it was not there, where the configuration says.
    fn client(&self, lane: Lane) -> RaftPeerClient<Channel> {
        let shared = &self.peers.shared;
        let recorded = self.recorded().raft;
        let elsewhere = shared.elsewhere.lock().expect("no holder panics").contains(&self.target);
        let configured = shared.members.get(&self.target).filter(|_| elsewhere);
        shared.client(self.target, configured.unwrap_or(&recorded), lane)
    }

    /// A peer that cannot be reached, or turns this node away, is asked again only after a pause.
    fn failed(&self, status: &Status) -> RPCError<Consensus> {
        if matches!(status.code(), Code::Unavailable | Code::PermissionDenied) {
            let mut elsewhere = self.peers.shared.elsewhere.lock().expect("no holder panics");
            if !elsewhere.remove(&self.target) {
                elsewhere.insert(self.target);
            }
        }
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
            return Err(
                Unreachable::new(&Status::unavailable("a drill holds this node apart")).into()
            );
        }
        Ok(())
    }

    fn malformed(malformed: &Malformed) -> RPCError<Consensus> {
        Unreachable::new(malformed).into()
    }

    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RPCError<Consensus> {
        let id = self.peers.shared.node;
        Timeout { action, id, target: self.target, timeout }.into()
    }

    async fn ask(
        &mut self,
        request: VoteRequest<Consensus>,
        pre_vote: bool,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<Consensus>> {
        let message = v1::RaftVoteRequest {
            peer: Some(self.address()),
            ballot: Some(ballot_to_proto(&request.vote)),
            last: request.last_log_id.as_ref().map(position_to_proto),
            leadership_transfer: request.leadership_transfer,
            pre_vote,
        };
        let limit = option.hard_ttl();
        Self::may_speak()?;
        let mut control = self.client(Lane::Control);
        let answer = tokio::time::timeout(limit, control.vote(message))
            .await
            .map_err(|_| self.timed_out(RPCTypes::Vote, limit))?
            .map_err(|status| self.failed(&status))?
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
        let mut client = self.client(self.lane);
        let call = client.install_snapshot(chunks(file, self.address(), vote));
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = tokio::time::timeout(limit, call) => answer,
        };
        let answer = answer
            .map_err(|_| self.timed_out(RPCTypes::InstallSnapshot, limit))?
            .map_err(|status| self.failed(&status))?
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
            peer: Some(self.address()),
            ballot: Some(ballot_to_proto(req.from_leader())),
            next_leader: *req.to_node_id(),
            last: req.last_log_id().map(position_to_proto),
        };
        let limit = option.hard_ttl();
        Self::may_speak()?;
        let mut control = self.client(Lane::Control);
        let answer = tokio::time::timeout(limit, control.transfer_leader(message))
            .await
            .map_err(|_| self.timed_out(RPCTypes::TransferLeader, limit))?
            .map_err(|status| self.failed(&status))?
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
