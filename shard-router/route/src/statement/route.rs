//! From a shape and the values of one execution to a plan.

use super::{
    Body, Shape,
    gather::Gather,
    kept::stays,
    read::Tables,
    seat::{Keys, Lies},
    write::{Inserted, Rows},
};
use crate::{
    Access, GroupName, KeyColumn, Merge, Part, Plan, Reason, RefusalClass, Refused, Scatter, Slot,
    SourceIndex, Tag, Target, Topology, Values,
    algorithm::{Interval, Side},
    key::Key,
    merge::{Having, Number},
    plan::{Constant, Known, Place, SlotSet, SourceSet, exact_number, known, known_elements},
    template::LiteralKind,
};

impl Shape {
    /// As [`Shape::plan`], lookups aside.
    pub(super) fn planned(
        &self,
        topology: &Topology,
        values: &Values<'_>,
    ) -> Result<Plan, Refused> {
        match &self.body {
            Body::None => Ok(plan(topology, Target::Any, Access::Write, Reason::Everywhere)),
            Body::OnlySource(access) => {
                let target = Target::One(topology.only_source().unwrap_or(SourceIndex(0)));
                Ok(plan(topology, target, *access, Reason::OnlySource))
            }
            Body::Tables(tables) => Router { tables, topology, values }.plan(),
        }
    }
}

pub(super) fn plan(topology: &Topology, target: Target, access: Access, reason: Reason) -> Plan {
    Plan {
        target,
        access,
        reason,
        slot: None,
        group: None,
        merge: Merge { collation_is_c: topology.collation_is_c(), ..Merge::default() },
        tag: Tag::Sum,
        lookups: false,
        awaits: false,
        copy: None,
        epoch: topology.epoch(),
    }
}

/// What is known of the slots of the seats of one execution.
pub(super) struct Found {
    pub(super) sources: SourceSet,
    /// The only slot, if all seats that say anything say the same one.
    slot: Option<Slot>,
    group: Option<GroupName>,
    /// Whether any seat's slots are narrowed by a key.
    keyed: bool,
    /// A key was there, but not its value: why.
    unknown: Option<(String, &'static str)>,
    /// A seat that nothing narrows.
    unkeyed: Option<usize>,
    scatter: Scatter,
    sharded: bool,
    single: bool,
    /// Some slot is awaited.
    pub(super) awaits: bool,
}

pub(super) struct Router<'r, 'v> {
    pub(super) tables: &'r Tables,
    pub(super) topology: &'r Topology,
    pub(super) values: &'r Values<'v>,
}

impl Router<'_, '_> {
    fn plan(&self) -> Result<Plan, Refused> {
        if let Some(Inserted { target, rows: Some(rows), in_order }) = &self.tables.inserted {
            return match rows {
                Rows::Listed(rows) => self.listed(*target, rows, *in_order),
                Rows::Fixed(keys) => self.fixed(*target, keys),
                Rows::Following(_) => self.by_seats(),
            };
        }
        self.by_seats()
    }

    /// A statement whose seats say where it goes.
    fn by_seats(&self) -> Result<Plan, Refused> {
        let found = self.found()?;
        Ok(Plan { awaits: found.awaits, ..self.by_found(found)? })
    }

    fn by_found(&self, found: Found) -> Result<Plan, Refused> {
        let access = self.tables.access;
        if self.writes_copies() {
            return self.every_copy(&found);
        }
        match found.sources.as_slice() {
            [] if found.sharded => {
                Ok(plan(self.topology, Target::Any, access, Reason::NoRowMatches))
            }
            [] => Ok(plan(self.topology, Target::Any, access, Reason::Everywhere)),
            [source] => {
                let reason = match (found.slot, found.sharded) {
                    (Some(_), _) => Reason::Key,
                    (None, true) => Reason::Keys,
                    (None, false) => Reason::SinglePlacement,
                };
                let one = plan(self.topology, Target::One(*source), access, reason);
                Ok(Plan { slot: found.slot, group: found.group, ..one })
            }
            sources => self.scattered(&found, sources),
        }
    }

    /// A write to a table of which every source has a copy.
    fn writes_copies(&self) -> bool {
        self.tables
            .targets
            .iter()
            .any(|target| matches!(self.tables.seats.0[*target].lies, Lies::Everywhere))
    }

