//! Where spans go when `telemetry.endpoint` names a collector: over OTLP (gRPC), in batches, from a bounded queue.
//!
//! Whoever records a span never waits: what does not fit is dropped and counted, and so is what the collector does not take in a few attempts.
//! A collector that is down costs spans and nothing else. They are encoded and sent by a thread of their own, which stands back: one thread
//! carries a leader's work, and what is not done there is not waited for.

use std::time::Duration;

use anyhow::Context as _;
use holdfast_trace::{Kind, Span, Spans};
use metrics::Counter;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{self as otlp, ResourceSpans, ScopeSpans, Status, span, status},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Spans that wait to be sent. One takes about half a KiB.
const QUEUE_MAX: usize = 16_384;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// What is there goes so often, however little it is; the queue has room for more than a busy leader makes meanwhile.
const INTERVAL: Duration = Duration::from_millis(200);
/// For one request.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// Times that a batch is sent before it is dropped.
const ATTEMPTS_MAX: u32 = 4;
/// Between the first two of them; doubled each time.
const PAUSE: Duration = Duration::from_millis(250);
/// For what is left at the end of the process.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// The flag of a trace that is sampled, as every one here is.
const SAMPLED: u32 = 1;
const NS_PER_MS: u64 = 1_000_000;

/// The thread that sends. [`Self::end`] sends what is left.
#[derive(Debug)]
pub(crate) struct Traces(Option<(CancellationToken, oneshot::Receiver<()>)>);

/// Whose spans these are.
#[derive(Debug)]
pub(crate) struct Who<'a> {
    /// `coordinator`, `agent`, `bank` or `router`.
    pub(crate) role: &'a str,
    /// Which of them.
    pub(crate) instance: String,
}

impl Traces {
    /// Sends this process's spans to the collector at `endpoint`; none are taken where that is empty.
    /// # Errors
    /// Spans go somewhere already.
    pub(crate) fn start(endpoint: &str, who: &Who<'_>) -> anyhow::Result<Self> {
        if endpoint.is_empty() {
            return Ok(Self(None));
        }
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let dropped = metrics::counter!("holdfast_spans_dropped_total");
        let resource = resource(who);
        let sink = Sink { queue, dropped: dropped.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("no thread to send spans on")?;
        holdfast_trace::install(Box::new(sink)).ok().context("traces were started twice")?;
        let (stop, (sends, ended)) = (CancellationToken::new(), oneshot::channel());
        let stopped = stop.clone();
        let send = async move {
            let connecting = endpoint.connect_timeout(EXPORT_MAX).connect_lazy();
            let sender = Sender {
                client: TraceServiceClient::new(connecting),
                resource,
                dropped,
                sent: metrics::counter!("holdfast_spans_sent_total"),
                well: true,
            };
            sender.run(waiting, stopped).await;
        };
        let run = move || {
            holdfast_raft::stand_back();
            runtime.block_on(send);
            let _nobody_waits = sends.send(());
        };
        let thread = std::thread::Builder::new().name("spans".to_owned()).spawn(run);
        thread.context("no thread to send spans on")?;
        Ok(Self(Some((stop, ended))))
    }

    /// Sends what is left, for a moment.
    pub(crate) async fn end(self) {
        if let Some((stop, ended)) = self.0 {
            stop.cancel();
            // A thread that broke has dropped its end.
            if !matches!(timeout(FAREWELL_MAX, ended).await, Ok(Ok(()))) {
                tracing::warn!("the collector did not take the last spans in time");
            }
        }
    }
}

/// The way in.
#[derive(Debug)]
struct Sink {
    queue: mpsc::Sender<Span>,
    dropped: Counter,
}

impl Spans for Sink {
    fn record(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }
}

/// What the thread behind [`Traces`] does.
struct Sender {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    dropped: Counter,
    sent: Counter,
    /// Whether the last batch was taken: a change is logged, and nothing in between.
    well: bool,
}

impl Sender {
    /// Looks at the queue from time to time: a span that woke this thread would cost more than the span.
    async fn run(mut self, mut waiting: mpsc::Receiver<Span>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let over = tokio::select! {
                _ = tick.tick() => false,
                () = stop.cancelled() => true,
            };
            self.send_what_waits(&mut waiting).await;
            if over {
                return;
            }
        }
    }

    async fn send_what_waits(&mut self, waiting: &mut mpsc::Receiver<Span>) {
        loop {
            let next = std::iter::from_fn(|| waiting.try_recv().ok());
            let batch: Vec<Span> = next.take(BATCH_MAX).collect();
            if batch.is_empty() {
                return;
            }
            self.send(batch).await;
        }
    }

    async fn send(&mut self, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS_MAX {
            let asked = timeout(EXPORT_MAX, self.client.export(self.request(&batch))).await;
            let fault = match asked {
                Ok(Ok(reply)) => {
                    let partial = reply.into_inner().partial_success.unwrap_or_default();
                    let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                    self.sent.increment(count - rejected);
                    self.dropped.increment(rejected);
                    if !std::mem::replace(&mut self.well, true) {
                        tracing::info!("the collector takes spans again");
                    }
                    return;
                }
                Ok(Err(status)) if !may_help(status.code()) => format!("{:?}", status.code()),
                Ok(Err(_)) | Err(_) if attempt < ATTEMPTS_MAX => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    continue;
                }
                Ok(Err(status)) => format!("{:?}", status.code()),
                Err(_) => format!("no answer within {} s", EXPORT_MAX.as_secs()),
            };
            self.dropped.increment(count);
            if std::mem::replace(&mut self.well, false) {
                tracing::warn!(fault, "the collector takes no spans; they are dropped and counted");
            }
            return;
        }
    }

    /// Made anew for each attempt: most are taken at the first, and a copy for those that are not would cost as much.
    fn request(&self, batch: &[Span]) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "holdfast".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        let spans = batch.iter().map(on_the_wire).collect();
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..Default::default() }];
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..Default::default() }];
        ExportTraceServiceRequest { resource_spans }
    }
}

