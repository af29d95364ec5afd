//! Reads a template: kind, syntax tree, seats.

use std::{collections::BTreeSet, ops::ControlFlow, sync::OnceLock};

use sqlparser::{
    ast::{
        ObjectName, OnInsert, Query, SetExpr, Statement, TableObject, Value, ValueWithSpan, Visit,
        Visitor,
    },
    dialect::PostgreSqlDialect,
    parser::{Parser, ParserError},
};

use super::{
    alone,
    around::{Told, around},
    condition::ParameterUses,
    function::Called,
    gather::{self, Gather},
    keyword::{self, Kind},
    render::render,
    scope::folded,
    seat::Seats,
    walk::Walk,
    write::{Inserted, knows_its_conflicts},
};
use crate::{Access, RefusalClass, Refused, Topology, limit::PARSER_DEPTH_MAX};

/// What a shape holds beside its kind.
#[derive(Debug)]
pub(crate) enum Body {
    /// Nothing that names rows.
    None,
    /// There is one source only, so that nothing needs to be known.
    OnlySource(Access),
    /// A statement on tables.
    Tables(Box<Tables>),
}

/// A statement on tables.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) access: Access,
    pub(crate) seats: Seats,
    /// The targets of its writes.
    pub(crate) targets: Vec<usize>,
    pub(crate) inserted: Option<Inserted>,
    /// How it is answered in parts, or why it is not.
    pub(crate) gather: Gathered,
    /// The first function whose answer differs from source to source.
    pub(crate) wandering: Option<String>,
}

/// How a statement is answered in parts, found out when that is first needed: nearly all statements are for one source, and never ask.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// The statement by itself, while it is not known.
    text: Box<str>,
    known: OnceLock<Result<Gather, Refused>>,
}

impl Gathered {
    /// # Errors
    /// It is not.
    pub(super) fn get(&self, rules: &Topology) -> Result<&Gather, Refused> {
        let found = || gathered(&walked(&parse(&self.text)?, rules)?);
        self.known.get_or_init(found).as_ref().map_err(Clone::clone)
    }
}

pub(super) fn read(template: &str, rules: &Topology) -> Result<(Kind, Body), Refused> {
    if let Some(kind) = keyword::kind(template) {
        let body = match rules.only_source() {
            Some(_) => Body::None,
            None => alone::body(&kind, template, rules)?,
        };
        return Ok((kind, body));
    }
    if rules.only_source().is_some() {
        return only_source(template, rules);
    }
    let statement = parse(template)?;
    let tables = tables(&statement, Some(template), rules)?;
    let kind = if tables.access == Access::Write { Kind::Write } else { Kind::Read };
    Ok((kind, Body::Tables(Box::new(tables))))
}

/// Nothing of the statement is looked at but whether a replica could answer it, and whether it asks for what only lookups know.
fn only_source(template: &str, rules: &Topology) -> Result<(Kind, Body), Refused> {
    let statement = parse(template);
    if let Ok(statement) = &statement
        && let ControlFlow::Break(refused) = statement.visit(&mut Conflicts(rules))
    {
        return Err(*refused);
    }
    Ok(match statement.is_ok_and(|statement| reads(&statement)) {
        true => (Kind::Read, Body::OnlySource(Access::Read)),
        false => (Kind::Write, Body::OnlySource(Access::Write)),
    })
}

/// Stops at an INSERT, however deep, whose conflicts its source cannot know.
struct Conflicts<'r>(&'r Topology);