    fn every_copy(&self, found: &Found) -> Result<Plan, Refused> {
        let table =
            self.tables.targets.first().map_or("", |target| &self.tables.seats.0[*target].table);
        if found.sharded || found.single {
            let cause =
                format!("a write to every copy of {table} by rows that not every source has");
            let remedy = "Read the rows first, and write them in a second statement";
            return Err(Refused::new(RefusalClass::NotColocated, cause, remedy));
        }
        if let Some(name) = &self.tables.wandering {
            let cause = format!(
                "a write to every copy of {table} calls {name}, which may differ from source to source"
            );
            let remedy = "Give the value as a literal or a parameter";
            return Err(Refused::new(RefusalClass::NotMergeable, cause, remedy));
        }
        let parts = (0..self.topology.sources().len())
            .map(|index| Part {
                source: SourceIndex(u16::try_from(index).expect("sources are bounded")),
                rewritten: None,
            })
            .collect();
        let all = plan(self.topology, Target::Several(parts), Access::Write, Reason::EveryCopy);
        Ok(Plan { tag: Tag::Same, ..all })
    }

    fn found(&self) -> Result<Found, Refused> {
        self.found_without(None)
    }

    /// What the seats say, without that of `left_out`.
    pub(super) fn found_without(&self, left_out: Option<usize>) -> Result<Found, Refused> {
        let seats = &self.tables.seats;
        let mut found = Found {
            sources: SourceSet::default(),
            slot: None,
            group: None,
            keyed: false,
            unknown: None,
            unkeyed: None,
            scatter: Scatter::Write,
            sharded: false,
            single: false,
            awaits: false,
        };
        let mut slots: Option<SlotSet> = None;
        for (index, seat) in seats.0.iter().enumerate().filter(|(at, _)| Some(*at) != left_out) {
            match &seat.lies {
                Lies::Everywhere | Lies::Derived(_) => {}
                Lies::Single(source) => {
                    found.single = true;
                    if let Some(source) = self.topology.index_of(source) {
                        found.sources.insert(source);
                    }
                }
                Lies::Sharded { group, scatter } => {
                    found.sharded = true;
                    found.scatter = found.scatter.min(*scatter);
                    found.group.get_or_insert_with(|| group.clone());
                    let set = self.slots_of_seat(index, &mut found);
                    stays(seat, &set, self.values)?;
                    if set.is_all() {
                        found.unkeyed.get_or_insert(index);
                    } else {
                        found.keyed = true;
                    }
                    found.awaits |= self.topology.awaits(group, &set);
                    let homes = self.homes(group)?;
                    found.sources.unite(&set.sources(homes));
                    match &mut slots {
                        None => slots = Some(set),
                        Some(slots) => slots.unite(&set),
                    }
                }
            }
        }
        let mut numbers = slots.iter().flat_map(SlotSet::slots);
        found.slot = match (numbers.next(), numbers.next()) {
            (Some(slot), None) => Some(slot),
            _ => None,
        };
        Ok(found)
    }

    pub(super) fn homes(&self, group: &GroupName) -> Result<&[SourceIndex], Refused> {
        self.topology.homes.get(group).map(|homes| &**homes).ok_or_else(|| {
            let cause = format!("group {group} is gone from the rules");
            Refused::new(RefusalClass::UnknownTable, cause, "Send the statement again")
        })
    }

    /// The slots in which rows of a seat can matter.
    fn slots_of_seat(&self, seat: usize, found: &mut Found) -> SlotSet {
        let mut slots = SlotSet::ALL;
        for other in self.tables.seats.bearing_on(seat) {
            let columns = &self.tables.seats.0[other].columns;
            let keys = &self.tables.seats.0[other].keys;
            slots.intersect(&self.slots_of_keys(keys, columns, found));
        }
        slots
    }

