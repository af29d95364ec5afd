//! Index replay: the log, replayed in its order through a fresh machine, explains every answer that was ever given, in the order of
//! real time.
//!
//! Each answer says something of one gid that was true behind some entry: it is there, it is decided so, it has this status. The replay
//! says behind which entries that holds. An answer *stands* behind the first of them that real time leaves: not before any entry behind
//! which an answer stands that was told before this one was asked for. If there is none, the answer was never true, or true no longer.
//! And what was first asked for after an answer was told must begin behind the entry where that answer stands: the log never knows
//! the future. Since the log orders everything, this costs a sort and no search, for any number of transactions together;
//! [`super::linear`] is the second opinion, gid by gid, which knows nothing of the log.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_txn::{Command, Decision, Gid, Labels, Machine, Participant, Status, Timestamp};

/// Findings that are kept; a bug that breaks every answer is shown well enough by these.
const FINDINGS_MAX: usize = 20;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place; the first is 1 or any other number, and each following one is greater.
    pub index: u64,
    /// What its proposer stamped.
    pub at: Timestamp,
    /// In order.
    pub commands: Vec<Command>,
}

/// What makes a begin another one than that of the same gid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Participant and payload of each branch, in order.
    pub branches: Vec<(Participant, Bytes)>,
    /// The caller's tags.
    pub tags: Labels,
}

impl Content {
    /// The content of a begin.
    #[must_use]
    pub fn of(command: &Command) -> Option<Self> {
        let Command::Begin { branches, options, .. } = command else { return None };
        let branches =
            branches.iter().map(|spec| (spec.participant.clone(), spec.payload.clone())).collect();
        Some(Self { branches, tags: options.tags.clone() })
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To begin this.
    Begin(Content),
    /// To change what is there.
    Change,
    /// To roll it back, and where nothing is there to make sure that it never can be begun.
    Fence,
    /// To say what is there.
    Look,
}

/// What was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing that says anything: no answer, unknown, or ask another node.
    Nothing,
    /// It is there.
    Known,
    /// It is decided.
    Decided(Decision),
    /// It has this status.
    Status(Status),
    /// Nobody knows it.
    Absent,
    /// The command was refused with this code where it stands in the log.
    Refused {
        /// The code.
        code: &'static str,
        /// The index of its entry.
        index: u64,
        /// Its place within the entry, from 0 on.
        place: usize,
    },
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// About which transaction.
    pub gid: Gid,
    /// When it was asked, by a clock that all exchanges share.
    pub asked_at: u64,
    /// When it was told.
    pub told_at: u64,
    /// What was asked for.
    pub asked: Asked,
    /// What was told.
    pub told: Told,
}

/// What does not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Two logs have different entries at the same index.
    Logs {
        /// Where.
        index: u64,
    },
    /// The log says so behind no entry.
    NeverTrue(Box<Exchange>),
    /// The log says so, but only before an entry that was proved to be there when this was asked.
    NoLonger {
        /// The answer.
        exchange: Box<Exchange>,
        /// Behind this entry it was asked at the earliest.
        behind: u64,
    },
    /// Begun before an entry that was proved to be there before anybody asked for it.
    TooEarly {
        /// Which.
        gid: Gid,
        /// Where it begins.
        begun: u64,
        /// It was asked for behind this entry.
        behind: u64,
    },
    /// Begun, and nobody asked for that content.
    NotAsked {
        /// Which.
        gid: Gid,
        /// Where it begins.
        begun: u64,
    },
}

/// What is said of a transaction from an entry on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    from: u64,
    status: Status,
    decision: Option<Decision>,
}

#[derive(Clone, Debug, Default)]
struct Life {
    content: Option<Content>,
    views: Vec<View>,
}

/// A log and what it means.
#[derive(Debug, Default)]
pub struct Replayed {
    lives: BTreeMap<Gid, Life>,
    /// By index and place: what was refused, and how.
    refused: BTreeMap<(u64, usize), &'static str>,
    /// The last entry.
    last: u64,
}

/// The entries that most of these logs hold, in order.
/// # Errors
/// [`Finding::Logs`]: two of them differ.
pub fn agreed(logs: &[Vec<Entry>]) -> Result<Vec<Entry>, Finding> {
    let mut held: BTreeMap<u64, (&Entry, usize)> = BTreeMap::new();
    for entry in logs.iter().flatten() {
        let (first, count) = held.entry(entry.index).or_insert((entry, 0));
        if *first != entry {
            return Err(Finding::Logs { index: entry.index });
        }
        *count += 1;
    }
    let most = held.into_values().take_while(|(_, count)| 2 * count > logs.len());
    Ok(most.map(|(entry, _)| entry.clone()).collect())
}

