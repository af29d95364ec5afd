//! The drills: what each does to whom, how far it reaches, and what it must come to.

use std::time::Duration;

use serde::Serialize;

/// Whom a drill strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Whom {
    /// The coordinator that leads.
    Leader,
    /// A coordinator that follows.
    Follower,
    /// Every coordinator at once.
    AllCoordinators,
    /// The bank of one shard; repeats take turns.
    OneBank,
    /// Every process, one after the other, each when the one before is ready again.
    EachInTurn,
}

/// What the process that is struck is asked to do, by the name that its drill door knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Strike {
    /// The name.
    pub(crate) fault: &'static str,
    /// How much of it, where there is a measure.
    pub(crate) measure: i64,
}

/// From when on recovery is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum From {
    /// From the moment of the fault: others take over.
    Fault,
    /// From the end of the fault: what it strikes has no substitute.
    End,
}

/// How a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mend {
    /// By itself, when its time is over.
    ByItself,
    /// By `holdfast cluster replace`, which the runner gives; without it the target undoes the fault when its time is over.
    Replace,
}

/// A blow while more is under way than the clients of a drill ever have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Surge {
    /// Transactions.
    pub(crate) in_flight: u32,
    /// From the blow until each is answered, ms.
    pub(crate) resolved_max_ms: u64,
}

/// What must not be exceeded, ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Goals {
    /// Half of the recoveries.
    pub(crate) recover_p50_ms: u64,
    /// The slowest.
    pub(crate) recover_max_ms: u64,
    /// The error budget: a longer time without any commit aborts the drill.
    pub(crate) gap_max_ms: u64,
    /// Until another node leads by a hand-over, or a replaced node has its vote; the slowest.
    pub(crate) mended_max_ms: Option<u64>,
}

/// One drill.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Drill {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Who feels it, in words for the one who signs.
    pub(crate) blast_radius: &'static str,
    pub(crate) whom: Whom,
    pub(crate) strike: Strike,
    /// How long the fault is held, ms; for a process that dies, how long it stays dead.
    pub(crate) held_ms: u64,
    pub(crate) measured_from: From,
    pub(crate) goals: Goals,
    /// What has to be done for everybody to be well again, beside waiting.
    pub(crate) mend: Mend,
    /// One more blow at the end, with so much under way.
    pub(crate) surge: Option<Surge>,
}

impl Drill {
    /// The time limit that the target keeps by itself.
    pub(crate) fn held(&self) -> Duration {
        Duration::from_millis(self.held_ms)
    }

    const fn mended_by(mut self, mend: Mend) -> Self {
        self.mend = mend;
        self
    }

    const fn mended_within(mut self, ms: u64) -> Self {
        self.goals.mended_max_ms = Some(ms);
        self
    }

    const fn with_surge(mut self, in_flight: u32, resolved_max_ms: u64) -> Self {
        self.surge = Some(Surge { in_flight, resolved_max_ms });
        self
    }
}

/// A process that dies stays dead for so long.
const DEAD_MS: u64 = 1_500;

macro_rules! drill {
    ($name:literal, $what:literal, $radius:literal, $whom:ident, $fault:literal $measure:literal, held $held:expr, from $from:ident,
     goals $p50:literal $max:literal $gap:literal) => {
        Drill {
            name: $name,
            what: $what,
            blast_radius: $radius,
            whom: Whom::$whom,
            strike: Strike { fault: $fault, measure: $measure },
            held_ms: $held,
            measured_from: From::$from,
            goals: Goals {
                recover_p50_ms: $p50,
                recover_max_ms: $max,
                gap_max_ms: $gap,
                mended_max_ms: None,
            },
            mend: Mend::ByItself,
            surge: None,
        }
    };
}

