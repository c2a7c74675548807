//! The fold: writes committed bookings to the projections of the journal, concurrently with the lane.
//!
//! A fold takes everything that is committed and not folded. It writes the accounts in chunks, each with a transaction of
//! its own, and then advances `folded_position` together with sagas and waypoints. A node that dies in between
//! leaves some accounts ahead of `folded_position`; the next fold leaves rows that are as new as its own states, and replaces older
//! ones that the journal confirms.
//!
//! A fold competes with the lane for the database's processor and disk. While the tail is less than half full, the fold writes
//! small chunks and spreads them over at most half of its interval, so that a commit seldom competes with a chunk.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinError,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    durable::{DurableStep, durable_steps, steps_of_fold},
    metric_definitions as m,
    role::NodeRole,
    store::{Store, StoreError},
    tail::{Fold, Tail},
};

/// Accounts that one statement writes while the tail is less than half full. The statement takes the server about a millisecond.
pub(crate) const SMALL_CHUNK: usize = 250;
/// Accounts that one statement writes otherwise. With so many accounts, the fixed cost of the statement is negligible.
const LARGE_CHUNK: usize = 1000;
/// The longest rest after a small chunk.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// The interval grows with the number of dead versions that each row has, at most to this multiple. A statement passes every
/// version of a row that it looks for. While a snapshot is open for minutes, as pg_dump holds one, each fold leaves another
/// version of each row that it writes.
const MAX_INTERVAL_FACTOR: f64 = 12.0;

/// Pause after a fold that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Folds until `shutdown`, while this node is active, every `interval` (up to [`MAX_INTERVAL_FACTOR`] times as long) and whenever the tail is half full or
/// a move of slots wants it. What is not folded then is folded after the next start.
pub async fn run<S: Store>(
    store: Arc<S>,
    tail: Tail,
    role: NodeRole,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let mut next = Instant::now() + interval;
    let mut is_failing = false;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = sleep_until(next) => {}
            // Commits during a fold ask for the next one, although the end of the fold leaves little to fold.
            () = tail.wait_until_fold_is_wanted() => if !tail.has_to_fold() { continue },
        }
        next = Instant::now() + interval;
        // The active node of the shard folds; the lane takes what it has folded out of this node's tail.
        if !role.is_active() {
            continue;
        }
        let Some(fold) = tail.begin_fold() else { continue };
        let begun = Instant::now();
        let written = write(&*store, &tail, fold, begun + interval / 2);
        let Some(written) = shutdown.run_until_cancelled(written).await else { return };
        match written {
            Ok(true) => {
                is_failing = false;
                free(tail.complete_fold());
                let Some(dead) = shutdown.run_until_cancelled(store.dead_versions_per_row()).await else { return };
                // If the statistics cannot be read, the interval does not grow.
                next = begun + interval.mul_f64(dead.unwrap_or(0.0).clamp(1.0, MAX_INTERVAL_FACTOR));
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
                if is_failing
                    || matches!(error, StoreError::Refused(_) | StoreError::NotOpen | StoreError::Superseded)
                {
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
    }
}

/// While the tail is less than half full, rests spread the writes until `end`. Returns `false` if another node has folded since
/// the tail was loaded.
async fn write(store: &impl Store, tail: &Tail, fold: Fold, end: Instant) -> Result<bool, StoreError> {
    // The accounts are written in the order of the index, so that each page is written once. Another thread sorts them, because to
    // sort a large tail would keep the lane waiting.
    let (ids, fold) = elsewhere(move || (fold.ids_in_order(), fold)).await.map_err(|error| {
        tracing::error!(%error, "the accounts of a fold could not be sorted");
        StoreError::NotOpen
    })?;
    store.begin_fold(fold.step.timeline).await?;
    let mut left = ids.as_slice();
    while !left.is_empty() {
        let hurries = tail.is_half_full();
        let (chunk, rest) = left.split_at(left.len().min(if hurries { LARGE_CHUNK } else { SMALL_CHUNK }));
        left = rest;
        let states = fold.states(chunk);
        let written = store.fold_accounts(fold.step.incarnation, &states);
        durable_steps(&[DurableStep::FoldAccounts], |_| StoreError::NotOpen, written).await?;
        metrics::counter!(m::FOLD_ACCOUNTS).increment(chunk.len() as u64);
        if !hurries && !left.is_empty() {
            let chunks = u32::try_from(left.len().div_ceil(SMALL_CHUNK)).unwrap_or(u32::MAX);
            sleep((end.saturating_duration_since(Instant::now()) / chunks).min(LONGEST_REST)).await;
        }
    }
    let steps = steps_of_fold(&fold.step);
    let finished = durable_steps(&steps, |_| StoreError::NotOpen, store.finish_fold(&fold.step)).await;
    free((ids, fold));
    finished
}

/// Runs work that may take milliseconds on another thread.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // A simulation has one thread.
    #[cfg(feature = "simulation")]
    if telemetry::simulation::is_running() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Drops a large value on another thread, because the drop may take milliseconds.
fn free(large: impl Send + 'static) {
    #[cfg(feature = "simulation")]
    if telemetry::simulation::is_running() {
        return;
    }
    tokio::task::spawn_blocking(move || drop(large));
}
