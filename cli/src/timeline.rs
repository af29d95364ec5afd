//! `holdfast tx show`, and `tx list` over the history: finished transactions by what they can be found by, and one drawn over time.

use std::collections::BTreeMap;

use holdfast_client::{
    Client, ClientError, Filter, Mode, Status,
    wire::{
        self, Attempt, HistoryRecord, SearchHistoryReply, SearchHistoryRequest, Tag, Transaction,
    },
};
use holdfast_proto::Pairs;

use crate::{
    output::{self, Output},
    tx_operate,
};

/// Which transactions. Any of these asks the history for finished ones, unless open ones are asked for.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Finished {
    /// Finished ones, newest first, from the history
    #[arg(long, conflicts_with = "open")]
    finished: bool,
    /// Open and recent ones, in gid order, whatever else is said; a status that is not final says so too
    #[arg(long)]
    open: bool,
    /// Only with this tag; may be repeated, and then all must be there
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = tag_of)]
    tags: Vec<Tag>,
    /// Only with a branch of this participant
    #[arg(long, value_name = "SERVICE")]
    participant: Option<String>,
    /// Only this mode: tcc, saga, xa
    #[arg(long, value_name = "MODE", value_parser = mode_of)]
    mode: Vec<Mode>,
    /// Only those that finished since (with --open: that began): an instant, ms, or 90s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    since: Option<u64>,
    /// Only those that finished before (with --open: that began)
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    until: Option<u64>,
    /// The tag `amount` is at least this, as "50.00 EUR"; goes with --amount-max
    #[arg(long, value_name = "AMOUNT", requires = "amount_max")]
    amount_min: Option<String>,
    /// The tag `amount` is at most this
    #[arg(long, value_name = "AMOUNT", requires = "amount_min")]
    amount_max: Option<String>,
    /// Continue behind this cursor of the last page
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

fn tag_of(text: &str) -> Result<Tag, String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok(Tag { name: name.to_owned(), value: value.to_owned() })
}

fn mode_of(text: &str) -> Result<Mode, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcc" => Ok(Mode::Tcc),
        "saga" => Ok(Mode::Saga),
        "xa" => Ok(Mode::Xa),
        _ => Err("is no mode: tcc, saga, xa".to_owned()),
    }
}

/// An instant as RFC 3339 or ms since the epoch, or how long ago it is.
fn time_of(text: &str) -> Result<u64, String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    let unit_ms = match text.chars().last() {
        Some('s') => 1_000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => 86_400_000,
        _ => return output::instant(text).ok_or_else(|| WRITE.to_owned()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| WRITE.to_owned())?;
    Ok(now_ms.saturating_sub(count.saturating_mul(unit_ms)))
}

const WRITE: &str = "write 2026-11-28T09:00:00Z, milliseconds since 1970, or 90s, 15m, 2h, 7d";

impl Finished {
    /// Whether anything was said that only the history can answer.
    pub(crate) fn is_asked(&self, statuses: &[Status]) -> bool {
        let open_asked = self.open || (!statuses.is_empty() && !only_final(statuses));
        let narrowed = !self.tags.is_empty()
            || !self.mode.is_empty()
            || self.participant.is_some()
            || self.since.is_some()
            || self.until.is_some()
            || self.amount_min.is_some();
        self.finished
            || self.cursor.is_some()
            || (!open_asked && (narrowed || !statuses.is_empty()))
    }

    /// The same filter, of open and recent transactions.
    pub(crate) fn of_open(self, filter: Filter) -> Filter {
        Filter {
            modes: self.mode,
            participant: self.participant,
            tags: self.tags.into_iter().map(|tag| (tag.name, tag.value)).collect(),
            amount: self.amount_min.zip(self.amount_max),
            from_ms: self.since.unwrap_or_default(),
            until_ms: self.until.unwrap_or_default(),
            ..filter
        }
    }

