//! Routes of shard rules and of the audit trail.

use axum::{
    Router,
    body::Body,
    extract::{Query, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, post},
};
use holdfast_proto::v1;
use holdfast_txn::{Digest, limit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    instant,
    problem::Problem,
    routes::{Door, asked, bad_query, json},
    whole::Whole,
};
use crate::rpc::Hop;

/// The routes.
pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/v1/shards/rules", get(show).put(apply))
        .route("/v1/shards/rules/revert", post(revert))
        .route("/v1/shards/rules/versions", get(versions))
        .route("/v1/shards/routers", get(routers))
        .route("/v1/shards/locate", get(locate))
        .route("/v1/audit", get(records))
        .route("/v1/audit/verify", get(verify))
}

/// `PUT /v1/shards/rules`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["text", "reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ApplyRules {
    #[schemars(length(min = 1, max = limit::RULES_BYTES_MAX))]
    text: String,
    expected_epoch: Whole<u64>,
    #[schemars(length(min = 1, max = limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    dry_run: bool,
    rows_are_moved: bool,
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{0,32}$"))]
    dev_name: String,
}

/// `POST /v1/shards/rules/revert`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["to_epoch", "reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RevertRules {
    #[schemars(range(min = 1))]
    to_epoch: Whole<u64>,
    expected_epoch: Whole<u64>,
    #[schemars(length(min = 1, max = limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    dry_run: bool,
    rows_are_moved: bool,
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{0,32}$"))]
    dev_name: String,
}

/// Rules as they are, or were, in force.
#[derive(Serialize, JsonSchema)]
pub(super) struct Rules {
    epoch: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    at: Option<String>,
    by: String,
    reason: String,
}

impl From<v1::ShardRules> for Rules {
    fn from(wire: v1::ShardRules) -> Self {
        let v1::ShardRules { epoch, text, at_ms, by, reason } = wire;
        Self { epoch, text, at: instant::rfc3339(at_ms), by, reason }
    }
}

/// The versions that are kept, the newest last.
#[derive(Serialize, JsonSchema)]
pub(super) struct Versions {
    versions: Vec<Rules>,
}

/// What became of a change.
#[derive(Serialize, JsonSchema)]
pub(super) struct Applied {
    epoch: u64,
    repeated: bool,
}

impl From<v1::ApplyRulesReply> for Applied {
    fn from(wire: v1::ApplyRulesReply) -> Self {
        Self { epoch: wire.epoch, repeated: wire.repeated }
    }
}

/// The routers whose leases have not ended, as the leader knows them.
#[derive(Serialize, JsonSchema)]
pub(super) struct Routers {
    routers: Vec<Attending>,
    /// How much longer there may be a router that this leader has not heard of, ms; 0: all are known.
    unknown_ms: u64,
    /// Of the rules in force; 0: there are none.
    epoch: u64,
}

/// Which rules a router goes by.
#[derive(Serialize, JsonSchema)]
struct Attending {
    router: String,
    address: String,
    epoch: u64,
    /// Of the rules by which anything that is not finished was planned.
    oldest_epoch: u64,
    lease_left_ms: u64,
    heard_ms: u64,
}

impl From<v1::RouterLease> for Attending {
    fn from(wire: v1::RouterLease) -> Self {
        let v1::RouterLease { router, address, epoch, oldest_epoch, lease_left_ms, heard_ms } =
            wire;
        Self { router, address, epoch, oldest_epoch, lease_left_ms, heard_ms }
    }
}

