//! Decisions that depend on rivals: reserved transfers of the same account whose verdicts are not known to this shard.
//!
//! A refusal is stored for good, so it must be the result of some serial order of the operations. In every serial order, a transfer
//! that is refused in the end has no effect. Between its reserve and its verdict, however, its money is missing from the account. A
//! refusal for want of that money would follow from no order. The same holds for a credit that finds room below `max_balance` only
//! because the money is missing. Such an operation is [undetermined](crate::outcome::Outcome::Undetermined) until the verdicts are known.
//!
//! Until the batch that contains a settlement is committed, `under_way` may still include the settled amount. An operation may then be
//! answered `Undetermined` once more without need.

use super::{Aside, Batch};
use crate::{AccountId, Booking, Limit, Refusal, Refused, Side, fold};

impl Batch<'_> {
    /// Returns `Undetermined` if the debit account lacks only money that may come back.
    pub(super) fn undetermined_refusal(&self, refused: Refused, debit: &AccountId, amount: i64) -> Option<Aside> {
        if refused != (Refused { refusal: Refusal::InsufficientFunds, side: Some(Side::Debit) }) {
            return None;
        }
        let (under_way, account) = (self.under_way.get(debit)?, self.accounts.get(debit)?);
        let would_suffice = account.available()? + under_way.available >= i128::from(amount);
        would_suffice.then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Returns `Undetermined` if the credit account would have no room once money that may come back has come back.
    pub(super) fn undetermined_room(&self, credit: &AccountId, amount: i64) -> Option<Aside> {
        let (under_way, account) = (self.under_way.get(credit)?, self.accounts.get(credit)?);
        let Limit::AtMost(max) = account.max_balance else { return None };
        let after = i128::from(account.posted) + under_way.posted + i128::from(amount);
        (after > i128::from(max)).then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Takes in what a booking reserves.
    pub(super) fn note_under_way(&mut self, booking: &Booking) {
        if let Some(reserved) = fold::reserved(booking) {
            self.under_way.entry(reserved.debit.clone()).or_default().add(&reserved);
        }
    }

    /// The booking is taken back.
    pub(super) fn forget_under_way(&mut self, booking: &Booking) {
        if let Some(reserved) = fold::reserved(booking)
            && let Some(under_way) = self.under_way.get_mut(&reserved.debit)
        {
            under_way.subtract(&reserved);
        }
    }
}
