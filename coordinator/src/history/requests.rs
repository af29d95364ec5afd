//! Searches as callers write them: checked, all findings at once; and what they are answered with.

use std::sync::Arc;

use holdfast_history::{Amount, AmountRange, Cursor, Figures, Page, Query, limit};
use holdfast_proto::v1::{self, SearchHistoryReply, SearchHistoryRequest};
use holdfast_txn::Participant;

use crate::rpc::fault::{Fault, Findings};

/// Transactions on a page, for a caller who does not say.
const LIMIT_DEFAULT: u32 = 100;
/// Statuses or modes that one search may name.
const WORDS_MAX: usize = 16;

/// Checks what to search for.
/// # Errors
/// HF2301.
pub(crate) fn check_search(request: &SearchHistoryRequest) -> Result<Query, Fault> {
    let mut findings = Findings::default();
    for (field, count, most) in [
        ("statuses", request.statuses.len(), WORDS_MAX),
        ("limit", request.limit as usize, limit::PAGE_MAX),
    ] {
        if count > most {
            findings.add(field, format_args!("{count}, allowed are {most}"));
        }
    }
    for status in request.statuses.iter().take(WORDS_MAX) {
        let known = v1::Status::try_from(*status);
        if !matches!(known, Ok(v1::Status::Committed | v1::Status::RolledBack)) {
            findings.add("statuses", "only committed and rolled_back are in the history; list the open ones by their status");
        }
    }
    let Narrow { participant, tags, amount } = check_narrow(&mut findings, request);
    let after = match request.cursor.as_str() {
        "" => None,
        text => {
            let cursor = Cursor::parse(text);
            if cursor.is_none() {
                findings.add("cursor", "is none; take next_cursor of the page before, as it is");
            }
            cursor
        }
    };
    findings.verdict()?;
    let limit = if request.limit == 0 { LIMIT_DEFAULT } else { request.limit };
    Ok(Query {
        statuses: request.statuses.clone(),
        modes: request.modes.clone(),
        participant: participant.map(|one| one.to_string()),
        tags,
        amount,
        from_ms: request.from_ms,
        until_ms: request.until_ms,
        after,
        limit: limit as usize,
    })
}

/// What narrows a search of the history and a list of open transactions alike.
pub(crate) struct Narrow {
    pub(crate) participant: Option<Participant>,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) amount: Option<AmountRange>,
}

/// Checks what a search and a list have in common: modes, participant, tags, amounts, times.
pub(crate) fn check_narrow(findings: &mut Findings, request: &SearchHistoryRequest) -> Narrow {
    for (field, count, most) in
        [("modes", request.modes.len(), WORDS_MAX), ("tags", request.tags.len(), limit::TAGS_MAX)]
    {
        if count > most {
            findings.add(field, format_args!("{count}, allowed are {most}"));
        }
    }
    for tag in request.tags.iter().take(limit::TAGS_MAX) {
        if tag.name.is_empty()
            || tag.name.len() + tag.value.len() > holdfast_txn::limit::LABEL_BYTES_MAX
        {
            let most = holdfast_txn::limit::LABEL_BYTES_MAX;
            findings.add(
                "tags",
                format_args!("give a name and a value of {most} bytes together at most"),
            );
        }
    }
    let participant = match request.participant.as_str() {
        "" => None,
        text => findings.take("participant", Participant::parse(text)),
    };
    if request.until_ms != 0 && request.until_ms <= request.from_ms {
        findings.add("until_ms", "is not behind from_ms; leave one of them away, or swap them");
    }
    let amount = amounts(findings, &request.amount_min, &request.amount_max);
    let tags = request.tags.iter().take(limit::TAGS_MAX);
    let tags = tags.map(|tag| (tag.name.clone(), tag.value.clone())).collect();
    Narrow { participant, tags, amount }
}

fn amounts(findings: &mut Findings, least: &str, most: &str) -> Option<AmountRange> {
    if least.is_empty() && most.is_empty() {
        return None;
    }
    let (Some(least), Some(most)) = (Amount::parse(least), Amount::parse(most)) else {
        findings.add(
            "amount_min, amount_max",
            "give both, as 50.00 EUR: at most 5 decimals, and a code of ISO 4217",
        );
        return None;
    };
    let range = AmountRange::new(least, most);
    if range.is_none() {
        findings.add("amount_max", "is below amount_min, or in another currency");
    }
    range
}

/// A page as callers see it.
pub(crate) fn shown(page: Page, node: u64, (figures, gaps): (Figures, u64)) -> SearchHistoryReply {
    // Mostly nobody else has the record, and then nothing is copied.
    let records = page.records.into_iter().map(Arc::unwrap_or_clone);
    let known = records.filter_map(|record| record.transaction);
    SearchHistoryReply {
        transactions: known.collect(),
        next_cursor: page.next.map(|next| next.to_string()).unwrap_or_default(),
        node,
        records: figures.records,
        oldest_ms: figures.oldest_ms,
        newest_ms: figures.newest_ms,
        gaps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut SearchHistoryRequest)) -> Result<Query, Fault> {
        let mut request = SearchHistoryRequest::default();
        change(&mut request);
        check_search(&request)
    }

    fn tag(bytes: usize) -> v1::Tag {
        v1::Tag { name: "t".into(), value: "v".repeat(bytes - 1) }
    }

    #[test]
    fn each_limit_holds_at_the_limit_and_not_one_past_it() {
        assert_eq!(with(|_| {}).unwrap().limit, 100);
        assert!(with(|r| r.limit = limit::PAGE_MAX as u32).is_ok());
        assert!(with(|r| r.tags = vec![tag(1_024); limit::TAGS_MAX]).is_ok());
        assert!(with(|r| (r.amount_min, r.amount_max) = ("1 EUR".into(), "1 EUR".into())).is_ok());
        for refused in [
            with(|r| r.limit = limit::PAGE_MAX as u32 + 1),
            with(|r| r.tags = vec![tag(1); limit::TAGS_MAX + 1]),
            with(|r| r.tags = vec![tag(1_025)]),
            with(|r| r.tags = vec![v1::Tag::default()]),
            with(|r| r.statuses = vec![v1::Status::Trying.into()]),
            with(|r| r.statuses = vec![7; WORDS_MAX + 1]),
            with(|r| r.participant = "Deposit".into()),
            with(|r| (r.from_ms, r.until_ms) = (7, 7)),
            with(|r| r.cursor = "x".into()),
            with(|r| r.amount_min = "1 EUR".into()),
            with(|r| (r.amount_min, r.amount_max) = ("2 EUR".into(), "1 EUR".into())),
            with(|r| (r.amount_min, r.amount_max) = ("1 EUR".into(), "2 USD".into())),
        ] {
            assert_eq!(refused.unwrap_err().code, "HF2301");
        }
    }
}
