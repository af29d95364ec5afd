//! The network: delays, loses, repeats, reorders and blocks messages; a lost connection tells nobody.

use holdfast_ledger::BranchKey;
use holdfast_txn::{Command, Decision, Gid, Op, Status};

use super::{
    End, Event, World,
    database::{Call, Said},
    relay, router,
};
use crate::happening::Happening;

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// A client asks a node to have a command carried out.
    Ask { client: usize, turn: u64, command: Command, wait: bool },
    /// A client asks a node to say what is there.
    Look { client: usize, turn: u64, gid: Gid },
    /// A node answers.
    Told { turn: u64, told: Told },
    /// Somebody calls a participant.
    Call { ticket: Ticket, call: Call },
    /// A participant answers.
    Answer { ticket: Ticket, key: BranchKey, op: Op, said: Said },
}

/// Names one call, and who waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) from: End,
    /// The time of leadership, or the client's turn, in which it was made.
    pub(crate) stint: u64,
    pub(crate) number: u64,
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Which way the transaction goes.
    Decided(Decision),
    /// The command is applied.
    Known,
    /// What is there, if anything is.
    Seen(Option<Status>),
    /// The command is refused, with this code, where it stands in the log.
    Refused { code: &'static str, index: u64, place: usize },
    /// Ask another node, or again: nothing happened.
    NotLeading,
    /// Ask again with this gid.
    Unknown,
}

impl World {
    pub(super) fn send(&mut self, from: End, to: End, message: Message) {
        if self.blocked.contains(&(from, to)) {
            self.count(Happening::MessageBlocked);
            self.note(|| format!("{from:?} -> {to:?} is blocked"));
            return;
        }
        if self.net.permille(self.settings.lost) {
            self.count(Happening::MessageLost);
            self.note(|| format!("{from:?} -> {to:?} is lost"));
            return;
        }
        if self.net.permille(self.settings.duplicated) {
            self.count(Happening::MessageDuplicated);
            self.set_out(to, message.clone());
        }
        self.set_out(to, message);
    }

    /// One copy is under way.
    fn set_out(&mut self, to: End, message: Message) {
        let (shortest, longest) = self.settings.delay_ms;
        let mut delay_ms = self.net.between(shortest, longest);
        if self.net.permille(self.settings.stale) {
            self.count(Happening::MessageStale);
            delay_ms += self.net.between(1_000, self.settings.stale_ms);
        }
        self.in_air += 1;
        self.queue.at(self.now_ms + delay_ms, Event::Deliver { to, message: Box::new(message) });
    }

    pub(super) fn deliver(&mut self, to: End, message: Message) {
        self.in_air -= 1;
        match (to, message) {
            (End::Node(node), Message::Ask { client, turn, command, wait }) => {
                if self.nodes[node].up {
                    self.asked(node, client, turn, command, wait);
                }
            }
            (End::Node(node), Message::Look { client, turn, gid }) => {
                if self.nodes[node].up {
                    self.looked(node, client, turn, gid);
                }
            }
            (End::Node(node), Message::Answer { ticket, key, op, said }) => {
                self.hear(node, ticket, &key, op, said);
            }
            (End::Agent(shard), Message::Call { ticket, call }) => self.called(shard, ticket, call),
            (End::Client(client), Message::Told { turn, told })
                if (relay::FIRST..usize::MAX).contains(&client) =>
            {
                self.relay_told(client - relay::FIRST, turn, &told);
            }
            (End::Client(client), Message::Told { turn, told })
                if (router::FIRST..relay::FIRST).contains(&client) =>
            {
                self.session_told(client - router::FIRST, turn, &told);
            }
            (End::Client(client), Message::Told { turn, told }) => {
                self.client_told(client, turn, &told);
            }
            (End::Client(client), Message::Answer { ticket, said, .. }) => {
                self.client_answered(client, ticket, &said);
            }
            (to, message) => unreachable!("{message:?} is never sent to {to:?}"),
        }
    }
}
