//! Ends what others have prepared at a PostgreSQL: the second phase of mode XA, for whoever did not live to carry it out himself.
//!
//! A branch's payload is JSON: `xid`, the name in `PREPARE TRANSACTION`, which holds the gid; and `xact`, the local transaction's
//! number (`pg_current_xact_id()`). The number is the proof: where nothing of that name is prepared any more, only `pg_xact_status` can
//! say whether it was committed. *Does not exist* is never taken for *done*.

use std::{sync::Arc, time::Duration};

use deadpool_postgres::{Pool, Runtime};
use holdfast_branch::Op;
use serde::Deserialize;
use tokio_postgres::error::SqlState;

use super::{
    database::Database,
    failure::{describe_pool, words},
};
use crate::{
    handler::{Asked, Handler},
    participant::{Answer, Call},
};

/// Connections, and so ends at a time; more calls wait.
const CONNECTIONS: usize = 4;
/// For a connection, and for one statement.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a payload; a router's has about a hundred.
const PAYLOAD_BYTES_MAX: usize = 4_096;
/// The longest name that PostgreSQL prepares under, in bytes.
const XID_BYTES_MAX: usize = 199;

/// Ends prepared transactions of one database.
#[derive(Clone)]
pub struct XaResource {
    pool: Pool,
    source: Arc<str>,
}

impl std::fmt::Debug for XaResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XaResource").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What was prepared.
#[derive(Debug, Deserialize)]
struct Prepared {
    xid: String,
    #[serde(default)]
    xact: String,
}

impl XaResource {
    /// Connects to `database` when it is first asked; `source` is for messages. The user must be the one who prepares, or a superuser.
    #[must_use]
    pub fn new(database: impl Into<Database>, source: impl Into<Arc<str>>) -> Self {
        let mut database = database.into();
        database.config_mut().connect_timeout(LIMIT);
        let pool = Pool::builder(database.manager())
            .max_size(CONNECTIONS)
            .wait_timeout(Some(LIMIT))
            .create_timeout(Some(LIMIT))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with timeouts was given its runtime");
        Self { pool, source: source.into() }
    }

    async fn end(&self, call: &Call) -> Answer {
        let prepared = match read(call) {
            Ok(prepared) => prepared,
            Err(why) => return refused("unreadable", why),
        };
        let ended = match call.op {
            Op::Commit => self.finish("COMMIT", &prepared).await,
            Op::Rollback => self.finish("ROLLBACK", &prepared).await,
            _ => {
                return refused(
                    "no-such-verb",
                    format!("{} is not for what the caller prepares", call.op),
                );
            }
        };
        ended.unwrap_or_else(|message| Answer::Unknown {
            message: format!("{}: {message}", self.source),
        })
    }

    async fn finish(&self, verb: &str, prepared: &Prepared) -> Result<Answer, String> {
        let connection = self.pool.get().await.map_err(|error| describe_pool(&error))?;
        let sql = format!("{verb} PREPARED '{}'", prepared.xid);
        let ended = tokio::time::timeout(LIMIT, connection.batch_execute(&sql));
        let ended = ended.await.map_err(|_| "no answer in time".to_owned())?;
        let Err(error) = ended else { return Ok(Answer::Done) };
        if error.code() != Some(&SqlState::UNDEFINED_OBJECT) {
            return Err(words(&error));
        }
        let status = match prepared.xact.is_empty() {
            true => None,
            false => {
                let sql = "SELECT pg_catalog.pg_xact_status($1::text::pg_catalog.xid8)";
                let asked = async { connection.query_one(sql, &[&prepared.xact]).await };
                let row = tokio::time::timeout(LIMIT, asked).await;
                let row = row.map_err(|_| "no answer in time".to_owned())?;
                row.map_err(|error| words(&error))?.get::<_, Option<String>>(0)
            }
        };
        Ok(judge(verb, status.as_deref()))
    }
}

