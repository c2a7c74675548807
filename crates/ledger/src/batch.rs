//! One batch of the lane: operations in order, decided in memory.
//!
//! The caller loads every account the operations name into [`Accounts`], applies the operations one by one, and writes
//! [`Effects`] and [`Accounts::changes`] in one transaction. Two ways to know about ids used before:
//!
//! * [`Prior::Unknown`], the optimistic way: every id is taken to be new and every settled transfer to be pending. The
//!   database's unique keys and row counts object when that is wrong; the batch is rolled back and decided again.
//! * [`Prior::Loaded`], the careful way: what the database holds under the batch's ids is known, and replays are answered
//!   from it.

mod effects;
mod prior;

use std::collections::{HashMap, HashSet};

pub use effects::{Effects, NewRegister, NewTransfer, Settlement, Unbalanced};
pub use prior::{Prior, Stored, StoredRegister, StoredTransfer};

use crate::{
    Account, AccountId, AccountStatus, AssetCode, Limit, Metadata, Position, Refusal, Refused, TransferId,
    accounts::Accounts,
    journal::{Cause, Entry, EntryKind},
    operation::{CreateAccount, Decide, Operation, Settle, Transfer, UpdateAccount, Verdict},
    outcome::{
        AccountOutcome, AtomicOutcome, DebitAfter, Decided, NotOwner, Outcome, Settled, TransferAnswer,
        TransferOutcome, TransferState,
    },
    posting,
};

/// Says whether this shard owns an account's slot.
pub type Fence<'a> = &'a (dyn Fn(&AccountId) -> Result<(), NotOwner> + Sync);

/// A batch in the making.
pub struct Batch<'a> {
    accounts: &'a mut Accounts,
    prior: Prior,
    fence: Fence<'a>,
    now_us: i64,
    effects: Effects,
    /// Per order group, the accounts whose later operations have to wait.
    deferred: HashMap<u64, HashSet<AccountId>>,
}

/// A transfer that did not take place, apart from why.
enum Aside {
    Deferred,
    NotOwner(NotOwner),
    Illegal(String),
}

impl<'a> Batch<'a> {
    pub fn new(
        accounts: &'a mut Accounts,
        prior: Prior,
        fence: Fence<'a>,
        now_us: i64,
        next_position: Position,
    ) -> Self {
        let effects = Effects { next_position, ..Effects::default() };
        Self { accounts, prior, fence, now_us, effects, deferred: HashMap::new() }
    }

    /// Decides one operation. Operations of one client request that must take effect in order share a non-zero
    /// `order_group`.
    pub fn apply(&mut self, order_group: u64, operation: &Operation) -> Outcome {
        match operation {
            Operation::CreateAccount(create) => self.create_account(create),
            Operation::UpdateAccount(update) => self.update_account(update),
            Operation::Transfer(transfer) => match self.transfer(order_group, transfer) {
                Ok(outcome) => Outcome::Transfer(outcome),
                Err(aside) => self.set_aside(order_group, transfer, aside),
            },
            Operation::AtomicTransfers(items) => self.atomic(items),
            Operation::Decide(decide) => self.decide(decide),
            Operation::Settle(settle) => self.settle(settle),
        }
    }

    pub fn finish(self) -> Effects {
        self.effects
    }

    // === accounts ===

    fn create_account(&mut self, create: &CreateAccount) -> Outcome {
        if let Err(not_owner) = (self.fence)(&create.id) {
            return Outcome::NotOwner(not_owner);
        }
        if let Some(there) = self.accounts.get(&create.id) {
            let field = [
                (there.asset != create.asset, "asset"),
                (there.overdraft != create.overdraft, "overdraft"),
                (there.max_balance != create.max_balance, "max_balance"),
                (there.metadata != create.metadata, "metadata"),
            ]
            .into_iter()
            .find_map(|(differs, field)| differs.then_some(field));
            return Outcome::Account(match field {
                Some(field) => AccountOutcome::Conflict { field },
                None => AccountOutcome::Replayed(there.clone()),
            });
        }
        self.open_account(create.clone());
        match self.accounts.get(&create.id) {
            Some(account) => Outcome::Account(AccountOutcome::Created(account.clone())),
            None => Outcome::Illegal(format!("account {} is gone right after it was opened", create.id)),
        }
    }

