//! The witness: sees every entry, local transaction, call and answer, replays the log by itself, and asks every invariant.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use holdfast_branch::Verdict;
use holdfast_ledger::{BranchKey, Posting};
use holdfast_txn::{
    Act, BranchId, BranchState, Command, Decision, Gid, GlobalTransaction, Machine, Op, Order,
    Outcome, Recovery, Rejection, Remedy, Status, TriedBy,
};

use super::{
    cluster::Entry,
    database::{Call, Carried, Database, Said, words},
    network::Told,
    node::Asker,
};
use crate::{
    happening::{Counts, Happening},
    invariant::{
        Checked, alike::Effects, answers::Exchanges, counters::Folds, deeds::Deeds,
        equal::Prefixes, expiry::Deadlines, hold, known, late::Undone, money::Money, moves::Moves,
        opposite::SecondPhases, outbox::Messages, people::People, prepared::LocalEnds,
        repeats::Owners, rules::Rules, told::ToldDecisions,
    },
    settings::Settings,
    workload::{Plan, shard_of_participant},
};

/// Everything that is known of a run from outside.
#[derive(Debug)]
pub(crate) struct Witness {
    /// The log, replayed as it is committed.
    pub(crate) log: Machine,
    pub(crate) deadlines: Deadlines,
    pub(crate) people: People,
    pub(crate) local_ends: LocalEnds,
    pub(crate) messages: Messages,
    /// What people owe for transactions that they have abandoned: calls, each at a shard.
    pub(crate) abandoned: BTreeMap<Gid, Vec<(usize, Call)>>,
    pub(crate) prefixes: Prefixes,
    money: Money,
    folds: Folds,
    effects: Effects,
    told: ToldDecisions,
    second_phases: SecondPhases,
    moves: Moves,
    owners: Owners,
    undone: Undone,
    /// What the branches of each transaction move together, minor units: 0, unless it brings money from outside, or its
    /// caller vanished before all branches were there.
    worth_minor: BTreeMap<Gid, i64>,
    one_shard: BTreeSet<Gid>,
    pub(crate) rules: Rules,
    pub(crate) deeds: Deeds,
    exchanges: Exchanges,
}

impl Witness {
    pub(crate) fn new(settings: &Settings) -> Self {
        let start = settings.balance_minor * settings.accounts as u64;
        Self {
            log: Machine::new(),
            deadlines: Deadlines::default(),
            people: People::default(),
            local_ends: LocalEnds::default(),
            messages: Messages::default(),
            abandoned: BTreeMap::new(),
            prefixes: Prefixes::default(),
            money: Money::new(i64::try_from(start).expect("small balances")),
            folds: Folds::default(),
            effects: Effects::default(),
            told: ToldDecisions::default(),
            second_phases: SecondPhases::default(),
            moves: Moves::default(),
            owners: Owners::default(),
            undone: Undone::default(),
            worth_minor: BTreeMap::new(),
            one_shard: BTreeSet::new(),
            rules: Rules::default(),
            deeds: Deeds::default(),
            exchanges: Exchanges::default(),
        }
    }

