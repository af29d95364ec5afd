//! The router answers as one PostgreSQL would, or refuses.

use holdfast_chaos_tests::router_diff;

/// Statements of a run of the default suite; `holdfast chaos router-diff` takes more.
const STATEMENTS: u64 = 3_000;
const SEED: u64 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_statements_have_the_same_answers_or_are_refused() {
    let told = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let statements = told("HOLDFAST_STATEMENTS").unwrap_or(STATEMENTS);
    let seed = told("HOLDFAST_SEED").unwrap_or(SEED);
    let found = router_diff::run(statements, seed, 0).await.expect("the run itself works");
    println!("{found:#?}");
    assert_eq!(found.differences, 0, "seed {seed}: {}", found.told.join("\n"));
    assert_eq!(found.statements, statements);
    // A run that refuses or fails all the time, or does the same all the time, proves nothing.
    for (what, part, at_least) in [
        ("taken", found.statements - found.refused, 2),
        ("right", found.statements - found.errors, 2),
        ("over several shards", found.scattered, 10),
        ("within transactions", found.in_transactions, 20),
        ("executed again as prepared", found.repeated, 20),
    ] {
        assert!(part * at_least > statements, "{part} of {statements} {what}");
    }
}
