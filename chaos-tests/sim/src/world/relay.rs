//! Messages: a service writes rows of an outbox in its own local transactions; a relay with a lease drives the real mind, dies at any
//! step, and another one takes over.
//!
//! The table is PostgreSQL's: a lane is locked from the moment a position is drawn until the local transaction ends, and a reader sees
//! what is committed. A message is a forward-only Saga with one step, a credit from outside.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_branch::outbox::{Act, Answer, Lane, Limits, MessageId, Outbox, Row, gid_of};
use holdfast_txn::{
    BranchSpec, Command, Decision, Gid, Labels, Mode, Options, Recovery, RetryPolicy,
};

use super::{
    End, Event, World,
    network::{Message, Told},
};
use crate::{
    happening::Happening,
    mutant::Mutant,
    workload::{VARIANT, participant},
};

/// Relays answer to numbers from here on, one for each message.
pub(super) const FIRST: usize = 1 << 33;
/// Between two looks of a relay at the table, ms.
const TICK_MS: u64 = 40;
/// Looks between two pauses that are over.
const LOOKS_OF_PAUSE: u64 = 5;
/// For an answer to a submit, ms.
const PATIENCE_MS: u64 = 900;
/// Rows of one read.
const READ_MAX: usize = 4;

/// A message that a service wants to write, and how far it is.
#[derive(Clone, Debug)]
struct Wish {
    row: Row,
    shard: usize,
    commits: bool,
    ended: bool,
    submitted: bool,
}

/// The table, its writers, and the relay that holds the lease.
#[derive(Debug)]
pub(crate) struct Post {
    wishes: Vec<Wish>,
    next_position: u64,
    /// Lanes in which a position was drawn by a local transaction that has not ended.
    locked: BTreeSet<Lane>,
    /// Rows as a reader sees them, by position.
    table: BTreeMap<u64, Row>,
    outbox: Outbox,
    /// Counts the relays that held the lease: what belongs to another one is nobody's.
    life: u64,
    ticks: u64,
    /// Until when each submit is waited for.
    asked: BTreeMap<MessageId, u64>,
}

impl Post {
    pub(super) fn new() -> Self {
        Self {
            wishes: Vec::new(),
            next_position: 0,
            locked: BTreeSet::new(),
            table: BTreeMap::new(),
            outbox: Outbox::new(Limits::default()),
            life: 0,
            ticks: 0,
            asked: BTreeMap::new(),
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.table.is_empty() && self.wishes.iter().all(|wish| wish.ended)
    }

    fn delete(&mut self, id: MessageId) {
        self.table.retain(|_, row| row.id != id);
    }
}

impl World {
    /// The services of a run, and the first relay.
    pub(super) fn open_post(&mut self) {
        let lanes: Vec<_> = (0..2).map(|_| self.posting.pick(&self.places.accounts)).collect();
        for number in 0..self.posting.index(8) + 2 {
            let (account, shard) = self.posting.pick(&lanes);
            let lane = Lane { topic: "points".to_owned(), key: account.as_str().to_owned() };
            let row = Row { id: MessageId(number as u128 + 1), position: 0, lane };
            let commits = !self.posting.permille(250);
            self.post.wishes.push(Wish { row, shard, commits, ended: false, submitted: false });
            let at_ms = self.posting.between(10, self.settings.arrivals_ms / 2);
            self.queue.at(at_ms, Event::Service { wish: number });
        }
        self.queue.at(TICK_MS, Event::Relay { life: 0 });
    }

    /// A service begins its local transaction and draws a position, as soon as its lane is free.
    pub(super) fn service_writes(&mut self, number: usize) {
        let lane = self.post.wishes[number].row.lane.clone();
        if !self.post.locked.insert(lane) {
            let pause_ms = self.posting.between(5, 30);
            self.queue.at(self.now_ms + pause_ms, Event::Service { wish: number });
            return;
        }
        self.post.next_position += 1;
        let position = self.post.next_position;
        self.post.wishes[number].row.position = position;
        if self.mutates(Mutant::PublishedBeforeCommit) {
            let row = self.post.wishes[number].row.clone();
            self.post.table.insert(position, row);
        }
        let until_ms = self.now_ms + self.posting.between(1, 120);
        self.queue.at(until_ms, Event::ServiceEnds { wish: number });
    }

    /// Its local transaction ends, one way or the other.
    pub(super) fn service_ends(&mut self, number: usize) {
        let wish = &mut self.post.wishes[number];
        wish.ended = true;
        let Wish { row, commits, .. } = wish.clone();
        self.post.locked.remove(&row.lane);
        self.trace.fold(row.position);
        if commits {
            self.count(Happening::OutboxWritten);
            self.note(|| format!("{} is written at {}", gid_of(row.id), row.position));
            self.witness.messages.committed(&row);
            self.post.table.insert(row.position, row);
        } else {
            self.count(Happening::OutboxRolledBack);
            self.post.delete(row.id);
        }
    }

