//! `holdfast audit`: who did what, and whether any record of it was changed, taken out or put in.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use holdfast_client::{Client, wire::AuditEntry};
use holdfast_txn::{AuditRecord, Deed, Digest, Timestamp, check_chain};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    exit::{self, Usage},
    output::{self, Output},
    tx::ClusterAddresses,
};

/// Records of a page.
const PAGE: u32 = 1_000;
/// Bytes of a line of an export.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Shows, verifies and exports the audit trail.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast audit list
  holdfast audit verify
  holdfast audit export --file audit.jsonl
  holdfast audit verify --file audit.jsonl

Each record bears the SHA-256 of the one before. The cluster keeps the newest 20,000; export before that: an export is continued where it ends.")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// The Raft group whose trail it is; group 0 has that of rules and policies too
    #[arg(long, global = true, default_value_t = 0)]
    group: u32,
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AuditCommand {
    /// List records, oldest first
    #[command(
        after_help = "Examples:\n  holdfast audit list\n  holdfast audit list --after 100 --limit 1000 --output json"
    )]
    List {
        /// Only records behind this number; without it, the newest
        #[arg(long)]
        after: Option<u64>,
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
    },
    /// Compute the chain anew: what every node keeps, and what was exported
    #[command(
        after_help = "Examples:\n  holdfast audit verify\n  holdfast audit verify --file audit.jsonl\n\nExit codes: 0 whole, 3 broken."
    )]
    Verify {
        /// An export, which what the cluster keeps must continue
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Only the file, without a cluster
        #[arg(long, requires = "file")]
        offline: bool,
    },
    /// Write records to a file, a line of JSON each; a file that is there is continued
    #[command(after_help = "Examples:\n  holdfast audit export --file audit.jsonl")]
    Export {
        /// The file
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// A record as a line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    number: u64,
    at_ms: u64,
    by: String,
    act: String,
    about: String,
    words: String,
    before: String,
    digest: String,
}

impl Line {
    fn of(record: &AuditRecord) -> Self {
        let Deed { by, act, about, words } = record.deed.clone();
        Self {
            number: record.number,
            at_ms: record.at.0,
            by,
            act,
            about,
            words,
            before: record.before.to_string(),
            digest: record.digest().to_string(),
        }
    }

    /// The record, if its own hash is what the line says.
    fn record(self) -> Result<AuditRecord, String> {
        let Self { number, at_ms, by, act, about, words, before, digest } = self;
        let before =
            hash(&before).ok_or_else(|| format!("record {number}: before is no SHA-256"))?;
        let deed = Deed { by, act, about, words };
        let record = AuditRecord { number, at: Timestamp(at_ms), deed, before };
        if record.digest().to_string() == digest {
            Ok(record)
        } else {
            Err(format!(
                "the chain breaks at record {number}: it was changed, its hash is another one"
            ))
        }
    }
}

fn hash(hex: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(Digest(bytes))
}

fn record(wire: AuditEntry) -> anyhow::Result<AuditRecord> {
    let before = <[u8; 32]>::try_from(wire.before.as_ref()).context("a node sent no SHA-256")?;
    let deed = Deed { by: wire.by, act: wire.act, about: wire.about, words: wire.words };
    Ok(AuditRecord { number: wire.number, at: Timestamp(wire.at_ms), deed, before: Digest(before) })
}

/// The records of an export.
fn exported(file: &Path) -> anyhow::Result<Result<Vec<AuditRecord>, String>> {
    let name = file.display();
    let opened = File::open(file).map_err(|error| Usage(format!("{name}: {error}")))?;
    let mut records = Vec::new();
    for (number, line) in BufReader::new(opened).lines().enumerate() {
        let line = line.with_context(|| format!("{name} cannot be read"))?;
        let read = if line.len() > LINE_BYTES_MAX {
            Err(format!("is longer than {LINE_BYTES_MAX} bytes"))
        } else {
            serde_json::from_str::<Line>(&line).map_err(|error| format!("is no record: {error}"))
        };
        match read.map_err(|what| format!("line {} {what}", number + 1)).and_then(Line::record) {
            Ok(record) => records.push(record),
            Err(what) => return Ok(Err(what)),
        }
    }
    Ok(Ok(records))
}

/// Every record behind `after` that the cluster keeps.
async fn kept(client: &Client, group: u32, mut after: u64) -> anyhow::Result<Vec<AuditRecord>> {
    let mut records = Vec::new();
    loop {
        let page = client.audit_records(group, after, PAGE).await?.records;
        let Some(last) = page.last() else { return Ok(records) };
        after = last.number;
        for one in page {
            records.push(record(one)?);
        }
    }
}

/// Carries out one command.
/// # Errors
/// The cluster cannot be reached, or a file cannot be read or written.
pub(crate) async fn run(args: AuditArgs, output: Output) -> anyhow::Result<ExitCode> {
    match args.command {
        AuditCommand::List { after, limit } => {
            list(&args.cluster.client()?, args.group, (after, limit), output).await
        }
        AuditCommand::Verify { file, offline } => {
            let client = if offline { None } else { Some(args.cluster.client()?) };
            verify(client.as_ref(), args.group, file.as_deref(), output).await
        }
        AuditCommand::Export { file } => {
            export(&args.cluster.client()?, args.group, &file, output).await
        }
    }
}

