//! The real replicated log over a simulated network: three and five nodes, partitions, crashes that lose what was not synced, snapshots,
//! changes of the membership, nodes that lose their disk.
//!
//! openraft, the log store and gRPC are those of the product; hosts, links and time are made. One seed decides faults, links and the
//! pauses of disks. Two things are not decided by it: openraft draws its election waits, and files are opened and snapshots written on
//! threads of the operating system. So two runs of a seed are alike and not equal; the last test here measures how far.
//!
//! `HOLDFAST_SEEDS=n` runs so many seeds from `HOLDFAST_FIRST_SEED` on.

mod members;
mod oracle;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use holdfast_raft::Planted;
use oracle::Found;
use world::{Run, run};

/// Seeds of a run of the tests.
const SEEDS: u64 = 20;
/// Seeds within which each bug that is planted in the log must be found.
const PLANTED_SEEDS: u64 = 100;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|words| words.parse().ok()).unwrap_or(usual)
}

/// Runs the seeds, as many at once as the machine has cores: a run lives on one thread and shares nothing with others.
fn runs(seeds: std::ops::Range<u64>) -> BTreeMap<u64, Run> {
    let next = AtomicU64::new(seeds.start);
    let done = Mutex::new(BTreeMap::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(seeds.clone().count()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let one = run(seed, None);
                    done.lock().expect("no holder panics").insert(seed, one);
                }
            });
        }
    });
    done.into_inner().expect("no holder panics")
}

#[test]
fn the_real_log_keeps_its_promises_in_every_seed() {
    let first = number("HOLDFAST_FIRST_SEED", 0);
    let seeds = number("HOLDFAST_SEEDS", SEEDS);
    let mut happened = BTreeSet::new();
    let (mut acknowledged, mut terms) = (0, 0);
    let begun = Instant::now();
    let done = runs(first..first + seeds);
    assert_eq!(done.len() as u64, seeds, "a seed is missing");
    for (seed, Run { found, acknowledged: told, term, happened: these, .. }) in done {
        let again = format!(
            "HOLDFAST_FIRST_SEED={seed} HOLDFAST_SEEDS=1 cargo test -p holdfast-raft --features simulation --test simulated"
        );
        assert!(found.is_empty(), "seed {seed}: {found:#?}\nagain: {again}");
        assert!(told > 0, "seed {seed}: nothing was acknowledged\nagain: {again}");
        acknowledged += told;
        terms += term;
        happened.extend(these);
    }
    let took = begun.elapsed().as_secs();
    println!(
        "{seeds} seeds in {took} s: {acknowledged} entries acknowledged, {terms} terms, {happened:?}"
    );
    if seeds >= SEEDS {
        for what in [
            "crash",
            "partition",
            "one-way",
            "snapshot",
            "five nodes",
            "all crash",
            "joined",
            "left",
            "disk lost",
        ] {
            assert!(happened.contains(what), "no seed had {what}: {happened:?}");
        }
    }
}

#[test]
fn two_runs_of_a_seed_are_alike_and_this_is_how_far() {
    let (one, other) = (run(1, None), run(1, None));
    assert!(one.found.is_empty() && other.found.is_empty());
    assert_eq!(one.plan, other.plan, "what a seed does to the cluster is the same each time");
    assert_eq!(one.wishes, other.wishes);
    let same = one.trace.iter().zip(&other.trace).take_while(|(a, b)| a == b).count();
    println!(
        "two runs of seed 1: {} and {} acknowledged, terms {} and {}, the first {same} of {} applied entries equal",
        one.acknowledged,
        other.acknowledged,
        one.term,
        other.term,
        one.trace.len()
    );
}

/// Bugs in the real log, not in a history of it.
#[test]
fn bugs_that_are_planted_in_the_log_are_found() {
    let table = include_str!("../../../../docs/reference/mutants.md");
    for bug in Planted::ALL {
        let row = format!("| `{}` |", bug.name());
        assert!(table.contains(&row), "docs/reference/mutants.md has no row {row}");
        let found = (0..PLANTED_SEEDS).find_map(|seed| {
            // A log that notices that something is impossible ends its process, which is a find as well.
            let found = std::panic::catch_unwind(|| run(seed, Some(bug)).found)
                .map_or(Some("a log ends in panic"), |found| found.first().map(|one| one.promise));
            found.map(|promise| (seed, promise))
        });
        let (seed, promise) = found.unwrap_or_else(|| panic!("{} is not found", bug.name()));
        println!("{}: {promise}, in {} seeds", bug.name(), seed + 1);
    }
}

#[test]
fn the_oracle_finds_planted_bugs() {
    let names = |found: Vec<Found>| found.iter().map(|one| one.promise).collect::<Vec<_>>();
    let mut oracle = oracle::Oracle::default();
    oracle.applied(0, 5, 1, b"a");
    oracle.applied(1, 5, 1, b"b");
    assert_eq!(names(oracle.judge(&[])), ["I13 state machine safety"]);
    let mut oracle = oracle::Oracle::default();
    oracle.applied(0, 5, 1, b"a");
    oracle.acknowledged(6, b"lost");
    assert_eq!(names(oracle.judge(&[])), ["I15 acknowledged is durable"]);
    let mut oracle = oracle::Oracle::default();
    oracle.leads(1, 7);
    oracle.leads(2, 7);
    assert_eq!(names(oracle.judge(&[])), ["I13 election safety"]);
    let mut oracle = oracle::Oracle::default();
    oracle.applied(0, 5, 2, b"a");
    oracle.applied(0, 6, 1, b"b");
    assert_eq!(names(oracle.judge(&[])), ["I13 terms go up"]);
    let mut oracle = oracle::Oracle::default();
    oracle.applied(0, 5, 1, b"a");
    oracle.applied(0, 6, 1, b"a");
    assert_eq!(names(oracle.judge(&[])), ["an entry is applied once"]);
    let final_logs = [vec![b"a".to_vec()], vec![b"b".to_vec()]];
    assert_eq!(names(oracle::Oracle::default().judge(&final_logs)), ["equal states at the end"]);
}
