//! `holdfast tx`: global transactions from the command line, with an exit code for each fate.

use std::{process::ExitCode, time::Duration};

use holdfast_client::{
    Answer, Client, ClientOptions, Filter, Mode, Outcome, Status, Transaction, Wait,
    wire::OperatorAct,
};

use crate::{
    exit::{self, Usage},
    identity::{CLUSTER, Identity},
    output::{self, Output},
    submission,
    timeline::{self, Finished},
    tx_many::{self, Many},
    tx_operate::{self, Found},
};

/// Submits, reads, waits for, lists, rolls back and retries global transactions.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast tx submit --file transfer.json
  holdfast tx get 01JB2V6Z1N4T8W0R5Y7K3QHXCD
  holdfast tx list --status needs_attention
  holdfast tx retry payroll-2026-11-0042 --reason \"account thawed\"

Exit codes of submit and wait: 0 committed, 3 rolled back or refused, 4 unknown: ask again with the same gid.")]
pub(crate) struct TxArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    #[command(subcommand)]
    command: TxCommand,
}

/// Which cluster to talk to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterAddresses {
    /// gRPC address of a coordinator node; one is enough, the others are learnt; may be repeated
    #[arg(
        long = "coordinator",
        global = true,
        help_heading = CLUSTER,
        value_name = "ADDRESS",
        env = "HOLDFAST_COORDINATOR",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401"
    )]
    pub(crate) addresses: Vec<String>,
    /// How long to pursue an answer before saying unknown, ms
    #[arg(long, global = true, help_heading = CLUSTER, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub(crate) patience_ms: u64,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

impl ClusterAddresses {
    /// A client that looks for the leader at its first request.
    /// # Errors
    /// No address was given.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let options = ClientOptions { patience_ms: self.patience_ms, ..self.identity.options()? };
        Ok(Client::lazy(self.addresses.iter().cloned(), options)?)
    }
}

#[derive(Debug, clap::Subcommand)]
enum TxCommand {
    /// Submit a whole transaction and wait for its fate
    #[command(after_help = "\
Examples:
  holdfast tx submit --file transfer.json
  holdfast tx submit --file - --gid payroll-2026-11-0042 --wait end < transfer.json

The file:
  { \"gid\": \"payroll-2026-11-0042\", \"mode\": \"tcc\",
    \"options\": { \"timeout_ms\": 10000, \"tags\": { \"run\": \"payroll\" } },
    \"branches\": [
      { \"participant\": \"deposit@shard-1\", \"payload\": { ... } },
      { \"participant\": \"deposit@shard-3\", \"payload\": { ... } } ] }")]
    Submit {
        /// The transaction as JSON; `-` reads standard input
        #[arg(long, value_name = "FILE")]
        file: String,
        /// The gid, over the one in the file: the same gid and content is the same transaction
        #[arg(long)]
        gid: Option<String>,
        /// What to wait for, over what the file says
        #[arg(long, value_enum)]
        wait: Option<Until>,
    },
    /// Show a transaction as of now
    #[command(
        after_help = "Examples:\n  holdfast tx get payroll-2026-11-0042\n  holdfast tx get payroll-2026-11-0042 --stale --output json"
    )]
    Get {
        /// The transaction
        gid: String,
        /// Take the first node's own word, which may lag behind; works without a leader
        #[arg(long)]
        stale: bool,
    },
    /// Show one transaction, open or finished, with its calls drawn over time
    #[command(
        after_help = "Examples:\n  holdfast tx show payroll-2026-11-0042\n  holdfast tx show payroll-2026-11-0042 --output json"
    )]
    Show {
        /// The transaction
        gid: String,
    },
    /// Wait until a transaction is decided or ended
    #[command(
        after_help = "Examples:\n  holdfast tx wait payroll-2026-11-0042 --until end --patience-ms 5000"
    )]
    Wait {
        /// The transaction
        gid: String,
        /// The decision, or the end of every branch
        #[arg(long, value_enum, default_value_t = Until::Decision)]
        until: Until,
    },
    /// List open and recent transactions in gid order, or finished ones from the history
    #[command(
        after_help = "Examples:\n  holdfast tx list\n  holdfast tx list --status trying --status committing --limit 1000\n  holdfast tx list --open --tag run=payroll --until 15m\n  holdfast tx list --finished --since 2h --tag run=payroll\n  holdfast tx list --participant loyalty --amount-min \"1000.00 EUR\" --amount-max \"9999.99 EUR\""
    )]
    List {
        /// Only these statuses; may be repeated
        #[arg(long, value_name = "STATUS", value_parser = status_of)]
        status: Vec<Status>,
        /// Continue behind this gid
        #[arg(long, value_name = "GID")]
        after: Option<String>,
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        #[command(flatten)]
        finished: Finished,
    },
    /// Ask for rollback; refused once the decision to commit is made
    #[command(
        after_help = "Examples:\n  holdfast tx rollback payroll-2026-11-0042 --reason \"wrong file\" --dry-run\n  holdfast tx rollback payroll-2026-11-0042 --reason \"wrong file\"\n\nAn operator's rollback is in the audit trail; whoever may only submit asks for it as a caller does, and is not.",
        visible_alias = "roll-back"
    )]
    Rollback {
        /// The transaction
        gid: String,
        /// Why, for the people who read it later
        #[arg(long)]
        reason: String,
        /// What to wait for
        #[arg(long, value_enum, default_value_t = Until::Decision)]
        wait: Until,
        /// Only show what would become of the transaction
        #[arg(long)]
        dry_run: bool,
    },
    /// Let a transaction that needs attention go on, once its cause is repaired
    #[command(after_help = "\