    /// Asks the history and prints a page.
    /// # Errors
    /// The request was refused, or no node answers.
    pub(crate) async fn list(
        self,
        client: &Client,
        statuses: &[Status],
        limit: u32,
        output: Output,
    ) -> anyhow::Result<()> {
        let request = SearchHistoryRequest {
            statuses: statuses.iter().map(|status| number_of(*status)).collect(),
            modes: self.mode.iter().map(|mode| mode.to_wire().into()).collect(),
            participant: self.participant.unwrap_or_default(),
            tags: self.tags,
            amount_min: self.amount_min.unwrap_or_default(),
            amount_max: self.amount_max.unwrap_or_default(),
            from_ms: self.since.unwrap_or_default(),
            until_ms: self.until.unwrap_or_default(),
            cursor: self.cursor.unwrap_or_default(),
            limit,
        };
        let page = client.search_history(request).await?;
        if output == Output::Json {
            return output::print_json(&serde_json::json!({
                "transactions": page.transactions.iter().map(json_of).collect::<Vec<_>>(),
                "next_cursor": Some(&page.next_cursor).filter(|cursor| !cursor.is_empty()),
                "node": page.node,
                "records": page.records,
                "oldest": instant(page.oldest_ms),
                "newest": instant(page.newest_ms),
                "gaps": page.gaps,
            }));
        }
        let rows = page.transactions.iter().map(|known| {
            vec![
                output::rfc3339(known.finished_at_ms),
                known.gid.clone(),
                mode_word(known),
                status_word(known),
                tags_text(known),
                known.reason.clone(),
            ]
        });
        let head = ["finished", "gid", "mode", "status", "tags", "reason"];
        let mut text = output::table(&head, rows);
        if !page.next_cursor.is_empty() {
            text.push_str(&format!("\n\nThere may be more: --cursor {}", page.next_cursor));
        }
        if page.gaps > 0 {
            text.push_str(&format!(
                "\n\nThis node's history has {} gaps; another node's may have none.",
                page.gaps
            ));
        }
        output::print(&text)
    }
}

fn only_final(statuses: &[Status]) -> bool {
    statuses.iter().all(|status| matches!(status, Status::Committed | Status::RolledBack))
}

fn number_of(status: Status) -> i32 {
    let name = format!("STATUS_{}", status.as_str().to_ascii_uppercase());
    wire::Status::from_str_name(&name).unwrap_or_default().into()
}

fn instant(ms: u64) -> Option<String> {
    (ms > 0).then(|| output::rfc3339(ms))
}

fn mode_word(known: &Transaction) -> String {
    known.mode().as_str_name().trim_start_matches("MODE_").to_ascii_lowercase()
}

fn status_word(known: &Transaction) -> String {
    known
        .status()
        .as_str_name()
        .trim_start_matches("STATUS_")
        .to_ascii_lowercase()
        .replace('_', " ")
}

fn tags_text(known: &Transaction) -> String {
    let tags: BTreeMap<_, _> = Pairs::among(&known.tags).collect();
    let tags: Vec<String> = tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
    tags.join(" ")
}

fn json_of(known: &Transaction) -> serde_json::Value {
    serde_json::json!({
        "gid": known.gid,
        "mode": mode_word(known),
        "status": status_word(known).replace(' ', "_"),
        "begun_at": instant(known.begun_at_ms),
        "decided_at": instant(known.decided_at_ms),
        "finished_at": instant(known.finished_at_ms),
        "reason": known.reason,
        "tags": Pairs::among(&known.tags).collect::<BTreeMap<_, _>>(),
        "branches": known.branches.iter().map(|branch| serde_json::json!({
            "branch": branch.branch,
            "participant": branch.participant,
            "state": branch.state,
            "refusal_code": branch.refusal_code,
            "refusal_message": branch.refusal_message,
        })).collect::<Vec<_>>(),
    })
}

