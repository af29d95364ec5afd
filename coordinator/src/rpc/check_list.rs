//! Which open and recent transactions to list, as callers write it: checked, all findings at once.

use holdfast_proto::v1;
use holdfast_txn::{Gid, Timestamp};

use super::{
    fault::{Fault, Findings},
    show,
};
use crate::{config, history, listing::Wanted};

/// Transactions on a page, for a caller who does not say.
const LIST_DEFAULT: u32 = 100;

/// A page that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) wanted: Wanted,
    pub(crate) after: Option<Gid>,
    pub(crate) limit: usize,
}

/// Checks which transactions to list.
/// # Errors
/// HF2301.
pub(crate) fn check_list(request: &v1::ListRequest) -> Result<Listing, Fault> {
    let mut findings = Findings::default();
    let mut statuses = Vec::new();
    if request.statuses.len() > holdfast_txn::Status::ALL.len() {
        findings.add("statuses", format_args!("{} of them; there are 9", request.statuses.len()));
    } else {
        for number in &request.statuses {
            match v1::Status::try_from(*number).ok().and_then(show::status_from_wire) {
                Some(status) => statuses.push(status),
                None => findings
                    .add("statuses", format_args!("{number} is no status; allowed are 1 to 9")),
            }
        }
    }
    let after = match request.after_gid.as_str() {
        "" => None,
        text => findings.take("after_gid", Gid::parse(text)),
    };
    let most = config::limit::LIST_MAX;
    let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit } as usize;
    if limit > most {
        findings.add("limit", format_args!("{limit}, allowed is 1 to {most}"));
    }
    let narrow = history::check_narrow(&mut findings, &as_search(request));
    findings.verdict()?;
    let wanted = Wanted {
        statuses,
        modes: request.modes.clone(),
        participant: narrow.participant,
        tags: narrow.tags,
        amount: narrow.amount,
        from: Timestamp(request.from_ms),
        until: Some(Timestamp(request.until_ms)).filter(|until| until.0 > 0),
    };
    Ok(Listing { wanted, after, limit })
}

/// The same filter, of the history.
fn as_search(request: &v1::ListRequest) -> v1::SearchHistoryRequest {
    v1::SearchHistoryRequest {
        modes: request.modes.clone(),
        participant: request.participant.clone(),
        tags: request.tags.clone(),
        amount_min: request.amount_min.clone(),
        amount_max: request.amount_max.clone(),
        from_ms: request.from_ms,
        until_ms: request.until_ms,
        ..Default::default()
    }
}
