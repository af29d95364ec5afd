//! Rows of the slots that move are staged where they will lie, follow what changes, and are compared, while everybody writes.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_route::{GroupName, Home, Placement, SLOTS, Slot, SourceId, Topology};
use tokio_postgres::Row;

use super::{
    Fault, Progress,
    relation::{NOTES_MAX, Relation},
    side::Side,
    steps::Leg,
};
use crate::rules_sources::ENTRIES;

/// Rows that are fetched at once at first; then as many as have about so many bytes.
const FETCHED_FIRST: usize = 100;
const FETCHED_MAX: usize = 5_000;
const FETCHED_BYTES: usize = 4 << 20;
/// Rows of which only hashes are fetched at once.
const HASHES_MAX: i32 = 5_000;
/// Rounds of taking up changes before steps begin: as long as each finds less than the one before, and no more than these.
const ROUNDS_MAX: usize = 20;
/// Slots that are told of where rows differ.
const DIFFERENCES_SHOWN_MAX: usize = 5;

/// How many rows, and the sum of their hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) rows: u64,
    pub(super) hash: i128,
}

impl Sum {
    pub(super) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.hash += other.hash;
    }
}

/// A slot of a group, as staged rows have it: slots of the second group follow those of the first.
type Place = i32;
/// By table and place.
type Sums = BTreeMap<(String, Place), Sum>;

/// Both sources of a leg, and the tables between them.
pub(super) struct Pair {
    pub(super) from: Side,
    pub(super) to: Side,
    pub(super) relations: Vec<Relation>,
    rules: Topology,
    leaves: SourceId,
    /// By their numbers in places.
    groups: Vec<GroupName>,
    /// What has not moved yet.
    slots: BTreeMap<GroupName, BTreeSet<Slot>>,
}

impl Pair {
    pub(super) fn new(
        from: Side,
        to: Side,
        relations: Vec<Relation>,
        leg: &Leg,
        rules: Topology,
    ) -> Self {
        let groups = leg.slots.keys().cloned().collect();
        Self {
            from,
            to,
            relations,
            rules,
            leaves: leg.from.clone(),
            groups,
            slots: leg.slots.clone(),
        }
    }

    /// Where staged rows of these slots of a group are.
    pub(super) fn places(&self, group: &GroupName, slots: &[Slot]) -> Vec<Place> {
        let number = self.groups.iter().position(|known| known == group).unwrap_or_default();
        let first = i32::try_from(number).unwrap_or_default() * i32::from(SLOTS);
        slots.iter().map(|slot| first + i32::from(slot.number())).collect()
    }

    /// The group and the slot of a place, for people.
    fn told(&self, place: Place) -> String {
        let (number, slot) = (place / i32::from(SLOTS), place % i32::from(SLOTS));
        let group = usize::try_from(number).ok().and_then(|number| self.groups.get(number));
        format!("slot {slot} of group {}", group.map_or("", |group| group.as_str()))
    }

    /// These slots have moved.
    pub(super) fn gone(&mut self, group: &GroupName, slots: &[Slot]) {
        if let Some(left) = self.slots.get_mut(group) {
            left.retain(|slot| !slots.contains(slot));
        }
    }

    /// The slot of a row, if it is one of those that move. `leads`: the values that lead to it, as its relation has them.
    fn slot(&self, relation: &Relation, leads: &[Option<&str>]) -> Option<(&GroupName, Slot)> {
        let (group, home) = match (self.rules.tables().get(&*relation.table), leads) {
            (Some(placement @ Placement::Sharded(sharded)), _) => {
                (&sharded.group, self.rules.home(placement, leads.iter().copied()))
            }
            (None, [Some(lookup), Some(value)]) if relation.table == ENTRIES => {
                let group = self.rules.lookups().get(*lookup)?.group();
                (group, self.rules.home_of_entry(lookup, value))
            }
            (Some(_) | None, _) => return None,
        };
        let Home::On(source, Some(slot)) = home else { return None };
        let moves = self.slots.get(group).is_some_and(|slots| slots.contains(&slot));
        (moves && *source == self.leaves).then_some((group, slot))
    }

