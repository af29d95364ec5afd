//! A plan for whoever asks, and whether entries of lookups are to be written with its rows.

use super::{Body, Shape, alone};
use crate::{Access, Plan, Refused, Topology, Values};

impl Shape {
    /// Where one execution goes.
    ///
    /// `topology` must be one that this shape [`Shape::fits`]. For a kind of statement that names no rows (BEGIN, SET, FETCH, ...) the plan
    /// is [`crate::Target::Any`] and means nothing: what becomes of such a statement is for the session to say.
    /// # Errors
    /// The statement is not routed with these values; with others it may be.
    pub fn plan(&self, topology: &Topology, values: &Values<'_>) -> Result<Plan, Refused> {
        let mut plan = alone::judge(&self.kind, self.planned(topology, values))?;
        plan.lookups = plan.access == Access::Write
            && !topology.lookups().is_empty()
            && match &self.body {
                Body::None => false,
                // Its tables are not looked at.
                Body::OnlySource(_) => true,
                Body::Tables(tables) => {
                    let mut written = tables.targets.iter().map(|at| &tables.seats.0[*at].table);
                    written.any(|table| topology.owns_values(table))
                }
            };
        Ok(plan)
    }
}
