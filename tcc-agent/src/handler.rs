//! Between the sessions and what carries calls out: batches of calls in, answers out through a channel.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::participant::{Answer, Call};

/// What carries calls out: the PostgreSQL executor, the sidecar, or a program's own.
pub trait Handler: Send + Sync + 'static {
    /// Takes calls and returns at once; each is answered later through its [`Reply`], in any order.
    fn handle(&self, asked: Vec<Asked>);
}

impl<H: Handler + ?Sized> Handler for Arc<H> {
    fn handle(&self, asked: Vec<Asked>) {
        (**self).handle(asked);
    }
}

/// A call and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub call: Call,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Where the one answer to a call goes. Dropped without an answer, it answers unknown, so that no call is ever left open.
#[derive(Debug)]
pub struct Reply {
    call_id: u64,
    answers: Option<mpsc::Sender<(u64, Answer)>>,
}

impl Reply {
    /// The answer will be sent with this `call_id`. The channel must hold as many answers as there are replies at a time.
    #[must_use]
    pub const fn new(call_id: u64, answers: mpsc::Sender<(u64, Answer)>) -> Self {
        Self { call_id, answers: Some(answers) }
    }

    /// Another reply to the same call: a call that is carried out twice has two answers, of which the first counts.
    pub(crate) fn another(&self, answers: mpsc::Sender<(u64, Answer)>) -> Self {
        Self::new(self.call_id, answers)
    }

    /// Answers. Nothing happens when the session is gone: the coordinator will ask again.
    pub fn answer(mut self, answer: Answer) {
        self.send(answer);
    }

    fn send(&mut self, answer: Answer) {
        if let Some(answers) = self.answers.take()
            && let Err(mpsc::error::TrySendError::Full((call_id, _))) =
                answers.try_send((self.call_id, answer))
        {
            // Cannot be: the session counts the calls under way. Silence is safe all the same, it means unknown.
            tracing::error!(call_id, "no room for an answer; the coordinator will ask again");
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Answer::Unknown {
            message: "the call was dropped before it was answered".into(),
        });
    }
}

impl Asked {
    /// A call of this program's own, and where its answer will arrive.
    #[must_use]
    pub fn alone(call: Call) -> (Self, mpsc::Receiver<(u64, Answer)>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self { call, reply: Reply::new(0, sender) }, receiver)
    }
}

/// Has `handler` carry out one call and waits for its answer.
pub async fn ask(handler: &dyn Handler, call: Call) -> Answer {
    let (asked, mut answers) = Asked::alone(call);
    handler.handle(vec![asked]);
    match answers.recv().await {
        Some((_, answer)) => answer,
        None => Answer::Unknown { message: "the handler is gone".into() },
    }
}
