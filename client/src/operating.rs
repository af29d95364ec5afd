//! Services and history: what operators ask of a cluster, beside transactions.

use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_proto::v1::{
    ApplyRulesReply, ApplyRulesRequest, AttendReply, AttendRequest, HistoryRecord,
    ListRecordsReply, ListRecordsRequest, ListRoutersReply, ListRoutersRequest, ListServicesReply,
    ListServicesRequest, ListVersionsRequest, LocateReply, LocateRequest, RevertRulesRequest,
    SearchHistoryReply, SearchHistoryRequest, SetCallerPolicyRequest, SetPolicyReply,
    SetServicePolicyRequest, ShardRules, ShowRequest, ShowRulesRequest, VerifyAuditReply,
    VerifyAuditRequest, WatchRulesRequest, audit_client::AuditClient,
    history_client::HistoryClient, services_client::ServicesClient, shards_client::ShardsClient,
};
use tonic::{Code, Status};

use crate::{Client, ClientError, ErrorKind};

/// Bytes of an answer: a page of a thousand transactions with long tags fits in.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a change of them is about.
const SHARD_RULES: &str = "new shard rules";

impl Client {
    /// The services, one or all (empty), with their sessions and policies, as the leader sees them.
    /// # Errors
    /// [`ClientError`].
    pub async fn services(&self, service: &str) -> Result<ListServicesReply, ClientError> {
        let request = ListServicesRequest { service: service.to_owned(), stale: false };
        self.on_any(|channel| {
            let request = request.clone();
            async move {
                let mut client =
                    ServicesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
                client.list_services(request).await
            }
        })
        .await
    }

    /// Sets the whole policy of one service.
    /// # Errors
    /// [`ClientError`], [`ClientError::Unknown`] if it may have happened; refused with HF2404 if it was changed since the expected version.
    pub async fn set_service_policy(
        &self,
        request: SetServicePolicyRequest,
    ) -> Result<SetPolicyReply, ClientError> {
        self.change_on_any("the policy of a service", |channel| {
            let request = request.clone();
            async move { ServicesClient::new(channel).set_service_policy(request).await }
        })
        .await
    }

    /// Sets the whole policy of one caller, as [`Self::set_service_policy`] does.
    /// # Errors
    /// [`ClientError`], as there.
    pub async fn set_caller_policy(
        &self,
        request: SetCallerPolicyRequest,
    ) -> Result<SetPolicyReply, ClientError> {
        self.change_on_any("the policy of a caller", |channel| {
            let request = request.clone();
            async move { ServicesClient::new(channel).set_caller_policy(request).await }
        })
        .await
    }

    /// A page of finished transactions, newest first, from the first node that answers.
    /// # Errors
    /// [`ClientError`].
    pub async fn search_history(
        &self,
        request: SearchHistoryRequest,
    ) -> Result<SearchHistoryReply, ClientError> {
        self.on_any(|channel| {
            let request = request.clone();
            async move {
                let mut client =
                    HistoryClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
                client.search(request).await
            }
        })
        .await
    }

    /// A transaction with what its leader saw of its calls: the leader's word while it is open; once it is finished, that of the
    /// node which remembers its attempts, if one does.
    /// # Errors
    /// [`ClientError`]; refused with HF2001 if no node knows it.
    pub async fn show(&self, gid: &str) -> Result<HistoryRecord, ClientError> {
        let request = ShowRequest { gid: gid.to_owned() };
        self.on_any(|channel| {
            let request = request.clone();
            async move { HistoryClient::new(channel).show(request).await }
        })
        .await
    }

    /// The shard rules of `epoch`, if they are still kept; 0: those in force.
    /// # Errors
    /// [`ClientError`]; refused with HF2409 if there are none.
    pub async fn rules(&self, epoch: u64) -> Result<ShardRules, ClientError> {
        let request = ShowRulesRequest { epoch, stale: false };
        self.on_any(|channel| async move { ShardsClient::new(channel).show(request).await }).await
    }

    /// The versions of the shard rules that are kept, the newest last, without their texts.
    /// # Errors
    /// [`ClientError`].
    pub async fn rules_versions(&self) -> Result<Vec<ShardRules>, ClientError> {
        let request = ListVersionsRequest { stale: false };
        let reply = self.on_any(|channel| async move {
            ShardsClient::new(channel).list_versions(request).await
        });
        Ok(reply.await?.versions)
    }

    /// Every version of the shard rules that is kept, with its text, the newest last.
    /// # Errors
    /// [`ClientError`].
    pub async fn rules_kept(&self) -> Result<Vec<ShardRules>, ClientError> {
        let mut kept = Vec::new();
        for version in self.rules_versions().await? {
            kept.push(self.rules(version.epoch).await?);
        }
        Ok(kept)
    }

