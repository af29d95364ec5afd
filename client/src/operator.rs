//! What operators ask of a cluster: changes of its members, the leadership, a backup.

use std::time::Duration;

use holdfast_proto::v1::{admin_client::AdminClient, change_reply::Outcome};
use tokio::time::{Instant, sleep};

use crate::{Client, ClientError, link::Line, wire};

/// Between two attempts while nobody leads.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts while another change is under way; each is a record of the audit trail.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// Another change is under way, or the leader is new: nothing was changed, and a moment later it may be.
const BUSY: &str = "HF2508";
/// What a change of them is about.
const MEMBERS: &str = "the change of the members";

/// A change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make a node that waits to join a learner: its number, and where it listens for peers.
    Add {
        /// Its number.
        node: u64,
        /// `host:port`.
        raft: String,
    },
    /// Give a learner a vote.
    Promote(u64),
    /// Take a node out.
    Remove(u64),
    /// Have a learner take the vote of a member that leaves.
    Swap {
        /// Who leaves.
        old: u64,
        /// Who comes.
        new: u64,
    },
    /// Have another voter lead; 0: whoever holds most of the log.
    Transfer(u64),
}

impl Change {
    async fn ask(
        &self,
        group: u32,
        channel: Line,
    ) -> Result<tonic::Response<wire::ChangeReply>, tonic::Status> {
        let mut admin = AdminClient::new(channel);
        match self.clone() {
            Self::Add { node, raft } => {
                admin.add_member(wire::AddMemberRequest { node, raft, group }).await
            }
            Self::Promote(node) => admin.promote_member(wire::MemberRequest { node, group }).await,
            Self::Remove(node) => admin.remove_member(wire::MemberRequest { node, group }).await,
            Self::Swap { old, new } => {
                admin.swap_member(wire::SwapMemberRequest { old, new, group }).await
            }
            Self::Transfer(to) => {
                admin.transfer_leadership(wire::TransferLeadershipRequest { to, group }).await
            }
        }
    }
}

impl Client {
    /// Has the leader of a Raft group (from 0), wherever it is, change the group; returns what it took there, ms. Each group has members
    /// of its own: what shall hold for the cluster is done in each. Another change that is under way is waited for.
    /// # Errors
    /// [`ClientError::Refused`] with a code, [`ClientError::Unknown`] if it may have happened, or that nobody leads.
    pub async fn change(&self, group: u32, change: &Change) -> Result<u64, ClientError> {
        let deadline = Instant::now() + self.patience();
        let mut last = ClientError::Unreachable { patience_ms: 0, last: "no address".to_owned() };
        // Behind a lost answer the same change may be refused because it has happened.
        let mut lost = None;
        loop {
            let mut pause = PAUSE;
            let mut addresses = self.addresses();
            while let Some(address) = addresses.pop() {
                match self
                    .change_on_one(&address, MEMBERS, &|channel| change.ask(group, channel))
                    .await
                {
                    Ok(reply) => match reply.outcome {
                        Some(Outcome::Done(done)) => return Ok(done.took_ms),
                        Some(Outcome::NotLeader(elsewhere)) => {
                            let leader = elsewhere.leader_grpc;
                            // What the leader said before is the cause.
                            if last.code() != Some(BUSY) {
                                last = ClientError::Retry {
                                    code: "HF2101".to_owned(),
                                    message: format!("{address} does not lead"),
                                };
                            }
                            if !leader.is_empty() && leader != address && addresses.len() < 16 {
                                addresses.push(leader);
                            }
                        }
                        Some(Outcome::Refused(refused)) => {
                            let wire::ChangeRefused { code, cause: message } = refused;
                            if code != BUSY {
                                let refused = ClientError::Refused { code, message };
                                return Err(lost.unwrap_or(refused));
                            }
                            last = ClientError::Retry { code, message };
                            pause = BUSY_PAUSE;
                            break;
                        }
                        Some(Outcome::Unknown(unknown)) => {
                            return Err(ClientError::Unknown {
                                gid: MEMBERS.to_owned(),
                                last: unknown.cause,
                            });
                        }
                        None => {
                            last = ClientError::Unknown {
                                gid: MEMBERS.to_owned(),
                                last: "no outcome".to_owned(),
                            }
                        }
                    },
                    Err(error @ ClientError::Unknown { .. }) => lost = Some(error),
                    Err(error) => last = error,
                }
                if Instant::now() >= deadline {
                    return Err(lost.unwrap_or(last));
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(lost.unwrap_or(last));
            }
            sleep(pause).await;
        }
    }

    /// Has the node at `address`, and no other, read its configuration again.
    /// # Errors
    /// [`ClientError`]; refused with HF2411 if it has mistakes: nothing changed.
    pub async fn reload_config(
        &self,
        address: &str,
        request: wire::ReloadConfigRequest,
    ) -> Result<wire::ReloadConfigReply, ClientError> {
        self.change_on_one(address, "the configuration of a node", &|channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).reload_config(request).await }
        })
        .await
    }

    /// A backup of the node at `address`, piece by piece.
    /// # Errors
    /// [`ClientError`], if it does not begin.
    pub async fn backup_of(
        &self,
        address: &str,
    ) -> Result<tonic::Streaming<wire::BackupChunk>, ClientError> {
        self.on_one(address, &|channel| async move {
            AdminClient::new(channel).backup(wire::BackupRequest {}).await
        })
        .await
    }
}
