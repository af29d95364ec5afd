//! Which slots go where, in which steps, and the rules that say so on the way: decided from the rules in force and those to come, before
//! anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_route::{GroupName, MoveId, Slot, SlotRange, SourceId, Topology};
use toml::{Table, Value};

/// Why these rules are not come to by moving slots.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum NoWay {
    /// HF1029: more differs than the places of slots.
    #[error("HF1029 nothing was done: rules are moved to by moving slots alone, and {0}")]
    NotSlots(String),
    /// HF1029: there is nothing to move.
    #[error(
        "HF1029 nothing was done: no slot has another place by these rules. What else they change is applied by itself: holdfast rules apply"
    )]
    Nothing,
}

/// The slots of each group that go from one source to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) from: SourceId,
    pub(super) to: SourceId,
    pub(super) slots: BTreeMap<GroupName, BTreeSet<Slot>>,
}

/// Slots of one group that go at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) group: GroupName,
    pub(super) slots: Vec<Slot>,
    /// As they were counted when they were copied.
    pub(super) rows: u64,
}

/// The way from the rules in force to others; no legs: they are there.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// The rules to come, as a document; the slots of its groups lie where they lie so far.
    document: Table,
    /// The shard of each slot so far.
    shards: BTreeMap<GroupName, Vec<String>>,
    new: Topology,
    pub(super) legs: Vec<Leg>,
}

/// What rules say of a step that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    /// For at most so many milliseconds.
    Frozen(u32),
    Settling,
}

impl Way {
    /// # Errors
    /// HF1029: `text` differs from what is in force by more than the places of slots.
    pub(super) fn find(now: &Topology, new: &Topology, text: &str) -> Result<Self, NoWay> {
        let mut document: Table = text
            .parse()
            .map_err(|error: toml::de::Error| NoWay::NotSlots(error.message().to_owned()))?;
        document.remove("moving");
        let mut shards = BTreeMap::new();
        for (name, group) in new.groups() {
            // A group that is new has no rows yet, and lies where it will lie.
            let so_far = now.groups().get(name).unwrap_or(group);
            let so_far = Slot::all().map(|slot| so_far.shard_of(slot).to_string()).collect();
            shards.insert(name.clone(), so_far);
        }
        let legs = legs(now, new);
        let way = Self { document, shards, new: new.clone(), legs };
        let begin = way.text(None).map_err(NoWay::NotSlots)?;
        let begin = Topology::parse(&begin).map_err(|mistakes| {
            let first = mistakes.first().map_or_else(String::new, |first| format!(" ({first})"));
            NoWay::NotSlots(format!(
                "the shards of today are not all there any more{first}. Leave them in the rules until their slots have moved"
            ))
        })?;
        let strays = now.strays(&begin);
        if let Some(stray) = strays.first() {
            return Err(NoWay::NotSlots(format!(
                "{stray}. Give slots that move another shard, and leave the rest as it is; what else changes is applied by itself"
            )));
        }
        Ok(way)
    }

    /// The slots of a step lie where they will lie, from here on.
    pub(super) fn take(&mut self, step: &Step) {
        let (Some(shards), Some(group)) =
            (self.shards.get_mut(&step.group), self.new.groups().get(&step.group))
        else {
            return;
        };
        for slot in &step.slots {
            shards[usize::from(slot.number())] = group.shard_of(*slot).to_string();
        }
    }

    /// The rules as they are on the way; with what is under way.
    /// # Errors
    /// They cannot be written, in words.
    pub(super) fn text(
        &self,
        moving: Option<(&MoveId, &Leg, &Step, State)>,
    ) -> Result<String, String> {
        let mut document = self.document.clone();
        for (name, shards) in &self.shards {
            let group = document.get_mut("group").and_then(|groups| groups.get_mut(name.as_str()));
            let Some(Value::Table(group)) = group else { continue };
            group.insert("slots".to_owned(), slots_value(shards));
        }
        if let Some((id, leg, step, state)) = moving {
            let mut moving = Table::new();
            let mut put = |key: &str, value: Value| drop(moving.insert(key.to_owned(), value));
            put("id", id.as_str().into());
            put("group", step.group.as_str().into());
            let ranges = SlotRange::gather(step.slots.iter().copied());
            put(
                "slots",
                Value::Array(ranges.iter().map(|range| range_table(range).into()).collect()),
            );
            put("from", leg.from.as_str().into());
            put("to", leg.to.as_str().into());
            match state {
                State::Frozen(hold_ms) => {
                    put("state", "frozen".into());
                    put("hold_ms", i64::from(hold_ms).into());
                }
                State::Settling => put("state", "settling".into()),
            }
            document.insert("moving".to_owned(), moving.into());
        }
        toml::to_string(&document).map_err(|error| error.to_string())
    }
}

/// Which slots of each group go from which source to which.
fn legs(now: &Topology, new: &Topology) -> Vec<Leg> {
    let mut legs: BTreeMap<(&SourceId, &SourceId), BTreeMap<GroupName, BTreeSet<Slot>>> =
        BTreeMap::new();
    for (name, group) in now.groups() {
        let Some(other) = new.groups().get(name) else { continue };
        for slot in Slot::all() {
            let from = now.shards()[group.shard_of(slot)].source();
            let to = new.shards()[other.shard_of(slot)].source();
            if from != to {
                legs.entry((from, to)).or_default().entry(name.clone()).or_default().insert(slot);
            }
        }
    }
    let leg = |((from, to), slots): ((&SourceId, &SourceId), _)| Leg {
        from: from.clone(),
        to: to.clone(),
        slots,
    };
    legs.into_iter().map(leg).collect()
}

