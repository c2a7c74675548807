//! The gauges of the node. Most are set when `/metrics` is read, from the state that the rest of the node works with. What only the
//! database knows is looked up every few seconds, while reads work.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use sqlx::PgPool;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::NodeClock,
    gate::Gate,
    lane::LaneHandle,
    metric_definitions as m,
    moves::phase::Phase,
    role::{NodeRole, Role},
    store::{StoreError, moves, read},
    tail::Tail,
};

/// Pause between two looks at the database.
const LOOK: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(3);
/// A hold may expire so much later than it should: the node polls several times a second.
const OVERDUE_AFTER_US: i64 = 1_000_000;
/// Overdue holds are counted up to here. Beyond, the count takes the database more time than it is worth.
const MOST_OVERDUE: i64 = 10_000;

/// What the gauges are set from.
pub struct Gauges {
    pub gate: Gate,
    pub role: NodeRole,
    pub clock: Arc<NodeClock>,
    pub lane: LaneHandle,
    pub tail: Tail,
}

impl Gauges {
    /// Sets every gauge that needs no look at the database.
    pub fn set(&self) {
        let ratio = |is_so: bool| if is_so { 1.0 } else { 0.0 };
        gauge!(m::DATABASE_ACCEPTED).set(ratio(self.gate.is_open()));
        gauge!(m::READS_SERVING).set(ratio(self.gate.reads().is_ok()));
        gauge!(m::LANE_SERVING).set(ratio(self.gate.writes().is_ok()));
        let behind = match self.role.now() {
            Role::Active => 0,
            Role::Following { behind } => behind,
        };
        gauge!(m::NODE_ACTIVE).set(ratio(self.role.is_active()));
        gauge!(m::FOLLOWING_BEHIND).set(float(behind));
        gauge!(m::CLOCK_DIFFERENCE_SECONDS).set(seconds(self.clock.middle_ahead_us()));

        let lane = self.lane.status();
        gauge!(m::LANE_QUEUE_OPERATIONS).set(count(lane.waiting));
        gauge!(m::LANE_CACHED_ACCOUNTS).set(count(lane.cached_accounts));
        gauge!(m::FOLD_TAIL_ROWS).set(count(lane.unfolded.bookings));
        gauge!(m::FOLD_LAG_SECONDS).set(self.tail.fold_lag().as_secs_f64());

        let sagas = self.tail.saga_totals();
        gauge!(m::SAGAS_OPEN).set(count(sagas.open));
        let age_us = sagas.oldest_us.map_or(0, |oldest_us| self.clock.now_us().saturating_sub(oldest_us));
        gauge!(m::OLDEST_SAGA_SECONDS).set(seconds(age_us.max(0)));
        // Assets without a saga as well, so that a series falls to 0 when the last saga ends.
        let (_, scales) = self.lane.scales();
        for asset in scales.keys() {
            let reserved = sagas.reserved.iter().find(|(code, _)| code.as_str() == asset);
            let reserved = reserved.map_or(0, |(_, amount)| *amount);
            gauge!(m::IN_TRANSIT, "asset" => asset.clone()).set(float(i64::try_from(reserved).unwrap_or(i64::MAX)));
        }
    }
}

/// Looks at the database until `shutdown`.
pub async fn run(gate: Gate, clock: Arc<NodeClock>, pool: PgPool, shutdown: CancellationToken) {
    loop {
        if gate.reads().is_ok() {
            match timeout(PATIENCE, look(&pool, clock.now_us())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot count overdue holds and moves"),
                Err(_) => tracing::debug!("the database did not count overdue holds and moves in time"),
            }
        }
        if shutdown.run_until_cancelled(sleep(LOOK)).await.is_none() {
            return;
        }
    }
}

async fn look(pool: &PgPool, now_us: i64) -> Result<(), StoreError> {
    let (overdue, oldest_us) = read::overdue_holds(pool, now_us - OVERDUE_AFTER_US, MOST_OVERDUE).await?;
    gauge!(m::HOLDS_OVERDUE).set(float(overdue));
    gauge!(m::OLDEST_OVERDUE_HOLD_SECONDS).set(oldest_us.map_or(0.0, |oldest_us| seconds(now_us - oldest_us)));

    let counted = moves::tables::count_by_phase(&mut *pool.acquire().await?).await?;
    for phase in Phase::ALL {
        let moves = counted.iter().find(|(code, _)| *code == phase.code()).map_or(0, |(_, moves)| *moves);
        gauge!(m::SLOT_MOVES, "phase" => m::phase_label(phase)).set(float(moves));
    }
    Ok(())
}

fn count(things: usize) -> f64 {
    float(i64::try_from(things).unwrap_or(i64::MAX))
}

fn seconds(us: i64) -> f64 {
    float(us) / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus has floats only; they are exact up to 2^53")]
fn float(number: i64) -> f64 {
    number as f64
}
