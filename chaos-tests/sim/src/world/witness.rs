//! The witness: sees every entry, local transaction, call and answer, replays the log by itself, and asks every invariant.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use holdfast_branch::Verdict;
use holdfast_ledger::Posting;
use holdfast_txn::{
    Act, BranchId, Command, Decision, Gid, Machine, Order, Outcome, Recovery, Rejection, Status,
    TriedBy,
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
        opposite::SecondPhases, repeats::Owners, rules::Rules, told::ToldDecisions,
    },
    settings::Settings,
    workload::Plan,
};

/// Everything that is known of a run from outside.
#[derive(Debug)]
pub(crate) struct Witness {
    /// The log, replayed as it is committed.
    pub(crate) log: Machine,
    pub(crate) deadlines: Deadlines,
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
        for command in &entry.commands {
            let result = self.log.apply(entry.at, command.clone());
            count_people(command, &result, counts);
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
            }
            let known = self.log.get(gid).expect("it took effect");
            let moved = outcome.moved;
            if self.deadlines.applied(entry.at, command, known, moved.is_some())? {
                counts.count(Happening::Expired);
            }
            if known.pivot_reached {
                counts.count(Happening::PivotReached);
            }
            if let Some(moved) = moved {
                self.moves.moved(gid, moved)?;
                counts.count(of_status(moved.to));
                if moved.from.is_none() {
                    count_style(known, self.one_shard.contains(gid), counts);
                }
                if moved.to.is_final() {
                    self.effects.at_end(known)?;
                    self.money.at_end(known, self.worth_minor[gid])?;
                }
            }
        }
        Ok(())
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
    let worth = |spec: &holdfast_txn::BranchSpec| {
        let words = words(&spec.payload);
        let minor: i64 = words[2].parse().expect("the workload names amounts");
        match &*words[0] {
            "debit" => -minor,
            "credit" => minor,
            _ => 0,
        }
    };
    branches.iter().map(worth).sum()
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
fn count_style(known: &holdfast_txn::GlobalTransaction, one_shard: bool, counts: &mut Counts) {
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
        (Command::Operate { act: Act::Approve, .. }, Ok(_)) if took => {
            Happening::OperatorMarkedDone
        }
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
