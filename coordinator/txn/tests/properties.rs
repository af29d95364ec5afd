//! Properties of the machine under any sequence of commands, sensible or not.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_txn::{
    Act, Answer, Branch, BranchId, BranchSpec, BranchState, Command, Decision, Gid,
    GlobalTransaction, Machine, Mode, Next, Op, Options, Order, Participant, Recovery, Refusal,
    Remedy, Report, Status, Timestamp, TriedBy,
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};

/// One step of a sequence. What is needed to make sense of it is chosen when it is carried out.
#[derive(Clone, Debug)]
enum Step {
    Begin {
        gid: u8,
        plan: Plan,
    },
    Add {
        gid: u8,
        branch: Option<u32>,
        pivot: bool,
        after: u8,
        /// Nested in this one.
        parent: Option<u32>,
    },
    Submit {
        gid: u8,
        capture: Option<u32>,
    },
    RollBack {
        gid: u8,
    },
    /// Each pick is an operation that is owed, or any at all, with an answer.
    Report {
        gid: u8,
        picks: Vec<(u8, u8)>,
    },
    Expire {
        gid: u8,
    },
    Retry {
        gid: u8,
    },
    /// One person proposes; the next time another one approves.
    Operate {
        gid: u8,
        remedy: Remedy,
    },
    Fence {
        gid: u8,
    },
    /// By the caller, of every branch or of one.
    Finish {
        gid: u8,
        branch: Option<u32>,
        commits: bool,
    },
    Clock {
        ms: u64,
    },
}

#[derive(Clone, Debug)]
struct Plan {
    mode: Mode,
    sequential: bool,
    forward: bool,
    caller: bool,
    enlisted: bool,
    /// For each branch, a set of branches it waits for, as bits; 255: as the order says.
    after: Vec<u8>,
    pivot: Option<u8>,
    timeout_ms: u64,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop_oneof![2 => Just(Mode::Tcc), 2 => Just(Mode::Saga), 1 => Just(Mode::Xa)],
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.4),
        vec(prop_oneof![Just(255), Just(255), 0_u8..16], 1..5),
        prop::option::weighted(0.4, 0_u8..4),
        5_u64..40,
    )
        .prop_map(|(mode, sequential, forward, caller, enlisted, after, pivot, timeout_ms)| {
            Plan { mode, sequential, forward, caller, enlisted, after, pivot, timeout_ms }
        })
}

fn step() -> impl Strategy<Value = Step> {
    let gid = || 0_u8..5;
    prop_oneof![
        3 => (gid(), plan()).prop_map(|(gid, plan)| Step::Begin { gid, plan }),
        3 => (gid(), prop::option::weighted(0.2, 0_u32..5), prop::bool::weighted(0.2), 0_u8..16)
            .prop_flat_map(|(gid, branch, pivot, after)| {
                prop::option::weighted(0.4, 0_u32..5).prop_map(move |parent| Step::Add {
                    gid,
                    branch,
                    pivot,
                    after,
                    parent,
                })
            }),
        2 => (gid(), prop::option::weighted(0.3, 0_u32..5))
            .prop_map(|(gid, capture)| Step::Submit { gid, capture }),
        1 => gid().prop_map(|gid| Step::RollBack { gid }),
        10 => (gid(), vec((any::<u8>(), any::<u8>()), 0..5))
            .prop_map(|(gid, picks)| Step::Report { gid, picks }),
        1 => gid().prop_map(|gid| Step::Expire { gid }),
        2 => gid().prop_map(|gid| Step::Retry { gid }),
        8 => (gid(), remedy()).prop_map(|(gid, remedy)| Step::Operate { gid, remedy }),
        1 => gid().prop_map(|gid| Step::Fence { gid }),
        2 => (gid(), prop::option::of(0_u32..5), prop::bool::weighted(0.7))
            .prop_map(|(gid, branch, commits)| Step::Finish { gid, branch, commits }),
        1 => (0_u64..8).prop_map(|ms| Step::Clock { ms }),
    ]
}

