//! Single questions and changes, one call each, beside the stream of transactions.

use tokio::time::{Instant, timeout_at};

use crate::{
    Client, ClientError, ErrorKind,
    link::{Line, channel},
};

impl Client {
    /// Asks one node after the other until one answers.
    pub(crate) async fn on_any<T, F>(&self, ask: impl Fn(Line) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut error = None;
        for address in self.addresses() {
            match self.on_one(&address, &ask).await {
                Ok(reply) => return Ok(reply),
                Err(refused @ ClientError::Refused { .. }) => return Err(refused),
                Err(other) => error = Some(other),
            }
        }
        Err(error.expect("a client has at least one address"))
    }

    /// Has one node after the other carry out a change, until one answers. A change whose answer is lost is not asked for again: it may
    /// have happened. `what` says what it is about.
    pub(crate) async fn change_on_any<T, F>(
        &self,
        what: &str,
        ask: impl Fn(Line) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut error = None;
        for address in self.addresses() {
            match self.change_on_one(&address, what, &ask).await {
                Err(other) if other.kind() == ErrorKind::Retry => error = Some(other),
                ended => return ended,
            }
        }
        Err(error.expect("a client has at least one address"))
    }

    /// Asks one node. Nothing happens by a question, so one whose answer is lost may be asked again.
    pub(crate) async fn on_one<T, F>(
        &self,
        address: &str,
        ask: &impl Fn(Line) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let begun = Instant::now();
        self.change_on_one(address, "a question", ask).await.map_err(|error| match error {
            ClientError::Unknown { last, .. } => {
                ClientError::Unreachable { patience_ms: ms_since(begun), last }
            }
            other => other,
        })
    }

    /// Has one node carry out a change. [`ClientError::Unknown`]: it was sent, and no answer says what came of it.
    pub(crate) async fn change_on_one<T, F>(
        &self,
        address: &str,
        what: &str,
        ask: &impl Fn(Line) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let options = self.options();
        let begun = Instant::now();
        let unreachable =
            |last: String| ClientError::Unreachable { patience_ms: ms_since(begun), last };
        let silent = || format!("{address} did not answer in time");
        let deadline = Instant::now() + options.patience();
        let channel = timeout_at(deadline, channel(address, options))
            .await
            .map_err(|_| unreachable(silent()))?
            .map_err(|error| unreachable(error.to_string()))?;
        timeout_at(deadline, ask(channel))
            .await
            .map_err(|_| ClientError::Unknown { gid: what.to_owned(), last: silent() })?
            .map(tonic::Response::into_inner)
            .map_err(|status| from_status(&status, what, ms_since(begun)))
    }
}

/// One node is asked once: what it was tried for is mostly far less than the caller's patience.
fn ms_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A unary answer's status, by the code in its metadata. `what` is what was asked for.
pub(crate) fn from_status(status: &tonic::Status, what: &str, patience_ms: u64) -> ClientError {
    use tonic::Code::{InvalidArgument, PermissionDenied, Unauthenticated, Unimplemented};
    let unknown = |last: String| ClientError::Unknown { gid: what.to_owned(), last };
    let code = status.metadata().get("holdfast-code").and_then(|code| code.to_str().ok());
    let Some(code) = code.map(str::to_owned) else {
        let last = format!("{}: {}", status.code(), status.message());
        return match status.code() {
            // Turned away at the door.
            InvalidArgument | PermissionDenied | Unauthenticated | Unimplemented => {
                ClientError::Unreachable { patience_ms, last }
            }
            _ => unknown(last),
        };
    };
    let message = status.message().to_owned();
    match status.metadata().get("holdfast-kind").and_then(|kind| kind.to_str().ok()) {
        Some("refused") => ClientError::Refused { code, message },
        Some("retry") => ClientError::Retry { code, message },
        _ => unknown(format!("{code} {message}")),
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status, metadata::MetadataMap};

    use super::*;

    /// Holds at compile time: a caller may wait in a task of its own.
    #[test]
    fn what_asks_any_node_may_be_spawned() {
        fn spawned<T: Send>(_: impl Future<Output = T> + Send) {}
        let client = Client::lazy(["127.0.0.1:1"], crate::ClientOptions::default())
            .expect("an address and the default options are good");
        spawned(client.get_stale("g1"));
        spawned(client.list(crate::Filter::default()));
        spawned(client.node_status());
        spawned(client.node_status_of("127.0.0.1:1", 0));
        spawned(client.hashed_status_of("127.0.0.1:1", 0));
        spawned(client.services(""));
        spawned(client.show("g1"));
        spawned(client.rules(0));
        spawned(client.watch_rules(0));
        spawned(client.hold("127.0.0.1:1", 0, "why"));
        spawned(client.locate("customers", &[]));
        spawned(client.audit_records(0, 0, 1));
        spawned(client.apply_rules(crate::wire::ApplyRulesRequest::default()));
    }

    fn told(kind: &'static str) -> ClientError {
        let mut metadata = MetadataMap::new();
        metadata.insert("holdfast-code", "HF2102".parse().expect("ASCII"));
        metadata.insert("holdfast-kind", kind.parse().expect("ASCII"));
        from_status(&Status::with_metadata(Code::Unknown, "words", metadata), "it", 1)
    }

    #[test]
    fn an_answer_that_leaves_it_open_and_an_answer_that_is_lost_are_unknown() {
        assert_eq!(told("unknown").kind(), ErrorKind::Unknown);
        assert_eq!(told("a kind of later").kind(), ErrorKind::Unknown);
        assert_eq!(told("retry").kind(), ErrorKind::Retry);
        assert_eq!(told("refused").kind(), ErrorKind::Refused);
        for lost in [Code::Unavailable, Code::Cancelled, Code::Internal, Code::Unknown] {
            assert_eq!(from_status(&Status::new(lost, ""), "it", 1).kind(), ErrorKind::Unknown);
        }
        let turned_away = from_status(&Status::permission_denied(""), "it", 1);
        assert_eq!(turned_away.kind(), ErrorKind::Retry);
    }
}