    /// Stages every row that is to move; gives how many each slot has.
    /// # Errors
    /// HF1030: a source refuses, or does not answer.
    pub(super) async fn stage(
        &mut self,
        progress: &mut Progress,
    ) -> Result<BTreeMap<(GroupName, Slot), u64>, Fault> {
        let mut counts = BTreeMap::new();
        for relation in self.relations.clone() {
            let (mut read, mut staged) = (0_u64, 0_u64);
            self.from.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let sql = format!("DECLARE rows NO SCROLL CURSOR FOR {}", relation.scan_sql());
            self.from.run(&sql).await?;
            let mut fetched = FETCHED_FIRST;
            loop {
                let some = self.from.rows(&format!("FETCH {fetched} FROM rows"), &[]).await?;
                let mut batch = Batch::default();
                for row in &some {
                    let leads = texts(row, relation.leads());
                    let Some((group, slot)) = self.slot(&relation, &leads) else { continue };
                    *counts.entry((group.clone(), slot)).or_default() += 1;
                    let place = self.places(group, &[slot])[0];
                    batch.put(place, row.get(leads.len()), row.get(leads.len() + 1));
                }
                read += some.len() as u64;
                staged += batch.keys.len() as u64;
                let bytes: usize = some.iter().map(|row| row_bytes(row, relation.leads())).sum();
                self.to_stage(&relation, &[], &batch).await?;
                let what = &relation.table;
                progress.tell(format_args!("{what}: {read} rows read, {staged} copied"));
                if some.len() < fetched {
                    break;
                }
                fetched = (FETCHED_BYTES * some.len() / bytes.max(1)).clamp(1, FETCHED_MAX);
            }
            self.from.run("COMMIT").await?;
        }
        Ok(counts)
    }

    /// Takes up all changes that were noted before it was called; gives how many.
    /// # Errors
    /// HF1030: a source refuses, or does not answer.
    pub(super) async fn follow(&self) -> Result<u64, Fault> {
        let mut taken = 0;
        for relation in &self.relations {
            loop {
                let some = self.follow_one(relation).await?;
                taken += some as u64;
                if some < NOTES_MAX {
                    break;
                }
            }
        }
        Ok(taken)
    }

