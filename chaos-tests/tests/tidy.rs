//! The customs of the house that no compiler checks: captions, sizes, names, arrows between crates, pages for error codes, links.
//!
//! Every test reads the files that git knows or would take, so what is built or ignored is never looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

/// Files that may be longer, each with the reason.
const LONG: &[(&str, &str)] = &[];
/// Lines of one source file.
const LINES_MAX: usize = 600;
/// Lines of the README.
const README_LINES_MAX: usize = 150;
/// Names that say nothing.
const EMPTY_NAMES: [&str; 7] = ["util", "common", "helpers", "types", "misc", "manager", "base"];
/// The minds.
const MINDS: [&str; 4] =
    ["coordinator/txn", "shard-router/route", "tcc-agent/branch", "banking/ledger"];
/// What a mind may be built from, beside nothing at all: data, encodings, hashes, errors.
const MIND_DEPENDENCIES: [&str; 10] = [
    "bytes",
    "serde",
    "serde_json",
    "thiserror",
    "toml",
    "sha2",
    "crc32c",
    "crc32fast",
    "strsim",
    "sqlparser",
];
/// What a mind's tests may add.
const MIND_TEST_DEPENDENCIES: [&str; 6] =
    ["goldenscript", "proptest", "divan", "serde_json", "anyhow", "rand"];
