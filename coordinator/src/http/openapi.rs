//! The HTTP door as an OpenAPI 3.1 document: routes from the table here, schemas from the very structs that are read and written.
//!
//! `docs/reference/openapi.json` is this document; a test writes it anew and compares, and holds the table against the router.

use std::sync::LazyLock;

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{
    body, bulk, callers, operating, policy, problem, reload, routes::Door, schemas::Generators,
    service_view, shards, view,
};
use crate::rpc::show;

/// The routes.
pub(super) fn routes() -> Router<Door> {
    Router::new().route("/openapi.json", get(document))
}

async fn document() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(text);
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], TEXT.as_str()).into_response()
}

/// What a parameter may be.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// A text that this expression matches.
    Like(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any of these words, with commas between.
    Words(&'static [&'static str]),
    /// Statuses of transactions, with commas between.
    Statuses,
    Count(u64),
    Flag,
}

/// A parameter: name, kind, what it says. Those in braces in the path are in the path, `If-Match` and the like are headers.
type Parameter = (&'static str, Kind, &'static str);

/// Makes the schema of a body.
type Make = fn(&mut SchemaGenerator) -> Schema;

/// One method at one path.
struct Route {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    body: Option<Make>,
    /// Statuses of success, with their body.
    answers: &'static [(u16, Answer)],
    /// Statuses of problems.
    problems: &'static [u16],
}

