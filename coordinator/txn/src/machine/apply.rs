//! Commands: one function each, which judges first and then changes.

use std::sync::Arc;

use crate::{
    Answer, Branch, BranchId, BranchSpec, BranchState, Captures, Command, Decision, Digest, Gid,
    GlobalTransaction, Mode, Moved, Next, Options, Outcome, Rejection, Report, Status, Timestamp,
    TriedBy, digest, mode::View,
};

use super::{
    Machine, admission,
    index::{Index, Standing},
    progress::cut,
};

impl Outcome {
    pub(super) const UNCHANGED: Self = Self { moved: None, repeated: true };
}

impl Machine {
    /// Carries out `command`, whose entry is stamped `at`. Total and deterministic; a rejected command changes nothing
    /// but the clock, which never goes back.
    /// # Errors
    /// [`Rejection`], alike on every node.
    pub fn apply(&mut self, at: Timestamp, command: Command) -> Result<Outcome, Rejection> {
        self.clock = self.clock.max(at);
        match command {
            Command::Begin { gid, mode, options, branches, enlisted, content } => {
                let content = content
                    .unwrap_or_else(|| digest::of_content(mode, &options, &branches, enlisted));
                self.begin(gid, mode, options, branches, (enlisted, content))
            }
            Command::AddBranch { gid, branch, spec } => self.add_branch(&gid, branch, spec),
            Command::Nest { gid, parent, branch, spec } => self.nest(&gid, parent, branch, spec),
            Command::Submit { gid, captures } => self.submit(&gid, captures),
            Command::RollBack { gid, reason } => self.roll_back(&gid, reason),
            Command::Report { gid, reports } => self.report(&gid, &reports),
            Command::Expire { gid } => self.expire(&gid),
            Command::Retry { gid, reason } => self.retry(&gid, &reason),
            Command::Fence { gid, reason } => self.fence(gid, reason),
            Command::Finish { gid, branches, decision } => self.finish(&gid, &branches, decision),
            Command::Operate { gid, act, by, reason } => self.operate(&gid, act, by, reason),
            Command::SetRules { text, expected, by, reason } => {
                self.set_rules(text, expected, by, reason)
            }
            Command::Note { deed } => Ok(self.note(deed)),
        }
    }

    fn begin(
        &mut self,
        gid: Gid,
        mode: Mode,
        options: Options,
        branches: Vec<BranchSpec>,
        (enlisted, content): (bool, Digest),
    ) -> Result<Outcome, Rejection> {
        if let Some(known) = self.get(&gid) {
            return if known.content == content {
                Ok(Outcome::UNCHANGED)
            } else if known.content == digest::of_fence() {
                Err(Rejection::Fenced { gid })
            } else {
                Err(Rejection::GidTaken { gid })
            };
        }
        admission::check_begin(&gid, mode, &options, &branches, enlisted)?;
        let open = self.open();
        if open >= self.open_max {
            return Err(Rejection::TooManyOpen { open });
        }
        let mut transaction = GlobalTransaction {
            content,
            mode,
            enlisted,
            status: if enlisted { Status::Active } else { mode.rules().submitted() },
            interrupted: None,
            branches: branches.into_iter().map(Branch::pending).collect(),
            captures: Captures::default(),
            begun_at: self.clock,
            deadline: self.clock.plus_ms(options.timeout_ms),
            options,
            decision: None,
            decided_at: None,
            finished_at: None,
            pivot_reached: false,
            reason: None,
            gid: gid.clone(),
        };
        let next = if !enlisted && transaction.options.tried_by == TriedBy::Caller {
            transaction.believe_caller()
        } else {
            View::of(&transaction).next()
        };
        let owing = transaction.settle(next, self.clock, None);
        self.index.update(&gid, None, Some(Standing::of(&transaction, owing)));
        let moved = Moved { from: None, to: transaction.status };
        self.transactions.insert(gid, Arc::new(transaction));
        Ok(Outcome { moved: Some(moved), repeated: false })
    }