    fn open_account(&mut self, create: CreateAccount) {
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
        let detail = attributes_as_json(&account);
        self.effects.entries.push(Entry {
            detail: Some(detail.into()),
            ..entry_of(&account, Position::NONE, EntryKind::Opened, 0, None)
        });
        self.accounts.open(account);
    }

    fn update_account(&mut self, update: &UpdateAccount) -> Outcome {
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
        if let Err(refused) = posting::check_update(before, after.status, after.overdraft) {
            return Outcome::Account(AccountOutcome::Refused { account: before.clone(), refused });
        }
        let previous = before.head;
        after.version += 1;
        after.head = self.take_position();
        after.updated_at_us = self.now_us.max(after.updated_at_us);
        let detail = attributes_as_json(&after);
        self.effects
            .entries
            .push(Entry { detail: Some(detail.into()), ..entry_of(&after, previous, EntryKind::Updated, 0, None) });
        if let Some(account) = self.accounts.change(&update.id, true) {
            account.clone_from(&after);
        }
        Outcome::Account(AccountOutcome::Updated(after))
    }

    // === transfers ===

    fn transfer(&mut self, order_group: u64, transfer: &Transfer) -> Result<TransferOutcome, Aside> {
        if self.must_wait(order_group, transfer) {
            return Err(Aside::Deferred);
        }
        (self.fence)(&transfer.debit).map_err(Aside::NotOwner)?;
        if !transfer.cross_shard {
            (self.fence)(&transfer.credit).map_err(Aside::NotOwner)?;
        }
        if let Some(stored) = self.stored_transfer(transfer) {
            return Ok(replay(transfer, stored));
        }
        if let Err(refused) = self.check(transfer) {
            return match refused {
                Refused { refusal: Refusal::AccountNotFound, side: Some(crate::Side::Debit) } => {
                    Ok(TransferOutcome::DebitNotFound)
                }
                Refused { refusal: Refusal::InsufficientFunds, .. }
                    if transfer.defer_insufficient && order_group != 0 =>
                {
                    Err(Aside::Deferred)
                }
                refused => {
                    let state = TransferState::Rejected { refused, at_us: self.now_us };
                    Ok(self.store_transfer(transfer, state, None))
                }
            };
        }
        let state = if transfer.cross_shard {
            let transit = self.in_transit(transfer.asset);
            self.book(
                transfer.id,
                transfer.asset,
                transfer.amount,
                EntryKind::Reserved,
                [(&transfer.debit, &transfer.credit), (&transit, &transfer.debit)],
            )?;
            TransferState::Pending
        } else {
            self.book(
                transfer.id,
                transfer.asset,
                transfer.amount,
                EntryKind::Posted,
                [(&transfer.debit, &transfer.credit), (&transfer.credit, &transfer.debit)],
            )?;
            TransferState::Posted { at_us: self.now_us }
        };
        let after = self.accounts.get(&transfer.debit).map(|a| {
            let balances = DebitAfter { posted: a.posted, held: a.held, overdraft: a.overdraft, version: a.version };
            (balances, a.head)
        });
        Ok(self.store_transfer(transfer, state, after))
    }

    /// Both sides for a local transfer; for a reserve only the debit side, the register checks the other.
    fn check(&mut self, transfer: &Transfer) -> Result<(), Refused> {
        posting::check_debit(self.accounts.get(&transfer.debit), transfer.asset, transfer.amount)?;
        if transfer.cross_shard {
            return self.check_in_transit(transfer.asset, i128::from(transfer.amount));
        }
        posting::check_credit(self.accounts.get(&transfer.credit), transfer.asset, transfer.amount)
    }

    fn store_transfer(
        &mut self,
        transfer: &Transfer,
        state: TransferState,
        after: Option<(DebitAfter, Position)>,
    ) -> TransferOutcome {
        let stored = StoredTransfer {
            credit: transfer.credit.clone(),
            asset: transfer.asset,
            amount: transfer.amount,
            metadata: transfer.metadata.clone(),
            cross_shard: transfer.cross_shard,
            state,
            debit_after: after.map(|(balances, _)| balances),
            created_at_us: self.now_us,
        };
        let outcome = TransferOutcome::Done(answer(&stored, false));
        if let Prior::Loaded(known) = &mut self.prior {
            known.transfers.insert(transfer.key(), stored.clone());
        }
        let debit_position = after.map(|(_, position)| position);
        self.effects.transfers.push(NewTransfer { key: transfer.key(), stored, debit_position });
        outcome
    }

