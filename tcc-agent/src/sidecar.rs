//! Stands beside a service in any language: posts each call to it over HTTP and reads the verdict from the status alone.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::Semaphore;

use crate::{
    announce::BadConfig,
    barrier_store::{CODE_CHARACTERS_MAX, MESSAGE_CHARACTERS_MAX, kept},
    handler::{Asked, Handler},
    participant::{Answer, Call},
};

/// Of an answer's body, at most so much is read.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A header of ours begins so; a transaction's own headers never do.
const RESERVED_PREFIX: &str = "holdfast-";
/// Pairs that say how this very request travels; a transaction's own never set them.
const RESERVED: [&str; 13] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The service beside which the sidecar stands.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// Its address, `http://host:port`, with or without a path; calls are posted to `/try`, `/confirm`, ... below it.
    pub app: String,
    /// For one call, ms. A try or action has less when its deadline is nearer.
    pub call_timeout_ms: u64,
    /// Calls under way at once; further ones wait.
    pub concurrency: usize,
    /// Whether the service answers `/inquire`: what became of an action or a compensation that may have come before. Then such a call is
    /// made again only where the service has said that it never came.
    pub inquires: bool,
}

/// Posts calls to a service and reads the verdict from the status: 2xx done, 409 refused, 425 working, everything else unknown
/// (so are redirects, time-outs, and a service that is not there). It asks once per call; asking again is the coordinator's.
///
/// A service without a barrier of its own may be inquired of instead: 412 says that the operation never came, and it is posted then.
/// No other status says so, also not 404, which is as well that of a service without this door.
pub struct Sidecar {
    post: Arc<Post>,
}

struct Post {
    client: Client<HttpConnector, Full<Bytes>>,
    app: String,
    call_timeout_ms: AtomicU64,
    slots: Semaphore,
    inquires: bool,
}

/// What an inquiry is posted to.
const INQUIRE: &str = "inquire";

impl Sidecar {
    /// Stands beside the service of `config`, which need not be there yet.
    /// # Errors
    /// [`BadConfig`] with every mistake.
    pub fn new(config: &SidecarConfig) -> Result<Self, BadConfig> {
        let mut mistakes = Vec::new();
        let app = config.app.trim_end_matches('/').to_owned();
        let uri = format!("{app}/try").parse::<Uri>().ok();
        let usable = uri.is_some_and(|uri| {
            uri.scheme_str() == Some("http")
                && uri.query().is_none()
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        });
        if !usable {
            mistakes
                .push("app: write http://host:port, without user, query or fragment".to_owned());
        }
        if config.call_timeout_ms == 0 {
            mistakes.push("call_timeout_ms = 0: give at least 1".to_owned());
        }
        if config.concurrency == 0 || config.concurrency > Semaphore::MAX_PERMITS {
            mistakes.push(format!("concurrency = {}: give 1 or more", config.concurrency));
        }
        if !mistakes.is_empty() {
            return Err(BadConfig { mistakes });
        }
        let call_timeout = Duration::from_millis(config.call_timeout_ms);
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(call_timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(config.concurrency)
            .build(connector);
        let (slots, inquires) = (Semaphore::new(config.concurrency), config.inquires);
        let call_timeout_ms = AtomicU64::new(config.call_timeout_ms);
        Ok(Self { post: Arc::new(Post { client, app, call_timeout_ms, slots, inquires }) })
    }

    /// Has calls that begin from then on take so long at most, ms. Its connections, all on this machine, are made within the first one.
    pub fn call_timeout_setter(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let post = Arc::clone(&self.post);
        move |ms| post.call_timeout_ms.store(ms.max(1), Ordering::Relaxed)
    }
}

impl Handler for Sidecar {
    fn handle(&self, asked: Vec<Asked>) {
        // As many tasks as calls under way, which the sessions' credit bounds.
        for Asked { call, reply } in asked {
            let post = Arc::clone(&self.post);
            tokio::spawn(async move {
                let _slot = post.slots.acquire().await.expect("the slots are never closed");
                let (answer, rest) = post.carry(&call).await;
                let verdict = match &answer {
                    Answer::Done => "done",
                    Answer::Refused { .. } => "refused",
                    Answer::Working => "working",
                    Answer::Unknown { message } => {
                        tracing::debug!(gid = %call.gid, branch = call.branch, op = %call.op, message, "unknown");
                        "unknown"
                    }
                };
                metrics::counter!("holdfast_agent_app_answers_total", "op" => call.op.as_str(), "verdict" => verdict)
                    .increment(1);
                reply.answer(answer);
                if let Some(rest) = rest {
                    drain(rest, post.call_timeout()).await;
                }
            });
        }
    }
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("app", &self.post.app).finish_non_exhaustive()
    }
}

/// What a service said.
enum Said {
    /// Its answer to the call, and the body where it was not needed.
    Answer(Answer, Option<Incoming>),
    /// To an inquiry: it knows nothing of the operation, and the body.
    NeverCame(Incoming),
}

impl Said {
    fn into_answer(self) -> (Answer, Option<Incoming>) {
        match self {
            Self::Answer(answer, rest) => (answer, rest),
            Self::NeverCame(rest) => {
                let message = "the service says that it never came".to_owned();
                (Answer::Unknown { message }, Some(rest))
            }
        }
    }
}

