//! The gRPC service of operators.

use std::time::Instant;

use holdfast_proto::v1::{
    AddMemberRequest, BackupChunk, BackupRequest, ChangeDone, ChangeNotLeader, ChangeRefused,
    ChangeReply, ChangeUnknown, HoldReply, HoldRequest, MemberRequest, NodeStatusReply,
    NodeStatusRequest, ReloadConfigReply, ReloadConfigRequest, SwapMemberRequest,
    TransferLeadershipRequest,
    admin_server::{Admin as Service, AdminServer},
    change_reply::Outcome,
};
use holdfast_raft::{ChangeError, ControlError, Log};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::desk::Desk;
use crate::{leaders, replica::Replica, rights::Shown};

/// Pieces of a backup that wait for a slow receiver.
const CHUNKS_WAITING_MAX: usize = 4;

/// `holdfast.v1.Admin` at one node's desk.
#[derive(Clone, Debug)]
pub struct Admin {
    desk: Desk,
}

/// The service as tonic serves it.
#[must_use]
pub fn service(desk: Desk) -> AdminServer<Admin> {
    AdminServer::new(Admin { desk })
}

type Reply = Result<Response<ChangeReply>, Status>;

#[tonic::async_trait]
impl Service for Admin {
    async fn node_status(
        &self,
        request: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusReply>, Status> {
        let status = self.desk.node_status(request.into_inner()).await;
        status.map(Response::new).map_err(|fault| fault.to_status())
    }

    async fn add_member(&self, request: Request<AddMemberRequest>) -> Reply {
        let desk = self.desk(&request)?;
        let AddMemberRequest { node, raft, group } = request.into_inner();
        let log = self.log(group)?;
        let begun = Instant::now();
        noted(&desk, group, "cluster.add", format!("node {node}"), format!("at {raft}")).await?;
        tracing::info!(node, raft, "an operator adds a member");
        told(begun, log.add_learner(node, &raft).await.map(drop))
    }

    async fn promote_member(&self, request: Request<MemberRequest>) -> Reply {
        let desk = self.desk(&request)?;
        let MemberRequest { node, group } = request.into_inner();
        let log = self.log(group)?;
        let begun = Instant::now();
        noted(&desk, group, "cluster.promote", format!("node {node}"), String::new()).await?;
        tracing::info!(node, "an operator gives a member its vote");
        told(begun, log.promote(node).await)
    }

    async fn remove_member(&self, request: Request<MemberRequest>) -> Reply {
        let desk = self.desk(&request)?;
        let MemberRequest { node, group } = request.into_inner();
        let log = self.log(group)?;
        let begun = Instant::now();
        noted(&desk, group, "cluster.remove", format!("node {node}"), String::new()).await?;
        tracing::info!(node, "an operator removes a member");
        told(begun, log.remove(node).await)
    }

    async fn swap_member(&self, request: Request<SwapMemberRequest>) -> Reply {
        let desk = self.desk(&request)?;
        let SwapMemberRequest { old, new, group } = request.into_inner();
        let log = self.log(group)?;
        let begun = Instant::now();
        noted(&desk, group, "cluster.replace", format!("node {old}"), format!("by node {new}"))
            .await?;
        tracing::info!(old, new, "an operator replaces a member");
        told(begun, log.swap(old, new).await)
    }

    async fn transfer_leadership(&self, request: Request<TransferLeadershipRequest>) -> Reply {
        let desk = self.desk(&request)?;
        let TransferLeadershipRequest { to, group } = request.into_inner();
        let begun = Instant::now();
        let log = self.log(group)?;
        let to = if to == 0 { log.successor() } else { Some(to) };
        let Some(to) = to else {
            let cause =
                "no other voter answers this node, or it does not lead; nobody can take over";
            return told(
                begun,
                self.not_leader(group).and(Err(refused("HF2513", cause.to_owned()))),
            );
        };
        noted(&desk, group, leaders::TRANSFER, format!("node {to}"), String::new()).await?;
        tracing::info!(to, "an operator has the leadership handed over");
        let handed = log.hand_over(to).await.map_err(|error| match error {
            ControlError::NotLeader { leader } => ChangeError::NotLeader { leader },
            ControlError::NotVoter { .. } => refused("HF2509", error.to_string()),
            ControlError::TimedOut { .. } | ControlError::Empty => {
                ChangeError::Unknown { cause: error.to_string() }
            }
            ControlError::Stopped => ChangeError::Stopped,
        });
        told(begun, handed)
    }

    async fn reload_config(
        &self,
        request: Request<ReloadConfigRequest>,
    ) -> Result<Response<ReloadConfigReply>, Status> {
        let desk = self.desk(&request)?;
        let reloaded = desk.reload_config(request.into_inner()).await;
        reloaded.map(Response::new).map_err(|fault| fault.to_status())
    }

    type BackupStream = ReceiverStream<Result<BackupChunk, Status>>;

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let desk = self.desk(&request)?;
        let coordinator = desk.coordinator();
        // A backup is taken of any node, also without a leader; then nobody can write down that it was. That of a restore point was
        // written down before the hold, behind which a record would wait.
        if desk.leading().0 && !coordinator.holder().is(&desk.caller().name) {
            let node = coordinator.config().node.id;
            noted(&desk, 0, "cluster.backup", format!("node {node}"), String::new()).await?;
        }
        let backup = coordinator.backup().await;
        let backup = backup.map_err(|error| Status::unavailable(error.to_string()))?;
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        tokio::task::spawn_blocking(move || {
            let send = |data: Vec<u8>| {
                let chunk = BackupChunk { data: data.into() };
                sender.blocking_send(Ok(chunk)).is_ok()
            };
            if let Err(error) = backup.write(send) {
                // Whoever has gone needs no reason.
                drop(sender.blocking_send(Err(Status::internal(error.to_string()))));
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    type HoldStream = ReceiverStream<Result<HoldReply, Status>>;

    async fn hold(
        &self,
        request: Request<Streaming<HoldRequest>>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let desk = self.desk(&request)?;
        let replies = desk.hold(request.into_inner()).await;
        let replies = replies.map_err(|fault| fault.to_status())?;
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

/// Writes an operator's act into the audit trail before it is done; on a node that does not lead, it will be refused anyway.
async fn noted(
    desk: &Desk,
    group: u32,
    act: &str,
    about: String,
    words: String,
) -> Result<(), Status> {
    if !desk.group(group).map_err(|fault| fault.to_status())?.leads() {
        return Ok(());
    }
    desk.note_in(group, act, about, words).await.map_err(|fault| fault.to_status())
}

impl Admin {
    /// The desk as it serves whoever asks.
    fn desk<T>(&self, request: &Request<T>) -> Result<Desk, Status> {
        let shown = request.extensions().get::<Shown>();
        self.desk.serving(shown).map_err(|fault| fault.to_status())
    }

    /// The log of a group.
    fn log(&self, group: u32) -> Result<&Log<Replica>, Status> {
        self.desk.group(group).map(|group| &*group.log).map_err(|fault| fault.to_status())
    }

    /// An error unless this node leads the group.
    fn not_leader(&self, group: u32) -> Result<(), ChangeError> {
        let group = self.desk.coordinator().group(group);
        if group.leads() { Ok(()) } else { Err(ChangeError::NotLeader { leader: group.leader() }) }
    }
}

fn refused(code: &'static str, cause: String) -> ChangeError {
    ChangeError::Refused { code, cause }
}

fn told(begun: Instant, result: Result<(), ChangeError>) -> Reply {
    let outcome = match result {
        Ok(()) => {
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            Outcome::Done(ChangeDone { took_ms })
        }
        Err(ChangeError::NotLeader { leader }) => {
            let leader_grpc = leader.map(|leader| leader.grpc).unwrap_or_default();
            Outcome::NotLeader(ChangeNotLeader { leader_grpc })
        }
        Err(ChangeError::Refused { code, cause }) => {
            tracing::info!(code, cause, "the change of the membership is refused");
            Outcome::Refused(ChangeRefused { code: code.to_owned(), cause })
        }
        Err(ChangeError::Unknown { cause }) => Outcome::Unknown(ChangeUnknown { cause }),
        Err(ChangeError::Stopped) => Outcome::NotLeader(ChangeNotLeader::default()),
    };
    Ok(Response::new(ChangeReply { outcome: Some(outcome) }))
}
