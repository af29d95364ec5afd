//! Spans of the calls that a session carries out: each from its coming to its answer, below the coordinator's span of the same call.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use holdfast_trace::{Context, Kind, Span, spans};

use crate::participant::{Answer, Call};

/// Calls of one session that are traced and not answered yet; as many as are under way, which the session's credit bounds.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    by_call: HashMap<u64, Begun>,
}

#[derive(Debug)]
struct Begun {
    context: Context,
    parent: Context,
    name: String,
    begun_ms: u64,
    attributes: Vec<(&'static str, String)>,
}

impl Serving {
    /// Begins the span of a call, and has the call say that whatever it leads to lies below. Nothing happens to a call that is not traced,
    /// or in a process where nobody takes spans.
    pub(crate) fn begin(&mut self, call_id: u64, call: &mut Call, service: &str, instance: &str) {
        if spans().is_none() {
            return;
        }
        let Some(parent) = call.headers.traced() else { return };
        let context = parent.within(&[b"serve", instance.as_bytes(), &call_id.to_be_bytes()]);
        call.headers.trace(&context);
        let attributes = vec![
            ("holdfast.gid", call.gid.to_string()),
            ("holdfast.branch", call.branch.to_string()),
            ("holdfast.attempt", call.attempt.to_string()),
            ("holdfast.instance", instance.to_owned()),
        ];
        let name = format!("{} {service}", call.op.as_str());
        self.by_call
            .insert(call_id, Begun { context, parent, name, begun_ms: now_ms(), attributes });
    }

    /// Ends the span of a call. A second answer to the same call ends nothing.
    pub(crate) fn end(&mut self, call_id: u64, answer: &Answer) {
        // Nobody takes spans, or nothing is traced: the usual case.
        if self.by_call.is_empty() {
            return;
        }
        let Some(begun) = self.by_call.remove(&call_id) else { return };
        let outcome = match answer {
            Answer::Done => "done",
            Answer::Refused { .. } => "refused",
            Answer::Working => "working",
            Answer::Unknown { .. } => "unknown",
        };
        begun.end(outcome, outcome == "unknown");
    }
}

impl Drop for Serving {
    /// The session is over: whoever hears these answers, it is not the coordinator.
    fn drop(&mut self) {
        for (_, begun) in self.by_call.drain() {
            begun.end("session over", true);
        }
    }
}

impl Begun {
    fn end(self, outcome: &'static str, failed: bool) {
        let Self { context, parent, name, begun_ms, mut attributes } = self;
        attributes.push(("holdfast.outcome", outcome.to_owned()));
        let Some(spans) = spans() else { return };
        spans.record(Span {
            context,
            parent: parent.span,
            name,
            kind: Kind::Server,
            begun_ms,
            ended_ms: now_ms().max(begun_ms),
            attributes,
            events: Vec::new(),
            failed: failed.then(|| outcome.to_owned()),
        });
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use holdfast_trace::{Spans, install};

    use super::*;
    use crate::participant::{Gid, Op};

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Debug, Default)]
    struct Kept(Arc<Mutex<Vec<Span>>>);

    impl Spans for Kept {
        fn record(&self, span: Span) {
            self.0.lock().unwrap().push(span);
        }
    }

    fn call(headers: &[(&str, &str)]) -> Call {
        Call {
            gid: Gid::parse("g1").unwrap(),
            branch: 2,
            op: Op::Try,
            payload: "secret".into(),
            deadline_ms: 0,
            headers: headers.iter().copied().collect(),
            attempt: 1,
            repeat: false,
            refusal_waits: false,
        }
    }

    /// One test, since a process installs its spans once.
    #[test]
    fn each_traced_call_is_one_span_with_its_end_and_others_are_none() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        install(Box::new(Kept(Arc::clone(&kept)))).unwrap();
        let mut serving = Serving::default();

        let mut plain = call(&[("tenant", "t")]);
        serving.begin(1, &mut plain, "debit", "i-1");
        assert_eq!(plain.headers.len(), 1);
        serving.end(1, &Answer::Done);
        assert!(kept.lock().unwrap().is_empty());

        let mut traced = call(&[("Traceparent", CALLER)]);
        serving.begin(2, &mut traced, "debit", "i-1");
        let within = Context::among(traced.headers.iter()).unwrap();
        assert_eq!(traced.headers.len(), 1, "{:?}", traced.headers);
        serving.end(2, &Answer::Done);
        serving.end(2, &Answer::Done);
        let mut unanswered = call(&[("traceparent", CALLER)]);
        serving.begin(3, &mut unanswered, "debit", "i-1");
        drop(serving);

        let spans = kept.lock().unwrap();
        let [done, left] = &spans[..] else { panic!("{spans:?}") };
        let caller = Context::parse(CALLER).unwrap();
        assert_eq!((done.context, done.parent), (within, caller.span));
        assert_eq!((done.name.as_str(), done.failed.as_deref()), ("try debit", None));
        assert_eq!(left.failed.as_deref(), Some("session over"));
        assert_ne!(left.context, done.context);
        assert!(!format!("{spans:?}").contains("secret"));
    }
}
