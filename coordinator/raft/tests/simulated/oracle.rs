//! What every run is held to: Raft's safety as seen by state machines, durability of what was acknowledged, convergence at the end.

use std::collections::BTreeMap;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) promise: &'static str,
    pub(crate) detail: String,
}

/// Everything that was seen of a run.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// By index: term and entry, as the first node applied it.
    log: BTreeMap<u64, (u64, Vec<u8>)>,
    /// By node: the last term applied in this life.
    terms: BTreeMap<usize, u64>,
    leaders: BTreeMap<u64, u64>,
    told: BTreeMap<u64, Vec<u8>>,
    found: Vec<Found>,
}

impl Oracle {
    fn broken(&mut self, promise: &'static str, detail: String) {
        if self.found.len() < 10 {
            self.found.push(Found { promise, detail });
        }
    }

    /// A node starts anew: it may apply from the beginning again.
    pub(crate) fn starts(&mut self, node: usize) {
        self.terms.remove(&node);
    }

    /// `node` applies `entry` at `index`.
    pub(crate) fn applied(&mut self, node: usize, index: u64, term: u64, entry: &[u8]) {
        let before = self.terms.insert(node, term).unwrap_or(0);
        if term < before {
            self.broken("I13 terms go up", format!("node {node}: {term} behind {before}"));
        }
        match self.log.get(&index) {
            None => {
                self.log.insert(index, (term, entry.to_vec()));
            }
            Some((known, bytes)) if *known != term || bytes != entry => {
                let detail = format!("index {index}: two entries, of terms {known} and {term}");
                self.broken("I13 state machine safety", detail);
            }
            Some(_) => {}
        }
    }

    /// `node` says that it leads in `term`.
    pub(crate) fn leads(&mut self, node: u64, term: u64) {
        let leader = *self.leaders.entry(term).or_insert(node);
        if leader != node {
            self.broken("I13 election safety", format!("term {term}: nodes {leader} and {node}"));
        }
    }

    /// A proposer was told that `entry` is applied at `index`.
    pub(crate) fn acknowledged(&mut self, index: u64, entry: &[u8]) {
        self.told.insert(index, entry.to_vec());
    }

    /// The highest term that somebody led in.
    pub(crate) fn term(&self) -> u64 {
        self.leaders.last_key_value().map_or(0, |(&term, _)| term)
    }

    /// How many proposals were acknowledged.
    pub(crate) fn count(&self) -> u64 {
        self.told.len() as u64
    }

    /// The entries in their order.
    pub(crate) fn trace(&self) -> Vec<(u64, Vec<u8>)> {
        self.log.iter().map(|(&index, (_, entry))| (index, entry.clone())).collect()
    }

    /// Everything that is broken; `states` is what each node holds at the end.
    pub(crate) fn judge(mut self, states: &[Vec<Vec<u8>>]) -> Vec<Found> {
        let told = std::mem::take(&mut self.told);
        for (index, entry) in told {
            if self.log.get(&index).is_none_or(|(_, bytes)| *bytes != entry) {
                self.broken("I15 acknowledged is durable", format!("index {index} is lost"));
            }
        }
        let mut places: BTreeMap<&[u8], u64> = BTreeMap::new();
        let mut twice = Vec::new();
        for (&index, (_, entry)) in &self.log {
            if let Some(first) = places.insert(entry, index) {
                twice.push(format!("{first} and {index} hold the same proposal"));
            }
        }
        for detail in twice {
            self.broken("an entry is applied once", detail);
        }
        if states.windows(2).any(|pair| pair[0] != pair[1]) {
            let lengths: Vec<usize> = states.iter().map(Vec::len).collect();
            self.broken("equal states at the end", format!("{lengths:?} entries"));
        }
        self.found
    }
}
