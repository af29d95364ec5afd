//! One execution's merger: takes rows of the sources as they come, gives rows of the answer as soon as they are certain.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, VecDeque},
};

use super::{
    Fields, Merge, Position, SortKey,
    group::{self, Groups},
    row::{Field, broken, cells, encode},
    value::{INT8, Value},
};
use crate::{Format, RefusalClass, Refused};

/// What a merger has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The body of a DataRow for the client.
    Row(Vec<u8>),
    /// Nothing can be said before this part (by its place in the plan) has sent a row or ended.
    Wants(usize),
    /// There will be no more rows. Parts that have not ended may be cancelled.
    Done,
}

/// Makes one answer of the rows of several sources. Holds at most `bytes_max` bytes of rows.
#[derive(Debug)]
pub struct Merger {
    merge: Merge,
    fields: Vec<Field>,
    queues: Vec<VecDeque<Row>>,
    ended: Vec<bool>,
    groups: Groups,
    gathered: Option<VecDeque<Vec<u8>>>,
    seen: BTreeSet<Vec<u8>>,
    skipped: u64,
    given: u64,
    /// Rows that are only counted, until that was told.
    counted: Option<u64>,
    dealt: usize,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Row {
    body: Vec<u8>,
    /// The values of the sort's keys.
    keys: Vec<Option<Value>>,
}

impl Merger {
    /// A merger for `parts` sources whose rows have `fields`; all must describe their rows alike (see [`Merger::agrees`]).
    /// # Errors
    /// The plan names columns that are not there, or asks for what is not done with their types.
    pub fn new(
        merge: Merge,
        fields: Fields,
        parts: usize,
        bytes_max: usize,
    ) -> Result<Self, Refused> {
        let fields = fields.0;
        let width = fields.len();
        let width = if merge.columns.is_empty() { width } else { merge.columns.len() };
        if usize::from(merge.hidden) > width {
            return Err(broken("fewer columns than it was asked for"));
        }
        group::check(&merge, &fields)?;
        if let Some(having) = &merge.having {
            having.check(&group::described(&merge, &fields))?;
        }
        Ok(Self {
            queues: (0..parts).map(|_| VecDeque::new()).collect(),
            ended: vec![false; parts],
            groups: Groups::default(),
            gathered: None,
            seen: BTreeSet::new(),
            skipped: 0,
            given: 0,
            counted: merge.counted.as_ref().map(|_| 0),
            dealt: 0,
            bytes: 0,
            bytes_max,
            merge,
            fields,
        })
    }

    /// Whether another part's description fits: as many columns, of the same types in the same forms.
    /// # Errors
    /// It does not: class `Disagreement`.
    pub fn agrees(&self, other: &Fields) -> Result<(), Refused> {
        let alike = self.fields.len() == other.0.len()
            && self
                .fields
                .iter()
                .zip(&other.0)
                .all(|(one, two)| (one.type_oid, one.format) == (two.type_oid, two.format));
        if alike { Ok(()) } else { Err(broken("columns of other types than another source")) }
    }

    /// The columns of the answer.
    #[must_use]
    pub fn fields(&self) -> Fields {
        match &self.merge.counted {
            None => self.merged_fields(),
            Some(name) => Fields(vec![Field {
                name: name.clone().into_bytes(),
                origin: [0; 6],
                type_oid: INT8,
                // Eight bytes, no modifier.
                type_details: [0, 8, 0xff, 0xff, 0xff, 0xff],
                format: self.format(),
            }]),
        }
    }

    /// The form in which the client wants its columns.
    fn format(&self) -> Format {
        self.fields.first().map_or(Format::Text, |field| field.format)
    }

    fn merged_fields(&self) -> Fields {
        let visible = self.visible();
        if self.merge.columns.is_empty() {
            return Fields(self.fields[..visible].to_vec());
        }
        let mut described = group::described(&self.merge, &self.fields);
        described.truncate(visible);
        Fields(described)
    }

    /// Columns that the client sees.
    fn visible(&self) -> usize {
        let width = if self.merge.columns.is_empty() {
            self.fields.len()
        } else {
            self.merge.columns.len()
        };
        width - usize::from(self.merge.hidden)
    }

