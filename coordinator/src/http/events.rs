//! Moves of transactions as server-sent events: of one, until its end, or of all that fit a filter.
//!
//! Every event carries the transaction as it is then. The stream of one begins with its present state, so that a reader who comes back
//! has missed nothing that matters. The stream of many names each event by a cursor of the history; a reader who comes back
//! with it (`Last-Event-ID`) is first told what finished meanwhile. A reader who is too slow is told so and let go.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use futures::{Stream, StreamExt as _};
use holdfast_proto::{Pairs, v1};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    operating::search,
    problem::Problem,
    routes::{Door, Name, asked, bad_query, named},
    view,
};
use crate::{
    config::limit,
    rpc::fault::{Class, Fault},
    watchers::Watching,
};

/// Between two signs of life.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events that wait for a reader beside those of the node.
const WAITING_MAX: usize = 64;
/// What finished meanwhile and is told to a reader who comes back.
const CAUGHT_UP_MAX: u32 = 1_000;

/// The routes.
pub(super) fn routes() -> Router<Door> {
    Router::new().route("/v1/events", get(many)).route("/v1/transactions/{gid}/events", get(one))
}

/// What a stream tells.
struct Reader {
    door: Door,
    watching: Watching,
    out: mpsc::Sender<Result<Event, Infallible>>,
}

async fn one(door: Door, gid: Name) -> Result<Response, Problem> {
    let gid = named(gid)?;
    let watching = watch(&door)?;
    // Looked at after the watch began, so that no move falls between the two.
    let known = door.desk.record(&gid).await?.transaction;
    let (out, events) = mpsc::channel(WAITING_MAX);
    let reader = Reader { door, watching, out };
    tokio::spawn(reader.until_the_end(gid, known));
    Ok(stream(ReceiverStream::new(events)))
}

async fn many(
    door: Door,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Problem> {
    let mut pairs = asked(query)?;
    // Open statuses can be watched, though the history does not know them.
    let mut statuses = Vec::new();
    for (_, words) in pairs.extract_if(.., |(name, _)| name == "status") {
        for word in words.split(',').filter(|word| !word.is_empty()).take(16) {
            statuses.push(super::operating::status(word)?);
        }
    }
    let filter = search(pairs)?;
    crate::history::check_search(&filter).map_err(Problem::from)?;
    let after = match headers.get("last-event-id") {
        None => None,
        Some(id) => {
            let id = id.to_str().ok().filter(|id| id.len() <= 128);
            Some(id.ok_or_else(|| bad_query(&"Last-Event-ID is none of this stream's"))?.to_owned())
        }
    };
    let from_ms = match &after {
        None => None,
        Some(id) => Some(
            id.split('-')
                .next()
                .and_then(|ms| ms.parse::<u64>().ok())
                .ok_or_else(|| bad_query(&"Last-Event-ID is none of this stream's"))?,
        ),
    };
    let watching = watch(&door)?;
    let missed = match from_ms {
        Some(from_ms) => caught_up(&door, &filter, from_ms).await?,
        None => Vec::new(),
    };
    let (out, events) = mpsc::channel(WAITING_MAX);
    let reader = Reader { door, watching, out };
    tokio::spawn(reader.for_ever(filter, statuses, missed));
    Ok(stream(ReceiverStream::new(events)))
}

/// What finished from `from_ms` on, oldest first; the same millisecond again, since a repeat does less harm than a gap.
async fn caught_up(
    door: &Door,
    filter: &v1::SearchHistoryRequest,
    from_ms: u64,
) -> Result<Vec<v1::Transaction>, Problem> {
    let since = v1::SearchHistoryRequest { from_ms, limit: CAUGHT_UP_MAX, ..filter.clone() };
    let mut found = door.desk.search(&since).await?.transactions;
    found.reverse();
    Ok(found)
}

fn watch(door: &Door) -> Result<Watching, Problem> {
    door.desk.coordinator().watchers().watch().ok_or_else(|| {
        let most = limit::WATCHERS_MAX;
        Problem::from(Fault::new(
            Class::Full,
            "HF2407",
            format!("{most} watch on this node, which is the limit. Nothing happened; watch on another node, or try again later"),
        ))
    })
}

fn stream(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keep = KeepAlive::new().interval(KEEP_ALIVE).text("alive");
    let mut response = Sse::new(events.boxed()).keep_alive(keep).into_response();
    *response.status_mut() = StatusCode::OK;
    response
}

impl Reader {
    /// One transaction, from its present state to its end.
    async fn until_the_end(mut self, gid: String, known: Option<v1::Transaction>) {
        if let Some(known) = known {
            let over = is_final(&known);
            if !self.tell(&known).await || over {
                return;
            }
        }
        while let Some(moved) = self.next().await {
            if moved.gid == gid && (!self.tell(&moved).await || is_final(&moved)) {
                return;
            }
        }
    }

    /// Every move that fits, after what was missed.
    async fn for_ever(
        mut self,
        filter: v1::SearchHistoryRequest,
        statuses: Vec<i32>,
        missed: Vec<v1::Transaction>,
    ) {
        for known in missed {
            if wanted(&filter, &statuses, &known) && !self.tell(&known).await {
                return;
            }
        }
        while let Some(moved) = self.next().await {
            if wanted(&filter, &statuses, &moved) && !self.tell(&moved).await {
                return;
            }
        }
    }

    /// The next move; `None`: the reader is gone, was too slow, or the node stops.
    async fn next(&mut self) -> Option<Arc<v1::Transaction>> {
        let stopping = self.door.desk.coordinator().stopping();
        let moved = tokio::select! {
            moved = self.watching.moves.recv() => moved,
            () = self.out.closed() => return None,
            () = stopping.cancelled() => return None,
        };
        match moved {
            Ok(moved) => Some(moved),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(missed)) => {
                let words = format!("{missed} moves were missed: come back with the last id");
                let _gone = self.out.try_send(Ok(Event::default().event("too_slow").data(words)));
                None
            }
        }
    }

    /// False: the reader is gone. Waits for a slow one; the broadcast behind has a bound of its own.
    async fn tell(&self, known: &v1::Transaction) -> bool {
        let at_ms = [known.finished_at_ms, known.decided_at_ms, known.begun_at_ms];
        let at_ms = at_ms.into_iter().find(|ms| *ms > 0).unwrap_or_default();
        let data = serde_json::to_string(&view::Transaction::from(known.clone()));
        let event = Event::default()
            .event("transaction")
            .id(format!("{at_ms}-{}", known.gid))
            .data(data.expect("texts and numbers are always JSON"));
        self.out.send(Ok(event)).await.is_ok()
    }
}

fn is_final(known: &v1::Transaction) -> bool {
    matches!(known.status(), v1::Status::Committed | v1::Status::RolledBack)
}

fn wanted(filter: &v1::SearchHistoryRequest, statuses: &[i32], known: &v1::Transaction) -> bool {
    (statuses.is_empty() || statuses.contains(&known.status))
        && (filter.modes.is_empty() || filter.modes.contains(&known.mode))
        && (filter.participant.is_empty()
            || known.branches.iter().any(|branch| branch.participant == filter.participant))
        && filter.tags.iter().all(|tag| Pairs::find(&known.tags, &tag.name) == Some(&*tag.value))
}