fn remedy() -> impl Strategy<Value = Remedy> {
    prop_oneof![
        1 => (0_u32..5).prop_map(|branch| Remedy::MarkDone(BranchId(branch))),
        3 => (1_u32..4).prop_map(|branch| Remedy::MarkRefused(BranchId(branch))),
        1 => Just(Remedy::Abandon),
    ]
}

fn gid(number: u8) -> Gid {
    Gid::parse(&format!("g{number}")).unwrap()
}

fn spec(after: Option<Vec<BranchId>>, pivot: bool) -> BranchSpec {
    let participant = Participant::parse("debit@shard-1").unwrap();
    BranchSpec { participant, payload: Bytes::from_static(b"secret"), after, pivot }
}

/// The branches whose bits are set.
fn bits(set: u8) -> Vec<BranchId> {
    (0..4).filter(|bit| set & (1 << bit) != 0).map(|bit| BranchId(bit + 1)).collect()
}

impl Step {
    /// The command that this step is, for the machine as it stands.
    fn command(&self, machine: &Machine) -> Option<Command> {
        Some(match self {
            Self::Begin { gid: number, plan } => {
                let mut options = Options::of(plan.mode);
                options.timeout_ms = plan.timeout_ms;
                options.call_timeout_ms = 1;
                options.order = if plan.sequential { Order::Sequential } else { Order::Concurrent };
                if plan.forward {
                    options.recovery = Recovery::Forward;
                }
                // The default of XA is the caller, so that the same chance makes it the coordinator.
                options.tried_by = match (plan.caller, plan.mode) {
                    (true, Mode::Tcc | Mode::Saga) | (false, Mode::Xa) => TriedBy::Caller,
                    (false, Mode::Tcc | Mode::Saga) | (true, Mode::Xa) => TriedBy::Coordinator,
                };
                let branches = plan.after.iter().zip(0_u8..).map(|(after, index)| {
                    spec((*after != 255).then(|| bits(*after)), plan.pivot == Some(index))
                });
                Command::Begin {
                    gid: gid(*number),
                    mode: plan.mode,
                    options,
                    branches: if plan.enlisted { Vec::new() } else { branches.collect() },
                    enlisted: plan.enlisted,
                    content: None,
                }
            }
            Self::Add { gid: number, branch, pivot, after, parent } => {
                let gid = gid(*number);
                let count = machine.get(&gid).map_or(0, |known| known.branches.len());
                let branch = branch.unwrap_or(u32::try_from(count).unwrap() + 1);
                let earlier = bits(*after).into_iter().filter(|id| id.0 < branch).collect();
                let (branch, spec) = (BranchId(branch), spec(Some(earlier), *pivot));
                match parent.map(BranchId) {
                    Some(parent) => Command::Nest { gid, parent, branch, spec },
                    None => Command::AddBranch { gid, branch, spec },
                }
            }
            Self::Submit { gid: number, capture } => {
                let payload = Bytes::from_static(b"less");
                let captures: BTreeMap<_, _> =
                    capture.iter().map(|branch| (BranchId(*branch), payload.clone())).collect();
                Command::Submit { gid: gid(*number), captures: captures.into() }
            }
            Self::RollBack { gid: number } => {
                Command::RollBack { gid: gid(*number), reason: "asked for".to_owned() }
            }
            Self::Report { gid: number, picks } => {
                let gid = gid(*number);
                let calls = match machine.owed(&gid, &[]) {
                    Next::Call(calls) => calls,
                    Next::Become(..) | Next::Record | Next::Wait => Vec::new(),
                };
                let reports = picks.iter().map(|pick| report(*pick, &calls)).collect();
                Command::Report { gid, reports }
            }
            Self::Expire { gid: number } => Command::Expire { gid: gid(*number) },
            Self::Retry { gid: number } => {
                Command::Retry { gid: gid(*number), reason: "looked".to_owned() }
            }
            Self::Operate { gid: number, remedy } => {
                let gid = gid(*number);
                let (act, by) = if machine.books().proposals.contains_key(&gid) {
                    (Act::Approve, "user/bob".to_owned())
                } else {
                    (Act::Propose(*remedy), "user/alice".to_owned())
                };
                Command::Operate { gid, act, by, reason: "looked".to_owned() }
            }
            Self::Fence { gid: number } => {
                Command::Fence { gid: gid(*number), reason: "nobody knows it".to_owned() }
            }
            Self::Finish { gid: number, branch, commits } => Command::Finish {
                gid: gid(*number),
                branches: branch.iter().copied().map(BranchId).collect(),
                decision: if *commits { Decision::Commit } else { Decision::RollBack },
            },
            Self::Clock { .. } => return None,
        })
    }
}