/// Where a key lives.
#[derive(Serialize, JsonSchema)]
pub(super) struct Place {
    key: String,
    slot: u32,
    shard: String,
    source: String,
    address: String,
    epoch: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RulesQuery {
    epoch: u64,
    stale: bool,
}

async fn show(
    door: Door,
    query: Result<Query<RulesQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let RulesQuery { epoch, stale } = asked(query)?;
    let rules = door.desk.rules(v1::ShowRulesRequest { epoch, stale }, Hop::May).await?;
    Ok(json(StatusCode::OK, &Rules::from(rules)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StaleQuery {
    stale: bool,
}

async fn versions(
    door: Door,
    query: Result<Query<StaleQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let stale = asked(query)?.stale;
    let reply = door.desk.rules_versions(v1::ListVersionsRequest { stale }, Hop::May).await?;
    let versions = reply.versions.into_iter().map(Rules::from).collect();
    Ok(json(StatusCode::OK, &Versions { versions }))
}

async fn routers(door: Door) -> Result<Response, Problem> {
    let reply = door.desk.routers(v1::ListRoutersRequest {}, Hop::May).await?;
    let v1::ListRoutersReply { routers, unknown_ms, epoch } = reply;
    let routers = routers.into_iter().map(Attending::from).collect();
    Ok(json(StatusCode::OK, &Routers { routers, unknown_ms, epoch }))
}

async fn apply(door: Door, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let ApplyRules { text, expected_epoch, reason, dry_run, rows_are_moved, dev_name } =
        door.read(&headers, body, false).await?;
    let expected_epoch = expected_epoch.0;
    let on_behalf_of = None;
    let request = v1::ApplyRulesRequest {
        text,
        expected_epoch,
        reason,
        dry_run,
        dev_name,
        rows_are_moved,
        on_behalf_of,
    };
    let reply = door.desk.apply_rules(request, Hop::May).await?;
    Ok(json(StatusCode::OK, &Applied::from(reply)))
}

async fn revert(door: Door, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let RevertRules { to_epoch, expected_epoch, reason, dry_run, rows_are_moved, dev_name } =
        door.read(&headers, body, false).await?;
    let request = v1::RevertRulesRequest {
        to_epoch: to_epoch.0,
        expected_epoch: expected_epoch.0,
        reason,
        dry_run,
        dev_name,
        rows_are_moved,
        on_behalf_of: None,
    };
    let reply = door.desk.revert_rules(request, Hop::May).await?;
    Ok(json(StatusCode::OK, &Applied::from(reply)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LocateQuery {
    group: String,
    key: String,
}

async fn locate(
    door: Door,
    query: Result<Query<LocateQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let LocateQuery { group, key } = asked(query)?;
    let mut reply = door.desk.locate(&v1::LocateRequest { group, keys: vec![key] })?;
    let place = reply.places.pop().ok_or_else(|| bad_query(&"the key has no place"))?;
    let v1::KeyPlace { key, slot, shard, source, address } = place;
    let place = Place { key, slot, shard, source, address, epoch: reply.epoch };
    Ok(json(StatusCode::OK, &place))
}

/// A page of audit records.
#[derive(Serialize, JsonSchema)]
pub(super) struct Records {
    records: Vec<Record>,
    count: u64,
    head: String,
    oldest: u64,
    node: u64,
    /// The Raft group whose trail it is, and how many the cluster has.
    group: u32,
    groups: u32,
}

#[derive(Serialize, JsonSchema)]
struct Record {
    number: u64,
    at: Option<String>,
    at_ms: u64,
    by: String,
    act: String,
    about: String,
    words: String,
    before: String,
    digest: String,
}

/// Whether the chains are whole: one a Raft group.
#[derive(Serialize, JsonSchema)]
pub(super) struct Verified {
    /// Of every group that was asked for.
    whole: bool,
    node: u64,
    groups: u32,
    trails: Vec<Trail>,
}

/// One group's chain.
#[derive(Serialize, JsonSchema)]
struct Trail {
    group: u32,
    whole: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    broken_at: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    cause: String,
    count: u64,
    head: String,
    oldest: u64,
}

fn hex(bytes: &[u8]) -> String {
    <[u8; 32]>::try_from(bytes).map(|hash| Digest(hash).to_string()).unwrap_or_default()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RecordsQuery {
    after: u64,
    limit: u32,
    group: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct VerifyQuery {
    group: Option<u32>,
}

async fn records(
    door: Door,
    query: Result<Query<RecordsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let RecordsQuery { after, limit, group } = asked(query)?;
    let reply = door.desk.audit_records(&v1::ListRecordsRequest { after, limit, group })?;
    let records = reply.records.into_iter().map(|one| Record {
        number: one.number,
        at: instant::rfc3339(one.at_ms),
        at_ms: one.at_ms,
        by: one.by,
        act: one.act,
        about: one.about,
        words: one.words,
        before: hex(&one.before),
        digest: hex(&one.digest),
    });
    let page = Records {
        records: records.collect(),
        count: reply.count,
        head: hex(&reply.head),
        oldest: reply.oldest,
        node: reply.node,
        group,
        groups: reply.groups,
    };
    Ok(json(StatusCode::OK, &page))
}

async fn verify(
    door: Door,
    query: Result<Query<VerifyQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let coordinator = door.desk.coordinator();
    let (node, groups) = (coordinator.config().node.id, coordinator.groups());
    let asked_for = match asked(query)?.group {
        Some(group) => group..group.saturating_add(1),
        None => 0..groups,
    };
    let trail = |group| {
        let reply = door.desk.verify_audit(group)?;
        Ok(Trail {
            group,
            whole: reply.whole,
            broken_at: Some(reply.broken_at).filter(|number| *number > 0),
            cause: reply.cause,
            count: reply.count,
            head: hex(&reply.head),
            oldest: reply.oldest,
        })
    };
    let trails = asked_for.map(trail).collect::<Result<Vec<_>, Problem>>()?;
    let whole = trails.iter().all(|trail| trail.whole);
    Ok(json(StatusCode::OK, &Verified { whole, node, groups, trails }))
}
