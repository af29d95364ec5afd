//! A cluster in the middle of an upgrade: nothing is written that the older member cannot read.

use bytes::Bytes;
use holdfast_coordinator::ProposeError;
use holdfast_raft::{Capture, Log, Position, StateMachine};
use holdfast_txn::Command;

use crate::cluster::{Begin, Cluster, until, within};

/// The highest format of entries that the older version reads.
const OLDER: u32 = 2;

/// A member of an older version, as far as the others can tell: it keeps the log, and says how much of it it reads.
struct Older;

impl StateMachine for Older {
    type Response = ();

    fn apply(&mut self, _position: Position, entry: &Bytes) {
        // Every entry begins with its format: key and number.
        assert!(entry[0] == 8 && u32::from(entry[1]) <= OLDER, "it cannot read {:?}", &entry[..2]);
    }

    fn snapshot(&self) -> Capture {
        Box::new(|_| Vec::new())
    }

    fn restore(&mut self, _snapshot: &[u8]) -> Result<(), String> {
        Err("so short a story takes no snapshot".to_owned())
    }
}

async fn start_older(cluster: &Cluster, node: u64) -> Log<Older> {
    let config = cluster.config(node);
    let log = holdfast_raft::Config {
        node,
        cluster: config.cluster.name.clone(),
        dir: config.node.data_dir.clone(),
        bind: config.bind.raft,
        members: config.cluster.members.clone(),
        join: false,
        groups: 1,
        reads_format: OLDER,
        credentials: None,
        heartbeat_ms: config.timeouts.heartbeat_ms,
        election_min_ms: config.timeouts.election_min_ms,
        election_max_ms: config.timeouts.election_max_ms,
        segment_bytes: config.log.segment_bytes,
        snapshot_every: config.log.snapshot_every,
        snapshot_bytes: config.log.snapshot_bytes,
    };
    Log::open(log, Older).await.unwrap()
}

fn rules(expected: u64) -> Command {
    let text = include_str!("../../../config/shards.toml").to_owned();
    let (by, reason) = ("dev".to_owned(), "there were none".to_owned());
    Command::SetRules { text, expected, by, reason }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_member_cannot_read_is_refused_until_it_is_upgraded() {
    let mut cluster = Cluster::start_some(3, 2, 1).await;
    let older = start_older(&cluster, 3).await;
    let leads = async |cluster: &Cluster| {
        // The older member must not lead here: it would carry out nothing.
        if older.leadership().borrow().leads_here {
            drop(older.hand_over(1).await);
        }
        cluster.leader().await
    };
    let recorded = || older.status().members.iter().any(|one| one.reads_format == OLDER);
    until("the older member is recorded", recorded).await;
    until("everybody knows", || {
        [1, 2].into_iter().all(|node| cluster.node(node).cluster_format() == OLDER)
    })
    .await;

    let refused = within("a refusal", async {
        loop {
            match leads(&cluster).await.propose(rules(0)).await {
                Err(ProposeError::NotLeader { .. }) => {}
                other => return other.unwrap_err(),
            }
        }
    });
    let refused = refused.await;
    assert!(matches!(refused, ProposeError::TooNew { needs: 3, reads: OLDER }), "{refused:?}");
    assert_eq!(refused.code(), "HF2105");
    // What both versions know goes on.
    cluster.begin(&Begin::xa("known-to-both")).await;
    cluster.begin(&Begin::tcc("known-to-all")).await;

    older.shutdown().await;
    cluster.restart(3).await;
    until("the newer version is recorded", || {
        [1, 2, 3].into_iter().all(|node| cluster.node(node).cluster_format() > OLDER)
    })
    .await;
    cluster.propose(rules(0)).await.result.unwrap();
    // The upgraded node carried out what its older self only kept.
    cluster.equal_states(0).await;
}
