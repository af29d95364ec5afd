//! What a text means, remembered by its shape: what the router does with it, and where it goes.
//!
//! A simple query becomes a template, which is looked up; only an unknown one is parsed. Where it goes is asked of the mind at each
//! execution, under the rules of that moment, so a slot that has moved makes nothing stale.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use holdfast_route::{
    Access, Format, Literal, Moving, Parameter, Part, Plan, Refused, Shape, Target, Template,
    Topology, Values, statements,
};

use crate::{
    classify::{self, Act},
    frame::Body,
    refusal::Refusal,
    rules::{InForce, Placed},
    session::Statement,
    shared::Shared,
};

/// Bytes that a remembered meaning costs beside its template and shape.
const MEANING_COST: usize = 256;

/// Templates of which it is remembered whether they only read, and the bytes of one.
const READS_MAX: usize = 1024;
const READS_BYTES_MAX: usize = 4096;

/// Where one execution goes. Sources are numbered as in the configuration.
#[derive(Debug)]
pub(crate) enum Aim {
    /// Wherever the session is already, or any source.
    Any(Access),
    One(usize, Access),
    /// Several sources: the plan says which and how their answers become one.
    Several(Box<Plan>),
    /// Nowhere yet: it would touch slots that are on their way to another source.
    Awaits,
}

/// What becomes of a statement that would touch slots which are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slots {
    /// It waits.
    Awaited,
    /// It goes where their rows were: it is part of work that was planned before, and for which whoever moves them waits.
    Known,
}

/// What a statement is.
#[derive(Debug)]
pub(crate) struct Meaning {
    act: Act,
    /// What the mind knows of it; `None` where there are no rules, or nothing to ask.
    shape: Option<Result<Shape, Refused>>,
}

impl Meaning {
    fn new(act: Act) -> Self {
        Self { act, shape: None }
    }

    pub(crate) fn act(&self) -> &Act {
        &self.act
    }

    /// Whether it is taken in a transaction that has failed.
    pub(crate) fn ends_transaction(&self) -> bool {
        matches!(
            self.act,
            Act::Commit | Act::Rollback | Act::CommitAndChain | Act::RollbackAndChain
        )
    }

    /// Whether it may touch rows: everything but the ends of transactions, settings, and questions to the router.
    pub(crate) fn asks_for_rows(&self) -> bool {
        matches!(self.act, Act::Statement | Act::Several { .. } | Act::Pin(_))
    }

    fn bytes(&self) -> usize {
        let shape = self.shape.as_ref().and_then(|shape| shape.as_ref().ok());
        MEANING_COST + shape.map_or(0, Shape::bytes)
    }
}

/// What is remembered of texts: two generations, so that what is used stays and what is not goes, in bounded memory.
pub(crate) struct Meanings {
    plain: Rc<Meaning>,
    rules: Option<Placed>,
    /// How many of the moves that they have awaited are waited for by all.
    unsettled: usize,
    /// Why nothing may be planned now.
    held: Option<Refusal>,
    /// Of the query at hand; filled again and again.
    template: Template,
    young: HashMap<Box<str>, Rc<Meaning>>,
    old: HashMap<Box<str>, Rc<Meaning>>,
    young_bytes: usize,
    /// Without rules: which templates only read.
    reads: HashMap<Box<str>, bool>,
    bytes_max: usize,
    hits: metrics::Counter,
    misses: metrics::Counter,
}

