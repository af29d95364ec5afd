//! The outbox in PostgreSQL: every statement that a relay and those who look at it say.

use holdfast_branch::outbox::{Lane, MessageId, Row, gid_of};
use tokio_postgres::{Client, Error};

use crate::barrier_store::install_version;

/// The plain SQL that installs the outbox, for `psql` and for migration tools. What is no message it refuses with HF4123.
pub const OUTBOX_SQL: &str = include_str!("../../sql/outbox.sql");

/// What the table's comment says once this version is installed.
const VERSION: &str = "holdfast outbox 1";
/// A publisher wakes the relay by it.
pub(crate) const LISTEN: &str = "LISTEN holdfast_outbox";
/// The lease: an advisory lock of the relay's session; with the number that the keys of publishers have, and none of theirs.
const LEASE: (i32, i32) = (1_330_987_088, 1);
/// Rows of one read.
const ROWS_MAX: i64 = 1_024;
/// Waiting messages are counted to here and no further.
const COUNTED_MAX: i64 = 100_000;
/// Blocked messages of one [`Standing`].
pub const BLOCKED_SHOWN_MAX: i64 = 1_000;
/// Of the words that a stuck row keeps, characters.
const STUCK_CHARACTERS_MAX: usize = 1_024;

const HEADS: &str = "SELECT o.id::text, o.position, o.aggregatetype, o.aggregateid FROM holdfast.outbox AS o \
     WHERE NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS b (topic, key) \
                       WHERE b.topic = o.aggregatetype AND b.key = o.aggregateid) \
     ORDER BY o.position LIMIT $3";

const MESSAGES: &str = "SELECT o.id::text, o.aggregatetype, o.aggregateid, o.type, o.payload::text, o.traceparent, \
     to_char(o.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') \
     FROM holdfast.outbox AS o WHERE o.id = ANY ($1::text[]::uuid[])";

const DELETE: &str = "DELETE FROM holdfast.outbox AS o WHERE o.id = ANY ($1::text[]::uuid[])";

const STUCK: &str = "UPDATE holdfast.outbox AS o SET stuck = $2 \
     WHERE o.id = $1::text::uuid AND o.stuck IS DISTINCT FROM $2";

const STANDING: &str = "SELECT (SELECT count(*) FROM (SELECT FROM holdfast.outbox LIMIT $1) AS counted), \
     (SELECT (extract(epoch FROM clock_timestamp() - o.at) * 1000)::bigint FROM holdfast.outbox AS o ORDER BY o.position LIMIT 1), \
     EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 \
             AND l.classid = $2::bigint::oid AND l.objid = $3::bigint::oid \
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()))";

const BLOCKED: &str = "SELECT o.id::text, o.aggregatetype, o.aggregateid, o.stuck FROM holdfast.outbox AS o \
     WHERE o.stuck IS NOT NULL ORDER BY o.position LIMIT $1";

/// Installs the schema `holdfast` with the outbox and its functions, or brings them up to this version. Does nothing, and needs no
/// rights, where this version is installed. Several may do it at once. Not within a transaction.
/// # Errors
/// What PostgreSQL says; most often that the role may not create a schema. Nothing is installed then.
pub async fn install_outbox(client: &Client) -> Result<(), Error> {
    install_version(client, "outbox", VERSION, OUTBOX_SQL).await
}

/// How an outbox stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Messages that wait or are on their way; counted to 100,000.
    pub pending: u64,
    /// Since the first of them was written, ms; `None` without any.
    pub oldest_age_ms: Option<u64>,
    /// A relay holds the lease.
    pub relayed: bool,
    /// Messages that hold up their keys, the first [`BLOCKED_SHOWN_MAX`].
    pub blocked: Vec<Blocked>,
}

/// A message that will not end by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The row.
    pub id: String,
    /// The transaction, where it came to one.
    pub gid: String,
    /// Its topic and key: what waits behind it.
    pub lane: Lane,
    /// Why, with a code.
    pub why: String,
}

