//! Participants that do not dial in: each registered address is a session like any other, whose agent is here.
//!
//! Addresses come from the policies alone, never from a caller. One call is one request: over HTTP a POST to `/try`,
//! `/confirm`, ... below the address, with the verdict in the status alone (2xx done, 409 refused, 425 working, all else
//! unknown); over gRPC `holdfast.v1.BranchCalls/Handle`. Nothing is repeated here: asking again is the dispatcher's.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use holdfast_proto::{
    Pairs,
    v1::{self, branch_calls_client::BranchCallsClient},
};
use holdfast_txn::Participant;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};

use crate::{
    dispatcher::{About, Credit, Events, NewSession, Outgoing, SessionId, SessionKind},
    registry::policy::Policies,
};

/// Sessions of agents are numbered from 1; these from here.
const FIRST_ID: u64 = 1 << 63;
/// Calls under way at once, if nobody decided.
const CREDIT_DEFAULT: u32 = 256;
/// Messages that wait for one endpoint.
const OUTBOX_MAX: usize = 64;
/// For one request; the dispatcher asks again long before.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// For a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Bytes of a refusal that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What the endpoints of this node work with.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) policies: watch::Receiver<Arc<Policies>>,
    pub(crate) events: Events,
}

/// One that is registered now.
#[derive(Debug)]
struct Registered {
    endpoint: v1::Endpoint,
    id: SessionId,
    /// Ends its task.
    _serving: DropGuard,
}

impl Endpoints {
    /// Keeps a session for every address that is registered, until `stop`.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        let mut registered: BTreeMap<Participant, Registered> = BTreeMap::new();
        let mut next_id = FIRST_ID;
        loop {
            let policies = Arc::clone(&self.policies.borrow_and_update());
            let wanted = |service: &Participant| policies.services.get(service)?.endpoint.clone();
            let gone: Vec<Participant> = registered
                .iter()
                .filter(|(service, one)| wanted(service).as_ref() != Some(&one.endpoint))
                .map(|(service, _)| service.clone())
                .collect();
            for service in gone {
                if let Some(one) = registered.remove(&service)
                    && self.events.down(one.id).await.is_err()
                {
                    return;
                }
            }
            for (service, policy) in &policies.services {
                let Some(endpoint) = policy.endpoint.clone() else { continue };
                if registered.contains_key(service) {
                    continue;
                }
                let id = SessionId(next_id);
                next_id += 1;
                let Some(one) = self.register(service, endpoint, id).await else { return };
                registered.insert(service.clone(), one);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.policies.changed() => if changed.is_err() { return },
            }
        }
    }

    /// `None`: the node stops.
    async fn register(
        &self,
        service: &Participant,
        endpoint: v1::Endpoint,
        id: SessionId,
    ) -> Option<Registered> {
        let credit = if endpoint.credit == 0 { CREDIT_DEFAULT } else { endpoint.credit } as usize;
        let (outbox, sent) = mpsc::channel(OUTBOX_MAX);
        let caller = Caller::of(&endpoint.address, credit);
        let kind = match &caller {
            Caller::Http { .. } => SessionKind::Http,
            Caller::Grpc(_) => SessionKind::Grpc,
            Caller::Nowhere => {
                tracing::error!(%service, "a registered address cannot be called");
                SessionKind::Http
            }
        };
        let about = About { instance: endpoint.address.as_str().into(), kind, ..About::default() };
        let new = NewSession {
            id,
            service: service.clone(),
            about,
            weight: 100,
            credit: Credit::of(credit),
            outbox,
        };
        self.events.up(new).await.ok()?;
        let ended = CancellationToken::new();
        let serving = serve(Arc::new(caller), id, sent, self.events.clone(), ended.clone());
        tokio::spawn(serving);
        tracing::info!(%service, address = %endpoint.address, "a participant is called at its address");
        Some(Registered { endpoint, id, _serving: ended.drop_guard() })
    }
}

/// Makes the calls of one session. As many tasks as calls under way, which the session's credit bounds.
async fn serve(
    caller: Arc<Caller>,
    id: SessionId,
    mut sent: mpsc::Receiver<Outgoing>,
    events: Events,
    ended: CancellationToken,
) {
    let mut under_way = JoinSet::new();
    loop {
        let outgoing = tokio::select! {
            () = ended.cancelled() => return,
            Some(_) = under_way.join_next() => continue,
            outgoing = sent.recv() => outgoing,
        };
        let Some(Outgoing::Calls { term, calls }) = outgoing else {
            if outgoing.is_none() {
                return;
            }
            continue;
        };
        if !term.holds() {
            continue;
        }
        let calls = match v1::Calls::read(calls.into_bytes()) {
            Ok(calls) => calls,
            Err(fault) => {
                // Nobody answers, so they are asked again.
                tracing::error!(%fault, "calls that this node wrote cannot be read");
                continue;
            }
        };
        for call in calls {
            let (caller, events) = (Arc::clone(&caller), events.clone());
            under_way.spawn(async move {
                let call_id = call.call_id;
                let asked = tokio::time::timeout(REQUEST_MAX, caller.ask(call)).await;
                let answer = asked.unwrap_or_else(|_| unknown("no answer in 30 s"));
                // Nobody hears it when the node stops.
                let answers = vec![v1::Answer { call_id, ..answer }];
                let _gone = events.answers(id, answers).await;
            });
        }
    }
}

