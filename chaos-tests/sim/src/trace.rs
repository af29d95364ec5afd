//! What a run leaves behind: a rolling hash of all that happened, and its last events in words.

use std::collections::VecDeque;

use crate::chance::mixed;

/// Events that a failure shows.
const LAST_MAX: usize = 200;

/// How much a run writes down in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// Nothing: words cost more than the run.
    None,
    /// The last 200 events.
    Last,
    /// Everything.
    All,
}

/// The trace of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) events: u64,
    words: Words,
    pub(crate) lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn new(words: Words) -> Self {
        Self { hash: 0, events: 0, words, lines: VecDeque::new() }
    }

    /// Rolls a number into the hash.
    pub(crate) fn fold(&mut self, number: u64) {
        self.hash = mixed(self.hash.rotate_left(7) ^ number);
    }

    /// Writes an event down, if words are wanted.
    pub(crate) fn note(&mut self, now_ms: u64, words: impl FnOnce() -> String) {
        if self.words == Words::None {
            return;
        }
        if self.words == Words::Last && self.lines.len() == LAST_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{now_ms:>7} ms  {}", words()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_events_changes_the_hash_and_words_do_not() {
        let rolled = |numbers: &[u64], words| {
            let mut trace = Trace::new(words);
            for &number in numbers {
                trace.fold(number);
                trace.note(number, || "an event".to_owned());
            }
            trace.hash
        };
        assert_eq!(rolled(&[1, 2], Words::None), rolled(&[1, 2], Words::All));
        assert_ne!(rolled(&[1, 2], Words::None), rolled(&[2, 1], Words::None));
    }

    #[test]
    fn the_last_200_events_are_kept() {
        let mut trace = Trace::new(Words::Last);
        (0..201).for_each(|n| trace.note(n, || format!("event {n}")));
        assert_eq!(trace.lines.len(), 200);
        assert!(trace.lines[0].ends_with("event 1"));
    }
}