    /// The relay that holds the lease looks at the table.
    pub(super) fn relay_looks(&mut self, life: u64) {
        if self.post.life != life || self.relay_dies() {
            return;
        }
        self.queue.at(self.now_ms + TICK_MS, Event::Relay { life });
        self.post.ticks += 1;
        let now_ms = self.now_ms;
        let late: Vec<_> = self
            .post
            .asked
            .iter()
            .filter(|(_, until)| **until <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.post.asked.remove(&id);
            let acts = self.post.outbox.answered(id, Answer::Unknown);
            self.does(acts);
        }
        let mut acts = Vec::new();
        if self.post.ticks.is_multiple_of(LOOKS_OF_PAUSE) {
            let held: Vec<_> = self.post.outbox.held().collect();
            for id in held {
                if !self.post.table.values().any(|row| row.id == id) {
                    self.post.outbox.gone(id);
                }
            }
            acts.extend(self.post.outbox.look_again());
        }
        if self.post.outbox.has_room() {
            let busy: BTreeSet<Lane> = self.post.outbox.busy().cloned().collect();
            let rows = self.post.table.values().filter(|row| !busy.contains(&row.lane));
            let mut read: Vec<Row> = rows.take(READ_MAX).cloned().collect();
            if self.mutates(Mutant::OrderIgnored) {
                for row in &mut read {
                    row.lane.key = row.id.to_string();
                }
            }
            acts.extend(self.post.outbox.rows(read));
        }
        self.does(acts);
    }

    /// The relay dies, and its lease must run out before another one takes over. True: it is so.
    fn relay_dies(&mut self) -> bool {
        if !self.posting.permille(self.settings.relay_dies) {
            return false;
        }
        self.count(Happening::RelayCrashed);
        self.note(|| "the relay dies".to_owned());
        self.post.life += 1;
        self.post.outbox = Outbox::new(Limits::default());
        self.post.asked.clear();
        let life = self.post.life;
        let lease_ms = self.posting.between(100, 900);
        self.queue.at(self.now_ms + lease_ms, Event::Relay { life });
        true
    }

    /// The relay does what the mind says, one act after the other; it may die in between.
    fn does(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Submit(row) if self.mutates(Mutant::MarkedBeforeSubmitted) => {
                    self.post.delete(row.id);
                    if self.relay_dies() {
                        return;
                    }
                    self.submits_message(&row);
                }
                Act::Submit(row) => self.submits_message(&row),
                Act::Delete(id) => {
                    self.count(Happening::OutboxPublished);
                    self.post.delete(id);
                    // The row is gone; whether its relay still hears so is another matter.
                    if self.relay_dies() {
                        return;
                    }
                    self.post.outbox.gone(id);
                }
            }
        }
    }

    fn submits_message(&mut self, row: &Row) {
        let number = usize::try_from(row.id.0).expect("few messages") - 1;
        if std::mem::replace(&mut self.post.wishes[number].submitted, true) {
            self.count(Happening::OutboxSubmittedAgain);
        }
        let wish = &self.post.wishes[number];
        let payload = format!("credit {} 1", wish.row.lane.key);
        let mut options = Options::of(Mode::Saga);
        options.recovery = Recovery::Forward;
        options.timeout_ms = 10_000;
        options.call_timeout_ms = 250;
        options.retry = RetryPolicy { first_ms: 60, ceiling_ms: 500, attempts_max: 0 };
        options.tags = Labels::from_iter([(VARIANT, "first")]);
        let spec = BranchSpec {
            participant: participant(wish.shard),
            payload: payload.into_bytes().into(),
            after: None,
            pivot: false,
        };
        let command = Command::Begin {
            gid: Gid::parse(&gid_of(row.id)).expect("a short gid"),
            mode: Mode::Saga,
            options,
            branches: vec![spec],
            enlisted: false,
            content: None,
        };
        self.post.asked.insert(row.id, self.now_ms + PATIENCE_MS);
        let leader = self.cluster.leader.filter(|_| self.posting.permille(800));
        let node = leader.unwrap_or_else(|| self.posting.index(self.nodes.len()));
        let (client, turn) = (FIRST + number, self.post.life);
        let ask = Message::Ask { client, turn, command, wait: true };
        self.send(End::Client(client), End::Node(node), ask);
    }

    /// A node has answered the relay that had the lease then.
    pub(super) fn relay_told(&mut self, number: usize, life: u64, told: &Told) {
        let id = self.post.wishes[number].row.id;
        if self.post.life != life || self.post.asked.remove(&id).is_none() {
            return;
        }
        let answer = match told {
            Told::Decided(Decision::Commit) => Answer::Done,
            Told::Decided(Decision::RollBack) => Answer::Stuck("rolled back".to_owned()),
            Told::Refused { code, .. } => Answer::Stuck((*code).to_owned()),
            Told::Known | Told::Seen(_) | Told::NotLeading | Told::Unknown => Answer::Unknown,
        };
        let acts = self.post.outbox.answered(id, answer);
        self.does(acts);
    }
}
