//! Who is at the other end and what they may do: names in certificates, tokens, roles, rights, TLS.
//!
//! ```text
//! connection ─► gate (caps, time limits, TLS 1.3) ─► Peer: a name in a certificate, nobody, or dev
//! request    ─► Access: Peer + bearer token ─► Caller: roles, tenant, participants, service
//!            ─► right: the exact RPC or route ─► Right ─► how far it reaches for the Caller's roles
//! ```
//!
//! # What is promised
//!
//! - A connection is named by exactly one URI in a certificate that this cluster's authority signed: `holdfast://bank/node/1`.
//!   A client knows a node by the same name and not by its address, so nodes may move.
//! - TLS 1.3 alone, by rustls and ring; no resumption, so that who was shut out stays out. Towards PostgreSQL, 1.2 as well.
//! - What has no row in the table of rights is refused to everybody.
//! - Certificates, keys and the access file are read again while running; files with mistakes change nothing.
//! - Whatever arrives costs at most its own connection: handshakes are bounded in number and time, and the oldest that is not
//!   done makes room for the newest.
//!
//! # What is deliberately absent
//!
//! Lists of revoked certificates (an entry without roles in the access file shuts a name out; the authority makes short-lived
//! ones), a second scheme of names, any decision by a part of a path.

pub mod access;
pub mod authority;
pub mod binding;
mod caller;
pub mod certificate;
mod connector;
mod credentials;
mod gate;
mod name;
mod read_ahead;
pub mod right;
mod role;
mod server_tls;
mod stream;
pub mod token;
mod verify;

pub use access::{Access, BadAccess, Denied};
pub use authority::Authority;
pub use caller::{Caller, EVERYBODY, Participants, covers};
pub use connector::{ConnectError, Connection, Connector, dial};
pub use credentials::{
    BadCredentials, ClientAuth, Credentials, EXPIRY_WARNING_S, Files, Pair, REMIND, expiry_warning,
    keep_fresh, keep_looking, read_pair,
};
pub use gate::{CONNECTIONS_MAX, Door, Gate, HANDSHAKE_MAX, HANDSHAKES_MAX, Incoming};
pub use name::{BadName, NAME_BYTES_MAX, Name, Subject, WORD_MAX};
pub use right::{Right, Scope};
pub use role::Role;
pub use server_tls::{ServerTls, ServerTlsStream};
pub use stream::{Peer, Secured};
pub use token::Token;