    /// The accounts are open, and nothing else has happened.
    pub(crate) fn opened<'a>(
        &mut self,
        databases: impl Iterator<Item = &'a Database> + Clone,
    ) -> Checked {
        for database in databases.clone() {
            self.folds.at_commit(database.journal.iter(), database)?;
        }
        self.money.at_commit([].iter(), databases)
    }

    /// Somebody may ask for this transaction.
    pub(crate) fn expect(&mut self, plan: &Plan) {
        if plan.one_shard {
            self.one_shard.insert(plan.gid.clone());
        }
    }

    /// An entry is committed.
    pub(crate) fn committed(&mut self, entry: &Entry, counts: &mut Counts) -> Checked {
        self.deadlines.passes(entry.at);
        for command in &entry.commands {
            let approval = self.approval(command);
            let result = self.log.apply(entry.at, command.clone());
            count_people(command, &result, counts);
            if let (Some(approval), Ok(_)) = (approval, &result) {
                self.approved(approval, counts)?;
            }
            let Ok(outcome) = result else { continue };
            if let (Command::SetRules { expected, text, .. }, false) = (command, outcome.repeated) {
                self.rules.applied(*expected, text)?;
            }
            let Some(gid) = command.gid() else { continue };
            if let (Command::Begin { .. }, false) = (command, outcome.repeated) {
                self.owners.begun(gid, command)?;
            }
            if !outcome.repeated {
                *self.worth_minor.entry(gid.clone()).or_default() += worth_minor(command);
                self.captures(gid, command, counts);
            }
            let known = self.log.get(gid).expect("it took effect");
            let moved = outcome.moved;
            if self.deadlines.applied(command, known, moved.is_some())? {
                counts.count(Happening::Expired);
            }
            if known.pivot_reached {
                counts.count(Happening::PivotReached);
            }
            if let Some(moved) = moved {
                self.moves.moved(gid, command, moved)?;
                counts.count(of_status(moved.to));
                if moved.from.is_none() {
                    count_style(known, self.one_shard.contains(gid), counts);
                }
                if moved.to.is_final() && !self.abandoned.contains_key(gid) {
                    self.effects.at_end(known)?;
                    self.money.at_end(known, self.worth_minor[gid])?;
                }
            }
        }
        Ok(())
    }

    /// What an approval is about, if it takes effect.
    fn approval(&self, command: &Command) -> Option<Approval> {
        let Command::Operate { gid, act: Act::Approve, reason, .. } = command else { return None };
        let proposal = self.log.books().proposals.get(gid)?;
        let (proposed, approved) = (proposal.reason.clone(), reason.clone());
        let remedy = proposal.remedy;
        let owed = self.log.get(gid).filter(|_| remedy == Remedy::Abandon).map(owed_by);
        Some(Approval { gid: gid.clone(), proposed, approved, remedy, owed })
    }

    /// An approval took effect.
    fn approved(&mut self, approval: Approval, counts: &mut Counts) -> Checked {
        let Approval { gid, proposed, approved, remedy, owed } = approval;
        counts.count(match remedy {
            Remedy::MarkDone(_) => Happening::OperatorMarkedDone,
            Remedy::MarkRefused(_) | Remedy::BelieveRefused(_) => Happening::OperatorMarkedRefused,
            Remedy::Abandon => Happening::OperatorAbandoned,
        });
        if let Some(owed) = owed {
            self.abandoned.insert(gid, owed);
        }
        self.people.approved(&proposed, &approved)
    }

    /// A submit says what the confirms of its branches are to capture.
    fn captures(&mut self, gid: &Gid, command: &Command, counts: &mut Counts) {
        let Command::Submit { captures, .. } = command else { return };
        if !captures.is_empty() {
            counts.count(Happening::PartialCapture);
        }
        for (branch, payload) in captures.iter() {
            let known = self.log.get(gid).and_then(|known| known.branch(branch));
            let tried_minor = worth_of(&known.expect("its captures were checked").spec.payload);
            let minor: i64 = words(payload)[1].parse().expect("the workload names amounts");
            let captured_minor = tried_minor.signum() * minor;
            *self.worth_minor.entry(gid.clone()).or_default() += captured_minor - tried_minor;
            self.money.asked(BranchKey::new(gid.as_str(), branch.0), captured_minor);
        }
    }

    /// A local transaction is committed.
    pub(crate) fn local_commit<'a>(
        &mut self,
        carried: &[Carried],
        shard: usize,
        databases: impl Iterator<Item = &'a Database> + Clone,
        counts: &mut Counts,
    ) -> Checked {
        for one in carried {
            counts.count(match one.verdict {
                Verdict::Proceed | Verdict::Disorder(_) => Happening::VerdictProceed,
                Verdict::Repeat(_) => Happening::VerdictRepeat,
                Verdict::Empty => Happening::VerdictEmpty,
                Verdict::Late => Happening::VerdictLate,
            });
            match &one.said {
                Said::Refused(code) if code == "insufficient_funds" => {
                    counts.count(Happening::RefusedFunds);
                }
                Said::Refused(code) if code == "account_closed" => {
                    counts.count(Happening::RefusedClosed);
                }
                Said::Refused(_) | Said::Done | Said::Working | Said::Unknown => {}
            }
            SecondPhases::carried(one)?;
            self.undone.carried(one)?;
        }
        known::at_commit(postings(carried), &self.log)?;
        self.messages.at_commit(postings(carried))?;
        self.effects.at_commit(postings(carried))?;
        let own = databases.clone().nth(shard).expect("the shard is there");
        self.folds.at_commit(postings(carried), own)?;
        self.money.at_commit(postings(carried), databases)
    }

    /// A leader sends a call.
    pub(crate) fn sent(&mut self, call: &Call) -> Checked {
        let gid = Gid::parse(&call.key.gid).expect("a key is made of a gid");
        self.second_phases.sent(&call.key, call.op, self.log.get(&gid))
    }

    /// A router tells its client what was decided.
    pub(crate) fn router_told(&mut self, gid: &Gid, decision: Decision) -> Checked {
        self.told.decided(&self.log, gid, decision)
    }

    /// A caller will never be answered.
    pub(crate) fn untold(&mut self, asker: &Asker, now_ms: u64) {
        self.exchanges.told(asker, &Told::Unknown, now_ms);
    }

    /// A caller is answered.
    pub(crate) fn told(&mut self, asker: &Asker, told: &Told, now_ms: u64) -> Checked {
        self.exchanges.told(asker, told, now_ms);
        let Asker { gid, command: Some(command), .. } = asker else { return Ok(()) };
        if command.gid().is_none() {
            return Ok(());
        }
        match told {
            Told::Decided(decision) => {
                self.told.decided(&self.log, gid, *decision)?;
                self.owners.accepted(gid, command)
            }
            Told::Known => {
                ToldDecisions::acknowledged(&self.log, gid)?;
                self.owners.accepted(gid, command)
            }
            Told::Seen(_) | Told::Refused { .. } | Told::NotLeading | Told::Unknown => Ok(()),
        }
    }

    /// The transaction that was asked for after the heal is committed.
    pub(crate) fn last_committed(&self, gid: &str) -> Checked {
        let gid = Gid::parse(gid).expect("a short gid");
        let status = self.log.get(&gid).map(|known| known.status);
        hold(status == Some(Status::Committed), "I17", || {
            format!("a new transaction ended as {status:?} after the heal")
        })
    }

    /// Nothing moves any more.
    pub(crate) fn at_quiet(&self, log: &[Rc<Entry>]) -> Checked {
        self.exchanges.judged(log)?;
        self.told.at_quiet(&self.log)?;
        for known in self.log.list(None) {
            self.effects.at_end(known)?;
            self.money.at_end(known, self.worth_minor[&known.gid])?;
            let finished = known.decision.is_some_and(|decision| {
                known.status
                    == match decision {
                        Decision::Commit => Status::Committed,
                        Decision::RollBack => Status::RolledBack,
                    }
            });
            hold(finished, "I6", || {
                format!("{} is {}, decided was {:?}", known.gid, known.status, known.decision)
            })?;
        }
        Ok(())
    }
}

