//! Sessions: weighted choice, credit at its limit, batches at theirs, and what becomes of calls when a session goes.

use bytes::Bytes;
use holdfast_txn::{BranchId, Gid, Op};

use super::{super::announced::BATCH_BYTES_MAX, *};
use crate::config::limit;

fn service() -> Participant {
    Participant::parse("deposit").unwrap()
}

fn key(number: u32) -> CallKey {
    CallKey { gid: Gid::parse("g1").unwrap(), branch: BranchId(number), op: Op::Try }
}

fn up(sessions: &mut Sessions, id: u64, weight: u32, credit: usize) -> mpsc::Receiver<Outgoing> {
    let (outbox, sent) = mpsc::channel(2);
    sessions.up(new(id, About::default(), weight, credit, outbox), 0);
    sent
}

fn new(
    id: u64,
    about: About,
    weight: u32,
    credit: usize,
    outbox: mpsc::Sender<Outgoing>,
) -> NewSession {
    NewSession {
        id: SessionId(id),
        service: service(),
        about,
        weight,
        credit: Credit::of(credit),
        outbox,
    }
}

fn some() -> Sessions {
    Sessions::new(Arc::default(), Lane::all(1).remove(0))
}

fn term(term: u64) -> Term {
    Term::of(&Arc::default(), term)
}

fn choose(sessions: &mut Sessions) -> Option<SessionId> {
    sessions.choose(&service(), None, false, 0)
}

fn ask(sessions: &mut Sessions, id: SessionId, number: u32, payload_bytes: usize) -> Ticket {
    let payload = Bytes::from(vec![7; payload_bytes]);
    let key = key(number);
    sessions.ask(id, key.clone(), false, &Call::try_of(&key.gid, &payload), 0)
}

fn ask_empty(
    sessions: &mut Sessions,
    id: SessionId,
    number: u32,
    recovering: bool,
    now_ms: u64,
) -> Ticket {
    let key = key(number);
    sessions.ask(id, key.clone(), recovering, &Call::try_of(&key.gid, &Bytes::new()), now_ms)
}

fn calls_of(sent: &mut mpsc::Receiver<Outgoing>) -> Vec<v1::Call> {
    match sent.try_recv() {
        Ok(Outgoing::Calls { calls, .. }) => {
            let ids = calls.ids().to_vec();
            let calls = v1::Calls::read(calls.into_bytes()).unwrap();
            assert!(calls.iter().map(|call| call.call_id).eq(ids));
            calls
        }
        other => panic!("calls, not {other:?}"),
    }
}

#[test]
fn credit_at_its_limit_is_used_and_one_more_call_finds_no_session() {
    let mut sessions = some();
    let _sent = up(&mut sessions, 1, 100, 2);
    let first = ask(&mut sessions, SessionId(1), 1, 0);
    ask(&mut sessions, SessionId(1), 2, 0);
    assert_eq!(choose(&mut sessions), None);
    assert_eq!(sessions.free(&service(), 0), 0);
    assert_eq!(sessions.answered(first), Some((&service(), Some(key(1)))));
    assert_eq!(sessions.answered(first), None, "an answer counts once");
    assert_eq!(choose(&mut sessions), Some(SessionId(1)));
    assert_eq!(sessions.in_flight(), 1);
}

#[test]
fn calls_are_shared_by_weight() {
    let mut sessions = some();
    let _light = up(&mut sessions, 1, 100, 1_000);
    let _heavy = up(&mut sessions, 2, 300, 1_000);
    let mut shares = [0; 2];
    for number in 0..400 {
        let chosen = choose(&mut sessions).unwrap();
        shares[usize::from(chosen == SessionId(2))] += 1;
        ask(&mut sessions, chosen, number, 0);
    }
    assert_eq!(shares, [100, 300]);
}

#[test]
fn among_many_sessions_one_with_credit_is_found() {
    let mut sessions = some();
    let _kept: Vec<_> = (0..100).map(|id| up(&mut sessions, id, 100, 1)).collect();
    for number in 0..100 {
        let chosen = choose(&mut sessions).expect("one has credit left");
        ask(&mut sessions, chosen, number, 0);
    }
    assert_eq!(choose(&mut sessions), None);
}

#[test]
fn a_session_that_drains_gets_no_calls_and_may_still_answer() {
    let mut sessions = some();
    let _sent = up(&mut sessions, 1, 100, 8);
    let ticket = ask(&mut sessions, SessionId(1), 1, 0);
    sessions.drain(SessionId(1));
    assert_eq!(choose(&mut sessions), None);
    assert!(sessions.answered(ticket).is_some());
}

