//! The HTTP door as an OpenAPI 3.1 document: routes from [the table](super::documented), schemas from the very structs that are read and written.
//!
//! `docs/reference/openapi.json` is this document; a test writes it anew and compares, and holds the table against the router.

use std::sync::LazyLock;

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Map, Value, json};

use super::{
    documented::{Answer, CALLER, GID, Kind, PARTICIPANT, ROUTES, Route},
    problem,
    routes::Door,
    schemas::Generators,
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
