//! The branch mind: one verdict table for repeats, empty cancels and late tries; and, in [`outbox`], the mind of a relay.
//!
//! A participant is asked the same thing any number of times, in any order: a cancel may overtake its try, an answer may be
//! lost and the call repeated, two deliveries may run side by side. The barrier makes every operation take effect at most once
//! all the same. It keeps rows (gid, branch, op), written in the participant's own local transaction, and its whole wisdom is
//! three functions:
//!
//! - [`claims`]: which rows a call tries to write before anything else. The primary key lets only one local transaction have
//!   each; another one that wants the same row waits for its end. That closes every race.
//! - [`decide`]: what the rows that were there before say about the call: a [`Verdict`]; [`decide_anew`] where a refusal waits for people.
//! - [`settle`]: what becomes of the claimed rows once the participant has answered: a [`Settlement`].
//!
//! A cancel claims the rows of try and confirm as well: it blocks a try that comes late, and it and a confirm compete for one
//! row, so that never both take effect. A compensate claims the row of its action.
//!
//! ```
//! use holdfast_branch::{Op, Outcome, Record, Row, Verdict, claims, decide};
//!
//! // A cancel comes first. Nothing was recorded: it is an empty cancel, and the participant is not called.
//! assert_eq!(decide(Op::Cancel, &Record::default()), Verdict::Empty);
//!
//! // Its rows stay, so the try that comes behind it is late.
//! let record: Record =
//!     claims(Op::Cancel).iter().map(|&op| Row { op, by: Op::Cancel, outcome: Outcome::Done }).collect();
//! assert_eq!(decide(Op::Try, &record), Verdict::Late);
//! ```

#![warn(clippy::wildcard_enum_match_arm)]

mod barrier;
mod op;
pub mod outbox;

pub use barrier::{
    Disorder, LATE_CODE, LATE_MESSAGE, Outcome, Record, Row, Settlement, Verdict, claims, decide,
    decide_anew, settle,
};
pub use op::{BadOp, Op};
