//! COPY over several sources: rows of the client are divided by their keys, rows of the sources are told one source behind another.

use std::sync::Arc;

use super::{read::Tables, route::plan, seat::Lies};
use crate::{
    Access, GroupName, Merge, Part, Placement, Plan, Reason, RefusalClass, Refused, Rewritten,
    Scatter, SourceIndex, Tag, Target, Topology, Values,
    copy::{Copy, CopyIn, CopyOut, Quoted, Text},
};

/// Where the rows go that a client copies into the only table of `tables`.
/// # Errors
/// They go to several sources and the rules do not permit that, or the options say more than is understood.
pub(super) fn into(
    tables: &Tables,
    topology: &Topology,
    values: &Values<'_>,
) -> Result<Plan, Refused> {
    let seat = tables.seats.0.first();
    let seat = seat.ok_or_else(|| super::walk::unsupported("COPY into what is no table"))?;
    match &seat.lies {
        Lies::Single(source) => {
            let target = Target::One(topology.index_of(source).unwrap_or(SourceIndex(0)));
            Ok(plan(topology, target, Access::Write, Reason::SinglePlacement))
        }
        Lies::Sharded { group, scatter } => by_key(&seat.table, group, *scatter, topology, values),
        Lies::Everywhere
            if matches!(topology.placement(&seat.table), Some((_, Placement::Reference))) =>
        {
            every_copy(&seat.table, topology, values)
        }
        Lies::Everywhere | Lies::Derived(_) => {
            Err(super::walk::unsupported("COPY into what is no table of the rules"))
        }
    }
}

fn by_key(
    table: &str,
    group: &GroupName,
    scatter: Scatter,
    topology: &Topology,
    values: &Values<'_>,
) -> Result<Plan, Refused> {
    let homes = topology.homes.get(group);
    let (Some(homes), Some((_, Placement::Sharded(sharded)))) = (homes, topology.placement(table))
    else {
        let cause = format!("group {group} is gone from the rules");
        return Err(Refused::new(RefusalClass::UnknownTable, cause, "Send the statement again"));
    };
    let mut sources = homes.to_vec();
    sources.sort_unstable();
    sources.dedup();
    if sources.len() > 1 && scatter < Scatter::Write {
        let cause = format!(
            "the rows of COPY into {table} may lie on {} sources, and group {group} does not permit that",
            sources.len()
        );
        let remedy =
            format!("Insert them one by one, or set scatter = \"write\" in [group.{group}]");
        return Err(Refused::new(RefusalClass::ScatterNotAllowed, cause, remedy));
    }
    let part_of = |home: &SourceIndex| {
        let at = sources.binary_search(home).expect("every home is among them");
        u16::try_from(at).expect("sources are bounded")
    };
    let text = Text::read(values.sql, true)?;
    let copy = CopyIn {
        table: text.table,
        named: text.named,
        form: text.form,
        keys: sharded.columns.clone(),
        parts: homes.iter().map(part_of).collect(),
    };
    let all = planned(topology, &sources, Access::Write, Reason::EachRow, Copy::In(Arc::new(copy)));
    // Which slots its rows are of is not known before they come.
    Ok(Plan { group: Some(group.clone()), awaits: topology.awaits_any(group), ..all })
}

fn every_copy(table: &str, topology: &Topology, values: &Values<'_>) -> Result<Plan, Refused> {
    let text = Text::read(values.sql, true)?;
    if text.filters {
        let cause = format!("COPY into every copy of {table} with a condition");
        let remedy = "Leave the condition out, and copy the rows that are meant";
        return Err(Refused::new(RefusalClass::NotMergeable, cause, remedy));
    }
    let copy = CopyIn {
        table: text.table,
        named: text.named,
        form: text.form,
        keys: Vec::new(),
        parts: Box::default(),
    };
    let count = u16::try_from(topology.sources().len()).expect("sources are bounded");
    let sources: Vec<SourceIndex> = (0..count).map(SourceIndex).collect();
    let all =
        planned(topology, &sources, Access::Write, Reason::EveryCopy, Copy::In(Arc::new(copy)));
    Ok(Plan { tag: Tag::Same, ..all })
}

fn planned(
    topology: &Topology,
    sources: &[SourceIndex],
    access: Access,
    reason: Reason,
    copy: Copy,
) -> Plan {
    let parts = sources.iter().map(|source| Part { source: *source, rewritten: None }).collect();
    let all = plan(topology, Target::Several(parts), access, reason);
    Plan { copy: Some(copy), ..all }
}

/// A COPY to the client whose rows lie where `plan` says: told one source behind another, or merged and then written.
/// # Errors
/// They lie on several sources, and are neither.
pub(super) fn out_of(plan: Plan, values: &Values<'_>) -> Result<Plan, Refused> {
    let Target::Several(parts) = &plan.target else { return Ok(plan) };
    let text = Text::read(values.sql, false)?;
    let plain = Merge { collation_is_c: plan.merge.collation_is_c, ..Merge::default() };
    if plan.merge == plain && parts.iter().all(|part| part.rewritten.is_none()) {
        return Ok(Plan { copy: Some(Copy::Out { header: text.form.header }), ..plan });
    }
    let refused = |what: &str, remedy: &str| {
        let cause = format!("COPY of rows that are merged of several sources, {what}");
        Err(Refused::new(RefusalClass::NotMergeable, cause, remedy))
    };
    if plan.access == Access::Write {
        return refused("of a statement that writes", "Send the statement by itself");
    }
    if let Some(what) = text.contradicts {
        return refused(&format!("with {what}"), "Write the options as PostgreSQL takes them");
    }
    if text.form.quoted == Quoted::Some {
        return refused("with FORCE_QUOTE of some columns", "Write FORCE_QUOTE *");
    }
    let Some(query) = text.query else {
        return refused("of a table", "Copy a query instead");
    };
    // No source is sent the COPY itself.
    let part = |part: &Part| {
        let whole = || Rewritten { sql: query.clone(), parameters: Vec::new() };
        let rewritten = part.rewritten.clone().unwrap_or_else(whole);
        Part { source: part.source, rewritten: Some(rewritten) }
    };
    let target = Target::Several(parts.iter().map(part).collect());
    let copy = Some(Copy::Written(Arc::new(CopyOut::new(text.form))));
    Ok(Plan { target, copy, ..plan })
}
