//! Entries and heartbeats on their way to a follower.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::{FutureExt as _, Stream, StreamExt as _, channel::mpsc, stream};
use holdfast_proto::v1;
use openraft::{
    OptionalSend,
    base::{BoxFuture, BoxStream},
    network::{NetStreamAppend, RPCOption, RPCTypes},
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use tonic::{Status, Streaming};

use super::{super::is_cut_off, Lane, Peer, RpcResult};
use crate::{
    consensus::Consensus,
    convert::{
        Malformed, ballot_from_proto, ballot_to_proto, entry_to_proto, position_from_proto,
        position_to_proto,
    },
};

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

/// The heartbeats of one leader to one follower, on one stream from the first on: to open a stream for each cost both of them more
/// than all else of a heartbeat, and a quiet cluster does nothing else.
#[derive(Debug)]
pub(super) struct Heartbeats {
    requests: mpsc::Sender<v1::RaftAppendRequest>,
    answers: Streaming<v1::RaftAppendResponse>,
}

impl Heartbeats {
    /// The one before it was answered, so there is room.
    fn say(&mut self, request: v1::RaftAppendRequest) -> Result<(), Status> {
        self.requests.try_send(request).map_err(|error| Status::unavailable(error.to_string()))
    }
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
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<Consensus>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + OptionalSend + Unpin + 'static,
    {
        match self.lane {
            Lane::Control => std::future::ready(Ok(self.beats(input).boxed())).boxed(),
            Lane::Log | Lane::Bulk => self.entries(input).boxed(),
        }
    }
}

impl Peer {
    async fn entries<S>(
        &mut self,
        mut input: S,
    ) -> RpcResult<BoxStream<'_, RpcResult<StreamAppendResult<Consensus>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + OptionalSend + Unpin + 'static,
    {
        let progress = Arc::new(Progress::default());
        let sending = Arc::clone(&progress);
        // openraft paces its attempts by the first request that it hands out, so nothing is dialed before it is here:
        // a peer that is gone would otherwise be dialed without a pause.
        let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
        Self::may_speak()?;
        let mut address = Some(self.address());
        let mut client = self.client(self.lane);
        let outbound = stream::iter([first]).chain(input);
        let outbound =
            outbound.take_while(|_| std::future::ready(!is_cut_off())).map(move |request| {
                sending.sent.fetch_add(1, Ordering::Relaxed);
                append_to_proto(&request, address.take())
            });
        let limit = self.stall_max;
        let inbound = tokio::time::timeout(limit, client.append_entries(outbound))
            .await
            .map_err(|_| self.timed_out(RPCTypes::AppendEntries, limit))?;
        self.peers.shared.note(self.peers.group, self.target, inbound.as_ref().map(|_| ()));
        let inbound = inbound.map_err(|status| self.failed(&status))?.into_inner();
        let peer = &*self;
        let answers = stream::unfold(Some(inbound), move |inbound| {
            let progress = Arc::clone(&progress);
            async move {
                let mut inbound = inbound?;
                let answer = match peer.next_answer(&mut inbound, &progress).await {
                    Ok(None) => return None,
                    Ok(Some(answer)) => {
                        append_from_proto(answer).map_err(|malformed| Self::malformed(&malformed))
                    }
                    Err(error) => Err(error),
                };
                // Whatever is not a success ends the stream.
                let goes_on = matches!(answer, Ok(Ok(_)));
                Some((answer, goes_on.then_some(inbound)))
            }
        });
        Ok(answers.boxed())
    }

    /// One heartbeat after the other, each sent when the one before it is answered. openraft gives up one that is not answered in time.
    fn beats<S>(
        &mut self,
        input: S,
    ) -> impl Stream<Item = RpcResult<StreamAppendResult<Consensus>>> + Send
    where
        S: Stream<Item = AppendEntriesRequest<Consensus>> + OptionalSend + Unpin + 'static,
    {
        stream::unfold(Some((self, input)), |state| async move {
            let (peer, mut input) = state?;
            let request = input.next().await?;
            let answer = peer.beat(&request).await;
            // Whatever is not a success ends the stream.
            let goes_on = matches!(answer, Ok(Ok(_)));
            Some((answer, goes_on.then_some((peer, input))))
        })
    }

    async fn beat(
        &mut self,
        request: &AppendEntriesRequest<Consensus>,
    ) -> RpcResult<StreamAppendResult<Consensus>> {
        // Taken out while it waits: whoever gives this up gives the stream up, so that no late answer is one to the next heartbeat.
        let open = self.heartbeats.take();
        Self::may_speak()?;
        let mut stream = match open {
            Some(mut open) => {
                open.say(append_to_proto(request, None)).map_err(|status| self.failed(&status))?;
                open
            }
            None => self.open_heartbeats(request).await?,
        };
        let answer = stream.answers.message().await;
        let answer = answer
            .and_then(|answer| answer.ok_or_else(|| Status::unavailable("the follower closed")))
            .map_err(|status| self.failed(&status))?;
        Self::may_speak()?;
        let answer = append_from_proto(answer).map_err(|malformed| Self::malformed(&malformed))?;
        if answer.is_ok() {
            self.heartbeats = Some(stream);
        }
        Ok(answer)
    }

    async fn open_heartbeats(
        &self,
        first: &AppendEntriesRequest<Consensus>,
    ) -> RpcResult<Heartbeats> {
        let (mut requests, outbound) = mpsc::channel(0);
        let first = append_to_proto(first, Some(self.address()));
        requests.try_send(first).expect("there is room for one");
        let opened = self.client(self.lane).append_entries(outbound).await;
        self.peers.shared.note(self.peers.group, self.target, opened.as_ref().map(|_| ()));
        let answers = opened.map_err(|status| self.failed(&status))?.into_inner();
        Ok(Heartbeats { requests, answers })
    }

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
                    return answer.map_err(|status| self.failed(&status));
                }
                Err(_) if progress.answered.load(Ordering::Relaxed) < overdue => {
                    return Err(self.timed_out(RPCTypes::AppendEntries, self.stall_max));
                }
                Err(_) => overdue = progress.sent.load(Ordering::Relaxed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_proto::v1::{
        raft_append_response::Outcome,
        raft_peer_server::{RaftPeer, RaftPeerServer},
    };
    use openraft::network::RaftNetworkFactory as _;
    use tonic::{Request, Response, transport::Server};

    use super::*;
    use crate::{
        config::tests::sound,
        consensus::{Addresses, Ballot, log_id},
        network::client::Peers,
        store::{LogStore, Options, writer::RealDisk},
    };

    /// What it answers to nobody.
    const SILENT: u64 = 3;
    /// What it answers with a conflict.
    const CONFLICT: u64 = 5;

    /// A follower that answers each heartbeat with its own place.
    #[derive(Clone, Default)]
    struct Follower {
        streams: Arc<AtomicU64>,
        addressed: Arc<AtomicU64>,
    }

    impl Follower {
        fn answer(&self, request: &v1::RaftAppendRequest) -> Option<v1::RaftAppendResponse> {
            self.addressed.fetch_add(u64::from(request.peer.is_some()), Ordering::SeqCst);
            let position = request.previous?;
            let outcome = match position.index {
                SILENT => return None,
                CONFLICT => Outcome::Conflict(position),
                _ => Outcome::Matched(v1::RaftMatched { position: Some(position) }),
            };
            Some(v1::RaftAppendResponse { outcome: Some(outcome) })
        }
    }

    #[tonic::async_trait]
    impl RaftPeer for Follower {
        type AppendEntriesStream = BoxStream<'static, Result<v1::RaftAppendResponse, Status>>;

        async fn append_entries(
            &self,
            request: Request<Streaming<v1::RaftAppendRequest>>,
        ) -> Result<Response<Self::AppendEntriesStream>, Status> {
            self.streams.fetch_add(1, Ordering::SeqCst);
            let follower = self.clone();
            let answers = request.into_inner().filter_map(move |request| {
                std::future::ready(follower.answer(&request.expect("the leader speaks")).map(Ok))
            });
            Ok(Response::new(answers.boxed()))
        }

        async fn hello(
            &self,
            _: Request<v1::RaftHello>,
        ) -> Result<Response<v1::RaftHelloReply>, Status> {
            Err(Status::unimplemented("no test asks"))
        }

        async fn vote(
            &self,
            _: Request<v1::RaftVoteRequest>,
        ) -> Result<Response<v1::RaftVoteResponse>, Status> {
            Err(Status::unimplemented("no test asks"))
        }

        async fn install_snapshot(
            &self,
            _: Request<Streaming<v1::RaftSnapshotChunk>>,
        ) -> Result<Response<v1::RaftSnapshotResponse>, Status> {
            Err(Status::unimplemented("no test asks"))
        }

        async fn transfer_leader(
            &self,
            _: Request<v1::RaftTransferRequest>,
        ) -> Result<Response<v1::RaftTransferResponse>, Status> {
            Err(Status::unimplemented("no test asks"))
        }
    }

    /// As openraft sends them: one, with a time limit.
    async fn beat(peer: &mut Peer, index: u64) -> Option<RpcResult<StreamAppendResult<Consensus>>> {
        let request = AppendEntriesRequest {
            vote: Ballot::new_committed(1, 1),
            prev_log_id: Some(log_id(1, index)),
            entries: Vec::new(),
            leader_commit: None,
        };
        // Time enough for an answer, and not more than the test can wait for one that does not come.
        let limit = Duration::from_millis(if index == SILENT { 200 } else { 10_000 });
        let all = async {
            let option = RPCOption::new(limit);
            let input = stream::once(std::future::ready(request));
            let mut answers = peer.stream_append(input, option).await.ok()?;
            let answer = answers.next().await;
            assert!(answers.next().await.is_none(), "one answer to one heartbeat");
            answer
        };
        tokio::time::timeout(limit, all).await.ok().flatten()
    }

    #[tokio::test]
    async fn heartbeats_share_a_stream_until_one_is_given_up_or_refused_and_no_answer_is_anothers()
    -> anyhow::Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let raft = listener.local_addr()?.to_string();
        listener.set_nonblocking(true)?;
        let incoming =
            stream::unfold(tokio::net::TcpListener::from_std(listener)?, |listener| async {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            });
        let follower = Follower::default();
        let service = RaftPeerServer::new(follower.clone());
        let serving = tokio::spawn(
            Server::builder().add_service(service).serve_with_incoming(incoming.boxed()),
        );

        let dir = tempfile::tempdir()?;
        let config = crate::Config { dir: dir.path().to_owned(), ..sound() };
        let stores = LogStore::open_all(RealDisk, &Options::from(&config))?;
        let mut peers = Peers::new(&config, stores[0].founding().clone());
        let addresses = Addresses { raft, ..Addresses::default() };
        let mut peer = peers.new_heartbeat_client(2, &addresses).await;
        let mut streams = Vec::new();
        for index in 1..=6 {
            let place = Some(log_id(1, index));
            match (index, beat(&mut peer, index).await) {
                (SILENT, None) => {}
                (CONFLICT, Some(Ok(Err(StreamAppendError::Conflict(told))))) => {
                    assert_eq!(Some(told), place);
                }
                (_, Some(Ok(Ok(told)))) => assert_eq!(told, place),
                (_, other) => panic!("heartbeat {index}: {other:?}"),
            }
            streams.push(follower.streams.load(Ordering::SeqCst));
        }
        assert_eq!(streams, [1, 1, 1, 2, 2, 3]);
        assert_eq!(follower.addressed.load(Ordering::SeqCst), 3, "once a stream");
        serving.abort();
        stores[0].close().await;
        Ok(())
    }
}
