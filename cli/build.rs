//! Gathers the pages of docs/reference/errors for `holdfast explain`, and the facts of this build for `holdfast --version`.

use std::{env, fs, path::PathBuf, process::Command};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let pages = root.join("../docs/reference/errors");
    println!("cargo:rerun-if-changed={}", pages.display());
    let mut files: Vec<PathBuf> = fs::read_dir(&pages)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let mut list = String::from("&[\n");
    for file in &files {
        let file = file.canonicalize().expect("listed just now");
        let code =
            file.file_stem().and_then(|stem| stem.to_str()).expect("an error's code is ASCII");
        list.push_str(&format!("    ({code:?}, include_str!({:?})),\n", file.display()));
    }
    list.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("pages.rs"), list).expect("cargo's own directory can be written");

    let rustc = env::var_os("RUSTC").expect("set by cargo");
    let version = Command::new(rustc).arg("--version").output().map(|output| output.stdout);
    let version = String::from_utf8(version.unwrap_or_default()).unwrap_or_default();
    let version = version.split(" (").next().unwrap_or_default().trim();
    let fact = |name| env::var(name).unwrap_or_default();
    // A debug build would be made anew with each commit.
    let commit = match fact("PROFILE").as_str() {
        "release" => commit().map_or_else(String::new, |commit| format!("commit {commit}, ")),
        _ => String::new(),
    };
    println!(
        "cargo:rustc-env=HOLDFAST_BUILD={} ({commit}{} build for {}, {version}, wire holdfast.v1)",
        fact("CARGO_PKG_VERSION"),
        fact("PROFILE"),
        fact("TARGET"),
    );
}

/// The commit that is checked out; `None` where the sources are in no repository, or `git` is not there.
fn commit() -> Option<String> {
    let said = |words: &[&str]| {
        let output = Command::new("git").args(words).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let commit = said(&["rev-parse", "--short=12", "HEAD"])?;
    // Written at each commit and checkout.
    let moves = said(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])?;
    if PathBuf::from(&moves).is_file() {
        println!("cargo:rerun-if-changed={moves}");
    }
    Some(commit)
}
