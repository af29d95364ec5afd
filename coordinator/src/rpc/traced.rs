//! The trace that a request belongs to: taken from its transport, and no part of what is asked.
//!
//! Whoever asks again is in another span, and asks the same. So the headers that only say to which trace a request belongs are those of the
//! first time, whatever a repeat says.

use holdfast_proto::{
    Pairs,
    v1::{self, exchange_request::Request},
};
use holdfast_trace::{Context, HEADER, is_context_header};
use holdfast_txn::{GlobalTransaction, limit};

/// Gives what begins a transaction the `traceparent` of its transport, where it says none itself, the trace is sampled, and there is room for one
/// header more.
pub(crate) fn belongs_to(request: &mut Request, traceparent: Option<&str>) {
    let Some(context) = traceparent.and_then(Context::parse) else { return };
    let Some(options) = options_of(request) else { return };
    let mut headers = Pairs::from(std::mem::take(&mut options.headers));
    let says = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(HEADER));
    if !says && headers.len() < limit::LABELS_MAX {
        headers.set(HEADER, &context.header());
    }
    options.headers = headers.into();
}

/// Makes a request that begins a transaction part of the trace that `first` is part of. False: it was already, or begins none.
pub(super) fn as_first(request: &mut Request, first: &GlobalTransaction) -> bool {
    let Some(options) = options_of(request) else { return false };
    let of_trace = |(name, _): &(&str, &str)| is_context_header(name);
    let first = first.options.headers.owned();
    let known: Vec<(&str, &str)> =
        first.iter().map(|(name, value)| (&**name, &**value)).filter(of_trace).collect();
    let headers = Pairs::from(std::mem::take(&mut options.headers));
    let said: Vec<(&str, &str)> = headers.iter().filter(of_trace).collect();
    let is_of_it = said.len() == known.len() && said.iter().all(|one| known.contains(one));
    let headers = if is_of_it {
        headers
    } else {
        let others = headers.iter().filter(|one| !of_trace(one));
        others.chain(known).collect()
    };
    options.headers = headers.into();
    !is_of_it
}

fn options_of(request: &mut Request) -> Option<&mut v1::Options> {
    let options = match request {
        Request::Submit(submit) => &mut submit.options,
        Request::Begin(begin) => &mut begin.options,
        _ => return None,
    };
    Some(options.get_or_insert_default())
}

#[cfg(test)]
mod tests {
    use holdfast_txn::{Command, Gid, Machine, Mode, Options, Timestamp};

    use super::*;

    const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01";

    fn submit(headers: &[(&str, &str)]) -> Request {
        let headers: Pairs = headers.iter().copied().collect();
        let options = v1::Options { headers: headers.into(), ..Default::default() };
        Request::Submit(v1::SubmitRequest { options: Some(options), ..Default::default() })
    }

    fn headers(request: &mut Request) -> Pairs {
        options_of(request).unwrap().headers.clone().into()
    }

    fn said(request: &mut Request, name: &str) -> Option<String> {
        headers(request).get(name).map(str::to_owned)
    }

    fn first(headers: &[(&str, &str)]) -> GlobalTransaction {
        let mut options = Options::of(Mode::Tcc);
        options.headers = headers.iter().copied().collect();
        let mut machine = Machine::new();
        let gid = Gid::parse("g1").unwrap();
        let begin = Command::Begin {
            gid: gid.clone(),
            mode: Mode::Tcc,
            options,
            branches: vec![],
            enlisted: true,
            content: None,
        };
        machine.apply(Timestamp(1), begin).unwrap();
        machine.get(&gid).unwrap().clone()
    }

    #[test]
    fn the_transport_says_to_which_trace_a_request_belongs_that_does_not_say_it_itself() {
        let mut silent = Request::Begin(v1::BeginRequest::default());
        belongs_to(&mut silent, Some(ONE));
        assert_eq!(said(&mut silent, "traceparent").as_deref(), Some(ONE));

        let mut speaks = submit(&[("TraceParent", OTHER)]);
        belongs_to(&mut speaks, Some(ONE));
        assert_eq!(said(&mut speaks, "traceparent"), None);

        for nothing in [None, Some("nonsense"), Some(&*ONE.replace("-01", "-00"))] {
            let mut request = submit(&[]);
            belongs_to(&mut request, nothing);
            assert_eq!(said(&mut request, "traceparent"), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_request_with_as_many_headers_as_may_be_gets_none_more() {
        let names: Vec<String> = (0..limit::LABELS_MAX).map(|n| format!("h{n}")).collect();
        let full: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        let mut request = submit(&full);
        belongs_to(&mut request, Some(ONE));
        assert_eq!(said(&mut request, "traceparent"), None);
        let mut request = submit(&full[1..]);
        belongs_to(&mut request, Some(ONE));
        assert_eq!(said(&mut request, "traceparent").as_deref(), Some(ONE));
    }

    #[test]
    fn a_repeat_is_part_of_the_trace_of_the_first_time_and_nothing_else_of_it_changes() {
        let first = first(&[("traceparent", ONE), ("tenant", "t")]);
        let mut repeat = submit(&[("TraceParent", OTHER), ("baggage", "b"), ("color", "red")]);
        assert!(as_first(&mut repeat, &first));
        let headers = headers(&mut repeat);
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert_eq!((headers.get("traceparent"), headers.get("color")), (Some(ONE), Some("red")));
        assert!(!as_first(&mut repeat, &first), "asked once more, it says the same");
        let mut other = Request::Get(v1::GetRequest::default());
        assert!(!as_first(&mut other, &first));
    }
}