Examples:
  holdfast tx list --status needs_attention
  holdfast tx retry payroll-2026-11-0042 --reason \"account thawed, ticket 7311\" --dry-run
  holdfast tx retry payroll-2026-11-0042 --reason \"account thawed, ticket 7311\"
  holdfast tx retry payroll-2026-11-0042 --reason \"app restarted\" --wait none
  holdfast tx retry --status needs-attention --participant deposit@shard-3 --limit 500 --reason \"shard 3 is back\" --dry-run

Exit codes: 0 it went on, 3 refused or needs attention again, 4 unknown: ask again with the same gid.
Of many: 0 each went on, 1 some were refused or failed (each is told), 4 of some it is unknown.")]
    Retry {
        /// The transaction
        #[arg(required_unless_present = "status")]
        gid: Option<String>,
        #[command(flatten)]
        many: Many,
        /// Why it may go on, for the people who read it later; 1 to 1,024 bytes
        #[arg(long)]
        reason: String,
        /// What to wait for
        #[arg(long, value_enum, default_value_t = Until::End, conflicts_with = "status")]
        wait: Until,
        /// Only show what would become of the transaction, or of each
        #[arg(long)]
        dry_run: bool,
    },
    /// Propose that a branch counts as done or as refused; a second person must approve
    #[command(after_help = "\
