//! Counts the requests of callers at a door against what operators decided about them.

use std::num::NonZeroU32;

use holdfast_security::{Caller, Right, Role};

use crate::{
    registry::{
        callers::{Bound, Pass, TurnedAway},
        store::Registry,
    },
    rpc::fault::{Class, Fault},
};

/// Lets a request of `caller` through that needs `right`; what it is given counts as under way until it is dropped.
///
/// Never counted: probes; members, since they speak for callers that were counted where they came in; streams, whose messages are
/// counted one by one or, of a session of an agent, are calls of ours.
/// # Errors
/// HF2607: it is one past a bound.
pub(crate) fn enter(
    registry: &Registry,
    caller: &Caller,
    right: Right,
) -> Result<Option<Pass>, Fault> {
    let member = caller.roles.contains(&Role::Node) && !caller.is_dev();
    let free = matches!(right, Right::Probe | Right::Serve | Right::Exchange | Right::Replicate);
    if member || free {
        return Ok(None);
    }
    registry.admit(&caller.name).map_err(|away| refused(caller, away))
}

fn refused(caller: &Caller, away: TurnedAway) -> Fault {
    let TurnedAway { bound, most, after_ms } = away;
    bound.counter().increment(1);
    let name = &caller.name;
    let why = match bound {
        Bound::Rate => format!("{name} may make {most} requests in a second of this node"),
        Bound::Concurrency => {
            format!(
                "{name} may have {most} requests under way at once at this node, and has as many"
            )
        }
        Bound::Breaker => {
            format!("the last {most} requests of {name}, or a probe behind them, were mistaken")
        }
    };
    let words = format!(
        "nothing was done: {why}. Come again in {after_ms} ms; the limit is changed by holdfast services limit-caller"
    );
    let mut fault = Fault::new(Class::Throttled, "HF2607", words);
    fault.retry_after_ms = u32::try_from(after_ms).ok().and_then(NonZeroU32::new);
    fault
}

/// Whether an answer says that the request itself was mistaken.
pub(crate) fn mistaken(class: Class) -> bool {
    matches!(class, Class::BadInput | Class::Denied)
}