async fn list(
    client: &Client,
    group: u32,
    (after, limit): (Option<u64>, u32),
    output: Output,
) -> anyhow::Result<ExitCode> {
    let after = match after {
        Some(after) => after,
        None => {
            let count = client.audit_records(group, u64::MAX, 1).await?.count;
            count.saturating_sub(limit.into())
        }
    };
    let reply = client.audit_records(group, after, limit).await?;
    let count = reply.count;
    let records = reply.records.into_iter().map(record).collect::<Result<Vec<_>, _>>()?;
    match output {
        Output::Json => output::print_json(&json!({
            "count": count,
            "oldest": reply.oldest,
            "records": records.iter().map(Line::of).collect::<Vec<_>>(),
        }))?,
        Output::Table => {
            let rows = records.into_iter().map(|record| {
                let Deed { by, act, about, words } = record.deed;
                vec![record.number.to_string(), output::rfc3339(record.at.0), by, act, about, words]
            });
            output::print(&output::table(&["number", "at", "by", "act", "about", "words"], rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(
    client: Option<&Client>,
    group: u32,
    file: Option<&Path>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut broken = Vec::new();
    let mut records = Vec::new();
    if let Some(file) = file {
        match exported(file)? {
            Ok(read) => records = read,
            Err(what) => broken.push(what),
        }
    }
    let mut nodes = 0;
    if let Some(client) = client.filter(|_| broken.is_empty()) {
        let last = records.last().map_or(0, |record: &AuditRecord| record.number);
        records.extend(kept(client, group, last).await?);
        // Learns every member, so that each is asked for its own copy.
        let status = client.node_status().await?;
        for member in status.members.iter().filter(|member| !member.grpc.is_empty()) {
            match client.verify_audit_of(&member.grpc, group).await {
                Ok(reply) if reply.whole => nodes += 1,
                Ok(reply) => broken.push(format!("node {}: {}", reply.node, reply.cause)),
                Err(error) => exit::tell(&format!("{} was not asked: {error}", member.grpc)),
            }
        }
    }
    let last = check_chain(records.iter());
    broken.extend(last.as_ref().err().map(ToString::to_string));
    let (number, head) = last.ok().flatten().unwrap_or((0, Digest([0; 32])));
    let first = records.first().map_or(0, |record| record.number);
    match output {
        Output::Json => output::print_json(&json!({
            "whole": broken.is_empty(),
            "broken": broken,
            "first": first,
            "last": number,
            "head": head.to_string(),
            "records": records.len(),
            "nodes": nodes,
        }))?,
        Output::Table if broken.is_empty() => output::print(&format!(
            "Whole: records {first} to {number}, head {head}; {nodes} nodes say that their own chain is whole."
        ))?,
        Output::Table => broken.iter().for_each(|what| exit::tell(what)),
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::REFUSED) })
}

async fn export(
    client: &Client,
    group: u32,
    file: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let before = if file.exists() {
        exported(file)?.map_err(|what| Usage(format!("{}: {what}", file.display())))?
    } else {
        Vec::new()
    };
    let last = before.last().map_or(0, |record| record.number);
    let new = kept(client, group, last).await?;
    if let Err(gap) = check_chain(before.iter().chain(&new)) {
        exit::tell(&format!("nothing was written: {gap}"));
        return Ok(ExitCode::from(exit::REFUSED));
    }
    let opened = File::options().create(true).append(true).open(file);
    let opened = opened.with_context(|| format!("{} cannot be written", file.display()))?;
    let mut lines = BufWriter::new(&opened);
    for record in &new {
        serde_json::to_writer(&mut lines, &Line::of(record))?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    drop(lines);
    opened.sync_all()?;
    let last = new.last().map_or(last, |record| record.number);
    match output {
        Output::Json => output::print_json(&json!({
            "file": file.display().to_string(), "written": new.len(), "last": last,
        }))?,
        Output::Table => output::print(&format!(
            "{} records written to {}; the last is {last}.",
            new.len(),
            file.display()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of three records whose second one `change` may alter.
    fn file(change: impl Fn(&str) -> String) -> (tempfile::TempDir, PathBuf) {
        let mut before = Digest([0; 32]);
        let mut text = String::new();
        for number in 1..=3 {
            let deed = Deed { by: "user/alice".into(), act: "tx.retry".into(), ..Deed::default() };
            let record = AuditRecord { number, at: Timestamp(number), deed, before };
            before = record.digest();
            let line = serde_json::to_string(&Line::of(&record)).unwrap();
            let line = if number == 2 { change(&line) } else { line };
            text.push_str(&line);
            if !line.is_empty() {
                text.push('\n');
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[tokio::test]
    async fn an_export_is_whole_and_a_changed_or_missing_line_is_found() {
        let code = async |change: &dyn Fn(&str) -> String| {
            let (_folder, path) = file(change);
            verify(None, 0, Some(&path), Output::Json).await.unwrap()
        };
        let refused = ExitCode::from(exit::REFUSED);
        assert_eq!(code(&|line| line.to_owned()).await, ExitCode::SUCCESS);
        assert_eq!(code(&|line| line.replace("alice", "bob")).await, refused);
        assert_eq!(code(&|_| String::new()).await, refused);
        assert_eq!(code(&|line| line[..20].to_owned()).await, refused);
    }
}
