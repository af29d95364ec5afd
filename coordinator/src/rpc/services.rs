//! The gRPC service of those who operate services: who serves what, how it goes, and what is decided about it.
//!
//! Only the leader makes calls and only it decides, so every request goes there, by way of any node.

use holdfast_client::{FORWARD_HEADER, FORWARD_NEVER, Line};
use holdfast_proto::v1::{
    self, AdoptPoliciesReply, ListServicesReply, ListServicesRequest, PolicyDocument,
    SetCallerPolicyRequest, SetPolicyReply, SetServicePolicyRequest,
    services_client::ServicesClient,
    services_server::{Services as Service, ServicesServer},
};
use tonic::{Request, Response, Status, metadata::AsciiMetadataValue};

use super::{
    desk::{Desk, Hop},
    fault::{Class, Fault, Findings},
    transactions::hop,
};
use crate::registry::policy::{Policies, Version, limit};

/// Bytes of a reason.
const REASON_BYTES_MAX: usize = holdfast_txn::limit::REASON_BYTES_MAX;

/// `holdfast.v1.Services` at one node's desk.
#[derive(Clone, Debug)]
pub struct Services {
    desk: Desk,
}

/// The service as tonic serves it.
#[must_use]
pub fn service(desk: Desk) -> ServicesServer<Services> {
    ServicesServer::new(Services { desk })
        .max_decoding_message_size(limit::DOCUMENT_BYTES_MAX + 4_096)
}

#[tonic::async_trait]
impl Service for Services {
    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesReply>, Status> {
        let hop = hop(request.metadata());
        answered(self.desk.services(request.into_inner(), hop).await)
    }

    async fn set_service_policy(
        &self,
        request: Request<SetServicePolicyRequest>,
    ) -> Result<Response<SetPolicyReply>, Status> {
        let hop = hop(request.metadata());
        answered(self.desk.set_service_policy(request.into_inner(), hop).await)
    }

    async fn set_caller_policy(
        &self,
        request: Request<SetCallerPolicyRequest>,
    ) -> Result<Response<SetPolicyReply>, Status> {
        let hop = hop(request.metadata());
        answered(self.desk.set_caller_policy(request.into_inner(), hop).await)
    }

    async fn adopt_policies(
        &self,
        request: Request<PolicyDocument>,
    ) -> Result<Response<AdoptPoliciesReply>, Status> {
        answered(self.desk.adopt_policies(request.into_inner()).await)
    }
}

fn answered<T>(answer: Result<T, Fault>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(|fault| fault.to_status())
}

impl Desk {
    /// Services as the leader sees them, or this node if that is enough.
    pub(crate) async fn services(
        &self,
        request: ListServicesRequest,
        hop: Hop,
    ) -> Result<ListServicesReply, Fault> {
        let (leads, leader) = self.leading();
        if leads || request.stale {
            let coordinator = self.coordinator();
            let mut reply = coordinator.services(request.service).await;
            reply.node = coordinator.config().node.id;
            reply.callers = coordinator.registry().callers();
            reply.leads = leads;
            return Ok(reply);
        }
        let mut client = self.leader_of_services(leader, hop).await?;
        let reply = client.list_services(never_on(request)).await;
        reply.map(Response::into_inner).map_err(|status| Fault::from_status(&status))
    }

    /// Sets the policy of one service: checked, on this disk, obeyed, and sent to the other nodes.
    pub(crate) async fn set_service_policy(
        &self,
        request: SetServicePolicyRequest,
        hop: Hop,
    ) -> Result<SetPolicyReply, Fault> {
        let (leads, leader) = self.leading();
        if !leads {
            let mut client = self.leader_of_services(leader, hop).await?;
            let reply = client.set_service_policy(never_on(request)).await;
            return reply.map(Response::into_inner).map_err(|status| Fault::from_status(&status));
        }
        let SetServicePolicyRequest { policy, expected, reason, dry_run } = request;
        let policy = given(policy, &reason)?;
        let what = format!("service {}", policy.service);
        let set = move |current: &Policies| current.with_service(policy.clone());
        self.decide(set, Decision { what, expected, reason, dry_run }).await
    }

    /// Sets the policy of one caller.
    pub(crate) async fn set_caller_policy(
        &self,
        request: SetCallerPolicyRequest,
        hop: Hop,
    ) -> Result<SetPolicyReply, Fault> {
        let (leads, leader) = self.leading();
        if !leads {
            let mut client = self.leader_of_services(leader, hop).await?;
            let reply = client.set_caller_policy(never_on(request)).await;
            return reply.map(Response::into_inner).map_err(|status| Fault::from_status(&status));
        }
        let SetCallerPolicyRequest { policy, expected, reason, dry_run } = request;
        let policy = given(policy, &reason)?;
        let what = format!("caller {}", policy.caller);
        let set = move |current: &Policies| current.with_caller(policy.clone());
        self.decide(set, Decision { what, expected, reason, dry_run }).await
    }

