//! Opening and changing accounts.
//!
//! A creation that comes again is compared with what the account was opened with, since the account may have been changed between its
//! first answer, which was lost, and now. [`Openings`] are the bookings that opened accounts ([`Account::opened`]). Reading one costs a round
//! trip, so it is read only where the decision can depend on it.

use std::collections::{HashMap, HashSet};

use super::{Aside, Batch, holds::outcome_of};
use crate::{
    Account, AccountId, Position, Refusal,
    accounts::Accounts,
    booking::{Attributes, Booking, BookingKind, Extra, Leg},
    fold,
    operation::{CreateAccount, Operation, UpdateAccount},
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
            if refused.refusal == Refusal::InsufficientFunds
                && let Some(aside) = self.undetermined_overdraft(before, after.overdraft)
            {
                return outcome_of(aside);
            }
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

/// The openings a batch may be decided on. None, unless an account is created again.
#[derive(Debug, Default)]
pub struct Openings<'a> {
    /// Of accounts at their first version: they are what they were opened with.
    pub known: HashMap<AccountId, CreateAccount>,
    /// The accounts whose first bookings have to be read; no account twice.
    pub to_load: Vec<&'a Account>,
}

impl<'a> Openings<'a> {
    /// Asked for when all `accounts` of the operations are loaded and before the first operation is decided.
    pub fn of<'o>(accounts: &'a Accounts, operations: impl Iterator<Item = &'o Operation>) -> Self {
        let mut created: Vec<&CreateAccount> = Vec::new();
        let mut updated: HashSet<&AccountId> = HashSet::new();
        for operation in operations {
            match operation {
                Operation::CreateAccount(create) => created.push(create),
                Operation::UpdateAccount(update) => drop(updated.insert(&update.id)),
                _ => {}
            }
        }
        let mut asked_for = HashSet::new();
        let mut openings = Self::default();
        for create in created {
            let Some(there) = accounts.get(&create.id) else { continue };
            // What is so now is a replay, unless the batch may make it otherwise before.
            let may_differ = create.differs_from(there).is_some() || updated.contains(&there.id);
            // Assets do not change: with another one it is a conflict.
            if create.asset != there.asset || !may_differ || !asked_for.insert(&there.id) {
                continue;
            }
            if there.version == 1 {
                openings.known.insert(there.id.clone(), CreateAccount::like(there));
            } else {
                openings.to_load.push(there);
            }
        }
        openings
    }
}