/// Every drill, in the order in which a team should dare them.
pub(crate) const DRILLS: [Drill; 15] = [
    drill!("follower-kill", "SIGKILL of a coordinator that follows", "none: the others are a quorum", Follower,
        "kill" 0, held DEAD_MS, from Fault, goals 500 3_000 3_000),
    drill!("leader-kill", "SIGKILL of the coordinator that leads", "all transactions wait for the election; none fails", Leader,
        "kill" 0, held DEAD_MS, from Fault, goals 800 3_000 5_000).with_surge(1_000, 3_000),
    drill!("hand-over", "the leader hands over and restarts in good order", "all transactions wait for a moment", Leader,
        "restart" 0, held DEAD_MS, from Fault, goals 500 1_000 3_000).mended_within(300),
    drill!("pause-leader", "SIGSTOP of the leader; it comes back with stale beliefs", "all transactions wait for the election", Leader,
        "pause" 0, held 4_000, from Fault, goals 2_000 3_000 5_000),
    drill!("partition-leader", "the leader is cut off from its peers; clients and agents still reach it", "all transactions wait for the election", Leader,
        "isolated" 0, held 4_000, from Fault, goals 3_000 4_000 6_000),
    drill!("slow-disk", "each sync of the leader's log takes 40 ms longer", "every commit waits for the slower disk", Leader,
        "slow-disk" 40, held 4_000, from Fault, goals 1_000 3_000 5_000),
    drill!("clock-skew", "the leader's clock is 2 s ahead", "deadlines may pass 2 s early, and roll back", Leader,
        "clock-skew" 2_000, held 4_000, from Fault, goals 500 3_000 5_000),
    drill!("participant-errors", "half of the calls to one bank are answered unknown", "transfers of one shard are retried", OneBank,
        "errors" 50, held 4_000, from Fault, goals 3_000 10_000 10_000),
    drill!("participant-timeouts", "a third of the answers of one bank are lost", "transfers of one shard wait for a call timeout", OneBank,
        "silence" 33, held 4_000, from Fault, goals 5_000 15_000 10_000),
    drill!("participant-answers-twice", "half of the calls to one bank are carried out and answered twice", "none: the barrier turns the second away", OneBank,
        "twice" 50, held 4_000, from Fault, goals 500 3_000 5_000),
    drill!("shard-down", "the data source of one bank cannot be used", "transfers of one shard wait until it is back; those that wait too long roll back", OneBank,
        "shard-down" 0, held 4_000, from End, goals 4_000 12_000 15_000),
    drill!("connections-exhausted", "all connections of one PostgreSQL are taken", "transfers of one shard that need a new connection wait", OneBank,
        "connections" 500, held 4_000, from End, goals 4_000 12_000 15_000),
    drill!("all-kill", "SIGKILL of every coordinator at once", "all transactions wait until a quorum is back", AllCoordinators,
        "kill" 0, held DEAD_MS, from Fault, goals 6_000 12_000 20_000),
    drill!("rolling-restart", "every process restarts, one after the other", "each restart is felt for a moment", EachInTurn,
        "restart" 0, held 0, from Fault, goals 1_000 5_000 10_000),
    drill!("replace-node", "a follower dies and comes back with an empty disk; it is replaced under load", "none: the others are a quorum; its directory is moved aside and kept", Follower,
        "lose-disk" 1_500, held 30_000, from Fault, goals 1_000 3_000 5_000).mended_by(Mend::Replace).mended_within(30_000),
];

/// The drill of that name.
pub(crate) fn named(name: &str) -> Option<&'static Drill> {
    DRILLS.iter().find(|drill| drill.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use holdfast_fault::Held;

    use super::*;

    #[test]
    fn each_drill_has_a_name_bounds_and_a_fault_that_the_door_knows() {
        let names: BTreeSet<_> = DRILLS.iter().map(|drill| drill.name).collect();
        assert_eq!(names.len(), DRILLS.len());
        for drill in &DRILLS {
            assert!(drill.goals.recover_p50_ms <= drill.goals.recover_max_ms, "{}", drill.name);
            assert!(drill.held() <= holdfast_fault::held::LIMIT_MAX, "{}", drill.name);
            let measure = drill.strike.measure;
            let known = match Held::named(drill.strike.fault) {
                Some(fault) => fault.range().0.contains(&measure),
                None => ["kill", "restart", "pause", "lose-disk", "connections"]
                    .contains(&drill.strike.fault),
            };
            let spares_the_quorum = drill.mend == Mend::ByItself || drill.whom == Whom::Follower;
            assert!(spares_the_quorum, "{}: one disk of three may be taken", drill.name);
            assert!(known, "{}: no door knows {:?}", drill.name, drill.strike);
        }
    }
}
