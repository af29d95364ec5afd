//! Finds the leader and keeps one stream to it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    ClientOptions,
    link::{Link, OpenError},
};

/// Addresses remembered; the first ones are those the program gave.
const ADDRESSES_MAX: usize = 64;
/// A stream that goes by way of a follower is looked at again after so long: the leader may be in reach by then.
const DETOUR_MAX: Duration = Duration::from_secs(5);
/// A node that was given up is not asked again for so long, where others are known: one that was stopped takes connections and
/// answers nothing, so that asking it costs the whole time-out.
const SHUN_MAX: Duration = Duration::from_secs(3);
/// Between two looks for a leader that nobody knew, however many requests wait for it.
const SEARCH_INTERVAL: Duration = Duration::from_millis(10);

/// Where the leader is, as far as is known, and the stream to it.
#[derive(Debug)]
pub(crate) struct Leader {
    options: ClientOptions,
    state: Mutex<State>,
    /// Held by whoever opens a stream; the others wait for its result.
    opening: tokio::sync::Mutex<()>,
    /// Wakes those who wait for a stream.
    opened: Notify,
}

#[derive(Debug)]
struct State {
    addresses: Vec<String>,
    current: Option<Arc<Link>>,
    hint: Option<String>,
    turn: usize,
    /// The node that was given up last.
    shunned: Option<(String, Instant)>,
    /// How often opening failed, and how and when the last time.
    failures: u64,
    last: Option<(OpenError, Instant)>,
}

impl Leader {
    pub(crate) fn new(addresses: Vec<String>, options: ClientOptions) -> Self {
        let state = State {
            addresses,
            current: None,
            hint: None,
            turn: 0,
            shunned: None,
            failures: 0,
            last: None,
        };
        Self {
            options,
            state: Mutex::new(state),
            opening: tokio::sync::Mutex::default(),
            opened: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every address known.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.state().addresses.clone()
    }

    /// The stream to the leader, opened if there is none. One attempt, shared by all who ask meanwhile.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, OpenError> {
        let failures = match self.state().serving() {
            Ok(link) => return Ok(link),
            Err(failures) => failures,
        };
        let _opening = self.opening.lock().await;
        {
            let state = self.state();
            match state.serving() {
                Ok(link) => return Ok(link),
                Err(now) => match &state.last {
                    Some((error, at)) if now > failures || at.elapsed() < SEARCH_INTERVAL => {
                        return Err(error.clone());
                    }
                    Some(_) | None => {}
                },
            }
        }
        let candidate = self.state().candidate();
        let opened = self.open(&candidate).await;
        let mut state = self.state();
        match opened {
            Ok(link) => {
                let link = Arc::new(link);
                state.learn(&link);
                state.current = Some(Arc::clone(&link));
                self.opened.notify_waiters();
                Ok(link)
            }
            Err(error) => {
                state.failures += 1;
                state.last = Some((error.clone(), Instant::now()));
                Err(error)
            }
        }
    }

    /// Whether there is a stream in use.
    pub(crate) fn is_known(&self) -> bool {
        self.state().serving().is_ok()
    }

    /// Returns when there is a stream in use that another request opened.
    pub(crate) async fn found(&self) {
        let opened = self.opened.notified();
        tokio::pin!(opened);
        // From here on no opening is missed.
        opened.as_mut().enable();
        if !self.is_known() {
            opened.await;
        }
    }

    /// A stream to the leader that `candidate` names; by way of `candidate` if the leader itself is out of reach.
    async fn open(&self, candidate: &str) -> Result<Link, OpenError> {
        let first = Link::open(candidate, false, &self.options).await?;
        if first.told().leads {
            return Ok(first);
        }
        self.state().learn(&first);
        let Some(leader) = first.told().leader.clone().filter(|leader| leader != candidate) else {
            let cause = "it knows of no leader; an election may be under way".to_owned();
            return Err(OpenError { address: candidate.to_owned(), cause, code: None });
        };
        match Link::open(&leader, false, &self.options).await {
            Ok(second) if second.told().leads => Ok(second),
            Ok(second) => {
                let cause =
                    format!("node {candidate} says that it leads, and it says that it does not");
                Err(OpenError { address: second.address().to_owned(), cause, code: None })
            }
            Err(error) => {
                tracing::info!(%leader, %error, by = candidate, "the leader is out of reach; going by way of a follower");
                Link::open(candidate, true, &self.options).await
            }
        }
    }

    /// `link` is of no use any more; the leader may be at `hint`. Requests under way on it are still answered.
    pub(crate) fn abandon(&self, link: &Arc<Link>, hint: Option<String>) {
        let mut state = self.state();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.current = None;
            state.hint = hint.filter(|hint| hint != link.address());
            state.shunned = Some((link.address().to_owned(), Instant::now()));
        }
    }
}

impl State {
    /// The stream in use, or how often opening one has failed so far.
    fn serving(&self) -> Result<Arc<Link>, u64> {
        let usable = |link: &&Arc<Link>| {
            link.is_open() && (link.told().leads || link.opened().elapsed() < DETOUR_MAX)
        };
        self.current.as_ref().filter(usable).cloned().ok_or(self.failures)
    }

    /// The next node to ask: the one that was hinted at, or the next in turn.
    fn candidate(&mut self) -> String {
        if let Some(hint) = self.hint.take() {
            return hint;
        }
        let shunned = self.shunned.take_if(|(_, at)| at.elapsed() >= SHUN_MAX);
        drop(shunned);
        for _ in 0..self.addresses.len() {
            let address = &self.addresses[self.turn % self.addresses.len()];
            self.turn = self.turn.wrapping_add(1);
            if self.shunned.as_ref().is_none_or(|(shunned, _)| shunned != address) {
                return address.clone();
            }
        }
        self.addresses[0].clone()
    }

    fn learn(&mut self, link: &Link) {
        for node in &link.told().nodes {
            if self.addresses.len() < ADDRESSES_MAX && !self.addresses.contains(node) {
                self.addresses.push(node.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(addresses: &[&str]) -> State {
        let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        Leader::new(addresses, ClientOptions::default()).state.into_inner().unwrap()
    }

    #[test]
    fn a_node_that_was_given_up_is_not_asked_for_a_while_unless_there_is_no_other() {
        let mut state = state(&["a", "b", "c"]);
        state.shunned = Some(("b".to_owned(), Instant::now()));
        let asked: Vec<String> = (0..4).map(|_| state.candidate()).collect();
        assert_eq!(asked, ["a", "c", "a", "c"]);
        // Whoever is said to lead is asked all the same.
        state.hint = Some("b".to_owned());
        assert_eq!(state.candidate(), "b");
        let past = Instant::now().checked_sub(SHUN_MAX).expect("the machine is up for longer");
        state.shunned = Some(("b".to_owned(), past));
        let asked: Vec<String> = (0..3).map(|_| state.candidate()).collect();
        assert_eq!(asked, ["a", "b", "c"]);
        let mut alone = self::state(&["a"]);
        alone.shunned = Some(("a".to_owned(), Instant::now()));
        assert_eq!(alone.candidate(), "a");
    }
}