    fn slots_of_keys(&self, keys: &Keys, columns: &[KeyColumn], found: &mut Found) -> SlotSet {
        match keys {
            Keys::All => SlotSet::ALL,
            Keys::Nothing => SlotSet::EMPTY,
            Keys::And(list) => {
                let mut slots = SlotSet::ALL;
                for keys in list {
                    slots.intersect(&self.slots_of_keys(keys, columns, found));
                }
                slots
            }
            Keys::Or(list) => {
                let mut slots = SlotSet::EMPTY;
                for keys in list {
                    slots.unite(&self.slots_of_keys(keys, columns, found));
                }
                slots
            }
            Keys::OneOf(column, constants) => {
                let column = &columns[*column];
                if constants.len() > 1 && self.list_may_be_numeric(constants) {
                    let why = "a list that mixes integers, decimals and parameters without a type";
                    found.unknown.get_or_insert((column.name.to_string(), why));
                    return SlotSet::ALL;
                }
                let values =
                    constants.iter().map(|constant| known(constant, column.key_type, self.values));
                slots_of(values, column, found)
            }
            Keys::Within(column, bounds) => self.slots_within(&columns[*column], bounds),
            Keys::AnyOf(column, constant) => {
                let column = &columns[*column];
                match known_elements(constant, column.key_type, self.values) {
                    Ok(values) => slots_of(values.into_iter(), column, found),
                    Err(why) => {
                        found.unknown.get_or_insert((column.name.to_string(), why));
                        SlotSet::ALL
                    }
                }
            }
        }
    }

    /// The slots between bounds. A bound whose value is not known says nothing.
    fn slots_within(&self, column: &KeyColumn, bounds: &[(Side, Constant)]) -> SlotSet {
        let mut interval = Interval::default();
        for (side, constant) in bounds {
            match known(constant, column.key_type, self.values) {
                // A comparison with NULL is never true.
                Known::Null => interval = Interval::none(),
                Known::Key(key) => interval.narrow(*side, &key, column.key_type),
                Known::NoKey | Known::Unknown(_) => {}
            }
        }
        let by_bytes = self.topology.collation_is_c();
        column.function.slots_within(&interval, column.key_type, by_bytes)
    }

    /// PostgreSQL gives all elements of a list one type. Beside a decimal, a parameter without a type is `numeric`, and its bytes are no integer's.
    fn list_may_be_numeric(&self, constants: &[Constant]) -> bool {
        let untyped = |constant: &Constant| match constant.place {
            Place::Parameter { index, .. } => {
                constant.cast.is_none()
                    && self.values.parameters.get(index).is_some_and(|bound| bound.declared() == 0)
            }
            Place::Literal(_) | Place::Null | Place::Text(_) | Place::Number(_) => false,
        };
        let integer = |constant: &Constant| {
            constant.cast.is_some()
                || match &constant.place {
                    Place::Literal(index) => {
                        let literal = self.values.literals.get(*index);
                        literal.is_some_and(|literal| {
                            literal.kind == LiteralKind::Text
                                || literal.raw(self.values.sql).parse::<i64>().is_ok()
                        })
                    }
                    Place::Number(text) => text.parse::<i64>().is_ok(),
                    Place::Null | Place::Text(_) => true,
                    Place::Parameter { index, .. } => {
                        let bound = self.values.parameters.get(*index);
                        bound.is_some_and(|bound| {
                            matches!(bound.declared(), 0 | 20 | 21 | 23 | 25 | 1042 | 1043 | 2950)
                        })
                    }
                }
        };
        constants.iter().any(untyped) && !constants.iter().all(integer)
    }

    fn scattered(&self, found: &Found, sources: &[SourceIndex]) -> Result<Plan, Refused> {
        if found.single && found.sharded {
            let cause = "a table that lies on one source together with a sharded one";
            let remedy = "Make the first one a reference table, or read the two apart";
            return Err(Refused::new(RefusalClass::NotColocated, cause, remedy));
        }
        if !found.sharded {
            let cause = "tables that lie on different sources";
            let remedy = "Place them on one source, or make one of them a reference table";
            return Err(Refused::new(RefusalClass::NotColocated, cause, remedy));
        }
        let write = self.tables.access == Access::Write;
        let wanted = if write { Scatter::Write } else { Scatter::Read };
        if found.scatter < wanted {
            return Err(self.not_allowed(found, sources.len(), write));
        }
        let gather = self.tables.gather.get(self.topology)?;
        let merge = self.merge(gather)?;
        let rewritten = gather.rewritten.as_ref().map(|(rendered, limited)| {
            let behind = match (limited, merge.limit) {
                (true, Some(limit)) => format!(" LIMIT {}", limit.saturating_add(merge.offset)),
                _ => String::new(),
            };
            rendered.with(self.values, &behind)
        });
        let parts = sources
            .iter()
            .map(|source| Part { source: *source, rewritten: rewritten.clone() })
            .collect();
        let reason = if found.keyed { Reason::Keys } else { Reason::Scatter };
        let all = plan(self.topology, Target::Several(parts), self.tables.access, reason);
        Ok(Plan { group: found.group.clone(), merge, ..all })
    }

