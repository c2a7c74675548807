//! Waits for conditions, and names the parts of a test that share a cluster.

use std::time::{Duration, Instant};

use anyhow::Context;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Looks until the condition gives a value, for at most `patience`. An error of the condition counts as "not yet". When the time is over,
/// the function reports the last error.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    until_every(LOOK_EVERY, what, patience, look).await
}

/// [`until`] with a longer pause between two looks, for a condition that is expensive to look at.
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

/// Runs a part of a test, names it in its error, and prints how long it took.
pub async fn section(name: &str, part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let begun = Instant::now();
    part.await.with_context(|| name.to_owned())?;
    eprintln!("  {name}: {:.1?}", begun.elapsed());
    Ok(())
}
