//! What may come in: limits and structure of what a caller asks for, judged before anything changes.

use std::collections::BTreeSet;

use crate::{
    Branch, BranchId, BranchSpec, Captures, Gid, GlobalTransaction, Labels, Mode, Options,
    Rejection, TriedBy, limit, mode::frontier,
};

/// Checks everything that begins a transaction.
pub(super) fn check_begin(
    gid: &Gid,
    mode: Mode,
    options: &Options,
    branches: &[BranchSpec],
    enlisted: bool,
) -> Result<(), Rejection> {
    check_options(options)?;
    let malformed = |what: &str| Err(Rejection::Malformed { gid: gid.clone(), what: what.into() });
    let caller_may_try = match mode {
        Mode::Tcc => enlisted,
        Mode::Saga => false,
        Mode::Xa => true,
    };
    if options.tried_by == TriedBy::Caller && !caller_may_try {
        return malformed(
            "tries are made by the caller, which only an enlisted TCC transaction and an XA \
             transaction allow. Begin it so, or let the coordinator make the calls",
        );
    }
    if options.second_phase_grace_ms > 0 && mode != Mode::Xa {
        return malformed(
            "second_phase_grace_ms leaves the second phase to the caller for a while, which only an \
             XA transaction allows. Leave it away, or begin an XA transaction",
        );
    }
    if enlisted {
        if !branches.is_empty() {
            return malformed(
                "an enlisted transaction begins without branches. Add them one by one, or declare \
                 the transaction",
            );
        }
        return Ok(());
    }
    within(
        "the number of branches of a declared transaction",
        branches.len(),
        1..=limit::BRANCHES_MAX,
        "Name every branch at once, split the work, or begin it enlisted and add branches",
    )?;
    for (index, spec) in branches.iter().enumerate() {
        let others = 1..=branches.len();
        check_spec(gid, mode, spec, index + 1, others)?;
    }
    check_payloads(branches.iter().map(|spec| spec.payload.len()).sum())?;
    if branches.iter().filter(|spec| spec.pivot).count() > 1 {
        return malformed(SECOND_PIVOT);
    }
    if let Some(branch) = frontier::find_circle(branches, options.order) {
        return malformed(&format!(
            "{branch} waits for itself through the branches it comes after. Break the circle"
        ));
    }
    Ok(())
}

/// Checks a branch that comes to `transaction` as its next.
pub(super) fn check_addition(
    transaction: &GlobalTransaction,
    spec: &BranchSpec,
) -> Result<(), Rejection> {
    let branches: &[Branch] = &transaction.branches;
    let number = branches.len() + 1;
    within(
        "the number of branches of a transaction",
        number,
        1..=limit::BRANCHES_MAX,
        "Split the work into several transactions",
    )?;
    check_spec(&transaction.gid, transaction.mode, spec, number, 1..=branches.len())?;
    check_payloads(payload_bytes(transaction) + spec.payload.len())?;
    if spec.pivot && branches.iter().any(|branch| branch.spec.pivot) {
        return Err(Rejection::Malformed {
            gid: transaction.gid.clone(),
            what: SECOND_PIVOT.into(),
        });
    }
    Ok(())
}

/// Checks what the submit of `transaction` says of its confirms.
pub(super) fn check_captures(
    transaction: &GlobalTransaction,
    captures: &Captures,
) -> Result<(), Rejection> {
    let malformed = |what| Err(Rejection::Malformed { gid: transaction.gid.clone(), what });
    if !captures.is_empty() && transaction.mode != Mode::Tcc {
        return malformed(
            "captures say what confirms carry, which only a TCC transaction has. Leave them away"
                .to_owned(),
        );
    }
    for (branch, payload) in captures.iter() {
        if transaction.branch(branch).is_none() {
            let count = transaction.branches.len();
            return malformed(format!(
                "it has no {branch} to capture; its branches are b1 to b{count}"
            ));
        }
        check_payload(payload.len())?;
    }
    check_payloads(payload_bytes(transaction) + captures.payload_bytes())
}

/// Bytes of all payloads that `transaction` holds.
fn payload_bytes(transaction: &GlobalTransaction) -> usize {
    let of_branches = transaction.branches.iter().map(|branch| branch.spec.payload.len());
    of_branches.sum::<usize>() + transaction.captures.payload_bytes()
}