impl Meanings {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self {
            rules: shared.rules.as_ref().map(|rules| rules.in_force().placed),
            bytes_max: shared.limits().plan_bytes_max,
            hits: shared.counts.plan_hits.clone(),
            misses: shared.counts.plan_misses.clone(),
            ..Self::for_one_source()
        }
    }

    /// Without rules: everything goes to the only source.
    pub(crate) fn for_one_source() -> Self {
        Self {
            plain: Rc::new(Meaning::new(Act::Statement)),
            rules: None,
            unsettled: 0,
            held: None,
            template: Template::default(),
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            reads: HashMap::new(),
            bytes_max: 1 << 20,
            hits: metrics::Counter::noop(),
            misses: metrics::Counter::noop(),
        }
    }

    /// From now on, as many bytes; what is there goes with its generation.
    pub(crate) fn bound(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// The rules by which plans are made.
    pub(crate) fn rules(&self) -> Option<&Arc<Topology>> {
        self.rules.as_ref().map(|placed| &placed.rules)
    }

    /// Why nothing may be planned now.
    pub(crate) fn held(&self) -> Option<&Refusal> {
        self.held.as_ref()
    }

    /// The rules by which a plan may be made now; `None` without rules.
    fn planning(&self) -> Result<Option<&Placed>, Refusal> {
        match &self.held {
            Some(held) => Err(held.clone()),
            None => Ok(self.rules.as_ref()),
        }
    }

    /// Where there are rules, but nothing to ask of them: the end of a transaction, a setting.
    fn needs_no_plan(&self, meaning: &Meaning) -> bool {
        meaning.shape.is_none() && self.rules.is_some()
    }

    /// From here on these rules count. What was read under others and would be read differently is forgotten.
    pub(crate) fn follow(&mut self, now: InForce) {
        let rules = &now.placed.rules;
        for known in [&mut self.young, &mut self.old] {
            known.retain(|_, meaning| match &meaning.shape {
                Some(Ok(shape)) => shape.fits(rules),
                Some(Err(_)) => false,
                None => true,
            });
        }
        self.rules = Some(now.placed);
        self.unsettled = now.unsettled;
        self.held = now.held;
    }

    /// How many shapes are remembered.
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Of a simple query. The template at hand becomes that of this query.
    pub(crate) fn of_query(&mut self, sql: &str) -> Rc<Meaning> {
        let Some(Placed { rules, .. }) = &self.rules else {
            return match classify::classify(sql) {
                Act::Statement => Rc::clone(&self.plain),
                act => Rc::new(Meaning::new(act)),
            };
        };
        if let Err(refused) = self.template.fill(sql) {
            // Several statements, or none that the mind reads: judged when it is aimed.
            let act = classify::classify(sql);
            return Rc::new(Meaning { act, shape: Some(Err(refused)) });
        }
        let template = self.template.text();
        if let Some(known) = self.young.get(template) {
            self.hits.increment(1);
            return Rc::clone(known);
        }
        if let Some((template, known)) = self.old.remove_entry(template) {
            self.hits.increment(1);
            self.keep(template, Rc::clone(&known));
            return known;
        }
        self.misses.increment(1);
        let act = classify::classify(sql);
        let asks = matches!(act, Act::Statement | Act::Pin(_));
        let shape = asks.then(|| Shape::read(template, rules));
        let own_place = matches!(act, Act::ExplainRoute(_) | Act::Locate(..));
        let template = Box::from(template);
        let meaning = Rc::new(Meaning { act, shape });
        // These differ from text to text.
        if !own_place {
            self.keep(template, Rc::clone(&meaning));
        }
        meaning
    }

    /// Without rules: whether a statement writes nothing, locks nothing, and calls nothing that may.
    pub(crate) fn only_reads(&mut self, sql: &str) -> bool {
        if self.template.fill(sql).is_err() {
            return false;
        }
        let template = self.template.text();
        if let Some(known) = self.reads.get(template) {
            return *known;
        }
        let reads = holdfast_route::only_reads(template);
        if template.len() <= READS_BYTES_MAX {
            if self.reads.len() >= READS_MAX {
                self.reads.clear();
            }
            self.reads.insert(template.into(), reads);
        }
        reads
    }

    fn keep(&mut self, template: Box<str>, meaning: Rc<Meaning>) {
        let cost = template.len() + meaning.bytes();
        // A giant is used and not remembered.
        if cost > self.bytes_max / 8 {
            return;
        }
        self.young_bytes += cost;
        self.young.insert(template, meaning);
        if self.young_bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }

    /// Of a text that is prepared, with the literals in it.
    pub(crate) fn of_prepared(&mut self, sql: &str) -> (Rc<Meaning>, Box<[Literal]>) {
        let meaning = self.of_query(sql);
        let literals = match (&self.rules, &meaning.shape) {
            (Some(_), Some(Ok(_))) => self.template.literals().into(),
            _ => Box::default(),
        };
        (meaning, literals)
    }

    /// Whether the entry of a value in a lookup is on its way to another source.
    pub(crate) fn awaits_entry(&self, lookup: &str, value: &str) -> bool {
        self.unsettled > 0 && self.rules().is_some_and(|rules| rules.awaits_entry(lookup, value))
    }

    /// The moves that statements wait for.
    pub(crate) fn awaited(&self) -> &[Arc<Moving>] {
        self.rules().map_or(&[], |rules| &rules.awaited()[..self.unsettled])
    }

    /// The source of a value's entry in a lookup.
    /// # Errors
    /// The value can have none.
    pub(crate) fn entry_home(&self, lookup: &str, value: &str) -> Result<usize, Refusal> {
        let place = match self.planning()? {
            Some(placed) => {
                placed.rules.entry_place(lookup, value).map(|entry| placed.place(entry.source))
            }
            None => None,
        };
        place.map(|source| usize::from(source.0)).ok_or_else(|| {
            let cause =
                format!("a value of {} bytes can have no entry in lookup {lookup:?}", value.len());
            let remedy = "Look whether the rules have this lookup; a value has 1 to 256 bytes";
            Refusal::new("HF3225", "22023", cause, remedy)
        })
    }

    /// Where the simple query that was asked for last goes.
    pub(crate) fn aim_query(
        &self,
        meaning: &Meaning,
        sql: &str,
        slots: Slots,
    ) -> Result<Aim, Refusal> {
        if self.needs_no_plan(meaning) {
            return Ok(Aim::Any(Access::Read));
        }
        let Some(placed) = self.planning()? else { return Ok(Aim::Any(Access::Write)) };
        let values = Values { sql, literals: self.template.literals(), parameters: &[] };
        aim(meaning, placed, &values, slots)
    }

    /// Where a query of several statements goes as it is; `None` if they must be carried out one behind the other: they are for several
    /// sources, or leave a transaction open that others may join.
    pub(crate) fn aim_several(
        &self,
        sql: &str,
        opens: bool,
        slots: Slots,
    ) -> Result<Option<Aim>, Refusal> {
        match self.planning()? {
            None => Ok(Some(Aim::Any(Access::Write))),
            Some(placed) if opens && placed.rules.sources().len() > 1 => Ok(None),
            Some(placed) => aim_several(sql, placed, slots),
        }
    }

    /// Where a bound statement goes; `rest` is the bind message behind its names.
    pub(crate) fn aim_bind(
        &self,
        statement: &Statement,
        rest: &[u8],
        slots: Slots,
    ) -> Result<Aim, Refusal> {
        if self.needs_no_plan(&statement.meaning) {
            return Ok(Aim::Any(Access::Read));
        }
        let Some(placed) = self.planning()? else { return Ok(Aim::Any(Access::Write)) };
        let rules = &placed.rules;
        let parameters = parameters(statement, rest).ok_or_else(|| {
            Refusal::new("HF3209", "08P01", "a bind message is malformed", "Mend the driver")
        })?;
        let values =
            Values { sql: statement.sql(), literals: &statement.literals, parameters: &parameters };
        if statement
            .meaning
            .shape
            .as_ref()
            .is_some_and(|shape| shape.as_ref().is_ok_and(|shape| !shape.fits(rules)))
        {
            let template = Template::of(values.sql).map_err(refusal)?;
            let shape = Shape::read(template.text(), rules).map_err(refusal)?;
            return aimed(&shape, placed, &values, slots);
        }
        aim(&statement.meaning, placed, &values, slots)
    }

    /// The plan of a statement that is not executed, and the rules by which it was made; `None` without rules.
    /// # Errors
    /// It would be refused.
    pub(crate) fn plan_of(&self, sql: &str) -> Result<Option<(Plan, Arc<Topology>)>, Refusal> {
        let Some(Placed { rules, .. }) = self.planning()? else { return Ok(None) };
        let template = Template::of(sql).map_err(refusal)?;
        let shape = Shape::read(template.text(), rules).map_err(refusal)?;
        let values = Values { sql, literals: template.literals(), parameters: &[] };
        let plan = shape.plan(rules, &values).map_err(refusal)?;
        Ok(Some((plan, Arc::clone(rules))))
    }

    /// A source that can describe it: one that has its tables.
    pub(crate) fn describer(&self, statement: &Statement) -> Option<usize> {
        let placed = self.rules.as_ref()?;
        let values =
            Values { sql: statement.sql(), literals: &statement.literals, parameters: &[] };
        // Where rows are is nothing to a description.
        match aim(&statement.meaning, placed, &values, Slots::Known) {
            Ok(Aim::One(source, _)) => Some(source),
            Ok(Aim::Several(plan)) => sources(&plan).first().copied(),
            Ok(Aim::Any(_) | Aim::Awaits) | Err(_) => None,
        }
    }
}

