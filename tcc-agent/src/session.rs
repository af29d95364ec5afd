//! One session: hello, calls in, answers out, beats, and a drain at the end.

use std::time::Duration;

use holdfast_fault::{Held, Site, held, reached};
use holdfast_proto::{
    HeardCall, Pairs,
    v1::{
        self, AgentMessage, agent_message, coordinator_message,
        participants_client::ParticipantsClient,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    announce::endpoint,
    barrier_store::{CODE_CHARACTERS_MAX, MESSAGE_CHARACTERS_MAX, kept},
    handler::{Asked, Reply},
    headers::Headers,
    participant::{Answer, Call, Gid, Op},
    serve::Shared,
    spans::Serving,
    status::{Connected, UnderWay},
};

/// A beat so often.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// For the connection, and again for the stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Until a welcome says otherwise.
const SILENCE_MAX_DEFAULT: Duration = Duration::from_secs(10);
/// Whatever a welcome says.
const SILENCE_MAX: std::ops::RangeInclusive<u64> = 1_000..=300_000;
/// A session that was welcomed and lived so long was a good one.
const LASTING: Duration = Duration::from_secs(1);
/// Answers in one message.
const ANSWERS_MAX: usize = 1024;
/// Messages that wait to be sent.
const OUTWARD_MAX: usize = 8;
/// Headers of one call.
const HEADERS_MAX: usize = 128;
/// For the coordinator to end its side after we ended ours.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a session is no more.
pub(crate) enum Ended {
    /// Shutdown was asked for, and every call is answered or its time is over.
    Drained,
    /// This node has a session by another address.
    SameNode(u64),
    /// It could not be opened, or broke.
    Lost { lasted: bool, reason: String },
}

pub(crate) struct Session<'a> {
    shared: &'a Shared,
    address: &'a str,
    outward: mpsc::Sender<AgentMessage>,
    answers: mpsc::Sender<(u64, Answer)>,
    under_way: UnderWay,
    silence_max: Duration,
    heard: Instant,
    welcome: Option<Welcomed<'a>>,
    serving: Serving,
}

/// The node's place among the sessions, given up on drop.
struct Welcomed<'a> {
    shared: &'a Shared,
    node: u64,
    _connected: Connected,
}

impl Drop for Welcomed<'_> {
    fn drop(&mut self) {
        self.shared.nodes.send_modify(|nodes| {
            nodes.remove(&self.node);
        });
    }
}

impl<'a> Session<'a> {
    /// Opens a session to `address` and serves it to its end.
    pub(crate) async fn run(shared: &'a Shared, address: &'a str) -> Ended {
        let credit = shared.config.credit as usize;
        let (outward, messages) = mpsc::channel(OUTWARD_MAX);
        let (answers, mut answered) = mpsc::channel(credit);
        let mut session = Session {
            shared,
            address,
            outward,
            answers,
            under_way: shared.config.status.begin(),
            silence_max: SILENCE_MAX_DEFAULT,
            heard: Instant::now(),
            welcome: None,
            serving: Serving::default(),
        };
        let opening = async {
            session.send(agent_message::Message::Hello(shared.config.hello())).await?;
            open(shared, address, messages).await
        };
        let opened = tokio::select! {
            () = shared.shutdown.cancelled() => return Ended::Drained,
            opened = opening => opened,
        };
        let mut inward = match opened {
            Ok(inward) => inward,
            Err(reason) => return Ended::Lost { lasted: false, reason },
        };
        let opened_at = Instant::now();
        match session.serve(&mut inward, &mut answered).await {
            Ok(ended) => {
                // Our side ends here; what was sent is delivered once the other side ends as well.
                drop(session);
                let farewell = async { while let Ok(Some(_)) = inward.message().await {} };
                let _in_time = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
                ended
            }
            Err(reason) => {
                // One that breaks as soon as it is open is no better than none: the pauses keep growing.
                let lasted = opened_at.elapsed() >= LASTING;
                Ended::Lost { lasted: lasted && session.welcome.is_some(), reason }
            }
        }
    }

