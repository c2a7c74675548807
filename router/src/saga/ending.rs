//! Waiting for the end of a transfer that another request began. A reversal takes back what was posted, and whether a pending
//! transfer will be posted is not known yet.

use std::{sync::Arc, time::Duration};

use ledger::{AccountId, TransferId, outcome::TransferState};

use wire::TransferRecord;

use super::recovery;
use crate::{
    reads,
    service::{CallError, Core, Deadline, Found, FoundTransfer, Pace},
};

/// First and longest pause before the transfer is looked at again. Usually its own router is about to finish it.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Finds transfers as [`reads::find_transfer`] does and, while the only one that `sees` accepts is pending, drives it and looks again.
pub async fn find_ended(
    core: &Core,
    id: TransferId,
    debit: Option<&AccountId>,
    sees: &(impl Fn(&TransferRecord) -> bool + Sync),
    deadline: Deadline,
) -> Result<Found<FoundTransfer>, CallError> {
    let mut pace = Pace::new(LOOK_MIN, LOOK_MAX);
    loop {
        let found = reads::find_transfer(core, id, debit, sees, deadline).await?;
        // With several under one id, the client has to say first which one is meant.
        let pending = match found.found.as_slice() {
            [one] if one.record.status == u32::from(TransferState::PENDING) => Arc::clone(&one.shard),
            _ => return Ok(found),
        };
        if let Some(closing) = core.closing() {
            return Err(closing);
        }
        // Whether it got anywhere is seen by looking again.
        if let Err(error) = recovery::retry(core, id, deadline).await {
            tracing::debug!(transfer = %id.0, %error, "cannot drive a transfer that is waited for");
        }
        if !pace.pause(deadline).await {
            return Err(CallError::Deferred { shard: pending });
        }
    }
}