    /// Takes up some changes of a table: what was staged by their keys is forgotten, and what is there now is staged.
    async fn follow_one(&self, relation: &Relation) -> Result<usize, Fault> {
        self.from.run("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        let some = self.take_notes(relation).await?;
        // Staged before the notes are gone for good: what is taken up twice is as good as once.
        self.from.run("COMMIT").await?;
        Ok(some)
    }

    async fn take_notes(&self, relation: &Relation) -> Result<usize, Fault> {
        let some = self.from.rows(&relation.take_sql(), &[]).await?;
        let (mut noted, mut batch) = (Vec::new(), Batch::default());
        for row in &some {
            let leads = texts(row, relation.leads());
            let at = leads.len();
            noted.push(row.get::<_, &str>(at));
            if let Some(body) = row.get::<_, Option<&str>>(at + 2)
                && let Some((group, slot)) = self.slot(relation, &leads)
            {
                batch.put(self.places(group, &[slot])[0], row.get(at + 1), body);
            }
        }
        batch.each_once();
        self.to_stage(relation, &noted, &batch).await?;
        Ok(some.len())
    }

    async fn to_stage(
        &self,
        relation: &Relation,
        gone: &[&str],
        batch: &Batch<'_>,
    ) -> Result<(), Fault> {
        if !gone.is_empty() {
            self.to.rows(&relation.forget_sql(), &[&gone]).await?;
        }
        if !batch.keys.is_empty() {
            let Batch { places, keys, bodies } = batch;
            self.to.rows(&relation.put_sql(), &[places, keys, bodies]).await?;
        }
        Ok(())
    }

    /// Takes up changes until little is left of them.
    /// # Errors
    /// HF1030: a source refuses, or does not answer.
    pub(super) async fn catch_up(&self, progress: &mut Progress) -> Result<(), Fault> {
        let mut before = u64::MAX;
        for _ in 0..ROUNDS_MAX {
            let taken = self.follow().await?;
            progress.tell(format_args!("{taken} changes followed"));
            if taken < NOTES_MAX as u64 || taken >= before {
                break;
            }
            before = taken;
        }
        Ok(())
    }

    /// Compares every row that is to move with what is staged of it, as of one moment at the source.
    /// # Errors
    /// HF1031: they differ. HF1030: a source refuses, or does not answer.
    pub(super) async fn compare(&mut self, progress: &mut Progress) -> Result<Sum, Fault> {
        // Notes and rows are of one snapshot, so staged rows are as they are in it when its notes are taken up.
        self.from.run("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        for relation in &self.relations {
            while self.take_notes(relation).await? == NOTES_MAX {}
        }
        let mut here = Sums::new();
        for relation in self.relations.clone() {
            self.hashes(&relation, &mut here, progress).await?;
        }
        let mut there = Sums::new();
        for relation in &self.relations {
            for row in self.to.rows(&relation.staged_sql(), &[]).await? {
                there.insert((relation.table.clone(), row.get(0)), sum(&row, 1)?);
            }
        }
        self.from.run("COMMIT").await?;
        if here != there {
            return Err(self.differ(&here, &there));
        }
        let mut all = Sum::default();
        here.values().for_each(|sum| all.add(*sum));
        Ok(all)
    }

    /// What is told of rows that are not as they were staged.
    fn differ(&self, here: &Sums, there: &Sums) -> Fault {
        let all: BTreeSet<_> = here.keys().chain(there.keys()).collect();
        let wrong = all.iter().filter(|place| here.get(**place) != there.get(**place));
        let count = |sums: &Sums, place| sums.get(place).map_or(0, |sum| sum.rows);
        let mut shown: Vec<String> = wrong
            .map(|place| {
                let at = self.told(place.1);
                format!(
                    "{} in {at}: {} rows, {} copied",
                    place.0,
                    count(here, *place),
                    count(there, *place)
                )
            })
            .collect();
        let wrong = shown.len();
        shown.truncate(DIFFERENCES_SHOWN_MAX);
        Fault::Differ(format!("{wrong} of {} differ: {}", all.len(), shown.join("; ")))
    }

    async fn hashes(
        &mut self,
        relation: &Relation,
        sums: &mut Sums,
        progress: &mut Progress,
    ) -> Result<(), Fault> {
        let sql = format!("DECLARE hashes NO SCROLL CURSOR FOR {}", relation.hash_sql());
        self.from.run(&sql).await?;
        let mut compared = 0;
        loop {
            let some = self.from.rows(&format!("FETCH {HASHES_MAX} FROM hashes"), &[]).await?;
            for row in &some {
                let leads = texts(row, relation.leads());
                let Some((group, slot)) = self.slot(relation, &leads) else { continue };
                let one = Sum { rows: 1, hash: row.get::<_, i64>(leads.len()).into() };
                let place = self.places(group, &[slot])[0];
                sums.entry((relation.table.clone(), place)).or_default().add(one);
            }
            compared += some.len();
            progress.tell(format_args!("{}: {compared} rows compared", relation.table));
            if some.len() < HASHES_MAX as usize {
                break;
            }
        }
        self.from.run("CLOSE hashes").await
    }
}

/// Rows on their way to the stage.
#[derive(Default)]
struct Batch<'r> {
    places: Vec<Place>,
    keys: Vec<&'r str>,
    bodies: Vec<&'r str>,
}

impl<'r> Batch<'r> {
    fn put(&mut self, place: Place, key: &'r str, body: &'r str) {
        self.places.push(place);
        self.keys.push(key);
        self.bodies.push(body);
    }

    /// A row that was noted more than once is there more than once, always the same.
    fn each_once(&mut self) {
        let rows = self.keys.iter().zip(self.places.iter().zip(&self.bodies));
        let rows: BTreeMap<&str, (Place, &str)> =
            rows.map(|(key, (place, body))| (*key, (*place, *body))).collect();
        *self = Self::default();
        for (key, (place, body)) in rows {
            self.put(place, key, body);
        }
    }
}

/// The first columns of a row.
fn texts(row: &Row, count: usize) -> Vec<Option<&str>> {
    (0..count).map(|column| row.get(column)).collect()
}

/// About how much memory a scanned row takes.
fn row_bytes(row: &Row, leads: usize) -> usize {
    row.get::<_, &str>(leads).len() + row.get::<_, &str>(leads + 1).len()
}

/// A count, and the sum of hashes as text behind it.
pub(super) fn sum(row: &Row, at: usize) -> Result<Sum, Fault> {
    let (rows, hash): (i64, &str) = (row.get(at), row.get(at + 1));
    let hash = hash.parse();
    let read = u64::try_from(rows).ok().zip(hash.ok());
    let (rows, hash) =
        read.ok_or_else(|| Fault::Differ("a sum of hashes is no number".to_owned()))?;
    Ok(Sum { rows, hash })
}
