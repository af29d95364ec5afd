//! The mind of a relay: which messages of an outbox are on their way, and which may go next.
//!
//! A message is a row that a service wrote in its own local transaction. A relay submits it as a global transaction whose gid comes
//! from the row's id ([`gid_of`]), so that a repeat is the same transaction, and deletes the row once that one has ended. Messages
//! of one [`Lane`] go one behind the other; lanes know nothing of each other.
//!
//! What holds whatever the order of answers, and wherever the relay dies and reads again (I20):
//!
//! - the messages of a lane are submitted in the order of their positions: a repeat may come, but never behind a later message;
//! - a message whose row was read is submitted again and again until it has ended, and only then is its row deleted;
//! - nothing is submitted that was not a row; *unknown* is never taken for failed;
//! - a message that cannot end holds up its own lane alone, and is told ([`Outbox::stuck`]).
//!
//! # How a shell drives it
//!
//! One relay at a time holds the lease of an outbox. With the lease it makes a new [`Outbox`], and then, in any order:
//!
//! - while [`Outbox::has_room`], it reads rows in the order of their positions, without the lanes that are [`Outbox::busy`], and hands
//!   them to [`Outbox::rows`]. A read must see, for each lane, every committed row before the ones it returns; the table sees to that
//!   (a lane is locked from the moment a position is drawn until its local transaction ends);
//! - it submits what it is told to, and hands each answer to [`Outbox::answered`];
//! - it deletes the rows that it is told to delete, and hands their ids to [`Outbox::gone`] once that is committed. No read may be under
//!   way beside a delete: a row that was read before its delete and handed in behind it would be submitted once more;
//! - after a pause it calls [`Outbox::look_again`]; before that it asks which of [`Outbox::held`] still have a row, for people may
//!   have deleted one, and hands the others to [`Outbox::gone`] as well;
//! - when the lease is lost, or the relay dies, it drops the outbox. Nothing in it needs to be kept: the rows say it all. What was
//!   submitted is answered to nobody, and the next relay submits it again.
//!
//! ```
//! use holdfast_branch::outbox::{Act, Answer, Lane, Limits, MessageId, Outbox, Row};
//!
//! let lane = Lane { topic: "points".to_owned(), key: "customer-7".to_owned() };
//! let row = |id, position| Row { id: MessageId(id), position, lane: lane.clone() };
//! let mut outbox = Outbox::new(Limits::default());
//!
//! // Two messages of one lane: the second waits in the table.
//! assert_eq!(outbox.rows([row(0xA, 1), row(0xB, 2)]), [Act::Submit(row(0xA, 1))]);
//! assert_eq!(outbox.answered(MessageId(0xA), Answer::Done), [Act::Delete(MessageId(0xA))]);
//! outbox.gone(MessageId(0xA));
//! assert_eq!(outbox.rows([row(0xB, 2)]), [Act::Submit(row(0xB, 2))]);
//! ```

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};

/// A message's name: the row's uuid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u128);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The gid under which a message is submitted: the same for ever, 34 characters.
#[must_use]
pub fn gid_of(id: MessageId) -> String {
    format!("m-{id}")
}

/// What messages are in order within: one key of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Says who gets the message.
    pub topic: String,
    /// What it is about, an account for example.
    pub key: String,
}

/// A message that stands in the outbox, without what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: MessageId,
    /// Grows within a lane in the order of commit; between lanes it says nothing.
    pub position: u64,
    /// Where it stands in order.
    pub lane: Lane,
}

/// What became of a message that was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The transaction has ended, committed.
    Done,
    /// It has not ended and will not by itself: refused, or people must look. Says why, with a code.
    Stuck(String),
    /// Nobody knows: no answer, or not in time.
    Unknown,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Submit this message, and answer.
    Submit(Row),
    /// Delete this row, and say when it is gone.
    Delete(MessageId),
}

/// How much a relay holds at once. Whatever does not fit stays in the table and is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages that are submitted and not answered.
    pub in_flight_max: usize,
    /// Lanes of which a message is held, for whatever reason. Stuck lanes count: so many of them stop the relay.
    pub lanes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight_max: 128, lanes_max: 4_096 }
    }
}

/// How far the first message of a lane is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Submitted; the answer is awaited.
    OnItsWay,
    /// Not answered in time, or it had no place: to be submitted at the next look.
    Unsure,
    /// Will not end by itself. Asked again at each look, for people may have repaired it.
    Stuck(String),
    /// Like stuck, and asked again right now.
    StuckOnItsWay(String),
    /// Ended; the row is being deleted.
    Ended,
}

impl State {
    const fn is_on_its_way(&self) -> bool {
        matches!(self, Self::OnItsWay | Self::StuckOnItsWay(_))
    }
}

#[derive(Clone, Debug)]
struct Head {
    id: MessageId,
    position: u64,
    state: State,
}

