//! The index replay on histories that are sound, and on every kind of planted bug.

use holdfast_txn::{Answer, BranchId, BranchSpec, Labels, Mode, Op, Options, Report};

use super::*;

fn gid(name: &str) -> Gid {
    Gid::parse(name).unwrap()
}

fn begin(name: &str) -> Command {
    let branch = BranchSpec {
        participant: Participant::parse("deposit@shard-1").unwrap(),
        payload: Bytes::from(name.to_owned()),
        after: None,
        pivot: false,
    };
    let (mode, options) = (Mode::Tcc, Options::of(Mode::Tcc));
    Command::Begin {
        gid: gid(name),
        mode,
        options,
        branches: vec![branch],
        enlisted: false,
        content: None,
    }
}

fn done(name: &str) -> Command {
    let report = Report { branch: BranchId(1), op: Op::Try, answer: Answer::Done };
    Command::Report { gid: gid(name), reports: vec![report] }
}

fn log(commands: &[Command]) -> Vec<Entry> {
    let entry = |(index, command): (u64, &Command)| Entry {
        index,
        at: Timestamp(index),
        commands: vec![command.clone()],
    };
    (1..).zip(commands).map(entry).collect()
}

fn exchange(name: &str, (asked_at, told_at): (u64, u64), asked: Asked, told: Told) -> Exchange {
    Exchange { gid: gid(name), asked_at, told_at, asked, told }
}

fn submit(name: &str, at: (u64, u64), told: Told) -> Exchange {
    exchange(name, at, Asked::Begin(Content::of(&begin(name)).unwrap()), told)
}

fn look(name: &str, at: (u64, u64), told: Told) -> Exchange {
    exchange(name, at, Asked::Look, told)
}

type IsIt<'f> = &'f dyn Fn(&Finding) -> bool;

const COMMITTED: Told = Told::Decided(Decision::Commit);

/// Entry 1 begins a, 2 decides it, 3 begins b, 4 decides it.
fn two() -> Vec<Entry> {
    log(&[begin("a"), done("a"), begin("b"), done("b")])
}

fn judged(log: &[Entry], exchanges: &[Exchange]) -> Vec<Finding> {
    Replayed::of(log).judge(exchanges)
}

#[test]
fn answers_that_the_log_explains_are_no_findings() {
    let exchanges = [
        submit("a", (0, 5), Told::Nothing),
        look("a", (1, 2), Told::Absent),
        look("a", (3, 4), Told::Status(Status::Trying)),
        submit("a", (6, 10), COMMITTED),
        look("b", (11, 12), Told::Absent),
        submit("b", (11, 20), COMMITTED),
        look("a", (21, 22), Told::Status(Status::Committing)),
        look("b", (21, 22), Told::Known),
        submit("c", (5, 30), Told::Nothing),
    ];
    assert_eq!(judged(&two(), &exchanges), []);
}

#[test]
fn every_planted_bug_is_found() {
    let never = |found: &Finding| matches!(found, Finding::NeverTrue(_));
    let no_longer = |found: &Finding| matches!(found, Finding::NoLonger { .. });
    let early = |found: &Finding| matches!(found, Finding::TooEarly { .. });
    let not_asked = |found: &Finding| matches!(found, Finding::NotAsked { .. });
    let rolled_back = Told::Decided(Decision::RollBack);
    let mut rival = submit("a", (0, 9), COMMITTED);
    rival.asked = Asked::Begin(Content { branches: Vec::new(), tags: Labels::EMPTY });
    let refused = Told::Refused { code: "HF2001", index: 2, place: 0 };
    let bugs: Vec<(&str, Vec<Entry>, Vec<Exchange>, IsIt<'_>)> = vec![
        ("another decision is told", two(), vec![submit("a", (0, 9), rolled_back)], &never),
        (
            "a decision is told and lost",
            log(&[begin("a")]),
            vec![submit("a", (0, 9), COMMITTED)],
            &never,
        ),
        (
            "a begin is acknowledged and lost",
            log(&[begin("b")]),
            vec![submit("a", (0, 9), Told::Known)],
            &never,
        ),
        ("other content is taken for a repeat", two(), vec![rival.clone()], &never),
        (
            "a refusal that the log does not give",
            two(),
            vec![exchange("a", (0, 9), Asked::Change, refused)],
            &never,
        ),
        (
            "a stale look",
            two(),
            vec![submit("a", (0, 5), COMMITTED), look("a", (6, 7), Told::Status(Status::Trying))],
            &no_longer,
        ),
        (
            "a look that is stale by another transaction",
            two(),
            vec![
                submit("a", (0, 9), Told::Nothing),
                submit("b", (0, 5), COMMITTED),
                look("a", (6, 7), Told::Absent),
            ],
            &no_longer,
        ),
        (
            "a look that goes back",
            two(),
            vec![
                submit("a", (0, 9), Told::Nothing),
                look("a", (1, 2), Told::Status(Status::Committing)),
                look("a", (3, 4), Told::Status(Status::Trying)),
            ],
            &no_longer,
        ),
        (
            "the log has it before it was asked for",
            two(),
            vec![submit("b", (0, 5), COMMITTED), submit("a", (6, 9), COMMITTED)],
            &early,
        ),
        (
            "nobody asked for what is begun",
            two(),
            vec![{
                rival.told = Told::Nothing;
                rival
            }],
            &not_asked,
        ),
    ];
    for (bug, log, exchanges, is_it) in bugs {
        let found = judged(&log, &exchanges);
        assert!(found.iter().any(is_it), "{bug}: {found:?}");
    }
}

#[test]
fn logs_of_nodes_are_one_log_or_a_finding() {
    let (whole, mut other) = (two(), two());
    let short = whole[..2].to_vec();
    assert_eq!(agreed(&[whole.clone(), whole.clone(), short.clone()]), Ok(whole.clone()));
    assert_eq!(agreed(&[whole.clone(), short.clone(), short.clone()]), Ok(short));
    other[3].at = Timestamp(99);
    assert_eq!(agreed(&[whole, other]), Err(Finding::Logs { index: 4 }));
}

#[test]
fn no_more_findings_are_kept_than_help() {
    let wrong = vec![submit("a", (0, 9), Told::Absent); FINDINGS_MAX + 1];
    assert_eq!(judged(&two(), &wrong).len(), 0, "it was asked before it began");
    let wrong = vec![look("c", (0, 9), Told::Known); FINDINGS_MAX];
    assert_eq!(judged(&two(), &wrong).len(), FINDINGS_MAX);
    let wrong = vec![look("c", (0, 9), Told::Known); FINDINGS_MAX + 1];
    assert_eq!(judged(&two(), &wrong).len(), FINDINGS_MAX);
}