    /// Takes the body of a DataRow of part `part`.
    /// # Errors
    /// The row is broken, a value is not comparable, or the memory is used up. The statement must then be ended on all sources.
    pub fn push(&mut self, part: usize, body: &[u8]) -> Result<(), Refused> {
        if !self.merge.columns.is_empty() {
            let bytes = self.groups.push(body, &self.merge, &self.fields)?;
            return self.take(bytes);
        }
        let keys = self.keys(body)?;
        self.take(body.len() + 64 * keys.len())?;
        self.queues[part].push_back(Row { body: body.to_vec(), keys });
        Ok(())
    }

    /// Part `part` has no more rows.
    pub fn end(&mut self, part: usize) {
        self.ended[part] = true;
    }

    /// Whether part `part` has rows here that nobody has asked for yet, so that no more need be read from it.
    #[must_use]
    pub fn has_rows_of(&self, part: usize) -> bool {
        !self.queues[part].is_empty()
    }

    /// What comes next.
    /// # Errors
    /// As [`Merger::push`].
    #[expect(
        clippy::should_implement_trait,
        reason = "a merger may want a row before it gives one"
    )]
    pub fn next(&mut self) -> Result<Outcome, Refused> {
        loop {
            match (self.merged()?, &mut self.counted) {
                (Outcome::Row(_), Some(count)) => *count += 1,
                (Outcome::Done, counted) => {
                    let Some(count) = counted.take() else { return Ok(Outcome::Done) };
                    let cell = match self.format() {
                        Format::Text => count.to_string().into_bytes(),
                        Format::Binary => count.to_be_bytes().to_vec(),
                    };
                    return Ok(Outcome::Row(encode([Some(cell.as_slice())].into_iter())));
                }
                (outcome, _) => return Ok(outcome),
            }
        }
    }

    fn merged(&mut self) -> Result<Outcome, Refused> {
        loop {
            if self.merge.limit.is_some_and(|limit| self.given >= limit) {
                return Ok(Outcome::Done);
            }
            let outcome =
                if self.merge.columns.is_empty() { self.next_row()? } else { self.next_group()? };
            let Outcome::Row(body) = outcome else { return Ok(outcome) };
            if self.merge.distinct && !self.is_new(&body)? {
                continue;
            }
            if self.skipped < self.merge.offset {
                self.skipped += 1;
                continue;
            }
            self.given += 1;
            return Ok(Outcome::Row(body));
        }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        self.bytes += bytes;
        if self.bytes <= self.bytes_max {
            return Ok(());
        }
        let cause = format!("one scatter needs more than {} bytes of memory", self.bytes_max);
        let remedy = "Ask for fewer rows or groups, or raise the router's memory for a scatter";
        Err(Refused::new(RefusalClass::MemoryCap, cause, remedy))
    }

    fn at(position: Position, width: usize) -> Result<usize, Refused> {
        let at = match position {
            Position::At(at) => Some(usize::from(at)),
            Position::FromEnd(back) => width.checked_sub(1 + usize::from(back)),
        };
        at.filter(|at| *at < width).ok_or_else(|| broken("fewer columns than it was asked for"))
    }

    fn keys(&self, body: &[u8]) -> Result<Vec<Option<Value>>, Refused> {
        if self.merge.sort.is_empty() {
            return Ok(Vec::new());
        }
        let cells = cells(body)?;
        let key = |key: &SortKey| {
            let at = Self::at(key.column, cells.len())?;
            let field =
                self.fields.get(at).ok_or_else(|| broken("more columns than it described"))?;
            self.key(cells[at], field, key.collate_c)
        };
        self.merge.sort.iter().map(key).collect()
    }

    fn key(
        &self,
        cell: Option<&[u8]>,
        field: &Field,
        collate_c: bool,
    ) -> Result<Option<Value>, Refused> {
        let Some(cell) = cell else { return Ok(None) };
        let value = Value::read(cell, field)?;
        value.sorts(field, collate_c || self.merge.collation_is_c)?;
        Ok(Some(value))
    }

    fn next_row(&mut self) -> Result<Outcome, Refused> {
        if !self.merge.dealt.is_empty() {
            return self.next_dealt();
        }
        if self.merge.sort.is_empty() {
            if let Some(part) = self.queues.iter().position(|queue| !queue.is_empty()) {
                return self.give(part);
            }
            let waiting = self.ended.iter().position(|ended| !ended);
            return Ok(waiting.map_or(Outcome::Done, Outcome::Wants));
        }
        let mut least: Option<usize> = None;
        for part in 0..self.queues.len() {
            let Some(row) = self.queues[part].front() else {
                if self.ended[part] {
                    continue;
                }
                return Ok(Outcome::Wants(part));
            };
            let before = least.and_then(|least| self.queues[least].front());
            if before.is_none_or(|before| self.order(&row.keys, &before.keys) == Ordering::Less) {
                least = Some(part);
            }
        }
        least.map_or(Ok(Outcome::Done), |part| self.give(part))
    }

    /// Rows of an INSERT, in the order in which they were listed. A part that gives fewer has left some out.
    fn next_dealt(&mut self) -> Result<Outcome, Refused> {
        while let Some(part) = self.merge.dealt.get(self.dealt).map(|part| usize::from(*part)) {
            if !self.queues[part].is_empty() {
                self.dealt += 1;
                return self.give(part);
            }
            if !self.ended[part] {
                return Ok(Outcome::Wants(part));
            }
            self.dealt += 1;
        }
        Ok(Outcome::Done)
    }

    fn give(&mut self, part: usize) -> Result<Outcome, Refused> {
        let row = self.queues[part].pop_front().ok_or_else(|| broken("no row where one was"))?;
        self.bytes = self.bytes.saturating_sub(row.body.len() + 64 * row.keys.len());
        if self.merge.hidden == 0 {
            return Ok(Outcome::Row(row.body));
        }
        let cells = cells(&row.body)?;
        let visible = cells.len().saturating_sub(usize::from(self.merge.hidden));
        Ok(Outcome::Row(encode(cells[..visible].iter().copied())))
    }

    fn order(&self, one: &[Option<Value>], two: &[Option<Value>]) -> Ordering {
        for (key, (one, two)) in self.merge.sort.iter().zip(one.iter().zip(two)) {
            let order = match (one, two) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) if key.nulls_first => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) if key.nulls_first => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(one), Some(two)) if key.descending => two.compare(one),
                (Some(one), Some(two)) => one.compare(two),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    }

    /// Whether no equal row was given before.
    fn is_new(&mut self, body: &[u8]) -> Result<bool, Refused> {
        let described = self.merged_fields();
        let fields: Vec<&Field> = described.0.iter().collect();
        let canonical = group::canonical(&cells(body)?, &fields)?;
        let bytes = canonical.len() + 48;
        if !self.seen.insert(canonical) {
            return Ok(false);
        }
        self.take(bytes)?;
        Ok(true)
    }

    // === Groups ===

    fn next_group(&mut self) -> Result<Outcome, Refused> {
        if let Some(waiting) = self.ended.iter().position(|ended| !ended) {
            return Ok(Outcome::Wants(waiting));
        }
        if self.gathered.is_none() {
            self.gathered = Some(self.finish_groups()?);
        }
        let next = self.gathered.as_mut().and_then(VecDeque::pop_front);
        Ok(next.map_or(Outcome::Done, Outcome::Row))
    }

    fn finish_groups(&mut self) -> Result<VecDeque<Vec<u8>>, Refused> {
        let described = group::described(&self.merge, &self.fields);
        let visible = self.visible();
        let mut rows = Vec::new();
        for cells in std::mem::take(&mut self.groups).finish(&self.merge, &self.fields)? {
            if let Some(having) = &self.merge.having
                && having.judge(&cells, &described)? != Some(true)
            {
                continue;
            }
            let keys: Result<Vec<_>, Refused> = self
                .merge
                .sort
                .iter()
                .map(|key| {
                    let at = Self::at(key.column, cells.len())?;
                    self.key(cells[at].as_deref(), &described[at], key.collate_c)
                })
                .collect();
            rows.push((keys?, encode(cells[..visible].iter().map(Option::as_deref))));
        }
        rows.sort_by(|(one, _), (two, _)| self.order(one, two));
        Ok(rows.into_iter().map(|(_, body)| body).collect())
    }
}
