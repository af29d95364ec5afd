//! The span of a request that begins a traced transaction: from the first asking to the answer, however often and of whomever it is asked.

use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_proto::Pairs;
use holdfast_trace::{Context, HEADER, Kind, Span, spans};

use crate::wire::exchange_request::Request;

/// Askings that are told one by one; what comes then is not told.
const ASKED_MAX: usize = 64;

/// A request on its way. Tells its span when it is dropped.
#[derive(Debug)]
pub(crate) struct Pursued {
    context: Context,
    parent: Context,
    gid: String,
    begun_ms: u64,
    events: Vec<(&'static str, u64)>,
    answered: bool,
}

impl Pursued {
    /// `None`: nobody takes spans in this process, or `request` begins no traced transaction. Otherwise the transaction becomes part of this
    /// span, whose id depends on the caller's span and the gid alone: a repeat is word for word the same request.
    pub(crate) fn of(gid: &str, request: &mut Request) -> Option<Self> {
        spans()?;
        let options = match request {
            Request::Submit(submit) => submit.options.as_mut()?,
            Request::Begin(begin) => begin.options.as_mut()?,
            _ => return None,
        };
        let parent = Context::among(Pairs::among(&options.headers))?;
        let context = parent.within(&[b"pursue", gid.as_bytes()]);
        let mut headers = Pairs::from(std::mem::take(&mut options.headers));
        headers.set(HEADER, &context.header());
        options.headers = headers.into();
        let (gid, begun_ms) = (gid.to_owned(), now_ms());
        Some(Self { context, parent, gid, begun_ms, events: Vec::new(), answered: false })
    }

    /// It is asked, once more or for the first time.
    pub(crate) fn asked(&mut self) {
        if self.events.len() < ASKED_MAX {
            let word = if self.events.is_empty() { "asked" } else { "asked again" };
            self.events.push((word, now_ms()));
        }
    }

    /// It was answered.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Pursued {
    fn drop(&mut self) {
        let Some(spans) = spans() else { return };
        spans.record(Span {
            context: self.context,
            parent: self.parent.span,
            name: "holdfast client".to_owned(),
            kind: Kind::Client,
            begun_ms: self.begun_ms,
            ended_ms: now_ms().max(self.begun_ms),
            attributes: vec![("holdfast.gid", std::mem::take(&mut self.gid))],
            events: std::mem::take(&mut self.events),
            failed: (!self.answered).then(|| "no answer".to_owned()),
        });
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_askings_as_allowed_are_told_and_one_more_is_not() {
        let context = Context::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let context = context.expect("it is well formed");
        let (gid, events) = ("g1".to_owned(), Vec::new());
        let mut pursued =
            Pursued { context, parent: context, gid, begun_ms: 0, events, answered: false };
        for asked in 1..=ASKED_MAX + 1 {
            pursued.asked();
            assert_eq!(pursued.events.len(), asked.min(ASKED_MAX));
        }
        assert_eq!((pursued.events[0].0, pursued.events[1].0), ("asked", "asked again"));
    }
}
