//! The gRPC service of the audit trail: its records, and whether their chain is whole.

use bytes::Bytes;
use holdfast_proto::v1::{
    AuditEntry, ListRecordsReply, ListRecordsRequest, VerifyAuditReply, VerifyAuditRequest,
    audit_server::{Audit as Service, AuditServer},
};
use holdfast_txn::{AuditRecord, Command, Deed};
use tonic::{Request, Response, Status};

use super::{
    desk::Desk,
    fault::{Fault, Findings},
};

/// Records on a page, for a caller who does not say, and at most.
const RECORDS_DEFAULT: u32 = 100;
pub(crate) const RECORDS_MAX: u32 = 1_000;

/// `holdfast.v1.Audit` at one node's desk.
#[derive(Clone, Debug)]
pub struct Audit {
    desk: Desk,
}

/// The service as tonic serves it.
#[must_use]
pub fn service(desk: Desk) -> AuditServer<Audit> {
    AuditServer::new(Audit { desk })
}

#[tonic::async_trait]
impl Service for Audit {
    async fn list_records(
        &self,
        request: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsReply>, Status> {
        let reply = self.desk.audit_records(&request.into_inner());
        reply.map(Response::new).map_err(|fault| fault.to_status())
    }

    async fn verify(
        &self,
        request: Request<VerifyAuditRequest>,
    ) -> Result<Response<VerifyAuditReply>, Status> {
        let reply = self.desk.verify_audit(request.get_ref().group);
        reply.map(Response::new).map_err(|fault| fault.to_status())
    }
}

fn to_wire(record: &AuditRecord) -> AuditEntry {
    let Deed { by, act, about, words } = record.deed.clone();
    AuditEntry {
        number: record.number,
        at_ms: record.at.0,
        by,
        act,
        about,
        words,
        before: Bytes::copy_from_slice(&record.before.0),
        digest: Bytes::copy_from_slice(&record.digest().0),
    }
}

impl Desk {
    /// A page of records, as this node has applied them.
    pub(crate) fn audit_records(
        &self,
        request: &ListRecordsRequest,
    ) -> Result<ListRecordsReply, Fault> {
        let limit = if request.limit == 0 { RECORDS_DEFAULT } else { request.limit };
        if limit > RECORDS_MAX {
            let mut findings = Findings::default();
            findings.add("limit", format_args!("{limit}, allowed is 1 to {RECORDS_MAX}"));
            findings.verdict()?;
        }
        let books = self.group(request.group)?.books();
        let page = books.trail.after(request.after).take(limit as usize);
        Ok(ListRecordsReply {
            records: page.map(|record| to_wire(record)).collect(),
            count: books.trail.count,
            head: Bytes::copy_from_slice(&books.trail.head.0),
            oldest: books.trail.kept.front().map_or(0, |record| record.number),
            node: self.coordinator().config().node.id,
            groups: self.coordinator().groups(),
        })
    }

    /// Whether the chain of what this node keeps of a group's trail is whole.
    pub(crate) fn verify_audit(&self, group: u32) -> Result<VerifyAuditReply, Fault> {
        let books = self.group(group)?.books();
        let broken = books.trail.check().err();
        Ok(VerifyAuditReply {
            whole: broken.is_none(),
            broken_at: broken.map_or(0, |broken| broken.number),
            cause: broken.map(|broken| broken.to_string()).unwrap_or_default(),
            count: books.trail.count,
            head: Bytes::copy_from_slice(&books.trail.head.0),
            oldest: books.trail.kept.front().map_or(0, |record| record.number),
            node: self.coordinator().config().node.id,
            groups: self.coordinator().groups(),
        })
    }

    /// Writes down what is about to be done, before it is done: what cannot be written down is not done. A cluster with members
    /// that cannot read such a record yet writes none.
    pub(crate) async fn note(&self, act: &str, about: String, words: String) -> Result<(), Fault> {
        self.note_in(0, act, about, words).await
    }

    /// As [`Self::note`], in the trail of a group.
    pub(crate) async fn note_in(
        &self,
        group: u32,
        act: &str,
        about: String,
        words: String,
    ) -> Result<(), Fault> {
        if self.coordinator().cluster_format() < 3 {
            tracing::info!(
                act,
                about,
                "not every member can read an audit record yet: none is written"
            );
            return Ok(());
        }
        let by = self.signature("")?;
        let deed = Deed { by, act: act.to_owned(), about, words };
        let applied = self.coordinator().propose_in(group, Command::Note { deed }).await;
        applied.map(drop).map_err(|error| Fault::not_proposed(&error))
    }
}
