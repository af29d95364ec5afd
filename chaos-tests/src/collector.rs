//! A collector of spans: what every process of a story says over OTLP, and what this one says itself.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_trace::{Span, Spans};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server};

/// A span as it was told, ids in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who told it: `service.name` and `service.instance.id`.
    pub whose: String,
    /// The trace.
    pub trace: String,
    /// Its own id.
    pub span: String,
    /// The id of the span it is part of.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// ms since 1970.
    pub begun_ms: u64,
    /// ms since 1970.
    pub ended_ms: u64,
    /// What it is about.
    pub attributes: BTreeMap<String, String>,
    /// What happened within.
    pub events: Vec<String>,
    /// Why it counts as failed.
    pub failed: Option<String>,
}

/// Listens on a port of its own until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Where spans are to be sent.
    pub address: SocketAddr,
    seen: Kept,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<Seen>>>);

impl Collector {
    /// Starts to listen.
    /// # Errors
    /// No port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let seen = Kept::default();
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(seen.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move {
            let _ended = serving.await;
        });
        Ok(Self { address, seen, _serving: AbortOnDropHandle::new(serving) })
    }

    /// Takes the spans of this very process too, once for all.
    #[must_use]
    pub fn sink(&self) -> Box<dyn Spans> {
        Box::new(self.seen.clone())
    }

    /// Everything that came so far, by its beginning.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let mut seen = self.seen.held().clone();
        seen.sort_by_key(|span| (span.begun_ms, span.span.clone()));
        seen
    }
}

impl Kept {
    fn held(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The spans of a trace as a tree, one a line, times from the first of them; what lies below a span that was never told stands at the end.
#[must_use]
pub fn drawn(spans: &[Seen]) -> String {
    let first_ms = spans.iter().map(|span| span.begun_ms).min().unwrap_or(0);
    let known = |id: &str| spans.iter().any(|span| span.span == id);
    let mut text = String::new();
    for root in spans.iter().filter(|span| !known(&span.parent)) {
        draw(spans, root, 0, first_ms, &mut text);
    }
    text
}

fn draw(spans: &[Seen], span: &Seen, depth: usize, first_ms: u64, text: &mut String) {
    let from = span.begun_ms - first_ms;
    let label = format!("{}{}", "  ".repeat(depth), span.name);
    let told: Vec<String> = ["status", "outcome", "attempt", "term"]
        .into_iter()
        .filter_map(|name| {
            let value = span.attributes.get(&format!("holdfast.{name}"))?;
            Some(if ["status", "outcome"].contains(&name) {
                value.clone()
            } else {
                format!("{name} {value}")
            })
        })
        .chain((!span.events.is_empty()).then(|| format!("[{}]", span.events.join(", "))))
        .collect();
    let _ = writeln!(
        text,
        "{label:<32} {from:>5} ms +{:>5} ms  {:<34} {}",
        span.ended_ms - span.begun_ms,
        span.whose,
        told.join(", ")
    );
    for below in spans.iter().filter(|below| below.parent == span.span) {
        draw(spans, below, depth + 1, first_ms, text);
    }
}

impl Spans for Kept {
    fn record(&self, span: Span) {
        let header = span.context.header();
        let mut parts = header.split('-').skip(1).map(str::to_owned);
        let attributes = span.attributes.into_iter().map(|(key, value)| (key.to_owned(), value));
        self.held().push(Seen {
            whose: "this test".to_owned(),
            trace: parts.next().unwrap_or_default(),
            span: parts.next().unwrap_or_default(),
            parent: format!("{:?}", span.parent),
            name: span.name,
            begun_ms: span.begun_ms,
            ended_ms: span.ended_ms,
            attributes: attributes.collect(),
            events: span.events.into_iter().map(|(name, _)| name.to_owned()).collect(),
            failed: span.failed,
        });
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = words(of_resource.resource.unwrap_or_default().attributes);
            let word = |key: &str| resource.get(key).cloned().unwrap_or_default();
            let whose = format!("{} {}", word("service.name"), word("service.instance.id"));
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let seen = spans.map(|span| Seen {
                whose: whose.clone(),
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                begun_ms: span.start_time_unix_nano / 1_000_000,
                ended_ms: span.end_time_unix_nano / 1_000_000,
                attributes: words(span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                failed: span.status.map(|status| status.message),
            });
            self.held().extend(seen);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn words(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let word = |one: KeyValue| match one.value?.value? {
        any_value::Value::StringValue(text) => Some((one.key, text)),
        _ => None,
    };
    attributes.into_iter().filter_map(word).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
