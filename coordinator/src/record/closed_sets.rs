//! The closed sets of the machine and their numbers in a record.

use holdfast_proto::v1;
use holdfast_txn::{BranchState, Decision, Mode, Op, Order, Recovery, Status, TriedBy};

use super::RecordError;

/// A closed set with a number for each member.
pub(super) trait Numbered: Sized + Copy {
    const FIELD: &'static str;
    fn number(self) -> i32;
    fn of_number(number: i32) -> Option<Self>;

    /// The member with this number.
    fn read(number: i32) -> Result<Self, RecordError> {
        Self::of_number(number).ok_or_else(|| RecordError::value(Self::FIELD, number))
    }

    /// The member with this number, where 0 stands for none.
    fn read_optional(number: i32) -> Result<Option<Self>, RecordError> {
        if number == 0 { Ok(None) } else { Self::read(number).map(Some) }
    }
}

macro_rules! numbered {
    ($ours:ident, $field:literal, $theirs:ident { $($member:ident = $number:ident),+ $(,)? }) => {
        impl Numbered for $ours {
            const FIELD: &'static str = $field;

            fn number(self) -> i32 {
                match self { $(Self::$member => v1::$theirs::$number as i32),+ }
            }

            fn of_number(number: i32) -> Option<Self> {
                match v1::$theirs::try_from(number).ok()? {
                    $(v1::$theirs::$number => Some(Self::$member),)+
                    v1::$theirs::Unspecified => None,
                }
            }
        }
    };
}

numbered!(Mode, "mode", Mode { Tcc = Tcc, Saga = Saga, Xa = Xa });
numbered!(
    Status,
    "status",
    Status {
        Active = Active,
        Trying = Trying,
        Running = Running,
        Committing = Committing,
        RollingBack = RollingBack,
        Compensating = Compensating,
        Committed = Committed,
        RolledBack = RolledBack,
        NeedsAttention = NeedsAttention,
    }
);
numbered!(
    Op,
    "op",
    Op {
        Try = Try,
        Confirm = Confirm,
        Cancel = Cancel,
        Action = Action,
        Compensate = Compensate,
        Prepare = Prepare,
        Commit = Commit,
        RollBack = RollBack,
    }
);
numbered!(Order, "order", Order { Sequential = Sequential, Concurrent = Concurrent });
numbered!(Recovery, "recovery", Recovery { Backward = Backward, Forward = Forward });
numbered!(TriedBy, "tries", CalledBy { Coordinator = Coordinator, Caller = Caller });
numbered!(Decision, "decision", RecordedDecision { Commit = Commit, RollBack = RollBack });
numbered!(
    BranchState,
    "branch state",
    RecordedBranchState {
        Pending = Pending,
        Done = Done,
        Refused = Refused,
        Confirmed = Confirmed,
        Undone = Undone,
    }
);
