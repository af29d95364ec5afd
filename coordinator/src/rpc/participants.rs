//! Agent sessions: hello, then calls outward and answers inward in batches, beats both ways, and silence ends it.
//!
//! A session is a task that reads and a stream that is written; both know nothing of transactions. What an agent says goes
//! to the dispatcher as an event, and what the dispatcher has to say waits in the session's bounded outbox.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use holdfast_proto::v1::{
    self,
    agent_message::Message as Inward,
    coordinator_message::Message as Outward,
    participants_server::{Participants as Service, ParticipantsServer},
};
use holdfast_security::Caller;
use holdfast_txn::Participant;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Coordinator,
    config::limit,
    dispatcher::{About, Credit, Events, NewSession, Outgoing, SessionId, SessionKind},
    rights::Shown,
    rpc::fault::Fault,
};

/// Messages that wait to go out on one session; each holds at most about 1 MiB of calls.
const OUTBOX_MAX: usize = 64;
/// Between two beats of the coordinator.
const BEAT: Duration = Duration::from_secs(2);
/// Calls under way on one session.
const CREDIT_MAX: u32 = 65_536;
/// The greatest weight; 0 stands for [`WEIGHT_DEFAULT`].
const WEIGHT_MAX: u32 = 1_000;
/// The weight of an agent that does not say.
const WEIGHT_DEFAULT: u32 = 100;
/// Characters of an instance, a version, a zone or a color.
const WORD_MAX: usize = 64;

/// `holdfast.v1.Participants` of one node.
#[derive(Debug)]
pub struct Participants {
    door: Arc<Door>,
}

/// What every session of this node shares.
#[derive(Debug)]
struct Door {
    coordinator: Coordinator,
    events: Events,
    places: Arc<Semaphore>,
    next_id: AtomicU64,
    stop: CancellationToken,
}

impl Door {
    /// What an agent is told of the cluster, at first and again when there are other nodes.
    fn welcome(&self, coordinators: Vec<String>) -> Outgoing {
        Outgoing::Message(message(Outward::Welcome(v1::Welcome {
            node: self.coordinator.config().node.id,
            coordinators,
            silence_max_ms: limit::SILENCE_MAX_MS,
        })))
    }
}

/// The service as tonic serves it. Its sessions end when the coordinator stops.
#[must_use]
pub fn service(coordinator: &Coordinator) -> ParticipantsServer<Participants> {
    let door = Door {
        coordinator: coordinator.clone(),
        events: coordinator.events(),
        places: Arc::new(Semaphore::new(limit::SESSIONS_MAX)),
        next_id: AtomicU64::new(1),
        stop: coordinator.stopping(),
    };
    ParticipantsServer::new(Participants { door: Arc::new(door) })
        .max_decoding_message_size(limit::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limit::MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl Service for Participants {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send + 'static>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let place = place(&self.door.places)?;
        let (outbox, sent) = mpsc::channel(OUTBOX_MAX);
        let session = Session {
            id: SessionId(self.door.next_id.fetch_add(1, Ordering::Relaxed)),
            door: Arc::clone(&self.door),
            outbox,
            credit: 0,
            caller: caller(&request).map_err(|fault| fault.to_status())?,
            _place: place,
        };
        tokio::spawn(session.run(request.into_inner()));
        let outward = ReceiverStream::new(sent)
            .filter_map(|outgoing| std::future::ready(on_the_wire(outgoing)));
        Ok(Response::new(Box::pin(outward)))
    }
}

/// A place for one more session, held as long as it lasts.
fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let most = limit::SESSIONS_MAX;
        Status::resource_exhausted(format!(
            "HF2202 {most} sessions are open on this node, which is the limit. Try again later, or start fewer agents"
        ))
    })
}

/// What goes out: calls only if they are of the term in which this node still makes calls.
fn on_the_wire(outgoing: Outgoing) -> Option<Result<v1::CoordinatorMessage, Status>> {
    match outgoing {
        Outgoing::Calls { term, calls } => {
            term.holds().then(|| Ok(message(Outward::Calls(calls.into_bytes()))))
        }
        Outgoing::Message(message) => Some(Ok(message)),
        Outgoing::End(status) => Some(Err(status)),
    }
}

fn message(outward: Outward) -> v1::CoordinatorMessage {
    v1::CoordinatorMessage { message: Some(outward) }
}

/// What a message of an agent says.
enum Heard {
    Answers(Vec<v1::Answer>),
    Drain,
    /// It is there.
    Nothing,
}

/// One agent's session.
struct Session {
    id: SessionId,
    door: Arc<Door>,
    outbox: mpsc::Sender<Outgoing>,
    credit: usize,
    /// Whose certificate opened it.
    caller: Arc<Caller>,
    _place: OwnedSemaphorePermit,
}

