//! Opening and changing accounts.

use super::{Batch, entry_of};
use crate::{
    Account, AccountId, AccountStatus, Position,
    journal::{Entry, EntryKind, detail},
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
        self.open_account(create.clone());
        match self.accounts.get(&create.id) {
            Some(account) => Outcome::Account(AccountOutcome::Created(account.clone())),
            None => Outcome::Illegal(format!("account {} is gone right after it was opened", create.id)),
        }
    }

    /// INV-6: a replay if the account is so, or was opened so. Who opened it, lost the answer and asks again must not be refused
    /// because somebody has changed it meanwhile.
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
            Some(opened) if opened == create => Outcome::Account(AccountOutcome::Replayed(there.clone())),
            Some(_) => conflict,
            None => Outcome::Illegal(format!("INV-9: no entry says what account {} was opened with", create.id)),
        }
    }

    pub(super) fn open_account(&mut self, create: CreateAccount) {
        let position = self.take_position();
        let account = Account {
            id: create.id,
            asset: create.asset,
            status: AccountStatus::Open,
            posted: 0,
            held: 0,
            overdraft: create.overdraft,
            max_balance: create.max_balance,
            version: 1,
            head: position,
            metadata: create.metadata,
            created_at_us: self.now_us,
            updated_at_us: self.now_us,
        };
        let detail = detail::write(&account);
        self.effects.entries.push(Entry {
            detail: Some(detail.into()),
            ..entry_of(&account, Position::NONE, EntryKind::Opened, 0, None)
        });
        self.accounts.open(account);
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
        let previous = before.head;
        after.version += 1;
        after.head = self.take_position();
        after.updated_at_us = self.now_us.max(after.updated_at_us);
        let detail = detail::write(&after);
        self.effects
            .entries
            .push(Entry { detail: Some(detail.into()), ..entry_of(&after, previous, EntryKind::Updated, 0, None) });
        if let Some(account) = self.accounts.change(&update.id, true) {
            account.clone_from(&after);
        }
        Outcome::Account(AccountOutcome::Updated(after))
    }

    /// Whether a transfer of the account is under way to another shard: begun in this batch, or, where the account is to be
    /// closed, before.
    fn has_transfer_in_flight(&self, account: &AccountId) -> bool {
        let begun_now = |transfer: &super::NewTransfer| {
            transfer.key.debit == *account
                && transfer.stored.state == TransferState::Pending
                && !self.effects.settlements.iter().any(|settled| settled.key == transfer.key)
        };
        self.in_flight.contains(account) || self.effects.transfers.iter().any(begun_now)
    }
}
