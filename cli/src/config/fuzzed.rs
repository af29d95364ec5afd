//! Every role's configuration takes any bytes: they are read or refused with a report, and never a panic.

use std::fs;

use super::{AgentConfig, BankConfig, CoordinatorConfig, Inputs, Role, RouterRole, load};

/// Reads `bytes` as the configuration file of every role, for the fuzzer and for what replays its corpus.
/// # Panics
/// A role refuses it by a report without a code, or there is no room for a scratch file.
pub fn read(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("room for a scratch file");
    fs::write(file.path(), bytes).expect("room for a scratch file");
    let inputs = Inputs { file: Some(file.path().to_owned()), ..Inputs::default() };
    read_as::<CoordinatorConfig>(&inputs);
    read_as::<BankConfig>(&inputs);
    read_as::<AgentConfig>(&inputs);
    read_as::<RouterRole>(&inputs);
}

fn read_as<T: Role>(inputs: &Inputs) {
    if let Err(report) = load::<T>(inputs) {
        assert!(report.to_string().contains("HF10"), "a refusal without a code: {report}");
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

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

    #[test]
    fn fuzzed_files_are_read_or_refused_with_a_code() {
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
                read(&bytes);
            }
        }
        assert!(files >= 5, "only {files} files in {corpus}");
    }
}