fn range_table(range: &SlotRange) -> Table {
    let number = |slot: Slot| Value::Integer(slot.number().into());
    Table::from_iter([
        ("first".to_owned(), number(range.first)),
        ("last".to_owned(), number(range.last)),
    ])
}

/// The slots of a group as rules have them, neighbors on one shard as one range.
fn slots_value(shards: &[String]) -> Value {
    let mut entries: Vec<Value> = Vec::new();
    let mut slots = Slot::all().zip(shards).peekable();
    while let Some((first, shard)) = slots.next() {
        let mut last = first;
        while let Some((slot, _)) = slots.next_if(|(_, next)| *next == shard) {
            last = slot;
        }
        let mut entry = range_table(&SlotRange { first, last });
        entry.insert("shard".to_owned(), shard.as_str().into());
        entries.push(entry.into());
    }
    Value::Array(entries)
}

/// Cuts the slots of a leg into steps of at most `rows_max` rows; a slot with more is a step of its own.
pub(super) fn steps(
    leg: &Leg,
    rows: &BTreeMap<(GroupName, Slot), u64>,
    rows_max: u64,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (group, slots) in &leg.slots {
        let mut step: Option<Step> = None;
        for slot in slots {
            let more = rows.get(&(group.clone(), *slot)).copied().unwrap_or_default();
            match &mut step {
                Some(step) if step.rows + more <= rows_max => {
                    step.slots.push(*slot);
                    step.rows += more;
                }
                step => {
                    let next = Step { group: group.clone(), slots: vec![*slot], rows: more };
                    steps.extend(step.replace(next));
                }
            }
        }
        steps.extend(step);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(slots: &str, more: &str) -> String {
        format!(
            "# as it was applied\n[group.g]\nkey = \"id\"\nfunction = \"crc32c\"\nscatter = \"read\"\nslots = [{slots}]\n[table.t]\ngroup = \"g\"\n{more}\n\
             [shard.a]\nsource = \"pg-1\"\n[shard.b]\nsource = \"pg-2\"\n\
             [source.pg-1]\naddress = \"127.0.0.1:1\"\n[source.pg-2]\naddress = \"127.0.0.1:2\"\n"
        )
    }

    fn halves(last: u16) -> String {
        let next = last + 1;
        format!(
            "{{ first = 0, last = {last}, shard = \"a\" }}, {{ first = {next}, last = 1023, shard = \"b\" }}"
        )
    }

    fn find(now: &str, new: &str) -> Result<Way, NoWay> {
        let read = |text: &str| Topology::parse(text).expect("good rules");
        Way::find(&read(now), &read(new), new)
    }

    #[test]
    fn the_rules_on_the_way_place_what_has_moved_and_nothing_else() {
        let mut way = find(&rules(&halves(511), ""), &rules(&halves(507), "")).expect("a way");
        let leg = way.legs[0].clone();
        let group = GroupName::parse("g").expect("a name");
        assert_eq!((leg.from.as_str(), leg.to.as_str()), ("pg-1", "pg-2"));
        let rows = BTreeMap::from([((group.clone(), Slot::new(508).expect("a slot")), 9)]);
        let steps = steps(&leg, &rows, 10);
        let counts: Vec<_> = steps.iter().map(|step| (step.slots.len(), step.rows)).collect();
        assert_eq!(counts, [(4, 9)]);
        let step =
            Step { slots: leg.slots[&group].iter().copied().take(2).collect(), ..steps[0].clone() };
        let before = Topology::parse(&way.text(None).expect("text")).expect("good rules");
        let at = |rules: &Topology, slot: u16| {
            rules.groups()["g"].shard_of(Slot::new(slot).expect("a slot")).to_string()
        };
        assert_eq!(at(&before, 508), "a");
        way.take(&step);
        let behind = Topology::parse(&way.text(None).expect("text")).expect("good rules");
        let places: Vec<String> = (507..=512).map(|slot| at(&behind, slot)).collect();
        assert_eq!(places, ["a", "b", "b", "a", "a", "b"]);
        assert_eq!(behind.strays(&before).len(), 1);
    }

    #[test]
    fn a_step_has_as_many_rows_as_the_limit_and_one_more_begins_another() {
        let way = find(&rules(&halves(511), ""), &rules(&halves(507), "")).expect("a way");
        let group = GroupName::parse("g").expect("a name");
        let rows = (508..512).map(|slot| ((group.clone(), Slot::new(slot).expect("a slot")), 5));
        let rows: BTreeMap<_, _> = rows.collect();
        let counts = |max| {
            let steps = steps(&way.legs[0], &rows, max);
            steps.iter().map(|step| step.slots.len()).collect::<Vec<_>>()
        };
        assert_eq!(counts(20), [4]);
        assert_eq!(counts(19), [3, 1]);
        assert_eq!(counts(1), [1, 1, 1, 1]);
    }

    #[test]
    fn what_is_more_than_slots_is_told() {
        let now = rules(&halves(511), "");
        let told = |new: &str| find(&now, new).map(drop).expect_err("no way").to_string();
        assert!(find(&now, &now).expect("a way").legs.is_empty(), "nothing moves");
        let other =
            rules(&halves(507), "").replace("key = \"id\"\n", "key = \"id\"\ntype = \"char\"\n");
        assert!(told(&other).contains("group g was by"), "{}", told(&other));
        let gone = now.replace("shard.a", "shard.c").replace("\"a\"", "\"c\"");
        assert!(told(&gone).contains("the shards of today are not all there"), "{}", told(&gone));
        let moved = rules(&halves(507), "").replace("source = \"pg-1\"", "source = \"pg-2\"");
        assert!(told(&moved).contains("Give slots that move another shard"), "{}", told(&moved));
    }
}
