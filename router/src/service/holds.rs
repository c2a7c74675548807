//! Placing and releasing holds. Capturing one is a transfer: [`crate::transfers`].

use ledger::{
    operation::{Operation, PlaceHold, ReleaseHold},
    outcome::{HoldOutcome, Outcome},
};

use super::{
    CallError, Core, Deadline, HoldReply, ReleaseReply,
    at_owner::{self, Executed},
};

pub async fn place(core: &Core, place: PlaceHold, deadline: Deadline) -> Result<HoldReply, CallError> {
    let executed = at_owner::execute(core, &place.debit, deadline, |_| Operation::PlaceHold(place.clone())).await?;
    placed(executed)
}

/// What placing a hold is answered, or would be.
pub fn placed(executed: Executed) -> Result<HoldReply, CallError> {
    match executed.outcome {
        Outcome::Hold(HoldOutcome::Placed(answer)) => Ok(HoldReply::Placed(answer)),
        Outcome::Hold(HoldOutcome::Mismatch { field }) => Ok(HoldReply::Mismatch { field }),
        // The account may be opened, and the lost sending take effect, after this answer was given.
        Outcome::Hold(HoldOutcome::DebitNotFound) => executed.nothing_stored(HoldReply::DebitNotFound),
        _ => executed.nonsense(),
    }
}

/// Waits while a capture of the hold is in flight: what is left to release depends on its verdict.
pub async fn release(core: &Core, release: ReleaseHold, deadline: Deadline) -> Result<ReleaseReply, CallError> {
    let executed =
        at_owner::execute(core, &release.key.debit, deadline, |_| Operation::ReleaseHold(release.clone())).await?;
    match executed.outcome {
        Outcome::Hold(HoldOutcome::Released { key, hold, replayed }) => {
            Ok(ReleaseReply::Released { key, hold: Box::new(hold), replayed })
        }
        // A hold that has ended stays as it is: this says the same of a sending that was lost.
        Outcome::Hold(HoldOutcome::Refused(refused)) => Ok(ReleaseReply::Refused(refused)),
        // It may be placed, and the lost sending release it, after this answer was given.
        Outcome::Hold(HoldOutcome::NotFound) => executed.nothing_stored(ReleaseReply::NotFound),
        _ => executed.nonsense(),
    }
}

#[cfg(test)]
mod tests;