const SECOND_PIVOT: &str = "more than one branch is a pivot. Mark the one step after which there \
                            is no way back";

/// Checks one branch, which has this `number` and may wait for the `others` but itself.
fn check_spec(
    gid: &Gid,
    mode: Mode,
    spec: &BranchSpec,
    number: usize,
    others: std::ops::RangeInclusive<usize>,
) -> Result<(), Rejection> {
    check_payload(spec.payload.len())?;
    let malformed = |what: String| Err(Rejection::Malformed { gid: gid.clone(), what });
    if spec.pivot && mode != Mode::Saga {
        return malformed(format!(
            "b{number} is a pivot, which only a Saga has. Leave the mark away, or begin a Saga"
        ));
    }
    let mut named = BTreeSet::new();
    for &BranchId(after) in spec.after.as_deref().unwrap_or_default() {
        let position = usize::try_from(after).unwrap_or(usize::MAX);
        if position == number || !others.contains(&position) {
            let remedy = if others.is_empty() {
                "It is the first and can wait for none".to_owned()
            } else {
                format!("Name others of b{} to b{}", others.start(), others.end())
            };
            return malformed(format!("b{number} comes after b{after}, which it cannot. {remedy}"));
        }
        if !named.insert(after) {
            return malformed(format!("b{number} comes after b{after} twice. Name it once"));
        }
    }
    Ok(())
}

fn check_payload(bytes: usize) -> Result<(), Rejection> {
    within(
        "the payload of a branch, in bytes,",
        bytes,
        0..=limit::PAYLOAD_BYTES_MAX,
        "Send a reference to the data instead of the data",
    )
}

fn check_payloads(bytes: usize) -> Result<(), Rejection> {
    within(
        "the payload of all branches, in bytes,",
        bytes,
        0..=limit::PAYLOADS_BYTES_MAX,
        "Send references to the data instead of the data",
    )
}

fn check_options(options: &Options) -> Result<(), Rejection> {
    let Options { timeout_ms, call_timeout_ms, retry, headers, tags, .. } = options;
    within(
        "timeout_ms",
        *timeout_ms,
        1..=limit::TIMEOUT_MS_MAX,
        "Give the time from begin to decision in milliseconds, a day at most",
    )?;
    within(
        "call_timeout_ms",
        *call_timeout_ms,
        1..=*timeout_ms,
        "One call cannot take longer than the transaction: lower it, or raise timeout_ms",
    )?;
    within(
        "the ceiling of the pauses between attempts, in ms,",
        retry.ceiling_ms,
        0..=limit::TIMEOUT_MS_MAX,
        "Give a pause in milliseconds, a day at most",
    )?;
    within(
        "the first pause between attempts, in ms,",
        retry.first_ms,
        0..=retry.ceiling_ms,
        "The first pause is the shortest: lower it, or raise the ceiling",
    )?;
    within(
        "second_phase_grace_ms",
        options.second_phase_grace_ms,
        0..=limit::SECOND_PHASE_GRACE_MS_MAX,
        "Give the time in which the caller carries out the second phase itself, 10 s at most",
    )?;
    // The context of a trace is a short one more.
    let (number, size) = ("the number of headers", "a header's name and value, in bytes,");
    check_labels((number, headers.len()), size, headers.others())?;
    check_labels(("the number of tags", tags.len()), "a tag's name and value, in bytes,", tags)
}

fn check_labels(
    (number, count): (&'static str, usize),
    size: &'static str,
    labels: &Labels,
) -> Result<(), Rejection> {
    within(number, count, 0..=limit::LABELS_MAX, "Keep those that are needed")?;
    labels.iter().try_for_each(|(name, value)| {
        within(
            size,
            name.len() + value.len(),
            0..=limit::LABEL_BYTES_MAX,
            "Shorten it; large data belongs into a payload",
        )
    })
}

fn within<N>(
    what: &'static str,
    measured: N,
    allowed: std::ops::RangeInclusive<N>,
    remedy: &'static str,
) -> Result<(), Rejection>
where
    N: Copy + PartialOrd + TryInto<u64> + std::fmt::Display,
{
    if allowed.contains(&measured) {
        return Ok(());
    }
    Err(Rejection::OutOfRange {
        what,
        measured: measured.try_into().unwrap_or(u64::MAX),
        allowed: format!("{} to {}", allowed.start(), allowed.end()),
        remedy,
    })
}