/// What it means that nothing is prepared, by what became of the local transaction.
fn judge(verb: &str, status: Option<&str>) -> Answer {
    match (verb, status) {
        ("COMMIT", Some("committed")) | ("ROLLBACK", Some("aborted")) => Answer::Done,
        // What was never prepared, or is forgotten, has no effect to take back: nothing was decided but its rollback.
        ("ROLLBACK", None) => Answer::Done,
        (_, Some("in progress")) => Answer::Unknown { message: "another is ending it".to_owned() },
        (_, Some(other)) => refused(
            "ended-otherwise",
            format!("the decision is {verb}, and it was {other} by hand"),
        ),
        (_, None) => refused(
            "no-proof",
            "nothing is prepared, and nothing proves that it was committed".to_owned(),
        ),
    }
}

fn refused(code: &str, message: String) -> Answer {
    Answer::Refused { code: code.to_owned(), message }
}

/// The payload of a call, if it names what may be ended for this gid.
fn read(call: &Call) -> Result<Prepared, String> {
    if call.payload.len() > PAYLOAD_BYTES_MAX {
        return Err(format!(
            "a payload of {} bytes; {PAYLOAD_BYTES_MAX} are allowed",
            call.payload.len()
        ));
    }
    let prepared: Prepared =
        serde_json::from_slice(&call.payload).map_err(|error| error.to_string())?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.".contains(c);
    let fits = (1..=XID_BYTES_MAX).contains(&prepared.xid.len()) && prepared.xid.chars().all(plain);
    if !fits || !prepared.xid.contains(call.gid.as_str()) {
        return Err(
            "xid is no name that holds the gid, of 1 to 199 letters, digits, ':', '-', '_' and '.'"
                .to_owned(),
        );
    }
    if !prepared.xact.bytes().all(|byte| byte.is_ascii_digit()) || prepared.xact.len() > 20 {
        return Err("xact is no number of a transaction".to_owned());
    }
    Ok(prepared)
}

impl Handler for XaResource {
    fn handle(&self, asked: Vec<Asked>) {
        for Asked { call, reply } in asked {
            let resource = self.clone();
            tokio::spawn(async move {
                let answer = resource.end(&call).await;
                if let Answer::Refused { code, message } = &answer {
                    tracing::error!(gid = %call.gid, source = &*resource.source, code, message, "a prepared transaction needs people");
                }
                reply.answer(answer);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::participant::Gid;

    fn call(payload: &str) -> Call {
        Call {
            gid: Gid::parse("01J").expect("a gid"),
            branch: 1,
            op: Op::Commit,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            deadline_ms: 0,
            headers: Default::default(),
            attempt: 1,
            repeat: false,
            refusal_waits: false,
        }
    }

    #[test]
    fn only_a_name_of_the_same_gid_is_ended() {
        let fine = r#"{"xid":"holdfast:01J:1","xact":"754"}"#;
        assert_eq!(read(&call(fine)).expect("right").xact, "754");
        assert!(read(&call(r#"{"xid":"holdfast:01J:1"}"#)).is_ok());
        for wrong in [
            "",
            "{}",
            r#"{"xid":""}"#,
            r#"{"xid":"holdfast:02J:1"}"#,
            r#"{"xid":"holdfast:01J:1' x"}"#,
            r#"{"xid":"holdfast:01J:1","xact":"7 OR 1"}"#,
            &format!(r#"{{"xid":"01J{}"}}"#, "x".repeat(XID_BYTES_MAX)),
            &format!(r#"{{"xid":"01J","x":"{}"}}"#, "x".repeat(PAYLOAD_BYTES_MAX)),
        ] {
            assert!(read(&call(wrong)).is_err(), "{wrong}");
        }
        let longest = format!(r#"{{"xid":"01J{}"}}"#, "x".repeat(XID_BYTES_MAX - 3));
        assert!(read(&call(&longest)).is_ok(), "at the limit");
    }

    #[test]
    fn what_does_not_exist_is_done_only_with_proof() {
        assert_eq!(judge("COMMIT", Some("committed")), Answer::Done);
        assert_eq!(judge("ROLLBACK", Some("aborted")), Answer::Done);
        assert_eq!(judge("ROLLBACK", None), Answer::Done);
        for (verb, status) in
            [("COMMIT", None), ("COMMIT", Some("aborted")), ("ROLLBACK", Some("committed"))]
        {
            assert!(matches!(judge(verb, status), Answer::Refused { .. }), "{verb} {status:?}");
        }
        assert!(matches!(judge("COMMIT", Some("in progress")), Answer::Unknown { .. }));
    }
}
