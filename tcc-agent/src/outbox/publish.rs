//! One message as a global transaction: a forward Saga of one branch, under a gid that comes from the row's id.

use std::collections::BTreeMap;

use holdfast_branch::outbox::{Answer, gid_of};
use holdfast_client::{
    BranchSpec, Client, ClientError, Outcome, Recovery, Status, Submission, Terms, Wait,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::table::Message;

/// How long an answer is pursued before it is unknown and the message is submitted again, ms. Short: what waits takes up a place.
const PATIENCE_MS: u64 = 2_000;
/// The gid is known, with other content.
const OTHER_CONTENT: &str = "HF2002";
/// Routes of one relay.
const ROUTES_MAX: usize = 1_024;
/// Bytes of a topic, and of a participant's name.
const NAME_BYTES_MAX: usize = 64;

/// Which participant takes the messages of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    participants: BTreeMap<String, String>,
}

/// Routes that make no sense; all mistakes at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HF4125 routes: {}. Write for example points=loyalty", mistakes.join("; "))]
pub struct BadRoutes {
    mistakes: Vec<String>,
}

impl Routes {
    /// Reads `TOPIC=PARTICIPANT` words.
    /// # Errors
    /// HF4125: a word has another form, a name is too long, a topic is named twice, or there are none or more than 1,024.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, BadRoutes> {
        let mut routes = Self::default();
        let mut mistakes = Vec::new();
        for word in words {
            match word.trim().split_once('=') {
                Some((topic, participant)) if is_topic(topic) && is_name(participant) => {
                    let before = routes.participants.insert(topic.into(), participant.into());
                    if before.is_some() {
                        mistakes.push(format!("topic {topic} has two routes"));
                    }
                }
                _ => {
                    let shown: String = word.chars().take(2 * NAME_BYTES_MAX).collect();
                    mistakes.push(format!("{shown:?} is no TOPIC=PARTICIPANT"));
                }
            }
            if mistakes.len() > 8 {
                break;
            }
        }
        match routes.participants.len() {
            0 if mistakes.is_empty() => mistakes.push("there is none".to_owned()),
            0..=ROUTES_MAX => {}
            more => mistakes.push(format!("{more} are more than {ROUTES_MAX}")),
        }
        if mistakes.is_empty() { Ok(routes) } else { Err(BadRoutes { mistakes }) }
    }

    /// Who takes the messages of `topic`.
    #[must_use]
    pub fn participant(&self, topic: &str) -> Option<&str> {
        self.participants.get(topic).map(String::as_str)
    }

    /// The topics that have one.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.participants.keys().map(String::as_str)
    }
}

fn is_topic(topic: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&topic.len()) && topic.bytes().all(known)
}

fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_graphic() && b != b'=' && b != b',';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(known)
}

/// What a participant is handed: a CloudEvent. A repeat has the same bytes.
#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    r#type: &'a str,
    subject: &'a str,
    time: &'a str,
    datacontenttype: &'static str,
    data: &'a RawValue,
}

fn submission(message: &Message, participant: &str) -> Result<Submission, serde_json::Error> {
    let event = Event {
        specversion: "1.0",
        id: &message.uuid,
        source: format!("/outbox/{}", message.lane.topic),
        r#type: &message.kind,
        subject: &message.lane.key,
        time: &message.at,
        datacontenttype: "application/json",
        data: serde_json::from_str(&message.payload)?,
    };
    let mut terms = Terms::saga()
        .gid(gid_of(message.id))
        .recovery(Recovery::Forward)
        .tag("outbox", message.lane.topic.as_str());
    if let Some(traceparent) = &message.traceparent {
        terms = terms.header("traceparent", traceparent.as_str());
    }
    let branch = BranchSpec::new(participant, serde_json::to_vec(&event)?);
    Ok(Submission::new(terms).branch_spec(branch).wait(Wait::End).patience_ms(PATIENCE_MS))
}