#[test]
fn the_calls_of_a_session_that_goes_are_told() {
    let mut sessions = some();
    let _sent = up(&mut sessions, 1, 100, 8);
    let ticket = ask(&mut sessions, SessionId(1), 1, 0);
    assert_eq!(sessions.down(SessionId(1), 0), vec![(ticket, key(1))]);
    assert_eq!(sessions.down(SessionId(1), 0), vec![]);
    assert_eq!((sessions.len(), sessions.in_flight()), (0, 0));
    assert_eq!(choose(&mut sessions), None);
}

#[test]
fn a_flush_sends_one_message_and_cuts_it_at_the_limits() {
    let mut sessions = some();
    let mut sent = up(&mut sessions, 1, 100, 10_000);
    for number in 0..=limit::BATCH_PER_MESSAGE_MAX as u32 {
        ask(&mut sessions, SessionId(1), number, 0);
    }
    assert!(sessions.flush(&term(1)).is_empty());
    assert_eq!(calls_of(&mut sent).len(), limit::BATCH_PER_MESSAGE_MAX);
    assert_eq!(calls_of(&mut sent).len(), 1);
    let half = BATCH_BYTES_MAX / 2;
    for number in 0..2 {
        ask(&mut sessions, SessionId(1), number, half);
    }
    assert!(sessions.flush(&term(1)).is_empty());
    assert_eq!(calls_of(&mut sent).len(), 1, "two halves and their frames are more than a whole");
    assert_eq!(calls_of(&mut sent).len(), 1);
}

#[test]
fn calls_that_do_not_fit_into_the_outbox_were_not_made() {
    let mut sessions = some();
    let _sent = up(&mut sessions, 1, 100, 8);
    for number in 0..2 {
        ask(&mut sessions, SessionId(1), number, 0);
        assert!(sessions.flush(&term(1)).is_empty());
    }
    let ticket = ask(&mut sessions, SessionId(1), 2, 0);
    assert_eq!(sessions.flush(&term(1)), vec![(ticket, key(2))]);
    assert_eq!(sessions.in_flight(), 2);
}

#[test]
fn the_credit_of_a_call_that_nobody_answers_comes_back_after_a_while() {
    let mut sessions = some();
    let _sent = up(&mut sessions, 1, 100, 1);
    let ticket = ask(&mut sessions, SessionId(1), 1, 0);
    sessions.overdue(ticket, 1_000);
    assert!(sessions.forgive(1_000 + Sessions::OVERDUE_MAX_MS - 1).is_empty());
    assert_eq!(choose(&mut sessions), None);
    assert_eq!(sessions.forgive(1_000 + Sessions::OVERDUE_MAX_MS), vec![service()]);
    assert_eq!(choose(&mut sessions), Some(SessionId(1)));
    assert_eq!(sessions.in_flight(), 0);
}

#[test]
fn an_answer_to_a_call_of_a_former_leadership_gives_back_the_credit_and_says_nothing() {
    let mut sessions = some();
    let mut sent = up(&mut sessions, 1, 100, 2);
    let made = ask(&mut sessions, SessionId(1), 1, 0);
    assert!(sessions.flush(&term(1)).is_empty());
    let unmade = ask(&mut sessions, SessionId(1), 2, 0);
    sessions.step_down();
    assert_eq!(sessions.answered(unmade), None);
    assert_eq!(sessions.answered(made), Some((&service(), None)));
    assert_eq!(sessions.in_flight(), 0);
    assert_eq!(calls_of(&mut sent).len(), 1);
    assert!(sessions.flush(&term(2)).is_empty());
    assert!(sent.try_recv().is_err());
}

fn instance(name: &str) -> About {
    About { instance: name.into(), ..About::default() }
}

/// Two sessions, `blue` in zone a and `green` in zone b, of equal weight.
fn pair(sessions: &mut Sessions) -> [mpsc::Receiver<Outgoing>; 2] {
    [(1, "blue", "a"), (2, "green", "b")].map(|(id, color, zone)| {
        let (outbox, sent) = mpsc::channel(2);
        let about = About { color: color.into(), zone: zone.into(), ..instance(color) };
        sessions.up(new(id, about, 100, 10_000, outbox), 0);
        sent
    })
}

fn decide(sessions: &mut Sessions, change: impl FnOnce(&mut v1::ServicePolicy)) {
    let mut policy = v1::ServicePolicy { service: "deposit".into(), ..Default::default() };
    change(&mut policy);
    let policies = Policies::default().with_service(policy).unwrap();
    sessions.obey(Arc::new(policies), 0);
}

