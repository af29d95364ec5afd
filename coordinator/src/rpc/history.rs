//! The gRPC service of finished transactions, and of what was seen of the calls of one.

use holdfast_proto::v1::{
    self, HistoryRecord, SearchHistoryReply, SearchHistoryRequest, ShowRequest,
    history_server::{History as Service, HistoryServer},
};
use holdfast_txn::{Gid, Rejection};
use tonic::{Request, Response, Status};

use super::{
    desk::Desk,
    fault::{Class, Fault, Findings},
    show,
};
use crate::{
    Freshness,
    history::{HistoryFault, check_search, shown},
};

/// `holdfast.v1.History` at one node's desk.
#[derive(Clone, Debug)]
pub struct History {
    desk: Desk,
}

/// The service as tonic serves it.
#[must_use]
pub fn service(desk: Desk) -> HistoryServer<History> {
    HistoryServer::new(History { desk })
}

#[tonic::async_trait]
impl Service for History {
    async fn search(
        &self,
        request: Request<SearchHistoryRequest>,
    ) -> Result<Response<SearchHistoryReply>, Status> {
        let reply = self.desk.search(request.get_ref()).await;
        reply.map(Response::new).map_err(|fault| fault.to_status())
    }

    async fn show(&self, request: Request<ShowRequest>) -> Result<Response<HistoryRecord>, Status> {
        let record = self.desk.record(&request.get_ref().gid).await;
        record.map(Response::new).map_err(|fault| fault.to_status())
    }
}

impl Desk {
    /// A page of this node's history.
    pub(crate) async fn search(
        &self,
        request: &SearchHistoryRequest,
    ) -> Result<SearchHistoryReply, Fault> {
        let query = check_search(request)?;
        let searched = self.coordinator().search(query).await;
        let (page, figures, gaps) = searched.map_err(|fault| faulty(&fault))?;
        Ok(shown(page, self.coordinator().config().node.id, (figures, gaps)))
    }

    /// One transaction with what was seen of its calls: of this node's machine while it is there, else of its history.
    pub(crate) async fn record(&self, gid: &str) -> Result<HistoryRecord, Fault> {
        let mut findings = Findings::default();
        let gid = findings.take("gid", Gid::parse(gid));
        findings.verdict()?;
        let gid = gid.expect("what is missing was found");
        let coordinator = self.coordinator();
        let known = coordinator.get(&gid, Freshness::Stale).await.ok().flatten();
        let open = known.as_ref().is_some_and(|known| !known.status.is_final());
        if open {
            let (attempts, attempts_left_out) = coordinator.attempts(&gid).await;
            let leads = coordinator.group_of(&gid).leads();
            return Ok(HistoryRecord {
                transaction: known.as_deref().map(show::transaction),
                attempts,
                attempts_left_out,
                attempts_node: if leads { coordinator.config().node.id } else { 0 },
            });
        }
        let found = coordinator.history_of(&gid).get(gid.to_string()).await;
        match (found, known) {
            (Ok(Some(record)), _) => Ok((*record).clone()),
            // Not written yet, or the store is out of order: the machine knows it nevertheless.
            (Ok(None) | Err(_), Some(known)) => Ok(HistoryRecord {
                transaction: Some(show::transaction(&known)),
                ..HistoryRecord::default()
            }),
            (Ok(None), None) => Err(Fault::rejected(&Rejection::UnknownGid { gid })),
            (Err(fault), None) => Err(faulty(&fault)),
        }
    }

    /// A finished transaction that left the machine, from this node's history.
    pub(crate) async fn remembered(&self, gid: &Gid) -> Option<v1::Transaction> {
        let found = self.coordinator().history_of(gid).get(gid.to_string()).await;
        found.ok().flatten().and_then(|record| record.transaction.clone())
    }
}

fn faulty(fault: &HistoryFault) -> Fault {
    let (class, code) = match fault {
        HistoryFault::Shelf(_) => (Class::Unavailable, "HF2402"),
        HistoryFault::Busy => (Class::Full, "HF2406"),
        HistoryFault::Off => (Class::Unavailable, "HF2412"),
    };
    Fault::new(class, code, fault.to_string())
}
