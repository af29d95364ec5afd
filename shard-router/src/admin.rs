//! Questions about the router itself, asked by SQL on the same port: `SHOW HOLDFAST ...` and `EXPLAIN (ROUTE) ...`.

use holdfast_route::Topology;

use crate::{
    classify::Act, frame, refusal::Refusal, session::Session, source::Source, worker::Worker,
};

const SHOWN: [&str; 7] = ["shards", "servers", "slots", "rules", "pools", "plans", IN_DOUBT];
/// What is prepared and not ended.
pub(crate) const IN_DOUBT: &str = "in_doubt";

/// The columns that such a statement answers with; none for others.
pub(crate) fn columns(act: &Act) -> &'static [&'static str] {
    match act {
        Act::Show(what) => match what.as_str() {
            "shards" => &["shard", "source", "addresses", "primary", "reachable"],
            "servers" => &["source", "address", "role", "age_ms"],
            "slots" => &["group", "first", "last", "shard", "source", "epoch"],
            "rules" => &[
                "epoch",
                "from",
                "confirmed_ms_ago",
                "newer",
                "why",
                "oldest",
                "moving",
                "waiting",
            ],
            "pools" => &[
                "source", "user", "database", "open", "idle", "waiting", "address", "role",
                "age_ms",
            ],
            "plans" => &["kind", "count"],
            IN_DOUBT => &["gid", "branch", "source", "shard", "age_ms", "state", "blocked"],
            _ => &[],
        },
        Act::ExplainRoute(_) => &["what", "value"],
        Act::Locate(..) => &["group", "slot", "shard", "source", "epoch", "key"],
        _ => &[],
    }
}

/// Appends the rows of `SHOW HOLDFAST <what>` with description and tag.
/// # Errors
/// HF3215: there is nothing of that name.
pub(crate) fn show(worker: &Worker, what: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let rows = match what {
        "shards" => shards(worker),
        "servers" => servers(worker),
        "slots" => slots(worker),
        "rules" => rules(worker),
        "pools" => pools(worker),
        "plans" => vec![
            vec!["shapes".to_owned(), worker.meanings.borrow().len().to_string()],
            vec!["prepared".to_owned(), worker.statements.borrow().len().to_string()],
        ],
        other => {
            let cause = match other {
                "" => "SHOW HOLDFAST of what?".to_owned(),
                other => format!("there is no SHOW HOLDFAST {other}"),
            };
            let remedy = format!("To choose from: {}", SHOWN.join(", "));
            return Err(Refusal::new("HF3215", "42601", cause, remedy));
        }
    };
    frame::put_columns(out, columns(&Act::Show(what.to_owned())));
    for row in &rows {
        let row: Vec<_> = row.iter().map(Some).collect();
        frame::put_row(out, &row);
    }
    frame::put_complete(out, "SHOW");
    Ok(())
}

/// A row for each shard; without rules, one for the only source.
fn shards(worker: &Worker) -> Vec<Vec<String>> {
    let row = |shard: &str, source: &Source| {
        let addresses: Vec<_> = source.config.addresses.iter().map(ToString::to_string).collect();
        let primary = source.primary_index().and_then(|index| source.endpoint(index));
        let primary = primary.map(ToString::to_string);
        vec![
            shard.to_owned(),
            source.name().to_owned(),
            addresses.join(", "),
            primary.unwrap_or_default(),
            source.is_reachable().to_string(),
        ]
    };
    let meanings = worker.meanings.borrow();
    let Some(rules) = meanings.rules() else {
        return worker.sources().iter().map(|source| row("-", source)).collect();
    };
    let named = |name: &str| worker.sources().iter().find(|source| source.name() == name);
    let shards = rules.shards().iter();
    shards
        .filter_map(|(shard, at)| Some(row(shard.as_str(), named(at.source().as_str())?)))
        .collect()
}

/// A row for each server of each source: what it was at the last look, and how old its rows may be.
fn servers(worker: &Worker) -> Vec<Vec<String>> {
    let of_source = |source: &std::sync::Arc<Source>| {
        let addresses = source.config.addresses.iter().enumerate();
        let rows = addresses.map(|(index, address)| {
            let (role, age) = (source.role(index).name().to_owned(), age_ms(source, index));
            vec![source.name().to_owned(), address.to_string(), role, age]
        });
        rows.collect::<Vec<_>>()
    };
    worker.sources().iter().flat_map(of_source).collect()
}

/// How old a replica's rows may be, ms; empty where that is not known, and for a primary.
fn age_ms(source: &Source, index: usize) -> String {
    source.age(index).map_or_else(String::new, |age| age.as_millis().to_string())
}

/// The shards that lie on a source; without rules, none.
pub(crate) fn shards_of(worker: &Worker, source: &str) -> String {
    let meanings = worker.meanings.borrow();
    let Some(rules) = meanings.rules() else { return "-".to_owned() };
    let here = rules.shards().iter().filter(|(_, at)| at.source().as_str() == source);
    here.map(|(shard, _)| shard.to_string()).collect::<Vec<_>>().join(", ")
}

