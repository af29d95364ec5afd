//! Many seeds: what was seen in all of them, and what was broken in some.

use crate::{
    happening::{Counts, Happening},
    invariant::{Broken, vacuous},
    mutant::Mutant,
    run::{Run, run},
    trace::Words,
};

/// Violations that are kept; a bug that breaks every seed is shown well enough by these.
const VIOLATIONS_MAX: usize = 10;
/// One of so many seeds is run twice.
const REPEATED_OF: u64 = 100;

/// A seed that broke a promise.
#[derive(Debug)]
pub struct Violation {
    /// The run again, with its last events in words.
    pub run: Run,
    /// What was broken.
    pub broken: Broken,
}

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Campaign {
    /// How many were run.
    pub seeds: u64,
    /// How many of them were run twice and compared.
    pub repeated: u64,
    /// Events in all.
    pub events: u64,
    /// What happened how often, in all.
    pub counts: Counts,
    /// At most ten; the campaign ends at the tenth.
    pub violations: Vec<Violation>,
}

impl Campaign {
    /// Faults that never struck and states that were never reached.
    #[must_use]
    pub fn never_happened(&self) -> Vec<Happening> {
        vacuous::never_happened(&self.counts)
    }
}

/// Runs `seeds` seeds from `first` on. `ask` is called after each and says whether to go on.
pub fn campaign(
    first: u64,
    seeds: u64,
    mutant: Option<Mutant>,
    mut ask: impl FnMut(&Campaign) -> bool,
) -> Campaign {
    let mut campaign = Campaign::default();
    for seed in (0..seeds).map(|n| first.wrapping_add(n)) {
        let once = run(seed, mutant, Words::None);
        campaign.seeds += 1;
        campaign.events += once.events;
        campaign.counts.add(&once.counts);
        let mut broken = once.broken;
        if seed.is_multiple_of(REPEATED_OF) {
            campaign.repeated += 1;
            let again = run(seed, mutant, Words::None);
            if again.trace_hash != once.trace_hash {
                let detail = format!(
                    "two runs of seed {seed} differ: {:016x} and {:016x}",
                    once.trace_hash, again.trace_hash
                );
                broken = Some(Broken { promise: "repeat", detail });
            }
        }
        if let Some(broken) = broken {
            let run = run(seed, mutant, Words::Last);
            campaign.violations.push(Violation { run, broken });
        }
        if campaign.violations.len() >= VIOLATIONS_MAX || !ask(&campaign) {
            break;
        }
    }
    campaign
}
