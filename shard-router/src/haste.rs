//! How soon a worker's thread runs when something arrives for it.
//!
//! A statement by itself can wait until a busy processor comes around: the thread then finds several at one waking instead of one, and clients
//! and servers are interrupted less (sched(7), `SCHED_BATCH`). On an idle processor nothing waits. A transaction holds locks between its
//! statements, and whoever waits for one waits for the router too. So as long as one is open the thread is woken like any other.

use std::{cell::Cell, rc::Rc};

use preempt_rt::sched::{Pid, RtResult, Scheduler, SchedulerParams, set_scheduler};

/// Of one worker, on its thread.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The kernel lets the thread have a policy.
    allowed: bool,
    /// Those who are in a hurry.
    hurries: Cell<usize>,
}

/// Somebody on this worker holds locks; no longer when dropped.
#[derive(Debug)]
pub(crate) struct Haste(Rc<Pace>);

impl Pace {
    /// Has the thread that calls take its time from now on.
    pub(crate) fn start(number: usize) -> Rc<Self> {
        let set = schedule(Scheduler::SCHED_BATCH);
        if let Err(error) = &set {
            tracing::info!(worker = number, %error, "worker is scheduled as others are: the kernel did not allow SCHED_BATCH");
        }
        Rc::new(Self { allowed: set.is_ok(), hurries: Cell::new(0) })
    }

    /// Has the thread woken at once as long as the answer is kept.
    pub(crate) fn hurry(self: &Rc<Self>) -> Haste {
        let hurries = self.hurries.replace(self.hurries.get() + 1);
        self.change(hurries == 0, Scheduler::SCHED_NORMAL);
        Haste(Rc::clone(self))
    }

    fn change(&self, due: bool, policy: Scheduler) {
        if due && self.allowed {
            // Between these two nobody needs a right, and with either one all is served.
            let _set_or_as_before = schedule(policy);
        }
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        let left = self.0.hurries.get() - 1;
        self.0.hurries.set(left);
        self.0.change(left == 0, Scheduler::SCHED_BATCH);
    }
}

fn schedule(policy: Scheduler) -> RtResult<()> {
    set_scheduler(Pid::current_thread(), policy, SchedulerParams { priority: 0 })
}

#[cfg(test)]
mod tests {
    use preempt_rt::sched::get_scheduler;

    use super::*;

    #[test]
    fn a_worker_is_woken_at_once_from_the_first_open_transaction_to_the_last() {
        let told = std::thread::spawn(|| {
            let now = || get_scheduler(Pid::current_thread()).expect("one's own policy");
            let pace = Pace::start(0);
            let none = now();
            let (first, second) = (pace.hurry(), pace.hurry());
            let both = now();
            drop(first);
            let one = now();
            drop(second);
            (none, both, one, now())
        });
        let (batch, normal) = (Scheduler::SCHED_BATCH, Scheduler::SCHED_NORMAL);
        assert_eq!(told.join().expect("the thread ends"), (batch, normal, normal, batch));
    }
}
