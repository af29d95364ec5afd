//! What somebody has shown: a certificate with its connection, a token with a request. Judged anew at each request, so that an
//! entry that is taken away takes effect on streams that are open.

use std::sync::Arc;

use holdfast_security::{
    Access, Caller, Peer, Right, Scope, Token, access::Remembered, token::TokenHash,
};

use crate::{
    config::Security,
    rpc::fault::{Class, Fault},
};

/// What was shown, and by what it is judged. A copy is a count: each message of a stream has one.
#[derive(Clone, Debug)]
pub(crate) struct Shown(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: Peer,
    token: Option<(String, TokenHash)>,
    access: Access,
    remembered: Remembered,
}

impl Shown {
    /// What the connection's `peer` shows with a request whose header `authorization` is this.
    /// # Errors
    /// HF2601: the header holds no bearer token that has the shape of one.
    pub(crate) fn new(
        security: &Security,
        peer: Option<&Peer>,
        authorization: Option<&[u8]>,
    ) -> Result<Self, Fault> {
        let (peer, access) = match security {
            Security::DevPlaintext => (Peer::Dev, Access::empty()),
            // A connection without a mark came by no gate of ours: nobody.
            Security::MutualTls { access, .. } => {
                (peer.cloned().unwrap_or(Peer::Anonymous), access.clone())
            }
        };
        let token = match authorization.filter(|_| peer != Peer::Dev) {
            None => None,
            Some(header) => {
                let text =
                    std::str::from_utf8(header).ok().and_then(|text| text.strip_prefix("Bearer "));
                let token = text.and_then(|text| Token::parse(text).ok()).ok_or_else(bad_token)?;
                Some((token.id().to_owned(), token.hash()))
            }
        };
        Ok(Self(Arc::new(Inner { peer, token, access, remembered: Remembered::default() })))
    }

    /// Whether it is everybody in mode dev-plaintext.
    pub(crate) fn is_dev(&self) -> bool {
        self.0.peer == Peer::Dev
    }

    /// Who that is now. A token that is shown counts, also beside a certificate: nobody falls back to being somebody else.
    /// # Errors
    /// HF2601: the token is not valid, or not any more.
    pub(crate) fn caller(&self) -> Result<Arc<Caller>, Fault> {
        let Inner { peer, token, access, remembered } = &*self.0;
        match (token, peer) {
            (Some((id, hash)), _) => access.hashed(id, hash).map(Arc::new).map_err(|_| bad_token()),
            (None, Peer::Dev) => Ok(Arc::new(Caller::dev())),
            (None, Peer::Anonymous) => Ok(Arc::new(Caller::anonymous())),
            (None, Peer::Named(name)) => Ok(access.named_again(name, remembered)),
        }
    }
}

/// How far `right` reaches for `caller`.
/// # Errors
/// HF2601 or HF2602: not at all.
pub(crate) fn require(caller: &Caller, right: Right) -> Result<Scope, Fault> {
    match caller.scope(right) {
        Scope::None if caller.roles.is_empty() && caller.name == "anonymous" => {
            let words = "nothing was done: show a certificate of this cluster, or a token in the header authorization: Bearer";
            Err(refused(Class::Unauthenticated, "HF2601", words.to_owned()))
        }
        Scope::None => Err(refused(
            Class::Denied,
            "HF2602",
            format!(
                "nothing was done: {} has {}, which does not give the right {:?}. Ask for a role that does: docs/reference/rights.md",
                caller.name,
                caller.roles_words(),
                right.as_str()
            ),
        )),
        scope => Ok(scope),
    }
}

/// A refusal of who asks, counted.
pub(super) fn refused(class: Class, code: &'static str, words: String) -> Fault {
    metrics::counter!("holdfast_denied_total", "code" => code).increment(1);
    Fault::new(class, code, words)
}

fn bad_token() -> Fault {
    let words = format!("nothing was done: {}", holdfast_security::Denied::BadToken);
    refused(Class::Unauthenticated, "HF2601", words)
}
