//! Faults of the cluster, at random times: deaths, pauses, partitions, moves of leadership, jumps of clocks.

use super::{End, Event, World};
use crate::{happening::Happening, settings::Strike};

/// How far a clock jumps at most, ms.
const JUMP_MS: i64 = 3_000;

impl World {
    /// Foresees the next strike of this kind.
    pub(super) fn plan_strike(&mut self, index: usize) {
        let mean_ms = self.settings.strikes[index].1;
        let at_ms = self.now_ms + self.faults.between(20, 2 * mean_ms);
        self.queue.at(at_ms, Event::Strike(index));
    }

    pub(super) fn strike(&mut self, index: usize) {
        if !self.is_faulty() {
            return;
        }
        self.plan_strike(index);
        let node = self.faults.index(self.nodes.len());
        match self.settings.strikes[index].0 {
            Strike::CrashNode => {
                // Also the leader, as often as not.
                let leader = self.cluster.leader.filter(|_| self.faults.permille(500));
                let node = leader.unwrap_or(node);
                if self.nodes[node].up {
                    self.crash(node);
                    let back_ms = self.now_ms + self.faults.between(30, 2_000);
                    self.queue.at(back_ms, Event::Restart { node });
                }
            }
            Strike::PauseNode => {
                let leader = self.cluster.leader.filter(|_| self.faults.permille(600));
                let node = leader.unwrap_or(node);
                if self.nodes[node].up && !self.nodes[node].paused {
                    self.nodes[node].paused = true;
                    self.count(Happening::NodePaused);
                    self.note(|| format!("node {node} stands still"));
                    let on_ms = self.now_ms + self.faults.between(20, 2_500);
                    self.queue.at(on_ms, Event::Resume { node });
                }
            }
            Strike::PartitionTwoWay => {
                let other = self.some_end(node);
                self.count(Happening::PartitionTwoWay);
                self.block(End::Node(node), other);
                self.block(other, End::Node(node));
            }
            Strike::PartitionOneWay => {
                let other = self.some_end(node);
                self.count(Happening::PartitionOneWay);
                if self.faults.permille(500) {
                    self.block(End::Node(node), other);
                } else {
                    self.block(other, End::Node(node));
                }
            }
            Strike::IsolateLeader => self.isolate_leader(),
            Strike::MoveLeadership => {
                let leader = self.cluster.leader;
                if self.nodes.len() > 1 {
                    self.count(Happening::LeadershipMoved);
                    self.elect(leader);
                }
            }
            Strike::JumpClock => {
                let span = u64::try_from(2 * JUMP_MS).expect("a positive span");
                let jump_ms = i64::try_from(self.faults.below(span)).expect("a short span");
                self.nodes[node].skew_ms = jump_ms - JUMP_MS;
                self.count(Happening::ClockJumped);
                self.note(|| {
                    format!("the clock of node {node} is off by {} ms", jump_ms - JUMP_MS)
                });
            }
            Strike::TakeSnapshot => self.take_snapshot(node),
            Strike::OperatorLooks => self.operator_looks(),
            Strike::WriteBooks => self.write_books(),
            Strike::ReadBooks => {
                self.read_books(node);
                // And the one that is furthest behind, which may say what is over.
                let up = (0..self.nodes.len()).filter(|&node| self.nodes[node].up);
                if let Some(behind) = up.min_by_key(|&node| self.nodes[node].applied) {
                    self.read_books(behind);
                }
            }
        }
    }

    /// Another node or an agent.
    fn some_end(&mut self, node: usize) -> End {
        if self.faults.permille(500) && self.nodes.len() > 1 {
            let other = self.faults.index(self.nodes.len() - 1);
            End::Node(if other < node { other } else { other + 1 })
        } else {
            End::Agent(self.faults.index(self.agents.len()))
        }
    }

    fn isolate_leader(&mut self) {
        let Some(leader) = self.cluster.leader else { return };
        self.count(Happening::LeaderIsolated);
        let asymmetric = self.faults.permille(300);
        for other in (0..self.nodes.len()).filter(|&other| other != leader) {
            self.block(End::Node(leader), End::Node(other));
            if !asymmetric {
                self.block(End::Node(other), End::Node(leader));
            }
        }
    }

    fn block(&mut self, from: End, to: End) {
        self.note(|| format!("{from:?} -> {to:?} is cut"));
        self.blocked.insert((from, to));
        let joined_ms = self.now_ms + self.faults.between(50, 2_500);
        self.queue.at(joined_ms, Event::Join { from, to });
    }
}
