//! What a text means, remembered by its shape: what the router does with it, and where it goes.

use std::rc::Rc;

use crate::{
    classify::{self, Act},
    refusal::Refusal,
    session::{Session, Statement},
    shared::Shared,
};

/// Where one execution goes.
#[derive(Debug)]
pub(crate) enum Aim {
    /// Wherever the session is already, or any source.
    Any,
    One(usize),
}

/// What a statement is.
#[derive(Debug)]
pub(crate) struct Meaning {
    act: Act,
}

impl Meaning {
    pub(crate) fn act(&self) -> &Act {
        &self.act
    }

    /// Whether it is taken in a transaction that has failed.
    pub(crate) fn ends_transaction(&self) -> bool {
        matches!(self.act, Act::Commit | Act::Rollback)
    }
}

/// What is remembered of texts.
#[derive(Debug)]
pub(crate) struct Meanings {
    statement: Rc<Meaning>,
}

impl Meanings {
    /// Without rules: everything goes to the only source.
    pub(crate) fn for_one_source() -> Self {
        Self { statement: Rc::new(Meaning { act: Act::Statement }) }
    }

    pub(crate) fn new(shared: &Shared) -> Self {
        let _ = shared;
        Self::for_one_source()
    }

    /// Of a simple query.
    pub(crate) fn of_query(&mut self, sql: &str) -> Rc<Meaning> {
        match classify::classify(sql) {
            Act::Statement => Rc::clone(&self.statement),
            act => Rc::new(Meaning { act }),
        }
    }

    /// Of a text that is prepared.
    pub(crate) fn of_prepared(&mut self, sql: &str) -> Rc<Meaning> {
        self.of_query(sql)
    }

    /// Where a simple query goes.
    pub(crate) fn aim_query(
        &self,
        _meaning: &Meaning,
        _sql: &str,
        _session: &Session,
    ) -> Result<Aim, Refusal> {
        Ok(Aim::Any)
    }

    /// Where a bound statement goes; `rest` is the bind message behind its names.
    pub(crate) fn aim_bind(
        &self,
        _statement: &Statement,
        _rest: &[u8],
        _session: &Session,
    ) -> Result<Aim, Refusal> {
        Ok(Aim::Any)
    }

    /// A source that can describe it.
    pub(crate) fn describer(&self, _meaning: &Meaning) -> Option<usize> {
        None
    }
}