    /// Puts shard rules into force. The same again, after a lost answer, changes nothing.
    /// # Errors
    /// [`ClientError`], [`ClientError::Unknown`] if it may have happened; refused with HF2408 if they are mistaken, with HF2009 if somebody changed them meanwhile.
    pub async fn apply_rules(
        &self,
        request: ApplyRulesRequest,
    ) -> Result<ApplyRulesReply, ClientError> {
        let ask = |channel| {
            let request = request.clone();
            async move { ShardsClient::new(channel).apply(request).await }
        };
        self.change_on_any(SHARD_RULES, ask).await
    }

    /// Puts the shard rules of a former epoch into force again.
    /// # Errors
    /// As [`Self::apply_rules`]; refused with HF2409 if they are not kept.
    pub async fn revert_rules(
        &self,
        request: RevertRulesRequest,
    ) -> Result<ApplyRulesReply, ClientError> {
        let ask = |channel| {
            let request = request.clone();
            async move { ShardsClient::new(channel).revert(request).await }
        };
        self.change_on_any(SHARD_RULES, ask).await
    }

    /// The shard rules as they change, from one node: those in force if they are newer than `after_epoch`, then each that follows.
    /// # Errors
    /// [`ClientError`], if it does not begin.
    pub async fn watch_rules(
        &self,
        after_epoch: u64,
    ) -> Result<tonic::Streaming<ShardRules>, ClientError> {
        let request = WatchRulesRequest { after_epoch };
        self.on_any(|channel| async move { ShardsClient::new(channel).watch(request).await }).await
    }

    /// Says which rules a router goes by, and hears which are in force. A lease that is granted is counted from before this call. What is not
    /// answered may have been heard.
    /// # Errors
    /// [`ClientError`]; HF2414 where too many routers attend.
    pub async fn attend(&self, request: AttendRequest) -> Result<AttendReply, ClientError> {
        let last = || "nobody attends at nodes of an earlier version".to_owned();
        let patience_ms = self.options().patience_ms;
        let reply = self.attend_if_known(request).await?;
        reply.ok_or_else(|| ClientError::Unreachable { patience_ms, last: last() })
    }

    /// As [`Self::attend`]. `None`: nobody could say, and a node is of an earlier version, at which nobody attends.
    /// # Errors
    /// As [`Self::attend`].
    pub async fn attend_if_known(
        &self,
        request: AttendRequest,
    ) -> Result<Option<AttendReply>, ClientError> {
        let earlier = AtomicBool::new(false);
        let reply = self.on_any(|channel| {
            let (request, earlier) = (request.clone(), &earlier);
            async move {
                let reply = ShardsClient::new(channel).attend(request).await;
                let unknown = |status: &Status| status.code() == Code::Unimplemented;
                let unknown = reply.as_ref().err().is_some_and(unknown);
                earlier.fetch_or(unknown, Ordering::Relaxed);
                reply
            }
        });
        match reply.await {
            Err(error) if error.kind() != ErrorKind::Refused && earlier.load(Ordering::Relaxed) => {
                Ok(None)
            }
            reply => reply.map(Some),
        }
    }

    /// The routers whose leases have not ended, as the leader knows them.
    /// # Errors
    /// [`ClientError`].
    pub async fn routers(&self) -> Result<ListRoutersReply, ClientError> {
        let request = ListRoutersRequest {};
        self.on_any(|channel| async move { ShardsClient::new(channel).list_routers(request).await })
            .await
    }

    /// Where keys live, by the rules in force.
    /// # Errors
    /// [`ClientError`]; refused if a key has no place.
    pub async fn locate(&self, group: &str, keys: &[String]) -> Result<LocateReply, ClientError> {
        let request = LocateRequest { group: group.to_owned(), keys: keys.to_vec() };
        self.on_any(|channel| {
            let request = request.clone();
            async move { ShardsClient::new(channel).locate(request).await }
        })
        .await
    }

    /// At most `limit` audit records of a Raft group (from 0) behind number `after`, as one node has applied them.
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_records(
        &self,
        group: u32,
        after: u64,
        limit: u32,
    ) -> Result<ListRecordsReply, ClientError> {
        let request = ListRecordsRequest { after, limit, group };
        self.on_any(|channel| async move { AuditClient::new(channel).list_records(request).await })
            .await
    }

    /// Whether the chain of what the node at `address` keeps of the trail of a Raft group (from 0) is whole.
    /// # Errors
    /// [`ClientError`].
    pub async fn verify_audit_of(
        &self,
        address: &str,
        group: u32,
    ) -> Result<VerifyAuditReply, ClientError> {
        let request = VerifyAuditRequest { group };
        self.on_one(
            address,
            &|channel| async move { AuditClient::new(channel).verify(request).await },
        )
        .await
    }
}