/// Calls one after the other, each answered before the next, at `now_ms`: how many each of the two got.
fn shares(sessions: &mut Sessions, count: u32, now_ms: u64) -> [u32; 2] {
    let mut shares = [0; 2];
    for number in 0..count {
        let Some(id) = sessions.choose(&service(), None, false, now_ms) else { break };
        let ticket = ask_empty(sessions, id, number, false, now_ms);
        shares[id.0 as usize - 1] += 1;
        sessions.answered(ticket);
    }
    shares
}

#[test]
fn shares_follow_the_weights_also_when_nothing_is_under_way() {
    let mut sessions = some();
    let _light = up(&mut sessions, 1, 100, 1_000);
    let _heavy = up(&mut sessions, 2, 300, 1_000);
    assert_eq!(shares(&mut sessions, 400, 0), [100, 300]);
}

#[test]
fn a_weight_that_is_set_counts_from_the_next_call_and_leaves_no_debt() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    assert_eq!(shares(&mut sessions, 1_000, 0), [500, 500]);
    decide(&mut sessions, |policy| {
        let blue = v1::InstancePolicy { instance: "blue".into(), weight: 900, drained: false };
        policy.instances = vec![blue];
    });
    let [blue, green] = shares(&mut sessions, 1_000, 0);
    assert!((895..=905).contains(&blue), "{blue} and {green}");
}

#[test]
fn an_instance_that_weighed_next_to_nothing_has_its_whole_share_from_the_next_call() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    let blue = |weight| {
        move |policy: &mut v1::ServicePolicy| {
            let blue = v1::InstancePolicy { instance: "blue".into(), weight, drained: false };
            policy.instances = vec![blue];
        }
    };
    decide(&mut sessions, blue(1));
    assert_eq!(shares(&mut sessions, 101, 0), [1, 100]);
    decide(&mut sessions, blue(100));
    let [now, other] = shares(&mut sessions, 100, 0);
    assert!(now.abs_diff(other) <= 2, "{now} and {other}");
}

#[test]
fn a_preferred_zone_that_is_empty_hands_over_and_takes_back() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| policy.zones = vec!["b".into(), "a".into()]);
    assert_eq!(shares(&mut sessions, 100, 0), [0, 100]);
    sessions.down(SessionId(2), 0);
    assert_eq!(shares(&mut sessions, 100, 0), [100, 0], "the next zone of the list");
    let (outbox, _sent) = mpsc::channel(2);
    let about = About { zone: "b".into(), ..instance("green") };
    sessions.up(new(2, about, 100, 10_000, outbox), 0);
    assert_eq!(shares(&mut sessions, 100, 0), [0, 100], "it is back");
}

#[test]
fn by_least_load_the_next_call_goes_where_the_fewest_wait_for_their_weight() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    let blue = v1::InstancePolicy { instance: "blue".into(), weight: 300, drained: false };
    decide(&mut sessions, |policy| {
        policy.set_balance(v1::Balance::LeastLoad);
        policy.instances = vec![blue];
    });
    let mut under_way = [Vec::new(), Vec::new()];
    for number in 0..400 {
        let id = choose(&mut sessions).unwrap();
        let ticket = ask(&mut sessions, id, number, 0);
        under_way[id.0 as usize - 1].push(ticket);
    }
    assert!(under_way[0].len().abs_diff(300) <= 1, "none is answered: by weight");
    for ticket in under_way[1].drain(..50) {
        sessions.answered(ticket);
    }
    for number in 400..448 {
        let id = choose(&mut sessions).unwrap();
        assert_eq!(id, SessionId(2), "the one that answers");
        ask(&mut sessions, id, number, 0);
    }
}

#[test]
fn an_instance_that_is_drained_gets_nothing_and_afterwards_its_share_and_no_more() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| {
        let blue = v1::InstancePolicy { instance: "blue".into(), weight: 0, drained: true };
        policy.instances = vec![blue];
    });
    assert_eq!(shares(&mut sessions, 1_000, 0), [0, 1_000]);
    decide(&mut sessions, |policy| policy.calls_per_s = 0);
    let [blue, green] = shares(&mut sessions, 1_000, 0);
    assert!(blue.abs_diff(green) <= 2, "{blue} and {green}");
}

