//! How evenly a sample of keys lies: by source, by shard, by slot.

use std::{collections::BTreeMap, path::Path};

use holdfast_route::Topology;
use serde_json::{Value, json};

use crate::{output, rules_plan};

/// Keys that are told by name because they have no slot.
const OUTSIDE_TOLD_MAX: usize = 5;

/// Where the keys of a sample lie.
pub(crate) struct Spread {
    keys: u64,
    by_source: BTreeMap<String, u64>,
    by_shard: BTreeMap<String, u64>,
    by_slot: BTreeMap<u16, u64>,
    outside: u64,
    /// The first of the keys that have no slot.
    outside_first: Vec<String>,
}

/// Where the keys in `file`, a line each, lie by `rules`.
/// # Errors
/// The file cannot be read, or the rules have no such group.
pub(crate) fn read(rules: &Topology, group: &str, file: &Path) -> anyhow::Result<Spread> {
    let text = rules_plan::text(file)?;
    let Some(known) = rules.groups().get(group) else {
        // `locate` says it with what was probably meant.
        rules.locate(group, "any")?;
        anyhow::bail!("no group {group}");
    };
    let zero = |names: Vec<String>| names.into_iter().map(|name| (name, 0)).collect();
    let with_slots = rules.shards().iter().filter(|(id, _)| !known.slots_of(id).is_empty());
    let (shards, sources): (Vec<String>, Vec<String>) =
        with_slots.map(|(id, shard)| (id.to_string(), shard.source().to_string())).unzip();
    let mut spread = Spread {
        keys: 0,
        by_source: zero(sources),
        by_shard: zero(shards),
        by_slot: BTreeMap::new(),
        outside: 0,
        outside_first: Vec::new(),
    };
    for key in text.lines().filter(|line| !line.is_empty()) {
        spread.keys += 1;
        match rules.locate(group, key) {
            Ok(located) => {
                *spread.by_source.entry(located.source.to_string()).or_default() += 1;
                *spread.by_shard.entry(located.shard.to_string()).or_default() += 1;
                *spread.by_slot.entry(located.slot.number()).or_default() += 1;
            }
            Err(_) => {
                spread.outside += 1;
                if spread.outside_first.len() < OUTSIDE_TOLD_MAX {
                    spread.outside_first.push(key.chars().take(40).collect());
                }
            }
        }
    }
    Ok(spread)
}

/// How much more the fullest has than the average; 1.0 is even.
fn unevenness(counts: &BTreeMap<String, u64>) -> f64 {
    let (most, total) = (counts.values().max().copied().unwrap_or(0), counts.values().sum::<u64>());
    if total == 0 { 1.0 } else { most as f64 * counts.len() as f64 / total as f64 }
}

impl Spread {
    /// The fullest slot, and how many keys it has.
    fn fullest(&self) -> Option<(u16, u64)> {
        self.by_slot.iter().map(|(slot, keys)| (*slot, *keys)).max_by_key(|(_, keys)| *keys)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "keys": self.keys,
            "by_source": self.by_source,
            "by_shard": self.by_shard,
            "unevenness_of_sources": unevenness(&self.by_source),
            "unevenness_of_shards": unevenness(&self.by_shard),
            "slots_used": self.by_slot.len(),
            "fullest_slot": self.fullest().map(|(slot, keys)| json!({ "slot": slot, "keys": keys })),
            "outside": self.outside,
            "outside_first": self.outside_first,
        })
    }

    pub(crate) fn table(&self) -> String {
        let share = |keys: u64| {
            let located = (self.keys - self.outside).max(1);
            format!("{:.1} %", 100.0 * keys as f64 / located as f64)
        };
        let rows = |counts: &BTreeMap<String, u64>| {
            let row =
                |(name, keys): (&String, &u64)| vec![name.clone(), keys.to_string(), share(*keys)];
            counts.iter().map(row).collect::<Vec<_>>()
        };
        let mut text = output::table(&["source", "keys", "share"], rows(&self.by_source));
        text.push_str("\n\n");
        text.push_str(&output::table(&["shard", "keys", "share"], rows(&self.by_shard)));
        text.push_str(&format!(
            "\n\nThe fullest source has {:.2} times the average, the fullest shard {:.2} times. {} slots are used",
            unevenness(&self.by_source),
            unevenness(&self.by_shard),
            self.by_slot.len()
        ));
        if let Some((slot, keys)) = self.fullest() {
            text.push_str(&format!("; the fullest is {slot}, with {keys} keys ({})", share(keys)));
        }
        text.push_str(&format!(".\n{} of {} keys have no slot", self.outside, self.keys));
        if !self.outside_first.is_empty() {
            text.push_str(&format!(": {:?}", self.outside_first));
        }
        text
    }
}
