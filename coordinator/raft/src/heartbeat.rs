//! The heartbeats of a node, and when openraft looks at its clock.
//!
//! openraft sends heartbeats and begins elections by a clock of its own, at which it looks each 13/64 of a heartbeat, in each group, to say
//! afterwards what it found to whoever watches. A quiet node did little else. So one timer sends the heartbeats of every group that this node
//! leads, and a group's clock stands still while it has nothing to tell: where this node leads, or heard of a leader within two heartbeats. Elections remain openraft's: a configured wait is above three heartbeats, so its clock goes again long before one ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::Raft;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::{StateMachine, consensus::Consensus, machine::Replica};

/// When a group of this node last heard of a leader whom it follows. A handle: clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<Mutex<Option<Instant>>>);

impl Heard {
    /// Right now.
    pub(crate) fn note(&self) {
        *self.0.lock().expect("no holder panics") = Some(Instant::now());
    }

    fn at(&self) -> Option<Instant> {
        *self.0.lock().expect("no holder panics")
    }
}

/// A group of this node.
pub(crate) struct Group<S: StateMachine> {
    pub(crate) raft: Raft<Consensus, Replica<S>>,
    pub(crate) heard: Heard,
    /// Told of each heartbeat that this node sends as the leader.
    pub(crate) sent: Arc<Notify>,
}

/// Whether openraft's clock must go, and when to look again.
fn look(leads: bool, heard: Option<Instant>, now: Instant, every: Duration) -> (bool, Instant) {
    match heard.map(|heard| heard + 2 * every).filter(|silent_at| *silent_at > now) {
        Some(silent_at) if !leads => (false, silent_at),
        _ => (!leads, now + every),
    }
}

/// Keeps the clocks of all groups of a node, until `closing`.
pub(crate) async fn beat<S: StateMachine>(
    groups: Vec<Group<S>>,
    every: Duration,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let now = Instant::now();
        let mut next = now + 2 * every;
        for Group { raft, heard, sent } in &groups {
            let leads = raft.is_leader();
            let (goes, again) = look(leads, heard.at(), now, every);
            raft.runtime_config().tick(goes);
            next = next.min(again);
            if leads {
                // It is refused by a replica that ended, of which others tell.
                let _ended = raft.trigger().heartbeat().await;
                sent.notify_waiters();
            }
        }
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return,
            () = sleep_until(next) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use futures::future::join_all;
    use openraft::async_runtime::WatchReceiver as _;

    use super::*;
    use crate::{Capture, Config, Log, Member, Position, config::tests::sound};

    const EVERY: Duration = Duration::from_millis(60);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_clock_stands_still_for_two_heartbeats_after_one_and_then_goes() {
        let now = Instant::now();
        let heard = |ago: Duration| now.checked_sub(ago);
        assert_eq!(look(false, heard(Duration::ZERO), now, EVERY), (false, now + 2 * EVERY));
        assert_eq!(look(false, heard(2 * EVERY - MS), now, EVERY), (false, now + MS));
        assert_eq!(look(false, heard(2 * EVERY), now, EVERY), (true, now + EVERY));
        assert_eq!(look(false, None, now, EVERY), (true, now + EVERY), "nobody was heard of yet");
    }

    #[test]
    fn a_leader_needs_no_clock_and_speaks_once_a_heartbeat_whatever_it_heard() {
        let now = Instant::now();
        for heard in [None, Some(now), now.checked_sub(3 * EVERY)] {
            assert_eq!(look(true, heard, now, EVERY), (false, now + EVERY));
        }
    }

    struct Nothing;

    impl StateMachine for Nothing {
        type Response = ();

        fn apply(&mut self, _position: Position, _entry: &Bytes) {}

        fn snapshot(&self) -> Capture {
            Box::new(|_| Vec::new())
        }

        fn restore(&mut self, _snapshot: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }

    /// How often openraft did something meanwhile: it says so each time.
    async fn stirs(log: &Log<Nothing>, meanwhile: Duration) -> usize {
        let mut metrics = log.inner.raft.metrics();
        metrics.borrow_and_update();
        let (until, mut stirs) = (Instant::now() + meanwhile, 0);
        while tokio::time::timeout_at(until, metrics.changed()).await.is_ok() {
            stirs += 1;
        }
        stirs
    }

    #[tokio::test]
    async fn a_quiet_node_is_stirred_by_heartbeats_and_not_by_its_clock() -> anyhow::Result<()> {
        let every = Duration::from_millis(100);
        let dir = tempfile::tempdir()?;
        // Loopback has sixteen million addresses, so no port has to be guessed.
        let [.., high, low] = std::process::id().to_be_bytes();
        let bind = |node: u8| SocketAddr::from(([127, 100 + node, high, low], 17_403));
        let members = [1, 2, 3].map(|node| {
            let address = bind(node).to_string();
            let node = node.into();
            Member { node, raft: address.clone(), grpc: address.clone(), http: address }
        });
        let mut logs = Vec::new();
        for node in [1, 2, 3] {
            let config = Config {
                node: node.into(),
                dir: dir.path().join(node.to_string()),
                bind: bind(node),
                members: members.to_vec(),
                heartbeat_ms: 100,
                election_min_ms: 2_000,
                election_max_ms: 3_000,
                segment_bytes: 64 * 1024,
                ..sound()
            };
            logs.push(Log::open(config, Nothing).await?);
        }
        for log in &logs {
            log.leadership().wait_for(|now| now.leader.is_some()).await?;
        }
        // What the members say of themselves is recorded behind an election.
        let recorded =
            |log: &Log<Nothing>| log.status().members.iter().all(|one| one.incarnation != 0);
        while !logs.iter().all(recorded) {
            tokio::time::sleep(every).await;
        }
        // A leader: its heartbeat and two answers. With its clock it would be eight for each heartbeat, and six for a follower.
        let stirred = join_all(logs.iter().map(|log| stirs(log, 10 * every))).await;
        assert!(stirred.iter().all(|stirs| (1..=45).contains(stirs)), "{stirred:?}");
        for log in logs {
            log.shutdown().await;
        }
        Ok(())
    }
}