#[test]
fn colors_share_calls_whatever_their_sessions_weigh_and_an_unnamed_color_gets_none() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    let (outbox, _sent) = mpsc::channel(2);
    let about = About { color: "green".into(), ..instance("green-2") };
    sessions.up(new(3, about, 1_000, 10_000, outbox), 0);
    let share = |color: &str, share| v1::ColorShare { color: color.into(), share };
    decide(&mut sessions, |policy| policy.colors = vec![share("blue", 90), share("green", 10)]);
    let mut blue = 0;
    for number in 0..1_000 {
        let id = choose(&mut sessions).unwrap();
        blue += u32::from(id == SessionId(1));
        let ticket = ask(&mut sessions, id, number, 0);
        sessions.answered(ticket);
    }
    assert!((898..=902).contains(&blue), "{blue} of 1,000");
    decide(&mut sessions, |policy| policy.colors = vec![share("blue", 1)]);
    assert_eq!(shares(&mut sessions, 100, 0), [100, 0]);
    let green = sessions.choose(&service(), Some("green"), false, 0);
    assert!(green.is_some_and(|id| id != SessionId(1)), "a transaction may ask for its color");
    assert_eq!(sessions.choose(&service(), Some("red"), false, 0), Some(SessionId(1)));
}

#[test]
fn a_preferred_zone_gets_all_calls_until_it_is_full() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| policy.zones = vec!["b".into()]);
    assert_eq!(shares(&mut sessions, 100, 0), [0, 100]);
    for number in 0..10_000 {
        ask(&mut sessions, SessionId(2), number, 0);
    }
    assert_eq!(choose(&mut sessions), Some(SessionId(1)), "full: any other serves");
}

#[test]
fn a_throttle_lets_its_rate_through_and_says_when_to_come_again() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| (policy.calls_per_s, policy.burst) = (10, 5));
    assert_eq!(shares(&mut sessions, 100, 0).iter().sum::<u32>(), 5);
    assert_eq!(sessions.free(&service(), 0), 0);
    assert_eq!(sessions.next_ready_ms(), 100);
    assert!(sessions.ready(99).is_empty());
    assert_eq!(sessions.ready(100), [service()]);
    assert_eq!(shares(&mut sessions, 100, 100).iter().sum::<u32>(), 1);
}

#[test]
fn what_is_parked_behind_a_throttle_goes_on_with_the_next_token_though_nobody_asks() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| (policy.calls_per_s, policy.burst) = (10, 1));
    ask(&mut sessions, SessionId(1), 1, 0);
    assert_eq!((sessions.free(&service(), 99), sessions.next_ready_ms()), (0, 100));
    assert_eq!(sessions.ready(100), [service()]);
    assert_eq!(sessions.free(&service(), 100), 1);
    assert_eq!(sessions.next_ready_ms(), u64::MAX, "nothing took it, so nothing is waited for");
}

#[test]
fn concurrency_at_its_limit_is_used_and_one_more_call_waits_for_an_answer() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| policy.concurrency_max = 2);
    let first = ask(&mut sessions, SessionId(1), 1, 0);
    assert_eq!(sessions.free(&service(), 0), 1);
    ask(&mut sessions, SessionId(2), 2, 0);
    assert_eq!(choose(&mut sessions), None);
    sessions.answered(first);
    assert!(choose(&mut sessions).is_some());
}

#[test]
fn recovery_has_a_bound_of_its_own_and_new_calls_pass_it() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| policy.recovery_max = 1);
    let id = sessions.choose(&service(), None, true, 0).unwrap();
    let ticket = ask_empty(&mut sessions, id, 1, true, 0);
    assert_eq!(sessions.choose(&service(), None, true, 0), None);
    assert!(choose(&mut sessions).is_some());
    sessions.answered(ticket);
    assert!(sessions.choose(&service(), None, true, 0).is_some());
}

#[test]
fn a_session_that_falls_silent_is_left_alone_and_probed_and_comes_back_at_once() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| {
        let breaker = v1::BreakerPolicy { failures: 2, open_ms: 1_000, open_ms_max: 1_000 };
        policy.breaker = Some(breaker);
    });
    sessions.silent(SessionId(1), 7, 0);
    sessions.well(SessionId(2));
    sessions.silent(SessionId(1), 8, 0);
    sessions.well(SessionId(2));
    assert_eq!(shares(&mut sessions, 100, 10), [0, 100]);
    let ticket = ask_empty(&mut sessions, SessionId(1), 1, false, 1_000);
    assert_eq!(shares(&mut sessions, 10, 1_001), [0, 10], "one probe");
    sessions.answered(ticket);
    assert!(sessions.well(SessionId(1)), "its answer closes the breaker");
    let [back, other] = shares(&mut sessions, 100, 1_001);
    assert!(back.abs_diff(other) <= 2, "{back} and {other}");
}

