//! By which rules a session's work was planned, and what becomes of it when others follow.
//!
//! From its planning to its end work has an entry in its worker's ledger: whoever moves slots waits for what was planned before it froze them.
//! Work that began before goes on where the rows are; what begins while slots are frozen, or are not seen settled, and would touch them waits
//! here, holding nothing but what its transaction holds, and is planned anew by the rules that follow.

use std::{rc::Rc, sync::Arc};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{End, FAILED, IDLE, IN_TRANSACTION, Session, consume::Taken, global};
use crate::{counts::Waiting, meaning::Slots, refusal::Refusal};

/// A statement that waits for slots.
pub(super) struct Held {
    since: Instant,
    until: Instant,
    /// Its client wants it no more.
    canceled: bool,
    cancels: Arc<Notify>,
    _counted: Waiting,
}

impl Session {
    /// Whether nothing is under way that was planned.
    pub(super) fn is_free(&self) -> bool {
        let between = self.status == IDLE && !self.batch_open && self.expected.is_empty();
        self.scatters.is_empty() && (self.bound.is_none() || between || self.is_visiting())
    }

    /// Why the transaction must not go on: since it began, rows may have got other places. What is planned next has its entry.
    pub(super) fn outdated(&mut self) -> Option<Refusal> {
        if self.planned.is_none() || self.is_free() {
            self.planned = Some(self.worker.plan());
            self.read_committed = None;
        }
        if self.status == FAILED {
            return None;
        }
        if !self.is_kept() {
            return Some(crate::rules::moved());
        }
        self.left_behind()
    }

    /// Whether the rules that count now keep what was planned.
    fn is_kept(&self) -> bool {
        self.planned.as_ref().is_none_or(|planned| self.worker.keeps(planned))
    }

    /// Why nothing more may be done at the servers in use: one is not the primary any more, or a quiet one was lost.
    fn left_behind(&self) -> Option<Refusal> {
        let parked = self.global.iter().flat_map(|global| &global.parked);
        if let Some(lost) = parked.clone().find(|member| member.bound.server.broken) {
            let source = lost.bound.pool.source.name();
            return Some(global::lost_within(source, "it did not answer"));
        }
        let mut bounds = self.bound.iter().chain(parked.map(|member| &member.bound));
        bounds.find_map(|bound| bound.pool.left_behind(&bound.server))
    }

    /// Why the transaction must not commit: what it has written may lie where nobody looks for it any more.
    pub(super) fn must_not_commit(&self) -> Option<Refusal> {
        let parked = self.global.iter().flat_map(|global| &global.parked);
        let wrote = self.wrote || parked.into_iter().any(|member| member.wrote);
        if self.bound.is_none() || !wrote || self.status != IN_TRANSACTION || self.is_visiting() {
            return None;
        }
        if !self.is_kept() {
            return Some(crate::rules::moved());
        }
        if let Some(refusal) = self.left_behind() {
            return Some(refusal);
        }
        self.worker.meanings.borrow().held().cloned()
    }

    /// Whether there is a transaction, of the client or of a batch, in which something was planned before the statement at hand.
    fn is_within_work(&self) -> bool {
        let alone = self.status == IDLE && !self.batch_ran && self.scatters.is_empty();
        !self.is_free() && !alone
    }

    /// Whether a snapshot of the transaction may be older than the end of a move: it would see rows where they were, and not where they are.
    fn may_see_before_moves(&self) -> bool {
        let planned = self.planned.as_ref().filter(|_| self.bound.is_some());
        planned.is_some_and(|planned| self.worker.may_see_before_moves(planned))
            && self.is_within_work()
            && self.read_committed != Some(true)
    }