/// Submits a message and waits for its end, for a while.
pub(crate) async fn publish(client: &Client, routes: &Routes, message: &Message) -> Answer {
    let topic = &message.lane.topic;
    let Some(participant) = routes.participant(topic) else {
        let why = format!("HF4120 topic {topic} has no route. Start the relay with --route");
        return Answer::Stuck(format!("{why} {topic}=PARTICIPANT"));
    };
    let submission = match submission(message, participant) {
        Ok(submission) => submission,
        Err(error) => {
            return Answer::Stuck(format!(
                "HF4121 the payload is no JSON that can be sent: {error}"
            ));
        }
    };
    let mut answer = client.submit(submission).await;
    if answer.as_ref().is_err_and(|error| error.code() == Some(OTHER_CONTENT)) {
        // A relay with another route has submitted it before: it is the same message, and that fate is its fate.
        let patience = std::time::Duration::from_millis(PATIENCE_MS);
        answer = client.wait(&gid_of(message.id), Wait::End, patience).await;
    }
    judge(message, answer)
}

fn judge(message: &Message, answer: Result<holdfast_client::Answer, ClientError>) -> Answer {
    let gid = gid_of(message.id);
    match answer {
        Ok(answer) if answer.status() == Some(Status::Committed) => Answer::Done,
        Ok(answer) if answer.status() == Some(Status::NeedsAttention) => {
            let reason = answer.transaction.map(|known| known.reason).unwrap_or_default();
            Answer::Stuck(format!(
                "HF4121 transaction {gid} needs attention: {reason}. Repair that, then: holdfast tx retry {gid} --reason WHY"
            ))
        }
        Ok(answer) => match answer.outcome {
            Outcome::RolledBack { reason } => Answer::Stuck(format!(
                "HF4122 transaction {gid} was rolled back: {reason}. Delete its row to give the message up, or publish it anew"
            )),
            Outcome::Committed | Outcome::Unknown => Answer::Unknown,
        },
        Err(ClientError::Refused { code, message }) => {
            Answer::Stuck(format!("HF4121 the coordinator refuses it: {code} {message}"))
        }
        Err(
            ClientError::Retry { .. }
            | ClientError::Unreachable { .. }
            | ClientError::Unknown { .. },
        ) => Answer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_and_every_mistake_is_told_at_once() {
        let routes = Routes::parse(["points=loyalty", "mail.out=deposit@shard-1"]).unwrap();
        assert_eq!(routes.participant("points"), Some("loyalty"));
        assert_eq!(routes.participant("mail.out"), Some("deposit@shard-1"));
        assert_eq!(routes.participant("mail"), None);
        let bad = Routes::parse(["points", "a=b", "a=c", "=d", "e="]).unwrap_err().to_string();
        for part in ["HF4125", "\"points\"", "topic a has two", "\"=d\"", "\"e=\""] {
            assert!(bad.contains(part), "{bad}");
        }
        assert!(Routes::parse([]).unwrap_err().to_string().contains("there is none"));
    }

    #[test]
    fn routes_at_the_limit_and_one_past_it() {
        let words: Vec<String> = (0..=ROUTES_MAX).map(|at| format!("t{at}=p")).collect();
        let parse = |count: usize| Routes::parse(words[..count].iter().map(String::as_str));
        assert!(parse(ROUTES_MAX).is_ok());
        assert!(parse(ROUTES_MAX + 1).unwrap_err().to_string().contains("1025 are more than 1024"));
        let long = |length: usize| format!("{}=p", "t".repeat(length));
        assert!(Routes::parse([long(NAME_BYTES_MAX).as_str()]).is_ok());
        assert!(Routes::parse([long(NAME_BYTES_MAX + 1).as_str()]).is_err());
    }

    #[tokio::test]
    async fn a_submission_that_nobody_answers_is_unknown_when_its_time_is_up() {
        // It takes connections and never says a word.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let client = Client::lazy([address], holdfast_client::ClientOptions::default()).unwrap();
        let routes = Routes::parse(["points=loyalty"]).unwrap();
        let message = Message {
            id: holdfast_branch::outbox::MessageId(7),
            uuid: "00000000-0000-0000-0000-000000000007".to_owned(),
            lane: holdfast_branch::outbox::Lane { topic: "points".into(), key: "k".into() },
            kind: "kind".to_owned(),
            payload: "1".to_owned(),
            traceparent: None,
            at: "2026-11-23T00:00:00Z".to_owned(),
        };
        let begun = std::time::Instant::now();
        assert_eq!(publish(&client, &routes, &message).await, Answer::Unknown);
        let took = begun.elapsed();
        // Bounded from above by far less than a client's own patience, which is 30 s.
        assert!((1_900..20_000).contains(&took.as_millis()), "{took:?}");
    }
}
