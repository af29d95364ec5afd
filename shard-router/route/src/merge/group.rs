//! Groups whose rows lie on several sources: partial aggregates become whole ones.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    Column, Distinct, Merge,
    decimal::Decimal,
    row::{Field, broken, cells},
    value::{INT8, NUMERIC, Value},
};
use crate::{Format, RefusalClass, Refused};

/// A row of cells in the form in which they are sent; `None` is NULL.
pub(super) type Cells = Vec<Option<Vec<u8>>>;

/// The groups of one execution.
#[derive(Debug, Default)]
pub(super) struct Groups {
    index: BTreeMap<Vec<u8>, usize>,
    rows: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    cells: Vec<Cell>,
    /// For each of [`Merge::defaults`], what a source says where it has nothing.
    defaults: Cells,
}

/// A cell of a group.
#[derive(Debug, Clone)]
enum Cell {
    Kept(Option<Vec<u8>>),
    Sum(Option<Decimal>),
    Extreme(Option<(Value, Vec<u8>)>),
    Average(Option<Decimal>, u64),
    /// Values that were there already, their sum and their number.
    Distinct(BTreeSet<Vec<u8>>, Option<Decimal>, u64),
}

/// Refuses columns that are not there or whose types are not added up here.
pub(super) fn check(merge: &Merge, fields: &[Field]) -> Result<(), Refused> {
    let field = |at: u16| {
        fields.get(usize::from(at)).ok_or_else(|| broken("fewer columns than it was asked for"))
    };
    for column in &merge.columns {
        match *column {
            Column::Group(at) | Column::Min(at) | Column::Max(at) => drop(field(at)?),
            Column::Sum(at) | Column::Count(at) => summable(field(at)?)?,
            Column::Avg { sum, count } => {
                field(count)?;
                summable(field(sum)?)?;
            }
            Column::Distinct { how, of, shape } => {
                field(of)?;
                if how != Distinct::Count {
                    summable(field(shape)?)?;
                }
            }
        }
    }
    for (column, default) in &merge.defaults {
        let column = merge.columns.get(usize::from(*column));
        let column = column.ok_or_else(|| broken("fewer columns than it was asked for"))?;
        let (own, default) = (type_of(column, fields), field(*default)?);
        if own != default.type_oid {
            return Err(Refused::new(
                RefusalClass::NotMergeable,
                format!(
                    "column {:?}: its default has another type than its aggregate",
                    String::from_utf8_lossy(&default.name)
                ),
                "Cast the default to the aggregate's type",
            ));
        }
    }
    Ok(())
}

fn type_of(column: &Column, fields: &[Field]) -> u32 {
    let at = match *column {
        Column::Group(at)
        | Column::Sum(at)
        | Column::Count(at)
        | Column::Min(at)
        | Column::Max(at)
        | Column::Distinct { how: Distinct::Count | Distinct::Sum, shape: at, .. } => at,
        Column::Avg { .. } | Column::Distinct { how: Distinct::Average, .. } => return NUMERIC,
    };
    fields.get(usize::from(at)).map_or(0, |field| field.type_oid)
}

/// What the answer's columns are, hidden ones behind those of the client.
pub(super) fn described(merge: &Merge, fields: &[Field]) -> Vec<Field> {
    let average = |at: u16| Field {
        type_oid: NUMERIC,
        type_details: [0xff; 6],
        origin: [0; 6],
        ..fields[usize::from(at)].clone()
    };
    let describe = |(at, column): (usize, &Column)| {
        let default = merge.defaults.iter().find(|(column, _)| usize::from(*column) == at);
        if let Some((_, default)) = default {
            return fields[usize::from(*default)].clone();
        }
        match *column {
            Column::Group(at) => fields[usize::from(at)].clone(),
            // A sum of counts is a bigint still, though PostgreSQL's own sum of them would be numeric.
            Column::Sum(at)
            | Column::Count(at)
            | Column::Min(at)
            | Column::Max(at)
            | Column::Distinct { how: Distinct::Count | Distinct::Sum, shape: at, .. } => {
                Field { origin: [0; 6], ..fields[usize::from(at)].clone() }
            }
            Column::Avg { sum: at, .. }
            | Column::Distinct { how: Distinct::Average, shape: at, .. } => average(at),
        }
    };
    merge.columns.iter().enumerate().map(describe).collect()
}

