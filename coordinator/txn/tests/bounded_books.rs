//! The books at their limits, and one past them.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use bytes::Bytes;
use holdfast_txn::{
    Act, Answer, BranchId, BranchSpec, Command, Gid, Machine, Mode, Op, Options, Participant,
    Refusal, Rejection, Remedy, Report, Status, Timestamp, limit,
};

fn gid(number: usize) -> Gid {
    Gid::parse(&format!("g{number}")).unwrap()
}

/// A transaction that is decided and whose only branch refuses its confirm.
fn needs_attention(machine: &mut Machine, number: usize) {
    let (mode, options) = (Mode::Tcc, Options::of(Mode::Tcc));
    let participant = Participant::parse("deposit").unwrap();
    let branch = BranchSpec { participant, payload: Bytes::new(), after: None, pivot: false };
    let report = |op, answer| Command::Report {
        gid: gid(number),
        reports: vec![Report { branch: BranchId(1), op, answer }],
    };
    for command in [
        Command::Begin {
            gid: gid(number),
            mode,
            options,
            branches: vec![branch],
            enlisted: false,
            content: None,
        },
        report(Op::Try, Answer::Done),
        report(Op::Confirm, Answer::Refused(Refusal::default())),
    ] {
        machine.apply(Timestamp(1), command).unwrap();
    }
    assert_eq!(machine.get(&gid(number)).unwrap().status, Status::NeedsAttention);
}

fn propose(machine: &mut Machine, at: u64, number: usize) -> Result<(), Rejection> {
    let act = Act::Propose(Remedy::MarkDone(BranchId(1)));
    let (by, reason) = ("user/alice".to_owned(), "seen at the database".to_owned());
    let command = Command::Operate { gid: gid(number), act, by, reason };
    machine.apply(Timestamp(at), command).map(drop)
}

#[test]
fn as_many_proposals_wait_as_allowed_and_one_more_only_when_one_is_over() {
    let mut machine = Machine::new();
    for number in 0..=limit::PROPOSALS_MAX {
        needs_attention(&mut machine, number);
    }
    for number in 0..limit::PROPOSALS_MAX {
        propose(&mut machine, 1, number).unwrap();
    }
    let before = machine.state_hash();
    let refused = propose(&mut machine, 1, limit::PROPOSALS_MAX).unwrap_err();
    assert_eq!(refused.code(), "HF2011", "{refused}");
    assert!(refused.to_string().contains("1024 proposals wait already"), "{refused}");
    assert_eq!(machine.state_hash(), before, "what is refused changes nothing");
    // One that is there may still be said otherwise by who proposed it.
    let act = Act::Propose(Remedy::Abandon);
    let (by, reason) = ("user/alice".to_owned(), "the bank is gone".to_owned());
    let other = Command::Operate { gid: gid(7), act, by, reason };
    machine.apply(Timestamp(1), other).unwrap();
    assert_eq!(machine.books().proposals.len(), limit::PROPOSALS_MAX);
    // One that is carried out makes room, and so does time.
    let (by, reason) = ("user/bob".to_owned(), "seen, too".to_owned());
    let approve = Command::Operate { gid: gid(0), act: Act::Approve, by, reason };
    machine.apply(Timestamp(2), approve).unwrap();
    propose(&mut machine, 2, limit::PROPOSALS_MAX).unwrap();
    assert_eq!(machine.books().proposals.len(), limit::PROPOSALS_MAX);
    propose(&mut machine, 2 + limit::PROPOSAL_MS, 1).unwrap();
    assert_eq!(machine.books().proposals.len(), 1, "all others are over");
}