/// What is answered.
#[derive(Clone, Copy)]
enum Answer {
    Json(Make),
    Text,
    Events,
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const REPLY: Answer = Answer::Json(schema::<view::Reply>);
const FATE: &[(u16, Answer)] = &[(200, REPLY), (202, REPLY)];
const OF_A_CHANGE: &[u16] = &[400, 404, 408, 409, 413, 415, 503, 504];
const OF_A_DECISION: &[u16] = &[400, 403, 404, 408, 409, 413, 415, 503, 504];
const OF_A_READ: &[u16] = &[400, 404, 503, 504];
const STALE: Parameter = ("stale", Kind::Flag, "this node's own word, which may lag behind");
const IF_MATCH: Parameter = (
    "If-Match",
    Kind::Like(r#"^(\*|"[0-9]{1,18}\.[0-9]{1,18}")$"#),
    "only if this is still the version",
);
const GID: &str = "^[A-Za-z0-9-]{1,35}$";
const PARTICIPANT: &str = "^[a-z0-9.@-]{1,64}$";
const CALLER: &str = "^[!-~]{1,160}$";
const AMOUNT: &str = "^([0-9]{1,15} [A-Z]{3})?$";
const TIME: &str = "^([0-9]{1,15}|20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$";
const SEARCH: &[Parameter] = &[
    ("status", Kind::Words(&["committed", "rolled_back"]), "of these, with commas between"),
    ("mode", Kind::Words(&["tcc", "saga", "xa"]), "of these, with commas between"),
    ("participant", Kind::Like("^[a-z0-9.@-]{0,64}$"), "with a branch of this service"),
    ("tag", Kind::Like("^[^=]+="), "NAME=VALUE; several times: all of them"),
    (
        "amount_min",
        Kind::Like(AMOUNT),
        "the tag amount is at least this, as 50.00 EUR; goes with amount_max",
    ),
    ("amount_max", Kind::Like(AMOUNT), "the tag amount is at most this"),
    ("from", Kind::Like(TIME), "finished at this time or later: RFC 3339, UTC, or ms since 1970"),
    ("until", Kind::Like(TIME), "finished before"),
    ("cursor", Kind::Text, "next_cursor of the page before"),
    ("limit", Kind::Count(1_000), "transactions on the page; 0 = 100"),
];

const LIST: &[Parameter] = &[
    ("status", Kind::Statuses, "of these, with commas between"),
    SEARCH[1],
    SEARCH[2],
    SEARCH[3],
    SEARCH[4],
    SEARCH[5],
    ("from", Kind::Like(TIME), "begun at this time or later: RFC 3339, UTC, or ms since 1970"),
    ("until", Kind::Like(TIME), "begun before"),
    ("after", Kind::Like("^[A-Za-z0-9-]{0,35}$"), "behind this gid"),
    ("limit", Kind::Count(1_000), "transactions on the page; 0 = 100"),
];

/// Every route.
const ROUTES: &[Route] = &[
    Route {
        method: "post",
        path: "/v1/transactions",
        summary: "Submit a whole transaction, or begin one that grows",
        parameters: &[(
            "Idempotency-Key",
            Kind::Like(r#"^("[A-Za-z0-9-]{1,35}"|[A-Za-z0-9-]{1,35})$"#),
            "the gid, quoted or not",
        )],
        body: Some(schema::<body::Submit>),
        answers: &[(200, REPLY), (201, REPLY), (202, REPLY)],
        problems: OF_A_CHANGE,
    },
    Route {
        method: "get",
        path: "/v1/transactions",
        summary: "List open and recent transactions in gid order",
        parameters: LIST,
        body: None,
        answers: &[(200, Answer::Json(schema::<view::Page>))],
        problems: &[400, 503],
    },
    Route {
        method: "get",
        path: "/v1/transactions/{gid}",
        summary: "Show a transaction as of now",
        parameters: &[STALE],
        body: None,
        answers: &[(200, REPLY)],
        problems: OF_A_READ,
    },
    Route {
        method: "post",
        path: "/v1/transactions/{gid}/branches",
        summary: "Add a branch to an active transaction",
        parameters: &[],
        body: Some(schema::<body::AddBranch>),
        answers: &[(200, REPLY)],
        problems: OF_A_CHANGE,
    },
    Route {
        method: "post",
        path: "/v1/transactions/{gid}/submit",
        summary: "Close an active transaction: it shall commit if every branch can",
        parameters: &[],
        body: Some(schema::<body::Close>),
        answers: FATE,
        problems: OF_A_CHANGE,
    },
    Route {
        method: "post",
        path: "/v1/transactions/{gid}/rollback",
        summary: "Ask for rollback",
        parameters: &[],
        body: Some(schema::<body::RollBack>),
        answers: FATE,
        problems: OF_A_CHANGE,
    },
    Route {
        method: "post",
        path: "/v1/transactions/{gid}/retry",
        summary: "Let a transaction that needs attention go on",
        parameters: &[],
        body: Some(schema::<body::Retry>),
        answers: FATE,
        problems: OF_A_CHANGE,
    },
    Route {
        method: "post",
        path: "/v1/needs-attention/retry",
        summary: "Let many transactions that need attention go on",
        parameters: &[],
        body: Some(schema::<bulk::RetryMany>),
        answers: &[(200, Answer::Json(schema::<bulk::Retried>))],
        problems: &[400, 403, 408, 413, 415, 503],
    },
    Route {
        method: "post",
        path: "/v1/transactions/{gid}/finish",
        summary: "Say that the caller carried out the second phase itself",
        parameters: &[],
        body: Some(schema::<body::Finish>),
        answers: FATE,
        problems: OF_A_CHANGE,
    },
    Route {
        method: "get",
        path: "/v1/transactions/{gid}/wait",
        summary: "Wait until a transaction is decided or ended",
        parameters: &[
            ("for", Kind::Word(&["none", "decision", "end"]), "what to wait for"),
            ("timeout_ms", Kind::Count(60_000), "the longest wait; 0 = 30,000"),
        ],
        body: None,
        answers: FATE,
        problems: OF_A_READ,
    },
    Route {
        method: "get",
        path: "/v1/transactions/{gid}/timeline",
        summary: "Show a transaction with what was seen of its calls",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Json(schema::<operating::Timeline>))],
        problems: OF_A_READ,
    },
    Route {
        method: "get",
        path: "/v1/transactions/{gid}/events",
        summary: "Watch a transaction to its end",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Events)],
        problems: OF_A_READ,
    },
    Route {
        method: "get",
        path: "/v1/events",
        summary: "Watch all transactions that fit",
        parameters: SEARCH,
        body: None,
        answers: &[(200, Answer::Events)],
        problems: &[400, 503],
    },
    Route {
        method: "get",
        path: "/v1/history",
        summary: "Search finished transactions, newest first",
        parameters: SEARCH,
        body: None,
        answers: &[(200, Answer::Json(schema::<operating::HistoryPage>))],
        problems: &[400, 503],
    },
    Route {
        method: "get",
        path: "/v1/services",
        summary: "List services with their instances and policies",
        parameters: &[STALE],
        body: None,
        answers: &[(200, Answer::Json(schema::<service_view::Services>))],
        problems: &[400, 503],
    },
    Route {
        method: "get",
        path: "/v1/services/{service}",
        summary: "Show one service",
        parameters: &[STALE],
        body: None,
        answers: &[(200, Answer::Json(schema::<service_view::ServiceState>))],
        problems: OF_A_READ,
    },
    Route {
        method: "put",
        path: "/v1/services/{service}/policy",
        summary: "Set the whole policy of a service",
        parameters: &[IF_MATCH],
        body: Some(schema::<policy::SetPolicy>),
        answers: &[(200, Answer::Json(schema::<service_view::Set>))],
        problems: &[400, 408, 409, 412, 413, 415, 503, 504],
    },
    Route {
        method: "post",
        path: "/v1/config/reload",
        summary: "Have this node read its configuration again, or tell what would become of it",
        parameters: &[],
        body: Some(schema::<reload::ReloadConfig>),
        answers: &[(200, Answer::Json(schema::<reload::Reloaded>))],
        problems: &[400, 408, 409, 413, 415, 503, 504],
    },
    Route {
        method: "get",
        path: "/v1/callers",
        summary: "List callers with a policy, and how many of their requests were turned away",
        parameters: &[STALE],
        body: None,
        answers: &[(200, Answer::Json(schema::<callers::Callers>))],
        problems: &[400, 503],
    },
    Route {
        method: "put",
        path: "/v1/callers/{caller}/policy",
        summary: "Set the whole policy of a caller",
        parameters: &[IF_MATCH],
        body: Some(schema::<callers::SetCallerPolicy>),
        answers: &[(200, Answer::Json(schema::<service_view::Set>))],
        problems: &[400, 404, 408, 409, 412, 413, 415, 503, 504],
    },
    Route {
        method: "post",
        path: "/v1/transactions/{gid}/operate",
        summary: "An operator's act; what can lose money is proposed to a second person",
        parameters: &[],
        body: Some(schema::<operating::Operate>),
        answers: FATE,
        problems: OF_A_DECISION,
    },
    Route {
        method: "get",
        path: "/v1/shards/rules",
        summary: "Show the shard rules in force, or of a former epoch",
        parameters: &[("epoch", Kind::Count(1_000_000), "this epoch; 0 = in force"), STALE],
        body: None,
        answers: &[(200, Answer::Json(schema::<shards::Rules>))],
        problems: OF_A_READ,
    },
    Route {
        method: "put",
        path: "/v1/shards/rules",
        summary: "Put shard rules into force",
        parameters: &[],
        body: Some(schema::<shards::ApplyRules>),
        answers: &[(200, Answer::Json(schema::<shards::Applied>))],
        problems: OF_A_DECISION,
    },
    Route {
        method: "post",
        path: "/v1/shards/rules/revert",
        summary: "Put the shard rules of a former epoch into force again",
        parameters: &[],
        body: Some(schema::<shards::RevertRules>),
        answers: &[(200, Answer::Json(schema::<shards::Applied>))],
        problems: OF_A_DECISION,
    },
    Route {
        method: "get",
        path: "/v1/shards/rules/versions",
        summary: "List the versions of the shard rules that are kept",
        parameters: &[STALE],
        body: None,
        answers: &[(200, Answer::Json(schema::<shards::Versions>))],
        problems: OF_A_READ,
    },
    Route {
        method: "get",
        path: "/v1/shards/locate",
        summary: "Say where a key lives",
        parameters: &[
            ("group", Kind::Text, "the data group"),
            ("key", Kind::Like("^.{1,64}$"), "the key"),
        ],
        body: None,
        answers: &[(200, Answer::Json(schema::<shards::Place>))],
        problems: &[400, 404],
    },
    Route {
        method: "get",
        path: "/v1/audit",
        summary: "List audit records by number",
        parameters: &[
            ("after", Kind::Count(u64::MAX), "behind this number"),
            ("limit", Kind::Count(1_000), "records on the page; 0 = 100"),
            ("group", Kind::Count(15), "the Raft group whose trail it is"),
        ],
        body: None,
        answers: &[(200, Answer::Json(schema::<shards::Records>))],
        problems: &[400],
    },
    Route {
        method: "get",
        path: "/v1/audit/verify",
        summary: "Compute the chain of the audit records anew",
        parameters: &[("group", Kind::Count(15), "this Raft group alone; without it, each")],
        body: None,
        answers: &[(200, Answer::Json(schema::<shards::Verified>))],
        problems: &[400],
    },
    Route {
        method: "get",
        path: "/v1/status",
        summary: "What this node says of itself",
        parameters: &[("state_hash", Kind::Flag, "hash the whole state: reads every transaction")],
        body: None,
        answers: &[(200, Answer::Json(schema::<view::Node>))],
        problems: &[400],
    },
    Route {
        method: "get",
        path: "/livez",
        summary: "Whether the node should go on living",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Text), (503, Answer::Text)],
        problems: &[],
    },
    Route {
        method: "get",
        path: "/readyz",
        summary: "Whether the node can serve",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Text), (503, Answer::Text)],
        problems: &[],
    },
    Route {
        method: "get",
        path: "/metrics",
        summary: "Counters and measures for Prometheus",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Text)],
        problems: &[404],
    },
    Route {
        method: "get",
        path: "/openapi.json",
        summary: "This document",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Json(schema::<Value>))],
        problems: &[],
    },
];