impl Groups {
    /// Takes a source's row into its group. Gives the bytes of memory that this took.
    pub(super) fn push(
        &mut self,
        body: &[u8],
        merge: &Merge,
        fields: &[Field],
    ) -> Result<usize, Refused> {
        let cells = cells(body)?;
        if cells.len() != fields.len() {
            return Err(broken("another number of columns than it described"));
        }
        let of_group: Vec<usize> = merge
            .columns
            .iter()
            .filter_map(|column| match column {
                Column::Group(at) => Some(usize::from(*at)),
                Column::Sum(_)
                | Column::Count(_)
                | Column::Min(_)
                | Column::Max(_)
                | Column::Avg { .. }
                | Column::Distinct { .. } => None,
            })
            .collect();
        let keys: Vec<Option<&[u8]>> = of_group.iter().map(|at| cells[*at]).collect();
        let key_fields: Vec<&Field> = of_group.iter().map(|at| &fields[*at]).collect();
        let key = canonical(&keys, &key_fields)?;
        let mut taken = 0;
        let at = match self.index.get(&key).copied() {
            Some(at) => at,
            None => {
                taken += key.len() + body.len() + 96 * merge.columns.len();
                self.rows.push(Group::begin(merge, &cells));
                self.index.insert(key, self.rows.len() - 1);
                self.rows.len() - 1
            }
        };
        for (index, column) in merge.columns.iter().enumerate() {
            let cell = &mut self.rows[at].cells[index];
            taken += add(cell, *column, &cells, fields, merge.collation_is_c)?;
        }
        Ok(taken)
    }

    /// The whole rows, hidden columns included, in no order of interest.
    pub(super) fn finish(self, merge: &Merge, fields: &[Field]) -> Result<Vec<Cells>, Refused> {
        let mut rows = self.rows;
        if rows.is_empty() && merge.always_a_row {
            let none = vec![None; fields.len()];
            rows.push(Group::begin(merge, &none));
        }
        let described = described(merge, fields);
        let finish = |group: Group| {
            let Group { cells, defaults } = group;
            let mut whole = cells
                .into_iter()
                .zip(&merge.columns)
                .zip(&described)
                .map(|((cell, column), field)| finished(cell, *column, field))
                .collect::<Result<Cells, Refused>>()?;
            for ((column, _), default) in merge.defaults.iter().zip(defaults) {
                let cell = &mut whole[usize::from(*column)];
                // Nothing in the whole means nothing in any part: each source gives the default alike.
                *cell = cell.take().or(default);
            }
            Ok(whole)
        };
        rows.into_iter().map(finish).collect()
    }
}

impl Group {
    fn begin(merge: &Merge, cells: &[Option<&[u8]>]) -> Self {
        let kept = |at: u16| cells[usize::from(at)].map(<[u8]>::to_vec);
        let begin = |column: &Column| match *column {
            Column::Group(at) => Cell::Kept(kept(at)),
            Column::Sum(_) | Column::Count(_) => Cell::Sum(None),
            Column::Min(_) | Column::Max(_) => Cell::Extreme(None),
            Column::Avg { .. } => Cell::Average(None, 0),
            Column::Distinct { .. } => Cell::Distinct(BTreeSet::new(), None, 0),
        };
        Self {
            cells: merge.columns.iter().map(begin).collect(),
            defaults: merge.defaults.iter().map(|(_, at)| kept(*at)).collect(),
        }
    }
}

