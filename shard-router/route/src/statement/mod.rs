//! Shapes: what a template says, taken down once, so that an execution needs no more than its values.
//!
//! For each reference to a table (a *seat*) the shape holds which slots its conditions leave: AND intersects, OR unites, what is not
//! understood means all. From that and the values of one execution [`Shape::plan`] makes a [`Plan`](crate::Plan) or a [`Refused`]. The promise:
//! **the sources of a plan hold all rows that can match, or there is no plan**.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is foreign and wide: what is not named here is not understood, which means all slots or a refusal"
)]

mod alone;
mod around;
mod condition;
mod copied;
mod derived;
mod function;
mod gather;
mod groups;
mod insert;
mod join;
mod kept;
mod keyword;
mod owned;
mod read;
mod render;
mod route;
mod scope;
mod seat;
mod set_operation;
mod walk;
mod write;

pub use keyword::{CopyDirection, Discarded, Kind, explained};
pub(crate) use read::Body;
pub use read::only_reads;

use crate::{Refused, Topology};

/// What a template says under some rules. Immutable; good for every execution of the template while [`Shape::fits`].
#[derive(Debug)]
pub struct Shape {
    kind: Kind,
    body: Body,
    /// Bytes of the template, by which the rest is estimated.
    template_bytes: usize,
    /// What the names in the template meant.
    read_by: std::sync::Arc<Topology>,
}

impl Shape {
    /// Reads a template ([`crate::Template::text`]).
    /// # Errors
    /// A statement that is routed nowhere, whatever its values are. As good as a shape: it may be kept and told again.
    pub fn read(template: &str, rules: &std::sync::Arc<Topology>) -> Result<Self, Refused> {
        let (kind, body) = read::read(template, rules)?;
        Ok(Self { kind, body, template_bytes: template.len(), read_by: rules.clone() })
    }

    /// What kind of statement it is.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether this shape is right under `rules`, though they be of another epoch: only placements of slots may differ.
    #[must_use]
    pub fn fits(&self, rules: &std::sync::Arc<Topology>) -> bool {
        std::sync::Arc::ptr_eq(&self.read_by, rules) || self.read_by.reads_like(rules)
    }

    /// About how many bytes it takes, for a cache that is bounded in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // A syntax tree takes some twenty times its text: an estimate, on the safe side for a cache's bound.
        512 + 24 * self.template_bytes
    }
}
