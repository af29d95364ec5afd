//! COPY over several sources: rows of the client are divided by their keys, rows of the sources are told one source behind another.

use std::sync::Arc;

use super::{read::Tables, route::plan, seat::Lies};
use crate::{
    Access, GroupName, Merge, Part, Placement, Plan, Reason, RefusalClass, Refused, Scatter,
    SourceIndex, Tag, Target, Topology, Values,
    copy::{Copy, CopyIn, Text},
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
    Ok(Plan { group: Some(group.clone()), ..all })
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

/// A COPY to the client whose rows lie where `plan` says.
/// # Errors
/// They lie on several sources, and are no answer when they are put behind each other.
pub(super) fn out_of(plan: Plan, values: &Values<'_>) -> Result<Plan, Refused> {
    let Target::Several(parts) = &plan.target else { return Ok(plan) };
    let plain = Merge { collation_is_c: plan.merge.collation_is_c, ..Merge::default() };
    if plan.merge != plain || parts.iter().any(|part| part.rewritten.is_some()) {
        let cause = "COPY of a query whose rows on several sources would have to be merged";
        let remedy =
            "Leave out ORDER BY, LIMIT, DISTINCT and aggregates, or send the query by itself";
        return Err(Refused::new(RefusalClass::NotMergeable, cause, remedy));
    }
    let text = Text::read(values.sql, false)?;
    Ok(Plan { copy: Some(Copy::Out { header: text.form.header }), ..plan })
}
