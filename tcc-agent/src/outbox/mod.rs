//! Transactional messages: a service writes a row in its own local transaction, and a [`Relay`] publishes it.
//!
//! [`OUTBOX_SQL`] is the table and `holdfast.publish`; [`holdfast_branch::outbox`] is the mind, which says what may go next; `table` is
//! every statement; `publish` is one message as a global transaction; `relay` drives them. A message is a forward Saga of one branch
//! whose gid comes from the row's id: nothing is written to a coordinator before the local transaction has committed, and a repeat is
//! the same transaction. There is no broker here: whoever takes messages is a participant, whose barrier gives each its effect once.

mod publish;
mod relay;
mod table;

pub use publish::{BadRoutes, Routes};
pub use relay::{Relay, RelayError, RelayState};
pub use table::{BLOCKED_SHOWN_MAX, Blocked, OUTBOX_SQL, Standing, install_outbox, standing};
