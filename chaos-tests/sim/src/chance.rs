//! Chance from one seed: SplitMix64, with a child for each thing that draws, so that a draw in one never shifts another.

/// A stream of numbers that a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Mixes all bits of `word` into all bits of the answer.
pub(crate) fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl Chance {
    /// The stream of `seed` for the purpose `child`.
    pub(crate) fn of(seed: u64, child: u64) -> Self {
        Self(mixed(mixed(seed.wrapping_add(STEP)) ^ child.wrapping_mul(STEP)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mixed(self.0)
    }

    /// Below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// A position in something of this length.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("it is below a length")
    }

    /// From `low` to `high`, both possible.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True so often in a thousand.
    pub(crate) fn permille(&mut self, rate: u64) -> bool {
        // No draw for what cannot happen: faults that are switched off leave the stream alone.
        rate > 0 && self.below(1_000) < rate
    }

    /// One of these; the slice is not empty.
    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())].clone()
    }

    /// A pause between a half and the whole, as the shell draws it.
    pub(crate) fn jittered(&mut self, pause_ms: u64) -> u64 {
        self.between(pause_ms / 2, pause_ms).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_its_stream_and_children_differ() {
        let draw = |seed, child| {
            let mut chance = Chance::of(seed, child);
            (0..4).map(|_| chance.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_them() {
        let mut chance = Chance::of(1, 1);
        let drawn: Vec<u64> = (0..200).map(|_| chance.between(3, 5)).collect();
        assert!((3..=5).all(|wanted| drawn.contains(&wanted)));
        assert!(drawn.iter().all(|drawn| (3..=5).contains(drawn)));
        assert_eq!(chance.below(0), 0);
        assert!(!(0..200).any(|_| chance.permille(0)));
        assert!((0..200).all(|_| chance.permille(1_000)));
    }
}