/// Every posting of a local transaction, in order.
fn postings(carried: &[Carried]) -> impl Iterator<Item = &Posting> {
    carried.iter().flat_map(|one| &one.postings)
}

/// What the branches that a command brings move together, minor units.
fn worth_minor(command: &Command) -> i64 {
    let branches = match command {
        Command::Begin { branches, .. } => branches.as_slice(),
        Command::AddBranch { spec, .. } | Command::Nest { spec, .. } => std::slice::from_ref(spec),
        Command::Submit { .. }
        | Command::RollBack { .. }
        | Command::Report { .. }
        | Command::Expire { .. }
        | Command::Retry { .. }
        | Command::Fence { .. }
        | Command::Finish { .. }
        | Command::Operate { .. }
        | Command::SetRules { .. }
        | Command::Note { .. } => &[],
    };
    branches.iter().map(|spec| worth_of(&spec.payload)).sum()
}

/// What an instruction brings to its account, minor units; one within a shard brings nothing.
fn worth_of(payload: &[u8]) -> i64 {
    let words = words(payload);
    let minor: i64 = words[2].parse().expect("the workload names amounts");
    match &*words[0] {
        "debit" => -minor,
        "credit" => minor,
        _ => 0,
    }
}

/// An approval, and what it is about.
#[derive(Debug)]
struct Approval {
    gid: Gid,
    /// The reasons of the two people.
    proposed: String,
    approved: String,
    remedy: Remedy,
    /// To abandon: the calls that nobody will make any more.
    owed: Option<Vec<(usize, Call)>>,
}