Examples:
  holdfast tx resolve payroll-2026-11-0042 --branch 2 --found done --reason \"booked by hand, ticket 7311\" --dry-run
  holdfast tx resolve payroll-2026-11-0042 --branch 2 --found done --reason \"booked by hand, ticket 7311\"
  holdfast tx approve payroll-2026-11-0042 --reason \"seen in the ledger\"")]
    Resolve {
        /// The transaction
        gid: String,
        /// The branch
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=128))]
        branch: u32,
        /// What people found out about it
        #[arg(long, value_enum)]
        found: Found,
        #[command(flatten)]
        say: tx_operate::Say,
    },
    /// Propose to end a transaction as if every branch had done what is still asked of it; a second person must approve
    #[command(
        after_help = "Examples:\n  holdfast tx abandon payroll-2026-11-0042 --reason \"the bank is dissolved\" --dry-run"
    )]
    Abandon {
        /// The transaction
        gid: String,
        #[command(flatten)]
        say: tx_operate::Say,
    },
    /// Approve what another person proposed; then it is done
    #[command(
        after_help = "Examples:\n  holdfast tx approve payroll-2026-11-0042 --reason \"seen in the ledger\""
    )]
    Approve {
        /// The transaction
        gid: String,
        #[command(flatten)]
        say: tx_operate::Say,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Until {
    /// That it is durable
    None,
    /// The decision; the second phase goes on behind the answer
    Decision,
    /// The end of every branch
    End,
}

impl From<Until> for Wait {
    fn from(until: Until) -> Self {
        match until {
            Until::None => Self::None,
            Until::Decision => Self::Decision,
            Until::End => Self::End,
        }
    }
}

pub(crate) fn status_of(text: &str) -> Result<Status, String> {
    let word = text.trim().replace([' ', '-'], "_");
    Status::ALL.into_iter().find(|status| status.as_str() == word).ok_or_else(|| {
        let words: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        format!("is none of {}", words.join(", "))
    })
}

/// Carries out one request and prints its answer.
/// # Errors
/// The request was refused, nothing was done, or it is unknown whether it was.
pub(crate) async fn run(args: TxArgs, output: Output) -> anyhow::Result<ExitCode> {
    let patience = Duration::from_millis(args.cluster.patience_ms);
    match args.command {
        TxCommand::Submit { file, gid, wait } => {
            let mut submission = submission::read(&file)?;
            if let Some(gid) = gid {
                submission = submission.gid(gid);
            }
            if let Some(wait) = wait {
                submission = submission.wait(wait.into());
            }
            let answer = args.cluster.client()?.submit(submission).await?;
            show(&answer, output)?;
            Ok(if wait == Some(Until::None) { accepted(&answer) } else { fate(&answer) })
        }
        TxCommand::Get { gid, stale } => {
            let client = args.cluster.client()?;
            let answer =
                if stale { client.get_stale(&gid).await? } else { client.get(&gid).await? };
            show(&answer, output)?;
            Ok(ExitCode::SUCCESS)
        }
        TxCommand::Wait { gid, until } => {
            let answer = args.cluster.client()?.wait(&gid, until.into(), patience).await?;
            show(&answer, output)?;
            Ok(if until == Until::None { accepted(&answer) } else { fate(&answer) })
        }
        TxCommand::Show { gid } => {
            timeline::show(&args.cluster.client()?, &gid, output).await?;
            Ok(ExitCode::SUCCESS)
        }
        TxCommand::List { status, limit, finished, after: None } if finished.is_asked(&status) => {
            finished.list(&args.cluster.client()?, &status, limit, output).await?;
            Ok(ExitCode::SUCCESS)
        }
        TxCommand::List { status, after, limit, finished } => {
            let filter =
                finished.of_open(Filter { statuses: status, after, limit, ..Filter::default() });
            let page = args.cluster.client()?.list(filter).await?;
            list(&page, output)?;
            Ok(ExitCode::SUCCESS)
        }
        TxCommand::Rollback { gid, reason, dry_run: true, .. } => {
            must_say_why(&reason)?;
            let client = args.cluster.client()?;
            tx_operate::foresee(&client, gid, OperatorAct::RollBack, reason, output).await
        }
        TxCommand::Retry { gid: None, many, reason, dry_run, .. } => {
            must_say_why(&reason)?;
            tx_many::retry(&args.cluster.client()?, many, reason, dry_run, output).await
        }
        TxCommand::Retry { gid: Some(gid), reason, dry_run: true, .. } => {
            must_say_why(&reason)?;
            let client = args.cluster.client()?;
            tx_operate::foresee(&client, gid, OperatorAct::Retry, reason, output).await
        }
        TxCommand::Rollback { gid, reason, wait, dry_run: false } => {
            must_say_why(&reason)?;
            let client = args.cluster.client()?;
            let answer = tx_operate::roll_back(&client, &gid, &reason, wait.into()).await?;
            show(&answer, output)?;
            Ok(match answer.outcome {
                Outcome::RolledBack { .. } => ExitCode::SUCCESS,
                Outcome::Committed => ExitCode::from(exit::REFUSED),
                Outcome::Unknown => ExitCode::from(exit::UNKNOWN),
            })
        }
        TxCommand::Resolve { gid, branch, found, say } => {
            let client = args.cluster.client()?;
            tx_operate::run(&client, gid, found.into(), branch, say, output).await
        }
        TxCommand::Abandon { gid, say } => {
            let client = args.cluster.client()?;
            tx_operate::run(&client, gid, OperatorAct::Abandon, 0, say, output).await
        }
        TxCommand::Approve { gid, say } => {
            let client = args.cluster.client()?;
            tx_operate::run(&client, gid, OperatorAct::Approve, 0, say, output).await
        }
        TxCommand::Retry { gid: Some(gid), reason, wait, dry_run: false, .. } => {
            must_say_why(&reason)?;
            let answer = args.cluster.client()?.retry(&gid, &reason, wait.into()).await?;
            show(&answer, output)?;
            Ok(went_on(&answer, wait))
        }
    }
}

/// How a retry ended. What is on its way to a known fate went on; that a branch refused again is for people, once more.
fn went_on(answer: &Answer, wait: Until) -> ExitCode {
    match (&answer.outcome, answer.status()) {
        (_, Some(Status::NeedsAttention)) => ExitCode::from(exit::REFUSED),
        (Outcome::Committed | Outcome::RolledBack { .. }, _) => ExitCode::SUCCESS,
        (Outcome::Unknown, Some(_)) if wait == Until::None => ExitCode::SUCCESS,
        (Outcome::Unknown, _) => ExitCode::from(exit::UNKNOWN),
    }
}

fn must_say_why(reason: &str) -> Result<(), Usage> {
    if reason.trim().is_empty() {
        let words = "--reason is empty. Say why, for the people who read it later.";
        return Err(Usage(words.to_owned()));
    }
    Ok(())
}

fn fate(answer: &Answer) -> ExitCode {
    match answer.outcome {
        Outcome::Committed => ExitCode::SUCCESS,
        Outcome::RolledBack { .. } => ExitCode::from(exit::REFUSED),
        Outcome::Unknown => ExitCode::from(exit::UNKNOWN),
    }
}

/// For those who wait for no decision: whether the coordinator has it.
fn accepted(answer: &Answer) -> ExitCode {
    if answer.transaction.is_some() { ExitCode::SUCCESS } else { fate(answer) }
}

fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::RolledBack { .. } => "rolled_back",
        Outcome::Unknown => "unknown",
    }
}

