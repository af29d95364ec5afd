//! Where a transaction that needs a second source is decided about. Today it is refused, before anything has happened there.

use holdfast_route::Access;

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

/// A statement for several sources writes, or reads within a transaction.
/// # Errors
/// HF3210 always: local transactions on several sources would not end alike, nor see the same moment.
pub(crate) fn several_sources(
    worker: &Worker,
    sources: &[usize],
    access: Access,
) -> Result<(), Refusal> {
    let names: Vec<_> = sources.iter().map(|source| worker.sources()[*source].name()).collect();
    let names = names.join(", ");
    Err(match access {
        Access::Read => Refusal::new(
            "HF3210",
            "0A000",
            format!("a statement within a transaction reads from sources {names}"),
            "Read outside of the transaction, or by a key",
        ),
        Access::Locking | Access::Write => Refusal::new(
            "HF3210",
            "0A000",
            format!("a statement writes to sources {names}, which no local transaction can"),
            "Write by a key, one shard at a time, or use a global transaction of the coordinator",
        ),
    })
}
