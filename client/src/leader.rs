//! Finds the leader of each Raft group and keeps one stream to each node that leads any.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    ClientOptions, group_of,
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

/// Where the leaders are, as far as is known, and the streams to them.
#[derive(Debug)]
pub(crate) struct Leader {
    options: ClientOptions,
    state: Mutex<State>,
    /// Wakes those who wait for a stream.
    opened: Notify,
}

#[derive(Debug)]
struct State {
    addresses: Vec<String>,
    turn: usize,
    /// One for each group that the cluster is known to have; one until a node has said how many.
    seats: Vec<Seat>,
}

/// What is known of the leader of one group.
#[derive(Debug, Default)]
struct Seat {
    current: Option<Stream>,
    hint: Option<String>,
    /// The node that was given up last.
    shunned: Option<(String, Instant)>,
    /// How often opening failed, and how and when the last time.
    failures: u64,
    last: Option<(OpenError, Instant)>,
    /// Held by whoever opens a stream; the others wait for its result.
    opening: Arc<tokio::sync::Mutex<()>>,
}

/// A stream in use.
#[derive(Clone, Debug)]
struct Stream {
    link: Arc<Link>,
    /// It goes by way of a follower.
    detour: bool,
}

impl Leader {
    pub(crate) fn new(addresses: Vec<String>, options: ClientOptions) -> Self {
        let state = State { addresses, turn: 0, seats: vec![Seat::default()] };
        Self { options, state: Mutex::new(state), opened: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every address known.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.state().addresses.clone()
    }

    /// The stream to the leader of the group in which `gid` lives, opened if there is none. One attempt, shared by all who ask for the
    /// group meanwhile.
    pub(crate) async fn link(&self, gid: &str) -> Result<Arc<Link>, OpenError> {
        let (failures, opening) = {
            let state = self.state();
            let seat = &state.seats[state.group(gid)];
            match seat.serving() {
                Ok(link) => return Ok(link),
                Err(failures) => (failures, Arc::clone(&seat.opening)),
            }
        };
        let _opening = opening.lock().await;
        let candidate = {
            let mut state = self.state();
            let group = state.group(gid);
            let seat = &state.seats[group];
            match seat.serving() {
                Ok(link) => return Ok(link),
                Err(now) => {
                    // Meanwhile the number of groups may have become known; then this is another seat.
                    let now = if Arc::ptr_eq(&opening, &seat.opening) { now } else { failures };
                    match &seat.last {
                        Some((error, at)) if now > failures || at.elapsed() < SEARCH_INTERVAL => {
                            return Err(error.clone());
                        }
                        Some(_) | None => state.candidate(group),
                    }
                }
            }
        };
        let opened = self.open(gid, &candidate).await;
        let mut state = self.state();
        let group = state.group(gid);
        let seat = &mut state.seats[group];
        match opened {
            Ok(stream) => {
                let link = Arc::clone(&stream.link);
                seat.current = Some(stream);
                self.opened.notify_waiters();
                Ok(link)
            }
            Err(error) => {
                seat.failures += 1;
                seat.last = Some((error.clone(), Instant::now()));
                Err(error)
            }
        }
    }

    /// Whether there is a stream in use for the group of `gid`.
    pub(crate) fn is_known(&self, gid: &str) -> bool {
        let state = self.state();
        state.seats[state.group(gid)].serving().is_ok()
    }

    /// Returns when there is a stream in use for the group of `gid` that another request opened.
    pub(crate) async fn found(&self, gid: &str) {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            // From here on no opening is missed.
            opened.as_mut().enable();
            if self.is_known(gid) {
                return;
            }
            opened.await;
        }
    }

    /// A stream to the leader that `candidate` names; by way of `candidate` if the leader itself is out of reach.
    async fn open(&self, gid: &str, candidate: &Candidate) -> Result<Stream, OpenError> {
        if let Candidate::Open(link) = candidate {
            return Ok(Stream { link: Arc::clone(link), detour: false });
        }
        let candidate = candidate.address();
        let first = Link::open(candidate, false, &self.options).await?;
        let (leads, leader, known) = {
            let mut state = self.state();
            state.learn(&first);
            let group = state.group(gid);
            let leader = first.told().leader(group).filter(|leader| *leader != candidate);
            let known = leader.and_then(|leader| state.open_to(leader));
            (first.told().leads(group), leader.map(str::to_owned), known)
        };
        if leads {
            return Ok(Stream { link: Arc::new(first), detour: false });
        }
        let Some(leader) = leader else {
            let cause = "it knows of no leader; an election may be under way".to_owned();
            return Err(OpenError { address: candidate.to_owned(), cause, code: None });
        };
        if let Some(link) = known {
            return Ok(Stream { link, detour: false });
        }
        match Link::open(&leader, false, &self.options).await {
            Ok(second) if second.told().leads(self.state().group(gid)) => {
                self.state().learn(&second);
                Ok(Stream { link: Arc::new(second), detour: false })
            }
            Ok(second) => {
                let cause =
                    format!("node {candidate} says that it leads, and it says that it does not");
                Err(OpenError { address: second.address().to_owned(), cause, code: None })
            }
            Err(error) => {
                tracing::info!(%leader, %error, by = candidate, "the leader is out of reach; going by way of a follower");
                let link = Arc::new(Link::open(candidate, true, &self.options).await?);
                Ok(Stream { link, detour: true })
            }
        }
    }

