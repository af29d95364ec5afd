//! A token bucket: how many may pass in a second, and how many at once. Told the time, and nothing else.

/// Tokens in thousandths, so that a slow rate is exact over milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    per_s: u32,
    burst: u32,
    thousandths: u64,
    filled_at_ms: u64,
}

impl Bucket {
    /// Full. `per_s` = 0: no limit.
    pub(crate) fn new(per_s: u32, burst: u32, now_ms: u64) -> Self {
        // Without a burst of its own, a bucket holds a tenth of a second, and always one.
        let burst = if burst == 0 { per_s.div_ceil(10).max(1) } else { burst };
        Self { per_s, burst, thousandths: u64::from(burst) * 1_000, filled_at_ms: now_ms }
    }

    /// Whole tokens at `now_ms`.
    pub(crate) fn tokens(&mut self, now_ms: u64) -> usize {
        if self.per_s == 0 {
            return usize::MAX;
        }
        let passed_ms = now_ms.saturating_sub(self.filled_at_ms);
        let more = passed_ms.saturating_mul(u64::from(self.per_s));
        self.thousandths = self.thousandths.saturating_add(more).min(u64::from(self.burst) * 1_000);
        self.filled_at_ms = self.filled_at_ms.max(now_ms);
        usize::try_from(self.thousandths / 1_000).unwrap_or(usize::MAX)
    }

    /// Takes a token; false if there is none.
    pub(crate) fn take(&mut self, now_ms: u64) -> bool {
        if self.tokens(now_ms) == 0 {
            return false;
        }
        if self.per_s > 0 {
            self.thousandths -= 1_000;
        }
        true
    }

    /// Gives back a token of a call that was not made after all.
    pub(crate) fn give_back(&mut self) {
        self.thousandths = (self.thousandths + 1_000).min(u64::from(self.burst) * 1_000);
    }

    /// When the next token is there, at `now_ms` or later.
    pub(crate) fn next_ms(&mut self, now_ms: u64) -> u64 {
        if self.tokens(now_ms) > 0 {
            return now_ms;
        }
        let missing = 1_000 - self.thousandths;
        now_ms + missing.div_ceil(u64::from(self.per_s).max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_one_more_waits_for_its_token() {
        let mut bucket = Bucket::new(10, 3, 0);
        assert!((0..3).all(|_| bucket.take(0)));
        assert!(!bucket.take(0));
        assert_eq!(bucket.next_ms(0), 100);
        assert!(!bucket.take(99));
        assert!(bucket.take(100));
        assert!(!bucket.take(100));
    }

    #[test]
    fn over_a_minute_as_many_pass_as_the_rate_says() {
        let mut bucket = Bucket::new(7, 1, 0);
        let passed = (0..60_000).filter(|now_ms| bucket.take(*now_ms)).count();
        assert!((420..=421).contains(&passed), "{passed}");
    }

    #[test]
    fn a_long_pause_fills_it_to_the_brim_and_no_further() {
        let mut bucket = Bucket::new(1_000, 5, 0);
        (0..5).for_each(|_| assert!(bucket.take(0)));
        assert_eq!(bucket.tokens(u64::MAX), 5);
        bucket.give_back();
        assert_eq!(bucket.tokens(u64::MAX), 5);
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut bucket = Bucket::new(0, 0, 0);
        assert!((0..100_000).all(|_| bucket.take(0)));
        assert_eq!(bucket.next_ms(7), 7);
    }
}
