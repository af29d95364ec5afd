//! One transaction after the other in a hostile world: participants with a barrier, a network that loses, repeats and delays, leaders
//! that come and go, answers that are known to one leader only. Then the world heals, and all branches must end alike.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_txn::{
    Answer, BranchId, BranchSpec, Captures, Command, Decision, Gid, GlobalTransaction, Machine,
    Mode, Next, Op, Options, Order, Participant, Recovery, Refusal, Report, Status, Timestamp,
    TriedBy, mode::frontier,
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// A participant of one branch: its effect, and the rows of its barrier.
#[derive(Debug, Default)]
struct Party {
    will_refuse: bool,
    refused: bool,
    /// Held or done, at this time.
    is_in_effect: bool,
    has_acted: bool,
    captured: bool,
    undone: bool,
}

/// A call on its way, or its answer on its way back to the leader of that term.
#[derive(Clone, Copy, Debug)]
struct Call {
    term: u32,
    branch: BranchId,
    op: Op,
}

struct World {
    machine: Machine,
    gid: Gid,
    now: Timestamp,
    parties: Vec<Party>,
    term: u32,
    heard: Vec<Report>,
    calls: Vec<Call>,
    answers: Vec<(Call, Answer)>,
    /// What happened, to see that the world was hostile indeed.
    events: BTreeSet<&'static str>,
}

#[derive(Clone, Debug)]
struct Plan {
    saga: bool,
    /// Where it is no Saga: XA, prepared by the coordinator, instead of TCC.
    xa: bool,
    enlisted: bool,
    concurrent: bool,
    forward: bool,
    /// For each branch: whether it refuses, and the earlier branches it waits for, as bits; 255: as the order says.
    branches: Vec<(bool, u8)>,
    pivot: Option<usize>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        (any::<bool>(), prop::bool::weighted(0.3)),
        prop::bool::weighted(0.4),
        any::<bool>(),
        prop::bool::weighted(0.2),
        vec((prop::bool::weighted(0.15), prop_oneof![Just(255_u8), 0_u8..16]), 1..5),
        prop::option::weighted(0.5, 0_usize..4),
    )
        .prop_map(|((saga, xa), enlisted, concurrent, forward, branches, pivot)| Plan {
            saga,
            xa,
            enlisted,
            concurrent,
            forward,
            branches,
            pivot,
        })
}

impl Plan {
    fn mode(&self) -> Mode {
        match (self.saga, self.xa) {
            (true, _) => Mode::Saga,
            (false, true) => Mode::Xa,
            (false, false) => Mode::Tcc,
        }
    }

    fn specs(&self) -> Vec<BranchSpec> {
        let numbered = self.branches.iter().enumerate();
        numbered
            .map(|(index, (_, after))| BranchSpec {
                participant: Participant::parse("party@somewhere").unwrap(),
                payload: Bytes::new(),
                after: (*after != 255).then(|| {
                    (0..index)
                        .filter(|bit| after & (1 << bit) != 0)
                        .map(|bit| BranchId(u32::try_from(bit).unwrap() + 1))
                        .collect()
                }),
                pivot: self.saga && self.pivot == Some(index),
            })
            .collect()
    }
}

impl World {
    fn begin(plan: &Plan) -> Self {
        let mut options = Options::of(plan.mode());
        options.timeout_ms = 20;
        options.tried_by = TriedBy::Coordinator;
        options.call_timeout_ms = 1;
        options.order = if plan.concurrent { Order::Concurrent } else { Order::Sequential };
        options.recovery = if plan.forward { Recovery::Forward } else { Recovery::Backward };
        let gid = Gid::parse("g1").unwrap();
        let mut world = Self {
            machine: Machine::new(),
            gid: gid.clone(),
            now: Timestamp(0),
            parties: Vec::new(),
            term: 1,
            heard: Vec::new(),
            calls: Vec::new(),
            answers: Vec::new(),
            events: BTreeSet::new(),
        };
        world.parties.extend(
            plan.branches
                .iter()
                .map(|(will_refuse, _)| Party { will_refuse: *will_refuse, ..Party::default() }),
        );
        let branches = if plan.enlisted { Vec::new() } else { plan.specs() };
        let (mode, enlisted) = (plan.mode(), plan.enlisted);
        assert!(world.apply(Command::Begin {
            gid,
            mode,
            options,
            branches,
            enlisted,
            content: None
        }));
        world
    }

    /// Whether the command was carried out.
    fn apply(&mut self, command: Command) -> bool {
        self.machine.apply(self.now, command).is_ok()
    }

    fn transaction(&self) -> &GlobalTransaction {
        self.machine.get(&self.gid).unwrap()
    }