impl Visitor for Conflicts<'_> {
    type Break = Box<Refused>;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Box<Refused>> {
        if let Statement::Insert(insert) = statement
            && let (TableObject::TableName(name), Some(OnInsert::OnConflict(conflict))) =
                (&insert.table, &insert.on)
        {
            let parts = name.0.iter().filter_map(|part| part.as_ident()).map(folded);
            let full = parts.collect::<Vec<_>>().join(".");
            let table = full.strip_prefix("public.").unwrap_or(&full);
            if let Err(refused) = knows_its_conflicts(conflict, table, self.0) {
                return ControlFlow::Break(Box::new(refused));
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether the one statement of a template writes nothing, locks nothing, and calls nothing that may.
#[must_use]
pub fn only_reads(template: &str) -> bool {
    keyword::kind(template).is_none() && parse(template).is_ok_and(|statement| reads(&statement))
}

fn reads(statement: &Statement) -> bool {
    let Statement::Query(query) = statement else { return false };
    let mut called = Called::default();
    let _ = query.visit(&mut called);
    called.wandering.is_none()
        && called.unshared.is_none()
        && query.visit(&mut Writes).is_continue()
}

/// Stops at what a replica could not do: writes in a WITH, SELECT INTO, row locks, however deep.
struct Writes;

impl Visitor for Writes {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Query(_) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        match query.locks.is_empty() && plain(&query.body) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

/// Whether all that a query is made of are SELECTs without INTO and VALUES; queries within are met by themselves.
fn plain(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.into.is_none(),
        SetExpr::SetOperation { left, right, .. } => plain(left) && plain(right),
        SetExpr::Query(_) | SetExpr::Values(_) | SetExpr::Table(_) => true,
        _ => false,
    }
}

/// The one statement of a template.
pub(super) fn parse(template: &str) -> Result<Statement, Refused> {
    let dialect = PostgreSqlDialect {};
    let attempt = |text: &str| {
        let parser = Parser::new(&dialect).with_recursion_limit(PARSER_DEPTH_MAX);
        parser.try_with_sql(text).and_then(|mut parser| parser.parse_statements())
    };
    let parsed = attempt(template).or_else(|error| match keyword::plain_locks(template) {
        Some(plain) => attempt(&plain),
        None => Err(error),
    });
    let refuse = |class, cause: String| {
        Refused::new(class, cause, "Write it another way, or send it to the source itself")
    };
    let mut statements = parsed.map_err(|error| match error {
        ParserError::RecursionLimitExceeded => refuse(
            RefusalClass::TooLarge,
            format!("a statement nested deeper than {PARSER_DEPTH_MAX}"),
        ),
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => {
            let text: String = text.chars().take(200).collect();
            refuse(RefusalClass::NotUnderstood, format!("the statement is not understood: {text}"))
        }
    })?;
    match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(refuse(
            RefusalClass::NotUnderstood,
            "more than one statement where one may stand".to_owned(),
        )),
    }
}

/// What the parser's own visitor meets, whatever the walk looks at.
#[derive(Debug, Default)]
struct Met {
    relations: BTreeSet<String>,
    parameters: Vec<u32>,
    locks: bool,
}

impl Visitor for Met {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.relations.insert(relation.to_string());
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.locks |= !query.locks.is_empty();
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if let Value::Placeholder(name) = &value.value
            && let Some(index) = name.strip_prefix('$').and_then(|name| name.parse::<usize>().ok())
            && (1..=crate::limit::PARAMETERS_MAX).contains(&index)
        {
            if self.parameters.len() < index {
                self.parameters.resize(index, 0);
            }
            self.parameters[index - 1] += 1;
        }
        ControlFlow::Continue(())
    }
}

/// What the walk has seen of a statement.
struct Walked<'s, 'r> {
    statement: &'s Statement,
    walk: Walk<'r>,
    inserted: Option<Inserted>,
    access: Access,
    wandering: Option<String>,
}

fn walked<'s, 'r>(
    statement: &'s Statement,
    rules: &'r Topology,
) -> Result<Walked<'s, 'r>, Refused> {
    let mut met = Met::default();
    let _ = statement.visit(&mut met);
    let mut called = Called::default();
    let _ = statement.visit(&mut called);
    if let Some(name) = &called.unshared {
        let cause = format!("{name} is kept by each source for itself");
        let remedy = "Use it on a table that lies on one source, or make numbers another way";
        return Err(Refused::new(RefusalClass::Unshared, cause, remedy));
    }
    let mut walk = Walk::new(rules, ParameterUses(met.parameters));
    let mut inserted = None;
    match statement {
        Statement::Query(query) => {
            walk.query(query, None, &Vec::new())?;
        }
        Statement::Insert(insert) => {
            let found = walk.insert(insert)?;
            walk.targets.push(found.target);
            inserted = Some(found);
        }
        Statement::Update(update) => {
            let (target, _) = walk.update(update, None, &Vec::new())?;
            walk.targets.push(target);
        }
        Statement::Delete(delete) => {
            let (target, _) = walk.delete(delete, None, &Vec::new())?;
            walk.targets.push(target);
        }
        _ => return Err(super::walk::unsupported("this kind of statement")),
    }
    // The walk knows the places where a table may stand. A table in a place that it does not know stops the statement here.
    if met.relations != walk.relations {
        let missed = met.relations.symmetric_difference(&walk.relations).next().cloned();
        let what = format!("a table where none was expected ({})", missed.unwrap_or_default());
        return Err(super::walk::unsupported(&what));
    }
    let write = !walk.targets.is_empty();
    let access = match (write, met.locks || called.wandering.is_some()) {
        (true, _) => Access::Write,
        (false, true) => Access::Locking,
        (false, false) => Access::Read,
    };
    if met.locks {
        walk.not_apart("row locks");
    }
    if let Some(name) = &called.wandering {
        walk.not_apart(&format!("{name}, whose answer may differ from source to source"));
    }
    Ok(Walked { statement, walk, inserted, access, wandering: called.wandering })
}

fn gathered(walked: &Walked<'_, '_>) -> Result<Gather, Refused> {
    let gathered = match &walked.walk.apart {
        Ok(()) => gather::gather(walked.statement, &walked.walk),
        Err(why) => Err(gather::refused(why)),
    };
    gathered.or_else(|refused| within(walked).unwrap_or(Err(refused)))
}

/// How the inner query is answered in parts, where another stands around it that adds nothing or counts.
fn within(outer: &Walked<'_, '_>) -> Option<Result<Gather, Refused>> {
    let Statement::Query(query) = outer.statement else { return None };
    let (inner, told) = around(query)?;
    let inner = Statement::Query(Box::new(inner.clone()));
    let mut gather = gathered(&walked(&inner, outer.walk.rules).ok()?).ok()?;
    if let Told::Count(name) = told {
        // A count of counts would count what is told of groups.
        if gather.counted.replace(name).is_some() {
            return None;
        }
    }
    if gather.rewritten.is_none() {
        gather.rewritten = Some((render(&inner).ok()?, false));
    }
    Some(Ok(gather))
}

/// What `statement` says of tables; `text` is the statement by itself, if it is to be had.
pub(super) fn tables(
    statement: &Statement,
    text: Option<&str>,
    rules: &Topology,
) -> Result<Tables, Refused> {
    let walked = walked(statement, rules)?;
    let later = text.filter(|_| matches!(statement, Statement::Query(_)));
    let known = match later {
        Some(_) => OnceLock::new(),
        None => OnceLock::from(gathered(&walked)),
    };
    let Walked { walk, inserted, access, wandering, .. } = walked;
    Ok(Tables {
        access,
        seats: walk.seats,
        targets: walk.targets,
        inserted,
        gather: Gathered { text: later.unwrap_or_default().into(), known },
        wandering,
    })
}

#[cfg(test)]
mod tests {
    use super::only_reads;

    #[test]
    fn what_a_replica_may_answer_is_told_from_what_writes_locks_or_may() {
        for sql in [
            "SELECT a FROM t WHERE b = $1",
            "SELECT count(*), lower(max(a)) FROM t GROUP BY b",
            "WITH w AS (SELECT 1) SELECT * FROM w UNION (VALUES (2))",
        ] {
            assert!(only_reads(sql), "{sql}");
        }
        for sql in [
            "UPDATE t SET a = 1",
            "SELECT a FROM t FOR UPDATE",
            "SELECT * FROM (SELECT a FROM t FOR SHARE) s",
            "WITH w AS (DELETE FROM t RETURNING a) SELECT * FROM w",
            "SELECT a INTO u FROM t",
            "SELECT nextval($1)",
            "SELECT pg_advisory_lock(1)",
            "SELECT pay(1)",
            "SELECT now()",
            "SHOW work_mem",
            "TABLE t",
            "COPY t TO STDOUT",
            "SELECT 1; DELETE FROM t",
            "BEGIN",
        ] {
            assert!(!only_reads(sql), "{sql}");
        }
    }
}
