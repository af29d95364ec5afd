//! Threads that leave the processors to the work: whoever applies or answers runs first.
//!
//! Where nothing is idle such a thread still has a share, a quarter of a processor beside one thread of the work (setpriority(2), sched(7)).
//! That is more than writing a history or a snapshot takes, so each keeps up, and every search ends. `SCHED_IDLE` would have next to nothing
//! there.
//!
//! A share is taken at a stretch, and whoever waits meanwhile waits for milliseconds. So what takes long goes on only while nobody waits, as long
//! as it has [`Leisure`].

use std::{
    thread::yield_now,
    time::{Duration, Instant},
};

use preempt_rt::sched::{Pid, Scheduler, SchedulerParams, set_scheduler};
use rustix::{
    io,
    process::{getpriority_process, setpriority_process},
};

/// How much nicer they are than the work.
const NICER: i32 = 5;

/// Has the thread that calls run behind others from now on. Where the kernel does not allow it, it runs as they do.
pub fn stand_back() {
    // Whoever runs when it wakes is not interrupted for it.
    let batch = SchedulerParams { priority: 0 };
    if let Err(error) = set_scheduler(Pid::current_thread(), Scheduler::SCHED_BATCH, batch) {
        tracing::info!(%error, "a background thread is scheduled as others are: the kernel did not allow SCHED_BATCH");
    }
    if let Err(error) = be_nicer() {
        tracing::info!(%error, "a background thread is as urgent as others: the kernel did not allow its nice value");
    }
}

fn be_nicer() -> io::Result<()> {
    // To Linux, "this process" is this thread.
    setpriority_process(None, getpriority_process(None)? + NICER)
}

/// How long a piece of work may go on only while nobody else waits for a processor.
#[derive(Clone, Copy, Debug)]
pub struct Leisure {
    until: Instant,
}

impl Leisure {
    /// That long from now.
    pub(crate) fn of(time: Duration) -> Self {
        Self { until: Instant::now() + time }
    }

    /// Not at all.
    #[must_use]
    pub fn none() -> Self {
        Self::of(Duration::ZERO)
    }

    /// Gives the processor to whoever waits for it: called every few dozen microseconds. Behind its time it returns at once.
    pub fn leave_way(&self) {
        if !self.is_over() {
            yield_now();
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use preempt_rt::sched::get_scheduler;

    use super::*;

    #[test]
    fn a_thread_that_stands_back_is_nicer_than_its_process_and_no_other_thread_is() {
        let now = || (getpriority_process(None), get_scheduler(Pid::current_thread()).ok());
        let ours = now();
        let stood_back = thread::spawn(move || {
            stand_back();
            now()
        });
        let nicer = (ours.0.unwrap() + NICER).min(19);
        assert_eq!(stood_back.join().unwrap(), (Ok(nicer), Some(Scheduler::SCHED_BATCH)));
        assert_eq!(now(), ours);
    }

    #[test]
    fn leisure_is_over_when_its_time_is() {
        assert!(Leisure::none().is_over());
        assert!(!Leisure::of(Duration::from_secs(3_600)).is_over());
    }
}
