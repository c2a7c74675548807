//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Looks until the condition gives something, at most so long. An error of the condition counts as "not yet", and the last
/// one is told when the patience is over.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    until_every(LOOK_EVERY, what, patience, look).await
}

/// [`until`] for a condition that costs something to look at.
pub async fn until_every<T>(
    pause: Duration,
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        let error = match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if begun.elapsed() >= patience {
            return Err(match error {
                Some(error) => error.context(format!("gave up after {patience:?} waiting until {what}")),
                None => anyhow::anyhow!("gave up after {patience:?} waiting until {what}"),
            });
        }
        tokio::time::sleep(pause).await;
    }
}