    /// The program adds the next branch or, when it has added all, submits.
    fn enlist(&mut self, plan: &Plan) {
        let (gid, count) = (self.gid.clone(), self.transaction().branches.len());
        if self.transaction().status != Status::Active {
            return;
        }
        match plan.specs().into_iter().nth(count) {
            Some(spec) => {
                let branch = BranchId(u32::try_from(count).unwrap() + 1);
                self.apply(Command::AddBranch { gid, branch, spec });
            }
            None => {
                self.apply(Command::Submit { gid, captures: Captures::default() });
            }
        }
        self.consider();
    }

    /// The leader reports, if what it has heard is worth it.
    fn consider(&mut self) {
        let gid = self.gid.clone();
        if let Next::Become(..) | Next::Record = self.machine.owed(&gid, &self.heard) {
            let reports = std::mem::take(&mut self.heard);
            assert!(self.apply(Command::Report { gid, reports }));
        }
    }

    /// The leader makes all calls that are owed.
    fn dispatch(&mut self) {
        if let Next::Call(calls) = self.machine.owed(&self.gid, &self.heard) {
            let term = self.term;
            self.calls.extend(calls.into_iter().map(|(branch, op)| Call { term, branch, op }));
        }
    }

    /// Branches that wait for this one.
    fn behind(&self, index: usize) -> impl Iterator<Item = usize> {
        let transaction = self.transaction();
        (0..transaction.branches.len()).filter(move |&other| {
            let spec = &transaction.branches[other].spec;
            frontier::waits_for(spec, other, transaction.options.order).any(|one| one == index)
        })
    }

    /// The participant carries a call out, as its barrier says.
    fn carry_out(&mut self, call: Call) {
        let index = call.branch.0 as usize - 1;
        let transaction = self.machine.get(&self.gid).unwrap();
        let spec = &transaction.branches[index].spec;
        let refusal =
            |code: &str| Answer::Refused(Refusal { code: code.to_owned(), message: String::new() });
        let answer = match call.op {
            Op::Try | Op::Action | Op::Prepare => {
                // A hold does not care: a late try may come between the cancels, and its own follows.
                let ready = call.op != Op::Action
                    || frontier::waits_for(spec, index, transaction.options.order)
                        .all(|before| self.parties[before].is_in_effect);
                let party = &mut self.parties[index];
                if party.refused {
                    refusal("no")
                } else if party.undone {
                    self.events.insert("late try");
                    refusal("late")
                } else if party.has_acted {
                    self.events.insert("repeat");
                    Answer::Done
                } else if party.will_refuse {
                    party.refused = true;
                    refusal("no")
                } else {
                    assert!(ready, "{} is carried out before what it waits for", call.branch);
                    assert!(!spec.pivot || transaction.pivot_reached, "a pivot off the record");
                    party.has_acted = true;
                    party.is_in_effect = true;
                    Answer::Done
                }
            }
            Op::Confirm | Op::Commit => {
                let party = &mut self.parties[index];
                assert!(party.is_in_effect && !party.undone, "a capture without a hold");
                party.captured = true;
                Answer::Done
            }
            Op::Cancel | Op::RollBack => {
                let party = &mut self.parties[index];
                assert!(!party.captured, "a captured hold is released");
                if !party.has_acted {
                    self.events.insert("empty cancel");
                }
                (party.undone, party.is_in_effect) = (true, false);
                Answer::Done
            }
            Op::Compensate => {
                assert!(!spec.pivot, "a pivot is compensated");
                if self.parties[index].is_in_effect {
                    self.events.insert("compensation");
                    let first = self.behind(index).find(|&later| self.parties[later].is_in_effect);
                    assert_eq!(first, None, "{} is compensated too early", call.branch);
                }
                let party = &mut self.parties[index];
                (party.undone, party.is_in_effect) = (true, false);
                Answer::Done
            }
        };
        self.answers.push((call, answer));
    }

    /// An answer arrives: at the leader that asked, or at one that is none any more.
    fn hear(&mut self, (call, answer): (Call, Answer), believed: bool) {
        let report = Report { branch: call.branch, op: call.op, answer };
        if call.term == self.term {
            self.heard.push(report);
            self.consider();
        } else if believed {
            // Its last proposal got through, late and alone.
            self.events.insert("report of an old leader");
            let gid = self.gid.clone();
            assert!(self.apply(Command::Report { gid, reports: vec![report] }));
        }
    }

