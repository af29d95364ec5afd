//! The hash of a group's whole state, computed beside the work and only for those who ask.

use std::{sync::Arc, time::Instant};

use holdfast_txn::Digest;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::replica::SharedState;

/// The state's hash after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry in the state.
    pub applied_index: u64,
    /// [`holdfast_txn::Machine::state_hash`] after it.
    pub digest: Digest,
}

/// Computes one hash at a time. A million open transactions take a second of one core: the state is held fast for a count of its
/// transactions, and read on a thread where nothing else waits.
#[derive(Debug, Default)]
pub(crate) struct StateHasher {
    /// The last one, and when its state was taken.
    last: Arc<Mutex<Option<(Instant, StateHash)>>>,
}

impl StateHasher {
    /// Of a state that is no older than this question. Those who ask meanwhile share one answer, so a crowd costs two hashes.
    pub(crate) async fn hash(&self, state: &SharedState) -> StateHash {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((taken, known)) = *last
            && (taken >= asked || state.held().applied_index == known.applied_index)
        {
            return known;
        }
        let state = state.clone();
        // The thread keeps the lock: where the caller gives up, nobody begins a second hash beside this one.
        let computed = spawn_blocking(move || {
            let taken = Instant::now();
            let (snapshot, applied_index) = state.snapshot();
            let known = StateHash { applied_index, digest: snapshot.state_hash() };
            *last = Some((taken, known));
            known
        });
        computed.await.expect("hashing never panics")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_txn::{Command, Deed, Timestamp};

    use super::*;

    fn write(state: &SharedState) {
        let mut held = state.held();
        let deed = Deed {
            by: "user/sam".to_owned(),
            act: "cluster.add".to_owned(),
            about: "node 4".to_owned(),
            words: String::new(),
        };
        held.machine.apply(Timestamp(1), Command::Note { deed }).unwrap();
        held.applied_index += 1;
    }

    #[tokio::test]
    async fn a_hash_is_of_the_state_at_the_time_of_the_question_or_later() {
        let (hasher, state) = (StateHasher::default(), SharedState::new());
        let first = hasher.hash(&state).await;
        assert_eq!(first.digest, state.held().machine.state_hash());
        assert_eq!(hasher.hash(&state).await, first, "nothing moved");
        write(&state);
        let second = hasher.hash(&state).await;
        assert_eq!(second.applied_index, 1);
        assert_ne!(second.digest, first.digest);
        assert_eq!(second.digest, state.held().machine.state_hash());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_a_hash_that_ends_before_the_next_begins() {
        let (hasher, state) = (StateHasher::default(), SharedState::new());
        // Looked at once, which begins it, and then dropped.
        let _gone = tokio::time::timeout(Duration::ZERO, hasher.hash(&state)).await;
        let (_, known) = hasher.last.lock().await.expect("it was computed all the same");
        assert_eq!(known.digest, state.held().machine.state_hash());
    }

    #[tokio::test]
    async fn a_crowd_shares_the_answer_that_was_begun_after_it_asked() {
        let (hasher, state) = (Arc::new(StateHasher::default()), SharedState::new());
        // The first is held up where it would compute, and all others ask meanwhile.
        let busy = hasher.last.lock().await;
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (hasher, state) = (Arc::clone(&hasher), state.clone());
            crowd.spawn(async move { hasher.hash(&state).await });
        }
        tokio::task::yield_now().await;
        drop(busy);
        let first = crowd.join_next().await.unwrap().unwrap();
        // The state moves on behind the first answer: the others take it all the same, for it is younger than their questions.
        write(&state);
        while let Some(told) = crowd.join_next().await {
            assert_eq!(told.unwrap(), first);
        }
        assert_ne!(hasher.hash(&state).await, first);
    }
}
