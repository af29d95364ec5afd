//! Whether rules may follow others: a step of a move is frozen, then settling or thawed, then over, and nothing else moves rows meanwhile.

use crate::{MoveId, Moving, Slot, SlotRange, Topology};

/// Why rules may not follow those in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfTurn {
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// For whoever writes what only a mover may write.
const LEAVE_IT: &str = "Leave [moving] out; holdfast rules move writes it";
/// For whoever meets a step that is frozen.
const THAW: &str =
    "Let the move go on, or put the rules before it into force again (holdfast rules revert)";

impl Topology {
    /// Whether these rules may follow those in force, the last of `kept`, as far as moves are concerned; none: there were none.
    /// # Errors
    /// [`OutOfTurn`].
    pub fn in_turn(&self, kept: &[&Self]) -> Result<(), OutOfTurn> {
        let refused = |cause: String, remedy| Err(OutOfTurn { cause, remedy });
        let Some(before) = kept.last() else {
            return match self.moving() {
                Some(is) => refused(format!("move {} follows no rules", is.id), LEAVE_IT),
                None => Ok(()),
            };
        };
        match (before.moving(), self.moving()) {
            (Some(was), None) if was.is_frozen() => self.keeps_frozen(was, before),
            (Some(was), Some(is)) if was.is_frozen() && !is.is_frozen() => {
                self.settles(was, is, before)
            }
            (Some(was), Some(is)) if was.is_frozen() => {
                refused(format!("move {} would freeze while {} is frozen", is.id, was.id), THAW)
            }
            (_, Some(is)) if !is.is_frozen() => {
                refused(format!("move {} would settle, and is not frozen", is.id), LEAVE_IT)
            }
            (was, is) => {
                was.map_or(Ok(()), |was| self.keeps_settled(was))?;
                is.map_or(Ok(()), |is| self.freezes(&is.id, before, kept))
            }
        }
    }

    /// Rules without the step that was frozen thaw it, and so place as before.
    fn keeps_frozen(&self, was: &Moving, before: &Self) -> Result<(), OutOfTurn> {
        if self.places_like(before) {
            return Ok(());
        }
        let cause = format!("move {} is frozen, and rows would lie elsewhere without it", was.id);
        Err(OutOfTurn { cause, remedy: THAW })
    }

    /// What was frozen settles as it was said, and nothing else moves.
    fn settles(&self, was: &Moving, is: &Moving, before: &Self) -> Result<(), OutOfTurn> {
        let same = |one: &Moving| {
            (one.id.clone(), one.group.clone(), one.from.clone(), one.to.clone(), one.slots.clone())
        };
        if same(was) != same(is) {
            let cause =
                format!("move {} would settle, and {} is frozen, or other slots", is.id, was.id);
            return Err(OutOfTurn { cause, remedy: LEAVE_IT });
        }
        if !self.keeps_plans_of(before) {
            let cause = format!("with move {}, rows of other slots would lie elsewhere too", is.id);
            let remedy = "Settle the slots of the move alone, and change the rest behind it";
            return Err(OutOfTurn { cause, remedy });
        }
        Ok(())
    }

    /// It is decided where the rows of a step that settles are.
    fn keeps_settled(&self, was: &Moving) -> Result<(), OutOfTurn> {
        let stay = |slot: &Slot| {
            let group = self.groups().get(&was.group);
            group.is_some_and(|group| *self.source_of(group, *slot) == was.to)
        };
        let moving = Slot::all().filter(|slot| was.covers(&was.group, *slot));
        let ranges = SlotRange::gather(moving.filter(|slot| !stay(slot)));
        let Some(first) = ranges.first() else { return Ok(()) };
        let more = if ranges.len() > 1 { " and others" } else { "" };
        let cause = format!(
            "move {} is settling: the rows of group {}, slots {first}{more}, are on source {}, and would be looked for elsewhere",
            was.id, was.group, was.to
        );
        let remedy = "Let the move end, then move them back (holdfast rules move)";
        Err(OutOfTurn { cause, remedy })
    }

