//! The branch mind: one verdict table for repeats, empty cancels and late tries.

mod op;

pub use op::{BadOp, Op};
