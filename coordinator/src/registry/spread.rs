//! Sends the policies to the other nodes: at once when they change, and again to those that did not take them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use holdfast_client::ClientOptions;
use holdfast_proto::v1::{PolicyDocument, services_client::ServicesClient};
use holdfast_raft::Log;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    policy::{Policies, Version, limit},
    store::Registry,
};
use crate::replica::Replica;

/// For one node to take the document.
const TAKE_MAX: Duration = Duration::from_secs(2);
/// Between two rounds.
const ROUND: Duration = Duration::from_secs(2);

/// Knows which node holds which version.
#[derive(Debug)]
pub(crate) struct Spread {
    node: u64,
    registry: Arc<Registry>,
    log: Arc<Log<Replica>>,
    /// How other nodes are spoken to.
    options: ClientOptions,
    /// Also keeps rounds apart.
    held: Mutex<HashMap<u64, Version>>,
}

impl Spread {
    pub(crate) fn new(
        node: u64,
        registry: Arc<Registry>,
        log: Arc<Log<Replica>>,
        options: ClientOptions,
    ) -> Arc<Self> {
        Arc::new(Self { node, registry, log, options, held: Mutex::default() })
    }

    /// Sends what other nodes lack. Answers how many hold the newest, this one included, and how many there are.
    pub(crate) async fn now(&self) -> (u32, u32) {
        let mut held = self.held.lock().await;
        let current = self.registry.current();
        let members = self.log.status().members;
        held.retain(|node, _| members.iter().any(|one| one.member.node == *node));
        let others = members.iter().filter(|one| one.member.node != self.node);
        let lacking: Vec<_> = others
            .clone()
            .filter(|one| held.get(&one.member.node) != Some(&current.version))
            .map(|one| one.member.clone())
            .collect();
        let document = current.to_wire();
        let sent = lacking.iter().map(|member| send(&member.grpc, &self.options, document.clone()));
        let answers = futures::future::join_all(sent).await;
        for (member, answer) in lacking.iter().zip(answers) {
            match answer {
                Ok((version, newer)) => {
                    held.insert(member.node, version);
                    self.take(newer).await;
                }
                Err(fault) => {
                    tracing::debug!(node = member.node, fault, "a node did not take the policies");
                }
            }
        }
        let newest = self.registry.current().version;
        let holding = others.clone().filter(|one| held.get(&one.member.node) == Some(&newest));
        (1 + holding.count() as u32, 1 + others.count() as u32)
    }

    /// A node had a newer document than the leader, who missed it when it was none.
    async fn take(&self, newer: Option<PolicyDocument>) {
        let Some(newer) = newer else { return };
        match Policies::from_wire(newer) {
            Ok(policies) => {
                if let Err(fault) = self.registry.adopt(policies).await {
                    tracing::warn!(%fault, "HF2405 newer policies could not be written");
                }
            }
            Err(fault) => tracing::warn!(code = %fault.code, "a node's policies are refused"),
        }
    }

    /// Round after round, while this node leads, until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let leadership = self.log.leadership();
        let mut led = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            let leads = leadership.borrow().leads_here;
            if leads && !led {
                // What others held under another leader is not known here.
                self.held.lock().await.clear();
            }
            led = leads;
            if leads {
                self.now().await;
            }
        }
    }
}

async fn send(
    grpc: &str,
    options: &ClientOptions,
    document: PolicyDocument,
) -> Result<(Version, Option<PolicyDocument>), String> {
    let taken = async {
        let channel =
            holdfast_client::channel(grpc, options).await.map_err(|error| error.to_string())?;
        let mut client = ServicesClient::new(channel)
            .max_encoding_message_size(limit::DOCUMENT_BYTES_MAX + 4_096)
            .max_decoding_message_size(limit::DOCUMENT_BYTES_MAX + 4_096);
        let reply = client.adopt_policies(document).await.map_err(|status| status.to_string())?;
        let reply = reply.into_inner();
        Ok((reply.version.map(Version::from).unwrap_or_default(), reply.newer))
    };
    tokio::time::timeout(TAKE_MAX, taken).await.unwrap_or_else(|_| Err("no answer in time".into()))
}
