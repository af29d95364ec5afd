//! `holdfast tx resolve|abandon|approve`: ends by hand what a transaction waits for, which takes two people.

use std::process::ExitCode;

use holdfast_client::{
    Answer, Client, ClientError, Outcome, Status, Wait,
    wire::{OpenProposal, OperateRequest, OperatorAct},
};

use crate::{
    exit,
    output::{self, Output},
    tx,
};

/// The refusal of whoever may not act as an operator.
const NO_OPERATOR: &str = "HF2602";

/// Why, by whom, and whether it is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Say {
    /// Why, for the people who read it later; 1 to 1,024 bytes
    #[arg(long)]
    reason: String,
    /// Only show what would become of the transaction
    #[arg(long)]
    dry_run: bool,
    /// Who acts, in mode dev-plaintext alone; it proves nothing and is recorded as dev:NAME
    #[arg(long = "as", value_name = "NAME", default_value = "")]
    dev_name: String,
}

/// What people found out about a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Found {
    /// It did what it was asked, or people did it in its place
    Done,
    /// It did nothing; only while there is a way back. It is compensated with the others, so that no late call of it counts
    Refused,
}

impl From<Found> for OperatorAct {
    fn from(found: Found) -> Self {
        match found {
            Found::Done => Self::MarkDone,
            Found::Refused => Self::MarkRefused,
        }
    }
}

/// Carries out one act and shows the transaction as it is then, or would be.
/// # Errors
/// The act was refused, or nothing was done.
pub(crate) async fn run(
    client: &Client,
    gid: String,
    act: OperatorAct,
    branch: u32,
    say: Say,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let proposes =
        matches!(act, OperatorAct::MarkDone | OperatorAct::MarkRefused | OperatorAct::Abandon);
    let wait = if proposes || say.dry_run { Wait::None } else { Wait::End };
    let (dry_run, name) = (say.dry_run, gid.clone());
    let request = OperateRequest {
        gid,
        act: act.into(),
        branch,
        reason: say.reason,
        dry_run,
        dev_name: say.dev_name,
        wait: holdfast_client::wire::Wait::from(wait).into(),
        wait_timeout_ms: 0,
    };
    let answer = client.operate(request, wait).await?;
    tx::show(&answer, output)?;
    if dry_run {
        exit::tell(&"Nothing was done; so it would be.");
        return Ok(ExitCode::SUCCESS);
    }
    if proposes {
        exit::tell(&format!(
            "Proposed. Another person approves it within an hour: holdfast tx approve {name} --reason \"what was checked\""
        ));
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ended(&answer))
}

/// Shows what would become of a transaction by an act that takes one person.
/// # Errors
/// The act would be refused.
pub(crate) async fn foresee(
    client: &Client,
    gid: String,
    act: OperatorAct,
    reason: String,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let say = Say { reason, dry_run: true, dev_name: String::new() };
    run(client, gid, act, 0, say, output).await
}

/// Asks for rollback as an operator, so that the audit trail has it; as a caller, where whoever asks is no operator.
/// # Errors
/// [`ClientError`]: refused, or nothing was done.
pub(crate) async fn roll_back(
    client: &Client,
    gid: &str,
    reason: &str,
    wait: Wait,
) -> Result<Answer, ClientError> {
    let request = OperateRequest {
        gid: gid.to_owned(),
        act: OperatorAct::RollBack.into(),
        reason: reason.to_owned(),
        wait: holdfast_client::wire::Wait::from(wait).into(),
        ..OperateRequest::default()
    };
    match client.operate(request, wait).await {
        Err(ClientError::Refused { code, .. }) if code == NO_OPERATOR => {
            client.roll_back(gid, reason, wait).await
        }
        answer => answer,
    }
}

/// For people: who proposed what, and until when it can be approved.
pub(crate) fn proposal_text(proposal: &OpenProposal) -> String {
    let what = match (proposal.act(), proposal.branch) {
        (OperatorAct::Abandon, _) => "to abandon it".to_owned(),
        (OperatorAct::MarkRefused, branch) => {
            format!("branch {branch} counts as refused and is undone")
        }
        (_, branch) => format!("branch {branch} counts as done"),
    };
    format!(
        "{what}, by {} at {}: {}. Another person approves it until {}",
        proposal.by,
        output::rfc3339(proposal.at_ms),
        proposal.reason,
        output::rfc3339(proposal.until_ms)
    )
}

/// For programs.
pub(crate) fn proposal_json(proposal: &OpenProposal) -> serde_json::Value {
    let act = proposal.act().as_str_name().trim_start_matches("OPERATOR_ACT_");
    serde_json::json!({
        "act": act.to_ascii_lowercase(),
        "branch": proposal.branch,
        "by": proposal.by,
        "reason": proposal.reason,
        "at": output::rfc3339(proposal.at_ms),
        "until": output::rfc3339(proposal.until_ms),
    })
}

/// How an approval ended: gone on is done, again in need of people is not.
fn ended(answer: &Answer) -> ExitCode {
    match (&answer.outcome, answer.status()) {
        (_, Some(Status::NeedsAttention)) => ExitCode::from(exit::REFUSED),
        (Outcome::Committed | Outcome::RolledBack { .. }, _) => ExitCode::SUCCESS,
        (Outcome::Unknown, _) => ExitCode::from(exit::UNKNOWN),
    }
}