#[test]
fn a_paused_service_gets_nothing_and_a_new_session_warms_up() {
    let mut sessions = some();
    let _kept = pair(&mut sessions);
    decide(&mut sessions, |policy| policy.paused = true);
    assert_eq!(choose(&mut sessions), None);
    decide(&mut sessions, |policy| policy.warm_up_ms = 1_000);
    let (outbox, _sent) = mpsc::channel(2);
    sessions.down(SessionId(2), 5_000);
    sessions.up(new(2, instance("new"), 100, 10_000, outbox), 5_000);
    let [old, new] = shares(&mut sessions, 1_100, 5_000);
    assert!((95..=105).contains(&new), "a tenth at first: {old} and {new}");
    sessions.forgive(6_000);
    let [old, new] = shares(&mut sessions, 1_000, 6_000);
    assert!(old.abs_diff(new) <= 4, "as any other afterwards: {old} and {new}");
}

#[test]
fn what_a_call_waits_for_is_told_in_a_word() {
    use crate::dispatcher::Held;
    let mut sessions = some();
    let held = |sessions: &mut Sessions, recovering| {
        assert_eq!(sessions.choose(&service(), None, recovering, 0), None);
        sessions.held(&service(), recovering, 0)
    };
    assert_eq!(held(&mut sessions, false), Held::Session, "nobody is there");
    let _sent = up(&mut sessions, 1, 100, 2);
    decide(&mut sessions, |policy| policy.paused = true);
    assert_eq!(held(&mut sessions, false), Held::Paused);
    decide(&mut sessions, |policy| (policy.calls_per_s, policy.burst) = (1, 1));
    ask(&mut sessions, SessionId(1), 1, 0);
    assert_eq!(held(&mut sessions, false), Held::Rate);
    decide(&mut sessions, |policy| policy.concurrency_max = 1);
    assert_eq!(held(&mut sessions, false), Held::Concurrency);
    decide(&mut sessions, |policy| policy.recovery_max = 1);
    ask_empty(&mut sessions, SessionId(1), 2, true, 0);
    assert_eq!(held(&mut sessions, true), Held::Recovery);
    assert_eq!(held(&mut sessions, false), Held::Credit, "both are taken");
    let breaker = v1::BreakerPolicy { failures: 1, open_ms: 1_000, open_ms_max: 1_000 };
    decide(&mut sessions, |policy| policy.breaker = Some(breaker));
    let opened = sessions.silent(SessionId(1), 7, 0);
    assert!(opened.instance && opened.service);
    assert_eq!(held(&mut sessions, false), Held::Breaker);
    sessions.drain(SessionId(1));
    decide(&mut sessions, |_| {});
    sessions.well(SessionId(1));
    assert_eq!(held(&mut sessions, false), Held::Session, "who is there is drained");
}

#[test]
fn a_service_that_nobody_serves_is_told_while_calls_wait_for_it() {
    use crate::dispatcher::parked::Parked;
    let (mut sessions, mut parked) = (some(), Parked::new(1_001));
    let _sent = up(&mut sessions, 1, 100, 2);
    let absent = |number: usize| Participant::parse(&format!("absent-{number:04}")).unwrap();
    assert!(parked.park(&absent(0), key(1)) && parked.park(&absent(0), key(2)));
    let told = sessions.tell("absent-0000", &parked, 0).services;
    let told: Vec<_> = told.iter().map(|one| (one.parked, one.waits_for.as_str())).collect();
    assert_eq!(told, [(2, "session")]);
    assert_eq!(sessions.tell("absent-0001", &parked, 0).services, []);
    for (waiting, services) in [(1_000, 1_001), (1_001, 1_001)] {
        (1..waiting).for_each(|number| assert!(parked.park(&absent(number), key(1))));
        let told = sessions.tell("", &parked, 0).services;
        assert_eq!((told.len(), &*told[1_000].service), (services, "deposit"));
    }
}

#[test]
fn services_that_nobody_needs_are_forgotten() {
    let mut sessions = some();
    for id in 0..100 {
        let (outbox, _sent) = mpsc::channel(2);
        let mut new = new(id, About::default(), 100, 1, outbox);
        new.service = Participant::parse(&format!("s{id}")).unwrap();
        sessions.up(new, 0);
        sessions.down(SessionId(id), 0);
    }
    assert_eq!((sessions.places.len(), sessions.served.len()), (0, 1));
}
