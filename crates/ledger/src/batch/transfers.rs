//! Transfers: payments, captures of holds, reversals. Checked in the contract's order, booked, and stored under their id. A
//! reversal must not be of more than was paid (INV-11): the sum over all reversals decides.

use super::{Aside, Batch, Draft, Request};
use crate::{
    AccountId, Hold, HoldKey, KeyName, Metadata, Refusal, Refused, Side, TransferId, TransferKey,
    booking::{BookingKind, Extra},
    history::{Original, StoredTransfer},
    operation::{Purpose, Transfer},
    outcome::{TransferAnswer, TransferOutcome},
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

/// What the checks say to a transfer that the debit side allows.
#[derive(Debug, Clone, Copy)]
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
        let ruling = self.check(&order);
        match ruling {
            Err(Refused { refusal: Refusal::AccountNotFound, side: Some(Side::Debit) }) => {
                return Ok(TransferOutcome::DebitNotFound);
            }
            Err(Refused {
                refusal: Refusal::InsufficientFunds | Refusal::BalanceOverflow,
                side: Some(Side::Debit),
            }) if transfer.defer_insufficient && request.is_ordered() => {
                return Err(Aside::Deferred);
            }
            _ => {}
        }
        if let Some(aside) = self.undetermined_transfer(transfer, order.amount, ruling.err()) {
            return Err(aside);
        }
        let (kind, refused) = match ruling {
            Ok(Ruling::Take) if transfer.cross_shard => (BookingKind::Reserved, None),
            Ok(Ruling::Take) => (BookingKind::Posted, None),
            Ok(Ruling::Presume(refused)) => (BookingKind::Presumed, Some(refused)),
            Err(refused) => (BookingKind::Rejected, Some(refused)),
        };
        self.record(request, &order, kind, refused)
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

    /// Books a transfer's first answer, and what follows from it.
    fn record(
        &mut self,
        request: Request,
        order: &Order<'_>,
        kind: BookingKind,
        refused: Option<Refused>,
    ) -> Result<TransferOutcome, Aside> {
        let Order { transfer, amount, ref hold } = *order;
        let first = self.book(Draft {
            kind,
            id: Some(transfer.id),
            payer: &transfer.debit,
            payee: Some(&transfer.credit),
            asset: transfer.asset,
            amount,
            ordered_by: transfer.ordered_by.clone(),
            extra: extra_of(request, transfer, kind, refused, self.metadata_to_book(transfer)),
        })?;
        let mut answer = first;
        if kind == BookingKind::Posted {
            // The rest of a final capture that is only reserved stays held: should the credit side refuse, the hold must
            // be as it was.
            if let Some(key) = hold {
                answer = self.end_captured_hold(key, transfer.purpose, first, transfer.ordered_by.clone())?;
            }
            if let Some(of) = transfer.purpose.reversed_transfer() {
                self.note_reversal(of, &transfer.credit, amount);
            }
        }
        let stored = StoredTransfer::of(self.booking(first), None, self.booking(answer).payer_leg.as_ref())
            .map_err(|error| Aside::Illegal(error.to_string()))?;
        let outcome = TransferOutcome::Done(answer_of(&stored, false));
        if matches!(kind, BookingKind::Reserved | BookingKind::Presumed) {
            self.sagas.insert(transfer.key(), stored.clone());
        }
        if let Some(known) = self.prior.stored_mut() {
            known.transfers.insert(transfer.key(), stored);
        }
        Ok(outcome)
    }

    /// Ends a hold after a capture that is final, or after which nothing remains. `ordered_by`: the API key of the capture. Returns the booking that holds the
    /// payer's balances afterwards; `captured` if the hold stays open or nothing was left of it.
    pub(super) fn end_captured_hold(
        &mut self,
        key: &HoldKey,
        purpose: Purpose,
        captured: usize,
        ordered_by: Option<KeyName>,
    ) -> Result<usize, Aside> {
        let Some(rest) = self.hold(key).map(Hold::remaining) else { return Ok(captured) };
        if rest > 0 && !purpose.finalizes() {
            return Ok(captured);
        }
        let end = self.end_hold(key, BookingKind::HoldCaptured, ordered_by)?;
        if rest == 0 {
            return Ok(captured);
        }
        let position = self.booking(end).position;
        self.effects.bookings[captured].extra.get_or_insert_default().answer = Some(position);
        Ok(end)
    }

    /// The metadata of a transfer, unless it is a capture whose hold was erased since the router read it.
    fn metadata_to_book<'t>(&self, transfer: &'t Transfer) -> &'t Metadata {
        static NONE: Metadata = Metadata::empty();
        let hold = transfer.purpose.captured_hold().map(|id| HoldKey { id, debit: transfer.debit.clone() });
        let is_erased = hold.and_then(|key| self.hold(&key)).is_some_and(|hold| hold.metadata == Metadata::erased());
        if is_erased { &NONE } else { &transfer.metadata }
    }

    // === ids ===

    fn stored_transfer(&self, transfer: &Transfer) -> Option<&StoredTransfer> {
        self.prior.stored()?.transfers.get(&transfer.key())
    }

    /// May so much of a transfer be reversed? `payer` and `payee` are the original's.
    pub(super) fn check_reversal(
        &self,
        original: TransferId,
        payer: &AccountId,
        payee: &AccountId,
        amount: i64,
    ) -> Result<(), Refused> {
        let key = TransferKey { id: original, debit: payer.clone() };
        let reversible = match self.originals.get(&key) {
            Some(original) if original.credit == *payee => Original::reversible(original),
            _ => 0,
        };
        if (1..=reversible).contains(&amount) { Ok(()) } else { Err(Refused::whole(Refusal::AlreadyReversed)) }
    }

    /// Counts a reversal that was booked. `payer` is the original's.
    pub(super) fn note_reversal(&mut self, original: TransferId, payer: &AccountId, amount: i64) {
        let key = TransferKey { id: original, debit: payer.clone() };
        if let Some(known) = self.originals.get_mut(&key) {
            known.reversed += amount;
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
        // The router gives a capture the metadata of its hold, which may have been erased since.
        (asked.captured_hold().is_none() && stored.metadata.differs_from(&transfer.metadata), "metadata"),
    ];
    match differs.into_iter().find_map(|(differs, field)| differs.then_some(field)) {
        Some(field) => TransferOutcome::Mismatch { field },
        None => TransferOutcome::Done(answer_of(stored, true)),
    }
}

/// What a transfer's first booking records in addition to its legs. For most transfers, all of it is empty.
fn extra_of(
    request: Request,
    transfer: &Transfer,
    kind: BookingKind,
    refused: Option<Refused>,
    metadata: &Metadata,
) -> Option<Box<Extra>> {
    let begins_saga = matches!(kind, BookingKind::Reserved | BookingKind::Presumed);
    let extra = Extra {
        metadata: (!metadata.is_empty()).then(|| metadata.clone()),
        refused,
        purpose: transfer.purpose,
        cross_shard: kind == BookingKind::Rejected && transfer.cross_shard,
        // Recovery does not know the order of a request's items, and must not run ahead of it.
        first_attempt_us: (begins_saga && request.is_ordered()).then_some(request.deadline_us),
        ..Extra::default()
    };
    (extra != Extra::default()).then(|| Box::new(extra))
}

fn answer_of(stored: &StoredTransfer, replayed: bool) -> TransferAnswer {
    TransferAnswer {
        state: stored.state,
        amount: stored.amount,
        cross_shard: stored.cross_shard,
        presumed: stored.presumed,
        debit_after: stored.debit_after,
        created_at_us: stored.created_at_us,
        replayed,
        ordered_by: stored.ordered_by.clone(),
    }
}