/// Adds a source's partial value to `cell`. Gives the bytes of memory that this took.
fn add(
    cell: &mut Cell,
    column: Column,
    cells: &[Option<&[u8]>],
    fields: &[Field],
    collation_is_c: bool,
) -> Result<usize, Refused> {
    let number = |at: u16| read_number(cells[usize::from(at)], &fields[usize::from(at)]);
    match (cell, column) {
        (Cell::Sum(sum), Column::Sum(at) | Column::Count(at)) => more(sum, number(at)?),
        (Cell::Average(total, count), Column::Avg { sum, count: at }) => {
            more(total, number(sum)?);
            *count += number(at)?.and_then(|more| more.print().parse::<u64>().ok()).unwrap_or(0);
        }
        (Cell::Extreme(known), Column::Min(at) | Column::Max(at)) => {
            let field = &fields[usize::from(at)];
            let Some(cell) = cells[usize::from(at)] else { return Ok(0) };
            let value = Value::read(cell, field)?;
            value.sorts(field, collation_is_c)?;
            let wanted =
                if matches!(column, Column::Min(_)) { Ordering::Less } else { Ordering::Greater };
            if known.as_ref().is_none_or(|(known, _)| value.compare(known) == wanted) {
                *known = Some((value, cell.to_vec()));
            }
        }
        (Cell::Distinct(seen, sum, count), Column::Distinct { how, of, .. }) => {
            let field = &fields[usize::from(of)];
            let Some(cell) = cells[usize::from(of)] else { return Ok(0) };
            let canonical = Value::read(cell, field)?.canonical();
            let bytes = canonical.len() + 48;
            if !seen.insert(canonical) {
                return Ok(0);
            }
            *count += 1;
            if how != Distinct::Count {
                more(sum, number(of)?);
            }
            return Ok(bytes);
        }
        // A cell is begun by its own column.
        _ => {}
    }
    Ok(0)
}

fn more(sum: &mut Option<Decimal>, more: Option<Decimal>) {
    *sum = match (sum.take(), more) {
        (Some(before), Some(more)) => Some(before.add(&more)),
        (before, more) => before.or(more),
    };
}