    /// `link` is of no use for the group of `gid` any more; its leader may be at `hint`. Requests under way on it are still answered.
    pub(crate) fn abandon(&self, link: &Arc<Link>, gid: &str, hint: Option<String>) {
        let mut state = self.state();
        let group = state.group(gid);
        let seat = &mut state.seats[group];
        if seat.current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.link, link)) {
            seat.current = None;
            seat.hint = hint.filter(|hint| hint != link.address());
            seat.shunned = Some((link.address().to_owned(), Instant::now()));
        }
    }
}

/// Where to look for a leader.
enum Candidate {
    /// At this address.
    At(String),
    /// At the other end of a stream that serves another group.
    Open(Arc<Link>),
}

impl Candidate {
    fn address(&self) -> &str {
        match self {
            Self::At(address) => address,
            Self::Open(link) => link.address(),
        }
    }
}

impl Seat {
    /// The stream in use, or how often opening one has failed so far.
    fn serving(&self) -> Result<Arc<Link>, u64> {
        let usable = |stream: &&Stream| {
            stream.link.is_open() && (!stream.detour || stream.link.opened().elapsed() < DETOUR_MAX)
        };
        let current = self.current.as_ref().filter(usable);
        current.map(|stream| Arc::clone(&stream.link)).ok_or(self.failures)
    }
}

impl State {
    /// The place of the seat for `gid`.
    fn group(&self, gid: &str) -> usize {
        let groups = u32::try_from(self.seats.len()).expect("there are few");
        group_of(gid, groups) as usize
    }

    /// The next node to ask for a group's leader: the one that was hinted at, or the next in turn.
    fn candidate(&mut self, group: usize) -> Candidate {
        if let Some(hint) = self.seats[group].hint.take() {
            return self.open_to(&hint).map_or(Candidate::At(hint), Candidate::Open);
        }
        let seat = &mut self.seats[group];
        drop(seat.shunned.take_if(|(_, at)| at.elapsed() >= SHUN_MAX));
        for _ in 0..self.addresses.len() {
            let address = &self.addresses[self.turn % self.addresses.len()];
            self.turn = self.turn.wrapping_add(1);
            if seat.shunned.as_ref().is_none_or(|(shunned, _)| shunned != address) {
                return Candidate::At(address.clone());
            }
        }
        Candidate::At(self.addresses[0].clone())
    }

    /// A stream to `address` that serves another group.
    fn open_to(&self, address: &str) -> Option<Arc<Link>> {
        let streams = self.seats.iter().filter_map(|seat| seat.current.as_ref());
        let direct = streams.filter(|stream| !stream.detour && stream.link.is_open());
        let links = direct.map(|stream| &stream.link);
        links.into_iter().find(|link| link.address() == address).cloned()
    }

    fn learn(&mut self, link: &Link) {
        let told = link.told();
        while self.seats.len() < told.groups.len() {
            self.seats.push(Seat::default());
        }
        for node in &told.nodes {
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

    fn asked(state: &mut State, times: usize) -> Vec<String> {
        (0..times).map(|_| state.candidate(0).address().to_owned()).collect()
    }

    #[test]
    fn a_node_that_was_given_up_is_not_asked_for_a_while_unless_there_is_no_other() {
        let mut state = state(&["a", "b", "c"]);
        state.seats[0].shunned = Some(("b".to_owned(), Instant::now()));
        assert_eq!(asked(&mut state, 4), ["a", "c", "a", "c"]);
        // Whoever is said to lead is asked all the same.
        state.seats[0].hint = Some("b".to_owned());
        assert_eq!(asked(&mut state, 1), ["b"]);
        let past = Instant::now().checked_sub(SHUN_MAX).expect("the machine is up for longer");
        state.seats[0].shunned = Some(("b".to_owned(), past));
        assert_eq!(asked(&mut state, 3), ["a", "b", "c"]);
        let mut alone = self::state(&["a"]);
        alone.seats[0].shunned = Some(("a".to_owned(), Instant::now()));
        assert_eq!(asked(&mut alone, 1), ["a"]);
    }
}
