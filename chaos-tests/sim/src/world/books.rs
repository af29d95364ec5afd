//! The books: people put shard rules into force and write notes; a router reads the rules and somebody exports the audit trail, each
//! of whichever node answers.

use std::sync::Arc;

use holdfast_route::Topology;
use holdfast_txn::{AuditRecord, Command, Deed};

use super::World;
use crate::{happening::Happening, mutant::Mutant, workload};

/// What was read from nodes so far.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The router's rules.
    epoch: u64,
    /// Of whoever exports: in order, as they were got.
    pub(crate) exported: Vec<Arc<AuditRecord>>,
}

impl World {
    /// Somebody proposes other rules, by what the cluster says now or by what they read some time ago; or writes a note.
    pub(super) fn write_books(&mut self) {
        let Some(leader) = self.cluster.leader else { return };
        if self.asking.permille(300) {
            let (by, words) = (self.somebody(), self.reason());
            let deed = Deed { by, act: "door.refused".to_owned(), about: "tx".to_owned(), words };
            self.people_ask(leader, Command::Note { deed });
            return;
        }
        let now = self.witness.log.books().epoch();
        let has_read = if self.asking.permille(300) { now.saturating_sub(1) } else { now };
        let text = workload::other_rules(&self.places, self.settings.shards, &mut self.asking);
        let (by, reason) = (self.somebody(), self.reason());
        self.people_ask(leader, Command::SetRules { text, expected: has_read, by, reason });
    }

    /// The router asks `node` for the rules, and whoever exports asks it for audit records behind those that they have.
    pub(super) fn read_books(&mut self, node: usize) {
        if !self.nodes[node].up || self.nodes[node].paused {
            return;
        }
        let books = Arc::clone(self.nodes[node].machine.books());
        if let Some(version) = books.rules_now() {
            if version.epoch > self.reader.epoch || self.mutates(Mutant::RulesGoBack) {
                let topology = Topology::parse(&version.text).expect("they were checked");
                let accounts = &self.places.accounts;
                let taken = self.witness.rules.taken(version.epoch, &topology, accounts);
                self.check(taken);
                self.reader.epoch = version.epoch;
                self.count(Happening::RouterReadRules);
            } else if version.epoch < self.reader.epoch {
                self.count(Happening::RouterReadOlderRules);
            }
        }
        let last = self.reader.exported.last().map_or(0, |record| record.number);
        let from = if self.mutates(Mutant::ExportSkips) && books.trail.count > last + 2 {
            books.trail.count - 1
        } else {
            last
        };
        for record in books.trail.after(from) {
            self.reader.exported.push(Arc::clone(record));
            self.counts.count(Happening::AuditExported);
        }
    }

    /// At the end: every node's trail is whole and says what was done, and so does the export.
    pub(super) fn judge_books(&mut self) {
        for node in 0..self.nodes.len() {
            let books = Arc::clone(self.nodes[node].machine.books());
            let whole = self.witness.deeds.judged(&books.trail);
            self.check(whole);
        }
        self.read_books(0);
        let exported = self.reader.exported.iter().map(AsRef::as_ref);
        let complete = self.witness.deeds.exported(&exported);
        self.check(complete);
    }
}
