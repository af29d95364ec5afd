//! Entries and snapshots as former versions wrote them: kept bytes, which every later version must read, to the same state.
//!
//! A file is written once, with `UPDATE_GOLDENFILES=1`, by the version that brings its format; afterwards it is never written again.

use std::{collections::BTreeMap, fs, path::PathBuf};

use bytes::Bytes;
use holdfast_txn::{
    Act, Answer, BranchId, BranchSpec, Captures, Command, Decision, Deed, Gid, Machine, Mode, Op,
    Options, Participant, Recovery, Refusal, Remedy, Report, Timestamp,
};

use super::{EncodedCommand, decode_entry, decode_snapshot, encode_entry, encode_snapshot};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/record/golden").join(name)
}

/// The bytes of that file; written first if it is not there and golden files are updated.
fn kept(name: &str, bytes: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = file(name);
    if !path.exists() && std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("it can be made");
        fs::write(&path, bytes()).expect("it can be written");
    }
    fs::read(&path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

fn gid(text: &str) -> Gid {
    Gid::parse(text).expect("a gid")
}

fn spec(participant: &str) -> BranchSpec {
    BranchSpec {
        participant: Participant::parse(participant).expect("a name"),
        payload: Bytes::from_static(b"50.00 EUR"),
        after: None,
        pivot: false,
    }
}

fn begin(name: &str, mode: Mode, branches: &[&str]) -> Command {
    let mut options = Options::of(mode);
    options.headers.insert("traceparent", "00-ab");
    options.tags.insert("run", "payroll");
    let branches: Vec<_> = branches.iter().map(|one| spec(one)).collect();
    let enlisted = branches.is_empty();
    Command::Begin { gid: gid(name), mode, options, branches, enlisted, content: None }
}

/// One of each kind that format 1 has.
fn commands_of_format_1() -> Vec<Command> {
    let said = |branch, op, answer| Report { branch: BranchId(branch), op, answer };
    let no = Answer::Refused(Refusal { code: "closed".to_owned(), message: "closed".to_owned() });
    let silence = Answer::GivenUp { attempts: 3, last: "silence".to_owned() };
    let report = |name, reports| Command::Report { gid: gid(name), reports };
    let mut pivot = spec("parcel@b");
    (pivot.after, pivot.pivot) = (Some(vec![BranchId(1)]), true);
    vec![
        begin("tcc", Mode::Tcc, &["debit@a", "credit@b"]),
        begin("saga", Mode::Saga, &["order@a", "parcel@b"]),
        begin("grows", Mode::Saga, &[]),
        Command::AddBranch { gid: gid("grows"), branch: BranchId(1), spec: spec("order@a") },
        Command::AddBranch { gid: gid("grows"), branch: BranchId(2), spec: pivot },
        Command::Submit { gid: gid("grows"), captures: Captures::default() },
        report("tcc", vec![said(1, Op::Try, Answer::Done), said(2, Op::Try, Answer::Done)]),
        report("tcc", vec![said(1, Op::Confirm, Answer::Done), said(2, Op::Confirm, silence)]),
        Command::Retry { gid: gid("tcc"), reason: "the database is back".to_owned() },
        report("saga", vec![said(1, Op::Action, Answer::Done), said(2, Op::Action, no)]),
        report("saga", vec![said(1, Op::Compensate, Answer::Done)]),
        Command::RollBack { gid: gid("grows"), reason: "enough".to_owned() },
        Command::Expire { gid: gid("grows") },
    ]
}

/// What format 2 has beyond.
fn commands_of_format_2() -> Vec<Command> {
    let finish =
        |branches| Command::Finish { gid: gid("xa"), branches, decision: Decision::Commit };
    vec![
        begin("xa", Mode::Xa, &["pg-1", "pg-2"]),
        finish(vec![BranchId(2)]),
        Command::Fence { gid: gid("orphan"), reason: "nobody knows it".to_owned() },
        begin("trip", Mode::Tcc, &["travel@a"]),
        Command::Nest {
            gid: gid("trip"),
            parent: BranchId(1),
            branch: BranchId(2),
            spec: spec("hotel@b"),
        },
    ]
}

/// What format 3 has beyond.
fn commands_of_format_3() -> Vec<Command> {
    let said = |branch, op, answer| Report { branch: BranchId(branch), op, answer };
    let silence = || Answer::GivenUp { attempts: 3, last: "silence".to_owned() };
    let report = |reports| Command::Report { gid: gid("tcc"), reports };
    let operate = |act, by: &str| Command::Operate {
        gid: gid("tcc"),
        act,
        by: by.to_owned(),
        reason: "ticket 7311".to_owned(),
    };
    let rules = |text: &str, expected| Command::SetRules {
        text: text.to_owned(),
        expected,
        by: "user/dora".to_owned(),
        reason: "shard-2 is full".to_owned(),
    };
    let deed = Deed {
        by: "user/sam".to_owned(),
        act: "cluster.add".to_owned(),
        about: "node 4".to_owned(),
        words: "done".to_owned(),
    };
    vec![
        begin("tcc", Mode::Tcc, &["debit@a", "credit@b"]),
        report(vec![said(1, Op::Try, Answer::Done), said(2, Op::Try, Answer::Done)]),
        report(vec![said(2, Op::Confirm, silence())]),
        operate(Act::Retry, "user/alice"),
        report(vec![said(2, Op::Confirm, silence())]),
        operate(Act::Propose(Remedy::MarkDone(BranchId(2))), "user/alice"),
        operate(Act::Approve, "user/bob"),
        report(vec![said(1, Op::Confirm, silence())]),
        operate(Act::Propose(Remedy::Abandon), "user/bob"),
        Command::Operate {
            gid: gid("tcc"),
            act: Act::Propose(Remedy::BelieveRefused(BranchId(1))),
            by: "user/bob".to_owned(),
            reason: "refused by the machine".to_owned(),
        },
        operate(Act::RollBack, "user/alice"),
        rules("first", 0),
        rules("second", 1),
        Command::Note { deed },
    ]
}

/// What format 4 has beyond.
fn commands_of_format_4() -> Vec<Command> {
    let captures = BTreeMap::from([(BranchId(1), Bytes::from_static(b"less"))]);
    vec![
        begin("card", Mode::Tcc, &[]),
        Command::AddBranch { gid: gid("card"), branch: BranchId(1), spec: spec("hold@a") },
        Command::Submit { gid: gid("card"), captures: captures.into() },
    ]
}

/// What format 5 has beyond.
fn commands_of_format_5() -> Vec<Command> {
    let operate = |name, act, by: &str| Command::Operate {
        gid: gid(name),
        act,
        by: by.to_owned(),
        reason: "ticket 7311".to_owned(),
    };
    let stuck = |name| {
        let mut begun = begin(name, Mode::Saga, &["order@a", "payment@b"]);
        if let Command::Begin { options, .. } = &mut begun {
            options.recovery = Recovery::Forward;
        }
        let answer = Answer::GivenUp { attempts: 3, last: "silence".to_owned() };
        let reports = vec![Report { branch: BranchId(1), op: Op::Action, answer }];
        let refused = Act::Propose(Remedy::MarkRefused(BranchId(1)));
        let silent = Command::Report { gid: gid(name), reports };
        [begun, silent, operate(name, refused, "user/alice")]
    };
    let approved = operate("turns", Act::Approve, "user/bob");
    stuck("turns").into_iter().chain([approved]).chain(stuck("waits")).collect()
}

/// What format 6 has beyond.
fn commands_of_format_6() -> Vec<Command> {
    let traced = |name, context| {
        let mut begun = begin(name, Mode::Tcc, &["debit@a", "credit@b"]);
        if let Command::Begin { options, .. } = &mut begun {
            options.headers.insert("traceparent", context);
        }
        begun.hashed()
    };
    let usual = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
    vec![
        traced("usual", usual),
        traced("later", later),
        begin("plain", Mode::Saga, &["order@a"]).hashed(),
    ]
}

fn entry(commands: &[Command]) -> Vec<u8> {
    let encoded: Vec<_> = commands.iter().map(EncodedCommand::of).collect();
    encode_entry(Timestamp(1_700_000_000_000), encoded.iter()).to_vec()
}

fn machine(commands: Vec<Command>) -> Machine {
    let mut machine = Machine::new();
    for command in commands {
        let _ = machine.apply(Timestamp(1_700_000_000_000), command);
    }
    machine
}

fn hold(format: u32, commands: Vec<Command>) {
    let bytes = kept(&format!("entry-{format}.bin"), || entry(&commands));
    assert_eq!(bytes[..2], [8, u8::try_from(format).expect("a small number")], "its format");
    let read = decode_entry(&bytes.into()).expect("a kept entry is read");
    assert_eq!(read, (Timestamp(1_700_000_000_000), commands.clone()));
    let machine = machine(commands);
    let bytes =
        kept(&format!("snapshot-{format}.bin"), || encode_snapshot(&machine.snapshot(), 7, || ()));
    let (snapshot, index) = decode_snapshot(&bytes).expect("a kept snapshot is read");
    assert_eq!((index, &snapshot), (7, &machine.snapshot()));
    assert_eq!(Machine::restore(snapshot).state_hash(), machine.state_hash());
}

#[test]
fn entries_and_snapshots_of_format_1_are_read() {
    hold(1, commands_of_format_1());
}

#[test]
fn entries_and_snapshots_of_format_2_are_read() {
    hold(2, commands_of_format_2());
}

#[test]
fn entries_and_snapshots_of_format_3_are_read() {
    hold(3, commands_of_format_3());
}

#[test]
fn entries_and_snapshots_of_format_4_are_read() {
    hold(4, commands_of_format_4());
}

#[test]
fn entries_and_snapshots_of_format_5_are_read() {
    hold(5, commands_of_format_5());
}

#[test]
fn entries_and_snapshots_of_format_6_are_read() {
    hold(6, commands_of_format_6());
}

/// A node of the version before still reads what it must, while nothing new is asked for.
#[test]
fn what_format_1_can_say_is_written_in_format_1() {
    assert_eq!(entry(&commands_of_format_1())[..2], [8, 1]);
    let snapshot = machine(commands_of_format_1()).snapshot();
    assert_eq!(encode_snapshot(&snapshot, 7, || ())[..2], [8, 1]);
    assert_eq!(entry(&commands_of_format_2())[..2], [8, 2]);
    let snapshot = machine(commands_of_format_3()).snapshot();
    assert_eq!(encode_snapshot(&snapshot, 7, || ())[..2], [8, 3]);
}
