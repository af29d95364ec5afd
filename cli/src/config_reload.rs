//! `holdfast config reload`: has running processes read their configuration again, and shows the difference.

use std::process::ExitCode;

use holdfast_client::wire::{ConfigDifference, ReloadConfigRequest};
use holdfast_coordinator::live::Difference;
use serde_json::{Value, json};

use crate::{
    exit,
    output::{self, Output},
    reload_door::{Ask, Process},
    tx::ClusterAddresses,
};

/// Which processes, and whether it is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Instead of coordinators: every process of this role on this machine
    #[arg(long, value_enum)]
    role: Option<LocalRole>,
    /// Of these only the one with this number; may be repeated
    #[arg(long, value_name = "NUMBER", requires = "role")]
    pid: Vec<u32>,
    /// Why, for the people who read it later; 1 to 1,024 bytes
    #[arg(long)]
    reason: String,
    /// Change nothing: only show the difference, and what would become of it
    #[arg(long)]
    dry_run: bool,
}

/// The roles that are asked on their own machine. A coordinator is asked at its doors, where it is written down who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LocalRole {
    Router,
    Bank,
    Agent,
}

impl LocalRole {
    const fn word(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Bank => "bank",
            Self::Agent => "agent",
        }
    }
}

/// What one process answered.
struct Reply {
    /// For people: a node's number, or role and process.
    who: String,
    /// For scripts.
    whole: Value,
    differences: Vec<ConfigDifference>,
}

impl Reply {
    /// `whole` says who; what was found is added.
    fn new(who: String, mut whole: Value, differences: Vec<ConfigDifference>) -> Self {
        let listed = differences.iter().map(|one| {
            let ConfigDifference { key, from, to, verdict, cause } = one;
            json!({ "key": key, "from": from, "to": to, "verdict": verdict, "cause": cause })
        });
        whole["differences"] = listed.collect();
        Self { who, whole, differences }
    }
}

/// Asks each process, one after the other; the first that refuses ends it.
/// # Errors
/// One cannot be reached, or its configuration has mistakes. HF1025: there is none of that role here.
pub(crate) async fn run(args: &ReloadArgs, output: Output) -> anyhow::Result<ExitCode> {
    let (kind, replies) = match args.role {
        None => ("node", of_coordinators(args).await?),
        Some(role) => ("process", of_processes(args, role.word()).await?),
    };
    match output {
        Output::Json => output::print_json(&replies.iter().map(|one| one.whole.clone()).collect())?,
        Output::Table => output::print(&text(kind, &replies, args.dry_run))?,
    }
    let refused = |one: &ConfigDifference| one.verdict == "refused";
    let any = replies.iter().flat_map(|reply| &reply.differences).any(refused);
    Ok(if any { ExitCode::from(exit::REFUSED) } else { ExitCode::SUCCESS })
}

async fn of_coordinators(args: &ReloadArgs) -> anyhow::Result<Vec<Reply>> {
    let client = args.cluster.client()?;
    let mut replies = Vec::new();
    for address in &args.cluster.addresses {
        let request = ReloadConfigRequest { dry_run: args.dry_run, reason: args.reason.clone() };
        let reply = client.reload_config(address, request).await?;
        let whole = json!({ "node": reply.node, "dry_run": reply.dry_run });
        replies.push(Reply::new(reply.node.to_string(), whole, reply.differences));
    }
    Ok(replies)
}

async fn of_processes(args: &ReloadArgs, role: &str) -> anyhow::Result<Vec<Reply>> {
    let mut processes = Process::all();
    processes
        .retain(|one| one.role == role && (args.pid.is_empty() || args.pid.contains(&one.pid)));
    let absent = args.pid.iter().find(|pid| processes.iter().all(|one| one.pid != **pid));
    if let Some(pid) = absent {
        anyhow::bail!(
            "HF1025 process {pid} is no {role} that runs here. Without --pid, every {role} of this machine is asked"
        );
    }
    anyhow::ensure!(
        !processes.is_empty(),
        "HF1025 no {role} runs here. Give this command on the machine, and in the container, where it runs"
    );
    let ask = Ask { reason: args.reason.clone(), dry_run: args.dry_run };
    let mut replies = Vec::new();
    for process in processes {
        let differences = process.ask(&ask).await?.into_iter().map(wire).collect();
        let Process { role, pid } = process;
        let whole = json!({ "role": role, "pid": pid, "dry_run": args.dry_run });
        replies.push(Reply::new(format!("{role} {pid}"), whole, differences));
    }
    Ok(replies)
}

fn wire(difference: Difference) -> ConfigDifference {
    let Difference { key, from, to, verdict, cause } = difference;
    ConfigDifference { key, from, to, verdict: verdict.word().to_owned(), cause }
}

fn text(kind: &str, replies: &[Reply], dry_run: bool) -> String {
    let rows: Vec<Vec<String>> = replies
        .iter()
        .flat_map(|reply| reply.differences.iter().map(|one| row(&reply.who, one)))
        .collect();
    let all: Vec<&str> = replies.iter().map(|reply| reply.who.as_str()).collect();
    let all = all.join(", ");
    if rows.is_empty() {
        return format!("No difference: what is said is what {kind} {all} runs with.");
    }
    let said = if dry_run { "Nothing was done. It would be so:\n\n" } else { "" };
    let head = [kind, "key", "from", "to", "what becomes of it", "cause"];
    format!("{said}{}", output::table(&head, rows))
}

fn row(who: &str, one: &ConfigDifference) -> Vec<String> {
    let ConfigDifference { key, from, to, verdict, cause } = one;
    let verdict = match verdict.as_str() {
        "taken_over" => "taken over",
        "after_restart" => "counts after a restart",
        other => other,
    };
    let shown = |value: &String| if value.is_empty() { "-".to_owned() } else { value.clone() };
    vec![who.to_owned(), key.clone(), shown(from), shown(to), verdict.to_owned(), cause.clone()]
}
