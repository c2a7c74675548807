//! The fold: writes what is committed to the projections of the journal, beside the lane.
//!
//! A fold takes everything that is committed and not folded. It writes the accounts in chunks, each with a transaction of
//! its own, and then advances `folded_position` together with sagas and waypoints. A node that dies in between
//! leaves some accounts ahead of `folded_position`; the next fold leaves rows that are as new as its own states, and replaces older
//! ones that the journal confirms.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    metric_definitions as m,
    store::{Store, StoreError},
    tail::{Fold, Tail},
};

/// Accounts that one statement writes: enough that the statement's fixed cost does not matter, and few enough that the
/// server can do other work in between.
const CHUNK: usize = 1000;

/// Pause after a fold that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Folds until `shutdown`, every `interval` and whenever the tail is half full. What is not folded then is folded after the
/// next start.
pub async fn run<S: Store>(store: Arc<S>, tail: Tail, interval: Duration, shutdown: CancellationToken) {
    let mut next = Instant::now() + interval;
    let mut is_failing = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep_until(next) => {}
            () = tail.wait_until_half_full() => {}
        }
        next = Instant::now() + interval;
        let Some(fold) = tail.begin_fold() else { continue };
        let begun = Instant::now();
        match write(&*store, fold).await {
            Ok(true) => {
                is_failing = false;
                tail.folded();
                metrics::histogram!(m::FOLD_SECONDS).record(begun.elapsed());
            }
            Ok(false) => {
                tracing::info!("another node of the shard has folded; the tail will be loaded again");
                tail.set_outdated();
            }
            Err(StoreError::Fenced) => tail.set_outdated(),
            Err(StoreError::Corrupt(why)) => {
                tracing::error!(why, "the fold stops: the shard's projections are damaged");
                tail.set_damaged(&why);
            }
            Err(error) => {
                // What is wrong with the database itself is reported by the gate and the lane.
                if is_failing || matches!(error, StoreError::Refused(_) | StoreError::Superseded) {
                    tracing::debug!(%error, "the fold failed");
                } else {
                    tracing::warn!(%error, "the fold failed and will be run again until it succeeds");
                }
                is_failing = true;
                tail.fold_failed();
                // A tail that is half full does not shorten the pause.
                if shutdown.run_until_cancelled(sleep(RETRY_PAUSE)).await.is_none() {
                    return;
                }
                next = Instant::now();
            }
        }
        tail.report_size();
    }
}

/// Returns `false` if another node has folded since the tail was loaded.
async fn write(store: &impl Store, fold: Fold) -> Result<bool, StoreError> {
    // In the order of the index, so that each page is written once. To sort a large tail takes longer than the lane may wait for
    // the thread.
    let sorted = tokio::task::spawn_blocking(move || (fold.ids_in_order(), fold));
    let (ids, fold) = sorted.await.map_err(|_| StoreError::Superseded)?;
    store.begin_fold(fold.step.timeline).await?;
    for chunk in ids.chunks(CHUNK) {
        store.fold_accounts(fold.step.incarnation, &fold.states(chunk)).await?;
        metrics::counter!(m::FOLD_ACCOUNTS).increment(chunk.len() as u64);
    }
    store.finish_fold(&fold.step).await
}
