//! One execution's merger: takes rows of the sources as they come, gives rows of the answer as soon as they are certain.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use super::{
    Column, Fields, Merge, Position, SortKey,
    decimal::Decimal,
    row::{Field, broken, cells, encode},
    value::{INT8, NUMERIC, Value},
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

#[derive(Debug, Default)]
struct Groups {
    index: BTreeMap<Vec<u8>, usize>,
    rows: Vec<Vec<Cell>>,
}

/// A cell of a group.
#[derive(Debug, Clone)]
enum Cell {
    Kept(Option<Vec<u8>>),
    Sum(Option<Decimal>),
    Extreme(Option<(Value, Vec<u8>)>),
    Average(Option<Decimal>, u64),
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
        if usize::from(merge.hidden) > width {
            return Err(broken("fewer columns than it was asked for"));
        }
        for column in &merge.columns {
            match *column {
                Column::Group(at) | Column::Min(at) | Column::Max(at)
                    if usize::from(at) < width => {}
                Column::Sum(at) if usize::from(at) < width => summable(&fields[usize::from(at)])?,
                Column::Avg { sum, count } if usize::from(sum.max(count)) < width => {
                    summable(&fields[usize::from(sum)])?;
                }
                Column::Group(_)
                | Column::Sum(_)
                | Column::Min(_)
                | Column::Max(_)
                | Column::Avg { .. } => {
                    return Err(broken("fewer columns than it was asked for"));
                }
            }
        }
        Ok(Self {
            queues: (0..parts).map(|_| VecDeque::new()).collect(),
            ended: vec![false; parts],
            groups: Groups::default(),
            gathered: None,
            seen: BTreeSet::new(),
            skipped: 0,
            given: 0,
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
        let visible = self.visible();
        if self.merge.columns.is_empty() {
            return Fields(self.fields[..visible].to_vec());
        }
        let field = |column: &Column| match *column {
            Column::Group(at) | Column::Sum(at) | Column::Min(at) | Column::Max(at) => {
                let mut field = self.fields[usize::from(at)].clone();
                // A sum of counts is a bigint still, though PostgreSQL's own sum of them would be numeric.
                if !matches!(column, Column::Group(_)) {
                    field.origin = [0; 6];
                }
                field
            }
            Column::Avg { sum, .. } => Field {
                type_oid: NUMERIC,
                type_details: [0xff; 6],
                origin: [0; 6],
                ..self.fields[usize::from(sum)].clone()
            },
        };
        Fields(self.merge.columns[..visible].iter().map(field).collect())
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
            return self.gather(body);
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
        let canonical = canonical(&cells(body)?, &self.fields)?;
        let bytes = canonical.len() + 48;
        if !self.seen.insert(canonical) {
            return Ok(false);
        }
        self.take(bytes)?;
        Ok(true)
    }

    // === Groups ===

    fn gather(&mut self, body: &[u8]) -> Result<(), Refused> {
        let cells = cells(body)?;
        if cells.len() != self.fields.len() {
            return Err(broken("another number of columns than it described"));
        }
        let of_group: Vec<usize> = self
            .merge
            .columns
            .iter()
            .filter_map(|column| match column {
                Column::Group(at) => Some(usize::from(*at)),
                Column::Sum(_) | Column::Min(_) | Column::Max(_) | Column::Avg { .. } => None,
            })
            .collect();
        let keys: Vec<Option<&[u8]>> = of_group.iter().map(|at| cells[*at]).collect();
        let fields: Vec<Field> = of_group.iter().map(|at| self.fields[*at].clone()).collect();
        let key = canonical(&keys, &fields)?;
        let known = self.groups.index.get(&key).copied();
        let at = match known {
            Some(at) => at,
            None => {
                self.take(key.len() + body.len() + 96 * self.merge.columns.len())?;
                let row = self.merge.columns.iter().map(|column| match *column {
                    Column::Group(at) => Cell::Kept(cells[usize::from(at)].map(<[u8]>::to_vec)),
                    Column::Sum(_) => Cell::Sum(None),
                    Column::Min(_) | Column::Max(_) => Cell::Extreme(None),
                    Column::Avg { .. } => Cell::Average(None, 0),
                });
                self.groups.rows.push(row.collect());
                self.groups.index.insert(key, self.groups.rows.len() - 1);
                self.groups.rows.len() - 1
            }
        };
        for (index, column) in self.merge.columns.iter().enumerate() {
            let before = self.groups.rows[at][index].clone();
            self.groups.rows[at][index] = self.with(before, *column, &cells)?;
        }
        Ok(())
    }

    fn with(&self, before: Cell, column: Column, cells: &[Option<&[u8]>]) -> Result<Cell, Refused> {
        let read = |at: u16| {
            let field = &self.fields[usize::from(at)];
            Self::read_number(cells[usize::from(at)], field)
        };
        let add = |before: Option<Decimal>, more: Option<Decimal>| match (before, more) {
            (Some(before), Some(more)) => Some(before.add(&more)),
            (before, more) => before.or(more),
        };
        Ok(match (before, column) {
            (Cell::Sum(before), Column::Sum(at)) => Cell::Sum(add(before, read(at)?)),
            (Cell::Average(before, count), Column::Avg { sum, count: at }) => {
                let more = read(at)?.and_then(|more| more.print().parse::<u64>().ok()).unwrap_or(0);
                Cell::Average(add(before, read(sum)?), count + more)
            }
            (Cell::Extreme(before), Column::Min(at) | Column::Max(at)) => {
                let field = &self.fields[usize::from(at)];
                let Some(cell) = cells[usize::from(at)] else { return Ok(Cell::Extreme(before)) };
                let value = self.key(Some(cell), field, false)?.expect("the cell is not NULL");
                let wanted = if matches!(column, Column::Min(_)) {
                    Ordering::Less
                } else {
                    Ordering::Greater
                };
                let better =
                    before.as_ref().is_none_or(|(known, _)| value.compare(known) == wanted);
                Cell::Extreme(if better { Some((value, cell.to_vec())) } else { before })
            }
            (before, _) => before,
        })
    }

    fn read_number(cell: Option<&[u8]>, field: &Field) -> Result<Option<Decimal>, Refused> {
        let Some(cell) = cell else { return Ok(None) };
        match Value::read(cell, field)? {
            Value::Integer(value) => Ok(Some(Decimal::of_integer(value))),
            Value::Decimal(value) => Ok(Some(value)),
            Value::Endless(_) | Value::Float(_) | Value::Bytes(_) | Value::Text(_) => {
                Err(not_summable(field))
            }
        }
    }

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
        let fields = self.fields().0;
        let visible = self.visible();
        let mut rows = Vec::new();
        for row in std::mem::take(&mut self.groups.rows) {
            let cells: Result<Vec<Option<Vec<u8>>>, Refused> = row
                .into_iter()
                .take(visible)
                .zip(&fields)
                .map(|(cell, field)| finished(cell, field))
                .collect();
            let cells = cells?;
            let keys: Result<Vec<_>, Refused> = self
                .merge
                .sort
                .iter()
                .map(|key| {
                    let at = Self::at(key.column, visible)?;
                    self.key(cells[at].as_deref(), &fields[at], key.collate_c)
                })
                .collect();
            rows.push((keys?, encode(cells.iter().map(Option::as_deref))));
        }
        rows.sort_by(|(one, _), (two, _)| self.order(one, two));
        Ok(rows.into_iter().map(|(_, body)| body).collect())
    }
}

