//! Nested branches: what a participant adds to the gid it was called for.

use crate::{
    Answer, BranchSpec, Client, ClientError,
    wire::{AddBranchRequest, exchange_request::Request},
};

impl Client {
    /// Adds the branch with this number on behalf of branch `parent`, whose try, action or prepare is under way: a participant
    /// does this before it answers. Allowed in every style, as long as nothing is decided. A repeat with the same number and
    /// content changes nothing.
    /// # Errors
    /// [`ClientError`]: refused with HF2004 once the parent has answered or the transaction is decided, so that the participant
    /// must not answer done.
    pub async fn add_nested(
        &self,
        gid: &str,
        parent: u32,
        branch: u32,
        spec: BranchSpec,
    ) -> Result<Answer, ClientError> {
        let (gid, spec) = (gid.to_owned(), Some(spec.spec));
        let request =
            Request::AddBranch(AddBranchRequest { gid: gid.clone(), branch, spec, parent });
        self.done(gid, false, request).await
    }
}