/// Shows one transaction with its timeline: from the nodes one by one, until one has seen its calls.
/// # Errors
/// It is unknown, or no node answers.
pub(crate) async fn show(client: &Client, gid: &str, output: Output) -> anyhow::Result<()> {
    let record = match client.show(gid).await {
        Err(ClientError::Refused { code, message }) if code == UNKNOWN_GID => {
            return Err(unknown(client, gid, message).await.into());
        }
        shown => shown?,
    };
    let waits = record.transaction.as_ref().map(Transaction::status);
    // Only what needs attention can be ended by hand.
    let proposal = match waits {
        Some(wire::Status::NeedsAttention) => client.get(gid).await?.proposal,
        _ => None,
    };
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "transaction": record.transaction.as_ref().map(json_of),
            "attempts": record.attempts.iter().map(|one| serde_json::json!({
                "branch": one.branch,
                "op": op_word(one),
                "attempt": one.attempt,
                "at": instant(one.at_ms),
                "took_ms": one.took_ms,
                "outcome": one.outcome,
                "instance": one.instance,
            })).collect::<Vec<_>>(),
            "attempts_left_out": record.attempts_left_out,
            "attempts_node": Some(record.attempts_node).filter(|node| *node > 0),
            "proposal": proposal.as_ref().map(tx_operate::proposal_json),
        }));
    }
    let proposed = proposal.as_ref().map(tx_operate::proposal_text);
    let proposed = proposed.map(|text| format!("\n\nProposed: {text}")).unwrap_or_default();
    output::print(&(drawn(&record) + &proposed))
}

/// What may be with a gid that nobody knows, as far as the history of the node that said so goes; `said` if it does not tell.
async fn unknown(client: &Client, gid: &str, said: String) -> ClientError {
    let newest = SearchHistoryRequest { limit: 1, ..Default::default() };
    let page = client.search_history(newest).await;
    let message = page.map_or(said, |page| unknown_text(gid, &page));
    ClientError::Refused { code: UNKNOWN_GID.to_owned(), message }
}

fn unknown_text(gid: &str, page: &SearchHistoryReply) -> String {
    let forgotten = match instant(page.oldest_ms) {
        Some(oldest) => format!("finished before {oldest}, where its history begins"),
        None => "finished before its history began, which is empty".to_owned(),
    };
    let gaps = match page.gaps {
        0 => String::new(),
        gaps => format!(", or in one of its {gaps} gaps"),
    };
    format!(
        "node {} knows no global transaction {gid}. It was never begun at this cluster, {forgotten}{gaps}, or began just now. \
         Compare the gid with the one that was submitted, and --coordinator with the cluster's addresses; holdfast tx get {gid} asks the leader",
        page.node
    )
}

fn op_word(attempt: &Attempt) -> String {
    attempt.op().as_str_name().trim_start_matches("OP_").to_ascii_lowercase()
}

/// Nobody knows the gid.
const UNKNOWN_GID: &str = "HF2001";
/// Columns of the bars.
const BAR: u64 = 40;

