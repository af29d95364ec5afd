//! Lives beside a participant, as library or sidecar, and makes every branch operation take effect once.
//!
//! [`serve`] keeps a session to every coordinator node and hands its calls to a [`Handler`]: a [`PostgresResource`], which carries
//! them out in this process through a [`Participant`]; an [`XaResource`], which ends what others have prepared at a PostgreSQL; or a
//! [`Sidecar`], which posts them to a service in any language. The other way round, [`outbox`] publishes what a service has written in its
//! own local transactions.

mod announce;
mod barrier_store;
mod handler;
mod headers;
pub mod outbox;
mod participant;
mod resource;
mod serve;
mod session;
mod sidecar;
mod spans;
mod status;

/// What [`ServeConfig`] is told of certificates.
pub use holdfast_security::{Credentials, ServerTls};

pub use announce::{BadConfig, ServeConfig};
pub use barrier_store::{BARRIER_SQL, install};
pub use handler::{Asked, Handler, Reply, ask};
pub use headers::Headers;
pub use participant::{Answer, BadGid, Call, Gid, LocalTransaction, Op, Parameter, Participant};
pub use resource::{Counts, Database, Limits, PostgresResource, WeakLogin, XaResource, words};
pub use serve::serve;
pub use sidecar::{Sidecar, SidecarConfig};
pub use status::Status;
