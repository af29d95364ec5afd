//! A plan: where one execution of a statement goes, and how the answers become one.

mod array;
mod explain;
mod set;
pub(crate) mod split;
mod value;

pub use explain::Explained;
pub(crate) use set::{SlotSet, SourceSet};
pub(crate) use value::{
    Cast, Constant, Known, Place, exact_number, known, known_elements, of_bytes, of_text,
};
pub use value::{Format, Parameter, Values};

use crate::{Copy, GroupName, Slot, merge::Merge};

/// A source by its place in the topology's order of names. Good for the topology whose epoch the plan bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(pub u16);

/// Where one execution goes. Made by [`crate::Shape::plan`]; never wider than the sources named here, and never narrower than the
/// sources that hold matching rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which sources.
    pub target: Target,
    /// What it does there.
    pub access: Access,
    /// Why these.
    pub reason: Reason,
    /// The slot, when it is exactly one.
    pub slot: Option<Slot>,
    /// The data group that decided, when one did.
    pub group: Option<GroupName>,
    /// How the answers of several sources become one; meaningless for one source.
    pub merge: Merge,
    /// How the command tags of several sources become one; meaningless for one source.
    pub tag: Tag,
    /// It writes rows that own values of a lookup, so that entries are to be written with them.
    pub lookups: bool,
    /// It would touch slots that are awaited ([`crate::Topology::awaited`]): it is not to be sent, but planned anew by later rules.
    pub awaits: bool,
    /// Set for a COPY over the sources of [`Target::Several`]: how its rows are divided, told or written.
    pub copy: Option<Copy>,
    /// The epoch of the rules by which it was made.
    pub epoch: u64,
}

/// Which sources an execution goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every source would give the same answer: take whichever is nearest, or the one in use already.
    Any,
    /// This one; the client's own bytes.
    One(SourceIndex),
    /// Several, in the order of their index, each with what it is to be sent.
    Several(Vec<Part>),
}

/// What one of several sources is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The source.
    pub source: SourceIndex,
    /// Another text than the client's; `None` means the client's own bytes.
    pub rewritten: Option<Rewritten>,
}

/// A statement in other words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The text. Its placeholders are `$1` to `$n` without a gap.
    pub sql: String,
    /// For each placeholder, in order, the client's parameter that it stands for, counted from 0.
    pub parameters: Vec<u16>,
}

/// What a statement does where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Reads, without a lock that outlives the statement. May go to a replica.
    Read,
    /// Reads with row locks, or calls a function that may write: to a primary.
    Locking,
    /// Writes rows.
    Write,
}

/// Why an execution goes where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is one source only.
    OnlySource,
    /// No table, or only such as every source has alike.
    Everywhere,
    /// A table that lies on one source by the rules.
    SinglePlacement,
    /// The key's value decides.
    Key,
    /// Several key values, which all lie on one source or are spread over the sources named.
    Keys,
    /// No row can match, wherever one looks.
    NoRowMatches,
    /// Nothing narrows the sources, and the rules permit to ask them all.
    Scatter,
    /// A write to a table of which every source has a copy.
    EveryCopy,
    /// Rows that come from the client, each for the source of its key.
    EachRow,
}

/// How the number in a command tag is made from those of several sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// `UPDATE 3` and `UPDATE 4` make `UPDATE 7`. For rows read: as many as were sent to the client.
    Sum,
    /// Every source changed the same rows of its copy: the first one's number, and all must agree.
    Same,
}

impl Plan {
    /// How many sources are sent something of their own; 1 where any would do.
    #[must_use]
    pub fn sources(&self) -> usize {
        match &self.target {
            Target::Any | Target::One(_) => 1,
            Target::Several(parts) => parts.len(),
        }
    }

    /// Whether more than one source takes part.
    #[must_use]
    pub fn is_scattered(&self) -> bool {
        matches!(self.target, Target::Several(_))
    }
}
