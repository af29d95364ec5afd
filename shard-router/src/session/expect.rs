//! What a session expects: for each message that went to a server, what its answer is and whom it is for.

use std::rc::Rc;

use super::Statement;

/// One answer that is still to come, in the order of the messages.
#[derive(Debug)]
pub(crate) enum Expect {
    /// Of a simple query, up to `ReadyForQuery`.
    Query,
    /// Of a simple query of the router itself.
    HiddenQuery,
    /// Of a statement that opens the transaction, in front of the one that needs it.
    Opening,
    /// Of a simple query that was made to fail: this is said instead of its error.
    DoomedQuery(Vec<u8>),
    Parse(Rc<Statement>),
    HiddenParse(Rc<Statement>),
    /// A parse that was made to fail: this is said instead of its error.
    DoomedParse(Vec<u8>),
    Bind,
    /// `ParameterDescription` and `RowDescription`, or only the second.
    Describe,
    Execute,
    Close,
    HiddenClose,
    Sync,
    /// A sync of the router's own, so that a server in the midst of a batch answers and another can be put to work.
    Turn,
    /// Parse, bind, execute and sync of the router itself, all answers up to `ReadyForQuery`.
    HiddenBatch,
    /// The same, whose rows are values of these settings.
    ReadBack,
    /// Said by the router in its turn.
    Local(Vec<u8>),
}

impl Expect {
    /// Whether an error makes the server skip this one. What begins behind a `Sync` is not skipped.
    pub(crate) fn is_skipped(&self) -> bool {
        match self {
            Self::Opening
            | Self::Parse(_)
            | Self::HiddenParse(_)
            | Self::DoomedParse(_)
            | Self::Bind
            | Self::Describe
            | Self::Execute
            | Self::Close
            | Self::HiddenClose
            | Self::Local(_) => true,
            Self::Query
            | Self::HiddenQuery
            | Self::DoomedQuery(_)
            | Self::Sync
            | Self::Turn
            | Self::HiddenBatch
            | Self::ReadBack => false,
        }
    }
}