    async fn serve(
        &mut self,
        inward: &mut tonic::Streaming<v1::CoordinatorMessage>,
        answered: &mut mpsc::Receiver<(u64, Answer)>,
    ) -> Result<Ended, String> {
        let mut beat = tokio::time::interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = Vec::new();
        let mut drained_by: Option<Instant> = None;
        self.heard = Instant::now();
        loop {
            if drained_by.is_some() && self.under_way.open() == 0 {
                return Ok(Ended::Drained);
            }
            let silent_at = self.heard + self.silence_max;
            tokio::select! {
                message = inward.message() => {
                    let message = message.map_err(|status| describe(&status))?;
                    let Some(message) = message else {
                        return Err("the coordinator ended the session".into());
                    };
                    self.heard = Instant::now();
                    if let Some(ended) = self.take(message).await? {
                        return Ok(ended);
                    }
                }
                taken = answered.recv_many(&mut ready, ANSWERS_MAX) => {
                    self.under_way.remove(taken);
                    ready.iter().for_each(|(call_id, answer)| self.serving.end(*call_id, answer));
                    self.answer(std::mem::take(&mut ready)).await?;
                }
                _ = beat.tick() => self.send(agent_message::Message::Beat(v1::Beat {})).await?,
                () = tokio::time::sleep_until(silent_at) => {
                    return Err(format!("nothing was heard for {} ms", self.silence_max.as_millis()));
                }
                () = self.shared.shutdown.cancelled(), if drained_by.is_none() => {
                    self.send(agent_message::Message::Drain(v1::Drain {})).await?;
                    let timeout = Duration::from_millis(self.shared.config.drain_timeout_ms);
                    drained_by = Some(Instant::now() + timeout);
                }
                () = tokio::time::sleep_until(drained_by.unwrap_or(silent_at)), if drained_by.is_some() => {
                    let open = self.under_way.open();
                    tracing::warn!(address = self.address, open, "left with calls unanswered");
                    return Ok(Ended::Drained);
                }
            }
        }
    }

    async fn take(&mut self, message: v1::CoordinatorMessage) -> Result<Option<Ended>, String> {
        match message.message {
            Some(coordinator_message::Message::Welcome(welcome)) => Ok(self.welcome(welcome)),
            Some(coordinator_message::Message::Calls(calls)) => {
                let calls = v1::Calls::hear(&calls);
                let calls = calls.map_err(|fault| format!("calls that cannot be read: {fault}"))?;
                self.calls(calls).await?;
                Ok(None)
            }
            // What a later version may say is no reason to leave.
            Some(coordinator_message::Message::Beat(_)) | None => Ok(None),
        }
    }

    fn welcome(&mut self, welcome: v1::Welcome) -> Option<Ended> {
        for address in welcome.coordinators {
            // A full channel means more addresses than are ever dialled.
            let _told = self.shared.learnt.try_send(address);
        }
        // Said again, it tells of further nodes and of nothing else.
        if self.welcome.is_some() {
            return None;
        }
        if welcome.silence_max_ms > 0 {
            let within = welcome.silence_max_ms.clamp(*SILENCE_MAX.start(), *SILENCE_MAX.end());
            self.silence_max = Duration::from_millis(within);
        }
        let node = welcome.node;
        let mine = self.shared.nodes.send_if_modified(|nodes| {
            let free = !nodes.contains_key(&node);
            if free {
                nodes.insert(node, self.address.to_owned());
            }
            free
        });
        if !mine {
            return Some(Ended::SameNode(node));
        }
        let connected = self.shared.config.status.connect();
        self.welcome = Some(Welcomed { shared: self.shared, node, _connected: connected });
        tracing::info!(address = self.address, node, "session open");
        None
    }

    async fn calls(&mut self, calls: Vec<HeardCall<'_>>) -> Result<(), String> {
        let room = (self.shared.config.credit as usize).saturating_sub(self.under_way.open());
        let mut asked = Vec::with_capacity(calls.len().min(room));
        let mut turned_away = Vec::new();
        let mut headers = Ok(());
        for (at, call) in calls.into_iter().enumerate() {
            let call_id = call.call_id;
            if at == 0 || !call.headers_as_before {
                headers = check_headers(&call.headers);
            }
            if asked.len() == room {
                let message = "more calls under way than this session's credit".into();
                turned_away.push((call_id, Answer::Unknown { message }));
                continue;
            }
            if held::strikes(Held::Errors) {
                turned_away.push((call_id, Answer::Unknown { message: "a drill".into() }));
                continue;
            }
            match headers.clone().and_then(|()| read_call(call)) {
                Ok(mut call) => {
                    let config = &self.shared.config;
                    self.serving.begin(call_id, &mut call, &config.service, &config.instance);
                    asked.push(Asked { call, reply: Reply::new(call_id, self.answers.clone()) })
                }
                Err(message) => turned_away.push((call_id, Answer::Unknown { message })),
            }
        }
        self.carry_out_also(&mut asked, room);
        self.under_way.add(asked.len());
        metrics::counter!("holdfast_agent_calls_total").increment(asked.len() as u64);
        if !asked.is_empty() {
            reached(Site::AgentCallsReceived);
            self.shared.handler.handle(asked);
        }
        if !turned_away.is_empty() {
            tracing::warn!(address = self.address, calls = turned_away.len(), "calls turned away");
            for part in turned_away.chunks(ANSWERS_MAX) {
                self.answer(part.to_vec()).await?;
            }
        }
        Ok(())
    }

