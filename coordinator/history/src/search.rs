//! A search: newest first, a page at a time, and no more work for a page than its bounds allow.

use std::{fmt, sync::Arc};

use holdfast_proto::{Pairs, v1::HistoryRecord};

use crate::{
    Amount, AmountRange, Archive, limit,
    sheet::{Block, Head, finished_ms, gid_of},
    shelf::ShelfError,
    term::Scheme,
};

/// What to look for; everything that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// One of these statuses, as numbers on the wire; none: any.
    pub statuses: Vec<i32>,
    /// One of these modes.
    pub modes: Vec<i32>,
    /// A branch of it is served by this one.
    pub participant: Option<String>,
    /// Each of these tags.
    pub tags: Vec<(String, String)>,
    /// The tag `amount` is one of these.
    pub amount: Option<AmountRange>,
    /// Finished at this time or later, ms since epoch.
    pub from_ms: u64,
    /// Finished before this time; 0: no bound.
    pub until_ms: u64,
    /// Behind this one.
    pub after: Option<Cursor>,
    /// Records on the page, 1 to [`limit::PAGE_MAX`].
    pub limit: usize,
}

/// A place in the history: alike on every node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    ms: u64,
    gid: String,
}

/// A page, newest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<Arc<HistoryRecord>>,
    /// There may be more behind it.
    pub next: Option<Cursor>,
}

impl Cursor {
    /// As [`fmt::Display`] writes it. `None`: it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (ms, gid) = text.split_once('-')?;
        let digits = (1..=20).contains(&ms.len()) && ms.bytes().all(|b| b.is_ascii_digit());
        let sound = gid.len() <= 64 && gid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (digits && sound).then_some(())?;
        Some(Self { ms: ms.parse().ok()?, gid: gid.to_owned() })
    }

    /// The place of `record`.
    #[must_use]
    pub fn of(record: &HistoryRecord) -> Self {
        Self { ms: finished_ms(record), gid: gid_of(record).to_owned() }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.gid)
    }
}

impl Query {
    /// Sets of terms, as `scheme` tells them: a record that fits has at least one of each. `classed`: on a sheet that knows the classes of
    /// amounts.
    fn sets(&self, scheme: Scheme, classed: bool) -> Vec<Vec<u64>> {
        let mut sets = Vec::new();
        sets.extend(self.tags.iter().map(|(name, value)| vec![scheme.tag(name, value)]));
        sets.extend(self.participant.iter().map(|name| vec![scheme.participant(name)]));
        if let Some(range) = self.amount {
            sets.push(amounts(range, scheme, classed));
        }
        if !self.statuses.is_empty() {
            sets.push(self.statuses.iter().map(|one| scheme.status(*one)).collect());
        }
        if !self.modes.is_empty() {
            sets.push(self.modes.iter().map(|one| scheme.mode(*one)).collect());
        }
        sets
    }

    /// Whether what finished then is looked for, whatever it is.
    fn is_meant(&self, ms: u64, gid: &[u8]) -> bool {
        let behind = |after: &Cursor| (ms, gid) < (after.ms, after.gid.as_bytes());
        ms >= self.from_ms
            && (self.until_ms == 0 || ms < self.until_ms)
            && self.after.as_ref().is_none_or(behind)
    }

    /// Whether a record is what is looked for, and not only has its terms.
    fn fits(&self, record: &HistoryRecord) -> bool {
        let Some(known) = &record.transaction else { return false };
        let any = |set: &[i32], one| set.is_empty() || set.contains(&one);
        self.is_meant(known.finished_at_ms, known.gid.as_bytes())
            && any(&self.statuses, known.status)
            && any(&self.modes, known.mode)
            && self.tags.iter().all(|(name, value)| Pairs::find(&known.tags, name) == Some(value))
            && self
                .participant
                .as_ref()
                .is_none_or(|name| known.branches.iter().any(|branch| branch.participant == *name))
            && self.amount.is_none_or(|range| {
                let amount = Pairs::find(&known.tags, Amount::TAG).and_then(Amount::parse);
                amount.is_some_and(|amount| range.contains(amount))
            })
    }

