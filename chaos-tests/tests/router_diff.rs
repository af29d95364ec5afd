//! The router answers as one PostgreSQL would, or refuses.

use holdfast_chaos_tests::router_diff;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_statements_have_the_same_answers_or_are_refused() {
    let statements = std::env::var("HOLDFAST_STATEMENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1200);
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let found = router_diff::run(statements, seed).await.expect("the run itself works");
    println!("{found:#?}");
    assert_eq!(found.differences, 0, "seed {seed}: {}", found.told.join("\n"));
    assert_eq!(found.statements, statements);
    // A run that refuses or fails all the time proves nothing.
    assert!(
        found.refused * 4 < found.statements,
        "{} of {} refused",
        found.refused,
        found.statements
    );
    assert!(found.errors * 4 < found.statements, "{} of {} failed", found.errors, found.statements);
    assert!(
        found.scattered * 10 > found.statements,
        "{} of {} scattered",
        found.scattered,
        found.statements
    );
}