fn mode_word(mode: Option<Mode>) -> &'static str {
    match mode {
        Some(Mode::Tcc) => "tcc",
        Some(Mode::Saga) => "saga",
        Some(Mode::Xa) => "xa",
        None => "unknown to this program",
    }
}

fn status_word(status: Option<Status>) -> &'static str {
    status.map_or("unknown to this program", Status::as_str)
}

pub(crate) fn show(answer: &Answer, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "gid": answer.gid,
            "outcome": outcome_word(&answer.outcome),
            "repeated": answer.repeated,
            "transaction": answer.transaction.as_ref().map(json_of),
            "proposal": answer.proposal.as_ref().map(tx_operate::proposal_json),
        }));
    }
    let mut lines = vec![("gid", answer.gid.clone())];
    match &answer.outcome {
        Outcome::Unknown if answer.status() == Some(Status::NeedsAttention) => {
            lines.push(("outcome", "unknown, until people have looked".to_owned()));
        }
        Outcome::Unknown => {
            let ask = format!("unknown, which is no failure: holdfast tx wait {}", answer.gid);
            lines.push(("outcome", ask));
        }
        other => lines.push(("outcome", outcome_word(other).replace('_', " "))),
    }
    let mut text = String::new();
    if let Some(known) = &answer.transaction {
        lines.push(("status", status_word(known.status).replace('_', " ")));
        lines.push(("mode", mode_word(known.mode).to_owned()));
        lines.push(("begun", output::rfc3339(known.begun_at_ms)));
        lines.push(("deadline", output::rfc3339(known.deadline_ms)));
        lines.extend(known.decided_at_ms.map(|ms| ("decided", output::rfc3339(ms))));
        lines.extend(known.finished_at_ms.map(|ms| ("finished", output::rfc3339(ms))));
        if !known.reason.is_empty() {
            lines.push(("reason", known.reason.clone()));
        }
        if known.status == Some(Status::NeedsAttention) {
            lines.push((
                "remedy",
                format!("repair what the reason names, then: {}", retry_of(known)),
            ));
        }
        if let Some(proposal) = &answer.proposal {
            lines.push(("proposed", tx_operate::proposal_text(proposal)));
        }
        for (name, value) in &known.tags {
            lines.push(("tag", format!("{name}={value}")));
        }
        if answer.repeated {
            lines.push((
                "repeated",
                "yes: it was known already, and nothing was done twice".to_owned(),
            ));
        }
        let rows = known.branches.iter().map(|branch| {
            let refusal = [branch.refusal_code.as_str(), branch.refusal_message.as_str()];
            let refusal: Vec<&str> = refusal.into_iter().filter(|word| !word.is_empty()).collect();
            vec![
                branch.branch.to_string(),
                branch.participant.clone(),
                branch.state.clone(),
                refusal.join(": "),
            ]
        });
        text =
            format!("\n\n{}", output::table(&["branch", "participant", "state", "refusal"], rows));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines: Vec<String> =
        lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    output::print(&format!("{}{text}", lines.join("\n")))
}

