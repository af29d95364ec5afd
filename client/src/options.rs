//! What a client may be told about time and limits.

use std::time::Duration;

use holdfast_security::{Credentials, Token};

/// The longest pause between two looks for the leader, ms.
const SEARCH_CEILING_MS: u64 = 100;

/// Limits of a client. The defaults suit a service beside its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long one request is pursued, over as many streams as it takes, before the caller is told *unknown*, ms.
    pub patience_ms: u64,
    /// For opening one connection, ms.
    pub connect_timeout_ms: u64,
    /// A connection that was silent so long is given up, ms. Half of it is the interval of the pings. A node that was stopped or cut
    /// off keeps its sockets open, so this is how long its clients wait for it while another node leads already.
    pub silence_max_ms: u64,
    /// Requests under way at once; one more waits for its turn. A coordinator serves at most 4,096 a stream.
    pub in_flight_max: usize,
    /// The first pause before a request is sent again, ms. Pauses double, with jitter.
    pub pause_first_ms: u64,
    /// The longest pause, ms.
    pub pause_ceiling_ms: u64,
    /// Mutual TLS: the authority that names the nodes, and this program's own certificate. `None`: nothing is encrypted, and only
    /// loopback addresses are spoken to.
    pub credentials: Option<Credentials>,
    /// A bearer token, sent with every request; only ever over TLS.
    pub token: Option<Token>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            patience_ms: 30_000,
            connect_timeout_ms: 1_000,
            silence_max_ms: 1_500,
            in_flight_max: 4_096,
            pause_first_ms: 5,
            pause_ceiling_ms: 500,
            credentials: None,
            token: None,
        }
    }
}

impl ClientOptions {
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.max(1))
    }

    pub(crate) fn silence_max(&self) -> Duration {
        Duration::from_millis(self.silence_max_ms.max(2))
    }

    /// The pause before attempt `attempt` (from 1), somewhere between half of its length and all of it.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        self.pause_below(attempt, self.pause_ceiling_ms)
    }

    /// As [`Self::pause`], while no leader is found: an election is shorter than the longest pause of a busy cluster, and all
    /// requests of a client share one search.
    pub(crate) fn search_pause(&self, attempt: u32) -> Duration {
        self.pause_below(attempt, self.pause_ceiling_ms.min(SEARCH_CEILING_MS))
    }

    fn pause_below(&self, attempt: u32, ceiling_ms: u64) -> Duration {
        let doubled = self.pause_first_ms.max(1).saturating_mul(1 << attempt.min(16));
        let whole = doubled.min(ceiling_ms.max(1));
        Duration::from_millis(rand::random_range(whole / 2..=whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_ceiling_and_no_further() {
        let options = ClientOptions::default();
        for attempt in 1..200 {
            let pause = options.pause(attempt);
            assert!(
                pause <= Duration::from_millis(options.pause_ceiling_ms),
                "{attempt}: {pause:?}"
            );
            assert!(options.search_pause(attempt) <= Duration::from_millis(SEARCH_CEILING_MS));
        }
        assert!(options.pause(1) <= Duration::from_millis(10));
        assert!(options.pause(100) >= Duration::from_millis(options.pause_ceiling_ms / 2));
    }
}
