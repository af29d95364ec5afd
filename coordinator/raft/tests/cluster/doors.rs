//! Who is let in: to the directory, to the address, to the conversation of peers.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::v1::{
    RaftAddress, RaftAppendRequest, RaftBallot, RaftPosition, RaftSnapshotChunk,
    RaftTransferRequest, RaftVoteRequest, raft_peer_client::RaftPeerClient,
};
use holdfast_raft::{OpenError, StoreError};
use tonic::{Code, transport::Channel};

use crate::harness::{Cluster, Seen, eventually, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_serves_one_process_of_one_node_of_one_cluster() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    let own = cluster.nodes[0].config.clone();
    let try_open = |config| async move {
        match open(&config, &Seen::default(), Duration::ZERO).await {
            Ok(_) => panic!("it was opened"),
            Err(error) => error,
        }
    };

    let error = try_open(own.clone()).await;
    assert!(matches!(error, OpenError::Bind { .. }), "{error}");
    let mut elsewhere = own.clone();
    elsewhere.bind.set_port(17_999);
    let error = try_open(elsewhere).await;
    assert!(matches!(error, OpenError::Store(StoreError::InUse { .. })), "{error}");
    cluster.nodes[0].stop().await;

    let mut stranger = own.clone();
    stranger.node = 2;
    stranger.members[0].node = 2;
    let error = try_open(stranger).await;
    assert!(matches!(error, OpenError::Store(StoreError::AnotherNodes { .. })), "{error}");
    let mut stranger = own.clone();
    stranger.cluster = "other".to_owned();
    let error = try_open(stranger).await;
    assert!(matches!(error, OpenError::Store(StoreError::AnotherNodes { .. })), "{error}");
    let mut confused = own;
    confused.node = 7;
    let error = try_open(confused).await;
    assert!(matches!(error, OpenError::Config(_)), "{error}");

    cluster.nodes[0].start().await;
    cluster.stop().await;
}

