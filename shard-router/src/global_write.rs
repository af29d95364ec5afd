//! Where a transaction that needs a second source is decided about. Today it is refused, before anything has happened there.

use crate::{refusal::Refusal, worker::Worker};

/// A transaction that uses source `from` has a statement for source `to`.
/// # Errors
/// HF3210 always: one local transaction cannot reach two sources.
pub(crate) fn second_source(
    worker: &Worker,
    from: usize,
    to: usize,
    pinned: Option<&'static str>,
) -> Result<(), Refusal> {
    let name = |source: usize| worker.sources()[source].name().to_owned();
    let (from, to) = (name(from), name(to));
    Err(match pinned {
        Some(why) => Refusal::new(
            "HF3211",
            "0A000",
            format!(
                "the session is tied to source {from} by {why}; this statement is for source {to}"
            ),
            "Use another session, or DISCARD ALL first",
        ),
        None => Refusal::new(
            "HF3210",
            "0A000",
            format!("the transaction uses source {from}; this statement is for source {to}"),
            "Use one transaction for each shard, or a global transaction of the coordinator",
        ),
    })
}
