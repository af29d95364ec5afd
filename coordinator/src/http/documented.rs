//! The table of routes that the OpenAPI document tells: what each takes, what it answers, and which problems it may have.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::{body, bulk, callers, operating, policy, reload, service_view, shards, view};

/// What a parameter may be.
#[derive(Clone, Copy)]
pub(super) enum Kind {
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
pub(super) type Parameter = (&'static str, Kind, &'static str);

/// Makes the schema of a body.
pub(super) type Make = fn(&mut SchemaGenerator) -> Schema;

/// One method at one path.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) body: Option<Make>,
    /// Statuses of success, with their body.
    pub(super) answers: &'static [(u16, Answer)],
    /// Statuses of problems.
    pub(super) problems: &'static [u16],
}

/// What is answered.
#[derive(Clone, Copy)]
pub(super) enum Answer {
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
pub(super) const GID: &str = "^[A-Za-z0-9-]{1,35}$";
pub(super) const PARTICIPANT: &str = "^[a-z0-9.@-]{1,64}$";
pub(super) const CALLER: &str = "^[!-~]{1,160}$";
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
pub(super) const ROUTES: &[Route] = &[
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
        path: "/v1/shards/routers",
        summary: "List the routers whose leases have not ended, and the rules that each goes by",
        parameters: &[],
        body: None,
        answers: &[(200, Answer::Json(schema::<shards::Routers>))],
        problems: &[503, 504],
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
