//! Transfers: payments, captures of holds, reversals. Checked in the contract's order, booked, and stored under their id.

use super::{Aside, Batch, Leg, NewTransfer, Prior, Request, StoredTransfer};
use crate::{
    Hold, HoldKey, Position, Refusal, Refused, Side,
    hold::CaptureInFlight,
    journal::EntryKind,
    operation::{Purpose, Transfer},
    outcome::{DebitAfter, TransferAnswer, TransferOutcome, TransferState},
    posting,
};

/// A transfer with its amount, once that is known.
struct Order<'t> {
    transfer: &'t Transfer,
    /// Minor units.
    amount: i64,
    /// Of a capture.
    hold: Option<HoldKey>,
}

impl Order<'_> {
    /// What it takes from the debit side: out of the hold, of a capture; else out of what is available, as `kind`.
    fn debit_leg(&self, kind: EntryKind) -> Leg<'_> {
        let Self { transfer, amount, ref hold } = *self;
        let (kind, held) = if hold.is_some() { (EntryKind::Captured, -amount) } else { (kind, 0) };
        Leg {
            account: &transfer.debit,
            counterparty: &transfer.credit,
            kind,
            posted: -amount,
            held,
            cause: transfer.id,
        }
    }
}

/// What the checks say to a transfer that the debit side allows.
enum Ruling {
    Take,
    /// It will be refused for this, unless the credit side, which lives elsewhere, has a refusal that goes first.
    Presume(Refused),
}

