//! `holdfast audit`: who did what, and whether any record of it was changed, taken out or put in.

use std::{
    collections::BTreeMap,
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

Each record bears the SHA-256 of the one before. A cluster of several Raft groups has a trail for each; all of them are meant, unless --group names one. The cluster keeps the newest 20,000; export before that: an export is continued where it ends.")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Only the trail of this Raft group; group 0 has that of rules and policies too
    #[arg(long, global = true)]
    group: Option<u32>,
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
        /// Only records behind this number of each trail; without it, the newest
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
    /// Of a cluster with several Raft groups: whose trail it is of.
    #[serde(default, skip_serializing_if = "is_zero")]
    group: u32,
    number: u64,
    at_ms: u64,
    by: String,
    act: String,
    about: String,
    words: String,
    before: String,
    digest: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(group: &u32) -> bool {
    *group == 0
}

/// The trails of Raft groups: records of each, oldest first.
type Trails = BTreeMap<u32, Vec<AuditRecord>>;

impl Line {
    fn of(group: u32, record: &AuditRecord) -> Self {
        let Deed { by, act, about, words } = record.deed.clone();
        Self {
            group,
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
    fn record(self) -> Result<(u32, AuditRecord), String> {
        let Self { group, number, at_ms, by, act, about, words, before, digest } = self;
        let before =
            hash(&before).ok_or_else(|| format!("record {number}: before is no SHA-256"))?;
        let deed = Deed { by, act, about, words };
        let record = AuditRecord { number, at: Timestamp(at_ms), deed, before };
        if record.digest().to_string() == digest {
            Ok((group, record))
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
fn exported(file: &Path) -> anyhow::Result<Result<Trails, String>> {
    let name = file.display();
    let opened = File::open(file).map_err(|error| {
        Usage(format!("HF1023 {name}: cannot be read: {error}. Check the path."))
    })?;
    let mut trails = Trails::new();
    for (number, line) in BufReader::new(opened).lines().enumerate() {
        let line = line.with_context(|| format!("{name} cannot be read"))?;
        let read = if line.len() > LINE_BYTES_MAX {
            Err(format!("is longer than {LINE_BYTES_MAX} bytes"))
        } else {
            serde_json::from_str::<Line>(&line).map_err(|error| format!("is no record: {error}"))
        };
        match read.map_err(|what| format!("line {} {what}", number + 1)).and_then(Line::record) {
            Ok((group, record)) => trails.entry(group).or_default().push(record),
            Err(what) => return Ok(Err(what)),
        }
    }
    Ok(Ok(trails))
}

/// The Raft groups that are meant: the one that was named, or all that the cluster has.
async fn groups(client: &Client, named: Option<u32>) -> anyhow::Result<Vec<u32>> {
    Ok(match named {
        Some(group) => vec![group],
        None => (0..client.audit_records(0, u64::MAX, 1).await?.groups.max(1)).collect(),
    })
}

/// Every record of a group behind `after` that the cluster keeps.
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

/// The number of the last record; 0: there is none.
fn last_of(records: &[AuditRecord]) -> u64 {
    records.last().map_or(0, |record| record.number)
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
    named: Option<u32>,
    (after, limit): (Option<u64>, u32),
    output: Output,
) -> anyhow::Result<ExitCode> {
    let (mut count, mut oldest) = (0, 0);
    let mut records: Vec<(u32, AuditRecord)> = Vec::new();
    let groups = groups(client, named).await?;
    for group in &groups {
        let behind = match after {
            Some(after) => after,
            None => {
                let count = client.audit_records(*group, u64::MAX, 1).await?.count;
                count.saturating_sub(limit.into())
            }
        };
        let reply = client.audit_records(*group, behind, limit).await?;
        count += reply.count;
        oldest = if oldest == 0 { reply.oldest } else { reply.oldest.min(oldest) };
        for one in reply.records {
            records.push((*group, record(one)?));
        }
    }
    records.sort_by_key(|(group, record)| (record.at, *group, record.number));
    match output {
        Output::Json => output::print_json(&json!({
            "count": count,
            "oldest": oldest,
            "groups": groups,
            "records": records.iter().map(|(group, one)| Line::of(*group, one)).collect::<Vec<_>>(),
        }))?,
        Output::Table => {
            // Where there is one group, nobody needs to know that there could be more.
            let from = usize::from(groups.len() == 1);
            let rows = records.into_iter().map(|(group, record)| {
                let Deed { by, act, about, words } = record.deed;
                let (number, at) = (record.number.to_string(), output::rfc3339(record.at.0));
                vec![group.to_string(), number, at, by, act, about, words].split_off(from)
            });
            let heads = ["group", "number", "at", "by", "act", "about", "words"];
            output::print(&output::table(&heads[from..], rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One group's chain, computed anew.
#[derive(Debug, Serialize)]
struct Verified {
    group: u32,
    whole: bool,
    broken: Vec<String>,
    first: u64,
    last: u64,
    head: String,
    records: usize,
    /// That say of their own copy that it is whole.
    nodes: usize,
}

impl Verified {
    fn of(group: u32, records: &[AuditRecord], nodes: usize, mut broken: Vec<String>) -> Self {
        let last = check_chain(records.iter());
        broken.extend(last.as_ref().err().map(ToString::to_string));
        let (last, head) = last.ok().flatten().unwrap_or((0, Digest([0; 32])));
        Self {
            group,
            whole: broken.is_empty(),
            broken,
            first: records.first().map_or(0, |record| record.number),
            last,
            head: head.to_string(),
            records: records.len(),
            nodes,
        }
    }
}

async fn verify(
    client: Option<&Client>,
    named: Option<u32>,
    file: Option<&Path>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut trails = Trails::new();
    if let Some(file) = file {
        match exported(file)? {
            Ok(read) => trails = read,
            // Nothing behind such a line can be said to be of any trail.
            Err(what) => {
                return told(&[Verified::of(named.unwrap_or(0), &[], 0, vec![what])], output);
            }
        }
    }
    trails.retain(|group, _| named.is_none_or(|named| named == *group));
    let mut verified = Vec::new();
    if let Some(client) = client {
        // Learns every member, so that each is asked for its own copy.
        let status = client.node_status().await?;
        for group in groups(client, named).await? {
            let mut records = trails.remove(&group).unwrap_or_default();
            records.extend(kept(client, group, last_of(&records)).await?);
            let (mut nodes, mut broken) = (0, Vec::new());
            for member in status.members.iter().filter(|member| !member.grpc.is_empty()) {
                match client.verify_audit_of(&member.grpc, group).await {
                    Ok(reply) if reply.whole => nodes += 1,
                    Ok(reply) => broken.push(format!("node {}: {}", reply.node, reply.cause)),
                    Err(error) => exit::tell(&format!("{} was not asked: {error}", member.grpc)),
                }
            }
            verified.push(Verified::of(group, &records, nodes, broken));
        }
    }
    // Of a file alone, or of a cluster with more groups than this one.
    let rest = trails.iter().map(|(group, records)| Verified::of(*group, records, 0, Vec::new()));
    verified.extend(rest);
    if verified.is_empty() {
        verified.push(Verified::of(named.unwrap_or(0), &[], 0, Vec::new()));
    }
    told(&verified, output)
}

/// Says what was found; the first trail's figures stand alone too, for clusters of one group.
fn told(trails: &[Verified], output: Output) -> anyhow::Result<ExitCode> {
    let whole = trails.iter().all(|trail| trail.whole);
    let first = &trails[0];
    let broken: Vec<String> = trails
        .iter()
        .flat_map(|trail| trail.broken.iter().map(move |what| (trail.group, what)))
        .map(|(group, what)| match trails.len() {
            1 => what.clone(),
            _ => format!("group {group}: {what}"),
        })
        .collect();
    match output {
        Output::Json => output::print_json(&json!({
            "whole": whole,
            "broken": broken,
            "first": first.first,
            "last": first.last,
            "head": first.head,
            "records": trails.iter().map(|trail| trail.records).sum::<usize>(),
            "nodes": trails.iter().map(|trail| trail.nodes).min().unwrap_or_default(),
            "trails": trails,
        }))?,
        Output::Table => {
            broken.iter().for_each(|what| exit::tell(what));
            for trail in trails.iter().filter(|trail| trail.whole) {
                let Verified { group, first, last, head, nodes, .. } = trail;
                let whose =
                    if trails.len() == 1 { String::new() } else { format!("Group {group}: ") };
                output::print(&format!(
                    "{whose}Whole: records {first} to {last}, head {head}; nodes whose own chain is whole: {nodes}."
                ))?;
            }
        }
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(exit::REFUSED) })
}

async fn export(
    client: &Client,
    named: Option<u32>,
    file: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let before = if file.exists() {
        exported(file)?.map_err(|what| Usage(format!("{}: {what}", file.display())))?
    } else {
        Trails::new()
    };
    let mut new = Trails::new();
    for group in groups(client, named).await? {
        let known = before.get(&group).map_or(&[][..], Vec::as_slice);
        let more = kept(client, group, last_of(known)).await?;
        if let Err(gap) = check_chain(known.iter().chain(&more)) {
            exit::tell(&format!("nothing was written: group {group}: {gap}"));
            return Ok(ExitCode::from(exit::REFUSED));
        }
        new.insert(group, more);
    }
    let opened = File::options().create(true).append(true).open(file);
    let opened = opened.with_context(|| format!("{} cannot be written", file.display()))?;
    let mut lines = BufWriter::new(&opened);
    for (group, record) in new.iter().flat_map(|(group, all)| all.iter().map(move |r| (group, r))) {
        serde_json::to_writer(&mut lines, &Line::of(*group, record))?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    drop(lines);
    opened.sync_all()?;
    let last = |group: &u32| {
        let known = |trails: &Trails| trails.get(group).map_or(0, |records| last_of(records));
        known(&new).max(known(&before))
    };
    let written: usize = new.values().map(Vec::len).sum();
    let ends: BTreeMap<u32, u64> = new.keys().map(|group| (*group, last(group))).collect();
    match output {
        Output::Json => output::print_json(&json!({
            "file": file.display().to_string(),
            "written": written,
            "last": ends.values().next(),
            "last_by_group": ends,
        }))?,
        Output::Table => {
            let ends: Vec<String> = ends.values().map(u64::to_string).collect();
            output::print(&format!(
                "{written} records written to {}; the last is {}.",
                file.display(),
                ends.join(", ")
            ))?;
        }
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
            let line = serde_json::to_string(&Line::of(0, &record)).unwrap();
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
            verify(None, None, Some(&path), Output::Json).await.unwrap()
        };
        let refused = ExitCode::from(exit::REFUSED);
        assert_eq!(code(&|line| line.to_owned()).await, ExitCode::SUCCESS);
        assert_eq!(code(&|line| line.replace("alice", "bob")).await, refused);
        assert_eq!(code(&|_| String::new()).await, refused);
        assert_eq!(code(&|line| line[..20].to_owned()).await, refused);
    }

    #[tokio::test]
    async fn trails_of_several_groups_in_one_file_are_verified_each_by_itself() {
        let (_folder, path) = file(str::to_owned);
        let one = std::fs::read_to_string(&path).unwrap();
        let other = one.replace("{\"number\"", "{\"group\":3,\"number\"");
        let mixed: String =
            one.lines().zip(other.lines()).map(|(a, b)| format!("{a}\n{b}\n")).collect();
        std::fs::write(&path, &mixed).unwrap();
        let trails = exported(&path).unwrap().unwrap();
        assert_eq!(
            trails.iter().map(|(g, all)| (*g, all.len())).collect::<Vec<_>>(),
            [(0, 3), (3, 3)]
        );
        let code = async |named| verify(None, named, Some(&path), Output::Json).await.unwrap();
        assert_eq!(code(None).await, ExitCode::SUCCESS);
        // A record of group 3 is taken out: group 0 is as whole as before.
        let cut: String = mixed
            .lines()
            .filter(|line| !line.contains("\"group\":3,\"number\":2"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(&path, cut).unwrap();
        assert_eq!(code(None).await, ExitCode::from(exit::REFUSED));
        assert_eq!(code(Some(3)).await, ExitCode::from(exit::REFUSED));
        assert_eq!(code(Some(0)).await, ExitCode::SUCCESS);
    }
}