/// Reads a body to its end, so that the connection can be used again; a longer one, or a slow one, costs the connection.
async fn drain(rest: Incoming, within: Duration) {
    let reading = Limited::new(rest, BODY_BYTES_MAX).collect();
    let _read = tokio::time::timeout(within, reading).await;
}

impl Post {
    /// Has the service carry the call out once; asks before what became of it, if it may have come and the service can tell.
    async fn carry(&self, call: &Call) -> (Answer, Option<Incoming>) {
        let timeout = self.timeout(call);
        if !(self.inquires && call.repeat && call.op.is_saga()) {
            return self.ask(call, call.op.as_str(), timeout).await.into_answer();
        }
        let begun = Instant::now();
        match self.ask(call, INQUIRE, timeout).await {
            Said::NeverCame(rest) => drain(rest, timeout.saturating_sub(begun.elapsed())).await,
            said @ Said::Answer(..) => return said.into_answer(),
        }
        // Both together take no longer than one call may.
        let left = timeout.saturating_sub(begun.elapsed());
        self.ask(call, call.op.as_str(), left).await.into_answer()
    }

    /// Posts once.
    async fn ask(&self, call: &Call, path: &str, timeout: Duration) -> Said {
        let unknown = |message| Said::Answer(Answer::Unknown { message }, None);
        let request = match self.request(call, path) {
            Ok(request) => request,
            Err(message) => return unknown(message),
        };
        let response = match tokio::time::timeout(timeout, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let what = if error.is_connect() { "cannot be reached" } else { "broke off" };
                return unknown(format!("the service {what}"));
            }
            Err(_) => {
                return unknown(format!(
                    "no answer from the service within {} ms",
                    timeout.as_millis()
                ));
            }
        };
        match response.status() {
            status if status.is_success() => Said::Answer(Answer::Done, Some(response.into_body())),
            StatusCode::CONFLICT => Said::Answer(refusal(response, timeout).await, None),
            StatusCode::TOO_EARLY => Said::Answer(Answer::Working, Some(response.into_body())),
            StatusCode::PRECONDITION_FAILED if path == INQUIRE => {
                Said::NeverCame(response.into_body())
            }
            status => {
                let message = format!("the service answered {} to {path}", status.as_u16());
                Said::Answer(Answer::Unknown { message }, Some(response.into_body()))
            }
        }
    }

    fn request(&self, call: &Call, path: &str) -> Result<Request<Full<Bytes>>, String> {
        let uri = format!("{}/{path}", self.app).parse::<Uri>();
        let uri = uri.map_err(|error| format!("no address for {path}: {error}"))?;
        let mut request = Request::new(Full::new(call.payload.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers(call);
        Ok(request)
    }

    fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.call_timeout_ms.load(Ordering::Relaxed))
    }

    /// A try or action that comes back after its deadline is of no use; a confirm or an undo has to succeed, whenever.
    fn timeout(&self, call: &Call) -> Duration {
        if call.deadline_ms == 0 || !call.op.is_first_phase() {
            return self.call_timeout();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match Duration::from_millis(call.deadline_ms).checked_sub(now) {
            // Past, perhaps by this machine's clock only: asked all the same.
            None | Some(Duration::ZERO) => self.call_timeout(),
            Some(left) => left.min(self.call_timeout()),
        }
    }
}

/// The transaction's headers, and ours, which win.
fn headers(call: &Call) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(call.headers.len() + 8);
    for (name, value) in call.headers.iter() {
        // Neither type can hold CR, LF or NUL; what does not fit is left out.
        let name = HeaderName::from_bytes(name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) else { continue };
        if !name.as_str().starts_with(RESERVED_PREFIX) && !RESERVED.contains(&name.as_str()) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let gid = HeaderValue::from_str(call.gid.as_str()).expect("a gid is letters, digits and '-'");
    headers.insert("holdfast-gid", gid);
    headers.insert("holdfast-branch", HeaderValue::from(call.branch));
    headers.insert("holdfast-op", HeaderValue::from_static(call.op.as_str()));
    headers.insert("holdfast-attempt", HeaderValue::from(call.attempt));
    headers.insert("holdfast-deadline-ms", HeaderValue::from(call.deadline_ms));
    if call.repeat {
        headers.insert("holdfast-repeat", HeaderValue::from_static("possible"));
    }
    if call.refusal_waits && call.repeat {
        headers.insert("holdfast-refusal", HeaderValue::from_static("waits"));
    }
    headers
}

/// What people are told about a refusal; that it is one stands in the status already.
async fn refusal(response: Response<Incoming>, timeout: Duration) -> Answer {
    #[derive(Default, serde::Deserialize)]
    struct Words {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect();
    let words = match tokio::time::timeout(timeout, body).await {
        Ok(Ok(body)) => serde_json::from_slice::<Words>(&body.to_bytes()).unwrap_or_default(),
        Ok(Err(_)) | Err(_) => Words::default(),
    };
    let code = if words.code.is_empty() { "refused" } else { &words.code };
    Answer::Refused {
        code: kept(code, CODE_CHARACTERS_MAX),
        message: kept(&words.message, MESSAGE_CHARACTERS_MAX),
    }
}