    fn merge(&self, gather: &Gather) -> Result<Merge, Refused> {
        gather.ensure_alike(self.values)?;
        let number = |constant: &Option<Constant>| match constant {
            None => Ok(None),
            Some(constant) => match known(constant, crate::KeyType::Integer, self.values) {
                Known::Null => Ok(None),
                Known::Key(text) => match text.parse::<u64>() {
                    Ok(number) => Ok(Some(number)),
                    Err(_) => Err(super::gather::refused("a LIMIT or OFFSET below 0")),
                },
                Known::NoKey | Known::Unknown(_) => {
                    Err(super::gather::refused("a LIMIT or OFFSET that is no integer"))
                }
            },
        };
        Ok(Merge {
            sort: gather.sort.clone(),
            distinct: gather.distinct,
            columns: gather.columns.clone(),
            defaults: gather.defaults.clone(),
            having: self.having(gather)?,
            always_a_row: gather.always_a_row,
            counted: gather.counted.clone(),
            offset: number(&gather.offset)?.unwrap_or(0),
            limit: number(&gather.limit)?,
            hidden: gather.hidden,
            dealt: Vec::new(),
            collation_is_c: self.topology.collation_is_c(),
        })
    }

    fn having(&self, gather: &Gather) -> Result<Option<Having<Number>>, Refused> {
        let value = |constant: &Constant| {
            exact_number(constant, self.values).map(|number| number.map(String::into_boxed_str))
        };
        let refuse = |why| super::gather::refused(&format!("HAVING compares with a value: {why}"));
        let having = gather.having.as_ref().map(|having| having.map(&value));
        having.transpose().map_err(refuse)
    }

    /// Three different answers to one question: no key, a key whose value is not known, or several sources where one is allowed.
    fn not_allowed(&self, found: &Found, sources: usize, write: bool) -> Refused {
        let group = found.group.as_ref().map_or("", GroupName::as_str);
        if let Some((column, why)) = &found.unknown {
            let cause =
                format!("the value of {column}, the key of group {group}, is not known: {why}");
            let remedy = "Give the key as a literal or a parameter of the key's own type";
            return Refused::new(RefusalClass::UnknownValue, cause, remedy);
        }
        if let Some(seat) = found.unkeyed {
            let seat = &self.tables.seats.0[seat];
            let keys: Vec<&str> = seat.columns.iter().map(|column| &*column.name).collect();
            let keys = if keys.is_empty() { "the key".to_owned() } else { keys.join(" or ") };
            let cause = format!("nothing says which {keys} of {} is meant", seat.table);
            let word = if write { "write" } else { "read" };
            let remedy =
                format!("Add a condition on it, or permit scatter = {word:?} for group {group}");
            return Refused::new(RefusalClass::NoKey, cause, remedy);
        }
        let cause =
            format!("the keys lie on {sources} sources, and group {group} does not permit that");
        let word = if write { "write" } else { "read" };
        let remedy =
            format!("Ask for one key at a time, or set scatter = {word:?} in [group.{group}]");
        Refused::new(RefusalClass::ScatterNotAllowed, cause, remedy)
    }
}

fn slots_of<'v>(
    values: impl Iterator<Item = Known<'v>>,
    column: &KeyColumn,
    found: &mut Found,
) -> SlotSet {
    let mut slots = SlotSet::EMPTY;
    let mut unknown = |why| {
        found.unknown.get_or_insert((column.name.to_string(), why));
        SlotSet::ALL
    };
    for value in values {
        match value {
            // NULL equals nothing.
            Known::NoKey | Known::Null => {}
            Known::Unknown(why) => return unknown(why),
            Known::Key(key) => match Key::parse(&key).ok().map(|key| column.function.slot(key)) {
                Some(Ok(slot)) => slots.insert(slot),
                Some(Err(_)) | None => return unknown("the slot function has no answer for it"),
            },
        }
    }
    slots
}
