//! A relay's mind: its limits, its answers, and the law that no order of answers and no crash may break.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_branch::outbox::{Act, Answer, Lane, Limits, MessageId, Outbox, Row, gid_of};
use proptest::prelude::*;

fn lane(at: u64) -> Lane {
    Lane { topic: "points".to_owned(), key: format!("k{at}") }
}

fn row(lane_at: u64, position: u64) -> Row {
    Row { id: MessageId(u128::from(position)), position, lane: lane(lane_at) }
}

fn outbox(in_flight_max: usize, lanes_max: usize) -> Outbox {
    Outbox::new(Limits { in_flight_max, lanes_max })
}

#[test]
fn a_gid_comes_from_the_id_and_fits() {
    let gid = gid_of(MessageId(0xAB));
    assert_eq!(gid, "m-000000000000000000000000000000ab");
    assert!(gid_of(MessageId(u128::MAX)).len() <= 35);
}

#[test]
fn lanes_go_side_by_side_and_a_lane_one_by_one() {
    let mut outbox = outbox(8, 8);
    let acts = outbox.rows([row(1, 1), row(1, 2), row(2, 3)]);
    assert_eq!(acts, [Act::Submit(row(1, 1)), Act::Submit(row(2, 3))]);
    assert_eq!(outbox.rows([row(1, 1), row(1, 2)]), [], "the lane is busy");
    assert_eq!(outbox.answered(MessageId(1), Answer::Done), [Act::Delete(MessageId(1))]);
    assert_eq!(outbox.rows([row(1, 2)]), [], "its row is not gone yet");
    outbox.gone(MessageId(1));
    assert_eq!(outbox.rows([row(1, 2)]), [Act::Submit(row(1, 2))]);
}

#[test]
fn rows_out_of_order_go_in_order() {
    assert_eq!(outbox(8, 8).rows([row(1, 2), row(1, 1)]), [Act::Submit(row(1, 1))]);
}

#[test]
fn unknown_is_submitted_again_and_never_deleted() {
    let mut outbox = outbox(8, 8);
    outbox.rows([row(1, 1)]);
    assert_eq!(outbox.answered(MessageId(1), Answer::Unknown), []);
    assert_eq!(outbox.rows([row(1, 1), row(1, 2)]), []);
    assert_eq!(outbox.stuck().count(), 0);
    assert_eq!(outbox.look_again(), [Act::Submit(row(1, 1))]);
    assert_eq!(outbox.look_again(), [], "it is on its way");
}

#[test]
fn what_cannot_end_holds_up_its_own_lane_and_is_told() {
    let mut outbox = outbox(8, 8);
    outbox.rows([row(1, 1), row(2, 2)]);
    assert_eq!(outbox.answered(MessageId(1), Answer::Stuck("HF4201 no route".to_owned())), []);
    outbox.answered(MessageId(2), Answer::Done);
    outbox.gone(MessageId(2));
    assert_eq!(outbox.rows([row(1, 3), row(2, 4)]), [Act::Submit(row(2, 4))]);
    let told = |outbox: &Outbox| -> Vec<_> {
        outbox.stuck().map(|(id, _, why)| (id, why.to_owned())).collect()
    };
    let expected = vec![(MessageId(1), "HF4201 no route".to_owned())];
    assert_eq!(told(&outbox), expected);
    // It stays told while it is asked again, and when nobody answers.
    assert_eq!(outbox.look_again(), [Act::Submit(row(1, 1))]);
    assert_eq!(outbox.answered(MessageId(1), Answer::Unknown), []);
    assert_eq!(told(&outbox), expected);
    outbox.look_again();
    assert_eq!(outbox.answered(MessageId(1), Answer::Done), [Act::Delete(MessageId(1))]);
    assert_eq!(outbox.stuck().count(), 0);
}

#[test]
fn a_delete_that_was_not_done_is_told_again() {
    let mut outbox = outbox(8, 8);
    outbox.rows([row(1, 1)]);
    outbox.answered(MessageId(1), Answer::Done);
    assert_eq!(outbox.look_again(), [Act::Delete(MessageId(1))]);
    outbox.gone(MessageId(1));
    assert_eq!(outbox.look_again(), []);
}

#[test]
fn a_row_that_people_deleted_frees_its_lane_and_its_late_answer_is_nobodys() {
    let mut outbox = outbox(1, 8);
    outbox.rows([row(1, 1)]);
    outbox.gone(MessageId(1));
    assert_eq!(outbox.in_flight(), 0);
    assert_eq!(outbox.rows([row(1, 2)]), [Act::Submit(row(1, 2))]);
    assert_eq!(outbox.answered(MessageId(1), Answer::Done), []);
    assert_eq!(outbox.in_flight(), 1);
}

#[test]
fn no_more_is_on_its_way_than_the_limit_and_half_of_it_is_for_new_lanes() {
    let mut outbox = outbox(2, 8);
    assert_eq!(outbox.rows([row(1, 1), row(2, 2), row(3, 3)]).len(), 2);
    assert!(!outbox.has_room());
    outbox.answered(MessageId(1), Answer::Unknown);
    assert_eq!(outbox.rows([row(3, 3)]), [Act::Submit(row(3, 3))]);
    assert_eq!(outbox.look_again(), [], "there is no place for the one that is unsure");
    outbox.answered(MessageId(2), Answer::Unknown);
    assert_eq!(outbox.look_again(), [], "the other place is for a new lane");
    outbox.answered(MessageId(3), Answer::Unknown);
    assert_eq!(outbox.look_again().len(), 1);
    assert_eq!(outbox.rows([row(4, 4)]), [Act::Submit(row(4, 4))]);
}

