//! Timeouts that a request leaves out, when it asks for what was begun before.
//!
//! They are this node's defaults, and count as content. Operators change them while clients repeat, and another node may have others; a repeat
//! that leaves them out has not said anything else than the first time, so it means those of the first time.

use holdfast_proto::v1::{self, exchange_request::Request};
use holdfast_txn::GlobalTransaction;

/// Gives a request that begins a transaction the timeouts of `first` that it leaves out. False: it leaves out none, or begins none.
pub(super) fn as_first(request: &mut Request, first: &GlobalTransaction) -> bool {
    let options = match request {
        Request::Submit(submit) => &mut submit.options,
        Request::Begin(begin) => &mut begin.options,
        _ => return false,
    };
    let options = options.get_or_insert_with(v1::Options::default);
    let before = (options.timeout_ms, options.call_timeout_ms);
    if options.timeout_ms == 0 {
        options.timeout_ms = first.options.timeout_ms;
    }
    // Beside another timeout that was said, it is other content anyway.
    if options.call_timeout_ms == 0 && options.timeout_ms == first.options.timeout_ms {
        options.call_timeout_ms = first.options.call_timeout_ms;
    }
    before != (options.timeout_ms, options.call_timeout_ms)
}

#[cfg(test)]
mod tests {
    use holdfast_txn::{Command, Gid, Machine, Mode, Options, Timestamp};

    use super::*;

    fn first() -> GlobalTransaction {
        let gid = Gid::parse("g1").unwrap();
        let options = Options { timeout_ms: 7_000, call_timeout_ms: 900, ..Options::of(Mode::Tcc) };
        let (mode, enlisted) = (Mode::Tcc, true);
        let begin = Command::Begin {
            gid: gid.clone(),
            mode,
            options,
            branches: vec![],
            enlisted,
            content: None,
        };
        let mut machine = Machine::new();
        machine.apply(Timestamp(1), begin).unwrap();
        machine.get(&gid).unwrap().clone()
    }

    fn after(timeout_ms: u64, call_timeout_ms: u64) -> (bool, u64, u64) {
        let options = v1::Options { timeout_ms, call_timeout_ms, ..Default::default() };
        let begin = v1::BeginRequest { options: Some(options), ..Default::default() };
        let mut request = Request::Begin(begin);
        let changed = as_first(&mut request, &first());
        let Request::Begin(v1::BeginRequest { options: Some(options), .. }) = request else {
            panic!("it is what it was")
        };
        (changed, options.timeout_ms, options.call_timeout_ms)
    }

    #[test]
    fn what_a_repeat_leaves_out_is_as_the_first_time_and_what_it_says_stays() {
        assert_eq!(after(0, 0), (true, 7_000, 900));
        assert_eq!(after(7_000, 0), (true, 7_000, 900));
        assert_eq!(after(0, 500), (true, 7_000, 500));
        assert_eq!(after(5_000, 0), (false, 5_000, 0));
        assert_eq!(after(7_000, 900), (false, 7_000, 900));
        assert!(!as_first(&mut Request::Get(v1::GetRequest::default()), &first()));
    }
}
