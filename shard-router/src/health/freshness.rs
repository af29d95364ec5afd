//! How old a replica's rows may be: a bound that is never better than the truth.
//!
//! Whatever was committed before the router asked the primary where it writes stands before the answer. So a replica of the same
//! timeline that has replayed up to there has everything that was committed before that question; how long ago that is, by the router's
//! own clock, is how old its rows may be. No clock of a server and no claim of a replica to have replayed *all that it received* counts.

use std::{collections::VecDeque, time::Duration};

/// Questions to the primary that are remembered. A replica further behind is of unknown age.
pub(crate) const ASKED_MAX: usize = 600;
/// A log position this close behind the beginning of a page is in the page's header, where no record ends.
const PAGE_HEADER_MAX: u64 = 40;
const PAGE: u64 = 8192;

/// When the primary was asked, and where it wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    timeline: u32,
    /// The oldest first; both grow.
    answers: VecDeque<(Duration, u64)>,
}

impl Asked {
    /// A primary of `timeline`, asked at `at` (by the router's clock, before the question was sent), writes at `position`.
    pub(crate) fn primary(&mut self, at: Duration, timeline: u32, position: u64) {
        if timeline != self.timeline {
            self.answers.clear();
            self.timeline = timeline;
        }
        let in_page = position % PAGE;
        let position = if in_page <= PAGE_HEADER_MAX { position - in_page } else { position };
        if self.answers.len() == ASKED_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back((at, position));
    }

    /// As of when a replica of `timeline` that has replayed up to `position` has everything; `None`: not known.
    pub(crate) fn as_of(&self, timeline: Option<u32>, position: u64) -> Option<Duration> {
        if timeline != Some(self.timeline) {
            return None;
        }
        let replayed = self.answers.partition_point(|(_, written)| *written <= position);
        self.answers.get(replayed.checked_sub(1)?).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn rows_are_as_old_as_the_last_question_whose_answer_was_replayed() {
        let mut asked = Asked::default();
        assert_eq!(asked.as_of(Some(0), 1000), None, "nothing was asked");
        asked.primary(ms(100), 1, 1000);
        asked.primary(ms(200), 1, 2000);
        asked.primary(ms(300), 1, 2000);
        assert_eq!(asked.as_of(Some(1), 999), None, "behind all that is remembered");
        assert_eq!(asked.as_of(Some(1), 1000), Some(ms(100)));
        assert_eq!(asked.as_of(Some(1), 1999), Some(ms(100)));
        assert_eq!(asked.as_of(Some(1), 2000), Some(ms(300)), "nothing was written since");
    }

    #[test]
    fn another_timeline_or_none_tells_nothing() {
        let mut asked = Asked::default();
        asked.primary(ms(100), 1, 1000);
        assert_eq!(asked.as_of(None, 5000), None);
        assert_eq!(asked.as_of(Some(2), 5000), None);
        asked.primary(ms(200), 2, 3000);
        assert_eq!(asked.as_of(Some(1), 5000), None, "it follows the old primary");
        assert_eq!(asked.as_of(Some(2), 2000), None, "what the old one was asked counts no more");
        assert_eq!(asked.as_of(Some(2), 3000), Some(ms(200)));
    }

    #[test]
    fn a_position_in_a_page_header_is_the_end_of_the_page_before() {
        let mut asked = Asked::default();
        asked.primary(ms(100), 1, 3 * PAGE + 24);
        assert_eq!(asked.as_of(Some(1), 3 * PAGE), Some(ms(100)));
        asked.primary(ms(200), 1, 3 * PAGE + 48);
        assert_eq!(asked.as_of(Some(1), 3 * PAGE + 40), Some(ms(100)));
    }

    #[test]
    fn no_more_is_remembered_than_the_limit() {
        let mut asked = Asked::default();
        for n in 1..=ASKED_MAX as u64 {
            asked.primary(ms(n), 1, n * 1000);
        }
        assert_eq!(asked.as_of(Some(1), 1000), Some(ms(1)), "at the limit");
        asked.primary(ms(9_999), 1, 999_000);
        assert_eq!(asked.as_of(Some(1), 1000), None, "one past it");
    }
}