/// The sources of an aim at several.
pub(crate) fn sources(plan: &Plan) -> Vec<usize> {
    match &plan.target {
        Target::Any => Vec::new(),
        Target::One(source) => vec![usize::from(source.0)],
        Target::Several(parts) => parts.iter().map(|part| usize::from(part.source.0)).collect(),
    }
}

/// In the client's words.
pub(crate) fn refusal(refused: Refused) -> Refusal {
    Refusal::new(refused.code(), refused.sqlstate(), refused.cause, refused.remedy)
}

fn aim(
    meaning: &Meaning,
    placed: &Placed,
    values: &Values<'_>,
    slots: Slots,
) -> Result<Aim, Refusal> {
    match &meaning.shape {
        None => Ok(Aim::Any(Access::Read)),
        Some(Err(refused)) => Err(refusal(refused.clone())),
        Some(Ok(shape)) => aimed(shape, placed, values, slots),
    }
}

fn aimed(
    shape: &Shape,
    placed: &Placed,
    values: &Values<'_>,
    slots: Slots,
) -> Result<Aim, Refusal> {
    let mut plan = shape.plan(&placed.rules, values).map_err(refusal)?;
    if plan.awaits && slots == Slots::Awaited {
        return Ok(Aim::Awaits);
    }
    if plan.lookups
        && let Target::One(source) = plan.target
    {
        // Entries may lie elsewhere, so it runs as one over several sources does.
        plan.target = Target::Several(vec![Part { source, rewritten: None }]);
    }
    Ok(match &mut plan.target {
        Target::Any => Aim::Any(plan.access),
        Target::One(source) => Aim::One(usize::from(placed.place(*source).0), plan.access),
        Target::Several(parts) => {
            for part in parts {
                part.source = placed.place(part.source);
            }
            Aim::Several(Box::new(plan))
        }
    })
}