/// A row for each range of slots.
fn slots(worker: &Worker) -> Vec<Vec<String>> {
    let meanings = worker.meanings.borrow();
    let Some(rules) = meanings.rules() else { return Vec::new() };
    let mut rows = Vec::new();
    for (name, group) in rules.groups() {
        for (shard, at) in rules.shards() {
            for range in group.slots_of(shard) {
                rows.push((name, range, shard, at.source()));
            }
        }
    }
    rows.sort_by_key(|(name, range, ..)| ((*name).clone(), range.first));
    let epoch = rules.epoch();
    rows.into_iter()
        .map(|(name, range, shard, source)| {
            vec![
                name.to_string(),
                range.first.to_string(),
                range.last.to_string(),
                shard.to_string(),
                source.to_string(),
                epoch.to_string(),
            ]
        })
        .collect()
}

/// One row: which rules count, since when the leader has not said so, what keeps newer ones out, by how old ones anything is
/// still open, which slots are on their way, and how many statements wait for them.
fn rules(worker: &Worker) -> Vec<Vec<String>> {
    let Some(rules) = &worker.shared().rules else { return Vec::new() };
    let view = rules.view();
    let followed = worker.config().coordinator.is_some();
    let (newer, why) = view.untaken.map_or_else(Default::default, |(e, why)| (e.to_string(), why));
    let why = view.held.map_or(why, |held| held.to_string());
    let moving = view.awaited.iter().map(|step| {
        let state = if step.is_frozen() { "frozen" } else { "settling" };
        let slots: Vec<_> = step.slots.iter().map(ToString::to_string).collect();
        let (id, group, slots) = (&step.id, &step.group, slots.join(", "));
        format!("{id} {state}: {group} {slots} from {} to {}", step.from, step.to)
    });
    let moving = moving.collect::<Vec<_>>().join("; ");
    vec![vec![
        view.epoch.to_string(),
        if view.from_log { "log" } else { "file" }.to_owned(),
        if followed { view.age_ms.to_string() } else { String::new() },
        newer,
        why,
        worker.shared().oldest().to_string(),
        moving,
        worker.shared().counts.waiting().to_string(),
    ]]
}

/// A row for each pool of the worker that was asked.
fn pools(worker: &Worker) -> Vec<Vec<String>> {
    let pools = worker.pools();
    let row = |pool: &std::rc::Rc<crate::backend::Pool>| {
        let (open, idle, waiting) = pool.counts();
        let (user, database) = pool.account();
        let names = [pool.source.name(), user, database].map(str::to_owned);
        let (role, age) = match pool.replica() {
            Some(index) => ("replica", age_ms(&pool.source, index)),
            None => ("primary", String::new()),
        };
        let counts = [open, idle, waiting].map(|n| n.to_string());
        names.into_iter().chain(counts).chain([pool.address(), role.to_owned(), age]).collect()
    };
    pools.iter().map(row).collect()
}

/// Appends where a key lives: group, slot, shard, source, epoch, and the key itself.
/// # Errors
/// There are no rules, no such group, or the key is none.
pub(crate) fn locate(
    worker: &Worker,
    group: &str,
    key: &str,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let meanings = worker.meanings.borrow();
    let Some(rules) = meanings.rules() else {
        let cause = "this router has no rules, so every key lives on its only source";
        return Err(Refusal::new("HF3215", "0A000", cause, "Name the rules file (router.rules)"));
    };
    let row = place(rules, group, key)?;
    frame::put_columns(out, columns(&Act::Locate(String::new(), String::new())));
    frame::put_row(out, &row.map(Some));
    frame::put_complete(out, "SELECT 1");
    Ok(())
}

/// Where a key lives, as a row.
/// # Errors
/// There is no such group, or the key is none.
pub(crate) fn place(rules: &Topology, group: &str, key: &str) -> Result<[String; 6], Refusal> {
    let located = rules.locate(group, key).map_err(|error| {
        let text = error.to_string();
        let cause = text.strip_prefix(error.code()).unwrap_or(&text).trim().to_owned();
        Refusal::new(error.code(), "22023", cause, "Check group and key")
    })?;
    Ok([
        located.group.to_string(),
        located.slot.to_string(),
        located.shard.to_string(),
        located.source.to_string(),
        located.epoch.to_string(),
        key.to_owned(),
    ])
}

/// Appends what `EXPLAIN (ROUTE)` says of a statement, which is not executed.
/// # Errors
/// The statement would be refused.
pub(crate) fn explain(session: &Session, sql: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let rows = session.explain_route(sql)?;
    frame::put_columns(out, columns(&Act::ExplainRoute(0)));
    for (what, value) in &rows {
        frame::put_row(out, &[Some(what.as_str()), Some(value.as_str())]);
    }
    frame::put_complete(out, "EXPLAIN");
    Ok(())
}
