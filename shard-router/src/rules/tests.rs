//! How rules follow each other, and what is held by them.

use super::*;
use crate::config::{Authentication, Endpoint, Limits, SourceConfig};

const HOUR: Duration = Duration::from_secs(3600);

fn config(sources: &[&str]) -> RouterConfig {
    let source = |name: &&str| SourceConfig {
        name: (*name).into(),
        addresses: vec![Endpoint::parse("127.0.0.1:1")],
        database: None,
        user: None,
        password: None,
        weak_authentication: false,
        tls: None,
    };
    RouterConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        workers: 1,
        rules: None,
        sources: sources.iter().map(source).collect(),
        database: None,
        authentication: Authentication::TrustLoopback,
        tls: None,
        require_tls: false,
        coordinator: None,
        secret: Vec::new(),
        limits: Limits::default(),
    }
}

/// Slots up to `last` on the first source, the others on the second.
fn topology(sources: [&str; 2], last: u16, epoch: u64) -> Topology {
    Topology::parse(&text(sources, last)).expect("good rules").at_epoch(epoch)
}

fn text([one, two]: [&str; 2], last: u16) -> String {
    format!(
        "[group.g]\nkey = \"id\"\nfunction = \"mod\"\nslots = [\n\
         {{ first = 0, last = {last}, shard = \"a\" }},\n\
         {{ first = {}, last = 1023, shard = \"b\" }},\n]\n[table.t]\ngroup = \"g\"\n\
         [shard.a]\nsource = \"{one}\"\n[shard.b]\nsource = \"{two}\"\n\
         [source.{one}]\naddress = \"127.0.0.1:1\"\n[source.{two}]\naddress = \"127.0.0.1:2\"\n",
        last + 1
    )
}

fn placed(last: u16, epoch: u64) -> Placed {
    let config = config(&["pg-1", "pg-2", "pg-0"]);
    Placed::new(&config, topology(["pg-1", "pg-2"], last, epoch)).expect("they fit")
}

#[test]
fn a_source_of_the_rules_is_found_by_its_name_among_those_of_the_configuration() {
    let placed = placed(511, 1);
    assert_eq!(placed.place(SourceIndex(0)), SourceIndex(1));
    assert_eq!(placed.place(SourceIndex(1)), SourceIndex(2));
    let wrong = Placed::new(&config(&["pg-1"]), topology(["pg-1", "pg-2"], 511, 1));
    assert!(wrong.expect_err("pg-2 is missing").contains("pg-2"));
}

#[test]
fn rules_never_go_back_an_epoch() {
    let rules = Rules::new(placed(511, 0), false);
    assert!(rules.take(placed(511, 0), false), "the file counts until the log speaks");
    assert!(rules.take(placed(511, 1), true), "the log's first rules");
    assert!(!rules.take(placed(100, 1), false), "a file behind the log");
    assert!(!rules.take(placed(100, 1), true), "the same epoch again");
    assert!(rules.take(placed(100, 3), true));
    assert!(!rules.take(placed(511, 2), true), "an older one, from a node that lags behind");
    assert_eq!(rules.in_force().placed.rules.epoch(), 3);
}

#[test]
fn plans_are_kept_until_a_row_moves_that_they_may_have_touched() {
    let rules = Rules::new(placed(511, 1), true);
    let kept = || rules.in_force().keeps_since;
    rules.take(placed(511, 2), true);
    assert_eq!(kept(), 1);
    rules.take(placed(510, 3), true);
    assert_eq!(kept(), 3);
    rules.take(moving(4, 510, "frozen"), true);
    assert_eq!(rules.in_force().unfrozen, 3);
    assert_eq!(kept(), 3);
    rules.take(moving(5, 509, "settling"), true);
    assert_eq!(rules.in_force().unfrozen, 5);
    assert_eq!(kept(), 4, "what was planned while slot 510 was frozen has not touched it");
    rules.take(placed(510, 6), true);
    assert_eq!(kept(), 6, "and it came back, which is not to be taken for never having left");
}

/// Slot 510 on its way from pg-1 to pg-2.
fn moving(epoch: u64, last: u16, state: &str) -> Placed {
    let hold = if state == "frozen" { "hold_ms = 2000" } else { "" };
    let text = text(["pg-1", "pg-2"], last)
        + &format!(
            "[moving]\nid = \"m\"\ngroup = \"g\"\nslots = [{{ first = 510, last = 510 }}]\n\
             from = \"pg-1\"\nto = \"pg-2\"\nstate = \"{state}\"\n{hold}\n"
        );
    let rules = Topology::parse(&text).expect("good rules").at_epoch(epoch);
    Placed::new(&config(&["pg-1", "pg-2"]), rules).expect("they fit")
}