    fn stored_transfer(&self, transfer: &Transfer) -> Option<&StoredTransfer> {
        match &self.prior {
            Prior::Unknown => None,
            Prior::Loaded(stored) => stored.transfers.get(&transfer.key()),
        }
    }

    // === order within a request ===

    fn must_wait(&self, order_group: u64, transfer: &Transfer) -> bool {
        order_group != 0
            && self
                .deferred
                .get(&order_group)
                .is_some_and(|waiting| waiting.contains(&transfer.debit) || waiting.contains(&transfer.credit))
    }

    fn set_aside(&mut self, order_group: u64, transfer: &Transfer, aside: Aside) -> Outcome {
        if order_group != 0 {
            let waiting = self.deferred.entry(order_group).or_default();
            waiting.insert(transfer.debit.clone());
            waiting.insert(transfer.credit.clone());
        }
        match aside {
            Aside::Deferred => Outcome::Deferred,
            Aside::NotOwner(not_owner) => Outcome::NotOwner(not_owner),
            Aside::Illegal(why) => Outcome::Illegal(why),
        }
    }

    // === atomic groups ===

    fn atomic(&mut self, items: &[Transfer]) -> Outcome {
        let before = self.accounts.snapshot(items.iter().flat_map(|t| [&t.debit, &t.credit]));
        let position = self.effects.next_position;
        let (transfers, entries) = (self.effects.transfers.len(), self.effects.entries.len());
        let mut outcomes = Vec::with_capacity(items.len());
        let mut failure = None;
        for (index, item) in items.iter().enumerate() {
            match self.transfer(0, item) {
                Ok(outcome) if took_effect(&outcome) => outcomes.push(outcome),
                Ok(outcome) => {
                    failure = Some(Ok((index, outcome)));
                    break;
                }
                Err(aside) => {
                    failure = Some(Err(aside));
                    break;
                }
            }
        }
        let Some(failure) = failure else {
            return Outcome::Atomic(AtomicOutcome { items: outcomes, culprit: None });
        };
        self.accounts.restore(before);
        self.effects.next_position = position;
        self.effects.entries.truncate(entries);
        let undone = self.effects.transfers.split_off(transfers);
        if let Prior::Loaded(known) = &mut self.prior {
            for transfer in undone {
                known.transfers.remove(&transfer.key);
            }
        }
        match failure {
            Err(Aside::NotOwner(not_owner)) => Outcome::NotOwner(not_owner),
            Err(Aside::Deferred) => Outcome::Deferred,
            Err(Aside::Illegal(why)) => Outcome::Illegal(why),
            Ok((culprit, outcome)) => {
                let failed = TransferOutcome::NotStored(Refused::whole(Refusal::BatchFailed));
                let mut items = vec![failed; items.len()];
                items[culprit] = match outcome {
                    TransferOutcome::Done(TransferAnswer {
                        state: TransferState::Rejected { refused, .. }, ..
                    }) => TransferOutcome::NotStored(refused),
                    other => other,
                };
                Outcome::Atomic(AtomicOutcome { items, culprit: Some(culprit) })
            }
        }
    }

    // === saga steps ===