fn read_number(cell: Option<&[u8]>, field: &Field) -> Result<Option<Decimal>, Refused> {
    let Some(cell) = cell else { return Ok(None) };
    match Value::read(cell, field)?.number() {
        Some(number) => Ok(Some(number)),
        None => Err(not_summable(field)),
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
fn finished(cell: Cell, column: Column, field: &Field) -> Result<Option<Vec<u8>>, Refused> {
    let is_average = matches!(column, Column::Distinct { how: Distinct::Average, .. });
    let number = match cell {
        Cell::Kept(bytes) => return Ok(bytes),
        Cell::Extreme(found) => return Ok(found.map(|(_, bytes)| bytes)),
        Cell::Sum(sum) if matches!(column, Column::Count(_)) => {
            Some(sum.unwrap_or_else(|| Decimal::of_integer(0)))
        }
        Cell::Sum(sum) => sum,
        Cell::Average(sum, count) => sum.filter(|_| count > 0).map(|sum| sum.average(count)),
        Cell::Distinct(_, sum, count) if is_average => sum.map(|sum| sum.average(count)),
        Cell::Distinct(_, None, count)
            if matches!(column, Column::Distinct { how: Distinct::Count, .. }) =>
        {
            i64::try_from(count).ok().map(Decimal::of_integer)
        }
        Cell::Distinct(_, sum, _) => sum,
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
pub(super) fn canonical(cells: &[Option<&[u8]>], fields: &[&Field]) -> Result<Vec<u8>, Refused> {
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

#[cfg(test)]
mod tests {
    use super::super::{Fields, Having, Merger, Operand, Outcome, row};
    use super::*;

    fn field(name: &str, type_oid: u32) -> Field {
        let (origin, type_details) = ([0; 6], [0; 6]);
        Field { name: name.into(), origin, type_oid, type_details, format: Format::Text }
    }

    /// What comes of the rows of two sources, as text.
    fn merged(
        merge: Merge,
        fields: &[Field],
        parts: [&[&[Option<&str>]]; 2],
        bytes_max: usize,
    ) -> Result<Vec<Vec<Option<String>>>, Refused> {
        let mut merger = Merger::new(merge, Fields(fields.to_vec()), 2, bytes_max)?;
        for (part, rows) in parts.into_iter().enumerate() {
            for row in rows {
                merger.push(part, &row::encode(row.iter().map(|cell| cell.map(str::as_bytes))))?;
            }
            merger.end(part);
        }
        let mut told = Vec::new();
        while let Outcome::Row(body) = merger.next()? {
            let text = |cell: Option<&[u8]>| cell.map(|cell| String::from_utf8_lossy(cell).into());
            told.push(cells(&body)?.into_iter().map(text).collect());
        }
        Ok(told)
    }

    fn of(columns: Vec<Column>) -> Merge {
        Merge { columns, collation_is_c: true, ..Merge::default() }
    }

    const INT4: u32 = 23;

    #[test]
    fn a_value_that_two_sources_have_is_counted_and_added_once() {
        let distinct = |how| Column::Distinct { how, of: 1, shape: 0 };
        let all = [Distinct::Count, Distinct::Sum, Distinct::Average];
        let merge = of(all.map(distinct).to_vec());
        let fields = [field("sum", INT8), field("a", INT4)];
        let one: &[&[_]] = &[&[Some("10"), Some("5")], &[Some("3"), Some("3")], &[None, None]];
        let two: &[&[_]] = &[&[Some("5"), Some("5")], &[Some("2"), Some("2")]];
        let told = merged(merge.clone(), &fields, [one, two], 10_000).unwrap();
        let wanted = ["3", "10", "3.3333333333333333"].map(|text| Some(text.to_owned()));
        assert_eq!(told, [wanted]);
        let error = merged(merge, &fields, [one, two], 300).unwrap_err();
        assert_eq!(error.class, RefusalClass::MemoryCap);
    }

    #[test]
    fn without_rows_there_is_a_row_where_nothing_is_grouped_by() {
        let distinct = Column::Distinct { how: Distinct::Count, of: 1, shape: 0 };
        let columns = vec![distinct, Column::Count(0), Column::Sum(0)];
        let merge = Merge { always_a_row: true, ..of(columns) };
        let fields = [field("count", INT8), field("a", INT4)];
        let told = merged(merge, &fields, [&[], &[]], 10_000).unwrap();
        assert_eq!(told, [[Some("0".to_owned()), Some("0".to_owned()), None]]);
    }

    #[test]
    fn a_default_stands_only_where_no_source_has_anything() {
        let merge = Merge { defaults: vec![(1, 2)], ..of(vec![Column::Group(0), Column::Sum(1)]) };
        let fields = [field("b", 25), field("sum", INT8), field("total", INT8)];
        let one: &[&[_]] = &[&[Some("x"), None, Some("7")], &[Some("y"), None, Some("7")]];
        let two: &[&[_]] = &[&[Some("x"), Some("4"), Some("4")]];
        let told = merged(merge.clone(), &fields, [one, two], 10_000).unwrap();
        let row = |group: &str, sum: &str| vec![Some(group.to_owned()), Some(sum.to_owned())];
        assert_eq!(told, [row("x", "4"), row("y", "7")]);
        let fields = [field("b", 25), field("sum", INT8), field("total", NUMERIC)];
        let error = merged(merge, &fields, [one, two], 10_000).unwrap_err();
        assert_eq!(error.class, RefusalClass::NotMergeable);
    }

    #[test]
    fn a_group_is_judged_when_it_is_whole() {
        let above = Having::Compare {
            left: Operand::Column(1),
            holds: [false, false, true],
            right: Operand::Constant(Some("3".into())),
        };
        let columns = vec![Column::Group(0), Column::Count(1)];
        let merge = Merge { having: Some(above), hidden: 1, ..of(columns) };
        let fields = [field("b", 25), field("count", INT8)];
        let one: &[&[_]] = &[&[Some("x"), Some("2")], &[Some("y"), Some("3")]];
        let two: &[&[_]] = &[&[Some("x"), Some("2")]];
        let told = merged(merge, &fields, [one, two], 10_000).unwrap();
        assert_eq!(told, [[Some("x".to_owned())]]);
    }
}