/// How the outbox of this database stands.
/// # Errors
/// What PostgreSQL says; without an outbox that there is no such table.
pub async fn standing(client: &Client) -> Result<Standing, Error> {
    let (class, object) = (i64::from(LEASE.0), i64::from(LEASE.1));
    let row = client.query_one(STANDING, &[&COUNTED_MAX, &class, &object]).await?;
    let (pending, age): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    let mut blocked = Vec::new();
    for row in client.query(BLOCKED, &[&BLOCKED_SHOWN_MAX]).await? {
        let id: String = row.try_get(0)?;
        let gid = gid_of(id_of(&id));
        let lane = Lane { topic: row.try_get(1)?, key: row.try_get(2)? };
        blocked.push(Blocked { id, gid, lane, why: row.try_get(3)? });
    }
    Ok(Standing {
        pending: pending.unsigned_abs(),
        oldest_age_ms: age.map(|age| u64::try_from(age).unwrap_or_default()),
        relayed: row.try_get(2)?,
        blocked,
    })
}

/// A whole message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: MessageId,
    /// The id, as PostgreSQL writes it.
    pub(crate) uuid: String,
    pub(crate) lane: Lane,
    pub(crate) kind: String,
    /// JSON.
    pub(crate) payload: String,
    pub(crate) traceparent: Option<String>,
    /// RFC 3339.
    pub(crate) at: String,
}

/// Takes the lease of this database's outbox if nobody holds it, for as long as the session lives.
pub(crate) async fn take_lease(client: &Client) -> Result<bool, Error> {
    let taken = client.query_one("SELECT pg_try_advisory_lock($1, $2)", &[&LEASE.0, &LEASE.1]);
    taken.await?.try_get(0)
}

/// Rows in the order of their positions, without those of the lanes that are busy.
pub(crate) async fn heads(
    client: &Client,
    busy: impl Iterator<Item = &Lane>,
) -> Result<Vec<Row>, Error> {
    let (topics, keys): (Vec<&str>, Vec<&str>) =
        busy.map(|lane| (lane.topic.as_str(), lane.key.as_str())).unzip();
    let rows = client.query(HEADS, &[&topics, &keys, &ROWS_MAX]).await?;
    let row = |row: &tokio_postgres::Row| {
        let position: i64 = row.try_get(1)?;
        let lane = Lane { topic: row.try_get(2)?, key: row.try_get(3)? };
        Ok(Row { id: id_of(row.try_get(0)?), position: position.unsigned_abs(), lane })
    };
    rows.iter().map(row).collect()
}

/// Those of the messages that have a row.
pub(crate) async fn messages(client: &Client, ids: &[MessageId]) -> Result<Vec<Message>, Error> {
    let rows = client.query(MESSAGES, &[&texts(ids)]).await?;
    let message = |row: &tokio_postgres::Row| {
        Ok(Message {
            id: id_of(row.try_get(0)?),
            uuid: row.try_get(0)?,
            lane: Lane { topic: row.try_get(1)?, key: row.try_get(2)? },
            kind: row.try_get(3)?,
            payload: row.try_get(4)?,
            traceparent: row.try_get(5)?,
            at: row.try_get(6)?,
        })
    };
    rows.iter().map(message).collect()
}

/// Deletes rows; they are gone when this returns.
pub(crate) async fn delete(client: &Client, ids: &[MessageId]) -> Result<(), Error> {
    client.execute(DELETE, &[&texts(ids)]).await.map(drop)
}

/// Writes in a row why it holds up its lane.
pub(crate) async fn mark_stuck(client: &Client, id: MessageId, why: &str) -> Result<(), Error> {
    let why: String = why.chars().filter(|&c| c != '\0').take(STUCK_CHARACTERS_MAX).collect();
    client.execute(STUCK, &[&id.to_string(), &why]).await.map(drop)
}

fn texts(ids: &[MessageId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// The number of a uuid as PostgreSQL writes it.
fn id_of(uuid: &str) -> MessageId {
    let digits: String = uuid.chars().filter(|&c| c != '-').collect();
    MessageId(u128::from_str_radix(&digits, 16).expect("PostgreSQL writes a uuid"))
}
