//! One connection to a server, and what is known of its state: settings, prepared statements.

use std::{
    collections::HashMap,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::{buffer::Buffer, config::Endpoint, wire::Wire};

/// Settings of a session beyond what every new connection has: sorted by name, compared by address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) pairs: Vec<(String, String)>,
}

/// A connection that has logged in.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) wire: Wire,
    pub(crate) endpoint: Endpoint,
    /// For cancel requests.
    pub(crate) pid: i32,
    pub(crate) secret: i32,
    /// What it said of itself at login.
    pub(crate) statuses: Vec<(Vec<u8>, Vec<u8>)>,
    /// Arrived and not looked at.
    pub(crate) inbox: Buffer,
    /// Bytes of a frame that go on to the client unseen.
    pub(crate) passing: usize,
    /// What its session has set; `None`: nothing.
    pub(crate) settings: Option<Rc<Settings>>,
    /// Statements prepared here by their id, each with when it was last used.
    pub(crate) known: HashMap<u64, u64>,
    /// The statement without a name.
    pub(crate) unnamed: Option<u64>,
    clock: u64,
    /// Not to be used again.
    pub(crate) broken: bool,
}

impl Server {
    pub(crate) fn new(wire: Wire, endpoint: Endpoint) -> Self {
        Self {
            wire,
            endpoint,
            pid: 0,
            secret: 0,
            statuses: Vec::new(),
            inbox: Buffer::default(),
            passing: 0,
            settings: None,
            known: HashMap::new(),
            unnamed: None,
            clock: 0,
            broken: false,
        }
    }

    /// Whether an idle connection still stands. Whatever it said meanwhile (usually that it was shut down) ends its use.
    pub(crate) fn stands(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut byte = [0; 1];
        matches!(self.wire.poll_read(&mut context, &mut byte), Poll::Pending)
    }

    /// Whether statement `id` is prepared here; counts as a use.
    pub(crate) fn knows(&mut self, id: u64) -> bool {
        self.clock += 1;
        let clock = self.clock;
        self.known.get_mut(&id).map(|used| *used = clock).is_some()
    }

    /// Statement `id` is prepared here from now on. Returns the one to close, where there are more than `max`.
    pub(crate) fn learn(&mut self, id: u64, max: usize) -> Option<u64> {
        self.clock += 1;
        self.known.insert(id, self.clock);
        if self.known.len() <= max {
            return None;
        }
        let oldest = self.known.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id);
        oldest.inspect(|oldest| {
            self.known.remove(oldest);
        })
    }
}
