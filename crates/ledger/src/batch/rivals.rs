//! Decisions that depend on rivals: reserved transfers of the same account whose verdicts are not known to this shard.
//!
//! A refusal is stored for good, so it must follow from an order of the operations in which each of them comes as a whole. A reserved
//! transfer that is refused in the end has no effect in any order, but until then its money is missing. A refusal for want of that
//! money would follow from no order. The same holds for a credit that only finds room below `max_balance` because the money is missing.
//! Such an operation is [undetermined](crate::outcome::Outcome::Undetermined) until the verdicts are known.
//!
//! What is under way may be counted too high, for a batch, after a settlement: an operation is then put off once more without need.

use super::{Aside, Batch};
use crate::{AccountId, Booking, Limit, Refusal, Refused, Side, fold};

impl Batch<'_> {
    /// Whether a refusal may turn out wrong, because money of the debit account comes back.
    pub(super) fn may_come_to_another_end(&self, refused: Refused, debit: &AccountId, amount: i64) -> Option<Aside> {
        if refused != (Refused { refusal: Refusal::InsufficientFunds, side: Some(Side::Debit) }) {
            return None;
        }
        let (under_way, account) = (self.under_way.get(debit)?, self.accounts.get(debit)?);
        let would_suffice = account.available()? + under_way.amount >= i128::from(amount);
        would_suffice.then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Whether a credit that has room now would have none, if money of its account comes back.
    pub(super) fn may_find_no_room(&self, credit: &AccountId, amount: i64) -> Option<Aside> {
        let (under_way, account) = (self.under_way.get(credit)?, self.accounts.get(credit)?);
        let Limit::AtMost(max) = account.max_balance else { return None };
        let after = i128::from(account.posted) + under_way.amount + i128::from(amount);
        (after > i128::from(max)).then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Takes in what a booking reserves.
    pub(super) fn note_under_way(&mut self, booking: &Booking) {
        if let Some((debit, amount, credit)) = fold::may_come_back(booking) {
            self.under_way.entry(debit.clone()).or_default().add(amount, credit);
        }
    }

    /// The booking is taken back.
    pub(super) fn forget_under_way(&mut self, booking: &Booking) {
        if let Some((debit, amount, _)) = fold::may_come_back(booking)
            && let Some(under_way) = self.under_way.get_mut(debit)
        {
            under_way.amount -= i128::from(amount);
        }
    }
}
