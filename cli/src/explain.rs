//! `holdfast explain`: the pages of docs/reference/errors, carried in the binary.

use std::process::ExitCode;

use crate::{
    exit::Usage,
    output::{self, Output},
};

/// Code and page, sorted by code.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// Explains an error code: what happened, what to do.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast explain HF1004
  holdfast explain
  holdfast explain HF2102 --output json")]
pub(crate) struct ExplainArgs {
    /// The code, for example HF1004; without it, all codes are listed
    code: Option<String>,
}

/// Prints one page, or the list of all.
/// # Errors
/// There is no such code.
pub(crate) fn run(args: &ExplainArgs, output: Output) -> anyhow::Result<ExitCode> {
    match &args.code {
        Some(code) => one(code, output)?,
        None => all(output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn one(asked: &str, output: Output) -> anyhow::Result<()> {
    let code = asked.trim().to_uppercase();
    let Some((code, page)) = PAGES.iter().find(|(known, _)| *known == code) else {
        let near = PAGES.iter().map(|(known, _)| *known);
        let near = near.min_by_key(|known| strsim::damerau_levenshtein(known, &code));
        let hint = near.map(|near| format!(" Did you mean {near}?")).unwrap_or_default();
        let text = format!("no error has the code {asked:?}.{hint} `holdfast explain` lists all.");
        return Err(Usage(text).into());
    };
    match output {
        Output::Table => output::print(page),
        Output::Json => output::print_json(
            &serde_json::json!({ "code": code, "title": title(page), "page": page }),
        ),
    }
}

fn all(output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => {
            let rows =
                PAGES.iter().map(|(code, page)| vec![(*code).to_owned(), title(page).to_owned()]);
            output::print(&output::table(&["code", "title"], rows))
        }
        Output::Json => {
            let list = PAGES
                .iter()
                .map(|(code, page)| serde_json::json!({ "code": code, "title": title(page) }));
            output::print_json(&list.collect())
        }
    }
}

/// The words behind the code in the page's first line, `# HF1004: two values contradict each other`.
fn title(page: &str) -> &str {
    let first = page.lines().next().unwrap_or_default();
    first.split_once(": ").map_or(first, |(_, title)| title)
}