/// The command that lets a transaction go on.
fn retry_of(known: &Transaction) -> String {
    format!("holdfast tx retry {} --reason \"what was repaired\"", known.gid)
}

fn list(page: &holdfast_client::Page, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "transactions": page.transactions.iter().map(json_of).collect::<Vec<_>>(),
            "next_after": page.next_after,
        }));
    }
    let rows = page.transactions.iter().map(|known| {
        vec![
            known.gid.clone(),
            mode_word(known.mode).to_owned(),
            status_word(known.status).replace('_', " "),
            known.branches.len().to_string(),
            output::rfc3339(known.begun_at_ms),
            known.reason.clone(),
        ]
    });
    let mut text = output::table(&["gid", "mode", "status", "branches", "begun", "reason"], rows);
    if let Some(after) = &page.next_after {
        text.push_str(&format!("\n\nThere are more: holdfast tx list --after {after}"));
    }
    if page.transactions.iter().any(|known| known.status == Some(Status::NeedsAttention)) {
        text.push_str("\n\nWhat needs attention goes on once its cause is repaired: ");
        text.push_str("holdfast tx retry GID --reason \"what was repaired\"");
    }
    output::print(&text)
}

fn json_of(known: &Transaction) -> serde_json::Value {
    let branches = known.branches.iter().map(|branch| {
        serde_json::json!({
            "branch": branch.branch,
            "participant": branch.participant,
            "state": branch.state,
            "refusal_code": branch.refusal_code,
            "refusal_message": branch.refusal_message,
        })
    });
    serde_json::json!({
        "gid": known.gid,
        "mode": mode_word(known.mode),
        "status": status_word(known.status),
        "begun_at": output::rfc3339(known.begun_at_ms),
        "deadline": output::rfc3339(known.deadline_ms),
        "decided_at": known.decided_at_ms.map(output::rfc3339),
        "finished_at": known.finished_at_ms.map(output::rfc3339),
        "reason": known.reason,
        "tags": known.tags,
        "branches": branches.collect::<Vec<_>>(),
    })
}