/// The document.
fn text() -> String {
    let mut generators = Generators::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut generators);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Global transactions: freeze, confirm, recover. An open outcome is told as unknown, never as a failure: ask again with the same gid.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": generators.definitions() },
    });
    let mut text = serde_json::to_string_pretty(&document).expect("a document of texts");
    text.push('\n');
    text
}

fn operation(route: &Route, generators: &mut Generators) -> Value {
    let mut parameters: Vec<Value> = route
        .path
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split('}').next())
        .map(|name| {
            let pattern = match name {
                "gid" => GID,
                "caller" => CALLER,
                _ => PARTICIPANT,
            };
            json!({
                "name": name, "in": "path", "required": true,
                "schema": { "type": "string", "pattern": pattern },
            })
        })
        .collect();
    parameters.extend(route.parameters.iter().map(|(name, kind, what)| {
        let place = if name.starts_with(char::is_uppercase) { "header" } else { "query" };
        let schema = match kind {
            Kind::Text => json!({ "type": "string" }),
            Kind::Like(pattern) => json!({ "type": "string", "pattern": pattern }),
            Kind::Word(words) => json!({ "type": "string", "enum": words }),
            Kind::Words(words) => words_schema(words),
            Kind::Statuses => words_schema(&holdfast_txn::Status::ALL.map(show::status_word)),
            Kind::Count(most) => json!({ "type": "integer", "minimum": 0, "maximum": most }),
            Kind::Flag => json!({ "type": "boolean" }),
        };
        json!({ "name": name, "in": place, "description": what, "schema": schema })
    }));
    let mut responses: Map<String, Value> = Map::new();
    for (status, answer) in route.answers {
        let (media, schema) = match answer {
            Answer::Json(make) => ("application/json", json!(make(&mut generators.written))),
            Answer::Text => ("text/plain", json!({ "type": "string" })),
            Answer::Events => ("text/event-stream", json!({ "type": "string" })),
        };
        let content = json!({ media: { "schema": schema } });
        let meaning = if *status == 503 { "not so" } else { "so it is" };
        responses.insert(status.to_string(), json!({ "description": meaning, "content": content }));
    }
    let problem = json!(generators.written.subschema_for::<problem::Body<'static>>());
    // Whoever is counted may be turned away; probes are not counted.
    let counted = !matches!(route.path, "/livez" | "/readyz");
    for status in route.problems.iter().chain(counted.then_some(&429)) {
        let content = json!({ "application/problem+json": { "schema": problem } });
        let response = json!({ "description": "a problem, RFC 9457", "content": content });
        responses.insert(status.to_string(), response);
    }
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.summary,
        "responses": responses,
    });
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(make) = route.body {
        let schema = json!(make(&mut generators.read));
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    operation
}