    fn decide(&mut self, decide: &Decide) -> Outcome {
        if let Err(not_owner) = (self.fence)(&decide.credit) {
            return Outcome::NotOwner(not_owner);
        }
        if let Prior::Loaded(stored) = &self.prior
            && let Some(register) = stored.registers.get(&decide.key())
        {
            let same = register.credit == decide.credit
                && register.asset == decide.asset
                && register.amount == decide.amount;
            if !same {
                return Outcome::Illegal(format!(
                    "INV-3: the register of transfer {} from {} was written for another transfer",
                    decide.id.0, decide.debit
                ));
            }
            let (verdict, at_us) = (register.verdict, register.decided_at_us);
            return Outcome::Decided(Decided { verdict, at_us, replayed: true });
        }
        let verdict = if decide.cancel {
            Verdict::Refused(Refused::whole(Refusal::Cancelled))
        } else {
            match posting::check_credit(self.accounts.get(&decide.credit), decide.asset, decide.amount)
                .and_then(|()| self.check_in_transit(decide.asset, -i128::from(decide.amount)))
            {
                Ok(()) => Verdict::Credited,
                Err(refused) => Verdict::Refused(refused),
            }
        };
        if verdict == Verdict::Credited {
            let transit = self.in_transit(decide.asset);
            let legs = [(&transit, &decide.debit), (&decide.credit, &decide.debit)];
            if let Err(Aside::Illegal(why)) =
                self.book(decide.id, decide.asset, decide.amount, EntryKind::Posted, legs)
            {
                return Outcome::Illegal(why);
            }
        }
        let stored = StoredRegister {
            credit: decide.credit.clone(),
            asset: decide.asset,
            amount: decide.amount,
            verdict,
            decided_at_us: self.now_us,
        };
        if let Prior::Loaded(known) = &mut self.prior {
            known.registers.insert(decide.key(), stored.clone());
        }
        self.effects.registers.push(NewRegister { key: decide.key(), stored });
        Outcome::Decided(Decided { verdict, at_us: self.now_us, replayed: false })
    }

    fn settle(&mut self, settle: &Settle) -> Outcome {
        if let Err(not_owner) = (self.fence)(&settle.debit) {
            return Outcome::NotOwner(not_owner);
        }
        let illegal =
            |why: &str| Outcome::Illegal(format!("INV-4: transfer {} from {}: {why}", settle.id.0, settle.debit));
        let state = match settle.verdict {
            Verdict::Credited => TransferState::Posted { at_us: self.now_us },
            Verdict::Refused(refused) => TransferState::Rejected { refused, at_us: self.now_us },
        };
        if let Prior::Loaded(stored) = &self.prior {
            let Some(transfer) = stored.transfers.get(&settle.key()) else {
                return illegal("settled, but it was never reserved here");
            };
            match (transfer.state, settle.verdict) {
                (TransferState::Pending, _) => {}
                (TransferState::Posted { .. }, Verdict::Credited)
                | (TransferState::Rejected { .. }, Verdict::Refused(_)) => {
                    return Outcome::Settled(Settled { state: transfer.state, replayed: true });
                }
                _ => return illegal("settled with another verdict than before"),
            }
            let same = transfer.credit == settle.credit
                && transfer.asset == settle.asset
                && transfer.amount == settle.amount;
            if !same {
                return illegal("settled with other content than it was reserved with");
            }
        }
        if matches!(settle.verdict, Verdict::Refused(_)) {
            let transit = self.in_transit(settle.asset);
            let legs = [(&transit, &settle.debit), (&settle.debit, &settle.credit)];
            if let Err(Aside::Illegal(why)) =
                self.book(settle.id, settle.asset, settle.amount, EntryKind::Compensated, legs)
            {
                return Outcome::Illegal(why);
            }
        }
        if let Prior::Loaded(known) = &mut self.prior
            && let Some(transfer) = known.transfers.get_mut(&settle.key())
        {
            transfer.state = state;
        }
        self.effects.settlements.push(Settlement {
            key: settle.key(),
            credit: settle.credit.clone(),
            amount: settle.amount,
            state,
        });
        Outcome::Settled(Settled { state, replayed: false })
    }

    // === booking ===

    /// The in-transit account of an asset, opened on first use.
    fn in_transit(&mut self, asset: AssetCode) -> AccountId {
        let id = self.accounts.in_transit_id(asset);
        if self.accounts.get(&id).is_none() {
            self.open_account(CreateAccount {
                id: id.clone(),
                asset,
                overdraft: Limit::Unlimited,
                max_balance: Limit::Unlimited,
                metadata: Metadata::empty(),
            });
        }
        id
    }

