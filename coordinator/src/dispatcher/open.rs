//! What the leader remembers of one open transaction: answers that are not in the log yet, and how far its calls are.

use std::sync::Arc;

use holdfast_txn::{Answer, BranchId, Op, Report, RetryPolicy, Timestamp};

use super::{
    attempts::{Attempt, Attempts},
    sessions::Ticket,
    spans::Traced,
    timers::Alarm,
};
use crate::clock;

/// Leader memory: lost with leadership, and nothing is lost by that.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// Answers that the log does not have, in the order in which they came.
    pub(super) heard: Vec<Report>,
    /// How many of them are in a report under way.
    pub(super) reporting: Option<usize>,
    /// No report before this tick: the last one had no result.
    pub(super) held_until_ms: u64,
    /// An expiry is under way.
    pub(super) expiring: bool,
    pub(super) calls: Vec<OpenCall>,
    pub(super) retry: Option<RetryPolicy>,
    pub(super) call_timeout_ms: u64,
    pub(super) alarm: Option<Alarm>,
    /// Waits to be looked at.
    pub(super) dirty: bool,
    /// Taken up from a former leader.
    pub(super) recovering: bool,
    /// Told to go on by people, and so perhaps called before.
    pub(super) retried: bool,
    /// What was seen of its calls; kept until the end.
    pub(super) attempts: Attempts,
    /// Whose spans it becomes part of, if anybody's.
    pub(super) traced: Option<Box<Traced>>,
    /// How many branches it had when that was found out; `None`: it was not yet.
    pub(super) traced_branches: Option<usize>,
}

/// One operation that is owed.
#[derive(Debug)]
pub(super) struct OpenCall {
    pub(super) branch: BranchId,
    pub(super) op: Op,
    /// How often it was asked.
    pub(super) asked: u32,
    /// How often in a row there was no answer.
    pub(super) unanswered: u32,
    pub(super) stage: Stage,
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// May be made at once.
    Ready,
    /// Made; unknown from `until_ms` on.
    UnderWay { ticket: Ticket, until_ms: u64 },
    /// Made, and to be made again at `until_ms`.
    Paused { until_ms: u64 },
    /// Not made for want of a session or its credit; tried again at `until_ms` at the latest.
    Parked { until_ms: u64, queued: bool },
}

impl Stage {
    fn until_ms(self) -> u64 {
        match self {
            Self::Ready => 0,
            Self::UnderWay { until_ms, .. }
            | Self::Paused { until_ms }
            | Self::Parked { until_ms, .. } => until_ms,
        }
    }
}

impl Open {
    pub(super) fn call_mut(&mut self, branch: BranchId, op: Op) -> Option<&mut OpenCall> {
        self.calls.iter_mut().find(|call| call.branch == branch && call.op == op)
    }

    /// Keeps the calls that are still owed and adds those that are new, to be made at `first_ms` at the earliest.
    pub(super) fn owe(&mut self, owed: &[(BranchId, Op)], first_ms: Option<u64>) {
        self.calls.retain(|call| owed.contains(&(call.branch, call.op)));
        for (branch, op) in owed {
            if self.call_mut(*branch, *op).is_none() {
                self.calls.push(OpenCall {
                    branch: *branch,
                    op: *op,
                    asked: 0,
                    unanswered: 0,
                    stage: first_ms.map_or(Stage::Ready, |until_ms| Stage::Paused { until_ms }),
                });
            }
        }
    }

