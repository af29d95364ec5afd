//! An agent in a test: speaks the session stream with every node, and answers as its script says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_coordinator::config::limit;
use holdfast_proto::{
    Pairs,
    v1::{
        self, Op, Verdict, agent_message::Message as Inward,
        coordinator_message::Message as Outward, participants_client::ParticipantsClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, Streaming, transport::Channel};

/// What an agent does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    Done,
    Refused,
    Working,
    Unknown,
    /// No answer at all.
    Nothing,
    /// The session breaks, and a new one is opened.
    Vanish,
}

/// A call as the agent saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The node that called.
    pub(crate) node: u64,
    pub(crate) gid: String,
    pub(crate) branch: u32,
    pub(crate) op: Op,
    pub(crate) attempt: u32,
    /// What the call says of itself.
    pub(crate) repeat: bool,
    pub(crate) refusal_waits: bool,
    /// How often this operation was asked before, by whomever.
    pub(crate) before: usize,
    pub(crate) payload: Vec<u8>,
    pub(crate) headers: Pairs,
}

/// Answers a call.
pub(crate) trait Script: Fn(&Asked) -> Say + Send + Sync + 'static {}
impl<F: Fn(&Asked) -> Say + Send + Sync + 'static> Script for F {}

/// Sessions with every node it was given. Dropping it ends them.
pub(crate) struct Agent {
    told: Arc<Told>,
    sessions: Vec<AbortOnDropHandle<()>>,
}

struct Told {
    service: &'static str,
    credit: u32,
    script: Box<dyn Script<Output = Say>>,
    asked: Mutex<Vec<Asked>>,
    times: Mutex<HashMap<(String, u32, Op), usize>>,
}

impl Agent {
    /// An agent of `service` at every one of `nodes` (gRPC addresses), with room for many calls.
    pub(crate) fn start(service: &'static str, nodes: &[String], script: impl Script) -> Self {
        Self::with_credit(service, nodes, 1_024, script)
    }

    pub(crate) fn with_credit(
        service: &'static str,
        nodes: &[String],
        credit: u32,
        script: impl Script,
    ) -> Self {
        let (asked, times) = (Mutex::default(), Mutex::default());
        let told = Arc::new(Told { service, credit, script: Box::new(script), asked, times });
        let session = |node: &String| {
            let (told, node) = (Arc::clone(&told), node.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    // Whatever ended it, another session is opened: that is all an agent does about faults.
                    let _ended = told.session(&node).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }))
        };
        let sessions = nodes.iter().map(session).collect();
        Self { told, sessions }
    }

    /// Everything it was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.told.asked.lock().unwrap().clone()
    }

    /// The operations it was asked for, in order.
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.asked().iter().map(|asked| asked.op).collect()
    }

    pub(crate) fn count(&self, op: Op) -> usize {
        self.asked().iter().filter(|asked| asked.op == op).count()
    }

    /// Ends every session for good.
    pub(crate) fn leave(&mut self) {
        self.sessions.clear();
    }
}

impl Told {
    async fn session(&self, node: &str) -> Result<(), Status> {
        let (mut outward, say) = hello(node, self.service, self.credit).await?;
        let gone = CancellationToken::new();
        let _stop = gone.clone().drop_guard();
        beat(say.clone(), gone);
        let mut here = 0;
        while let Some(message) = outward.message().await? {
            match message.message {
                Some(Outward::Welcome(welcome)) => {
                    assert_eq!(welcome.silence_max_ms, limit::SILENCE_MAX_MS);
                    here = welcome.node;
                }
                Some(Outward::Calls(calls)) => {
                    let calls = v1::Calls::read(calls).expect("calls");
                    let Some(answers) = self.answer(here, calls) else { return Ok(()) };
                    let answers = message_of(Inward::Answers(v1::Answers { answers }));
                    if say.send(answers).await.is_err() {
                        return Ok(());
                    }
                }
                Some(Outward::Beat(_)) | None => {}
            }
        }
        Ok(())
    }

    /// `None`: the script wants the session to break.
    fn answer(&self, node: u64, calls: Vec<v1::Call>) -> Option<Vec<v1::Answer>> {
        let mut answers = Vec::new();
        for call in calls {
            let operation = (call.gid.clone(), call.branch, call.op());
            let mut times = self.times.lock().unwrap();
            let times = times.entry(operation).or_default();
            *times += 1;
            let before = *times - 1;
            let asked = Asked {
                node,
                branch: call.branch,
                op: call.op(),
                attempt: call.attempt,
                repeat: call.repeat,
                refusal_waits: call.refusal_waits,
                before,
                gid: call.gid,
                payload: call.payload.to_vec(),
                headers: call.headers.into(),
            };
            self.asked.lock().unwrap().push(asked.clone());
            let (verdict, code) = match (self.script)(&asked) {
                Say::Done => (Verdict::Done, ""),
                Say::Refused => (Verdict::Refused, "insufficient_funds"),
                Say::Working => (Verdict::Working, ""),
                Say::Unknown => (Verdict::Unspecified, "database_away"),
                Say::Nothing => continue,
                Say::Vanish => return None,
            };
            answers.push(v1::Answer {
                call_id: call.call_id,
                verdict: verdict.into(),
                code: code.to_owned(),
                message: String::new(),
            });
        }
        Some(answers)
    }
}

/// Opens a session and says hello.
pub(crate) async fn hello(
    node: &str,
    service: &str,
    credit: u32,
) -> Result<(Streaming<v1::CoordinatorMessage>, mpsc::Sender<v1::AgentMessage>), Status> {
    let channel = Channel::from_shared(format!("http://{node}"))
        .map_err(|fault| Status::internal(fault.to_string()))?
        .connect()
        .await
        .map_err(|fault| Status::unavailable(fault.to_string()))?;
    let (say, said) = mpsc::channel(64);
    let hello = v1::Hello {
        service: service.to_owned(),
        instance: format!("{service}-1"),
        credit,
        ..Default::default()
    };
    let queued = say.try_send(message_of(Inward::Hello(hello)));
    queued.expect("the channel is new");
    let session = ParticipantsClient::new(channel).session(ReceiverStream::new(said)).await?;
    Ok((session.into_inner(), say))
}

pub(crate) fn message_of(message: Inward) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}

fn beat(say: mpsc::Sender<v1::AgentMessage>, gone: CancellationToken) {
    tokio::spawn(async move {
        let beats = async {
            while say.send(message_of(Inward::Beat(v1::Beat {}))).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        tokio::select! {
            () = gone.cancelled() => {}
            () = beats => {}
        }
    });
}