/// Whether the collector may take the same batch later (OTLP specification, "Failures").
fn may_help(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}

fn resource(who: &Who<'_>) -> Resource {
    let service = format!("holdfast-{}", who.role);
    let attributes = vec![
        attribute("service.name", service),
        attribute("service.namespace", "holdfast".to_owned()),
        attribute("service.instance.id", who.instance.clone()),
        attribute("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    Resource { attributes, ..Default::default() }
}

fn attribute(key: &str, value: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value)) });
    KeyValue { key: key.to_owned(), value, ..Default::default() }
}

fn on_the_wire(span: &Span) -> otlp::Span {
    let kind = match span.kind {
        Kind::Internal => span::SpanKind::Internal,
        Kind::Client => span::SpanKind::Client,
        Kind::Server => span::SpanKind::Server,
    };
    let event = |&(name, at_ms): &(&str, u64)| span::Event {
        time_unix_nano: at_ms * NS_PER_MS,
        name: name.to_owned(),
        ..Default::default()
    };
    let attributes = span.attributes.iter().map(|(key, value)| attribute(key, value.clone()));
    otlp::Span {
        trace_id: span.context.trace.to_vec(),
        span_id: span.context.span.0.to_vec(),
        parent_span_id: span.parent.0.to_vec(),
        flags: SAMPLED,
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: span.begun_ms * NS_PER_MS,
        end_time_unix_nano: span.ended_ms * NS_PER_MS,
        attributes: attributes.collect(),
        events: span.events.iter().map(event).collect(),
        status: span
            .failed
            .clone()
            .map(|message| Status { message, code: status::StatusCode::Error.into() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    };

    use holdfast_trace::{Context, SpanId};
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    };
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Code, Request, Response, transport::Server};

    use super::*;

    /// A collector that answers everything in one way, and keeps how many spans each request had.
    #[derive(Clone, Default)]
    struct Collector {
        answer: Option<Code>,
        seen: Arc<Mutex<Vec<usize>>>,
    }

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, tonic::Status> {
            let request = request.into_inner();
            let count = request.resource_spans[0].scope_spans[0].spans.len();
            self.seen.lock().expect("no panic").push(count);
            match self.answer {
                None => Ok(Response::new(ExportTraceServiceResponse::default())),
                Some(code) => Err(tonic::Status::new(code, "no")),
            }
        }
    }

    fn span() -> Span {
        let id = SpanId([1; 8]);
        Span {
            context: Context { trace: [1; 16], span: id },
            parent: id,
            name: "call".to_owned(),
            kind: Kind::Internal,
            begun_ms: 1,
            ended_ms: 2,
            attributes: Vec::new(),
            events: Vec::new(),
            failed: None,
        }
    }

    /// Has so many spans sent to a collector that answers so. What each request had, what was sent and what was dropped.
    async fn send(count: usize, answer: Option<Code>) -> (Vec<usize>, u64, u64) {
        let collector = Collector { answer, ..Default::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let service = TraceServiceServer::new(collector.clone());
        let serving = Server::builder().add_service(service);
        let serving = tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        for _ in 0..count {
            queue.try_send(span()).expect("there is room");
        }
        // Told to end, the sender ends when all is sent.
        let stop = CancellationToken::new();
        stop.cancel();
        let (sent, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let sender = Sender {
            client: TraceServiceClient::new(endpoint.connect_lazy()),
            resource: Resource::default(),
            dropped: Counter::from_arc(Arc::clone(&dropped)),
            sent: Counter::from_arc(Arc::clone(&sent)),
            well: true,
        };
        let sending = sender.run(waiting, stop);
        timeout(Duration::from_secs(60), sending).await.expect("it ends in time");
        serving.abort();
        let seen = collector.seen.lock().expect("no panic").clone();
        (seen, sent.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed))
    }

    #[test]
    fn as_many_spans_wait_as_allowed_and_one_more_is_dropped_and_counted() {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let sink = Sink { queue, dropped: Counter::from_arc(Arc::clone(&dropped)) };
        (0..QUEUE_MAX).for_each(|_| sink.record(span()));
        assert_eq!((waiting.len(), dropped.load(Ordering::Relaxed)), (QUEUE_MAX, 0));
        sink.record(span());
        assert_eq!((waiting.len(), dropped.load(Ordering::Relaxed)), (QUEUE_MAX, 1));
    }

    #[tokio::test]
    async fn a_request_has_as_many_spans_as_allowed_and_one_more_goes_with_the_next() {
        assert_eq!(send(BATCH_MAX, None).await, (vec![BATCH_MAX], 512, 0));
        assert_eq!(send(BATCH_MAX + 1, None).await, (vec![BATCH_MAX, 1], 513, 0));
    }

    #[tokio::test]
    async fn spans_are_sent_four_times_and_then_dropped_and_counted() {
        assert_eq!(send(3, Some(Code::Unavailable)).await, (vec![3; 4], 0, 3));
        // What the collector will never take is not sent again.
        assert_eq!(send(3, Some(Code::InvalidArgument)).await, (vec![3], 0, 3));
    }
}
