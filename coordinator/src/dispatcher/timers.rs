//! Alarms, at most one for each transaction, in the order in which they ring.

use std::collections::BTreeMap;

use holdfast_txn::Gid;

/// Names an alarm that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alarm {
    pub(super) at_ms: u64,
    /// Tells alarms of the same millisecond apart.
    number: u64,
}

/// Every alarm.
#[derive(Debug, Default)]
pub(super) struct Timers {
    alarms: BTreeMap<Alarm, Gid>,
    next_number: u64,
}

impl Timers {
    pub(super) fn set(&mut self, at_ms: u64, gid: &Gid) -> Alarm {
        let alarm = Alarm { at_ms, number: self.next_number };
        self.next_number += 1;
        self.alarms.insert(alarm, gid.clone());
        alarm
    }

    pub(super) fn clear(&mut self, alarm: Alarm) {
        self.alarms.remove(&alarm);
    }

    pub(super) fn clear_all(&mut self) {
        self.alarms.clear();
    }

    /// When the next one rings.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.alarms.first_key_value().map(|(alarm, _)| alarm.at_ms)
    }

    /// The next one that has rung by `now_ms`.
    pub(super) fn rung(&mut self, now_ms: u64) -> Option<Gid> {
        let first = self.alarms.first_entry()?;
        (first.key().at_ms <= now_ms).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_ring_in_order_once_and_not_before_their_time() {
        let gid = |text: &str| Gid::parse(text).unwrap();
        let mut timers = Timers::default();
        timers.set(20, &gid("late"));
        let cleared = timers.set(5, &gid("cleared"));
        timers.set(10, &gid("first"));
        timers.set(10, &gid("second"));
        timers.clear(cleared);
        assert_eq!(timers.next_ms(), Some(10));
        assert_eq!(timers.rung(9), None);
        assert_eq!(timers.rung(10), Some(gid("first")));
        assert_eq!(timers.rung(10), Some(gid("second")));
        assert_eq!(timers.rung(10), None);
        assert_eq!(timers.rung(u64::MAX), Some(gid("late")));
        assert_eq!(timers.next_ms(), None);
    }
}
