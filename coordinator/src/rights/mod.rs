//! Who makes a request and whether it may: at every door, for every request, and for every branch within it.
//!
//! A door finds out who is at the other end ([`Shown`]), looks up the right that the RPC or the route needs, and turns away who
//! lacks it. The desk then judges the request itself by the same words that are carried out: each branch's participant, and
//! whose transaction it is.

mod http_guard;
mod judge;
mod rpc_guard;
mod shown;
mod turnstile;

pub(crate) use http_guard::guard;
pub(crate) use judge::{allow, not_yours, owned, stamp};
pub(crate) use rpc_guard::RpcGuard;
pub(crate) use shown::{Shown, require};
pub(crate) use turnstile::{enter, mistaken};
