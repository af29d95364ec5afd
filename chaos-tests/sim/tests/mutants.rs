//! Every planted bug is found within the seeds of a build, again by its seed alone, and stands in the table of the reference.

#![allow(clippy::print_stdout, reason = "the table of the reference is made of it")]

use holdfast_sim::{Mutant, Words, campaign, run};

/// Seeds within which each must be found.
const SEEDS: u64 = 500;

#[test]
fn each_mutant_is_found_and_found_again_by_its_seed() {
    let mut missed = Vec::new();
    for &mutant in Mutant::ALL {
        let found = campaign(0, SEEDS, Some(mutant), |done| done.violations.is_empty());
        match found.violations.first() {
            None => missed.push(mutant.name()),
            Some(violation) => {
                let promise = violation.broken.promise;
                println!("{}: {promise}, in {} seeds", mutant.name(), found.seeds);
                assert!(violation.run.broken.is_some(), "{}: found, then not", mutant.name());
                assert!(!violation.run.lines.is_empty(), "{}: no words", mutant.name());
                let again = run(violation.run.seed, Some(mutant), Words::None);
                assert_eq!(again.trace_hash, violation.run.trace_hash, "{}", mutant.name());
                assert_eq!(again.broken.as_ref(), Some(&violation.broken), "{}", mutant.name());
            }
        }
    }
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

#[test]
fn names_are_unique_and_in_the_table_of_the_reference() {
    let table = include_str!("../../../docs/reference/mutants.md");
    for &mutant in Mutant::ALL {
        assert_eq!(Mutant::named(mutant.name()), Some(mutant));
        let row = format!("| `{}` |", mutant.name());
        assert!(table.contains(&row), "docs/reference/mutants.md has no row {row}");
    }
    let own = table.split("## In the real log").next().expect("a first part");
    let rows = own.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, Mutant::ALL.len());
    assert_eq!(Mutant::named("none"), None);
}