/// The transaction as text: its head, its branches, and every call as a bar over the time from begin to end.
fn drawn(record: &HistoryRecord) -> String {
    let Some(known) = &record.transaction else { return "nothing is known of it".to_owned() };
    let mut text = format!("{}  {}  {}\n", known.gid, mode_word(known), status_word(known));
    let since = |ms: u64| ms.saturating_sub(known.begun_at_ms);
    for (word, ms) in [
        ("begun", known.begun_at_ms),
        ("decided", known.decided_at_ms),
        ("finished", known.finished_at_ms),
    ] {
        if ms > 0 {
            text.push_str(&format!("{word:9} {}  +{} ms\n", output::rfc3339(ms), since(ms)));
        }
    }
    if !known.reason.is_empty() {
        text.push_str(&format!("reason    {}\n", known.reason));
    }
    if !known.tags.is_empty() {
        text.push_str(&format!("tags      {}\n", tags_text(known)));
    }
    let ends = record.attempts.iter().map(|one| one.at_ms + one.took_ms);
    let end_ms = ends.chain([known.finished_at_ms, known.decided_at_ms]).max().unwrap_or(0);
    let whole_ms = since(end_ms).max(1);
    let column = |ms: u64| (since(ms).min(whole_ms) * (BAR - 1) / whole_ms) as usize;
    for branch in &known.branches {
        text.push_str(&format!("\nb{} {} - {}", branch.branch, branch.participant, branch.state));
        let refusal = [branch.refusal_code.as_str(), branch.refusal_message.as_str()];
        let refusal: Vec<&str> = refusal.into_iter().filter(|word| !word.is_empty()).collect();
        if !refusal.is_empty() {
            text.push_str(&format!(" ({})", refusal.join(": ")));
        }
        text.push('\n');
        for one in record.attempts.iter().filter(|one| one.branch == branch.branch) {
            let (from, to) = (column(one.at_ms), column(one.at_ms + one.took_ms));
            let mut bar = vec![' '; BAR as usize];
            bar[from..=to].fill('=');
            if known.decided_at_ms > 0 {
                let decided = &mut bar[column(known.decided_at_ms)];
                *decided = if *decided == ' ' { '|' } else { '+' };
            }
            let bar: String = bar.into_iter().collect();
            text.push_str(&format!(
                "  {:10} {:>3}  [{bar}]  +{} ms, {} ms  {}  {}\n",
                op_word(one),
                format!("#{}", one.attempt),
                since(one.at_ms),
                one.took_ms,
                one.outcome,
                one.instance
            ));
        }
    }
    text.push('\n');
    let note = match (record.attempts_node, record.attempts_left_out) {
        (0, _) => "Its calls were made by another node, or before this one led: ask the others with --coordinator.".to_owned(),
        (node, 0) => format!("Calls as node {node} saw them; | is the decision. Calls of a former leader are not among them."),
        (node, left_out) => format!("Calls as node {node} saw them, without {left_out} in the middle; | is the decision."),
    };
    text + &note
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> HistoryRecord {
        let branch = wire::Branch {
            branch: 1,
            participant: "deposit".into(),
            state: "undone".into(),
            ..Default::default()
        };
        let transaction = Transaction {
            gid: "g-1".into(),
            mode: 1,
            status: 8,
            begun_at_ms: 1_795_399_516_000,
            decided_at_ms: 1_795_399_516_050,
            finished_at_ms: 1_795_399_516_100,
            branches: vec![branch],
            ..Default::default()
        };
        let attempt = Attempt {
            branch: 1,
            op: 1,
            attempt: 1,
            at_ms: 1_795_399_516_000,
            took_ms: 25,
            outcome: "unknown".into(),
            instance: "app-1".into(),
        };
        HistoryRecord {
            transaction: Some(transaction),
            attempts: vec![attempt],
            attempts_left_out: 0,
            attempts_node: 2,
        }
    }

    #[test]
    fn a_timeline_shows_calls_as_bars_and_the_decision() {
        let text = drawn(&record());
        let bar = text.lines().find(|line| line.contains('[')).unwrap();
        assert!(bar.contains("[==========         |                    ]"), "{text}");
        assert!(bar.contains("try") && bar.contains("#1") && bar.contains("app-1"), "{text}");
        assert!(text.contains("g-1  tcc  rolled back"), "{text}");
    }

    #[test]
    fn calls_of_another_leader_are_told_as_not_known() {
        let text = drawn(&HistoryRecord { attempts_node: 0, attempts: Vec::new(), ..record() });
        assert!(text.contains("another node"), "{text}");
    }

    #[test]
    fn a_gid_that_nobody_knows_may_be_several_things() {
        let mut page = SearchHistoryReply { node: 2, ..Default::default() };
        let text = unknown_text("g-404", &page);
        assert!(text.contains("never begun") && text.contains("which is empty"), "{text}");
        (page.oldest_ms, page.gaps) = (1_795_399_516_000, 3);
        let text = unknown_text("g-404", &page);
        for word in ["node 2", "before 2026-11-23T02:05:16", "3 gaps", "holdfast tx get g-404"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn times_are_instants_or_ago() {
        assert_eq!(time_of("2026-11-23T02:05:16Z"), Ok(1_795_399_516_000));
        assert_eq!(time_of("1795399516000"), Ok(1_795_399_516_000));
        assert!(time_of("2h").unwrap() + 7_100_000 < time_of("1s").unwrap());
        assert!(time_of("soon").is_err() && time_of("").is_err());
    }
}
