//! Services and history: what operators ask of a cluster, beside transactions.

use holdfast_proto::v1::{
    HistoryRecord, ListServicesReply, ListServicesRequest, SearchHistoryReply,
    SearchHistoryRequest, SetPolicyReply, SetServicePolicyRequest, ShowRequest,
    history_client::HistoryClient, services_client::ServicesClient,
};

use crate::{Client, ClientError};

/// Bytes of an answer: a page of a thousand transactions with long tags fits in.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Client {
    /// The services, one or all (empty), with their sessions and policies, as the leader sees them.
    /// # Errors
    /// [`ClientError`].
    pub async fn services(&self, service: &str) -> Result<ListServicesReply, ClientError> {
        let request = ListServicesRequest { service: service.to_owned(), stale: false };
        self.on_any(async |channel| {
            let mut client =
                ServicesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            client.list_services(request.clone()).await
        })
        .await
    }

    /// Sets the whole policy of one service.
    /// # Errors
    /// [`ClientError`]; refused with HF2404 if it was changed since the expected version.
    pub async fn set_service_policy(
        &self,
        request: SetServicePolicyRequest,
    ) -> Result<SetPolicyReply, ClientError> {
        self.on_any(async |channel| {
            ServicesClient::new(channel).set_service_policy(request.clone()).await
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
        self.on_any(async |channel| {
            let mut client =
                HistoryClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            client.search(request.clone()).await
        })
        .await
    }

    /// A transaction with what its leader saw of its calls: the leader's word while it is open; once it is finished, that of the
    /// node which remembers its attempts, if one does.
    /// # Errors
    /// [`ClientError`]; refused with HF2001 if no node knows it.
    pub async fn show(&self, gid: &str) -> Result<HistoryRecord, ClientError> {
        let request = ShowRequest { gid: gid.to_owned() };
        self.on_any(async |channel| HistoryClient::new(channel).show(request.clone()).await).await
    }
}