    /// May this shard's in-transit account change by so much? Money that flows one way between shards for long enough, or
    /// one enormous transfer, fills it like any other account; that is a refusal, and no saga that cannot go on.
    fn check_in_transit(&mut self, asset: AssetCode, change: i128) -> Result<(), Refused> {
        let id = self.accounts.in_transit_id(asset);
        let posted = self.accounts.get(&id).map_or(0, |account| account.posted);
        match i64::try_from(i128::from(posted) + change) {
            Ok(_) => Ok(()),
            Err(_) => Err(Refused::whole(Refusal::BalanceOverflow)),
        }
    }

    /// Moves `amount` from the first leg's account to the second's; each leg names the counterparty its entry shows.
    /// The caller has checked both sides.
    fn book(
        &mut self,
        transfer: TransferId,
        asset: AssetCode,
        amount: i64,
        kind: EntryKind,
        legs: [(&AccountId, &AccountId); 2],
    ) -> Result<(), Aside> {
        // Look before the first leg is booked: a half-booked transfer would unbalance the whole batch.
        for ((account, _), change) in legs.iter().zip([-i128::from(amount), i128::from(amount)]) {
            let Some(there) = self.accounts.get(account) else {
                return Err(Aside::Illegal(format!(
                    "INV-1: account {account} of transfer {} is missing",
                    transfer.0
                )));
            };
            if there.asset != asset {
                return Err(Aside::Illegal(format!("INV-1: account {account} does not hold {asset}")));
            }
            if i64::try_from(i128::from(there.posted) + change).is_err() {
                return Err(Aside::Illegal(format!("INV-1: the balance of account {account} would overflow")));
            }
        }
        for ((id, counterparty), change) in legs.into_iter().zip([-amount, amount]) {
            let position = self.take_position();
            let now_us = self.now_us;
            let Some(account) = self.accounts.change(id, false) else { continue };
            let previous = account.head;
            account.posted += change;
            account.version += 1;
            account.head = position;
            account.updated_at_us = now_us.max(account.updated_at_us);
            let cause = Cause { transfer, counterparty: counterparty.clone() };
            let entry = entry_of(account, previous, kind, change, Some(cause));
            self.effects.entries.push(entry);
        }
        Ok(())
    }

    fn take_position(&mut self) -> Position {
        let position = self.effects.next_position;
        self.effects.next_position = position.next();
        position
    }
}

/// INV-6: the answer of a transfer stored before, or the field in which the new request differs from it.
fn replay(transfer: &Transfer, stored: &StoredTransfer) -> TransferOutcome {
    let differs = [
        (stored.credit != transfer.credit, "credit"),
        (stored.amount != transfer.amount, "amount"),
        (stored.asset != transfer.asset, "asset"),
        (stored.metadata != transfer.metadata, "metadata"),
    ];
    match differs.into_iter().find_map(|(differs, field)| differs.then_some(field)) {
        Some(field) => TransferOutcome::Mismatch { field },
        None => TransferOutcome::Done(answer(stored, true)),
    }
}

fn answer(stored: &StoredTransfer, replayed: bool) -> TransferAnswer {
    TransferAnswer {
        state: stored.state,
        cross_shard: stored.cross_shard,
        debit_after: stored.debit_after,
        created_at_us: stored.created_at_us,
        replayed,
    }
}

fn took_effect(outcome: &TransferOutcome) -> bool {
    matches!(
        outcome,
        TransferOutcome::Done(TransferAnswer { state: TransferState::Pending | TransferState::Posted { .. }, .. })
    )
}

/// The entry that brought `account` to its present state (INV-9: its place in the account's chain).
fn entry_of(account: &Account, previous: Position, kind: EntryKind, amount: i64, cause: Option<Cause>) -> Entry {
    Entry {
        position: account.head,
        previous,
        account: account.id.clone(),
        asset: account.asset,
        version: account.version,
        kind,
        amount,
        posted: account.posted,
        held: account.held,
        overdraft: account.overdraft,
        cause,
        detail: None,
        created_at_us: account.updated_at_us,
    }
}

/// What an opened or updated entry keeps, so that the account row stays the fold of its journal.
fn attributes_as_json(account: &Account) -> String {
    serde_json::json!({
        "asset": account.asset.as_str(),
        "status": account.status.as_str(),
        "overdraft": account.overdraft.to_nullable(),
        "max_balance": account.max_balance.to_nullable(),
        "metadata": account.metadata.as_str(),
    })
    .to_string()
}

#[cfg(test)]
mod tests;
