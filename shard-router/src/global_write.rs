//! The coordinator as the router needs it: it decides about what was prepared, and nobody else does.
//!
//! A transaction that has written to several sources is a global transaction of mode XA. Its writers are prepared; then one submit
//! is the router's word that they are, and the decision. An answer that stays open is never taken for either: what nobody has
//! submitted is fenced, so that it never can be, and only behind that fence is anything rolled back that another process might know.

use std::time::Duration;

use holdfast_client::{
    Client, ClientError, ClientOptions, ErrorKind, Finished, Outcome, Submission, Terms, Wait,
};

use crate::{config::CoordinatorConfig, refusal::Refusal};

/// The beginning of every name under which the router prepares.
pub(crate) const PREFIX: &str = "holdfast:";
/// For so long after the decision the router that made it carries it out before the coordinator asks anybody else to, ms.
const GRACE_MS: u64 = 2_000;
/// For a word about a transaction, on a client's behalf.
const STATE_MAX: Duration = Duration::from_secs(1);
/// Bytes of the name of a source that still fit into a participant's name.
const SOURCE_BYTES_MAX: usize = 57;

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Commit,
    /// And why, for people.
    RollBack(String),
    /// Never: it was planned by rules that are not in force any more.
    Outdated,
    /// Nobody could say, and why. What is prepared stays prepared.
    Unknown(String),
}

/// A writer of a global transaction that has prepared.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// From 1.
    pub(crate) branch: u32,
    pub(crate) source: String,
    /// The local transaction's number there, by which PostgreSQL tells its end when the name is gone; empty if it is not known.
    pub(crate) xact: String,
}

/// Speaks to the coordinator for one worker.
#[derive(Clone, Debug)]
pub(crate) struct Decider {
    client: Client,
    patience: Duration,
}

/// The name of a branch in `PREPARE TRANSACTION`.
pub(crate) fn xid(gid: &str, branch: u32) -> String {
    format!("{PREFIX}{gid}:{branch}")
}

/// The global transaction and the branch that such a name says; `None` if it is not one of the router's.
pub(crate) fn read_xid(name: &str) -> Option<(&str, u32)> {
    let (gid, branch) = name.strip_prefix(PREFIX)?.rsplit_once(':')?;
    let is_gid = (1..=35).contains(&gid.len())
        && gid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let branch = branch.parse().ok().filter(|branch| *branch > 0)?;
    is_gid.then_some((gid, branch))
}