    /// Something happens.
    fn happen(&mut self, plan: &Plan, kind: u8, which: u8) {
        let pick = |length: usize| usize::from(which) % length.max(1);
        let gid = self.gid.clone();
        match kind {
            0..60 if self.calls.len() < 32 => self.dispatch(),
            60..110 if !self.calls.is_empty() => {
                let call = self.calls.swap_remove(pick(self.calls.len()));
                self.carry_out(call);
            }
            // The network repeats it, and will deliver it once more.
            110..125 if !self.calls.is_empty() => {
                self.carry_out(self.calls[pick(self.calls.len())])
            }
            125..135 if !self.calls.is_empty() => {
                self.calls.swap_remove(pick(self.calls.len()));
            }
            135..180 if !self.answers.is_empty() => {
                let answer = self.answers.swap_remove(pick(self.answers.len()));
                self.hear(answer, which.is_multiple_of(2));
            }
            180..190 if !self.answers.is_empty() => {
                self.answers.swap_remove(pick(self.answers.len()));
            }
            190..197 => {
                self.events.insert("leader change");
                self.term += 1;
                self.heard.clear();
            }
            197..207 => {
                self.now = self.now.plus_ms(3);
                self.apply(Command::Expire { gid });
            }
            207..210 => {
                self.apply(Command::RollBack { gid, reason: "asked for".to_owned() });
            }
            210..216 => {
                // The leader gives up on something that it is owed.
                if let Next::Call(calls) = self.machine.owed(&gid, &self.heard) {
                    let (branch, op) = calls[pick(calls.len())];
                    let answer = Answer::GivenUp { attempts: 3, last: "timed out".to_owned() };
                    self.heard.push(Report { branch, op, answer });
                    self.consider();
                }
            }
            216..222 => self.repair(),
            222..240 if plan.enlisted => self.enlist(plan),
            240..=255 => {
                self.machine = Machine::restore(self.machine.snapshot());
            }
            _ => {}
        }
    }

    /// People look: what refused for a reason that can be mended is mended, and asked again.
    fn repair(&mut self) {
        if self.transaction().status != Status::NeedsAttention {
            return;
        }
        self.events.insert("needs attention");
        let waiting: Vec<_> = self
            .transaction()
            .numbered()
            .filter(|(_, branch)| branch.refusal.is_some() && branch.state.as_str() == "pending")
            .map(|(id, _)| id.0 as usize - 1)
            .collect();
        for index in waiting {
            (self.parties[index].will_refuse, self.parties[index].refused) = (false, false);
        }
        let gid = self.gid.clone();
        assert!(self.apply(Command::Retry { gid, reason: "mended".to_owned() }));
        // What was heard before belongs to the old attempt.
        self.heard.clear();
    }

    /// Nothing is lost any more, and everything that is owed comes to its end.
    fn heal(&mut self, plan: &Plan) {
        self.term += 1;
        self.heard.clear();
        for round in 0.. {
            assert!(round < 100, "no end: {:?}", self.transaction());
            if self.transaction().status.is_final() {
                break;
            }
            self.now = self.now.plus_ms(1);
            self.repair();
            if plan.enlisted {
                self.enlist(plan);
            }
            for gid in self.machine.due(self.now, 1).expired {
                self.apply(Command::Expire { gid });
            }
            self.dispatch();
            self.deliver_all();
        }
        self.deliver_all();
    }

    fn deliver_all(&mut self) {
        for call in std::mem::take(&mut self.calls) {
            self.carry_out(call);
        }
        for answer in std::mem::take(&mut self.answers) {
            self.hear(answer, true);
        }
    }

    /// All branches end alike, each effect once, also after the last delayed call has arrived.
    fn check_end(&self) {
        let transaction = self.transaction();
        for (index, party) in self.parties.iter().enumerate() {
            let branch = index + 1;
            match transaction.decision.unwrap() {
                Decision::Commit => {
                    assert!(party.is_in_effect && !party.undone, "b{branch} has no effect");
                    assert_eq!(party.captured, transaction.mode != Mode::Saga);
                }
                Decision::RollBack => {
                    assert!(!party.is_in_effect, "b{branch} keeps its effect");
                }
            }
        }
    }
}

#[test]
fn all_branches_end_alike_whatever_happens_on_the_way() {
    let mut runner =
        TestRunner::new(Config { cases: 5_000, failure_persistence: None, ..Config::default() });
    let events = std::cell::RefCell::new(BTreeSet::new());
    runner
        .run(&(plan(), vec((any::<u8>(), any::<u8>()), 0..150)), |(plan, happenings)| {
            let mut world = World::begin(&plan);
            for (kind, which) in happenings {
                world.happen(&plan, kind, which);
            }
            world.heal(&plan);
            world.check_end();
            let mut events = events.borrow_mut();
            events.extend(&world.events);
            events.insert(world.transaction().status.as_str());
            if world.transaction().status == Status::Committed && world.transaction().pivot_reached
            {
                events.insert("a pivot that commits");
            }
            Ok(())
        })
        .unwrap();
    let seen = events.into_inner();
    let wanted = [
        "a pivot that commits",
        "committed",
        "compensation",
        "empty cancel",
        "late try",
        "leader change",
        "needs attention",
        "repeat",
        "report of an old leader",
        "rolled back",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), wanted, "a world without these proves little");
}
