//! Slots on their way from one source to another: what the rules say of them, whose plans may go on, and how a prepared half of a move ends.

use std::sync::Arc;

use crate::{GroupName, MoveId, Slot, SlotRange, SourceId, Topology, plan::SlotSet};

/// Behind the id of a step, in the names of what it prepares: where rows leave, and where they arrive.
const HALVES: [&str; 2] = [":from", ":to"];

/// One step of a move: some slots of one group, from one source to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    /// Names the step.
    pub id: MoveId,
    /// The group whose slots move.
    pub group: GroupName,
    /// Which slots, in ascending order.
    pub slots: Vec<SlotRange>,
    /// Where their rows were.
    pub from: SourceId,
    /// Where they go.
    pub to: SourceId,
    /// How far it is.
    pub state: MoveState,
    pub(crate) set: SlotSet,
}

/// How far a step of a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveState {
    /// The rows are where they were, and statements that would touch them wait.
    Frozen {
        /// How long they may, in milliseconds, before the coordinators' leader thaws them.
        hold_ms: u64,
    },
    /// It is decided that the rows are where they go; both sources are told.
    Settling,
}

/// What becomes of a transaction that a move has prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveFate {
    /// The rules that decided for the move are in the log.
    Commit,
    /// The log went on without the move.
    RollBack,
    /// It is not decided.
    Leave,
    /// The rules that say so are not kept any more.
    Unknown,
}

impl MoveId {
    /// Before the id of a step, in the names of what it prepares.
    pub const PREPARED: &str = "holdfast-move:";

    /// The names of the transactions that the step prepares: where rows leave, and where they arrive. Databases of one server share their names.
    #[must_use]
    pub fn prepared_as(&self) -> [String; 2] {
        HALVES.map(|half| format!("{}{self}{half}", Self::PREPARED))
    }

    /// Whose step a prepared transaction of this name is, if it is of one.
    #[must_use]
    pub fn of_prepared(name: &str) -> Option<Self> {
        let name = name.strip_prefix(Self::PREPARED)?;
        Self::parse(HALVES.iter().find_map(|half| name.strip_suffix(half))?).ok()
    }

    /// What becomes of what this step has prepared. `versions` of the rules, in the order of their epochs, the last of them in force: at least
    /// those in which the step is named, and the one behind each.
    #[must_use]
    pub fn fate<'t>(&self, versions: impl IntoIterator<Item = &'t Topology>) -> MoveFate {
        let mut frozen: Option<u64> = None;
        let mut fate = MoveFate::Unknown;
        for version in versions {
            match version.moving().filter(|moving| moving.id == *self) {
                Some(moving) if moving.is_frozen() => {
                    frozen = Some(version.epoch);
                    fate = MoveFate::Leave;
                }
                Some(_) => return MoveFate::Commit,
                // Settling follows at once, or never.
                None if fate == MoveFate::Leave => {
                    let next = frozen.is_some_and(|frozen| frozen + 1 == version.epoch);
                    fate = if next { MoveFate::RollBack } else { MoveFate::Unknown };
                }
                None => {}
            }
        }
        fate
    }
}

impl Moving {
    /// Whether the rows are still where they were.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        matches!(self.state, MoveState::Frozen { .. })
    }

    /// The same step, decided.
    #[must_use]
    pub fn decided(&self) -> Self {
        Self { state: MoveState::Settling, ..self.clone() }
    }

    /// Whether all these slots are where they go, by other rules.
    #[must_use]
    pub fn is_done_in(&self, rules: &Topology) -> bool {
        rules.groups().get(&self.group).is_some_and(|group| {
            self.set.slots().all(|slot| *rules.source_of(group, slot) == self.to)
        })
    }

    /// Whether `slot` of `group` moves.
    #[must_use]
    pub fn covers(&self, group: &GroupName, slot: Slot) -> bool {
        self.group == *group && self.set.contains(slot)
    }
}

impl Topology {
    /// The step of a move that is under way.
    #[must_use]
    pub fn moving(&self) -> Option<&Moving> {
        self.moving.as_ref()
    }

    /// Whether work that was planned by `older` rules may go on and commit by these: each row lies where it lay, or its slot was frozen in `older`,
    /// so that nothing planned by it touched that row.
    #[must_use]
    pub fn keeps_plans_of(&self, older: &Self) -> bool {
        let frozen = older.moving().filter(|moving| moving.is_frozen());
        self.places_like_but(older, |group, slot| {
            frozen.is_some_and(|moving| moving.covers(group, slot))
        })
    }

    /// The moves whose slots nothing may be planned for; by the rules alone that is the one that is under way.
    #[must_use]
    pub fn awaited(&self) -> &[Arc<Moving>] {
        &self.awaited
    }

    /// The same rules, where nothing may be planned for the slots of these moves. Whoever has seen a decided move settled at its sources takes it
    /// off; whoever has not yet keeps it under rules that say no more of it.
    #[must_use]
    pub fn awaiting(mut self, moves: Vec<Arc<Moving>>) -> Self {
        self.awaited = moves;
        self
    }

    /// Whether the entry of `value` in a lookup is in an awaited slot.
    #[must_use]
    pub fn awaits_entry(&self, lookup: &str, value: &str) -> bool {
        !self.awaited.is_empty()
            && self
                .lookups()
                .get(lookup)
                .zip(self.entry_place(lookup, value))
                .is_some_and(|(lookup, entry)| self.awaits_slot(lookup.group(), entry.slot))
    }

