//! Expires holds that are due, without a request from a client.
//!
//! A poll finds the holds in the database; no timer is kept in memory. A node that starts therefore finds the holds
//! that came due while no node ran. The lane decides what becomes of each hold.

use std::{sync::Arc, time::Duration};

use ledger::{
    AccountId, HoldKey, TransferId,
    operation::Operation,
    outcome::{HoldOutcome, Outcome, Reply},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::NodeClock,
    gate::Gate,
    lane::{LaneHandle, Queued},
    metric_definitions as m,
    role::NodeRole,
    store::{
        StoreError,
        read::{self, Readable},
    },
};

/// Five polls within the second that the contract allows.
const POLL: Duration = Duration::from_millis(200);

/// Most holds passed to the lane at once. If more are due, the next batch follows without a pause.
const AT_ONCE: i64 = 1000;

/// Runs until `shutdown`. Expires holds while this node is active.
pub async fn run(
    from: Readable,
    gate: Gate,
    role: NodeRole,
    lane: LaneHandle,
    clock: Arc<NodeClock>,
    shutdown: CancellationToken,
) {
    while shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
        // A poll would connect to a refused database and log an error each time. A follower leaves the holds to the active node.
        if gate.writes().is_err() || !role.is_active() {
            continue;
        }
        loop {
            match expire_due(&from, &lane, clock.now_us()).await {
                // Continue only while every hold found also expires; otherwise a hold that cannot expire would be
                // found forever.
                Ok(progress) if progress.found == progress.expired && progress.found == AT_ONCE => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "cannot look for holds that are due");
                    break;
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
    }
}

struct Progress {
    found: i64,
    expired: i64,
}

async fn expire_due(from: &Readable, lane: &LaneHandle, now_us: i64) -> Result<Progress, StoreError> {
    let due = read::due_holds(from, now_us, AT_ONCE).await?;
    if due.is_empty() {
        return Ok(Progress { found: 0, expired: 0 });
    }
    let mut operations = Vec::with_capacity(due.len());
    for (id, debit) in due {
        let debit = match AccountId::client(&debit) {
            Ok(debit) => debit,
            // One broken row must not keep the other holds from expiring.
            Err(error) => {
                tracing::error!(hold = %id, %error, "a hold has an invalid debit account id");
                continue;
            }
        };
        let operation = Operation::ExpireHold(HoldKey { id: TransferId(id), debit });
        operations.push(Queued::new(operation));
    }
    let found = i64::try_from(operations.len()).unwrap_or(i64::MAX);
    let replies = lane.execute(operations).await;
    let expired =
        replies.iter().filter(|reply| matches!(reply, Reply::Outcome(Outcome::Hold(HoldOutcome::Expired)))).count();
    metrics::counter!(m::HOLDS_EXPIRED).increment(expired as u64);
    Ok(Progress { found, expired: i64::try_from(expired).unwrap_or(i64::MAX) })
}