/// The calls that a transaction waits for which is decided and stands still.
fn owed_by(known: &GlobalTransaction) -> Vec<(usize, Call)> {
    let (op, ended) = match known.interrupted {
        Some(Status::Committing) => (Op::Confirm, BranchState::Confirmed),
        _ => (Op::Cancel, BranchState::Undone),
    };
    let owing = known.numbered().filter(|(_, branch)| branch.state != ended);
    owing
        .map(|(number, branch)| {
            let key = BranchKey::new(known.gid.as_str(), number.0);
            let captured = known.captures.of(number).filter(|_| op == Op::Confirm);
            let payload = captured.unwrap_or(&branch.spec.payload).clone();
            let call = Call { key, op, payload, refusal_waits: false };
            (shard_of_participant(&branch.spec.participant), call)
        })
        .collect()
}

fn of_status(status: Status) -> Happening {
    match status {
        Status::Active => Happening::StatusActive,
        Status::Trying => Happening::StatusTrying,
        Status::Running => Happening::StatusRunning,
        Status::Committing => Happening::StatusCommitting,
        Status::RollingBack => Happening::StatusRollingBack,
        Status::Compensating => Happening::StatusCompensating,
        Status::Committed => Happening::StatusCommitted,
        Status::RolledBack => Happening::StatusRolledBack,
        Status::NeedsAttention => Happening::StatusNeedsAttention,
    }
}

/// Which style of transaction was begun.
fn count_style(known: &GlobalTransaction, one_shard: bool, counts: &mut Counts) {
    counts.count(if one_shard { Happening::OneShard } else { Happening::CrossShard });
    let first = known.branch(BranchId(1));
    let has = |wanted: fn(&holdfast_txn::BranchSpec) -> bool| {
        known.branches.iter().any(|branch| wanted(&branch.spec))
    };
    for (is_so, happening) in [
        (known.enlisted, Happening::Enlisted),
        (known.options.tried_by == TriedBy::Caller, Happening::TriedByCaller),
        (first.is_some() && has(|spec| spec.pivot), Happening::Pivot),
        (known.options.recovery == Recovery::Forward, Happening::ForwardRecovery),
        (
            known.options.order == Order::Sequential && has(|spec| spec.after.is_some()),
            Happening::PartialOrder,
        ),
    ] {
        if is_so {
            counts.count(happening);
        }
    }
}

/// What people did, by what came of it.
fn count_people(command: &Command, result: &Result<Outcome, Rejection>, counts: &mut Counts) {
    let took = result.as_ref().is_ok_and(|outcome| !outcome.repeated);
    let happening = match (command, result) {
        (Command::Operate { .. }, Ok(_)) if took => Happening::OperatorActed,
        (Command::Operate { .. }, Err(Rejection::SecondPerson { .. })) => {
            Happening::SecondPersonRefused
        }
        (Command::SetRules { .. }, Ok(_)) if took => Happening::RulesApplied,
        (Command::SetRules { .. }, Err(Rejection::RulesChanged { .. })) => Happening::RulesRefused,
        (Command::Note { .. }, Ok(_)) => Happening::AuditNoted,
        (Command::Nest { .. }, Ok(_)) if took => Happening::Nested,
        _ => return,
    };
    counts.count(happening);
}

/// The transaction that a command is about; what is about none goes by a name of its own.
pub(crate) fn gid_of(command: &Command) -> Gid {
    let books = || Gid::parse("the-books").expect("a short gid");
    command.gid().cloned().unwrap_or_else(books)
}
