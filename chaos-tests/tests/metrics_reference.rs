//! Holds the reference pages to the sources: every metric of ours is explained, and every test that a page names as proof exists.
//!
//! Like the tidy test it reads files only, and knows no crate but the standard library.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const PAGE: &str = "docs/reference/metrics.md";
/// Pages that name tests as proof.
const PROVED: [&str; 4] = [
    "docs/reference/promises.md",
    "docs/reference/limits.md",
    "docs/operating/failover.md",
    "docs/reference/scenarios.md",
];
/// What Prometheus adds to the name of a histogram.
const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];
/// The shortest name of a test that is told from the name of a setting: a sentence has this many underscores at least.
const UNDERSCORES_MIN: usize = 3;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every file below the root whose path contains `part`; what was built is left out.
fn files(part: &str) -> Vec<PathBuf> {
    let mut folders = vec![root()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Whether it is a source of what is shipped, not of a test.
fn is_shipped(file: &Path) -> bool {
    let inner = file.strip_prefix(root()).expect("it was found below the root");
    let path = inner.to_string_lossy();
    path.contains("src/") && !path.starts_with("chaos-tests/") && !path.contains("tests")
}

/// Names that begin like a metric's, of what is made in databases.
const SCHEMAS: [&str; 1] = ["holdfast_move"];

/// The words of lower case letters, digits and `_` between two of `quote`.
fn quoted(text: &str, quote: char) -> BTreeSet<&str> {
    let is_word = |word: &&str| {
        !word.is_empty()
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.split(quote).filter(is_word).collect()
}

/// The metrics in `text`: a name begins with `holdfast_` and stands between quotes, alone or before its labels.
fn metrics_in_source(text: &str) -> BTreeSet<String> {
    quoted(text, '"')
        .into_iter()
        .filter(|word| word.starts_with("holdfast_") && !word.ends_with('_'))
        .filter(|word| !SCHEMAS.contains(word))
        .map(str::to_owned)
        .collect()
}

/// The first cell of each row of a table: the metrics that the page explains.
fn metrics_explained(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|word| word.starts_with("holdfast_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_is_explained_and_every_explained_metric_exists() {
    let mut counted: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in files(".rs").into_iter().filter(|file| is_shipped(file)) {
        for metric in metrics_in_source(&read(&file)) {
            let plain = SUFFIXES.iter().find_map(|suffix| metric.strip_suffix(suffix));
            let plain = plain.map_or(metric.clone(), str::to_owned);
            counted.entry(plain).or_insert_with(|| file.clone());
        }
    }
    assert!(counted.len() > 20, "only {} metrics were found", counted.len());
    let explained = metrics_explained(&read(&root().join(PAGE)));
    let mut mistakes = Vec::new();
    for (metric, file) in &counted {
        if !explained.contains(metric) {
            mistakes.push(format!("{metric} ({}) is not explained in {PAGE}", file.display()));
        }
    }
    for metric in explained.iter().filter(|metric| !counted.contains_key(*metric)) {
        mistakes.push(format!("{PAGE} explains {metric}, which nothing counts"));
    }
    assert!(mistakes.is_empty(), "{} to mend:\n{}", mistakes.len(), mistakes.join("\n"));
}

#[test]
fn every_test_that_a_page_names_as_proof_exists() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for file in files(".rs") {
        for line in read(&file).lines() {
            let rest = line.trim_start().trim_start_matches("async ");
            if let Some(name) = rest.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                known.insert(name.to_owned());
            }
        }
    }
    // A golden script is a test as well.
    for file in files("testscripts") {
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        known.insert(name.to_owned());
    }
    let mut mistakes = Vec::new();
    let mut named = 0;
    for page in PROVED {
        let text = read(&root().join(page));
        for name in quoted(&text, '`') {
            if name.matches('_').count() < UNDERSCORES_MIN || name.starts_with("holdfast_") {
                continue;
            }
            named += 1;
            if !known.contains(name) {
                mistakes.push(format!("{page} names {name}, and no test has that name"));
            }
        }
    }
    assert!(named > 40, "only {named} tests are named");
    assert!(mistakes.is_empty(), "{} to mend:\n{}", mistakes.len(), mistakes.join("\n"));
}

#[test]
fn what_is_looked_for_is_found() {
    let source = "counter!(\"holdfast_calls_total\", \"op\" => op); // not holdfast_spoken_of";
    assert_eq!(metrics_in_source(source), BTreeSet::from(["holdfast_calls_total".to_owned()]));
    let page = "`holdfast_in_prose`\n| `holdfast_calls_total` | counter | `op` |";
    assert_eq!(metrics_explained(page), BTreeSet::from(["holdfast_calls_total".to_owned()]));
    assert_eq!(quoted("a `b_c`, `D` and `e f`", '`'), BTreeSet::from(["b_c"]));
}
