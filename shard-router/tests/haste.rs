//! How the router's thread is scheduled. Alone in its process: other tests have routers whose threads are named alike.

mod fixture;

use std::{fs, time::Duration};

use fixture::{PATIENCE, Running, Server, one_source};

/// As the kernel numbers them.
const NORMAL: &str = "0";
const BATCH: &str = "3";

/// The policy of the only worker's thread.
fn policy() -> Option<String> {
    let threads = fs::read_dir("/proc/self/task").expect("threads are listed");
    let mut stats =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    // The name is the second field, in brackets; the policy is the 41st.
    let stat = stats.find(|stat| stat.contains("(router-0)"))?;
    stat.rsplit_once(") ")?.1.split(' ').nth(38).map(str::to_owned)
}

async fn becomes(wanted: &str, when: &str) {
    // The client is answered first.
    let found = tokio::time::timeout(PATIENCE, async {
        while policy().as_deref() != Some(wanted) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(found.await.is_ok(), "{when}: policy {:?} instead of {wanted}", policy());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_is_woken_at_once_while_a_transaction_is_open_and_only_then() {
    let server = Server::shared().await;
    let router = Running::start(one_source(server.source("only"))).await;
    let database = server.database().await;
    let (one, other) = (router.connect(&database).await, router.connect(&database).await);
    becomes(BATCH, "without a transaction").await;
    one.batch_execute("BEGIN").await.expect("right");
    one.batch_execute("SELECT 1").await.expect("right");
    becomes(NORMAL, "one is open").await;
    other.batch_execute("BEGIN").await.expect("right");
    other.batch_execute("no SQL").await.expect_err("wrong");
    one.batch_execute("COMMIT").await.expect("right");
    one.batch_execute("SELECT 1").await.expect("right");
    assert_eq!(policy().as_deref(), Some(NORMAL), "one that has failed keeps its locks");
    drop(other);
    becomes(BATCH, "its client has left").await;
}
