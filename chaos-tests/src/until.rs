//! Waits for a condition, and never longer than a bound.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

/// For anything that happens soon, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks again and again until there is something to see, and answers it.
/// # Errors
/// Nothing was seen within `within`; says what was waited for.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if Instant::now() > end {
            bail!("waited {} s in vain: {what}", within.as_secs_f64());
        }
        sleep(LOOK_AGAIN).await;
    }
}
