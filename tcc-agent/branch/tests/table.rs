//! The whole verdict table: every record that can be thought of, every operation, every order of calls.

mod model;

use holdfast_branch::{
    Disorder, Op, Outcome, Record, Row, Settlement, Verdict, claims, decide, decide_anew, settle,
};
use model::Branch;
use proptest::prelude::*;

fn refusal(code: &str) -> Outcome {
    Outcome::Refused { code: code.into(), message: "not enough money".into() }
}

/// Every row that an operation can have, whoever wrote it, and none.
fn rows_of(op: Op) -> Vec<Option<Row>> {
    let mut rows = vec![None];
    for by in Op::ALL {
        for outcome in [Outcome::Done, Outcome::Working, refusal("AM04")] {
            rows.push(Some(Row { op, by, outcome }));
        }
    }
    rows
}

/// Every record over the operations of one mode, also those that no sequence of calls leads to.
fn records(ops: &[Op]) -> Vec<Record> {
    let mut records = vec![Record::default()];
    for &op in ops {
        records = records
            .iter()
            .flat_map(|record| {
                rows_of(op).into_iter().map(move |row| {
                    let mut record = record.clone();
                    row.into_iter().for_each(|row| record.put(row));
                    record
                })
            })
            .collect();
    }
    records
}

#[test]
fn no_record_whatsoever_admits_an_effect_twice_or_against_what_was_recorded() {
    let tcc = records(&[Op::Try, Op::Confirm, Op::Cancel]);
    let saga = records(&[Op::Action, Op::Compensate]);
    assert_eq!((tcc.len(), saga.len()), (4096, 256));
    for record in tcc.iter().chain(&saga) {
        for op in Op::ALL {
            let verdict = decide(op, record);
            let own = record.row(op).filter(|row| row.by == op);
            let context = format!("{op} after {record:?} is {verdict:?}");
            match &verdict {
                Verdict::Proceed => {
                    assert!(own.is_none_or(|row| row.outcome == Outcome::Working), "{context}");
                    match op {
                        Op::Try => assert!(record.row(Op::Cancel).is_none(), "{context}"),
                        Op::Action => assert!(record.row(Op::Compensate).is_none(), "{context}"),
                        Op::Confirm => {
                            assert!(own.is_some() || record.row(Op::Cancel).is_none(), "{context}");
                        }
                        Op::Cancel => {
                            let confirm = record.row(Op::Confirm);
                            assert!(confirm.is_none_or(|row| row.by != Op::Confirm), "{context}");
                        }
                        Op::Compensate => {}
                        Op::Prepare | Op::Commit | Op::Rollback => panic!("{context}"),
                    }
                }
                Verdict::Repeat(outcome) => {
                    let row = record.row(op).expect("a repeat repeats a row");
                    assert_eq!(&row.outcome, outcome, "{context}");
                    assert_ne!(outcome, &Outcome::Working, "{context}");
                }
                Verdict::Empty => assert!(op.is_undo() && record.row(op).is_none(), "{context}"),
                Verdict::Late => assert!(op.is_first_phase(), "{context}"),
                Verdict::Disorder(Disorder::OtherMode) => {
                    assert!(record.rows().any(|row| row.op.is_saga() != op.is_saga()), "{context}");
                }
                Verdict::Disorder(_) => assert!(!op.is_saga(), "{context}"),
            }
        }
    }
}

#[test]
fn claims_come_by_name_and_hold_the_operation_itself() {
    for op in Op::ALL {
        assert!(claims(op).is_sorted(), "{op}");
        assert!(claims(op).contains(&op), "{op}");
        assert_eq!(Op::parse(op.as_str()), Ok(op));
    }
    // PostgreSQL sorts the names; the order of the enum must be the same, or two batches could wait for each other.
    assert!(Op::ALL.map(Op::as_str).is_sorted());
    assert!(Op::parse("prepare").is_err());
}