    /// A drill asks for calls to be carried out twice: those go in once more behind the first, and both answers go out.
    fn carry_out_also(&self, asked: &mut Vec<Asked>, room: usize) {
        let again: Vec<Asked> = asked
            .iter()
            .take(room.saturating_sub(asked.len()))
            .filter(|_| held::strikes(Held::Twice))
            .map(|first| Asked {
                call: first.call.clone(),
                reply: first.reply.another(self.answers.clone()),
            })
            .collect();
        asked.extend(again);
    }

    async fn answer(&self, answers: Vec<(u64, Answer)>) -> Result<(), String> {
        let told = answers.into_iter().filter(|_| !held::strikes(Held::Silence));
        let answers: Vec<_> = told.map(write_answer).collect();
        if answers.is_empty() {
            return Ok(());
        }
        self.send(agent_message::Message::Answers(v1::Answers { answers })).await?;
        reached(Site::AgentAnswered);
        Ok(())
    }

    async fn send(&self, message: agent_message::Message) -> Result<(), String> {
        let sending = self.outward.send(AgentMessage { message: Some(message) });
        match tokio::time::timeout(self.silence_max, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("the stream is closed".into()),
            Err(_) => Err("the coordinator takes no answers".into()),
        }
    }
}

async fn open(
    shared: &Shared,
    address: &str,
    messages: mpsc::Receiver<AgentMessage>,
) -> Result<tonic::Streaming<v1::CoordinatorMessage>, String> {
    let credentials = shared.config.credentials.as_ref();
    if credentials.is_none() && !is_loopback(address) {
        return Err("without TLS only loopback addresses are dialled".into());
    }
    let endpoint = endpoint(address)
        .ok_or("not an address")?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .max_frame_size(holdfast_proto::FRAME_BYTES_MAX)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let channel = holdfast_security::dial(&endpoint, credentials).await.map_err(|e| causes(&e))?;
    let bytes_max = shared.config.message_bytes_max;
    let mut client = ParticipantsClient::new(channel)
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(bytes_max);
    let opening = client.session(ReceiverStream::new(messages));
    match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(describe(&status)),
        Err(_) => Err(format!("no stream within {} ms", CONNECT_TIMEOUT.as_millis())),
    }
}

/// Whether nothing leaves this machine on the way there.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An error with its causes, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), kept(status.message(), MESSAGE_CHARACTERS_MAX))
}

/// The call, if it is one that can be carried out.
fn read_call(call: HeardCall<'_>) -> Result<Call, String> {
    let op = match call.op() {
        v1::Op::Try => Op::Try,
        v1::Op::Confirm => Op::Confirm,
        v1::Op::Cancel => Op::Cancel,
        v1::Op::Action => Op::Action,
        v1::Op::Compensate => Op::Compensate,
        v1::Op::Prepare => Op::Prepare,
        v1::Op::Commit => Op::Commit,
        v1::Op::RollBack => Op::Rollback,
        v1::Op::Unspecified => return Err(format!("operation {} is not known here", call.op)),
    };
    let gid = Gid::parse(&call.gid).map_err(|error| error.to_string())?;
    if call.branch == 0 || i32::try_from(call.branch).is_err() {
        return Err(format!("branch {} is not within 1 and 2,147,483,647", call.branch));
    }
    Ok(Call {
        gid,
        branch: call.branch,
        op,
        payload: call.payload,
        deadline_ms: call.deadline_ms,
        headers: Headers::new(call.headers, call.trace_context),
        attempt: call.attempt,
        repeat: call.repeat,
        refusal_waits: call.refusal_waits,
    })
}

fn check_headers(headers: &Pairs) -> Result<(), String> {
    if headers.len() > HEADERS_MAX {
        return Err(format!("{} headers; at most {HEADERS_MAX} are carried", headers.len()));
    }
    if !headers.are_well_formed() {
        return Err("a header is no name and value".into());
    }
    Ok(())
}

fn write_answer((call_id, answer): (u64, Answer)) -> v1::Answer {
    let (verdict, code, message) = match answer {
        Answer::Done => (v1::Verdict::Done, String::new(), String::new()),
        Answer::Working => (v1::Verdict::Working, String::new(), String::new()),
        Answer::Refused { code, message } => (v1::Verdict::Refused, code, message),
        Answer::Unknown { message } => (v1::Verdict::Unspecified, String::new(), message),
    };
    let code = kept(&code, CODE_CHARACTERS_MAX);
    let message = kept(&message, MESSAGE_CHARACTERS_MAX);
    v1::Answer { call_id, verdict: verdict.into(), code, message }
}