    /// Remembers what came of a call that is under way.
    pub(super) fn seen(
        &mut self,
        (branch, op, ticket): (BranchId, Op, Ticket),
        outcome: &'static str,
        instance: Option<&Arc<str>>,
        (now, now_ms): (Timestamp, u64),
    ) {
        let timeout_ms = self.call_timeout_ms;
        let Some(call) = self.call_mut(branch, op) else { return };
        let Stage::UnderWay { ticket: asked, until_ms } = call.stage else { return };
        if asked != ticket {
            return;
        }
        let took_ms = (now_ms + timeout_ms).saturating_sub(until_ms);
        let attempt = Attempt {
            branch,
            op,
            number: call.asked,
            at: Timestamp(now.0.saturating_sub(took_ms)),
            took_ms: u32::try_from(took_ms).unwrap_or(u32::MAX),
            outcome,
            instance: instance.cloned().unwrap_or_default(),
        };
        if let Some(traced) = &self.traced {
            traced.called(&attempt);
        }
        self.attempts.add(attempt);
    }

    /// This node leads no more: what is under way is another's to end.
    pub(super) fn left(&self, now: Timestamp, now_ms: u64) {
        let Some(traced) = &self.traced else { return };
        for call in &self.calls {
            if let Stage::UnderWay { until_ms, .. } = call.stage {
                let took_ms = (now_ms + self.call_timeout_ms).saturating_sub(until_ms);
                let at = Timestamp(now.0.saturating_sub(took_ms));
                traced.left((call.branch, call.op, call.asked), at, now);
            }
        }
    }

    /// An answer that ends a call. False: it is not owed, or known already.
    pub(super) fn settle(&mut self, branch: BranchId, op: Op, answer: Answer) -> bool {
        let before = self.calls.len();
        self.calls.retain(|call| (call.branch, call.op) != (branch, op));
        let owed = self.calls.len() < before;
        if owed {
            self.heard.push(Report { branch, op, answer });
        }
        owed
    }

    /// The participant is at it: asked again at the same interval.
    pub(super) fn working(&mut self, branch: BranchId, op: Op, ticket: Ticket, now_ms: u64) {
        let first_ms = self.retry().first_ms;
        if let Some(call) = self.call_mut(branch, op)
            && matches!(call.stage, Stage::UnderWay { ticket: asked, .. } if asked == ticket)
        {
            call.unanswered = 0;
            call.stage = Stage::Paused { until_ms: now_ms + clock::jittered(first_ms).max(1) };
        }
    }

    /// A call has no answer: it is asked again after a pause, or given up where the caller set a bound. True: given up.
    pub(super) fn unknown(
        &mut self,
        branch: BranchId,
        op: Op,
        ticket: Ticket,
        why: impl FnOnce() -> String,
        now_ms: u64,
    ) -> bool {
        let retry = self.retry();
        let Some(call) = self.call_mut(branch, op) else { return false };
        if !matches!(call.stage, Stage::UnderWay { ticket: asked, .. } if asked == ticket) {
            return false;
        }
        call.unanswered = call.unanswered.saturating_add(1);
        if retry.attempts_max > 0 && call.unanswered >= retry.attempts_max {
            let attempts = call.unanswered;
            return self.settle(branch, op, Answer::GivenUp { attempts, last: why() });
        }
        let pause_ms = pause_ms(retry, call.unanswered);
        call.stage = Stage::Paused { until_ms: now_ms + clock::jittered(pause_ms).max(1) };
        false
    }

    /// The transaction was retried: what was heard of the attempt before would only interrupt it again.
    pub(super) fn begin_anew(&mut self) {
        self.retried = true;
        self.heard.clear();
        self.calls.clear();
        // What is under way has its place in the log already, before the retry or behind it.
        self.reporting = self.reporting.map(|_| 0);
    }

    /// When this transaction must be looked at again, if nothing happens.
    pub(super) fn next_ms(&self) -> Option<u64> {
        if self.reporting.is_some() {
            return None;
        }
        if self.held_until_ms > 0 {
            return Some(self.held_until_ms);
        }
        self.calls.iter().map(|call| call.stage.until_ms()).min()
    }

    pub(super) fn retry(&self) -> RetryPolicy {
        self.retry.unwrap_or(RetryPolicy { first_ms: 100, ceiling_ms: 10_000, attempts_max: 0 })
    }
}

