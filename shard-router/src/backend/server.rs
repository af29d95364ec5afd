//! One connection to a server, and what is known of its state: settings, prepared statements.

use std::{
    collections::HashMap,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::{buffer::Buffer, config::Endpoint, wire::Wire};
use holdfast_security::ServerTls;

/// Settings of a session beyond what every new connection has: sorted by name, compared by address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) pairs: Vec<(String, String)>,
}

/// Under which settings a text was read: a literal such as a timestamp is given its value when a statement is parsed, so the same text
/// parsed under other settings is another statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Of the session, as every server is made to have them.
    pub(crate) settings: Option<Rc<Settings>>,
    /// Differs with each change within a transaction; 0 without one.
    pub(crate) changes: u64,
}

impl Reading {
    fn is_like(&self, other: &Self) -> bool {
        let alike = match (&self.settings, &other.settings) {
            (None, None) => true,
            (Some(one), Some(other)) => Rc::ptr_eq(one, other),
            _ => false,
        };
        alike && self.changes == other.changes
    }
}

/// A statement that is prepared on a server.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The number in its name there; no two of a connection are alike.
    name: u64,
    used: u64,
    reading: Reading,
}

/// What a server is to do before a statement can be bound there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lesson {
    /// The number in the name under which it is to be parsed.
    pub(crate) name: u64,
    /// The number of one to close first: the same read otherwise, or the one that was not used for the longest time.
    pub(crate) close: Option<u64>,
}

/// A connection that has logged in.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) wire: Wire,
    pub(crate) endpoint: Endpoint,
    /// For the connections that carry cancel requests.
    pub(crate) tls: Option<ServerTls>,
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
    /// Statements prepared here, by their id.
    pub(crate) known: HashMap<u64, Prepared>,
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
            tls: None,
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

    /// The number in the name of statement `id`, if it is prepared here as `reading` has it; counts as a use.
    pub(crate) fn knows(&mut self, id: u64, reading: &Reading) -> Option<u64> {
        self.clock += 1;
        let prepared = self.known.get_mut(&id)?;
        prepared.used = self.clock;
        prepared.reading.is_like(reading).then_some(prepared.name)
    }

    /// Statement `id` is prepared here from now on, beside at most `max - 1` others.
    pub(crate) fn learn(&mut self, id: u64, reading: Reading, max: usize) -> Lesson {
        self.clock += 1;
        let name = self.clock;
        let before = self.known.insert(id, Prepared { name, used: name, reading });
        let close = before.map(|before| before.name).or_else(|| {
            if self.known.len() <= max {
                return None;
            }
            let oldest = self.known.iter().min_by_key(|(_, prepared)| prepared.used);
            let oldest = oldest.map(|(id, _)| *id)?;
            self.known.remove(&oldest).map(|oldest| oldest.name)
        });
        Lesson { name, close }
    }
}

/// Appends the name of a prepared statement; `None` is the one without a name.
pub(crate) fn put_name(name: Option<u64>, out: &mut Vec<u8>) {
    use std::io::Write as _;
    match name {
        None => out.push(0),
        Some(number) => write!(out, "hf{number}\0").expect("a Vec takes all"),
    }
}
