//! Operators' acts and what the machine keeps beside transactions, as records, both ways.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_proto::v1::{self, RecordedActKind as ActKind, RecordedRemedyKind as RemedyKind};
use holdfast_txn::{
    Act, AuditRecord, Books, BranchId, Command, Deed, Gid, Proposal, Remedy, RulesVersion,
    Timestamp, Trail,
};

use super::{RecordError, gid, snapshot::digest};

pub(super) fn act_to_record(act: Act, by: &str, reason: &str) -> v1::RecordedAct {
    let (kind, remedy) = match act {
        Act::Retry => (ActKind::Retry, None),
        Act::RollBack => (ActKind::RollBack, None),
        Act::Propose(remedy) => (ActKind::Propose, Some(remedy_to_record(remedy))),
        Act::Approve => (ActKind::Approve, None),
    };
    v1::RecordedAct { kind: kind.into(), remedy, by: by.to_owned(), reason: reason.to_owned() }
}

pub(super) fn act_of_record(gid: Gid, record: v1::RecordedAct) -> Result<Command, RecordError> {
    let act = match (ActKind::try_from(record.kind), record.remedy) {
        (Ok(ActKind::Retry), None) => Act::Retry,
        (Ok(ActKind::RollBack), None) => Act::RollBack,
        (Ok(ActKind::Propose), Some(remedy)) => Act::Propose(remedy_of_record(&remedy)?),
        (Ok(ActKind::Approve), None) => Act::Approve,
        _ => return Err(RecordError::value("act", record.kind)),
    };
    Ok(Command::Operate { gid, act, by: record.by, reason: record.reason })
}

/// The oldest format that can say `remedy`.
pub(super) fn format_of(remedy: Remedy) -> u32 {
    match remedy {
        Remedy::MarkDone(_) | Remedy::BelieveRefused(_) | Remedy::Abandon => 3,
        Remedy::MarkRefused(_) => 5,
    }
}

/// The oldest format that can say `books`.
pub(super) fn format_of_all(books: &Books) -> u32 {
    let of_proposals = books.proposals.values().map(|open| format_of(open.remedy));
    of_proposals.max().unwrap_or(if books.is_empty() { 1 } else { 3 })
}

fn remedy_to_record(remedy: Remedy) -> v1::RecordedRemedy {
    let (kind, branch) = match remedy {
        Remedy::MarkDone(BranchId(branch)) => (RemedyKind::MarkDone, branch),
        Remedy::MarkRefused(BranchId(branch)) => (RemedyKind::MarkRefusedAndUndo, branch),
        Remedy::BelieveRefused(BranchId(branch)) => (RemedyKind::MarkRefused, branch),
        Remedy::Abandon => (RemedyKind::Abandon, 0),
    };
    v1::RecordedRemedy { kind: kind.into(), branch }
}

fn remedy_of_record(record: &v1::RecordedRemedy) -> Result<Remedy, RecordError> {
    match (RemedyKind::try_from(record.kind), record.branch) {
        (Ok(RemedyKind::MarkDone), branch) => Ok(Remedy::MarkDone(BranchId(branch))),
        (Ok(RemedyKind::MarkRefusedAndUndo), branch) => Ok(Remedy::MarkRefused(BranchId(branch))),
        (Ok(RemedyKind::MarkRefused), branch) => Ok(Remedy::BelieveRefused(BranchId(branch))),
        (Ok(RemedyKind::Abandon), 0) => Ok(Remedy::Abandon),
        _ => Err(RecordError::value("remedy", record.kind)),
    }
}

pub(super) fn rules_of_record(record: v1::RecordedRules) -> Command {
    let v1::RecordedRules { text, expected, by, reason } = record;
    Command::SetRules { text, expected, by, reason }
}

pub(super) fn deed_to_record(deed: &Deed) -> v1::RecordedDeed {
    let Deed { by, act, about, words } = deed.clone();
    v1::RecordedDeed { by, act, about, words }
}

pub(super) fn deed_of_record(record: v1::RecordedDeed) -> Deed {
    let v1::RecordedDeed { by, act, about, words } = record;
    Deed { by, act, about, words }
}

pub(super) fn books_to_record(books: &Books) -> v1::RecordedBooks {
    let Books { rules, trail, proposals } = books;
    let version = |version: &RulesVersion| {
        let RulesVersion { epoch, text, at, by, reason } = version.clone();
        v1::RecordedRulesVersion { epoch, text, at_ms: at.0, by, reason }
    };
    let audit = |record: &AuditRecord| v1::RecordedAudit {
        number: record.number,
        at_ms: record.at.0,
        deed: Some(deed_to_record(&record.deed)),
        before: Bytes::copy_from_slice(&record.before.0),
    };
    let proposal = |(gid, proposal): (&Gid, &Proposal)| v1::RecordedProposal {
        gid: gid.to_string(),
        remedy: Some(remedy_to_record(proposal.remedy)),
        by: proposal.by.clone(),
        reason: proposal.reason.clone(),
        at_ms: proposal.at.0,
        until_ms: proposal.until.0,
    };
    v1::RecordedBooks {
        rules: rules.iter().map(|one| version(one)).collect(),
        audit_count: trail.count,
        audit_head: Bytes::copy_from_slice(&trail.head.0),
        audit: trail.kept.iter().map(|one| audit(one)).collect(),
        proposals: proposals.iter().map(proposal).collect(),
    }
}

pub(super) fn books_of_record(record: v1::RecordedBooks) -> Result<Books, RecordError> {
    let version = |one: v1::RecordedRulesVersion| {
        let v1::RecordedRulesVersion { epoch, text, at_ms, by, reason } = one;
        RulesVersion { epoch, text, at: Timestamp(at_ms), by, reason }.into()
    };
    let audit = |one: v1::RecordedAudit| {
        let record = AuditRecord {
            number: one.number,
            at: Timestamp(one.at_ms),
            deed: deed_of_record(one.deed.ok_or(RecordError::Missing("deed"))?),
            before: digest("before", &one.before)?,
        };
        Ok::<_, RecordError>(record.into())
    };
    let proposal = |one: v1::RecordedProposal| {
        let remedy = one.remedy.ok_or(RecordError::Missing("remedy"))?;
        let proposal = Proposal {
            remedy: remedy_of_record(&remedy)?,
            by: one.by,
            reason: one.reason,
            at: Timestamp(one.at_ms),
            until: Timestamp(one.until_ms),
        };
        Ok::<_, RecordError>((gid(&one.gid)?, proposal))
    };
    let trail = Trail {
        count: record.audit_count,
        head: digest("audit_head", &record.audit_head)?,
        kept: record.audit.into_iter().map(audit).collect::<Result<_, _>>()?,
    };
    let proposals = record.proposals.into_iter().map(proposal);
    Ok(Books {
        rules: record.rules.into_iter().map(version).collect(),
        trail,
        proposals: proposals.collect::<Result<BTreeMap<_, _>, _>>()?,
    })
}