/// Several statements in one query, if all of them are for one source.
fn aim_several(sql: &str, placed: &Placed, slots: Slots) -> Result<Option<Aim>, Refusal> {
    let rules = &placed.rules;
    let mut source = None;
    for place in statements(sql).map_err(refusal)? {
        let part = &sql[place];
        if classify::classify(part) != Act::Statement {
            continue;
        }
        let template = Template::of(part).map_err(refusal)?;
        let shape = Shape::read(template.text(), rules).map_err(refusal)?;
        let values = Values { sql: part, literals: template.literals(), parameters: &[] };
        match (aimed(&shape, placed, &values, slots)?, source) {
            (Aim::Any(_), _) => {}
            (Aim::Awaits, _) => return Ok(Some(Aim::Awaits)),
            (Aim::One(one, _), None) => source = Some(one),
            (Aim::One(one, _), Some(before)) if one == before => {}
            (Aim::One(..) | Aim::Several(_), _) => return Ok(None),
        }
    }
    // What it holds beside its statements on tables is not looked at, so it counts as a write.
    let aim = source.map_or(Aim::Any(Access::Write), |one| Aim::One(one, Access::Write));
    Ok(Some(aim))
}

/// The parameters of a bind message behind its names.
fn parameters<'m>(statement: &Statement, rest: &'m [u8]) -> Option<Vec<Parameter<'m>>> {
    let mut body = Body(rest);
    let format_count = usize::try_from(body.int16()?).ok()?;
    let formats = body.bytes(2 * format_count)?;
    let format = |n: usize| {
        let code = match format_count {
            0 => 0,
            1 => i16::from_be_bytes([formats[0], formats[1]]),
            _ => i16::from_be_bytes([*formats.get(2 * n)?, *formats.get(2 * n + 1)?]),
        };
        match code {
            0 => Some(Format::Text),
            1 => Some(Format::Binary),
            _ => None,
        }
    };
    let count = usize::from(body.int16()?.cast_unsigned());
    let mut types = statement.types();
    let mut parameters = Vec::with_capacity(count);
    for n in 0..count {
        let length = body.int32()?;
        let value = match usize::try_from(length) {
            Ok(length) => Some(body.bytes(length)?),
            Err(_) => None,
        };
        let oid = types.next().unwrap_or(0);
        parameters.push(Parameter { oid, format: format(n)?, value });
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_templates_are_known_to_read_as_the_limit_and_then_all_are_forgotten() {
        let mut meanings = Meanings::for_one_source();
        for n in 0..READS_MAX {
            assert!(meanings.only_reads(&format!("SELECT a{n} FROM t")));
        }
        assert_eq!(meanings.reads.len(), READS_MAX);
        assert!(meanings.only_reads("SELECT a0 FROM t"), "it is known, and nothing is forgotten");
        assert_eq!(meanings.reads.len(), READS_MAX);
        assert!(!meanings.only_reads("DELETE FROM t"), "one past the limit is judged as well");
        assert_eq!(meanings.reads.len(), 1);
        let long = |bytes: usize| {
            let around = "SELECT  FROM t".len();
            format!("SELECT {} FROM t", "a".repeat(bytes - around))
        };
        assert!(meanings.only_reads(&long(READS_BYTES_MAX)));
        assert_eq!(meanings.reads.len(), 2);
        assert!(meanings.only_reads(&long(READS_BYTES_MAX + 1)), "judged, and not kept");
        assert_eq!(meanings.reads.len(), 2);
    }
}
