//! `holdfast tx retry --status needs-attention`: one act on each of many transactions, told one by one.

use std::process::ExitCode;

use holdfast_client::{
    Client, Status,
    wire::{ErrorKind, RetriedTransaction, RetryManyReply, RetryManyRequest},
};
use serde_json::json;

use crate::{
    exit::{self, Usage},
    output::{self, Output},
    tx::status_of,
};

/// Which of those that wait for people.
#[derive(Debug, clap::Args)]
pub(crate) struct Many {
    /// Every transaction of this status instead of one gid; only needs-attention can go on
    #[arg(long, value_name = "STATUS", conflicts_with = "gid", value_parser = status_of)]
    status: Option<Status>,
    /// Only those with something outstanding at this participant
    #[arg(
        long,
        value_name = "NAME",
        requires = "status",
        default_value = "",
        hide_default_value = true
    )]
    participant: String,
    /// Continue behind this gid
    #[arg(
        long,
        value_name = "GID",
        requires = "status",
        default_value = "",
        hide_default_value = true
    )]
    after: String,
    /// How many
    #[arg(long, requires = "status", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
}

/// Lets them go on, or shows what would become of each.
/// # Errors
/// Another status was named; the request as a whole was refused, or nothing was done.
pub(crate) async fn retry(
    client: &Client,
    many: Many,
    reason: String,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    if many.status != Some(Status::NeedsAttention) {
        let words = "--status: only what needs attention can be told to go on; write --status needs-attention";
        return Err(Usage(words.to_owned()).into());
    }
    let request = RetryManyRequest {
        participant: many.participant,
        after_gid: many.after,
        limit: many.limit,
        reason,
        dry_run,
        dev_name: String::new(),
    };
    let reply = client.retry_many(request).await?;
    show(&reply, dry_run, output)?;
    if dry_run && !reply.retried.is_empty() {
        exit::tell(&"Nothing was done; so it would be.");
    }
    Ok(ended(&reply.retried))
}

fn show(reply: &RetryManyReply, dry_run: bool, output: Output) -> anyhow::Result<()> {
    let failed = reply.retried.iter().filter(|one| !one.code.is_empty()).count();
    let went_on = reply.retried.len() - failed;
    let next = Some(&reply.next_after_gid).filter(|gid| !gid.is_empty());
    if output == Output::Json {
        return output::print_json(&json!({
            "dry_run": dry_run,
            "went_on": went_on,
            "failed": failed,
            "retried": reply.retried.iter().map(json_of).collect::<Vec<_>>(),
            "next_after": next,
        }));
    }
    let rows = reply.retried.iter().map(|one| {
        let result = if one.code.is_empty() {
            word(one).unwrap_or("unknown to this program").replace('_', " ")
        } else {
            format!("{} {}", kind_word(one).1, one.code)
        };
        vec![one.gid.clone(), result, one.waited_because.clone(), one.message.clone()]
    });
    let head = ["gid", if dry_run { "would be" } else { "now" }, "waited because", "why not"];
    let mut text = if reply.retried.is_empty() {
        "Nothing that was asked for needs attention.".to_owned()
    } else {
        let verb = if dry_run { "would go on" } else { "went on" };
        format!("{}\n\n{went_on} {verb}, {failed} did not.", output::table(&head, rows))
    };
    if let Some(after) = next {
        text.push_str(&format!("\nThere may be more: --after {after}"));
    }
    output::print(&text)
}

fn word(one: &RetriedTransaction) -> Option<&'static str> {
    Status::from_wire(one.status()).map(Status::as_str)
}

/// For programs, and for people.
fn kind_word(one: &RetriedTransaction) -> (&'static str, &'static str) {
    match one.kind() {
        ErrorKind::Refused => ("refused", "refused"),
        ErrorKind::Retry => ("retry", "nothing happened"),
        ErrorKind::Unknown | ErrorKind::Unspecified => ("unknown", "unknown"),
    }
}

fn json_of(one: &RetriedTransaction) -> serde_json::Value {
    let error = (!one.code.is_empty())
        .then(|| json!({ "code": one.code, "kind": kind_word(one).0, "message": one.message }));
    json!({
        "gid": one.gid,
        "waited_because": one.waited_because,
        "status": word(one).filter(|_| one.code.is_empty()),
        "error": error,
    })
}

/// What is unknown counts before what failed: it must be asked for again.
fn ended(retried: &[RetriedTransaction]) -> ExitCode {
    let failed = || retried.iter().filter(|one| !one.code.is_empty());
    if failed().any(|one| matches!(one.kind(), ErrorKind::Unknown | ErrorKind::Unspecified)) {
        ExitCode::from(exit::UNKNOWN)
    } else if failed().next().is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(code: &str, kind: ErrorKind) -> RetriedTransaction {
        RetriedTransaction { code: code.to_owned(), kind: kind.into(), ..Default::default() }
    }

    #[test]
    fn a_partial_failure_and_an_unknown_one_have_their_exit_codes() {
        let fine = one("", ErrorKind::Unspecified);
        let refused = one("HF2004", ErrorKind::Refused);
        let unknown = one("HF2102", ErrorKind::Unknown);
        let code = |retried: &[RetriedTransaction]| format!("{:?}", ended(retried));
        let is = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&[]), is(0));
        assert_eq!(code(&[fine.clone(), fine.clone()]), is(0));
        assert_eq!(code(&[fine.clone(), refused.clone()]), is(1));
        assert_eq!(code(&[refused, fine, unknown]), is(4));
    }
}