fn any_op() -> impl Strategy<Value = Op> {
    prop::sample::select(Op::ALL.to_vec())
}

fn any_say() -> impl Strategy<Value = Option<Outcome>> {
    prop_oneof![
        6 => Just(Some(Outcome::Done)),
        2 => Just(Some(Outcome::Working)),
        1 => Just(Some(refusal("AM04"))),
        1 => Just(Some(refusal("AC04"))),
        2 => Just(None),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_repetition_gives_each_effect_once_and_none_after_its_undo(
        calls in prop::collection::vec((any_op(), any_say()), 1..40)
    ) {
        let mut branch = Branch::default();
        let mut undone = false;
        let mut tried = false;
        let mut refused: Option<Outcome> = None;
        for (op, say) in calls {
            let before = branch.effects.len();
            let (verdict, answer) = branch.call(op, say.as_ref());
            let took_effect = branch.effects.len() > before;
            if took_effect {
                prop_assert_eq!(branch.effects.iter().filter(|&&e| e == op).count(), 1, "{} twice", op);
                prop_assert!(!(op.is_first_phase() && undone), "{} after its undo", op);
            }
            let confirmed = branch.effects.contains(&Op::Confirm);
            prop_assert!(!(confirmed && branch.effects.contains(&Op::Cancel)), "confirm and cancel");
            // An undo that the participant carries out undoes something that the participant was asked for.
            if op.is_undo() && took_effect {
                prop_assert!(tried, "{} of nothing", op);
            }
            if op == Op::Confirm && took_effect {
                prop_assert!(branch.effects.contains(&Op::Try), "confirm of nothing");
            }
            // Done is only ever said of what took effect or had nothing to undo.
            if answer == Some(Outcome::Done) && !op.is_undo() {
                prop_assert!(branch.effects.contains(&op), "{} done without effect", op);
                prop_assert!(!(op.is_first_phase() && undone), "{} done after its undo", op);
            }
            if op.is_first_phase() && !matches!(verdict, Verdict::Disorder(_)) {
                if let Some(first) = &refused {
                    prop_assert_eq!(answer.as_ref(), Some(first), "another answer than the refusal");
                }
                if verdict == Verdict::Proceed && matches!(answer, Some(Outcome::Refused { .. })) {
                    refused = answer.clone();
                }
            }
            tried |= op.is_first_phase() && verdict == Verdict::Proceed && answer.is_some();
            undone |= op.is_undo() && answer == Some(Outcome::Done);
        }
    }
}

#[test]
fn the_barrier_admits_no_verb_of_xa() {
    for record in records(&[Op::Try, Op::Confirm, Op::Cancel]) {
        for op in Op::XA {
            assert!(claims(op).is_empty());
            assert_eq!(decide(op, &record), Verdict::Disorder(Disorder::OtherMode));
        }
    }
}

#[test]
fn only_an_action_that_was_refused_and_not_compensated_is_asked_anew() {
    let mut anew = 0;
    for record in records(&[Op::Action, Op::Compensate]).iter().chain(&records(&[
        Op::Try,
        Op::Confirm,
        Op::Cancel,
    ])) {
        for op in Op::ALL {
            let (verdict, again) = (decide(op, record), decide_anew(op, record));
            if verdict == again {
                continue;
            }
            anew += 1;
            assert_eq!((op, &again), (Op::Action, &Verdict::Proceed), "{record:?}");
            assert!(matches!(verdict, Verdict::Repeat(Outcome::Refused { .. })), "{record:?}");
            assert!(record.row(Op::Compensate).is_none(), "{record:?}");
            // Whatever comes of it now stands in the row, so that an undo knows.
            let written = settle(op, record, &again, Some(&Outcome::Done));
            assert_eq!(written, Settlement::Write(Outcome::Done), "{record:?}");
        }
    }
    assert!(anew > 0, "no record is asked anew");
}