    fn add_branch(
        &mut self,
        gid: &Gid,
        branch: BranchId,
        spec: BranchSpec,
    ) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let is_repeat = transaction.branch(branch).is_some_and(|known| known.spec == spec);
        // The payloads of finished ones are gone, so that a repeat can no longer be told from another branch.
        if is_repeat && !transaction.status.is_final() {
            return Ok(Outcome::UNCHANGED);
        }
        if transaction.status != Status::Active {
            return Err(transaction.wrong_status("adding a branch"));
        }
        self.append(gid, branch, spec)
    }

    /// A branch for a participant that is being called: until it has answered, nothing is decided around it.
    fn nest(
        &mut self,
        gid: &Gid,
        parent: BranchId,
        branch: BranchId,
        spec: BranchSpec,
    ) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let is_repeat = transaction.branch(branch).is_some_and(|known| known.spec == spec);
        if is_repeat && !transaction.status.is_final() {
            return Ok(Outcome::UNCHANGED);
        }
        let malformed = |what: String| Err(Rejection::Malformed { gid: gid.clone(), what });
        let Some(caller) = transaction.branch(parent) else {
            let count = transaction.branches.len();
            return malformed(format!(
                "it has no {parent} to nest in; its branches are b1 to b{count}"
            ));
        };
        if transaction.options.tried_by == TriedBy::Caller || spec.pivot {
            return malformed(
                "a nested branch is called by the coordinator and is no pivot. Have the program that makes \
                 the calls add it, or mark the pivot at the begin"
                    .to_owned(),
            );
        }
        let is_open =
            matches!(transaction.status, Status::Active | Status::Trying | Status::Running);
        if !is_open || caller.state != BranchState::Pending {
            return Err(transaction.wrong_status("nesting in a branch whose call is over"));
        }
        self.append(gid, branch, spec)
    }

    fn append(
        &mut self,
        gid: &Gid,
        branch: BranchId,
        spec: BranchSpec,
    ) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let count = transaction.branches.len();
        if usize::try_from(branch.0).ok() != Some(count + 1) {
            let next = BranchId(branch_number(count + 1));
            return Err(Rejection::BranchTaken { gid: gid.clone(), branch, next });
        }
        admission::check_addition(transaction, &spec)?;
        Ok(self.change(gid, |transaction| {
            // Most transactions have two or three branches: room for more is made only when more come.
            if count < 4 {
                transaction.branches.reserve_exact(1);
            }
            transaction.branches.push(Branch::pending(spec));
            (View::of(transaction).next(), None)
        }))
    }

    fn submit(&mut self, gid: &Gid, captures: Captures) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let malformed = |what: &str| Rejection::Malformed { gid: gid.clone(), what: what.into() };
        if !transaction.enlisted {
            return Err(malformed(
                "it was declared with all its branches and needs no submit. Ask for its status",
            ));
        }
        if transaction.status != Status::Active {
            let is_submitted = transaction.interrupted != Some(Status::Active)
                && transaction.decision != Some(Decision::RollBack);
            if !is_submitted {
                return Err(transaction.wrong_status("submit"));
            }
            // Those of finished ones are gone, so that a repeat can no longer be told from another submit.
            return if transaction.status.is_final() || transaction.captures == captures {
                Ok(Outcome::UNCHANGED)
            } else {
                Err(malformed(
                    "it was submitted with other captures, and they never change. Ask for its status",
                ))
            };
        }
        if transaction.branches.is_empty() {
            return Err(malformed(
                "it has no branches. Add at least one before the submit, or roll it back",
            ));
        }
        admission::check_captures(transaction, &captures)?;
        Ok(self.change(gid, |transaction| {
            transaction.captures = captures;
            match transaction.options.tried_by {
                TriedBy::Coordinator => {
                    (Next::Become(transaction.mode.rules().submitted(), None), None)
                }
                TriedBy::Caller => (transaction.believe_caller(), None),
            }
        }))
    }

    pub(super) fn roll_back(&mut self, gid: &Gid, reason: String) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        match transaction.decision {
            Some(Decision::RollBack) => return Ok(Outcome::UNCHANGED),
            Some(Decision::Commit) => return Err(transaction.wrong_status("rollback")),
            None => {}
        }
        let rules = transaction.mode.rules();
        let Some(status) = rules.way_back(&View::of(transaction)) else {
            return Err(transaction.wrong_status("rollback behind the pivot"));
        };
        self.withdraw(gid);
        Ok(self.change(gid, |_| (Next::Become(status, Some(Decision::RollBack)), Some(reason))))
    }

    fn report(&mut self, gid: &Gid, reports: &[Report]) -> Result<Outcome, Rejection> {
        let Some(shared) = self.transactions.open_mut(gid) else {
            // One that is over hears nothing more.
            return self.known(gid).map(|_| Outcome::UNCHANGED);
        };
        let view = View::hearing(shared, reports);
        let next = view.next();
        let heard = view.into_heard();
        let stays = match next {
            Next::Call(_) | Next::Wait => true,
            Next::Become(..) | Next::Record => false,
        };
        if stays && heard.is_empty() {
            return Ok(Outcome::UNCHANGED);
        }
        let (outcome, ended) = change(shared, &mut self.index, self.clock, |transaction| {
            let reason = heard.reason.clone();
            transaction.record(heard);
            (next, reason)
        });
        if ended {
            self.remember_finished(gid);
        }
        Ok(outcome)
    }

    fn expire(&mut self, gid: &Gid) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let ends = Standing::of(transaction, false).deadline();
        if ends.is_none_or(|deadline| self.clock < deadline) {
            return Ok(Outcome::UNCHANGED);
        }
        let status = transaction.mode.rules().way_back(&View::of(transaction));
        let status = status.expect("a transaction whose deadline counts has a way back");
        Ok(self.change(gid, |transaction| {
            let timeout_ms = transaction.options.timeout_ms;
            let reason = format!("its deadline passed: not decided in {timeout_ms} ms");
            (Next::Become(status, Some(Decision::RollBack)), Some(reason))
        }))
    }

    pub(super) fn retry(&mut self, gid: &Gid, reason: &str) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let Some(interrupted) = transaction.interrupted else {
            return Err(transaction.wrong_status("retry"));
        };
        let reason = format!("retried: {reason}");
        self.withdraw(gid);
        Ok(self.change(gid, |_| (Next::Become(interrupted, None), Some(reason))))
    }

    fn fence(&mut self, gid: Gid, reason: String) -> Result<Outcome, Rejection> {
        if self.get(&gid).is_some() {
            return self.roll_back(&gid, reason);
        }
        let fence = GlobalTransaction::fence(gid.clone(), self.clock, reason);
        self.index.update(&gid, None, Some(Standing::of(&fence, false)));
        let moved = Moved { from: None, to: fence.status };
        self.transactions.insert(gid, Arc::new(fence));
        self.forget_oldest();
        Ok(Outcome { moved: Some(moved), repeated: false })
    }

    fn finish(
        &mut self,
        gid: &Gid,
        branches: &[BranchId],
        decision: Decision,
    ) -> Result<Outcome, Rejection> {
        let transaction = self.known(gid)?;
        let malformed = |what: String| Err(Rejection::Malformed { gid: gid.clone(), what });
        match transaction.mode {
            Mode::Xa => {}
            Mode::Tcc | Mode::Saga => {
                return malformed(
                    "only the second phase of an XA transaction may be carried out by its caller. \
                     Leave it to the coordinator, or have an operator resolve the branch"
                        .to_owned(),
                );
            }
        }
        if transaction.decision != Some(decision) {
            return Err(transaction.wrong_status(match decision {
                Decision::Commit => "having committed its branches",
                Decision::RollBack => "having rolled back its branches",
            }));
        }
        if let Some(unknown) = branches.iter().find(|one| transaction.branch(**one).is_none()) {
            let count = transaction.branches.len();
            return malformed(format!("it has no {unknown}; its branches are b1 to b{count}"));
        }
        let Some(op) = transaction.mode.rules().op(transaction, transaction.phase()) else {
            // It is over.
            return Ok(Outcome::UNCHANGED);
        };
        let report = |branch| Report { branch, op, answer: Answer::Done };
        let reports: Vec<_> = if branches.is_empty() {
            transaction.numbered().map(|(branch, _)| report(branch)).collect()
        } else {
            branches.iter().copied().map(report).collect()
        };
        self.report(gid, &reports)
    }

    pub(super) fn known(&self, gid: &Gid) -> Result<&GlobalTransaction, Rejection> {
        self.get(gid).ok_or_else(|| Rejection::UnknownGid { gid: gid.clone() })
    }

    /// Changes an open transaction, lets it settle from what `judge` answers, and keeps the index. One that is over never changes.
    pub(super) fn change(
        &mut self,
        gid: &Gid,
        judge: impl FnOnce(&mut GlobalTransaction) -> (Next, Option<String>),
    ) -> Outcome {
        let Some(shared) = self.transactions.open_mut(gid) else { return Outcome::UNCHANGED };
        let (outcome, ended) = change(shared, &mut self.index, self.clock, judge);
        if ended {
            self.remember_finished(gid);
        }
        outcome
    }

    fn remember_finished(&mut self, gid: &Gid) {
        self.transactions.finish(gid);
        self.forget_oldest();
    }

    /// Keeps the window of finished transactions at its size.
    fn forget_oldest(&mut self) {
        while let Some(gone) = self.transactions.forget_oldest(self.finished_max) {
            self.index.update(&gone.gid, Some(Standing::of(&gone, false)), None);
        }
    }
}

