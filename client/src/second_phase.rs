//! XA: what a program says that prepares, commits and rolls back by itself.

use std::time::Duration;

use crate::{
    Answer, Client, ClientError, Wait,
    wire::{FinishRequest, Outcome, RollBackRequest, exchange_request::Request},
};

/// What a program did to the branches that it had prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finished {
    /// They are committed.
    Committed,
    /// They are rolled back.
    RolledBack,
}

impl Client {
    /// Says that the program has carried out the second phase of an XA transaction at `branches` (numbered from 1; none: all),
    /// as it was decided. The coordinator then calls them no more. A repeat changes nothing.
    /// # Errors
    /// [`ClientError`]: refused with HF2004 if it was not decided so. Where nothing was done the coordinator calls the branches.
    pub async fn finish(
        &self,
        gid: &str,
        branches: impl IntoIterator<Item = u32>,
        did: Finished,
    ) -> Result<Answer, ClientError> {
        let outcome = match did {
            Finished::Committed => Outcome::Committed,
            Finished::RolledBack => Outcome::RolledBack,
        };
        let request = Request::Finish(FinishRequest {
            gid: gid.to_owned(),
            branches: branches.into_iter().collect(),
            outcome: outcome.into(),
        });
        self.done(gid.to_owned(), false, request).await
    }

    /// Rolls back, also a gid that no coordinator knows: that is recorded as rolled back, and a later submit of it is refused with
    /// HF2008. Only behind a rolled-back answer may something that is found prepared under `gid` be rolled back.
    /// # Errors
    /// [`ClientError`]: refused with HF2004 if it is decided to commit, so that what is prepared must be committed.
    pub async fn fence(
        &self,
        gid: &str,
        reason: &str,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let request = Request::RollBack(RollBackRequest {
            gid: gid.to_owned(),
            reason: reason.to_owned(),
            abort_if_unknown: true,
            ..RollBackRequest::default()
        });
        self.fate(gid.to_owned(), false, request, Wait::Decision, patience).await
    }
}