/// A number in the identity of a node's directory.
fn identity(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let identity =
        std::fs::read_to_string(cluster.nodes[node].config.dir.join("IDENTITY")).unwrap();
    let line = identity.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn founding(cluster: &Cluster, node: usize) -> u64 {
    identity(cluster, node, "founding")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_founded_a_cluster_of_its_own_never_meets_the_others_log() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.propose("one").await;
    cluster.agree_on(1).await;
    assert_eq!(founding(&cluster, 0), founding(&cluster, 1));
    assert_eq!(founding(&cluster, 0), founding(&cluster, 2));

    // Somebody empties the directory of node 3 and starts it with a list of members that names nobody else.
    cluster.nodes[2].stop().await;
    let right = cluster.nodes[2].config.clone();
    for part in ["IDENTITY", "log", "snapshot"] {
        let path = right.dir.join(part);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut alone = right.clone();
    alone.members.retain(|member| member.node == 3);
    cluster.nodes[2].config = alone;
    cluster.nodes[2].start().await;
    let own = cluster.nodes[2].log().clone();
    eventually("it leads itself", || cluster.nodes[2].leads().then_some(())).await;
    own.propose(Bytes::from_static(b"another one")).await.unwrap();
    drop(own);
    cluster.nodes[2].stop().await;

    // Corrected, it is among the others again, with entries that they know under the same names with other content.
    cluster.nodes[2].config = right;
    cluster.nodes[2].start().await;
    for nth in 0..20 {
        let (_, count) = loop {
            let leader = eventually("one of the two leads", || {
                (0..2).find(|&node| cluster.nodes[node].leads())
            })
            .await;
            let log = cluster.nodes[leader].log();
            if let Ok(applied) = log.propose(Bytes::from(format!("entry {nth}"))).await {
                break applied;
            }
        };
        assert_eq!(count, nth + 2);
    }
    assert!(!cluster.nodes[2].seen.entries().contains(&b"one".to_vec()));
    // It goes on leading the cluster that its own log describes, in which the others are no members.
    assert_eq!(cluster.nodes[2].status().members.len(), 1);
    assert_ne!(founding(&cluster, 0), founding(&cluster, 2));
    for node in 0..2 {
        assert!(!cluster.nodes[node].seen.entries().contains(&b"another one".to_vec()));
    }
    cluster.stop().await;
}

async fn client(cluster: &Cluster, node: usize) -> RaftPeerClient<Channel> {
    let address = format!("http://{}", cluster.nodes[node].config.bind);
    RaftPeerClient::connect(address).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_names_another_cluster_group_node_or_stranger_is_turned_away() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.leader().await;
    let term = cluster.nodes[0].status().term;
    let mut client = client(&cluster, 0).await;
    let right = RaftAddress {
        cluster: "bank".to_owned(),
        group: 0,
        from: 2,
        to: 1,
        founding: founding(&cluster, 0),
        to_incarnation: identity(&cluster, 0, "incarnation"),
    };
    let wrong = [
        None,
        Some(RaftAddress { cluster: "other".to_owned(), ..right.clone() }),
        Some(RaftAddress { group: 1, ..right.clone() }),
        Some(RaftAddress { to: 2, ..right.clone() }),
        Some(RaftAddress { from: 4, ..right.clone() }),
        Some(RaftAddress { from: 1, ..right.clone() }),
        Some(RaftAddress { founding: 0, ..right.clone() }),
        Some(RaftAddress { to_incarnation: 0, ..right.clone() }),
        Some(RaftAddress { to_incarnation: right.to_incarnation ^ 1, ..right.clone() }),
        Some(RaftAddress { founding: right.founding ^ 1, ..right.clone() }),
    ];
    let ballot = Some(RaftBallot { term: term + 100, node: 2, granted_by_quorum: true });
    for peer in wrong {
        let vote = RaftVoteRequest {
            peer: peer.clone(),
            ballot,
            last: Some(RaftPosition { index: 1_000_000, term: term + 99 }),
            leadership_transfer: true,
            pre_vote: false,
        };
        let refused = client.vote(vote).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{peer:?}");

        let append = RaftAppendRequest { peer: peer.clone(), ballot, ..Default::default() };
        let mut answers =
            client.append_entries(futures::stream::iter([append])).await.unwrap().into_inner();
        let refused = answers.message().await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{peer:?}");

        let chunk = RaftSnapshotChunk {
            peer: peer.clone(),
            ballot,
            bytes_total: 10,
            data: Bytes::from_static(b"0123456789"),
        };
        let refused = client.install_snapshot(futures::stream::iter([chunk])).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{peer:?}");

        let transfer = RaftTransferRequest { peer, ballot, next_leader: 1, last: None };
        let refused = client.transfer_leader(transfer).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    assert!(cluster.nodes[0].status().term < term + 100, "a stranger moved the term");
    cluster.propose("still well").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_sends_is_checked_before_it_is_believed() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    cluster.leader().await;
    let mut client = client(&cluster, 0).await;
    let peer = Some(RaftAddress {
        cluster: "bank".to_owned(),
        group: 0,
        from: 2,
        to: 1,
        founding: founding(&cluster, 0),
        to_incarnation: identity(&cluster, 0, "incarnation"),
    });

    let no_ballot = RaftVoteRequest { peer: peer.clone(), ..Default::default() };
    assert_eq!(client.vote(no_ballot).await.unwrap_err().code(), Code::InvalidArgument);

    let ballot = Some(RaftBallot { term: 0, node: 2, granted_by_quorum: true });
    let entry = holdfast_proto::v1::RaftEntry { position: None, payload: None };
    let append = RaftAppendRequest {
        peer: peer.clone(),
        ballot,
        entries: vec![entry],
        ..Default::default()
    };
    let mut answers =
        client.append_entries(futures::stream::iter([append])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);

    for (bytes_total, data) in [
        (u64::MAX, Bytes::from_static(b"x")),
        (1, Bytes::from_static(b"too many")),
        (100, Bytes::from_static(b"too few")),
        (20, Bytes::from_static(b"HFSNAP01 but nothing")),
    ] {
        let chunk = RaftSnapshotChunk { peer: peer.clone(), ballot, bytes_total, data };
        let refused = client.install_snapshot(futures::stream::iter([chunk])).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Internal | Code::InvalidArgument), "{refused}");
    }
    let left = std::fs::read_dir(cluster.nodes[0].config.dir.join("snapshot")).unwrap().count();
    assert_eq!(left, 0, "half snapshots were left behind");
    cluster.propose("still well").await;
    cluster.stop().await;
}