#[test]
fn slots_wait_until_what_the_move_prepared_has_ended_at_both_sources() {
    let rules = Rules::new(placed(510, 1), true);
    let waits = || rules.in_force().unsettled > 0;
    let id = MoveId::parse("m").expect("a name");
    let [from, to] = ["pg-1", "pg-2"].map(|name| SourceId::parse(name).expect("a name"));
    rules.take(moving(2, 510, "frozen"), true);
    assert!(waits() && rules.unsettled().is_empty());
    assert_eq!(rules.fate(&id), MoveFate::Leave);
    rules.take(moving(3, 509, "settling"), true);
    assert_eq!(rules.fate(&id), MoveFate::Commit);
    assert_eq!(rules.unsettled().len(), 2);
    rules.ended_at(&id, &to);
    rules.ended_at(&id, &to);
    assert!(waits(), "it is prepared at the other one, perhaps");
    // The mover goes on, and does not wait for this router.
    rules.take(placed(509, 4), true);
    assert!(waits() && rules.unsettled().len() == 1);
    let before = rules.version();
    rules.ended_at(&id, &from);
    assert!(!waits() && rules.version() > before);
    // Not for a snapshot that is older; until there is none.
    let since = rules.in_force().settled_since;
    assert_eq!((since, rules.in_force().placed.rules.awaited().len()), (rules.version(), 1));
    rules.forget(since - 1);
    assert_eq!(rules.in_force().settled_since, since);
    rules.forget(since);
    assert!(rules.in_force().placed.rules.awaited().is_empty());
    assert_eq!(rules.in_force().settled_since, 0);
}

#[test]
fn a_step_whose_decision_was_not_seen_is_settled_all_the_same_and_one_that_was_thawed_is_none() {
    for (rules_behind, waits) in [(placed(509, 4), true), (placed(510, 3), false)] {
        let rules = Rules::new(moving(2, 510, "frozen"), true);
        rules.take(rules_behind, true);
        assert_eq!(rules.in_force().unsettled, usize::from(waits));
        assert_eq!(rules.unsettled().is_empty(), !waits);
    }
    let rules = Rules::new(moving(3, 509, "settling"), true);
    assert_eq!(rules.unsettled().len(), 2, "a router that starts meanwhile knows it too");
}

#[test]
fn as_many_versions_are_remembered_as_the_limit_and_not_one_more() {
    let rules = Rules::new(moving(1, 510, "frozen"), true);
    let id = MoveId::parse("m").expect("a name");
    let last = moves::REMEMBERED_MAX as u64;
    (2..=last).for_each(|epoch| assert!(rules.take(placed(510, epoch), true)));
    assert_eq!(rules.fate(&id), MoveFate::RollBack);
    rules.take(placed(510, last + 1), true);
    assert_eq!(rules.fate(&id), MoveFate::Unknown, "its epoch is forgotten");
}

#[test]
fn rules_that_cannot_be_taken_hold_the_router_only_where_rows_have_moved() {
    let rules = Rules::new(placed(511, 1), true);
    let alike = topology(["pg-1", "pg-2"], 511, 2);
    rules.leave(2, Some(&alike), "a reason".to_owned());
    assert!(rules.in_force().held.is_none());
    assert_eq!(rules.known_epoch(), 2);
    rules.leave(3, Some(&topology(["pg-1", "pg-9"], 511, 3)), "another".to_owned());
    assert_eq!(rules.in_force().held.map(|held| held.code), Some("HF3224"));
    // Confirmed or not, it stays so until it has rules that it can take.
    rules.confirm(Instant::now(), HOUR);
    assert!(rules.in_force().held.is_some());
    assert!(rules.take(placed(511, 4), true));
    assert!(rules.in_force().held.is_none());
    rules.leave(5, None, "not readable".to_owned());
    assert!(rules.in_force().held.is_some());
}

#[test]
fn a_log_that_went_back_holds_the_router() {
    let rules = Rules::new(placed(511, 0), false);
    rules.went_back(0);
    assert!(rules.in_force().held.is_none(), "the file is no word of the log");
    rules.take(placed(511, 4), true);
    rules.went_back(4);
    assert!(rules.in_force().held.is_none());
    rules.went_back(3);
    assert_eq!(rules.in_force().held.map(|held| held.code), Some("HF3224"));
}

#[test]
fn rules_that_nobody_confirms_are_held_until_somebody_does() {
    let rules = Rules::new(placed(511, 1), true);
    rules.hold_as_old(Duration::from_secs(1));
    let before = rules.version();
    assert_eq!(rules.in_force().held.map(|held| held.code), Some("HF3222"));
    rules.confirm(Instant::now(), Duration::ZERO);
    assert!(rules.in_force().held.is_some(), "no lease was granted");
    rules.confirm(Instant::now(), HOUR);
    assert!(rules.in_force().held.is_none());
    assert!(rules.version() > before, "workers hear of it");
    assert!(rules.good_for(HOUR) > HOUR / 2);
    assert_eq!(rules.good_for(Duration::ZERO), Duration::ZERO);
}