    async fn decide(
        &self,
        set: impl Fn(&Policies) -> Result<Policies, Fault>,
        decision: Decision,
    ) -> Result<SetPolicyReply, Fault> {
        let Decision { what, expected, reason, dry_run } = decision;
        let term = self.coordinator().leadership().borrow().term;
        let registry = self.coordinator().registry();
        let change = |current: &Policies| {
            unchanged_since(current.version, expected)?;
            let mut next = set(current)?;
            next.version = next_version(current.version, term);
            Ok(next)
        };
        if dry_run {
            let version = Some(change(&registry.current())?.version.into());
            return Ok(SetPolicyReply { version, nodes: 0, nodes_all: 0 });
        }
        change(&registry.current())?;
        self.note("services.set", what.clone(), reason.clone()).await?;
        let policies = registry.change(change, |fault| {
            Fault::new(
                Class::Unavailable,
                "HF2405",
                format!("the policy was not set: this node's disk failed ({fault}). Nothing changed; repair the disk, or let another node lead"),
            )
        });
        let policies = policies.await?;
        tracing::info!(%what, %reason, revision = policies.version.revision, "a policy is set");
        let (nodes, nodes_all) = self.coordinator().spread().now().await;
        Ok(SetPolicyReply { version: Some(policies.version.into()), nodes, nodes_all })
    }

    /// Takes a document that the leader sends, if it is newer.
    pub(crate) async fn adopt_policies(
        &self,
        document: PolicyDocument,
    ) -> Result<AdoptPoliciesReply, Fault> {
        let policies = Policies::from_wire(document)?;
        let sent = policies.version;
        let current = self.coordinator().registry().adopt(policies).await.map_err(|fault| {
            Fault::new(Class::Unavailable, "HF2405", format!("the policies were not taken: this node's disk failed ({fault}). Repair it; the leader sends them again"))
        })?;
        let newer = (current.version > sent).then(|| current.to_wire());
        Ok(AdoptPoliciesReply { version: Some(current.version.into()), newer })
    }

    async fn leader_of_services(
        &self,
        leader: Option<String>,
        hop: Hop,
    ) -> Result<ServicesClient<Line>, Fault> {
        let Some(address) = leader.filter(|_| hop == Hop::May) else {
            return Err(self.not_the_leader());
        };
        let channel =
            holdfast_client::channel(&address, &self.coordinator().config().security.client())
                .await;
        let channel = channel.map_err(|error| Fault::out_of_reach(&error))?;
        Ok(ServicesClient::new(channel)
            .max_decoding_message_size(16 * 1024 * 1024)
            .max_encoding_message_size(limit::DOCUMENT_BYTES_MAX + 4_096))
    }
}

/// Why a policy is set, and on which condition.
struct Decision {
    what: String,
    expected: Option<v1::PolicyVersion>,
    reason: String,
    dry_run: bool,
}

/// The policy, if it is there and somebody says why.
fn given<P>(policy: Option<P>, reason: &str) -> Result<P, Fault> {
    let mut findings = Findings::default();
    if policy.is_none() {
        findings.add("policy", "missing");
    }
    check_reason(&mut findings, reason);
    findings.verdict()?;
    Ok(policy.expect("what is missing was found"))
}

/// Whether somebody says why.
/// # Errors
/// HF2301.
pub(super) fn reasoned(reason: &str) -> Result<(), Fault> {
    let mut findings = Findings::default();
    check_reason(&mut findings, reason);
    findings.verdict()
}

fn check_reason(findings: &mut Findings, reason: &str) {
    if reason.trim().is_empty() {
        findings.add("reason", "missing; say why, for the people who read it later");
    } else if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        let most = REASON_BYTES_MAX;
        findings.add(
            "reason",
            format_args!("allowed are 1 to {most} bytes without control characters"),
        );
    }
}

fn never_on<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    let never = AsciiMetadataValue::from_static(FORWARD_NEVER);
    request.metadata_mut().insert(FORWARD_HEADER, never);
    request
}

fn unchanged_since(current: Version, expected: Option<v1::PolicyVersion>) -> Result<(), Fault> {
    match expected.map(Version::from) {
        Some(expected) if expected != current => Err(Fault::new(
            Class::WrongStatus,
            "HF2404",
            format!(
                "nothing was done: the policies are at version {}.{} and were expected at {}.{}: somebody changed them meanwhile. Read them again, and decide anew",
                current.term, current.revision, expected.term, expected.revision
            ),
        )),
        _ => Ok(()),
    }
}

/// Above everything that was seen, whatever the term is.
fn next_version(current: Version, term: u64) -> Version {
    if term > current.term {
        Version { term, revision: 1 }
    } else {
        Version { term: current.term, revision: current.revision + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_grows_with_every_change_and_with_every_term() {
        let at = |term, revision| Version { term, revision };
        assert_eq!(next_version(at(3, 7), 4), at(4, 1));
        assert_eq!(next_version(at(3, 7), 3), at(3, 8));
        assert_eq!(next_version(at(3, 7), 2), at(3, 8), "never back");
        assert!(unchanged_since(at(3, 7), Some(at(3, 7).into())).is_ok());
        assert!(unchanged_since(at(3, 7), None).is_ok());
        assert_eq!(unchanged_since(at(3, 7), Some(at(3, 6).into())).unwrap_err().code, "HF2404");
    }
}
