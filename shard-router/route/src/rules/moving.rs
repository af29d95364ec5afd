//! Reads `[moving]`: the step of a move of slots that is under way.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Reader, Reference, are, declared};
use crate::{
    GroupName, MoveId, MoveState, Moving, ShardId, Slot, SlotRange, SourceId, plan::SlotSet,
    topology::Group,
};

/// How long statements may wait before the slots are thawed, in milliseconds.
const HOLD_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// The states, by name; whether it is the frozen one.
const STATES: [(&str, bool); 2] = [("frozen", true), ("settling", false)];
const SUBJECT: &str = "[moving]";

impl Reader {
    pub(super) fn moving(
        &mut self,
        document: &DeTable<'_>,
        groups: &BTreeMap<GroupName, Group>,
        shards: &BTreeMap<ShardId, Reference<SourceId>>,
    ) -> Option<Moving> {
        let value = document.get("moving")?;
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong("moving", "a table", value);
            return None;
        };
        let place = table.values().next().map_or(value.span(), Spanned::span);
        self.only(SUBJECT, table, &["id", "group", "slots", "from", "to", "state", "hold_ms"]);
        let id = self.reference(SUBJECT, table, "id", &place, MoveId::parse);
        let group = self.reference(SUBJECT, table, "group", &place, GroupName::parse);
        let from = self.reference(SUBJECT, table, "from", &place, SourceId::parse);
        let to = self.reference(SUBJECT, table, "to", &place, SourceId::parse);
        let state = self.move_state(table, &place);
        let slots = self.moving_slots(table, &place);
        if let Some((group, place)) = &group {
            let subject = "[moving] is of group";
            self.known(subject, group.as_str(), place, &declared(document, "group"));
        }
        let sources = declared(document, "source");
        for ((source, place), way) in from.iter().zip(["from"]).chain(to.iter().zip(["to"])) {
            let subject = format!("[moving] goes {way} source");
            self.known(&subject, source.as_str(), place, &sources);
        }
        let ((id, _), (group, _), (from, _), (to, to_place)) = (id?, group?, from?, to?);
        let (state, (slots, slots_place)) = (state?, slots?);
        if from == to {
            let cause = format!("[moving] goes from source {from} to itself");
            self.mistake("HF3016", &to_place, cause, "Name another source");
            return None;
        }
        let mut set = SlotSet::EMPTY;
        for range in &slots {
            let within = Slot::all().filter(|slot| *slot >= range.first && *slot <= range.last);
            within.for_each(|slot| set.insert(slot));
        }
        let at = if matches!(state, MoveState::Settling) { &to } else { &from };
        // Of a group or a source that is not there it was said above.
        let of_group = groups.get(&group).filter(|_| sources.contains(&at.as_str()))?;
        let elsewhere = set.slots().filter(|slot| {
            let shard = shards.get(of_group.shard_of(*slot));
            shard.is_some_and(|(source, _)| source != at)
        });
        let elsewhere: Vec<Slot> = elsewhere.collect();
        if !elsewhere.is_empty() {
            let state = if at == &to { "settling" } else { "frozen" };
            let cause = format!(
                "group {group}: {} in [moving] and {state}, but on no shard of source {at}",
                are(elsewhere)
            );
            let remedy = "Frozen slots are where they move from, settling ones where they move to";
            self.mistake("HF3016", &slots_place, cause, remedy);
        }
        Some(Moving { id, group, slots, from, to, state, set })
    }

    fn move_state(&mut self, table: &DeTable<'_>, place: &Range<usize>) -> Option<MoveState> {
        if !table.contains_key("state") {
            self.missing(SUBJECT, "state", place);
            return None;
        }
        let frozen = self.choice(SUBJECT, table, "state", &STATES).flatten()?;
        match (frozen, table.get("hold_ms")) {
            (false, None) => Some(MoveState::Settling),
            (false, Some(value)) => {
                let cause = "[moving] is settling and has hold_ms".to_owned();
                let remedy = "Leave hold_ms out: what is decided is never thawed";
                self.mistake("HF3016", &value.span(), cause, remedy);
                None
            }
            (true, None) => {
                self.missing("[moving], being frozen,", "hold_ms", place);
                None
            }
            (true, Some(value)) => {
                let DeValue::Integer(integer) = value.get_ref() else {
                    self.wrong("hold_ms in [moving]", "an integer", value);
                    return None;
                };
                let hold_ms = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
                let hold_ms = hold_ms.filter(|hold_ms| HOLD_MS.contains(hold_ms));
                if hold_ms.is_none() {
                    let (least, most) = (HOLD_MS.start(), HOLD_MS.end());
                    let cause = format!("hold_ms = {integer} in [moving] is out of bounds");
                    let remedy = format!("Choose {least} to {most}");
                    self.mistake("HF3005", &value.span(), cause, &remedy);
                }
                hold_ms.map(|hold_ms| MoveState::Frozen { hold_ms })
            }
        }
    }

    /// The slots, in ascending order, with their place.
    fn moving_slots(
        &mut self,
        table: &DeTable<'_>,
        place: &Range<usize>,
    ) -> Option<(Vec<SlotRange>, Range<usize>)> {
        let Some(value) = table.get("slots") else {
            self.missing(SUBJECT, "slots", place);
            return None;
        };
        let DeValue::Array(entries) = value.get_ref() else {
            self.wrong("slots in [moving]", "an array of tables", value);
            return None;
        };
        let before = self.mistakes.len();
        let mut found: Vec<SlotRange> = Vec::new();
        for entry in entries.iter() {
            let DeValue::Table(range) = entry.get_ref() else {
                self.wrong("an entry of slots in [moving]", "a table", entry);
                continue;
            };
            let subject = "an entry of slots in [moving]";
            self.only(subject, range, &["first", "last"]);
            let place = entry.span();
            let first = self.slot(subject, range, "first", &place);
            let last = self.slot(subject, range, "last", &place);
            let (Some((first, place)), Some((last, _))) = (first, last) else { continue };
            let follows = found.last().is_none_or(|before| before.last < first);
            if first > last || !follows {
                let cause = format!("slots {first} to {last} in [moving] are not in order");
                let remedy = "Write ranges in ascending order, each slot once";
                self.mistake("HF3016", &place, cause, remedy);
                continue;
            }
            found.push(SlotRange { first, last });
        }
        if entries.is_empty() {
            self.mistake("HF3016", &value.span(), "[moving] moves no slot".to_owned(), "Name one");
        }
        (self.mistakes.len() == before).then(|| (found, value.span()))
    }
}
