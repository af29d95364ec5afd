//! Sessions: weighted choice, credit at its limit, batches at theirs, and what becomes of calls when a session goes.

use bytes::Bytes;
use holdfast_txn::{BranchId, Gid, Op};

use super::*;

fn service() -> Participant {
    Participant::parse("deposit").unwrap()
}

fn key(number: u32) -> CallKey {
    CallKey { gid: Gid::parse("g1").unwrap(), branch: BranchId(number), op: Op::Try }
}

fn call(payload_bytes: usize) -> v1::Call {
    v1::Call { payload: Bytes::from(vec![7; payload_bytes]), ..Default::default() }
}

fn up(sessions: &mut Sessions, id: u64, weight: u32, credit: usize) -> mpsc::Receiver<Outgoing> {
    let (outbox, sent) = mpsc::channel(2);
    sessions.up(NewSession { id: SessionId(id), service: service(), weight, credit, outbox });
    sent
}

fn calls_of(sent: &mut mpsc::Receiver<Outgoing>) -> Vec<v1::Call> {
    match sent.try_recv() {
        Ok(Outgoing::Calls { calls, .. }) => calls,
        other => panic!("calls, not {other:?}"),
    }
}

#[test]
fn credit_at_its_limit_is_used_and_one_more_call_finds_no_session() {
    let mut sessions = Sessions::default();
    let _sent = up(&mut sessions, 1, 100, 2);
    let first = sessions.ask(sessions.choose(&service()).unwrap(), key(1), call(0));
    sessions.ask(sessions.choose(&service()).unwrap(), key(2), call(0));
    assert_eq!(sessions.choose(&service()), None);
    assert_eq!(sessions.free(&service()), 0);
    assert_eq!(sessions.answered(first), Some((&service(), Some(key(1)))));
    assert_eq!(sessions.answered(first), None, "an answer counts once");
    assert_eq!(sessions.choose(&service()), Some(SessionId(1)));
    assert_eq!(sessions.in_flight(), 1);
}

#[test]
fn calls_are_shared_by_weight() {
    let mut sessions = Sessions::default();
    let _light = up(&mut sessions, 1, 100, 1_000);
    let _heavy = up(&mut sessions, 2, 300, 1_000);
    let mut shares = [0; 2];
    for number in 0..400 {
        let chosen = sessions.choose(&service()).unwrap();
        shares[usize::from(chosen == SessionId(2))] += 1;
        sessions.ask(chosen, key(number), call(0));
    }
    assert_eq!(shares, [100, 300]);
}

#[test]
fn among_many_sessions_one_with_credit_is_found() {
    let mut sessions = Sessions::default();
    let _kept: Vec<_> = (0..100).map(|id| up(&mut sessions, id, 100, 1)).collect();
    for number in 0..100 {
        let chosen = sessions.choose(&service()).expect("one has credit left");
        sessions.ask(chosen, key(number), call(0));
    }
    assert_eq!(sessions.choose(&service()), None);
}

#[test]
fn a_session_that_drains_gets_no_calls_and_may_still_answer() {
    let mut sessions = Sessions::default();
    let _sent = up(&mut sessions, 1, 100, 8);
    let ticket = sessions.ask(SessionId(1), key(1), call(0));
    sessions.drain(SessionId(1));
    assert_eq!(sessions.choose(&service()), None);
    assert!(sessions.answered(ticket).is_some());
}

#[test]
fn the_calls_of_a_session_that_goes_are_told() {
    let mut sessions = Sessions::default();
    let _sent = up(&mut sessions, 1, 100, 8);
    let ticket = sessions.ask(SessionId(1), key(1), call(0));
    assert_eq!(sessions.down(SessionId(1)), vec![(ticket, key(1))]);
    assert_eq!(sessions.down(SessionId(1)), vec![]);
    assert_eq!((sessions.len(), sessions.in_flight()), (0, 0));
    assert_eq!(sessions.choose(&service()), None);
}

#[test]
fn a_flush_sends_one_message_and_cuts_it_at_the_limits() {
    let mut sessions = Sessions::default();
    let mut sent = up(&mut sessions, 1, 100, 10_000);
    for number in 0..=limit::BATCH_PER_MESSAGE_MAX as u32 {
        sessions.ask(SessionId(1), key(number), call(0));
    }
    assert!(sessions.flush(1).is_empty());
    assert_eq!(calls_of(&mut sent).len(), limit::BATCH_PER_MESSAGE_MAX);
    assert_eq!(calls_of(&mut sent).len(), 1);
    let half = Sessions::BATCH_BYTES_MAX / 2;
    for number in 0..2 {
        sessions.ask(SessionId(1), key(number), call(half));
    }
    assert!(sessions.flush(1).is_empty());
    assert_eq!(calls_of(&mut sent).len(), 1, "two halves and their frames are more than a whole");
    assert_eq!(calls_of(&mut sent).len(), 1);
}

#[test]
fn calls_that_do_not_fit_into_the_outbox_were_not_made() {
    let mut sessions = Sessions::default();
    let _sent = up(&mut sessions, 1, 100, 8);
    for number in 0..2 {
        sessions.ask(SessionId(1), key(number), call(0));
        assert!(sessions.flush(1).is_empty());
    }
    let ticket = sessions.ask(SessionId(1), key(2), call(0));
    assert_eq!(sessions.flush(1), vec![(ticket, key(2))]);
    assert_eq!(sessions.in_flight(), 2);
}

#[test]
fn the_credit_of_a_call_that_nobody_answers_comes_back_after_a_while() {
    let mut sessions = Sessions::default();
    let _sent = up(&mut sessions, 1, 100, 1);
    let ticket = sessions.ask(SessionId(1), key(1), call(0));
    sessions.overdue(ticket, 1_000);
    assert!(sessions.forgive(1_000 + Sessions::OVERDUE_MAX_MS - 1).is_empty());
    assert_eq!(sessions.choose(&service()), None);
    assert_eq!(sessions.forgive(1_000 + Sessions::OVERDUE_MAX_MS), vec![service()]);
    assert_eq!(sessions.choose(&service()), Some(SessionId(1)));
    assert_eq!(sessions.in_flight(), 0);
}

#[test]
fn an_answer_to_a_call_of_a_former_leadership_gives_back_the_credit_and_says_nothing() {
    let mut sessions = Sessions::default();
    let mut sent = up(&mut sessions, 1, 100, 2);
    let made = sessions.ask(SessionId(1), key(1), call(0));
    assert!(sessions.flush(1).is_empty());
    let unmade = sessions.ask(SessionId(1), key(2), call(0));
    sessions.step_down();
    assert_eq!(sessions.answered(unmade), None);
    assert_eq!(sessions.answered(made), Some((&service(), None)));
    assert_eq!(sessions.in_flight(), 0);
    assert_eq!(calls_of(&mut sent).len(), 1);
    assert!(sessions.flush(2).is_empty());
    assert!(sent.try_recv().is_err());
}