fn words_schema<W: AsRef<str>>(words: &[W]) -> Value {
    let any = words.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("|");
    json!({ "type": "string", "pattern": format!("^(({any})(,({any})){{0,8}})?$") })
}

fn operation_id(route: &Route) -> String {
    let words = route.path.split(['/', '.']).filter(|word| !word.is_empty() && *word != "v1");
    let words: Vec<&str> = words.map(|word| word.trim_matches(['{', '}'])).collect();
    format!("{}_{}", route.method, words.join("_"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn the_document_in_the_reference_is_this_one() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/openapi.json");
        let now = text();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            fs::write(&file, &now).unwrap();
        }
        let known = fs::read_to_string(&file).unwrap();
        assert!(
            known == now,
            "docs/reference/openapi.json is old: UPDATE_OPENAPI=1 cargo test -p holdfast-coordinator openapi"
        );
    }

    #[test]
    fn every_route_of_the_router_is_in_the_document_and_the_other_way_round() {
        let sources = [
            include_str!("routes.rs"),
            include_str!("operating.rs"),
            include_str!("callers.rs"),
            include_str!("bulk.rs"),
            include_str!("reload.rs"),
            include_str!("shards.rs"),
            include_str!("events.rs"),
            include_str!("openapi.rs"),
        ];
        let mut routed = BTreeSet::new();
        for line in sources.iter().flat_map(|source| source.split(".route(").skip(1)) {
            let Some(path) =
                line.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            let end = line
                .find("\n        .")
                .unwrap_or(line.len())
                .min(line.find(";").unwrap_or(line.len()));
            for method in ["get", "post", "put", "delete", "patch"] {
                if line[..end].contains(&format!("{method}(")) {
                    routed.insert((method, path));
                }
            }
        }
        assert!(routed.len() > 15, "{routed:?}");
        let told: BTreeSet<_> = ROUTES.iter().map(|route| (route.method, route.path)).collect();
        assert_eq!(routed, told);
    }
}
