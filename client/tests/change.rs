//! Changes of the members before a scripted node: another change is waited for, and what ends the wait is told with its own cause.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::stream::Empty;
use holdfast_client::{
    Change, Client, ClientError, ClientOptions,
    wire::{
        self, ChangeReply,
        admin_server::{Admin, AdminServer},
        change_reply::Outcome,
    },
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// A node that refuses every change as long as another is under way.
#[derive(Clone)]
struct Node {
    /// Changes that are refused.
    busy: usize,
    asked: Arc<AtomicUsize>,
    then: Outcome,
}

type Reply = Result<Response<ChangeReply>, Status>;

impl Node {
    fn answer(&self) -> Reply {
        let refused = |code: &str, cause: &str| {
            Outcome::Refused(wire::ChangeRefused { code: code.to_owned(), cause: cause.to_owned() })
        };
        let outcome = match self.asked.fetch_add(1, Ordering::SeqCst) {
            before if before < self.busy => refused("HF2508", "another change is under way"),
            _ => self.then.clone(),
        };
        Ok(Response::new(ChangeReply { outcome: Some(outcome) }))
    }
}

#[tonic::async_trait]
impl Admin for Node {
    type BackupStream = Empty<Result<wire::BackupChunk, Status>>;
    type HoldStream = Empty<Result<wire::HoldReply, Status>>;

    async fn add_member(&self, _: Request<wire::AddMemberRequest>) -> Reply {
        self.answer()
    }

    async fn promote_member(&self, _: Request<wire::MemberRequest>) -> Reply {
        self.answer()
    }

    async fn remove_member(&self, _: Request<wire::MemberRequest>) -> Reply {
        self.answer()
    }

    async fn swap_member(&self, _: Request<wire::SwapMemberRequest>) -> Reply {
        self.answer()
    }

    async fn transfer_leadership(&self, _: Request<wire::TransferLeadershipRequest>) -> Reply {
        self.answer()
    }

    async fn node_status(
        &self,
        _: Request<wire::NodeStatusRequest>,
    ) -> Result<Response<wire::NodeStatusReply>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn reload_config(
        &self,
        _: Request<wire::ReloadConfigRequest>,
    ) -> Result<Response<wire::ReloadConfigReply>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn backup(
        &self,
        _: Request<wire::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn hold(
        &self,
        _: Request<Streaming<wire::HoldRequest>>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// What comes of adding node 4 with so much patience, and how often the node was asked.
async fn added(busy: usize, then: Outcome, patience_ms: u64) -> (Result<u64, ClientError>, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let node = Node { busy, asked: Arc::default(), then };
    let asked = Arc::clone(&node.asked);
    let server = Server::builder()
        .add_service(AdminServer::new(node))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let served = tokio::spawn(server);
    let options = ClientOptions { patience_ms, ..ClientOptions::default() };
    let client = Client::lazy([address], options).expect("an address");
    let told = client.change(0, &Change::Add { node: 4, raft: "127.0.0.1:1".to_owned() }).await;
    served.abort();
    (told, asked.load(Ordering::SeqCst))
}

fn done() -> Outcome {
    Outcome::Done(wire::ChangeDone { took_ms: 7 })
}

#[tokio::test]
async fn a_change_waits_for_another_and_is_told_what_its_own_end_is() {
    assert_eq!(added(2, done(), 10_000).await, (Ok(7), 3));
    let member = wire::ChangeRefused { code: "HF2504".to_owned(), cause: "a member".to_owned() };
    let refused =
        ClientError::Refused { code: "HF2504".to_owned(), message: "a member".to_owned() };
    assert_eq!(added(1, Outcome::Refused(member), 10_000).await, (Err(refused), 2));
}

/// The cause is the other change, and that nothing happened.
#[tokio::test]
async fn a_change_that_another_outlasts_is_told_so_when_patience_ends() {
    let busy = ClientError::Retry {
        code: "HF2508".to_owned(),
        message: "another change is under way".to_owned(),
    };
    // At the limit there is no time for a second attempt; one pause longer there is.
    assert_eq!(added(1, done(), 400).await, (Err(busy), 1));
    assert_eq!(added(1, done(), 1_000).await, (Ok(7), 2));
}