    /// Whether a sheet's time meets the time that is looked for.
    fn meets(&self, first_ms: u64, last_ms: u64) -> bool {
        last_ms >= self.from_ms
            && (self.until_ms == 0 || first_ms < self.until_ms)
            && self.after.as_ref().is_none_or(|after| first_ms <= after.ms)
    }
}

/// Terms of which an amount in `range` has one.
fn amounts(range: AmountRange, scheme: Scheme, classed: bool) -> Vec<u64> {
    let AmountRange { least, most } = range;
    if let Some((level, classes)) = range.classes().filter(|_| classed) {
        return classes.map(|class| scheme.amount_class(least.currency, (level, class))).collect();
    }
    let classes = least.size_class()..=most.size_class();
    classes.map(|class| scheme.amount(least.currency, class)).collect()
}

impl Archive {
    /// A page of what `query` looks for.
    /// # Errors
    /// [`ShelfError`].
    pub fn search(&self, query: &Query) -> Result<Page, ShelfError> {
        let limit = query.limit.clamp(1, limit::PAGE_MAX);
        let by_bytes = [false, true].map(|classed| query.sets(Scheme::Bytes, classed));
        let by_words = query.sets(Scheme::Words, true);
        let (sheets, records) = self.look(|open| {
            let is_meant = |ms, gid: &[u8]| query.is_meant(ms, gid);
            open.search(is_meant, &by_words, |record| query.fits(record), limit)
        });
        let mut page = Page { records, next: None };
        if page.records.len() == limit {
            return Ok(page.ending_here());
        }
        let mut left = limit::BLOCKS_READ_MAX;
        for head in sheets.iter().rev().filter(|head| query.meets(head.first_ms, head.last_ms)) {
            let sets = match head.scheme() {
                Scheme::Bytes => &by_bytes[usize::from(head.has_amount_classes())],
                Scheme::Words => &by_words,
            };
            if !sets.iter().all(|set| head.may_have_any(set)) {
                continue;
            }
            if left == 0 {
                // Everything newer than this sheet was looked at.
                page.next = Some(Cursor { ms: head.last_ms + 1, gid: String::new() });
                return Ok(page);
            }
            if let Some(next) = self.search_sheet(query, head, sets, &mut left, &mut page)? {
                page.next = Some(next);
                return Ok(page);
            }
        }
        Ok(page)
    }

    /// Adds what one sheet has. Answers the place to go on behind if the page or the work is full.
    fn search_sheet(
        &self,
        query: &Query,
        head: &Head,
        sets: &[Vec<u64>],
        left: &mut usize,
        page: &mut Page,
    ) -> Result<Option<Cursor>, ShelfError> {
        let limit = query.limit.clamp(1, limit::PAGE_MAX);
        let mut read: Option<(u32, Block)> = None;
        let mut looked_at: Option<Cursor> = None;
        // Pages of terms cost about as much as blocks.
        *left = left.saturating_sub(1);
        for place in head.places(&*self.shelf, sets)?.into_iter().rev() {
            let number = head.block_of(place);
            if read.as_ref().is_none_or(|(before, _)| *before != number) {
                if *left == 0 && looked_at.is_some() {
                    return Ok(looked_at);
                }
                *left = left.saturating_sub(1);
                read = Some((number, head.block(&*self.shelf, number)?));
            }
            let Some((_, block)) = &read else { continue };
            let Some(record) = block.read(head.within_block(place))? else { continue };
            looked_at = Some(Cursor::of(&record));
            if query.fits(&record) {
                page.records.push(Arc::new(record));
                if page.records.len() == limit {
                    return Ok(looked_at);
                }
            }
        }
        Ok(None)
    }
}

impl Page {
    fn ending_here(mut self) -> Self {
        self.next = self.records.last().map(|last| Cursor::of(last));
        self
    }
}
