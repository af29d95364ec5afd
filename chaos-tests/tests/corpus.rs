//! Every reader of foreign bytes takes the corpus of `fuzz/`, each file as it is and in many mutations, without breaking a promise.
//!
//! `HOLDFAST_MUTATIONS=n` tries so many mutations of each file, `HOLDFAST_TARGET=name` one reader alone: a search without a fuzzer.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::fuzzed::TARGETS;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Mutations within which a reader that breaks a promise must be noticed.
const MUTATIONS: u64 = 400;
/// The target that reads what [`TARGETS`] leave to the command.
const CONFIGURATION: &str = "config";
/// Bytes after which a mutation grows no further.
const BYTES_MAX: usize = 64 * 1024;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// The files of a folder, by name.
fn files(folder: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        files.push((name.to_owned(), fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}

/// One to four changes, of which `other` may lend some bytes.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], chance: &mut StdRng) {
    for _ in 0..chance.random_range(1..=4) {
        let at = chance.random_range(0..=bytes.len());
        match chance.random_range(0..7) {
            0..3 if at < bytes.len() => bytes[at] ^= 1 << chance.random_range(0..8),
            3 if at < bytes.len() => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff][chance.random_range(0..5)]
            }
            4 => bytes.truncate(at),
            5 if bytes.len() < BYTES_MAX => {
                let from = chance.random_range(0..=other.len());
                let until = chance.random_range(from..=other.len());
                bytes.splice(at..at, other[from..until].iter().copied());
            }
            _ => bytes.insert(at, chance.random()),
        }
    }
}

#[test]
fn the_corpus_and_its_mutations_break_no_promise_of_any_reader() -> anyhow::Result<()> {
    let number = |words: String| words.parse().ok();
    let mutations: Option<u64> = std::env::var("HOLDFAST_MUTATIONS").ok().and_then(number);
    let only = std::env::var("HOLDFAST_TARGET").ok();
    for target in TARGETS.iter().filter(|one| only.as_deref().is_none_or(|name| name == one.name)) {
        let files = files(&fuzz().join("corpus").join(target.name))?;
        ensure!(files.len() >= 4, "{} has {} files", target.name, files.len());
        for (nth, (name, sound)) in files.iter().enumerate() {
            let other = &files[(nth + 1) % files.len()].1;
            for seed in 0..=mutations.unwrap_or(target.mutations) {
                let mut bytes = sound.clone();
                if seed > 0 {
                    mutate(&mut bytes, other, &mut StdRng::seed_from_u64(seed));
                }
                let read = catch_unwind(AssertUnwindSafe(|| (target.read)(&bytes)));
                ensure!(
                    read.is_ok(),
                    "{}: {name} under mutation {seed}: {bytes:02x?}",
                    target.name
                );
            }
        }
    }
    Ok(())
}

#[test]
fn each_target_has_a_program_and_each_folder_a_reader() -> anyhow::Result<()> {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let programs = files(&fuzz().join("fuzz_targets"))?;
    let programs = programs.iter().map(|(name, _)| name.trim_end_matches(".rs").to_owned());
    let mut programs: BTreeSet<_> = programs.collect();
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml"))?;
    for name in &programs {
        let listed = manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\""));
        ensure!(listed, "fuzz/Cargo.toml lists no {name}");
    }
    ensure!(programs.remove(CONFIGURATION), "no program reads the configuration");
    ensure!(programs == names, "fuzz_targets and TARGETS differ");
    let reads = names.iter().map(|name| (name.as_str(), format!("of(\"{name}\")")));
    for (name, reader) in reads.chain([(CONFIGURATION, "read_configuration(bytes)".to_owned())]) {
        let program = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs")))?;
        ensure!(program.contains(&reader), "{name}.rs reads for another");
    }
    Ok(())
}

#[test]
fn a_reader_that_breaks_a_promise_is_noticed() {
    let planted = |bytes: &[u8]| assert!(!bytes.contains(&0xff), "planted");
    let mut bytes = vec![0; 64];
    let noticed = (0..MUTATIONS).any(|seed| {
        mutate(&mut bytes, b"other", &mut StdRng::seed_from_u64(seed));
        catch_unwind(AssertUnwindSafe(|| planted(&bytes))).is_err()
    });
    assert!(noticed, "no mutation reached it");
}