fn report((pick, answer): (u8, u8), calls: &[(BranchId, Op)]) -> Report {
    let (branch, op) = if pick < 200 && !calls.is_empty() {
        calls[usize::from(pick) % calls.len()]
    } else {
        (BranchId(u32::from(pick) % 6), Op::ALL[usize::from(pick / 6) % Op::ALL.len()])
    };
    let answer = match answer {
        0..190 => Answer::Done,
        190..235 => Answer::Refused(Refusal { code: "no".to_owned(), message: String::new() }),
        235.. => Answer::GivenUp { attempts: 3, last: "timed out".to_owned() },
    };
    Report { branch, op, answer }
}

/// What was seen of one transaction, over its whole life.
#[derive(Default)]
struct Seen {
    decision: Option<Decision>,
    ended: Option<Status>,
    has_expired: bool,
    /// Every operation that was ever owed.
    owed: BTreeSet<(BranchId, Op)>,
}

/// Moves that a command may make in all: legal ones, one behind the other, that do not pass through what needs attention.
fn may_become(from: Status, to: Status) -> bool {
    from.may_become(to)
        || Status::ALL.into_iter().any(|by| {
            by != Status::NeedsAttention && by != from && from.may_become(by) && may_become(by, to)
        })
}

/// What must hold of every transaction at every time.
fn check(transaction: &GlobalTransaction, machine: &Machine, seen: &mut Seen) {
    let GlobalTransaction { gid, status, decision, branches, .. } = transaction;
    assert!(seen.decision.is_none() || seen.decision == *decision, "{gid} decides twice");
    seen.decision = *decision;
    assert!(seen.ended.is_none_or(|end| end == *status), "{gid} lives after its end");
    seen.ended = status.is_final().then_some(*status);
    assert_eq!(status.is_final(), transaction.finished_at.is_some());
    assert_eq!(decision.is_some(), transaction.decided_at.is_some());
    assert_eq!(*status == Status::NeedsAttention, transaction.interrupted.is_some());

    let all = |state| branches.iter().all(|branch| branch.state == state);
    let any = |state| branches.iter().any(|branch| branch.state == state);
    if any(BranchState::Confirmed) {
        assert_eq!(*decision, Some(Decision::Commit), "{gid} confirms undecided");
    }
    if any(BranchState::Undone) {
        assert_eq!(*decision, Some(Decision::RollBack), "{gid} undoes undecided");
    }
    match (status, transaction.mode) {
        (Status::Committed, Mode::Tcc | Mode::Xa) => assert!(all(BranchState::Confirmed)),
        (Status::Committed, Mode::Saga) => assert!(all(BranchState::Done)),
        (Status::RolledBack, Mode::Tcc | Mode::Xa) => assert!(all(BranchState::Undone)),
        (Status::RolledBack, Mode::Saga) => {
            for (branch, Branch { state, refusal, .. }) in transaction.numbered() {
                // Only its participant's own word lets an action go that may have been called.
                let is_refused = *state == BranchState::Refused && refusal.is_some();
                let was_called = seen.owed.contains(&(branch, Op::Action));
                let is_over = *state == BranchState::Undone || is_refused || !was_called;
                assert!(is_over, "{gid} {branch} is {} in the end", state.as_str());
                assert_ne!(*state, BranchState::Done, "{gid} {branch}");
            }
        }
        _ => {}
    }
    if *status == Status::Committed {
        assert!(!seen.has_expired, "{gid} expired and commits");
    }
    if status.is_final() {
        assert!(branches.iter().all(|branch| branch.spec.payload.is_empty()));
    }
    match machine.owed(gid, &[]) {
        Next::Call(calls) => {
            assert!(!calls.is_empty());
            for (branch, op) in calls {
                match op {
                    Op::Confirm | Op::Commit => assert_eq!(*decision, Some(Decision::Commit)),
                    Op::Cancel | Op::Compensate | Op::RollBack => {
                        assert_eq!(*decision, Some(Decision::RollBack));
                    }
                    Op::Try | Op::Action | Op::Prepare => assert_eq!(*decision, None),
                }
                if transaction.branch(branch).unwrap().spec.pivot && op == Op::Action {
                    assert!(transaction.pivot_reached, "{gid} calls its pivot off the record");
                }
                seen.owed.insert((branch, op));
                let contradicts = |op| seen.owed.contains(&(branch, op));
                assert!(!(contradicts(Op::Confirm) && contradicts(Op::Cancel)), "{gid} {branch}");
                assert!(!(contradicts(Op::Commit) && contradicts(Op::RollBack)), "{gid} {branch}");
            }
        }
        Next::Wait => {
            let waits = [Status::Active, Status::NeedsAttention];
            assert!(status.is_final() || waits.contains(status), "{gid} is stuck, {status}");
        }
        next @ (Next::Become(..) | Next::Record) => panic!("{gid} is not settled: {next:?}"),
    }
}

