//! One run: a seed, the world it makes, and what came of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    happening::Counts, invariant::Broken, mutant::Mutant, settings::Settings, trace::Words,
    world::World,
};

/// What came of one seed.
#[derive(Debug)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// What it drew.
    pub settings: Settings,
    /// How many events there were.
    pub events: u64,
    /// Rolled over everything that happened: equal for equal seeds.
    pub trace_hash: u64,
    /// What happened how often.
    pub counts: Counts,
    /// The promise that was broken, if one was.
    pub broken: Option<Broken>,
    /// Events in words, as many as were asked for.
    pub lines: Vec<String>,
}

/// Runs `seed`, with a planted bug or without. A panic of a mind is a broken promise like others.
#[must_use]
pub fn run(seed: u64, mutant: Option<Mutant>, words: Words) -> Run {
    let mut world = World::new(seed, mutant, words);
    let settings = Settings::of(seed);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    let broken = match panicked {
        None => world.broken,
        Some(panic) => {
            let said = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()));
            let detail = format!("a mind panicked: {}", said.unwrap_or_default());
            Some(Broken { promise: "panic", detail })
        }
    };
    Run {
        seed,
        settings,
        events: world.trace.events,
        trace_hash: world.trace.hash,
        counts: world.counts,
        broken,
        lines: world.trace.lines.into(),
    }
}
