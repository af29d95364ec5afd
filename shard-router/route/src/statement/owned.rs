//! A plan for whoever asks, and whether entries of lookups are to be written with its rows.

use super::{Body, CopyDirection, Kind, Shape, alone, copied};
use crate::{Access, Plan, Refused, Topology, Values};

impl Shape {
    /// Where one execution goes.
    ///
    /// `topology` must be one that this shape [`Shape::fits`]. For a kind of statement that names no rows (BEGIN, SET, FETCH, ...) the plan
    /// is [`crate::Target::Any`] and means nothing: what becomes of such a statement is for the session to say.
    /// # Errors
    /// The statement is not routed with these values; with others it may be.
    pub fn plan(&self, topology: &Topology, values: &Values<'_>) -> Result<Plan, Refused> {
        let planned = self.planned(topology, values);
        let mut plan = match (&self.kind, &self.body) {
            (Kind::Copy(CopyDirection::In), Body::Tables(tables)) => {
                copied::into(tables, topology, values)?
            }
            (Kind::Copy(CopyDirection::Out), Body::Tables(_)) => copied::out_of(planned?, values)?,
            _ => alone::judge(&self.kind, planned)?,
        };
        plan.lookups = plan.access == Access::Write
            && !topology.lookups().is_empty()
            && match &self.body {
                Body::None => false,
                // Its tables are not looked at.
                Body::OnlySource(_) => true,
                Body::Tables(tables) => {
                    let written = tables.targets.iter().map(|at| &tables.seats.0[*at].table);
                    let copied = tables.seats.0.first().filter(|_| self.copies_in());
                    let mut all = written.chain(copied.map(|seat| &seat.table));
                    all.any(|table| topology.owns_values(table))
                }
            };
        // Their values are not known yet, and so the slots of their entries neither.
        plan.awaits |= plan.lookups
            && topology.lookups().values().any(|lookup| topology.awaits_any(lookup.group()));
        Ok(plan)
    }

    fn copies_in(&self) -> bool {
        self.kind == Kind::Copy(CopyDirection::In)
    }
}
