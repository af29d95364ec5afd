//! Finds the leader and keeps one stream to it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    ClientOptions,
    link::{Link, OpenError},
};

/// Addresses remembered; the first ones are those the program gave.
const ADDRESSES_MAX: usize = 64;
/// A stream that goes by way of a follower is looked at again after so long: the leader may be in reach by then.
const DETOUR_MAX: Duration = Duration::from_secs(5);

/// Where the leader is, as far as is known, and the stream to it.
#[derive(Debug)]
pub(crate) struct Leader {
    options: ClientOptions,
    state: Mutex<State>,
    /// Held by whoever opens a stream; the others wait for its result.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    addresses: Vec<String>,
    current: Option<Arc<Link>>,
    hint: Option<String>,
    turn: usize,
    /// How often opening failed, and how the last time.
    failures: u64,
    last: Option<OpenError>,
}

impl Leader {
    pub(crate) fn new(addresses: Vec<String>, options: ClientOptions) -> Self {
        let state =
            State { addresses, current: None, hint: None, turn: 0, failures: 0, last: None };
        Self { options, state: Mutex::new(state), opening: tokio::sync::Mutex::new(()) }
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
                Err(now) if now > failures => {
                    return Err(state.last.clone().expect("a failure leaves its error"));
                }
                Err(_) => {}
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
                Ok(link)
            }
            Err(error) => {
                state.failures += 1;
                state.last = Some(error.clone());
                Err(error)
            }
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
        let address = self.addresses[self.turn % self.addresses.len()].clone();
        self.turn = self.turn.wrapping_add(1);
        address
    }

    fn learn(&mut self, link: &Link) {
        for node in &link.told().nodes {
            if self.addresses.len() < ADDRESSES_MAX && !self.addresses.contains(node) {
                self.addresses.push(node.clone());
            }
        }
    }
}
