//! Policies: each limit at the limit and one past it, and what a document keeps.

use super::*;

fn service() -> v1::ServicePolicy {
    v1::ServicePolicy { service: "deposit".into(), calls_per_s: 5, ..Default::default() }
}

fn with(change: impl FnOnce(&mut v1::ServicePolicy)) -> Result<Policies, Fault> {
    let mut policy = service();
    change(&mut policy);
    Policies::default().with_service(policy)
}

fn instance(number: usize) -> v1::InstancePolicy {
    v1::InstancePolicy { instance: format!("i{number}"), weight: 1, drained: false }
}

#[test]
fn each_limit_holds_at_the_limit_and_not_one_past_it() {
    assert!(with(|p| p.calls_per_s = limit::RATE_MAX).is_ok());
    assert!(with(|p| p.concurrency_max = limit::CONCURRENCY_MAX).is_ok());
    assert!(with(|p| p.warm_up_ms = limit::PAUSE_MS_MAX).is_ok());
    assert!(with(|p| p.zones = vec!["z".repeat(limit::WORD_MAX); limit::WORDS_MAX]).is_ok());
    assert!(with(|p| p.instances = (0..limit::INSTANCES_MAX).map(instance).collect()).is_ok());
    for refused in [
        with(|p| p.calls_per_s = limit::RATE_MAX + 1),
        with(|p| p.burst = limit::RATE_MAX + 1),
        with(|p| p.concurrency_max = limit::CONCURRENCY_MAX + 1),
        with(|p| p.recovery_max = limit::CONCURRENCY_MAX + 1),
        with(|p| p.warm_up_ms = limit::PAUSE_MS_MAX + 1),
        with(|p| p.zones = vec!["z".into(); limit::WORDS_MAX + 1]),
        with(|p| p.zones = vec!["z".repeat(limit::WORD_MAX + 1)]),
        with(|p| p.instances = (0..=limit::INSTANCES_MAX).map(instance).collect()),
        with(|p| p.instances = vec![instance(1), instance(1)]),
        with(|p| p.service = "Deposit".into()),
        with(|p| p.balance = 7),
        with(|p| p.colors = vec![v1::ColorShare { color: "blue".into(), share: 0 }]),
        with(|p| p.breaker = Some(v1::BreakerPolicy { failures: 1, open_ms: 0, open_ms_max: 0 })),
        with(|p| p.breaker = Some(v1::BreakerPolicy { failures: 1, open_ms: 9, open_ms_max: 8 })),
    ] {
        assert_eq!(refused.unwrap_err().code, "HF2301");
    }
}

#[test]
fn an_endpoint_is_an_address_of_a_host_and_nothing_more() {
    let at = |address: &str| {
        let endpoint = v1::Endpoint { address: address.to_owned(), credit: 0 };
        with(|p| p.endpoint = Some(endpoint)).is_ok()
    };
    for good in ["http://127.0.0.1:8080", "http://loyalty:80/holdfast", "grpc://loyalty:9000"] {
        assert!(at(good), "{good}");
    }
    for bad in [
        "",
        "127.0.0.1:8080",
        "ftp://a:1",
        "http://user@a:1",
        "http://a:1/?q=1",
        "grpc://a:1/path",
        "http://a",
        &format!("http://{}:1", "a".repeat(limit::ADDRESS_BYTES_MAX)),
    ] {
        assert!(!at(bad), "{bad}");
    }
}

#[test]
fn the_last_name_has_room_and_one_more_has_not() {
    let mut policies = Policies::default();
    for number in 0..limit::NAMES_MAX {
        let policy = v1::ServicePolicy { service: format!("s{number}"), ..service() };
        let name = Participant::parse(&policy.service).unwrap();
        policies.services.insert(name, policy);
    }
    let known = v1::ServicePolicy { service: "s1".into(), ..service() };
    assert!(policies.with_service(known).is_ok());
    assert_eq!(policies.with_service(service()).unwrap_err().code, "HF2301");
}

#[test]
fn a_policy_that_says_nothing_is_forgotten() {
    let policies = with(|_| {}).unwrap();
    assert_eq!(policies.services.len(), 1);
    let nothing = v1::ServicePolicy { service: "deposit".into(), ..Default::default() };
    assert!(policies.with_service(nothing).unwrap().services.is_empty());
}

#[test]
fn a_document_survives_the_way_and_a_bad_one_is_refused() {
    let mut policies = with(|p| p.paused = true).unwrap();
    policies.version = Version { term: 3, revision: 9 };
    let caller = v1::CallerPolicy { caller: "app".into(), requests_per_s: 9, ..Default::default() };
    let policies = policies.with_caller(caller).unwrap();
    assert_eq!(Policies::from_wire(policies.to_wire()), Ok(policies.clone()));
    let mut wire = policies.to_wire();
    wire.callers[0].caller.clear();
    assert!(Policies::from_wire(wire).is_err());
}

#[test]
fn a_callers_bounds_are_taken_at_their_limits_and_refused_one_past() {
    let most = limit::CALLER_MAX;
    let at_the_limit = v1::CallerPolicy {
        caller: "x".repeat(most),
        requests_per_s: limit::RATE_MAX,
        burst: limit::RATE_MAX,
        concurrency_max: limit::CONCURRENCY_MAX,
        breaker: Some(v1::BreakerPolicy {
            failures: limit::FAILURES_MAX,
            open_ms: limit::PAUSE_MS_MAX,
            open_ms_max: limit::PAUSE_MS_MAX,
        }),
    };
    let set = |policy: &v1::CallerPolicy| Policies::default().with_caller(policy.clone());
    assert!(set(&at_the_limit).is_ok());
    let past: [fn(&mut v1::CallerPolicy); 7] = [
        |one| one.caller.push('x'),
        |one| one.requests_per_s += 1,
        |one| one.burst += 1,
        |one| one.concurrency_max += 1,
        |one| one.breaker.as_mut().unwrap().failures += 1,
        |one| one.breaker.as_mut().unwrap().open_ms_max += 1,
        |one| one.caller = "user/al ice".to_owned(),
    ];
    for (n, change) in past.into_iter().enumerate() {
        let mut policy = at_the_limit.clone();
        change(&mut policy);
        assert_eq!(set(&policy).unwrap_err().code, "HF2301", "change {n}");
    }
}