    /// Whether any of these slots of a group is awaited.
    pub(crate) fn awaits(&self, group: &GroupName, slots: &SlotSet) -> bool {
        self.awaited.iter().any(|moving| moving.group == *group && moving.set.meets(slots))
    }

    /// Whether this slot of a group is awaited.
    pub(crate) fn awaits_slot(&self, group: &GroupName, slot: Slot) -> bool {
        self.awaited.iter().any(|moving| moving.covers(group, slot))
    }

    /// Whether any slot of a group is awaited.
    pub(crate) fn awaits_any(&self, group: &GroupName) -> bool {
        self.awaited.iter().any(|moving| moving.group == *group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = include_str!("../testscripts/rules/two-shards.toml");

    /// Slots up to `last` of account on pg-1, the others on pg-2.
    fn rules(epoch: u64, last: u16, moving: &str) -> Topology {
        let text = RULES
            .replace("last = 511", &format!("last = {last}"))
            .replace("first = 512", &format!("first = {}", last + 1));
        Topology::parse(&format!("{text}\n{moving}")).expect("good rules").at_epoch(epoch)
    }

    /// Slots 500 to 511 go from pg-1 to pg-2.
    fn moving(id: &str, state: &str) -> String {
        format!(
            "[moving]\nid = \"{id}\"\ngroup = \"account\"\nslots = [{{ first = 500, last = 511 }}]\n\
             from = \"pg-1\"\nto = \"pg-2\"\nstate = {state}\n"
        )
    }

    fn frozen(epoch: u64, id: &str) -> Topology {
        rules(epoch, 511, &moving(id, "\"frozen\"\nhold_ms = 2000"))
    }

    fn settling(epoch: u64, id: &str) -> Topology {
        rules(epoch, 499, &moving(id, "\"settling\""))
    }

    #[test]
    fn plans_go_on_where_only_slots_have_moved_that_were_frozen_when_they_were_made() {
        let (before, frozen, settling) = (rules(1, 511, ""), frozen(2, "m"), settling(3, "m"));
        assert!(frozen.keeps_plans_of(&before) && before.keeps_plans_of(&frozen));
        assert!(settling.keeps_plans_of(&frozen));
        assert!(!settling.keeps_plans_of(&before), "it may have touched them");
        assert!(rules(4, 499, "").keeps_plans_of(&settling));
        assert!(rules(4, 499, "").keeps_plans_of(&frozen));
        assert!(!rules(4, 498, "").keeps_plans_of(&frozen), "slot 499 was not frozen");
        assert!(!rules(4, 511, "").keeps_plans_of(&settling), "settling is not frozen");
        assert!(!settling.places_like(&frozen) && frozen.places_like(&before));
        assert_eq!(before.strays(&frozen), Vec::<String>::new());
        let step = frozen.moving().expect("it moves");
        assert!(step.is_done_in(&settling) && !step.is_done_in(&before));
    }

    #[test]
    fn what_a_move_has_prepared_ends_as_the_log_has_decided() {
        let id = MoveId::parse("m-2").expect("a name");
        let before = rules(1, 511, "");
        let fate = |versions: &[&Topology]| id.fate(versions.iter().copied());
        assert_eq!(fate(&[&before]), MoveFate::Unknown);
        assert_eq!(fate(&[&before, &frozen(2, "m-2")]), MoveFate::Leave);
        let decided = settling(3, "m-2");
        assert_eq!(fate(&[&before, &frozen(2, "m-2"), &decided]), MoveFate::Commit);
        let moved = rules(4, 499, "");
        assert_eq!(fate(&[&frozen(2, "m-2"), &decided, &moved]), MoveFate::Commit);
        assert_eq!(fate(&[&decided, &moved]), MoveFate::Commit);
        let thawed = rules(3, 511, "");
        assert_eq!(fate(&[&before, &frozen(2, "m-2"), &thawed]), MoveFate::RollBack);
        assert_eq!(fate(&[&frozen(2, "m-2"), &thawed, &moved]), MoveFate::RollBack);
        assert_eq!(fate(&[&frozen(2, "m-2"), &frozen(3, "m-3")]), MoveFate::RollBack);
        assert_eq!(fate(&[&frozen(2, "m-2"), &moved]), MoveFate::Unknown, "epoch 3 is not kept");
        assert_eq!(fate(&[&frozen(2, "m-3"), &settling(3, "m-3")]), MoveFate::Unknown);
    }

    #[test]
    fn a_prepared_transaction_tells_whose_step_it_is_of() {
        let id = MoveId::parse("m-7f3a9c-3").expect("a name");
        let names = id.prepared_as();
        assert_eq!(names, ["holdfast-move:m-7f3a9c-3:from", "holdfast-move:m-7f3a9c-3:to"]);
        for name in names {
            assert_eq!(MoveId::of_prepared(&name), Some(id.clone()));
        }
        for other in ["holdfast:m-7f3a9c-3:to", "holdfast-move:m-7f3a9c-3", "holdfast-move:M:to"] {
            assert_eq!(MoveId::of_prepared(other), None, "{other}");
        }
    }
}
