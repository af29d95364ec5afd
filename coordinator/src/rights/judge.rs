//! Judges a request by what is in it: its kind, each branch's participant, and whose transaction it is about.

use holdfast_proto::{
    Pairs,
    v1::{self, exchange_request::Request},
};
use holdfast_security::{Caller, Right, Scope};
use holdfast_txn::GlobalTransaction;

use super::shown::{refused, require};
use crate::rpc::fault::{Class, Fault};

/// The header that says whose transaction it is, carried by every branch call. Nobody but the door sets it.
pub(crate) const TENANT_HEADER: &str = "holdfast-tenant";
/// Headers that begin so are ours to set.
const RESERVED: &str = "holdfast-";

/// The right that a request needs by its kind.
const fn right(request: &Request) -> Right {
    match request {
        Request::Submit(_)
        | Request::Begin(_)
        | Request::AddBranch(_)
        | Request::SubmitBegun(_)
        | Request::Finish(_) => Right::Transact,
        Request::RollBack(_) => Right::RollBack,
        Request::Get(_) | Request::Wait(_) => Right::Read,
        Request::Retry(_) | Request::Operate(_) => Right::Operate,
    }
}

/// Whether `caller` may ask this at all, with every participant in it; how far its right reaches.
/// # Errors
/// HF2601, HF2602; HF2603: a branch names a participant that is not on the caller's list.
pub(crate) fn allow(caller: &Caller, request: &Request) -> Result<Scope, Fault> {
    let scope = require(caller, right(request))?;
    let branches: &[v1::BranchSpec] = match request {
        Request::Submit(submit) => &submit.branches,
        Request::AddBranch(add) => add.spec.as_slice(),
        Request::Begin(_)
        | Request::SubmitBegun(_)
        | Request::RollBack(_)
        | Request::Get(_)
        | Request::Wait(_)
        | Request::Finish(_)
        | Request::Retry(_)
        | Request::Operate(_) => &[],
    };
    match branches.iter().position(|branch| !caller.may_call(&branch.participant)) {
        None => Ok(scope),
        Some(at) => {
            let shown: String = branches[at].participant.chars().take(64).collect();
            Err(refused(
                Class::Denied,
                "HF2603",
                format!(
                    "nothing was done: branch {} names participant {shown:?}, and {} may not use it. Have it listed under participants in the access file",
                    at + 1,
                    caller.name
                ),
            ))
        }
    }
}

/// Writes into a new transaction whose it is; what the caller wrote there itself is gone.
pub(crate) fn stamp(caller: &Caller, request: &mut Request) {
    let Some(tenant) = &caller.tenant else { return };
    let options = match request {
        Request::Submit(submit) => &mut submit.options,
        Request::Begin(begin) => &mut begin.options,
        Request::AddBranch(_)
        | Request::SubmitBegun(_)
        | Request::RollBack(_)
        | Request::Get(_)
        | Request::Wait(_)
        | Request::Finish(_)
        | Request::Retry(_)
        | Request::Operate(_) => return,
    };
    let options = options.get_or_insert_default();
    let mut headers = Pairs::from(std::mem::take(&mut options.headers));
    headers.replace(TENANT_HEADER, tenant, is_reserved);
    options.headers = headers.into();
}

fn is_reserved(header: &str) -> bool {
    let start = header.as_bytes().get(..RESERVED.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(RESERVED.as_bytes()))
}

/// Whether `known` is the caller's own.
pub(crate) fn owned(caller: &Caller, known: &GlobalTransaction) -> bool {
    caller.owns(known.options.headers.others().get(TENANT_HEADER))
}

/// HF2604: it is somebody else's.
pub(crate) fn not_yours(caller: &Caller) -> Fault {
    let words = format!(
        "nothing was done: the transaction is not of {}'s tenant. Ask with the identity that began it",
        caller.name
    );
    refused(Class::Denied, "HF2604", words)
}

#[cfg(test)]
mod tests {
    use holdfast_security::{Participants, Role};
    use proptest::prelude::*;

    use super::*;

    fn app(participants: &[&str]) -> Caller {
        let words: Vec<String> = participants.iter().map(|word| (*word).to_owned()).collect();
        Caller {
            name: "user/alice".to_owned(),
            roles: [Role::App].into(),
            tenant: Some("retail".to_owned()),
            participants: Participants::of(&words),
            serves: None,
            expires_at_ms: None,
        }
    }

    fn submit(participants: &[String]) -> Request {
        let branch = |participant: &String| v1::BranchSpec {
            participant: participant.clone(),
            ..v1::BranchSpec::default()
        };
        let branches = participants.iter().map(branch).collect();
        Request::Submit(v1::SubmitRequest { branches, ..v1::SubmitRequest::default() })
    }

    proptest! {
        #[test]
        fn one_participant_that_is_not_listed_among_any_number_is_refused(
            count in 1_usize..40,
            at in 0_usize..40,
            stranger in "(depos|deposits|loyalty|deposit@|@deposit|Deposit|deposit/x|)(@[a-z0-9-]{1,8})?",
        ) {
            let caller = app(&["deposit", "fees@shard-1"]);
            let mut participants: Vec<String> = (0..count)
                .map(|n| if n % 2 == 0 { format!("deposit@shard-{n}") } else { "fees@shard-1".to_owned() })
                .collect();
            prop_assert!(allow(&caller, &submit(&participants)).is_ok());
            participants[at % count] = stranger.clone();
            let listed = stranger == "deposit@" || stranger.starts_with("deposit@");
            let verdict = allow(&caller, &submit(&participants));
            match verdict {
                Ok(_) => prop_assert!(listed, "{stranger:?} was let through"),
                Err(fault) => prop_assert_eq!(fault.code.as_str(), "HF2603"),
            }
        }

        #[test]
        fn the_tenant_is_the_callers_whatever_the_request_says(
            name in "[Hh][Oo][Ll][Dd][Ff][Aa][Ss][Tt]-[Tt][Ee][Nn][Aa][Nn][Tt]",
            said in "[a-z]{1,12}",
        ) {
            let headers: Pairs = [(&*name, &*said), ("traceparent", "00-1-2-3")].into_iter().collect();
            let options = v1::Options { headers: headers.into(), ..v1::Options::default() };
            let begin = v1::BeginRequest { options: Some(options), ..v1::BeginRequest::default() };
            let mut request = Request::Begin(begin);
            stamp(&app(&[]), &mut request);
            let Request::Begin(v1::BeginRequest { options: Some(options), .. }) = request else {
                return Err(TestCaseError::fail("it is the same kind"));
            };
            let headers = Pairs::from(options.headers);
            prop_assert_eq!(headers.len(), 2);
            prop_assert_eq!(headers.get(TENANT_HEADER), Some("retail"));
        }
    }

    #[test]
    fn dev_is_stamped_with_nothing() {
        let mut request = submit(&["deposit".to_owned()]);
        let before = request.clone();
        stamp(&Caller::dev(), &mut request);
        assert_eq!(request, before);
    }
}
