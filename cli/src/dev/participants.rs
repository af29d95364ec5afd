//! Participants for `holdfast dev`: one for each answer that a service can give.

use tokio_util::sync::CancellationToken;

use holdfast_tcc_agent::{Answer, Asked, Call, Handler, Op, ServeConfig, serve};

use crate::exit;

/// How often a slow participant says that it is working on it.
const WORKING_TIMES: u32 = 2;

/// A participant without effects, so a repeat needs no barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BuiltIn {
    Accept,
    Refuse,
    Slow,
}

/// All of them.
pub(super) fn all() -> [BuiltIn; 3] {
    [BuiltIn::Accept, BuiltIn::Refuse, BuiltIn::Slow]
}

impl BuiltIn {
    /// As branches name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Refuse => "refuse",
            Self::Slow => "slow",
        }
    }

    /// What it does, for people.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Accept => "does whatever it is asked",
            Self::Refuse => "refuses every try and action; takes every cancel",
            Self::Slow => "answers 'working' twice, then does it",
        }
    }

    /// Serves the coordinator at `address` until `stop`.
    pub(super) async fn serve(self, address: String, stop: CancellationToken) {
        let mut config = ServeConfig::new(self.name(), vec![address]);
        config.version = env!("CARGO_PKG_VERSION").to_owned();
        if let Err(bad) = serve(config, self, stop).await {
            exit::tell(&format!("holdfast dev: {bad}"));
        }
    }

    fn answer(self, call: &Call) -> Answer {
        match (self, call.op) {
            (Self::Refuse, Op::Try | Op::Action) => Answer::Refused {
                code: "dev_refused".to_owned(),
                message: "this participant refuses everything".to_owned(),
            },
            (Self::Slow, _) if call.attempt <= WORKING_TIMES => Answer::Working,
            _ => Answer::Done,
        }
    }
}

impl Handler for BuiltIn {
    fn handle(&self, asked: Vec<Asked>) {
        for Asked { call, reply } in asked {
            let answer = self.answer(&call);
            // No payload: a developer's terminal is a log as well.
            exit::tell(&format!(
                "{}  branch {}  {:<10} {:<8} {}",
                call.gid,
                call.branch,
                format!("{:?}", call.op).to_lowercase(),
                self.name(),
                word(&answer)
            ));
            reply.answer(answer);
        }
    }
}

fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Done => "done",
        Answer::Refused { .. } => "refused",
        Answer::Working => "working",
        Answer::Unknown { .. } => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use holdfast_tcc_agent::Gid;

    use super::*;

    fn call(op: Op, attempt: u32) -> Call {
        let gid = Gid::parse("g-1").unwrap();
        let (payload, headers) = (bytes::Bytes::new(), Default::default());
        Call {
            gid,
            branch: 1,
            op,
            payload,
            deadline_ms: 0,
            headers,
            attempt,
            repeat: attempt > 1,
            refusal_waits: false,
        }
    }

    #[test]
    fn each_gives_the_answer_it_is_named_after() {
        assert_eq!(BuiltIn::Accept.answer(&call(Op::Try, 1)), Answer::Done);
        assert!(matches!(BuiltIn::Refuse.answer(&call(Op::Try, 1)), Answer::Refused { .. }));
        assert_eq!(BuiltIn::Refuse.answer(&call(Op::Cancel, 1)), Answer::Done);
        assert_eq!(BuiltIn::Slow.answer(&call(Op::Confirm, 2)), Answer::Working);
        assert_eq!(BuiltIn::Slow.answer(&call(Op::Confirm, 3)), Answer::Done);
    }
}