    /// Whether the statement at hand must wait for slots that are on their way, if it would touch some. Not if it belongs to work that began
    /// before they were frozen: whoever moves them waits for its end.
    pub(super) fn slots(&self) -> Slots {
        // Whatever it would be, its server ignores it.
        if self.status == FAILED {
            return Slots::Known;
        }
        let meanings = self.worker.meanings.borrow();
        if self.may_see_before_moves() {
            return Slots::Awaited;
        }
        let awaited = meanings.awaited();
        let began = self.planned.as_ref().map(|planned| planned.turn().epoch);
        let before = || {
            let now = meanings.rules().map(|rules| rules.epoch());
            began < now && self.is_within_work() && awaited.iter().all(|step| step.is_frozen())
        };
        if awaited.is_empty() || before() { Slots::Known } else { Slots::Awaited }
    }

    /// The statement at hand has to wait, and has perhaps for a while.
    /// # Errors
    /// It has waited long enough, or its client wants it no more: nothing was done. Or it is of a transaction that would see rows where they were.
    pub(super) fn hold_up(&mut self) -> Result<Taken, Refusal> {
        if self.is_within_work() && self.bound.is_some() {
            // Only if each statement has a snapshot of its own is there anything to wait for.
            self.end_turn();
            match self.read_committed {
                Some(true) => {}
                None if self.status == IN_TRANSACTION && !self.expected.is_empty() => {
                    return Ok(Taken::Later);
                }
                None if self.status == IN_TRANSACTION => {}
                None | Some(false) => return Err(crate::rules::seen_before()),
            }
        }
        if self.held.is_none() {
            let (since, limits) = (Instant::now(), self.worker.limits());
            let cancels = self.ticket.waits();
            let _counted = self.worker.shared().counts.waits();
            let until = since + limits.frozen_wait;
            self.held = Some(Box::new(Held { since, until, canceled: false, cancels, _counted }));
        }
        let Some(held) = &self.held else { unreachable!("it was just put there") };
        let waited = held.since.elapsed().as_millis();
        let refuse = |sqlstate, cause: String, remedy: &str| {
            Err(Refusal::new("HF3228", sqlstate, cause, remedy))
        };
        if held.canceled {
            let cause = format!("canceled; it waited {waited} ms for slots that are being moved");
            return refuse("57014", cause, "Nothing was done");
        }
        if held.until <= Instant::now() {
            let meanings = self.worker.meanings.borrow();
            let steps: Vec<&str> = meanings.awaited().iter().map(|step| step.id.as_str()).collect();
            let limit = self.worker.limits().frozen_wait.as_millis();
            let cause = format!(
                "it would touch slots that are being moved ({}), and they were not there within {limit} ms (limits.frozen_wait_ms)",
                steps.join(", ")
            );
            return refuse("40001", cause, "Nothing was done: try again");
        }
        Ok(Taken::Held)
    }

    /// Asks the server at work, which is in the midst of a transaction and quiet, whether each statement there has a snapshot of its own.
    async fn ask_isolation(&mut self) {
        let limit = self.worker.limits().commit_timeout;
        let Some(bound) = &mut self.bound else { return };
        let told = global::within(limit, &mut bound.server, &["SHOW transaction_isolation"]).await;
        let level = told.ok().and_then(|reply| reply.rows.into_iter().flatten().next().flatten());
        // One that does not answer is lost, which is told with what is asked of it next.
        self.read_committed = Some(level.is_some_and(|level| level.starts_with("read ")));
    }

    /// Waits for other rules, as long as it may, while everything else of the session goes on.
    pub(super) async fn hold(&mut self) -> Result<(), End> {
        if self.read_committed.is_none() && self.is_within_work() && self.bound.is_some() {
            self.ask_isolation().await;
            return Ok(());
        }
        let worker = Rc::clone(&self.worker);
        let (Some(held), Some(rules)) = (&self.held, &worker.shared().rules) else { return Ok(()) };
        let (until, cancels) = (held.until, Arc::clone(&held.cancels));
        let mut news = rules.news();
        // Nothing may slip in between: what is new by now is looked at first.
        if worker.has_news() {
            return Ok(());
        }
        tokio::select! {
            _ = news.changed() => Ok(()),
            () = sleep_until(until) => Ok(()),
            () = cancels.notified() => {
                self.held.iter_mut().for_each(|held| held.canceled = true);
                Ok(())
            }
            done = self.traffic() => done,
        }
    }
}