    /// A step begins: it has a name of its own, and rows lie as before, so that it can be thawed.
    fn freezes(&self, id: &MoveId, before: &Self, kept: &[&Self]) -> Result<(), OutOfTurn> {
        if !self.places_like(before) {
            let cause = format!("move {id} would freeze, and rows would lie elsewhere at once");
            let remedy = "Freeze first, with every row where it is";
            return Err(OutOfTurn { cause, remedy });
        }
        if kept.iter().filter_map(|rules| rules.moving()).any(|known| known.id == *id) {
            let cause = format!("a move {id} was there before, and may have something prepared");
            let remedy = "Give each step an id of its own";
            return Err(OutOfTurn { cause, remedy });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = include_str!("../testscripts/rules/two-shards.toml");

    /// Slots up to `last` of account on pg-1, the others on pg-2.
    fn rules(last: u16, moving: &str) -> Topology {
        let text = RULES
            .replace("last = 511", &format!("last = {last}"))
            .replace("first = 512", &format!("first = {}", last + 1));
        Topology::parse(&format!("{text}\n{moving}")).expect("good rules")
    }

    fn step(id: &str, first: u16, last: u16, state: &str) -> String {
        format!(
            "[moving]\nid = \"{id}\"\ngroup = \"account\"\nslots = [{{ first = {first}, last = {last} }}]\n\
             from = \"pg-1\"\nto = \"pg-2\"\nstate = {state}\n"
        )
    }

    fn frozen(id: &str, last: u16) -> Topology {
        rules(last, &step(id, last - 9, last, "\"frozen\"\nhold_ms = 2000"))
    }

    fn settling(id: &str, last: u16) -> Topology {
        rules(last - 10, &step(id, last - 9, last, "\"settling\""))
    }

    fn why(kept: &[&Topology], after: &Topology) -> String {
        after.in_turn(kept).map_or_else(|why| why.cause, |()| "in turn".to_owned())
    }

    #[test]
    fn steps_follow_each_other_frozen_settling_frozen_settling_over() {
        let all = [
            rules(511, ""),
            frozen("m-1", 511),
            settling("m-1", 511),
            frozen("m-2", 501),
            settling("m-2", 501),
            rules(491, ""),
        ];
        for turn in 0..all.len() {
            let kept: Vec<&Topology> = all[..turn].iter().collect();
            assert_eq!(why(&kept, &all[turn]), "in turn", "{turn}");
        }
        assert_eq!(why(&[&all[0], &all[1]], &all[0]), "in turn", "a thaw");
    }

    #[test]
    fn a_step_that_does_not_follow_is_out_of_turn() {
        let (before, one) = (rules(511, ""), frozen("m-1", 511));
        assert_eq!(why(&[], &one), "move m-1 follows no rules");
        assert_eq!(
            why(&[&before], &settling("m-1", 511)),
            "move m-1 would settle, and is not frozen"
        );
        assert_eq!(
            why(&[&one], &settling("m-2", 511)),
            "move m-2 would settle, and m-1 is frozen, or other slots"
        );
        let fewer = rules(502, &step("m-1", 503, 511, "\"settling\""));
        assert_eq!(
            why(&[&one], &fewer),
            "move m-1 would settle, and m-1 is frozen, or other slots"
        );
        let more = rules(500, &step("m-1", 502, 511, "\"settling\""));
        assert_eq!(
            why(&[&one], &more),
            "with move m-1, rows of other slots would lie elsewhere too"
        );
        assert_eq!(why(&[&one], &frozen("m-2", 511)), "move m-2 would freeze while m-1 is frozen");
        assert_eq!(
            why(&[&before], &frozen("m-1", 501)),
            "move m-1 would freeze, and rows would lie elsewhere at once"
        );
        assert_eq!(
            why(&[&before, &one, &before], &one),
            "a move m-1 was there before, and may have something prepared"
        );
    }

    #[test]
    fn nothing_moves_rows_by_hand_while_a_step_is_under_way() {
        let (one, two) = (frozen("m-1", 511), settling("m-1", 511));
        assert_eq!(
            why(&[&one], &rules(501, "")),
            "move m-1 is frozen, and rows would lie elsewhere without it"
        );
        assert_eq!(
            why(&[&one, &two], &rules(505, "")),
            "move m-1 is settling: the rows of group account, slots 502 to 505, are on source pg-2, and would be looked for elsewhere"
        );
        assert_eq!(why(&[&one, &two], &rules(400, "")), "in turn", "others may");
        let settled = settling("m-1", 511);
        assert_eq!(why(&[&two], &settled), "move m-1 would settle, and is not frozen");
    }
}