/// The index against a look at every transaction.
fn check_due(machine: &Machine, now: Timestamp) {
    let all: Vec<_> = machine.list(None).collect();
    let owing: Vec<_> = all
        .iter()
        .filter(|one| matches!(machine.owed(&one.gid, &[]), Next::Call(_)))
        .map(|one| one.gid.clone())
        .collect();
    let ends = |one: &GlobalTransaction| {
        one.decision.is_none()
            && one.status != Status::NeedsAttention
            && !one.pivot_reached
            && (one.mode != Mode::Saga || one.options.recovery == Recovery::Backward)
    };
    let mut deadlines: Vec<_> =
        all.iter().filter(|one| ends(one)).map(|one| (one.deadline, one.gid.clone())).collect();
    deadlines.sort();
    assert_eq!(machine.next_deadline(), deadlines.first().map(|(at, _)| *at));
    let expired: Vec<_> =
        deadlines.into_iter().filter(|(at, _)| *at <= now).map(|(_, gid)| gid).collect();
    for limit in [0, 1, 3, usize::MAX] {
        let due = machine.due(now, limit);
        assert_eq!(due.owing, owing[..limit.min(owing.len())]);
        assert_eq!(due.expired, expired[..limit.min(expired.len())]);
    }
    let mut census = BTreeMap::new();
    all.iter().for_each(|one| *census.entry(one.status).or_insert(0) += 1);
    assert_eq!(machine.census(), census);
    assert_eq!(machine.open(), all.iter().filter(|one| !one.status.is_final()).count());
}