/// The state of one relay that holds the lease.
#[derive(Clone, Debug)]
pub struct Outbox {
    limits: Limits,
    /// Of each busy lane the message that is at its head.
    heads: BTreeMap<Lane, Head>,
    lanes: BTreeMap<MessageId, Lane>,
    in_flight: usize,
    /// The lane that was asked again last.
    turn: Option<Lane>,
}

impl Outbox {
    /// A relay that has read nothing yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let (heads, lanes) = (BTreeMap::new(), BTreeMap::new());
        Self { limits, heads, lanes, in_flight: 0, turn: None }
    }

    /// Rows were read. Takes the first of each lane that is not busy, as far as there is room; the others are left in the table.
    pub fn rows(&mut self, rows: impl IntoIterator<Item = Row>) -> Vec<Act> {
        let mut rows: Vec<Row> = rows.into_iter().collect();
        rows.sort_by_key(|row| row.position);
        let mut acts = Vec::new();
        for row in rows {
            if !self.has_room() {
                break;
            }
            if self.lanes.contains_key(&row.id) {
                continue;
            }
            if let Entry::Vacant(lane) = self.heads.entry(row.lane.clone()) {
                lane.insert(Head { id: row.id, position: row.position, state: State::OnItsWay });
                self.lanes.insert(row.id, row.lane.clone());
                self.in_flight += 1;
                acts.push(Act::Submit(row));
            }
        }
        acts
    }

    /// A message was answered. An answer to one that is not held is nobody's: it changes nothing.
    pub fn answered(&mut self, id: MessageId, answer: Answer) -> Vec<Act> {
        let Some(head) = self.lanes.get(&id).and_then(|lane| self.heads.get_mut(lane)) else {
            return Vec::new();
        };
        if !head.state.is_on_its_way() {
            return Vec::new();
        }
        self.in_flight -= 1;
        head.state = match answer {
            Answer::Done => State::Ended,
            Answer::Stuck(why) => State::Stuck(why),
            // What was told before stays told.
            Answer::Unknown => match &head.state {
                State::StuckOnItsWay(why) => State::Stuck(why.clone()),
                State::OnItsWay | State::Unsure | State::Stuck(_) | State::Ended => State::Unsure,
            },
        };
        if head.state == State::Ended { vec![Act::Delete(id)] } else { Vec::new() }
    }

    /// The row of a message is there no more: it was deleted as told, or by people. Its lane is free.
    pub fn gone(&mut self, id: MessageId) {
        let head = self.lanes.remove(&id).and_then(|lane| self.heads.remove(&lane));
        if head.is_some_and(|head| head.state.is_on_its_way()) {
            self.in_flight -= 1;
        }
    }

    /// A pause is over. Submits again, with the same gid, what is unsure and what was stuck, the lanes in turn. At most half of the
    /// places are filled so, that lanes nobody answers leave room for others. Repeats the deletes that were not said to be
    /// done.
    pub fn look_again(&mut self) -> Vec<Act> {
        let mut acts: Vec<Act> = Vec::new();
        let last = self.turn.take();
        let is_behind = |lane: &Lane| last.as_ref().is_none_or(|last| lane > last);
        let (behind, before): (Vec<_>, Vec<_>) =
            self.heads.iter_mut().partition(|(lane, _)| is_behind(lane));
        for (lane, head) in behind.into_iter().chain(before) {
            let next = match &head.state {
                State::OnItsWay | State::StuckOnItsWay(_) => continue,
                State::Ended => {
                    acts.push(Act::Delete(head.id));
                    continue;
                }
                State::Unsure => State::OnItsWay,
                State::Stuck(why) => State::StuckOnItsWay(why.clone()),
            };
            if self.in_flight < self.limits.in_flight_max.div_ceil(2) {
                head.state = next;
                self.in_flight += 1;
                self.turn = Some(lane.clone());
                let (id, position) = (head.id, head.position);
                acts.push(Act::Submit(Row { id, position, lane: lane.clone() }));
            }
        }
        acts
    }

    /// Whether another lane could be taken up.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight < self.limits.in_flight_max && self.heads.len() < self.limits.lanes_max
    }

    /// Messages that are submitted and not answered.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The lanes of which a message is held: their rows need not be read. At most [`Limits::lanes_max`].
    pub fn busy(&self) -> impl Iterator<Item = &Lane> {
        self.heads.keys()
    }

    /// The messages that are held.
    pub fn held(&self) -> impl Iterator<Item = MessageId> {
        self.lanes.keys().copied()
    }

    /// The messages that will not end by themselves, with their lanes and why.
    pub fn stuck(&self) -> impl Iterator<Item = (MessageId, &Lane, &str)> {
        self.heads.iter().filter_map(|(lane, head)| match &head.state {
            State::Stuck(why) | State::StuckOnItsWay(why) => Some((head.id, lane, why.as_str())),
            State::OnItsWay | State::Unsure | State::Ended => None,
        })
    }
}