/// Which of our crates each may name. Wings meet at `proto` and `client`; minds import nothing of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("security", &[]),
    ("client", &["proto", "security", "trace"]),
    ("fault", &[]),
    ("trace", &[]),
    ("coordinator/txn", &[]),
    ("coordinator/raft", &["proto", "security", "fault"]),
    ("coordinator/history", &["proto"]),
    (
        "coordinator",
        &["proto", "client", "security", "fault", "trace", "txn", "raft", "history", "route"],
    ),
    ("shard-router/route", &[]),
    ("shard-router", &["proto", "client", "security", "fault", "route"]),
    ("tcc-agent/branch", &[]),
    ("tcc-agent", &["proto", "client", "security", "fault", "trace", "branch"]),
    ("banking/ledger", &[]),
    ("banking", &["proto", "client", "fault", "ledger", "tcc-agent", "route"]),
    ("chaos-tests/sim", &["txn", "branch", "ledger", "route"]),
];
/// May name everything.
const ABOVE_ALL: [&str; 2] = ["cli", "chaos-tests"];
/// Folders of sample data and golden scripts, whose form is not ours to choose.
const FOREIGN: [&str; 2] = ["examples/data/", "testscripts/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file of the house, relative to its root.
fn files() -> Vec<String> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").current_dir(root()).args(arguments).output();
    let mut files: Vec<String> = match listed {
        Ok(output) if output.status.success() => {
            let names = String::from_utf8(output.stdout).expect("names are UTF-8");
            names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        }
        // An unpacked archive has no git: walk.
        _ => {
            let mut found = Vec::new();
            walk(&root(), Path::new(""), &mut found);
            found
        }
    };
    // A file that was removed and not committed yet is still listed.
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files.dedup();
    assert!(files.len() > 100, "only {} files were found", files.len());
    files
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).expect("a folder of ours").flatten() {
        let path = folder.join(entry.file_name());
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.path().is_dir() {
            walk(root, &path, found);
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn with_extension(extension: &str) -> Vec<String> {
    let dot = format!(".{extension}");
    files().into_iter().filter(|file| file.ends_with(&dot)).collect()
}

/// This file speaks of what it forbids.
fn is_this(file: &str) -> bool {
    file == "chaos-tests/tests/tidy.rs"
}

fn none(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "{} to mend:\n{}", mistakes.len(), mistakes.join("\n"));
}

#[test]
fn every_file_opens_with_its_caption() {
    let without = with_extension("rs").into_iter().filter(|file| !read(file).starts_with("//! "));
    none(
        &without
            .map(|file| format!("{file}: begin with //! and its job in one sentence"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn no_file_is_longer_than_the_bar() {
    let mut mistakes = Vec::new();
    for file in with_extension("rs") {
        let lines = read(&file).lines().count();
        let excused = LONG.iter().any(|(long, _)| *long == file);
        if lines > LINES_MAX && !excused {
            mistakes.push(format!("{file}: {lines} lines; split it where a second caption begins"));
        }
    }
    for (file, reason) in LONG {
        if !root().join(file).is_file() || read(file).lines().count() <= LINES_MAX {
            mistakes.push(format!("{file} needs no excuse any more ({reason})"));
        }
    }
    none(&mistakes);
}

#[test]
fn no_module_has_an_empty_name() {
    let mut mistakes = Vec::new();
    let named = with_extension("rs").into_iter().chain(crates());
    for file in named {
        let path = Path::new(&file);
        let named = path.components().filter_map(|part| match part {
            Component::Normal(name) => Path::new(name).file_stem()?.to_str(),
            _ => None,
        });
        for name in named {
            let said = name.split(['_', '-']).find(|word| EMPTY_NAMES.contains(word));
            if let Some(word) = said {
                mistakes.push(format!("{file}: \"{word}\" says nothing; name what it is for"));
            }
        }
    }
    for file in with_extension("rs") {
        for line in read(&file).lines() {
            let line =
                line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            let name = line.strip_prefix("mod ").map(|rest| rest.trim_end_matches([' ', '{', ';']));
            if name.is_some_and(|name| EMPTY_NAMES.contains(&name)) {
                mistakes.push(format!("{file}: {line}"));
            }
        }
    }
    none(&mistakes);
}

/// The dependencies of one Cargo.toml, by table: `dependencies`, `dev-dependencies`, `build-dependencies`.
fn dependencies(file: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in read(file).lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = name.to_owned();
            // [dependencies.name] is a dependency, too.
            if let Some((kind, name)) = name.split_once("dependencies.") {
                tables.entry(format!("{kind}dependencies")).or_default().insert(name.to_owned());
            }
        } else if table.ends_with("dependencies")
            && !line.starts_with('#')
            && let Some((name, _)) = line.split_once('=')
        {
            let name = name.trim().split('.').next().expect("a split has a first part");
            tables.entry(table.clone()).or_default().insert(name.trim_matches('"').to_owned());
        }
    }
    tables
}

/// The Cargo.toml of every crate, by folder.
fn crates() -> Vec<String> {
    let crates: Vec<String> = with_extension("toml")
        .into_iter()
        .filter_map(|file| file.strip_suffix("/Cargo.toml").map(str::to_owned))
        // The fuzz targets are a workspace of their own, for a nightly compiler.
        .filter(|folder| folder != "fuzz")
        .filter(|folder| read(&format!("{folder}/Cargo.toml")).contains("[package]"))
        .collect();
    assert!(crates.len() >= ARROWS.len() + ABOVE_ALL.len(), "{crates:?}");
    crates
}

#[test]
fn minds_know_no_runtime_no_network_and_none_of_our_crates() {
    let mut mistakes = Vec::new();
    for mind in MINDS {
        let tables = dependencies(&format!("{mind}/Cargo.toml"));
        for (table, names) in &tables {
            for name in names {
                let allowed = MIND_DEPENDENCIES.contains(&name.as_str())
                    || (table == "dev-dependencies"
                        && MIND_TEST_DEPENDENCIES.contains(&name.as_str()));
                if !allowed {
                    mistakes.push(format!("{mind}: [{table}] {name} is not for a mind"));
                }
            }
        }
        let laws = format!("{mind}/clippy.toml");
        if !root().join(&laws).is_file() || !read(&laws).contains("std::time::Instant") {
            mistakes.push(format!("{mind}: its clippy.toml does not ban clocks"));
        }
    }
    none(&mistakes);
}

#[test]
fn arrows_between_crates_point_down() {
    let mut mistakes = Vec::new();
    for folder in crates() {
        if ABOVE_ALL.contains(&folder.as_str()) || folder.starts_with("examples") {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == folder) else {
            mistakes.push(format!("{folder}: a new crate; give it a line in ARROWS"));
            continue;
        };
        for (table, names) in dependencies(&format!("{folder}/Cargo.toml")) {
            let ours = names.iter().filter_map(|name| name.strip_prefix("holdfast-"));
            for name in ours.filter(|name| !allowed.contains(name)) {
                mistakes.push(format!(
                    "{folder}: [{table}] holdfast-{name} is an arrow that the house does not have"
                ));
            }
        }
    }
    none(&mistakes);
}

#[test]
fn every_crate_obeys_the_laws_of_the_workspace() {
    let mut mistakes = Vec::new();
    for folder in crates() {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let inherits = manifest.contains("[lints]\nworkspace = true");
        // Cargo refuses a crate that inherits the table and extends it, so a mind says it in its lib.rs.
        if !inherits {
            mistakes.push(format!("{folder}: [lints] workspace = true is missing"));
        }
        if !manifest.contains("publish.workspace = true") {
            mistakes.push(format!("{folder}: publish.workspace = true is missing"));
        }
    }
    none(&mistakes);
}

#[test]
fn only_the_log_names_its_library() {
    let mut mistakes = Vec::new();
    let sources = with_extension("rs")
        .into_iter()
        .chain(crates().into_iter().map(|c| format!("{c}/Cargo.toml")));
    for file in sources.filter(|file| !file.starts_with("coordinator/raft/") && !is_this(file)) {
        if read(&file).contains("openraft") {
            mistakes.push(format!("{file} names openraft, which only coordinator/raft knows"));
        }
    }
    none(&mistakes);
}

#[test]
fn nothing_is_left_undone() {
    let undone = ["todo!", "unimplemented!", "FIXME", "#[ignore"];
    let mut mistakes = Vec::new();
    for file in with_extension("rs").into_iter().filter(|file| !is_this(file)) {
        for (n, line) in read(&file).lines().enumerate() {
            if let Some(word) = undone.iter().find(|word| line.contains(**word)) {
                mistakes.push(format!("{file}:{}: {word}", n + 1));
            }
        }
    }
    none(&mistakes);
}

#[test]
fn the_readme_is_short() {
    if root().join("README.md").is_file() {
        let lines = read("README.md").lines().count();
        assert!(lines <= README_LINES_MAX, "README.md has {lines} lines of {README_LINES_MAX}");
    }
}

/// Every error code in `text`: HF and four digits.
fn codes(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("HF") {
        let digits: String = text[at + 2..].chars().take_while(char::is_ascii_digit).collect();
        let glued = text[..at].chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric());
        if digits.len() == 4 && !glued {
            found.insert(format!("HF{digits}"));
        }
    }
    found
}

#[test]
fn every_code_has_a_page_and_every_page_is_used() {
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for file in with_extension("rs").into_iter().filter(|file| file.contains("src/")) {
        for code in codes(&read(&file)) {
            used.entry(code).or_insert(file.clone());
        }
    }
    assert!(used.len() > 40, "only {} codes were found", used.len());
    let folder = "docs/reference/errors/";
    let pages: BTreeSet<String> = with_extension("md")
        .iter()
        .filter_map(|file| file.strip_prefix(folder)?.strip_suffix(".md").map(str::to_owned))
        .filter(|name| name.starts_with("HF"))
        .collect();
    let mut mistakes = Vec::new();
    for (code, file) in &used {
        if !pages.contains(code) {
            mistakes.push(format!("{code} is used in {file} and has no page in {folder}"));
        }
    }
    for page in &pages {
        if !used.contains_key(page) {
            mistakes.push(format!("{folder}{page}.md explains a code that nothing says"));
        }
        let text = read(&format!("{folder}{page}.md"));
        if !text.starts_with(&format!("# {page}: ")) {
            mistakes.push(format!("{folder}{page}.md does not begin with \"# {page}: \""));
        }
        for part in ["**Kind:**", "**What happened.**", "**What to do.**"] {
            if !text.contains(part) {
                mistakes.push(format!("{folder}{page}.md has no {part}"));
            }
        }
    }
    none(&mistakes);
}

/// The targets of the links in a markdown text, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_fence = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        }
        if in_fence {
            continue;
        }
        // What stands between backticks is code, too.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in prose.split("](").skip(1) {
            if let Some(target) = rest.split(')').next() {
                found.push(target.split_whitespace().next().unwrap_or_default().to_owned());
            }
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let mut mistakes = Vec::new();
    let mut followed = 0;
    for file in with_extension("md") {
        for target in links(&read(&file)) {
            let outside = ["http://", "https://", "mailto:", "#"];
            if outside.iter().any(|prefix| target.starts_with(prefix)) {
                continue;
            }
            followed += 1;
            let path = target.split('#').next().expect("a split has a first part");
            let folder = Path::new(&file).parent().expect("a file stands in a folder");
            if !root().join(folder).join(path).exists() {
                mistakes.push(format!("{file}: {target} is not there"));
            }
        }
    }
    assert!(followed > 0, "no link was found at all");
    none(&mistakes);
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let listed: BTreeSet<String> = links(&read("docs/README.md")).into_iter().collect();
    let pages = with_extension("md").into_iter().filter_map(|file| {
        let page = file.strip_prefix("docs/")?.to_owned();
        // An error's page is found by its code.
        (page != "README.md" && !page.starts_with("reference/errors/")).then_some(page)
    });
    let (listed_ones, missing): (Vec<_>, Vec<_>) = pages.partition(|page| listed.contains(page));
    assert!(!listed_ones.is_empty(), "docs/README.md lists nothing");
    none(&missing);
}

#[test]
fn lines_end_where_their_words_do() {
    let kinds = ["rs", "md", "toml", "proto", "sql", "sh", "yml", "yaml"];
    let mut mistakes = Vec::new();
    for file in files() {
        let extension = Path::new(&file).extension().and_then(|e| e.to_str()).unwrap_or_default();
        let foreign = FOREIGN.iter().any(|folder| file.contains(folder));
        if foreign || !(kinds.contains(&extension) || file == "Makefile") {
            continue;
        }
        let text = read(&file);
        for (n, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                mistakes.push(format!("{file}:{}: blanks at the end", n + 1));
            }
            if extension == "rs" && line.contains('\t') {
                mistakes.push(format!("{file}:{}: a tab", n + 1));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            mistakes.push(format!("{file}: the last line does not end"));
        }
        if text.ends_with("\n\n") {
            mistakes.push(format!("{file}: empty lines at the end"));
        }
    }
    none(&mistakes);
}

#[test]
fn every_shipped_key_is_explained() {
    let reference = read("docs/reference/config.md");
    let mut mistakes = Vec::new();
    for role in ["coordinator", "agent", "bank"] {
        let mut section = String::new();
        for line in read(&format!("config/{role}.toml")).lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_matches(['[', ']']).to_owned();
            } else if let Some((key, _)) = line.split_once(" = ")
                && !line.starts_with('#')
            {
                let row = format!("`{section}.{key}`");
                if !reference.contains(&row) {
                    mistakes.push(format!("docs/reference/config.md does not explain {row}"));
                }
            }
        }
    }
    none(&mistakes);
}
