//! Seats: each reference to a table in a statement, what is said of its key, and which others it is tied to.
//!
//! A seat's slots are those that its own conditions leave, intersected with those of every seat that ties it. A tie `a -> b` says: a
//! row of `b` matters only beside a row of `a` in the same slot.

use crate::{GroupName, KeyColumn, Scatter, SourceId, algorithm::Side, plan::Constant};

/// What may match, by the keys that a condition names. `All` is the answer to everything that is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keys {
    All,
    Nothing,
    /// The column by its place in the seat's list, and the values that it may have.
    OneOf(usize, Vec<Constant>),
    /// The elements of an array.
    AnyOf(usize, Constant),
    /// Bounds of the column, all of which hold.
    Within(usize, Vec<(Side, Constant)>),
    And(Vec<Self>),
    Or(Vec<Self>),
}

impl Keys {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, other) => other,
            (one, Self::All) => one,
            (Self::And(list), Self::And(more)) => more.into_iter().fold(Self::And(list), Self::and),
            (Self::Within(column, mut bounds), Self::Within(same, more)) if column == same => {
                bounds.extend(more);
                Self::Within(column, bounds)
            }
            (Self::And(mut list), Self::Within(column, more)) => {
                // Two bounds of one column say together what neither says alone.
                let known = list.iter_mut().find_map(|keys| match keys {
                    Self::Within(same, bounds) if *same == column => Some(bounds),
                    _ => None,
                });
                match known {
                    Some(bounds) => bounds.extend(more),
                    None => list.push(Self::Within(column, more)),
                }
                Self::And(list)
            }
            (Self::And(mut list), other) => {
                list.push(other);
                Self::And(list)
            }
            (other, Self::And(list)) => Self::And(list).and(other),
            (one, other) => Self::And(vec![one, other]),
        }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Nothing, other) => other,
            (one, Self::Nothing) => one,
            (Self::Or(mut list), other) => {
                list.push(other);
                Self::Or(list)
            }
            (one, other) => Self::Or(vec![one, other]),
        }
    }
}

/// Where the rows behind a reference lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lies {
    /// In a group, by key.
    Sharded { group: GroupName, scatter: Scatter },
    /// On one source.
    Single(SourceId),
    /// Everywhere alike: a reference table, a table of the catalog, a function.
    Everywhere,
    /// A subquery in FROM; its own seats tell. With the group whose key columns it passes on, if it does.
    Derived(Option<GroupName>),
}

/// One reference to a table.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    /// The table, for people.
    pub(crate) table: String,
    pub(crate) lies: Lies,
    /// The columns that lead to the slot. A derived seat has those that it passes on.
    pub(crate) columns: Vec<KeyColumn>,
    pub(crate) keys: Keys,
    /// The seats whose slots these rows must share.
    pub(crate) tied_to: Vec<usize>,
    /// The seats with which it is joined by key, itself the first: a class of union-find.
    pub(crate) class: usize,
    /// Columns that an UPDATE sets to constants by which its rows must stay where they are.
    pub(crate) kept: Vec<(usize, Constant)>,
}

/// All seats of a statement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seats(pub(crate) Vec<Seat>);

impl Seats {
    pub(crate) fn add(&mut self, table: &str, lies: Lies, columns: Vec<KeyColumn>) -> usize {
        let index = self.0.len();
        self.0.push(Seat {
            table: table.to_owned(),
            lies,
            columns,
            keys: Keys::All,
            tied_to: Vec::new(),
            class: index,
            kept: Vec::new(),
        });
        index
    }

    pub(crate) fn class_of(&self, mut seat: usize) -> usize {
        while self.0[seat].class != seat {
            seat = self.0[seat].class;
        }
        seat
    }

    pub(crate) fn unite(&mut self, one: usize, other: usize) {
        let (one, other) = (self.class_of(one), self.class_of(other));
        self.0[one.max(other)].class = one.min(other);
    }

    /// `seat` matters only beside rows of `other`.
    pub(crate) fn tie(&mut self, seat: usize, other: usize) {
        if seat != other && !self.0[seat].tied_to.contains(&other) {
            self.0[seat].tied_to.push(other);
        }
    }

    pub(crate) fn narrow(&mut self, seat: usize, keys: Keys) {
        let before = std::mem::replace(&mut self.0[seat].keys, Keys::All);
        self.0[seat].keys = before.and(keys);
    }

    pub(crate) fn is_sharded(&self, seat: usize) -> bool {
        matches!(self.0[seat].lies, Lies::Sharded { .. })
    }

    /// Whether two seats lie in the same group. A derived seat has columns of the group behind it only.
    pub(crate) fn same_group(&self, one: usize, other: usize) -> bool {
        match (self.group_of(one), self.group_of(other)) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        }
    }

    /// The group of a seat, or of those that it was derived from.
    pub(crate) fn group_of(&self, seat: usize) -> Option<&GroupName> {
        match &self.0[seat].lies {
            Lies::Sharded { group, .. } | Lies::Derived(Some(group)) => Some(group),
            Lies::Single(_) | Lies::Everywhere | Lies::Derived(None) => None,
        }
    }

    /// The seats whose conditions all bear on `seat`, itself among them.
    pub(crate) fn bearing_on(&self, seat: usize) -> Vec<usize> {
        let mut found = vec![seat];
        let mut next = 0;
        while let Some(&current) = found.get(next) {
            for &other in &self.0[current].tied_to {
                if !found.contains(&other) {
                    found.push(other);
                }
            }
            next += 1;
        }
        found
    }
}
