//! Calls that wait for a session of their service, or for its credit: a bounded queue for each service.

use std::collections::{HashMap, VecDeque};

use holdfast_txn::{BranchId, Gid, Op, Participant};

/// An operation of one branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CallKey {
    pub(super) gid: Gid,
    pub(super) branch: BranchId,
    pub(super) op: Op,
}

/// Every queue. What does not fit is asked again after a pause instead.
#[derive(Debug)]
pub(super) struct Parked {
    queues: HashMap<Participant, VecDeque<CallKey>>,
    per_service_max: usize,
    count: usize,
}

impl Parked {
    pub(super) fn new(per_service_max: usize) -> Self {
        Self { queues: HashMap::new(), per_service_max, count: 0 }
    }

    /// Queues a call; false when the service's queue is full.
    pub(super) fn park(&mut self, service: &Participant, key: CallKey) -> bool {
        let queue = match self.queues.get_mut(service) {
            Some(queue) => queue,
            None => self.queues.entry(service.clone()).or_default(),
        };
        let fits = queue.len() < self.per_service_max;
        if fits {
            queue.push_back(key);
            self.count += 1;
        }
        fits
    }

    /// The call of `service` that waits longest.
    pub(super) fn unpark(&mut self, service: &Participant) -> Option<CallKey> {
        let queue = self.queues.get_mut(service)?;
        let key = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(service);
        }
        self.count -= usize::from(key.is_some());
        key
    }

    pub(super) fn waits_for(&self, service: &Participant) -> bool {
        self.queues.contains_key(service)
    }

    /// How many wait for `service`.
    pub(super) fn waiting_for(&self, service: &Participant) -> usize {
        self.queues.get(service).map_or(0, VecDeque::len)
    }

    /// Each service that calls wait for, and how many, by name.
    pub(super) fn services(&self) -> impl Iterator<Item = (&Participant, usize)> {
        let mut services: Vec<_> =
            self.queues.iter().map(|(service, queue)| (service, queue.len())).collect();
        services.sort_unstable();
        services.into_iter()
    }

    /// Forgets what nobody owes any more.
    pub(super) fn sweep(&mut self, mut still_owed: impl FnMut(&CallKey) -> bool) {
        self.queues.retain(|_, queue| {
            queue.retain(&mut still_owed);
            !queue.is_empty()
        });
        self.count = self.queues.values().map(VecDeque::len).sum();
    }

    pub(super) fn clear(&mut self) {
        self.queues.clear();
        self.count = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(branch: u32) -> CallKey {
        CallKey { gid: Gid::parse("g1").unwrap(), branch: BranchId(branch), op: Op::Try }
    }

    #[test]
    fn the_last_place_is_taken_and_one_more_is_turned_away() {
        let service = Participant::parse("deposit").unwrap();
        let mut parked = Parked::new(2);
        assert!(parked.park(&service, key(1)));
        assert!(parked.park(&service, key(2)));
        assert!(!parked.park(&service, key(3)));
        assert_eq!(parked.len(), 2);
        assert_eq!(parked.unpark(&service), Some(key(1)));
        assert!(parked.park(&service, key(3)));
        assert_eq!(parked.unpark(&service), Some(key(2)));
        assert_eq!(parked.unpark(&service), Some(key(3)));
        assert_eq!(parked.unpark(&service), None);
        assert!(!parked.waits_for(&service));
        assert_eq!(parked.len(), 0);
    }

    #[test]
    fn a_sweep_forgets_what_is_not_owed() {
        let service = Participant::parse("deposit").unwrap();
        let mut parked = Parked::new(8);
        (1..=4).for_each(|branch| assert!(parked.park(&service, key(branch))));
        parked.sweep(|key| key.branch.0 == 3);
        assert_eq!(parked.len(), 1);
        assert_eq!(parked.unpark(&service), Some(key(3)));
    }
}