/// Changes a transaction in its place; also answers whether it ended by that.
fn change(
    shared: &mut Arc<GlobalTransaction>,
    index: &mut Index,
    clock: Timestamp,
    judge: impl FnOnce(&mut GlobalTransaction) -> (Next, Option<String>),
) -> (Outcome, bool) {
    let transaction = Arc::make_mut(shared);
    let from = transaction.status;
    let before = Standing::of(transaction, index.is_owing(transaction));
    let (next, reason) = judge(transaction);
    let owing = transaction.settle(next, clock, reason);
    let to = transaction.status;
    let after = Standing::of(transaction, owing);
    index.update(&transaction.gid, Some(before), Some(after));
    let moved = (from != to).then_some(Moved { from: Some(from), to });
    (Outcome { moved, repeated: false }, to.is_final())
}

impl Branch {
    fn pending(spec: BranchSpec) -> Self {
        Self { spec, state: BranchState::Pending, refusal: None }
    }
}

impl GlobalTransaction {
    /// What a gid is that was fenced before it was begun: over, and remembered as long as others are.
    fn fence(gid: Gid, clock: Timestamp, mut reason: String) -> Self {
        cut(&mut reason);
        Self {
            gid,
            mode: Mode::Xa,
            options: Options::of(Mode::Xa),
            content: digest::of_fence(),
            enlisted: true,
            status: Status::RolledBack,
            interrupted: None,
            branches: Vec::new(),
            captures: Captures::default(),
            begun_at: clock,
            deadline: clock,
            decision: Some(Decision::RollBack),
            decided_at: Some(clock),
            finished_at: Some(clock),
            pivot_reached: false,
            reason: Some(reason),
        }
    }

    /// The caller's word that the first phase is done at every branch: it decides.
    fn believe_caller(&mut self) -> Next {
        for index in 0..self.branches.len() {
            self.branch_becomes(index, BranchState::Done);
        }
        Next::Become(Status::Committing, Some(Decision::Commit))
    }

    pub(super) fn wrong_status(&self, wanted: &'static str) -> Rejection {
        Rejection::WrongStatus { gid: self.gid.clone(), status: self.status, wanted }
    }
}

fn branch_number(position: usize) -> u32 {
    u32::try_from(position).expect("a transaction has at most BRANCHES_MAX branches")
}
