//! Of several things of one id, the one that the same request acted on before. A replay comes before `ambiguous_id`.
//!
//! A capture or reversal is stored under an id of its own and says what it was made of. So a request that is sent again is known
//! by what it made, also when the id in its path has become ambiguous since: because another account uses it by now, or because
//! the reversal was given the id of its original.

use futures_util::future::try_join_all;
use ledger::{AccountId, operation::Purpose};
use wire::{
    TransferRecord,
    convert::{account_id, purpose_from_wire},
};

use super::Identified;
use crate::{
    core::reply::{Found, FoundHold, FoundTransfer},
    http::{Edge, context::RequestDeadline, parse::FollowUp, problem::Problem, view::nonsense},
};

/// More of one id are left ambiguous: each costs a read, and ids that are chosen as they should be are shared by none.
const MOST: usize = 16;

/// Something that captures or reversals are made of.
pub trait Origin: Identified {
    /// The debit account of what is made of it.
    fn payer(&self) -> Result<AccountId, Problem>;
    /// Whether that transfer of its payer was made of it.
    fn is_origin_of(&self, made: &TransferRecord, purpose: Purpose) -> bool;
}

/// Keeps the one that `wanted` was made of before, if there is such a one; else all of them.
pub async fn begun_before<T: Origin>(
    edge: &Edge,
    wanted: &FollowUp,
    mut found: Found<T>,
    deadline: RequestDeadline,
) -> Result<Found<T>, Problem> {
    if !(2..=MOST).contains(&found.found.len()) {
        return Ok(found);
    }
    let asked = found.found.iter().map(async |origin| {
        let payer = origin.payer()?;
        let made = edge.core.find_transfer(wanted.id(&payer), Some(&payer), |_| true, deadline.0).await?;
        for made in made.found {
            let purpose = purpose_from_wire(made.record.purpose.clone()).map_err(nonsense)?;
            if origin.is_origin_of(&made.record, purpose) {
                return Ok(true);
            }
        }
        Ok::<_, Problem>(false)
    });
    let begun = try_join_all(asked).await?;
    if begun.iter().filter(|begun| **begun).count() == 1 {
        let mut begun = begun.into_iter();
        found.found.retain(|_| begun.next().unwrap_or(false));
    }
    Ok(found)
}

impl Origin for FoundTransfer {
    fn payer(&self) -> Result<AccountId, Problem> {
        account_id(&self.record.credit, "transfer.credit").map_err(nonsense)
    }

    fn is_origin_of(&self, made: &TransferRecord, purpose: Purpose) -> bool {
        let reversed = purpose.reversed_transfer().map(wire::convert::id_to_wire);
        reversed.as_ref() == Some(&self.record.id) && made.credit == self.record.debit
    }
}

impl Origin for FoundHold {
    fn payer(&self) -> Result<AccountId, Problem> {
        Ok(self.key.debit.clone())
    }

    fn is_origin_of(&self, _: &TransferRecord, purpose: Purpose) -> bool {
        purpose.captured_hold() == Some(self.key.id)
    }
}
