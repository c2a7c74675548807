//! What the drivers of this node do at the moment, for operators. It is kept in memory only.

use std::{sync::PoisonError, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::Moves;
use crate::store::moves::MoveStore;

/// How much the newest page counts in the rate of the copy.
const NEWEST: f64 = 0.2;

/// What a driver does.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    /// Positions of the source's own part that the driver has not read.
    pub lag_entries: i64,
    /// When the driver last had read all of them.
    caught_up: Option<Instant>,
    pub throttle_reason: String,
    bytes_per_second: f64,
    last_page: Option<Instant>,
}

impl Activity {
    /// Takes in a page of the source.
    pub fn page(&mut self, bytes: usize, entries_left: i64, at_end: bool) {
        let now = Instant::now();
        if let Some(before) = self.last_page.replace(now) {
            let seconds = now.duration_since(before).max(Duration::from_micros(1)).as_secs_f64();
            #[allow(clippy::cast_precision_loss, reason = "a rate for operators")]
            let rate = bytes as f64 / seconds;
            self.bytes_per_second += (rate - self.bytes_per_second) * NEWEST;
        }
        self.lag_entries = entries_left;
        if at_end {
            self.caught_up = Some(now);
        }
    }
}

impl<S: MoveStore> Moves<S> {
    /// Changes what is known of a move that this node drives.
    pub(super) fn note(&self, id: Uuid, change: impl FnOnce(&mut Activity)) {
        let mut activities = self.0.activities.lock().unwrap_or_else(PoisonError::into_inner);
        change(activities.entry(id).or_default());
    }

    pub(super) fn forget_activity(&self, id: Uuid) {
        self.0.activities.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// What this node does for a move, if it drives it.
    pub(super) fn activity(&self, id: Uuid) -> Option<wire::MoveActivity> {
        let activities = self.0.activities.lock().unwrap_or_else(PoisonError::into_inner);
        let activity = activities.get(&id)?;
        let lag = activity.caught_up.map(|at| at.elapsed()).unwrap_or_default();
        Some(wire::MoveActivity {
            lag_entries: activity.lag_entries,
            lag_us: i64::try_from(lag.as_micros()).unwrap_or(i64::MAX),
            throttle_reason: activity.throttle_reason.clone(),
            bytes_per_second: activity.bytes_per_second,
        })
    }
}
