//! Operators' acts on many transactions at once: each is one act on one gid, with its own judgment and its own audit record.
//!
//! Only what loses no money by mistake: what needs attention may go on. A mark, an abandonment and its approval stay one gid at a time.

use std::time::Duration;

use futures::future::join_all;
use holdfast_proto::v1::{
    self, OperateRequest, OperatorAct, RetriedTransaction, RetryManyReply, RetryManyRequest,
    exchange_request::Request,
};
use holdfast_security::Right;
use holdfast_txn::{Gid, GlobalTransaction, Participant, Status, mode::View};
use tokio::time::Instant;

use super::{
    check,
    desk::{Desk, Hop, Told},
    fault::{Fault, Findings},
};
use crate::{ProposeError, config::limit::LIST_MAX, listing::Wanted, rights};

/// Transactions in one request, if it does not say.
const DEFAULT: usize = 100;
/// Acts under way at once.
const AT_ONCE: usize = 32;
/// No further act is begun when so much time is over: what is left is named by `next_after_gid`.
const TIME_MAX: Duration = Duration::from_secs(15);

/// A request that was checked.
struct Asked {
    participant: Option<Participant>,
    after: Option<Gid>,
    limit: usize,
}

impl Desk {
    /// Lets transactions that need attention go on, in gid order, at most as many as asked for; or says what would become of them. One that is refused
    /// or fails keeps no other from going on.
    /// # Errors
    /// HF2301, HF2602; the node is stopping. Never because of a transaction.
    pub(crate) async fn retry_many(
        &self,
        request: &RetryManyRequest,
        hop: Hop,
    ) -> Result<RetryManyReply, Fault> {
        rights::require(self.caller(), Right::Operate)?;
        let asked = checked(request)?;
        self.signature(&request.dev_name)?;
        let began = Instant::now();
        let found = self.waiting(&asked, began).await;
        let (waiting, more) = found.map_err(|error| Fault::not_proposed(&error))?;
        let mut reply = RetryManyReply::default();
        for some in waiting.chunks(AT_ONCE) {
            // At least some are acted on, so that whoever goes on behind the last one comes to an end.
            if began.elapsed() > TIME_MAX && !reply.retried.is_empty() {
                let last = reply.retried.last().map(|last| last.gid.clone());
                reply.next_after_gid = last.unwrap_or_default();
                return Ok(reply);
            }
            let acts = some.iter().map(|known| async {
                let told = self.answer(operate(&known.gid, request), hop).await;
                retried(known, told)
            });
            reply.retried.extend(join_all(acts).await);
        }
        reply.next_after_gid = more.map(|gid| gid.to_string()).unwrap_or_default();
        Ok(reply)
    }

    /// What waits for people, as this node knows it: the leader of each judges again. And where to go on, if that is not all.
    async fn waiting(
        &self,
        asked: &Asked,
        began: Instant,
    ) -> Result<(Vec<GlobalTransaction>, Option<Gid>), ProposeError> {
        let mut waiting = Vec::new();
        let mut after = asked.after.clone();
        let wanted = Wanted { statuses: vec![Status::NeedsAttention], ..Wanted::default() };
        // A page that looked at all it may is short, and yet not the last. Each goes on behind the one before.
        loop {
            let left = asked.limit - waiting.len();
            let (page, next) =
                self.coordinator().list(&wanted, after.as_ref(), left.max(1)).await?;
            waiting.extend(page.into_iter().filter(|known| waits_for(known, asked)));
            let is_enough = waiting.len() >= asked.limit || began.elapsed() > TIME_MAX;
            if next.is_none() || is_enough {
                return Ok((waiting, next));
            }
            after = next;
            tokio::task::yield_now().await;
        }
    }
}

fn checked(request: &RetryManyRequest) -> Result<Asked, Fault> {
    let mut findings = Findings::default();
    check::reason(&mut findings, &request.reason);
    let participant = match request.participant.as_str() {
        "" => None,
        text => findings.take("participant", Participant::parse(text)),
    };
    let after = match request.after_gid.as_str() {
        "" => None,
        text => findings.take("after_gid", Gid::parse(text)),
    };
    let limit = if request.limit == 0 { DEFAULT } else { request.limit as usize };
    if limit > LIST_MAX {
        findings.add("limit", format_args!("{limit}, allowed is 1 to {LIST_MAX}"));
    }
    findings.verdict()?;
    Ok(Asked { participant, after, limit })
}

/// Whether something is still outstanding at the participant that was asked for, if one was.
fn waits_for(known: &GlobalTransaction, asked: &Asked) -> bool {
    let Some(participant) = &asked.participant else { return true };
    let rules = known.mode.rules();
    let Some(op) = rules.op(known, known.phase()) else { return false };
    let view = View::of(known);
    known.branches.iter().enumerate().any(|(index, branch)| {
        branch.spec.participant == *participant && rules.awaits(&view, index, op)
    })
}

fn operate(gid: &Gid, request: &RetryManyRequest) -> Request {
    Request::Operate(OperateRequest {
        gid: gid.to_string(),
        act: OperatorAct::Retry.into(),
        reason: request.reason.clone(),
        dry_run: request.dry_run,
        dev_name: request.dev_name.clone(),
        // What comes of it is looked at afterwards; here only that it goes on is waited for.
        wait: v1::Wait::None.into(),
        ..OperateRequest::default()
    })
}

fn retried(known: &GlobalTransaction, told: Result<Told, Fault>) -> RetriedTransaction {
    let mut one = RetriedTransaction {
        gid: known.gid.to_string(),
        waited_because: known.reason.clone().unwrap_or_default(),
        ..RetriedTransaction::default()
    };
    match told {
        Ok(told) => {
            let then = told.reply.transaction.as_ref().map(v1::Transaction::status);
            one.status = then.unwrap_or_default().into();
        }
        Err(fault) => {
            one.kind = fault.class.kind().into();
            (one.code, one.message) = (fault.code, fault.message);
        }
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RetryManyRequest {
        RetryManyRequest { reason: "thawed".to_owned(), ..RetryManyRequest::default() }
    }

    #[test]
    fn as_many_as_allowed_are_asked_for_and_one_more_is_not() {
        assert_eq!(checked(&request()).ok().map(|asked| asked.limit), Some(DEFAULT));
        let limit = |limit| RetryManyRequest { limit, ..request() };
        let most = u32::try_from(LIST_MAX).unwrap();
        assert_eq!(checked(&limit(most)).ok().map(|asked| asked.limit), Some(LIST_MAX));
        let fault = checked(&limit(most + 1)).err().unwrap();
        assert_eq!(fault.code, "HF2301");
        assert!(fault.message.contains("limit: 1001, allowed is 1 to 1000"), "{fault:?}");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let bad = RetryManyRequest {
            participant: "NO NAME".to_owned(),
            after_gid: "no gid".to_owned(),
            ..RetryManyRequest::default()
        };
        let told = checked(&bad).err().unwrap().message;
        for word in ["reason: missing", "participant:", "after_gid:"] {
            assert!(told.contains(word), "{told}");
        }
    }
}
