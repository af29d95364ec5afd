//! Questions about the router itself, asked by SQL on the same port: `SHOW HOLDFAST ...` and `EXPLAIN (ROUTE) ...`.

use crate::{classify::Act, frame, refusal::Refusal, session::Session, worker::Worker};

const SHOWN: [&str; 3] = ["shards", "pools", "plans"];

/// The columns that such a statement answers with; none for others.
pub(crate) fn columns(act: &Act) -> &'static [&'static str] {
    match act {
        Act::Show(what) => match what.as_str() {
            "shards" => &["source", "addresses", "primary", "reachable"],
            "pools" => &["source", "user", "database", "open", "idle", "waiting"],
            "plans" => &["kind", "count"],
            _ => &[],
        },
        Act::ExplainRoute(_) => &["what", "value"],
        _ => &[],
    }
}

/// Appends the rows of `SHOW HOLDFAST <what>` with description and tag.
/// # Errors
/// HF3215: there is nothing of that name.
pub(crate) fn show(worker: &Worker, what: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let rows: Vec<Vec<String>> = match what {
        "shards" => worker
            .sources()
            .iter()
            .map(|source| {
                let addresses: Vec<_> =
                    source.config.addresses.iter().map(ToString::to_string).collect();
                let primary = source.endpoint(source.primary_index()).map(ToString::to_string);
                vec![
                    source.name().to_owned(),
                    addresses.join(", "),
                    primary.unwrap_or_default(),
                    source.is_reachable().to_string(),
                ]
            })
            .collect(),
        "pools" => worker
            .pools()
            .iter()
            .map(|pool| {
                let (open, idle, waiting) = pool.counts();
                let (user, database) = pool.account();
                let names = [pool.source.name(), user, database].map(str::to_owned);
                names.into_iter().chain([open, idle, waiting].map(|n| n.to_string())).collect()
            })
            .collect(),
        "plans" => {
            let statements = worker.statements.borrow().len();
            vec![vec!["prepared".to_owned(), statements.to_string()]]
        }
        other => {
            let cause = format!("there is no SHOW HOLDFAST {other}");
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