impl Replayed {
    /// Replays `entries` from nothing.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut machine = Machine::new();
        let mut replayed = Self::default();
        for Entry { index, at, commands } in entries {
            assert!(*index > replayed.last, "entry {index} stands behind {}", replayed.last);
            replayed.last = *index;
            for (place, command) in commands.iter().enumerate() {
                match machine.apply(*at, command.clone()) {
                    Ok(_) => replayed.look(&machine, command, *index),
                    Err(rejection) => {
                        replayed.refused.insert((*index, place), rejection.code());
                    }
                }
            }
        }
        replayed
    }

    fn look(&mut self, machine: &Machine, command: &Command, index: u64) {
        let Some(known) = command.gid().and_then(|gid| machine.get(gid)) else { return };
        let life = self.lives.entry(known.gid.clone()).or_default();
        if life.views.is_empty() {
            life.content = Content::of(command);
        }
        let view = View { from: index, status: known.status, decision: known.decision };
        match life.views.last_mut() {
            // Answers are given between entries, so what an entry has been through is seen by nobody.
            Some(last) if last.from == index => *last = view,
            Some(last) if (last.status, last.decision) == (view.status, view.decision) => {}
            _ => life.views.push(view),
        }
    }

    /// How many transactions were begun.
    #[must_use]
    pub fn begun(&self) -> usize {
        self.lives.len()
    }

    /// Behind which entry, not before `behind`, the answer is true for the first time.
    fn stands(&self, exchange: &Exchange, behind: u64) -> Option<u64> {
        let none = Life::default();
        let life = self.lives.get(&exchange.gid).unwrap_or(&none);
        let begun = life.views.first().map_or(u64::MAX, |view| view.from);
        let says = |wanted: &dyn Fn(&View) -> bool| {
            life.views.iter().enumerate().find_map(|(at, view)| {
                let until = life.views.get(at + 1).map_or(self.last + 1, |next| next.from);
                (wanted(view) && until > behind).then_some(view.from.max(behind))
            })
        };
        match &exchange.told {
            Told::Nothing => Some(behind),
            Told::Absent => (begun > behind).then_some(behind),
            Told::Known => match &exchange.asked {
                Asked::Begin(content) if life.content.as_ref() != Some(content) => None,
                Asked::Begin(_) | Asked::Change | Asked::Fence | Asked::Look => says(&|_| true),
            },
            Told::Decided(decision) => match &exchange.asked {
                Asked::Begin(content) if life.content.as_ref() != Some(content) => None,
                Asked::Begin(_) | Asked::Change | Asked::Fence | Asked::Look => {
                    says(&|view| view.decision == Some(*decision))
                }
            },
            Told::Status(status) => says(&|view| view.status == *status),
            Told::Refused { code, index, place } => {
                let so = self.refused.get(&(*index, *place)) == Some(code);
                (so && *index > behind).then_some(*index)
            }
        }
    }

    /// Holds every exchange against the log.
    #[must_use]
    pub fn judge(&self, exchanges: &[Exchange]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut in_order: Vec<&Exchange> = exchanges.iter().collect();
        in_order.sort_by_key(|exchange| exchange.told_at);
        // When something was told, and the entry that all told until then proves to be there.
        let mut proved: Vec<(u64, u64)> = Vec::with_capacity(in_order.len());
        for exchange in in_order {
            let behind = proved_before(&proved, exchange.asked_at);
            let stands = match self.stands(exchange, behind) {
                Some(stands) => stands,
                None if self.stands(exchange, 0).is_some() => {
                    findings
                        .push(Finding::NoLonger { exchange: Box::new(exchange.clone()), behind });
                    behind
                }
                None => {
                    findings.push(Finding::NeverTrue(Box::new(exchange.clone())));
                    behind
                }
            };
            let so_far = proved.last().map_or(0, |(_, index)| *index);
            proved.push((exchange.told_at, so_far.max(stands)));
        }
        self.judge_begins(exchanges, &proved, &mut findings);
        findings.truncate(FINDINGS_MAX);
        findings
    }

    /// Of each gid that was asked for here: it begins behind what was told before, and with a content that was asked for.
    fn judge_begins(
        &self,
        exchanges: &[Exchange],
        proved: &[(u64, u64)],
        findings: &mut Vec<Finding>,
    ) {
        let mut asked: BTreeMap<&Gid, Vec<(&Content, u64)>> = BTreeMap::new();
        for exchange in exchanges {
            if let Asked::Begin(content) = &exchange.asked {
                asked.entry(&exchange.gid).or_default().push((content, exchange.asked_at));
            }
        }
        for (gid, asked) in asked {
            let Some(life) = self.lives.get(gid) else { continue };
            let (Some(begun), Some(content)) = (life.views.first(), &life.content) else {
                continue;
            };
            let first = asked.iter().filter(|(wanted, _)| *wanted == content).map(|(_, at)| *at);
            let Some(first) = first.min() else {
                findings.push(Finding::NotAsked { gid: gid.clone(), begun: begun.from });
                continue;
            };
            let behind = proved_before(proved, first);
            // What is told within an entry is told behind it, so the first entry behind it is a later one.
            if begun.from <= behind {
                findings.push(Finding::TooEarly { gid: gid.clone(), begun: begun.from, behind });
            }
        }
    }
}

/// The last entry that was proved to be there before `asked_at`.
fn proved_before(proved: &[(u64, u64)], asked_at: u64) -> u64 {
    let before = proved.partition_point(|(told_at, _)| *told_at < asked_at);
    before.checked_sub(1).map_or(0, |last| proved[last].1)
}

#[cfg(test)]
mod tests;
