//! The bank's participants, one file each.

mod deposit;
mod instruction;

pub use deposit::Deposit;
pub use instruction::{BadPayload, DepositInstruction};
