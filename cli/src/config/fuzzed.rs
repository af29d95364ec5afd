//! Every role's configuration takes any text: it is read or refused with a report, and never a panic.

use std::fs;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{AgentConfig, BankConfig, CoordinatorConfig, Inputs, Role, RouterRole, load};

/// Mutations of each file.
const MUTATIONS: u64 = 60;

fn mutate(bytes: &mut Vec<u8>, chance: &mut StdRng) {
    for _ in 0..chance.random_range(1..=4) {
        let at = chance.random_range(0..bytes.len().max(1)).min(bytes.len());
        match chance.random_range(0..4) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.random_range(0..8),
            1 => bytes.truncate(at.max(bytes.len() / 2)),
            2 => bytes.insert(at, b"[]=\"'\n#.{}-0"[chance.random_range(0..12)]),
            _ => bytes.splice(at..at, *b"99999999999999999999").for_each(drop),
        }
    }
}

/// What the report says, where it is one.
fn read<T: Role>(inputs: &Inputs) {
    if let Err(report) = load::<T>(inputs) {
        assert!(report.to_string().contains("HF10"), "a refusal without a code: {report}");
    }
}

#[test]
fn fuzzed_files_are_read_or_refused_with_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/config");
    let mut files = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        files += 1;
        let sound = fs::read(entry.unwrap().path()).unwrap();
        for seed in 0..=MUTATIONS {
            let mut bytes = sound.clone();
            if seed > 0 {
                mutate(&mut bytes, &mut StdRng::seed_from_u64(seed));
            }
            let file = folder.path().join("fuzzed.toml");
            fs::write(&file, &bytes).unwrap();
            let inputs = Inputs { file: Some(file), ..Inputs::default() };
            read::<CoordinatorConfig>(&inputs);
            read::<BankConfig>(&inputs);
            read::<AgentConfig>(&inputs);
            read::<RouterRole>(&inputs);
        }
    }
    assert!(files >= 5, "only {files} files in {corpus}");
}