fn not_summable(field: &Field) -> Refused {
    let name = String::from_utf8_lossy(&field.name);
    let cause = format!(
        "column {name:?} (type {}) is a sum that depends on its order, or of a type that is not added here",
        field.type_oid
    );
    Refused::new(
        RefusalClass::NotMergeable,
        cause,
        "Cast it to numeric, or give a value for the group's key",
    )
}

fn summable(field: &Field) -> Result<(), Refused> {
    if matches!(field.type_oid, INT8 | NUMERIC) { Ok(()) } else { Err(not_summable(field)) }
}

/// A finished cell, in the form of its column.
fn finished(cell: Cell, field: &Field) -> Result<Option<Vec<u8>>, Refused> {
    let number = match cell {
        Cell::Kept(bytes) => return Ok(bytes),
        Cell::Extreme(found) => return Ok(found.map(|(_, bytes)| bytes)),
        Cell::Sum(sum) => sum,
        Cell::Average(sum, count) => sum.filter(|_| count > 0).map(|sum| sum.average(count)),
    };
    let Some(number) = number else { return Ok(None) };
    if field.type_oid == INT8 {
        let value: Result<i64, _> = number.print().parse();
        let value = value.map_err(|_| {
            Refused::new(
                RefusalClass::NotMergeable,
                "a sum is out of the range of bigint",
                "Cast what is added to numeric",
            )
        })?;
        return Ok(Some(match field.format {
            Format::Text => value.to_string().into_bytes(),
            Format::Binary => value.to_be_bytes().to_vec(),
        }));
    }
    Ok(Some(match field.format {
        Format::Text => number.print().into_bytes(),
        Format::Binary => number.to_binary(),
    }))
}

/// Equal for rows that are equal cell by cell, and only for these.
fn canonical(cells: &[Option<&[u8]>], fields: &[Field]) -> Result<Vec<u8>, Refused> {
    let mut key = Vec::new();
    for (cell, field) in cells.iter().zip(fields) {
        match cell {
            None => key.push(0),
            Some(cell) => {
                let canonical = Value::read(cell, field)?.canonical();
                key.push(1);
                key.extend((canonical.len() as u64).to_be_bytes());
                key.extend(canonical);
            }
        }
    }
    Ok(key)
}