/// What the leader foresees from its memory is what happens when it reports.
fn check_foreseen(next: &Next, before: &GlobalTransaction, machine: &Machine) {
    let after = machine.get(&before.gid).unwrap();
    match next {
        Next::Become(status, decision) => {
            assert!(after.status == *status || may_become(*status, after.status));
            assert_ne!(before.status, after.status);
            assert!(decision.is_none() || after.decision == *decision);
        }
        Next::Record => assert!(after.pivot_reached && !before.pivot_reached),
        Next::Call(_) | Next::Wait => {
            assert_eq!(before.status, after.status);
            assert_eq!(machine.owed(&before.gid, &[]), *next, "recorded or not, the same is owed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_commands_keeps_every_promise(steps in vec(step(), 1..80)) {
        let mut machine = Machine::new();
        let mut now = Timestamp(1_000);
        let mut log = Vec::new();
        let mut seen: BTreeMap<Gid, Seen> = BTreeMap::new();
        let mut frozen = Vec::new();
        for step in &steps {
            frozen.push((machine.snapshot(), machine.state_hash()));
            if let Step::Clock { ms } = step {
                now = now.plus_ms(*ms);
            }
            let Some(command) = step.command(&machine) else { continue };
            log.push((now, command.clone()));
            let before = machine.snapshot();
            let foreseen = match &command {
                Command::Report { gid, reports } => machine
                    .get(gid)
                    .cloned()
                    .map(|transaction| (transaction, machine.owed(gid, reports))),
                _ => None,
            };

            let mut restored = Machine::restore(machine.snapshot());
            let outcome = machine.apply(now, command.clone());
            // Whoever hashes its content, it is the same command.
            prop_assert_eq!(&restored.apply(now, command.clone().hashed()), &outcome);
            prop_assert_eq!(restored.state_hash(), machine.state_hash());
            prop_assert_eq!(restored.snapshot(), machine.snapshot());

            let after = machine.snapshot();
            match &outcome {
                Err(_) => prop_assert_eq!((before.open, before.finished), (after.open, after.finished)),
                Ok(outcome) if outcome.repeated => {
                    prop_assert_eq!(outcome.moved, None);
                    prop_assert_eq!((before.open, before.finished), (after.open, after.finished));
                }
                Ok(outcome) => {
                    let gid = command.gid().expect("it is about a transaction");
                    let known = before.open.iter().find(|one| one.gid == *gid);
                    let (from, to) = (known.map(|one| one.status), machine.get(gid).unwrap().status);
                    match outcome.moved {
                        Some(moved) => {
                            prop_assert_eq!((moved.from, moved.to), (from, to));
                            prop_assert!(from.is_none_or(|from| may_become(from, to)));
                        }
                        None => prop_assert_eq!(from, Some(to)),
                    }
                    if matches!(command, Command::Expire { .. }) {
                        let known = known.unwrap();
                        prop_assert!(now >= known.deadline, "expired early");
                        seen.get_mut(gid).unwrap().has_expired = true;
                    }
                }
            }
            if let Some((before, next)) = foreseen {
                check_foreseen(&next, &before, &machine);
            }
            for transaction in machine.list(None) {
                check(transaction, &machine, seen.entry(transaction.gid.clone()).or_default());
            }
            check_due(&machine, now);
        }

        for (snapshot, hash) in frozen {
            prop_assert_eq!(snapshot.state_hash(), hash, "a snapshot moved with its machine");
        }
        let mut replayed = Machine::new();
        for (at, command) in log {
            let _ = replayed.apply(at, command);
        }
        prop_assert_eq!(replayed.state_hash(), machine.state_hash());
    }

    #[test]
    fn no_sequence_of_commands_outgrows_the_bounds(steps in vec(step(), 1..120)) {
        let mut machine = Machine::bounded(3, 1);
        let mut now = Timestamp(1_000);
        for step in &steps {
            if let Step::Clock { ms } = step {
                now = now.plus_ms(*ms);
            }
            if let Some(command) = step.command(&machine) {
                let _ = machine.apply(now, command);
            }
            prop_assert!(machine.open() <= 3);
            prop_assert!(machine.snapshot().finished.len() <= 1);
            check_due(&machine, now);
        }
    }
}

/// Properties of sequences that never get anywhere would prove nothing.
#[test]
fn the_sequences_reach_every_status_and_every_refusal_of_a_command() {
    let mut runner = TestRunner::deterministic();
    let (mut statuses, mut codes) = (BTreeSet::new(), BTreeSet::new());
    let mut marked_refused = 0;
    for _ in 0..300 {
        let steps = vec(step(), 80).new_tree(&mut runner).unwrap().current();
        let mut machine = Machine::bounded(3, 3);
        let mut now = Timestamp(1_000);
        for step in &steps {
            if let Step::Clock { ms } = step {
                now = now.plus_ms(*ms);
            }
            let Some(command) = step.command(&machine) else { continue };
            let approved = match &command {
                Command::Operate { gid, act: Act::Approve, .. } => {
                    machine.books().proposals.get(gid).map(|open| open.remedy)
                }
                _ => None,
            };
            match machine.apply(now, command) {
                Err(rejection) => _ = codes.insert(rejection.code()),
                Ok(_) if matches!(approved, Some(Remedy::MarkRefused(_))) => marked_refused += 1,
                Ok(_) => {}
            }
            statuses.extend(machine.census().into_keys());
        }
    }
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), Status::ALL);
    let wanted = ["HF2001", "HF2002", "HF2003", "HF2004", "HF2006", "HF2007", "HF2008"];
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), wanted);
    assert!(marked_refused > 0, "no branch was ever marked refused");
}