/// How one address is called.
enum Caller {
    Http {
        client: Client<HttpConnector, Full<Bytes>>,
        address: String,
    },
    Grpc(BranchCallsClient<Channel>),
    /// The address was checked when it was set; a document of another version may hold other ones.
    Nowhere,
}

impl Caller {
    fn of(address: &str, credit: usize) -> Self {
        if let Some(host) = address.strip_prefix("grpc://") {
            let endpoint = Endpoint::from_shared(format!("http://{host}"));
            return endpoint.map_or(Self::Nowhere, |endpoint| {
                let endpoint = endpoint.connect_timeout(CONNECT_MAX).tcp_nodelay(true);
                Self::Grpc(BranchCallsClient::new(endpoint.connect_lazy()))
            });
        }
        if !address.starts_with("http://") {
            return Self::Nowhere;
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_MAX));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(credit)
            .build(connector);
        Self::Http { client, address: address.trim_end_matches('/').to_owned() }
    }

    async fn ask(&self, mut call: v1::Call) -> v1::Answer {
        match self {
            Self::Http { client, address } => match request(address, call) {
                Some(request) => match client.request(request).await {
                    Ok(response) => answer_of(response).await,
                    Err(fault) if fault.is_connect() => unknown("it cannot be reached"),
                    Err(_) => unknown("it broke off"),
                },
                None => unknown("its address cannot be called"),
            },
            Self::Grpc(client) => {
                call.call_id = 0;
                match client.clone().handle(call).await {
                    Ok(answer) => answer.into_inner(),
                    Err(status) => unknown(&format!("gRPC {:?}", status.code())),
                }
            }
            Self::Nowhere => unknown("its address cannot be called"),
        }
    }
}

fn request(address: &str, call: v1::Call) -> Option<Request<Full<Bytes>>> {
    let op = call.op().as_str_name().trim_start_matches("OP_").to_ascii_lowercase();
    let uri = format!("{address}/{op}").parse::<Uri>().ok()?;
    let mut request = Request::new(Full::new(call.payload));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in Pairs::from(call.headers).iter() {
        let name = HeaderName::from_bytes(name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) else { continue };
        if may_travel(name.as_str()) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("holdfast-gid", HeaderValue::try_from(call.gid).ok()?);
    headers.insert("holdfast-branch", HeaderValue::from(call.branch));
    headers.insert("holdfast-op", HeaderValue::try_from(op).ok()?);
    headers.insert("holdfast-attempt", HeaderValue::from(call.attempt));
    headers.insert("holdfast-deadline-ms", HeaderValue::from(call.deadline_ms));
    if call.repeat {
        headers.insert("holdfast-repeat", HeaderValue::from_static("possible"));
    }
    if call.refusal_waits {
        headers.insert("holdfast-refusal", HeaderValue::from_static("waits"));
    }
    Some(request)
}

/// Whether a transaction may set this header: none of ours, and none that says how this very request travels.
fn may_travel(name: &str) -> bool {
    let hops = [
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
    !name.starts_with("holdfast-") && !hops.contains(&name)
}

/// The verdict, from the status alone.
async fn answer_of(response: axum::http::Response<hyper::body::Incoming>) -> v1::Answer {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Words {
        code: String,
        message: String,
    }
    let status = response.status();
    // Read to its end, so that the connection can be used again; a longer one costs the connection.
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
    let verdict = match status {
        status if status.is_success() => v1::Verdict::Done,
        StatusCode::CONFLICT => v1::Verdict::Refused,
        StatusCode::TOO_EARLY => v1::Verdict::Working,
        status => return unknown(&format!("it answered {}", status.as_u16())),
    };
    let mut answer = v1::Answer { verdict: verdict.into(), ..Default::default() };
    if verdict == v1::Verdict::Refused {
        let words = body.ok().map(http_body_util::Collected::to_bytes);
        let words: Words =
            words.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        answer.code = if words.code.is_empty() { "refused".to_owned() } else { words.code };
        answer.message = words.message;
    }
    answer
}

fn unknown(why: &str) -> v1::Answer {
    let code = "no_verdict".to_owned();
    v1::Answer { code, message: why.to_owned(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_is_about_and_a_transaction_cannot_forge_that() {
        let call = v1::Call {
            gid: "g1".into(),
            branch: 2,
            op: v1::Op::Confirm.into(),
            attempt: 3,
            headers: [("holdfast-gid", "g9"), ("host", "evil"), ("traceparent", "00-1")]
                .into_iter()
                .collect::<Pairs>()
                .into(),
            ..Default::default()
        };
        let request = request("http://app:1/base", call).unwrap();
        assert_eq!(request.uri(), "http://app:1/base/confirm");
        let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap());
        assert_eq!(header("holdfast-gid"), Some("g1"));
        assert_eq!((header("host"), header("traceparent")), (None, Some("00-1")));
    }
}
