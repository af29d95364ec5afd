//! Calls that spoiled a batch: next time they are carried out alone, so that one that can never succeed does not split every batch
//! it comes in.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_branch::Op;

use crate::participant::{Call, Gid};

/// How many calls are remembered; the eldest is forgotten first.
const COUNT_MAX: usize = 4096;

/// The calls under suspicion.
#[derive(Default)]
pub(crate) struct Suspects(Mutex<List>);

#[derive(Default)]
struct List {
    calls: HashSet<(Gid, u32, Op)>,
    /// In the order in which they came; may still name some that were acquitted.
    line: VecDeque<(Gid, u32, Op)>,
}

impl Suspects {
    pub(crate) fn has(&self, call: &Call) -> bool {
        let list = self.list();
        !list.calls.is_empty() && list.calls.contains(&key(call))
    }

    pub(crate) fn add(&self, call: &Call) {
        let mut list = self.list();
        if list.calls.insert(key(call)) {
            list.line.push_back(key(call));
            if list.line.len() > COUNT_MAX
                && let Some(eldest) = list.line.pop_front()
            {
                list.calls.remove(&eldest);
            }
        }
    }

    pub(crate) fn acquit(&self, call: &Call) {
        self.list().calls.remove(&key(call));
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(call: &Call) -> (Gid, u32, Op) {
    (call.gid.clone(), call.branch, call.op)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(branch: usize) -> Call {
        Call {
            gid: Gid::parse("g1").unwrap(),
            branch: u32::try_from(branch).unwrap(),
            op: Op::Try,
            payload: bytes::Bytes::new(),
            deadline_ms: 0,
            headers: Default::default(),
            attempt: 1,
            repeat: false,
            refusal_waits: false,
        }
    }

    #[test]
    fn the_last_place_is_taken_and_one_more_pushes_the_eldest_out() {
        let suspects = Suspects::default();
        (1..=COUNT_MAX).for_each(|branch| suspects.add(&call(branch)));
        assert!(suspects.has(&call(1)) && suspects.has(&call(COUNT_MAX)));
        suspects.add(&call(COUNT_MAX + 1));
        assert!(!suspects.has(&call(1)) && suspects.has(&call(2)));
        suspects.acquit(&call(2));
        assert!(!suspects.has(&call(2)));
    }
}
