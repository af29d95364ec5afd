//! What a proxy does to what passes, and the words in which it is told so.

use anyhow::{Context as _, bail, ensure};

/// Faults of one proxy; all off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every piece waits so long.
    pub delay_ms: u64,
    /// And up to so much longer, drawn for each piece.
    pub jitter_ms: u64,
    /// Of a thousand pieces, so many end their connection at once, by a reset.
    pub reset_permille: u64,
    /// Nothing goes on towards the server, and nobody is told: half open.
    pub mute_up: bool,
    /// Nothing goes on towards the client.
    pub mute_down: bool,
    /// The end of a connection is passed on so much later.
    pub slow_close_ms: u64,
    /// Pieces are cut to so many bytes; 0: not at all.
    pub slice_bytes: u64,
    /// So many bytes a second in each direction; 0: as fast as it goes.
    pub bytes_per_second: u64,
    /// Of a million bytes, so many are changed.
    pub corrupt_ppm: u64,
    /// New connections are ended as soon as they are made.
    pub refuse: bool,
}

impl Faults {
    /// Sets what `words` say, for example `delay_ms=50 mute_up=1`; what they do not name stays.
    /// # Errors
    /// A name that is none, or a value that is no number.
    pub fn set(&mut self, words: &str) -> anyhow::Result<()> {
        let mut next = *self;
        for word in words.split_whitespace() {
            let (name, value) =
                word.split_once('=').with_context(|| format!("{word}: write name=value"))?;
            let value: u64 = value.parse().with_context(|| format!("{word}: no number"))?;
            match name {
                "delay_ms" => next.delay_ms = value,
                "jitter_ms" => next.jitter_ms = value,
                "reset_permille" => next.reset_permille = value,
                "mute_up" => next.mute_up = value > 0,
                "mute_down" => next.mute_down = value > 0,
                "slow_close_ms" => next.slow_close_ms = value,
                "slice_bytes" => next.slice_bytes = value,
                "bytes_per_second" => next.bytes_per_second = value,
                "corrupt_ppm" => next.corrupt_ppm = value,
                "refuse" => next.refuse = value > 0,
                _ => bail!("no fault is called {name}"),
            }
        }
        ensure!(
            next.reset_permille <= 1_000 && next.corrupt_ppm <= 1_000_000,
            "a share above the whole"
        );
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_set_what_they_name_and_nothing_else() {
        let mut faults = Faults::default();
        faults.set("delay_ms=50 mute_up=1").unwrap();
        faults.set("jitter_ms=5 mute_up=0").unwrap();
        assert_eq!(faults, Faults { delay_ms: 50, jitter_ms: 5, ..Faults::default() });
        for bad in ["delay", "delay_ms=x", "speed=1", "reset_permille=1001", "corrupt_ppm=1000001"]
        {
            assert!(faults.set(bad).is_err(), "{bad}");
        }
        assert_eq!(faults.delay_ms, 50, "what is not understood changes nothing");
    }
}