impl Batch<'_> {
    pub(super) fn transfer(&mut self, request: Request, transfer: &Transfer) -> Result<TransferOutcome, Aside> {
        if self.must_wait(request, transfer) {
            return Err(Aside::Deferred);
        }
        (self.fence)(&transfer.debit).map_err(Aside::NotOwner)?;
        if !transfer.cross_shard {
            (self.fence)(&transfer.credit).map_err(Aside::NotOwner)?;
        }
        let hold = transfer.purpose.captured_hold().map(|id| HoldKey { id, debit: transfer.debit.clone() });
        // Before the replay: nothing can have been captured from a hold that there never was.
        if hold.as_ref().is_some_and(|key| self.existing_hold(key).is_none()) {
            return Ok(TransferOutcome::HoldNotFound);
        }
        if let Some(stored) = self.stored_transfer(transfer) {
            return Ok(replay(transfer, stored));
        }
        if transfer.defer_limited
            && request.is_ordered()
            && !transfer.cross_shard
            && self.is_limited(&transfer.credit)
        {
            return Err(Aside::Deferred);
        }
        let order = match hold {
            None => Order { transfer, amount: transfer.amount, hold: None },
            Some(key) => self.capture_order(transfer, key)?,
        };
        let refused = match self.check(&order) {
            Ok(Ruling::Take) => {
                let state = if transfer.cross_shard { self.reserve(&order)? } else { self.post(&order)? };
                let after = self.balances_now(&transfer.debit);
                return Ok(self.store_transfer(request, &order, state, None, after));
            }
            Ok(Ruling::Presume(refused)) => {
                return Ok(self.store_transfer(request, &order, TransferState::Pending, Some(refused), None));
            }
            Err(refused) => refused,
        };
        match refused {
            Refused { refusal: Refusal::AccountNotFound, side: Some(Side::Debit) } => {
                Ok(TransferOutcome::DebitNotFound)
            }
            Refused { refusal: Refusal::InsufficientFunds | Refusal::BalanceOverflow, side: Some(Side::Debit) }
                if transfer.defer_insufficient && request.is_ordered() =>
            {
                Err(Aside::Deferred)
            }
            refused => {
                let state = TransferState::Rejected { refused, at_us: self.now_us };
                Ok(self.store_transfer(request, &order, state, None, None))
            }
        }
    }

    /// A capture with what its hold says about it.
    fn capture_order<'t>(&mut self, transfer: &'t Transfer, key: HoldKey) -> Result<Order<'t>, Aside> {
        self.expire_if_due(&key)?;
        let fits = |hold: &&Hold| hold.credit == transfer.credit && hold.asset == transfer.asset;
        let Some(hold) = self.existing_hold(&key).filter(fits) else {
            let why = format!("INV-11: capture {} does not fit hold {} of {}", transfer.id.0, key.id.0, key.debit);
            return Err(Aside::Illegal(why));
        };
        if hold.in_flight.is_some() {
            // What this one would find depends on the verdict. Or it is that very capture, sent again.
            self.unsure = true;
            return Err(Aside::Deferred);
        }
        let amount = if transfer.purpose.is_whole() { hold.remaining() } else { transfer.amount };
        Ok(Order { transfer, amount, hold: Some(key) })
    }

    /// In the contract's order: debit side, credit side, then what the purpose allows. The credit side of a reserve is
    /// checked at the register, and with it whatever comes after it.
    fn check(&mut self, order: &Order<'_>) -> Result<Ruling, Refused> {
        let Order { transfer, amount, .. } = *order;
        let debit = self.accounts.get(&transfer.debit);
        match transfer.purpose {
            Purpose::Capture { .. } => posting::check_capture(debit, transfer.asset, amount)?,
            Purpose::Payment | Purpose::Reversal { .. } => posting::check_debit(debit, transfer.asset, amount)?,
        }
        if transfer.cross_shard {
            let room = |batch: &mut Self| batch.check_in_transit(transfer.asset, i128::from(amount));
            if let Err(refused) = self.check_purpose(order).and_then(|()| room(self)) {
                return Ok(Ruling::Presume(refused));
            }
        } else {
            posting::check_credit(self.accounts.get(&transfer.credit), transfer.asset, amount)?;
            self.check_purpose(order)?;
        }
        Ok(Ruling::Take)
    }

    fn check_purpose(&self, order: &Order<'_>) -> Result<(), Refused> {
        let Order { transfer, amount, ref hold } = *order;
        match transfer.purpose {
            Purpose::Payment => Ok(()),
            Purpose::Capture { .. } => {
                let hold = hold.as_ref().and_then(|key| self.existing_hold(key));
                hold.map_or(Err(Refused::whole(Refusal::ExceedsHold)), |hold| hold.check_capture(amount))
            }
            // The original lives with the credit account. Only that there is nothing to reverse is known before.
            Purpose::Reversal { .. } if transfer.cross_shard => match amount {
                0 => Err(Refused::whole(Refusal::AlreadyReversed)),
                _ => Ok(()),
            },
            Purpose::Reversal { of, .. } => self.check_reversal(of, &transfer.credit, &transfer.debit, amount),
        }
    }

    // === booking ===

    fn post(&mut self, order: &Order<'_>) -> Result<TransferState, Aside> {
        let Order { transfer, amount, ref hold } = *order;
        let legs = [
            order.debit_leg(EntryKind::Posted),
            Leg {
                account: &transfer.credit,
                counterparty: &transfer.debit,
                kind: EntryKind::Posted,
                posted: amount,
                held: 0,
                cause: transfer.id,
            },
        ];
        self.book(transfer.asset, &legs)?;
        if let Some(key) = hold {
            let (finalize, now_us) = (transfer.purpose.finalizes(), self.now_us);
            let rest = self.change_hold(key).map_or(0, |hold| hold.capture(amount, finalize, now_us));
            self.release(key, rest, EntryKind::Released)?;
        }
        if let Some(of) = transfer.purpose.reversed_transfer() {
            self.note_reversal(of, &transfer.credit, transfer.id, amount);
        }
        Ok(TransferState::Posted { at_us: self.now_us })
    }

    /// Step 1 of a saga. The rest of a final capture stays held: should the credit side refuse, the hold must be as it was.
    fn reserve(&mut self, order: &Order<'_>) -> Result<TransferState, Aside> {
        let Order { transfer, amount, ref hold } = *order;
        let transit = self.in_transit(transfer.asset);
        let legs = [
            order.debit_leg(EntryKind::Reserved),
            Leg {
                account: &transit,
                counterparty: &transfer.debit,
                kind: EntryKind::Reserved,
                posted: amount,
                held: 0,
                cause: transfer.id,
            },
        ];
        self.book(transfer.asset, &legs)?;
        if let Some(hold) = hold.as_ref().and_then(|key| self.change_hold(key)) {
            hold.in_flight = Some(CaptureInFlight { capture: transfer.id, amount });
        }
        Ok(TransferState::Pending)
    }

    // === ids ===

    fn store_transfer(
        &mut self,
        request: Request,
        order: &Order<'_>,
        state: TransferState,
        presumed: Option<Refused>,
        after: Option<(DebitAfter, Position)>,
    ) -> TransferOutcome {
        let transfer = order.transfer;
        let stored = StoredTransfer {
            credit: transfer.credit.clone(),
            asset: transfer.asset,
            amount: order.amount,
            metadata: transfer.metadata.clone(),
            purpose: transfer.purpose,
            cross_shard: transfer.cross_shard,
            state,
            presumed,
            debit_after: after.map(|(balances, _)| balances),
            created_at_us: self.now_us,
        };
        let outcome = TransferOutcome::Done(answer(&stored, false));
        if let Prior::Loaded(known) = &mut self.prior {
            known.transfers.insert(transfer.key(), stored.clone());
        }
        let debit_position = after.map(|(_, position)| position);
        // Recovery knows nothing of the order of a request, and must not run ahead of it.
        let coordinated_until_us = if request.is_ordered() { request.deadline_us } else { 0 };
        let key = transfer.key();
        self.effects.transfers.push(NewTransfer { key, stored, debit_position, coordinated_until_us });
        outcome
    }

    fn stored_transfer(&self, transfer: &Transfer) -> Option<&StoredTransfer> {
        match &self.prior {
            Prior::Unknown => None,
            Prior::Loaded(stored) => stored.transfers.get(&transfer.key()),
        }
    }
}

/// INV-6: the answer of a transfer stored before, or the field in which the new request differs from it.
fn replay(transfer: &Transfer, stored: &StoredTransfer) -> TransferOutcome {
    let (asked, was) = (transfer.purpose, stored.purpose);
    let whole = asked.is_whole() && was.is_whole();
    let differs = [
        (asked.captured_hold() != was.captured_hold(), "hold"),
        (asked.reversed_transfer() != was.reversed_transfer(), "reverses"),
        (stored.credit != transfer.credit, "credit"),
        (asked.is_whole() != was.is_whole() || (!whole && stored.amount != transfer.amount), "amount"),
        (stored.asset != transfer.asset, "asset"),
        (asked.finalizes() != was.finalizes(), "final"),
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
        amount: stored.amount,
        cross_shard: stored.cross_shard,
        presumed: stored.presumed,
        debit_after: stored.debit_after,
        created_at_us: stored.created_at_us,
        replayed,
    }
}