/// Pauses double up to the ceiling.
fn pause_ms(retry: RetryPolicy, unanswered: u32) -> u64 {
    let doubled = 1_u64.checked_shl(unanswered.saturating_sub(1)).unwrap_or(u64::MAX);
    retry.first_ms.saturating_mul(doubled).min(retry.ceiling_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::announced::SessionId;

    const RETRY: RetryPolicy = RetryPolicy { first_ms: 100, ceiling_ms: 1_000, attempts_max: 3 };
    const B1: BranchId = BranchId(1);

    fn ticket(call_id: u64) -> Ticket {
        Ticket { session: SessionId(1), call_id }
    }

    fn asked() -> Open {
        let mut open = Open { retry: Some(RETRY), ..Open::default() };
        open.owe(&[(B1, Op::Try)], None);
        ask(&mut open, 1);
        open
    }

    fn ask(open: &mut Open, call_id: u64) {
        open.calls[0].stage = Stage::UnderWay { ticket: ticket(call_id), until_ms: 3_000 };
    }

    #[test]
    fn pauses_double_up_to_the_ceiling_and_never_overflow() {
        let pauses: Vec<_> = [1, 2, 3, 4, 5, 64, 65, u32::MAX]
            .into_iter()
            .map(|unanswered| pause_ms(RETRY, unanswered))
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_000, 1_000, 1_000, 1_000]);
    }

    #[test]
    fn the_last_attempt_without_an_answer_gives_up_and_not_the_one_before() {
        let mut open = asked();
        let why = || "silence".to_owned();
        assert!(!open.unknown(B1, Op::Try, ticket(1), why, 0));
        ask(&mut open, 2);
        assert!(!open.unknown(B1, Op::Try, ticket(2), why, 0));
        ask(&mut open, 3);
        assert!(open.unknown(B1, Op::Try, ticket(3), why, 0));
        let given_up = Answer::GivenUp { attempts: 3, last: "silence".to_owned() };
        assert_eq!(open.heard, [Report { branch: B1, op: Op::Try, answer: given_up }]);
        assert!(open.calls.is_empty());
    }

    #[test]
    fn working_starts_the_count_anew_and_keeps_the_interval() {
        let mut open = asked();
        open.unknown(B1, Op::Try, ticket(1), String::new, 0);
        ask(&mut open, 2);
        open.working(B1, Op::Try, ticket(2), 1_000);
        assert_eq!(open.calls[0].unanswered, 0);
        assert!(open.next_ms().is_some_and(|at_ms| (1_050..=1_100).contains(&at_ms)));
    }

    #[test]
    fn a_late_unknown_changes_nothing_and_a_late_done_counts() {
        let mut open = asked();
        ask(&mut open, 2);
        assert!(!open.unknown(B1, Op::Try, ticket(1), String::new, 0));
        assert!(matches!(open.calls[0].stage, Stage::UnderWay { .. }));
        assert!(open.settle(B1, Op::Try, Answer::Done));
        assert!(!open.settle(B1, Op::Try, Answer::Done), "the second answer adds nothing");
        assert_eq!(open.heard.len(), 1);
    }

    #[test]
    fn a_retry_forgets_what_was_heard_and_asked_before() {
        let mut open = asked();
        open.settle(B1, Op::Try, Answer::Done);
        open.reporting = Some(1);
        open.begin_anew();
        assert_eq!((open.heard.len(), open.calls.len(), open.reporting), (0, 0, Some(0)));
    }

    #[test]
    fn what_is_not_owed_any_more_is_forgotten() {
        let mut open = asked();
        open.owe(&[(B1, Op::Cancel), (BranchId(2), Op::Cancel)], None);
        assert_eq!(open.calls.len(), 2);
        assert!(open.calls.iter().all(|call| call.op == Op::Cancel && call.stage == Stage::Ready));
        assert!(!open.settle(B1, Op::Try, Answer::Done));
    }
}