impl Session {
    async fn run(mut self, mut inward: Streaming<v1::AgentMessage>) {
        let stop = self.door.stop.clone();
        let hello = tokio::select! {
            hello = self.greeting(&mut inward) => hello,
            () = stop.cancelled() => Err(stopping()),
        };
        let (hello, told) = match hello {
            Ok(hello) => hello,
            Err(status) => return self.end(status).await,
        };
        tracing::info!(
            service = %hello.service, instance = %hello.instance, version = %hello.version,
            session = self.id.0, "an agent is here"
        );
        let ended = self.converse(&mut inward, told).await;
        // Before the end is told, so that no call is put on a session that is over.
        let _stopped = self.door.events.down(self.id).await;
        tracing::info!(
            service = %hello.service, instance = %hello.instance, session = self.id.0,
            reason = ended.message(), "an agent has gone"
        );
        self.end(ended).await;
    }

    /// The first message, which must be a hello in order; and the nodes that the agent was told of in return.
    async fn greeting(
        &mut self,
        inward: &mut Streaming<v1::AgentMessage>,
    ) -> Result<(v1::Hello, Vec<String>), Status> {
        let silent_at = Instant::now() + Duration::from_millis(limit::SILENCE_MAX_MS);
        let first = timeout_at(silent_at, inward.message()).await.map_err(|_| silence())??;
        let Some(v1::AgentMessage { message: Some(Inward::Hello(hello)) }) = first else {
            return Err(malformed("the first message must be a hello"));
        };
        let (service, weight) = checked(&hello)?;
        if !self.caller.may_serve(service.as_str()) {
            return Err(not_its_service(&self.caller, &service));
        }
        self.credit = hello.credit as usize;
        let told = self.door.coordinator.doors();
        let welcome = self.door.welcome(told.clone());
        let gone = |_| Status::cancelled("the agent did not wait for its welcome");
        self.outbox.send(welcome).await.map_err(gone)?;
        let new = NewSession {
            id: self.id,
            service,
            about: About {
                instance: hello.instance.as_str().into(),
                version: hello.version.clone(),
                zone: hello.zone.clone(),
                color: hello.color.clone(),
                reads_short_calls: hello.reads_short_calls,
                kind: SessionKind::Agent,
            },
            weight,
            credit: Credit::of(self.credit),
            outbox: self.outbox.clone(),
        };
        self.door.events.up(new).await.map_err(|_| stopping())?;
        Ok((hello, told))
    }

    /// Hears the agent until it goes, breaks the protocol or falls silent, or the node stops; says which. `told` are the nodes that
    /// the agent knows of.
    async fn converse(
        &self,
        inward: &mut Streaming<v1::AgentMessage>,
        mut told: Vec<String>,
    ) -> Status {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence_max = Duration::from_millis(limit::SILENCE_MAX_MS);
        let mut silent_at = Instant::now() + silence_max;
        loop {
            tokio::select! {
                heard = inward.message() => {
                    silent_at = Instant::now() + silence_max;
                    let heard = match heard {
                        Ok(Some(heard)) => self.heard_in(heard),
                        Ok(None) => return Status::ok("it ended the session"),
                        Err(status) => return status,
                    };
                    match heard {
                        Ok(Heard::Answers(answers)) => {
                            if self.door.events.answers(self.id, answers).await.is_err() {
                                return stopping();
                            }
                        }
                        Ok(Heard::Drain) => {
                            if self.door.events.drains(self.id).await.is_err() {
                                return stopping();
                            }
                        }
                        Ok(Heard::Nothing) => {}
                        Err(status) => return status,
                    }
                }
                _ = beat.tick() => {
                    // A node that joined may lead soon, and calls only those that have a session with it.
                    let nodes = self.door.coordinator.doors();
                    if nodes != told && self.outbox.try_send(self.door.welcome(nodes.clone())).is_ok() {
                        told = nodes;
                    }
                    // A full outbox says as much as a beat does.
                    let _full = self.outbox.try_send(Outgoing::Message(message(Outward::Beat(v1::Beat {}))));
                }
                () = tokio::time::sleep_until(silent_at) => return silence(),
                () = self.outbox.closed() => return Status::cancelled("its connection is gone"),
                () = self.door.stop.cancelled() => return stopping(),
            }
        }
    }

    fn heard_in(&self, heard: v1::AgentMessage) -> Result<Heard, Status> {
        match heard.message {
            Some(Inward::Answers(v1::Answers { answers })) => {
                let most = self.credit.max(limit::BATCH_PER_MESSAGE_MAX);
                if answers.len() > most {
                    let count = answers.len();
                    return Err(malformed(&format!(
                        "a message holds {count} answers, allowed are {most}"
                    )));
                }
                Ok(Heard::Answers(answers))
            }
            Some(Inward::Drain(_)) => Ok(Heard::Drain),
            Some(Inward::Hello(_)) => Err(malformed("a second hello; open a new session instead")),
            // Empty: a message of a newer agent that this version may pass over.
            Some(Inward::Beat(_)) | None => Ok(Heard::Nothing),
        }
    }

