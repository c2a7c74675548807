//! Opening and changing accounts.

use super::{Aside, Batch, holds::outcome_of};
use crate::{
    Account, AccountId, Position,
    booking::{Attributes, Booking, BookingKind, Extra, Leg},
    fold,
    operation::{CreateAccount, UpdateAccount},
    outcome::{AccountOutcome, Outcome, TransferState},
    posting,
};

impl Batch<'_> {
    pub(super) fn create_account(&mut self, create: &CreateAccount) -> Outcome {
        if let Err(not_owner) = (self.fence)(&create.id) {
            return Outcome::NotOwner(not_owner);
        }
        if let Some(there) = self.accounts.get(&create.id) {
            return self.created_before(create, there);
        }
        self.openings.insert(create.id.clone(), create.clone());
        if let Err(aside) = self.open_account(create) {
            return outcome_of(aside);
        }
        match self.accounts.get(&create.id) {
            Some(account) => Outcome::Account(AccountOutcome::Created(account.clone())),
            None => Outcome::Illegal(format!("account {} is gone right after it was opened", create.id)),
        }
    }

    /// INV-6: a replay if the account is so, or was opened so. A client that opened it, lost the answer and asks again
    /// must not be refused because another client has changed it meanwhile.
    fn created_before(&self, create: &CreateAccount, there: &Account) -> Outcome {
        let Some(field) = create.differs_from(there) else {
            return Outcome::Account(AccountOutcome::Replayed(there.clone()));
        };
        let conflict = Outcome::Account(AccountOutcome::Conflict { field });
        // It cannot have been opened so: an account keeps its asset, and until its second version everything.
        if there.asset != create.asset || there.version == 1 {
            return conflict;
        }
        match self.openings.get(&create.id) {
            Some(opened) if opened.opens_the_same(create) => {
                Outcome::Account(AccountOutcome::Replayed(there.clone()))
            }
            Some(_) => conflict,
            None => Outcome::Illegal(format!("INV-9: no booking says what account {} was opened with", create.id)),
        }
    }

    pub(super) fn open_account(&mut self, create: &CreateAccount) -> Result<(), Aside> {
        let attributes = Attributes { status: crate::AccountStatus::Open, max_balance: create.max_balance };
        let leg = Leg { version: 1, previous: Position::NONE, posted: 0, held: 0, overdraft: create.overdraft };
        let extra =
            Extra { metadata: Some(create.metadata.clone()), attributes: Some(attributes), ..Extra::default() };
        self.append(Booking {
            position: self.effects.next_position,
            kind: BookingKind::Opened,
            id: None,
            payer: create.id.clone(),
            payee: None,
            asset: create.asset,
            amount: 0,
            at_us: self.now_us,
            payer_leg: Some(leg),
            payee_leg: None,
            ordered_by: create.ordered_by.clone(),
            extra: Some(Box::new(extra)),
        })?;
        Ok(())
    }

    pub(super) fn update_account(&mut self, update: &UpdateAccount) -> Outcome {
        if let Err(not_owner) = (self.fence)(&update.id) {
            return Outcome::NotOwner(not_owner);
        }
        let Some(before) = self.accounts.get(&update.id) else {
            return Outcome::Account(AccountOutcome::NotFound);
        };
        let mut after = before.clone();
        after.status = update.status.unwrap_or(before.status);
        after.overdraft = update.overdraft.unwrap_or(before.overdraft);
        after.max_balance = update.max_balance.unwrap_or(before.max_balance);
        after.metadata = update.metadata.clone().unwrap_or_else(|| before.metadata.clone());
        if after == *before {
            return Outcome::Account(AccountOutcome::Updated(after));
        }
        let in_flight = self.has_transfer_in_flight(&update.id);
        if let Err(refused) = posting::check_update(before, after.status, after.overdraft, in_flight) {
            return Outcome::Account(AccountOutcome::Refused { account: before.clone(), refused });
        }
        let leg = Leg { overdraft: after.overdraft, ..fold::leg_after(before, crate::booking::Change::default()) };
        let extra = Extra {
            metadata: Some(after.metadata.clone()),
            attributes: Some(fold::attributes_of(&after)),
            ..Extra::default()
        };
        let booking = Booking {
            position: self.effects.next_position,
            kind: BookingKind::Updated,
            id: None,
            payer: update.id.clone(),
            payee: None,
            asset: before.asset,
            amount: 0,
            at_us: self.now_us.max(before.updated_at_us),
            payer_leg: Some(leg),
            payee_leg: None,
            ordered_by: update.ordered_by.clone(),
            extra: Some(Box::new(extra)),
        };
        if let Err(aside) = self.append(booking) {
            return outcome_of(aside);
        }
        match self.accounts.get(&update.id) {
            Some(after) => Outcome::Account(AccountOutcome::Updated(after.clone())),
            None => Outcome::Illegal(format!("account {} is gone right after it was updated", update.id)),
        }
    }

    /// Whether a transfer of the account is under way to another shard: begun in this batch, or, where the account is to be
    /// closed, before.
    fn has_transfer_in_flight(&self, account: &AccountId) -> bool {
        self.in_flight.contains(account)
            || self.sagas.iter().any(|(key, saga)| key.debit == *account && saga.state == TransferState::Pending)
    }
}
