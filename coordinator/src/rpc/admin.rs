//! The gRPC service of operators.

use holdfast_proto::v1::{
    NodeStatusReply, NodeStatusRequest,
    admin_server::{Admin as Service, AdminServer},
};
use tonic::{Request, Response, Status};

use super::desk::Desk;

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

#[tonic::async_trait]
impl Service for Admin {
    async fn node_status(
        &self,
        _request: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusReply>, Status> {
        Ok(Response::new(self.desk.node_status()))
    }
}