#[test]
fn lanes_that_nobody_answers_take_turns() {
    let mut outbox = outbox(1, 8);
    for position in 1..=3 {
        outbox.rows([row(position, position)]);
        outbox.answered(MessageId(u128::from(position)), Answer::Unknown);
    }
    for turn in [1, 2, 3, 1] {
        assert_eq!(outbox.look_again(), [Act::Submit(row(turn, turn))]);
        outbox.answered(MessageId(u128::from(turn)), Answer::Unknown);
    }
}

#[test]
fn no_more_lanes_are_held_than_the_limit() {
    let mut outbox = outbox(8, 2);
    outbox.rows([row(1, 1), row(2, 2), row(3, 3)]);
    outbox.answered(MessageId(1), Answer::Stuck("people must look".to_owned()));
    outbox.answered(MessageId(2), Answer::Stuck("people must look".to_owned()));
    assert_eq!(outbox.busy().count(), 2);
    assert_eq!(outbox.rows([row(3, 3)]), [], "full of lanes that are stuck");
    outbox.gone(MessageId(1));
    assert_eq!(outbox.rows([row(3, 3)]), [Act::Submit(row(3, 3))]);
}

/// What happens next; the numbers pick among what there is.
#[derive(Clone, Debug)]
enum Step {
    Commit(u64),
    Read(usize),
    Answer(usize, u8),
    Delete(usize),
    LookAgain,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u64).prop_map(Step::Commit),
        4 => (1..6_usize).prop_map(Step::Read),
        4 => (any::<usize>(), 0..3_u8).prop_map(|(which, how)| Step::Answer(which, how)),
        3 => any::<usize>().prop_map(Step::Delete),
        1 => Just(Step::LookAgain),
        1 => Just(Step::Crash),
    ]
}

/// The world around one relay: the table, what is on its way, and everything that was ever submitted.
struct World {
    outbox: Outbox,
    limits: Limits,
    table: BTreeMap<u64, Row>,
    on_their_way: Vec<MessageId>,
    to_delete: Vec<MessageId>,
    submitted: Vec<Row>,
    committed: u64,
    ended: BTreeSet<MessageId>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let outbox = Outbox::new(limits);
        let (table, ended) = (BTreeMap::new(), BTreeSet::new());
        let (on_their_way, to_delete, submitted) = (Vec::new(), Vec::new(), Vec::new());
        Self { outbox, limits, table, on_their_way, to_delete, submitted, committed: 0, ended }
    }

    fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Submit(row) => {
                    assert_eq!(self.table.get(&row.position), Some(&row), "it is no row");
                    self.on_their_way.push(row.id);
                    self.submitted.push(row);
                }
                Act::Delete(id) => {
                    assert!(self.ended.contains(&id), "{id} has not ended");
                    self.to_delete.push(id);
                }
            }
        }
        assert!(self.outbox.in_flight() <= self.limits.in_flight_max);
        assert!(self.outbox.busy().count() <= self.limits.lanes_max);
    }

    fn read(&mut self, rows_max: usize) {
        let rows: Vec<Row> = self.table.values().take(rows_max).cloned().collect();
        let acts = self.outbox.rows(rows);
        self.act(acts);
    }

    fn answer(&mut self, which: usize, how: u8) {
        if self.on_their_way.is_empty() {
            return;
        }
        let id = self.on_their_way.swap_remove(which % self.on_their_way.len());
        let answer = match how {
            0 => Answer::Done,
            1 => Answer::Unknown,
            _ => Answer::Stuck("people must look".to_owned()),
        };
        if answer == Answer::Done {
            self.ended.insert(id);
        }
        let acts = self.outbox.answered(id, answer);
        self.act(acts);
    }

    fn delete(&mut self, which: usize) {
        if self.to_delete.is_empty() {
            return;
        }
        let id = self.to_delete.swap_remove(which % self.to_delete.len());
        self.table.retain(|_, row| row.id != id);
        self.outbox.gone(id);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Commit(at) => {
                self.committed += 1;
                self.table.insert(self.committed, row(at, self.committed));
            }
            Step::Read(rows_max) => self.read(rows_max),
            Step::Answer(which, how) => self.answer(which, how),
            Step::Delete(which) => self.delete(which),
            Step::LookAgain => {
                let acts = self.outbox.look_again();
                self.act(acts);
            }
            // What was on its way may still end; nobody here hears of it.
            Step::Crash => {
                self.outbox = Outbox::new(self.limits);
                self.on_their_way.clear();
                self.to_delete.clear();
            }
        }
    }

    /// Everything goes well from here on: the outbox must get empty.
    fn heal(&mut self) {
        for _ in 0..self.committed * 8 + 8 {
            let acts = self.outbox.look_again();
            self.act(acts);
            self.read(usize::MAX);
            self.answer(0, 0);
            self.delete(0);
        }
        assert!(self.table.is_empty(), "left: {:?}", self.table);
    }

    fn judge(&self) {
        let ids: BTreeSet<MessageId> = self.submitted.iter().map(|row| row.id).collect();
        assert_eq!(ids.len() as u64, self.committed, "each at least once, none that was no row");
        let mut last: BTreeMap<&Lane, u64> = BTreeMap::new();
        for row in &self.submitted {
            let before = last.insert(&row.lane, row.position).unwrap_or_default();
            assert!(before <= row.position, "{row:?} behind {before}");
        }
    }
}

proptest! {
    #[test]
    fn each_lane_is_published_in_order_and_nothing_is_lost_or_invented(
        steps in prop::collection::vec(step(), 0..120),
        in_flight_max in 1..4_usize,
        spare in 0..3_usize,
    ) {
        let mut world = World::new(Limits { in_flight_max, lanes_max: in_flight_max + spare });
        for step in &steps {
            world.step(step);
        }
        world.heal();
        world.judge();
    }
}