    /// Tells the agent why, if it still listens.
    async fn end(&self, status: Status) {
        if status.code() != tonic::Code::Ok {
            let told = self.outbox.send(Outgoing::End(status));
            let _gone = tokio::time::timeout(BEAT, told).await;
        }
    }
}

/// Who opens a session. Without a guard before the door there is nobody but dev.
fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Fault> {
    let shown = request.extensions().get::<Shown>();
    shown.map_or_else(|| Ok(Arc::new(Caller::dev())), Shown::caller)
}

/// HF2605: the certificate names another service.
fn not_its_service(caller: &Caller, service: &Participant) -> Status {
    metrics::counter!("holdfast_denied_total", "code" => "HF2605").increment(1);
    Status::permission_denied(format!(
        "HF2605 session: {} may not serve {service}. An agent serves the service that its certificate names",
        caller.name
    ))
}

fn checked(hello: &v1::Hello) -> Result<(Participant, u32), Status> {
    let service =
        Participant::parse(&hello.service).map_err(|bad| malformed(&format!("service: {bad}")))?;
    for (field, word, may_be_empty) in [
        ("instance", &hello.instance, false),
        ("version", &hello.version, true),
        ("zone", &hello.zone, true),
        ("color", &hello.color, true),
    ] {
        let printable = word.chars().all(|c| c.is_ascii_graphic());
        if word.len() > WORD_MAX || !printable || (word.is_empty() && !may_be_empty) {
            return Err(malformed(&format!(
                "{field} must be at most {WORD_MAX} printable ASCII characters without spaces{}",
                if may_be_empty { "" } else { ", and at least one" }
            )));
        }
    }
    if !(1..=CREDIT_MAX).contains(&hello.credit) {
        let credit = hello.credit;
        return Err(malformed(&format!("credit is {credit}, allowed is 1 to {CREDIT_MAX}")));
    }
    match hello.weight {
        0 => Ok((service, WEIGHT_DEFAULT)),
        weight if weight <= WEIGHT_MAX => Ok((service, weight)),
        weight => Err(malformed(&format!("weight is {weight}, allowed is 1 to {WEIGHT_MAX}"))),
    }
}

fn malformed(what: &str) -> Status {
    Status::invalid_argument(format!("HF2201 session: {what}"))
}

fn silence() -> Status {
    let most = limit::SILENCE_MAX_MS;
    Status::deadline_exceeded(format!(
        "HF2203 nothing was heard on this session for {most} ms. Send a beat every 2 s, and open a new session"
    ))
}

fn stopping() -> Status {
    Status::unavailable("HF2104 this node is stopping. The sessions with the other nodes go on")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::Term;

    fn hello() -> v1::Hello {
        v1::Hello {
            service: "deposit".into(),
            instance: "deposit-1".into(),
            credit: 1,
            ..Default::default()
        }
    }

    #[test]
    fn the_last_session_has_a_place_and_one_more_has_not() {
        let places = Arc::new(Semaphore::new(limit::SESSIONS_MAX));
        let mut held: Vec<_> = (0..limit::SESSIONS_MAX).map(|_| place(&places)).collect();
        assert!(held.iter().all(Result::is_ok));
        let refused = place(&places).expect_err("there is no further place");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().starts_with("HF2202 10000 sessions"), "{refused}");
        held.pop();
        assert!(place(&places).is_ok());
    }

    #[test]
    fn a_hello_is_taken_at_each_limit_and_refused_one_past_it() {
        assert_eq!(checked(&hello()).unwrap().1, WEIGHT_DEFAULT);
        let with = |change: fn(&mut v1::Hello)| {
            let mut hello = hello();
            change(&mut hello);
            checked(&hello).map_err(|status| status.code())
        };
        assert!(with(|h| h.credit = CREDIT_MAX).is_ok());
        assert!(with(|h| h.weight = WEIGHT_MAX).is_ok_and(|(_, weight)| weight == WEIGHT_MAX));
        assert!(with(|h| h.instance = "x".repeat(WORD_MAX)).is_ok());
        for refused in [
            with(|h| h.credit = 0),
            with(|h| h.credit = CREDIT_MAX + 1),
            with(|h| h.weight = WEIGHT_MAX + 1),
            with(|h| h.instance = "x".repeat(WORD_MAX + 1)),
            with(|h| h.instance.clear()),
            with(|h| h.zone = "a b".into()),
            with(|h| h.service = "Deposit".into()),
        ] {
            assert_eq!(refused.unwrap_err(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn calls_of_another_term_do_not_go_out() {
        let calling = Arc::new(AtomicU64::new(3));
        let calls = || {
            let term = Term::of(&calling, 3);
            Outgoing::Calls { term, calls: Default::default() }
        };
        assert!(on_the_wire(calls()).is_some());
        for other in [4, 0] {
            calling.store(other, Ordering::Release);
            assert!(on_the_wire(calls()).is_none());
            assert!(on_the_wire(Outgoing::Message(v1::CoordinatorMessage::default())).is_some());
        }
    }
}
