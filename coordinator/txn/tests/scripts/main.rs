//! Runs every story in `testscripts`. To write down new outputs: `UPDATE_GOLDENFILES=1 cargo test -p holdfast-txn`; then read them,
//! since they are the specification.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

mod parse;
mod stage;
mod tell;

/// The folders, each a test below; a folder that nobody runs is a mistake.
const FOLDERS: [&str; 13] = [
    "attention",
    "books",
    "capture",
    "enlisted",
    "idempotency",
    "leader",
    "limits",
    "nested",
    "operator",
    "order",
    "saga",
    "tcc",
    "xa",
];

fn entries(of: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts")
}

/// Runs all stories of a folder and names every one whose telling changed.
fn run(folder: &str) {
    let paths = entries(&root().join(folder));
    assert!(!paths.is_empty(), "{folder} holds no story");
    let failed: Vec<_> = paths
        .iter()
        .filter(|path| {
            catch_unwind(AssertUnwindSafe(|| {
                if let Err(error) = goldenscript::run(&mut stage::Stage::default(), path) {
                    panic!("{}: {error}", path.display());
                }
            }))
            .is_err()
        })
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(failed.is_empty(), "in {folder}, told differently: {failed:?}");
}

#[test]
fn attention() {
    run("attention");
}

#[test]
fn books() {
    run("books");
}

#[test]
fn capture() {
    run("capture");
}

#[test]
fn enlisted() {
    run("enlisted");
}

#[test]
fn idempotency() {
    run("idempotency");
}

#[test]
fn leader() {
    run("leader");
}

#[test]
fn limits() {
    run("limits");
}

#[test]
fn nested() {
    run("nested");
}

#[test]
fn operator() {
    run("operator");
}

#[test]
fn order() {
    run("order");
}

#[test]
fn saga() {
    run("saga");
}

#[test]
fn tcc() {
    run("tcc");
}

#[test]
fn xa() {
    run("xa");
}

#[test]
fn every_story_is_run_and_opens_with_its_moral() {
    let folders: Vec<_> = entries(&root())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(folders, FOLDERS);
    for path in FOLDERS.iter().flat_map(|folder| entries(&root().join(folder))) {
        let name = path.file_name().unwrap().to_string_lossy();
        let is_sentence = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        assert!(is_sentence && name.contains('_'), "{name} is no sentence in snake_case");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{name} opens without a comment");
    }
}
