//! Placing and releasing holds. Capturing one is a transfer: [`super::transfers`].

use ledger::{
    operation::{Operation, PlaceHold, ReleaseHold},
    outcome::{HoldOutcome, Outcome},
};

use super::{
    Core,
    call::{CallError, Deadline},
    reply::{HoldReply, ReleaseReply},
    rerouting::{OwnerAnswer, dry_run_at_owner, execute_at_owner},
    shard::View,
};

impl Core {
    /// Places a hold.
    pub async fn place_hold(&self, place: PlaceHold, deadline: Deadline) -> Result<HoldReply, CallError> {
        placed(execute_at_owner(self, &place.debit, deadline, |_| Operation::PlaceHold(place.clone())).await?)
    }

    /// The answer that placing the hold would get now. Nothing is stored.
    pub async fn dry_run_hold(&self, place: &PlaceHold, deadline: Deadline) -> Result<HoldReply, CallError> {
        placed(dry_run_at_owner(self, &place.debit, deadline, |_| Operation::PlaceHold(place.clone())).await?)
    }

    /// Releases a hold. Waits while a capture of the hold is in flight, because its verdict decides what is left to release.
    pub async fn release_hold(&self, release: ReleaseHold, deadline: Deadline) -> Result<ReleaseReply, CallError> {
        let operation = |_: &View| Operation::ReleaseHold(release.clone());
        let answer = execute_at_owner(self, &release.key.debit, deadline, operation).await?;
        match answer.outcome {
            Outcome::Hold(HoldOutcome::Released { key, hold, replayed }) => {
                Ok(ReleaseReply::Released { key, hold, replayed })
            }
            // A hold that has ended stays as it is, so that this is also the answer to a sending that was lost.
            Outcome::Hold(HoldOutcome::Refused(refused)) => Ok(ReleaseReply::Refused(refused)),
            // The hold may be placed, and the lost sending release it, after this answer was given.
            Outcome::Hold(HoldOutcome::NotFound) => answer.nothing_stored(ReleaseReply::NotFound),
            _ => answer.nonsense(),
        }
    }
}

/// The reply to placing a hold, or to a dry run of it.
fn placed(answer: OwnerAnswer) -> Result<HoldReply, CallError> {
    match answer.outcome {
        Outcome::Hold(HoldOutcome::Placed(placed)) => Ok(HoldReply::Placed(placed)),
        Outcome::Hold(HoldOutcome::Mismatch { field }) => Ok(HoldReply::Mismatch { field }),
        // The account may be opened, and the lost sending take effect, after this answer was given.
        Outcome::Hold(HoldOutcome::DebitNotFound) => answer.nothing_stored(HoldReply::DebitNotFound),
        _ => answer.nonsense(),
    }
}

#[cfg(test)]
mod tests;
