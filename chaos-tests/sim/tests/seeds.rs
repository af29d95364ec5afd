//! The campaign of every build: seeds without a violation, repeated bit by bit, and nothing that never happens.

use holdfast_sim::{Words, campaign, run};

/// Seeds of every build; a nightly run takes more.
const SEEDS: u64 = 300;

#[test]
fn no_seed_breaks_a_promise_and_nothing_is_left_unseen() {
    let done = campaign(0, SEEDS, None, |_| true);
    let broken: Vec<String> = done
        .violations
        .iter()
        .map(|violation| {
            let (seed, broken) = (violation.run.seed, &violation.broken);
            format!("seed {seed}: {}: {}", broken.promise, broken.detail)
        })
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert_eq!((done.seeds, done.repeated), (SEEDS, SEEDS / 100));
    let unseen: Vec<_> = done.never_happened().iter().map(|missing| missing.name()).collect();
    assert!(unseen.is_empty(), "never happened: {unseen:?}");
    assert!(done.events > 500 * SEEDS, "only {} events", done.events);
}

#[test]
fn words_do_not_change_a_run() {
    for seed in [3, 4] {
        let silent = run(seed, None, Words::None);
        let told = run(seed, None, Words::All);
        assert_eq!(silent.trace_hash, told.trace_hash);
        assert!(silent.lines.is_empty() && told.lines.len() > 200);
    }
}