/// Who answers for a source when the coordinator itself has its decision carried out.
pub fn participant(source: &str) -> String {
    let mut name: String =
        source
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| {
                if c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
    name.truncate(SOURCE_BYTES_MAX);
    format!("source@{name}")
}

impl Decider {
    /// # Errors
    /// There is no address.
    pub(crate) fn new(config: &CoordinatorConfig) -> Result<Self, ClientError> {
        let patience_ms = u64::try_from(config.decision_timeout.as_millis()).unwrap_or(u64::MAX);
        let options = ClientOptions {
            patience_ms,
            credentials: config.credentials.clone(),
            ..ClientOptions::default()
        };
        let client = Client::lazy(config.addresses.iter().cloned(), options)?;
        Ok(Self { client, patience: config.decision_timeout })
    }

    /// The decision about what was prepared under `gid` by this router, which is the only one that submits it. `epoch`: of the rules by
    /// which its rows were placed; the coordinator does not commit what newer ones may place elsewhere.
    pub(crate) async fn decide(
        &self,
        gid: &str,
        branches: &[Prepared],
        epoch: Option<u64>,
    ) -> Decision {
        let terms = Terms::xa().gid(gid).second_phase_grace_ms(GRACE_MS).tag("by", "router");
        let submission = branches.iter().fold(Submission::new(terms), |submission, branch| {
            let payload =
                format!(r#"{{"xid":"{}","xact":"{}"}}"#, xid(gid, branch.branch), branch.xact);
            submission.branch(participant(&branch.source), payload)
        });
        let submission = match epoch {
            Some(epoch) => submission.rules_epoch(epoch),
            None => submission,
        };
        let why = match self.client.submit(submission.wait(Wait::Decision)).await {
            Ok(answer) => match answer.outcome {
                Outcome::Committed => return Decision::Commit,
                Outcome::RolledBack { reason } => return Decision::RollBack(reason),
                Outcome::Unknown => {
                    format!("no coordinator answered within {} ms", self.patience.as_millis())
                }
            },
            // Nothing happened, and nobody else would ever submit it.
            Err(error) if error.kind() == ErrorKind::Retry => {
                return Decision::RollBack(error.to_string());
            }
            // Refused before it was begun, and nobody else would ever submit it.
            Err(error) if error.code() == Some("HF2410") => return Decision::Outdated,
            Err(error) => error.to_string(),
        };
        match self.fence(gid, "its router did not hear an answer to its submit").await {
            Decision::RollBack(_) => Decision::RollBack(why),
            ended @ (Decision::Commit | Decision::Outdated) => ended,
            Decision::Unknown(later) => Decision::Unknown(format!("{why}; {later}")),
        }
    }

    /// Makes sure that `gid` is decided: rolled back, unless it is decided already. Only this answer allows to end what is prepared.
    pub(crate) async fn fence(&self, gid: &str, reason: &str) -> Decision {
        let patience = self.patience / 4;
        let refused = match self.client.fence(gid, reason, patience).await {
            Ok(answer) => match answer.outcome {
                Outcome::RolledBack { reason } => return Decision::RollBack(reason),
                Outcome::Committed => return Decision::Commit,
                Outcome::Unknown => {
                    let ms = patience.as_millis();
                    return Decision::Unknown(format!(
                        "nor to the question for its fate, within {ms} ms"
                    ));
                }
            },
            Err(error) if error.kind() != ErrorKind::Refused => {
                return Decision::Unknown(error.to_string());
            }
            Err(error) => error.to_string(),
        };
        // A fence is refused where something is decided already; what, the transaction itself says.
        match self.client.get(gid).await {
            Ok(answer) => match answer.outcome {
                Outcome::Committed => Decision::Commit,
                Outcome::RolledBack { reason } => Decision::RollBack(reason),
                Outcome::Unknown => Decision::Unknown(refused),
            },
            Err(error) => Decision::Unknown(format!("{refused}; {error}")),
        }
    }

    /// Says that these branches (none: all) were ended as was decided, so that nobody is asked to do it again. Nobody waits for it, and
    /// nothing is lost with it: the coordinator then has the branches asked.
    pub(crate) async fn finish(&self, gid: &str, branches: &[u32], did: Finished) {
        if let Err(error) = self.client.finish(gid, branches.iter().copied(), did).await {
            tracing::info!(gid, %error, "the coordinator was not told of the end");
        }
    }

    /// What the coordinator knows of `gid`, in a word or two.
    pub(crate) async fn state(&self, gid: &str) -> String {
        let asked = tokio::time::timeout(STATE_MAX, self.client.get(gid)).await;
        let Ok(asked) = asked else { return "not reached".to_owned() };
        match asked {
            Ok(answer) => answer.status().map_or_else(|| "unknown".to_owned(), |s| s.to_string()),
            Err(error) if error.code() == Some("HF2001") => "not known".to_owned(),
            Err(_) => "not reached".to_owned(),
        }
    }
}

/// A second source writes, and nothing could decide for both.
pub(crate) fn no_coordinator(from: &str, to: &str) -> Refusal {
    Refusal::new(
        "HF3210",
        "0A000",
        format!(
            "the transaction has written to source {from}; this statement writes to source {to}, and the router knows no coordinator that could decide for both"
        ),
        "Name the coordinators (coordinators.addresses), or use one transaction for each shard",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_its_transaction_and_branch_and_others_say_none() {
        assert_eq!(read_xid(&xid("01J-a", 3)), Some(("01J-a", 3)));
        for other in [
            "holdfast:01J",
            "holdfast:01J:0",
            "holdfast:01J:x",
            "holdfast::1",
            "other:01J:1",
            "",
            "holdfast:a:b:1",
            "holdfast:a'b:1",
            &format!("holdfast:{}:1", "x".repeat(36)),
        ] {
            assert_eq!(read_xid(other), None, "{other}");
        }
        assert!(read_xid(&xid(&"x".repeat(35), u32::MAX)).is_some());
    }

    #[test]
    fn every_source_has_a_participant_whose_name_is_allowed() {
        assert_eq!(participant("pg-1"), "source@pg-1");
        assert_eq!(participant("Pg_1"), "source@pg-1");
        assert!(participant(&"x".repeat(200)).len() <= 64);
    }
}
