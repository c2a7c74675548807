//! Steps 2 and 3 of a saga: the verdict at the credit account's shard, and its consequence at the debit account's.

use super::{Aside, Batch, Draft, holds::outcome_of};
use crate::{
    Account, AccountId, Booking, HoldKey, KeyName, Limit, Refusal, Refused, Side,
    booking::{BookingKind, Extra},
    fold,
    history::{StoredRegister, StoredTransfer},
    operation::{Decide, Purpose, Settle, Transfer, Verdict},
    outcome::{Decided, Outcome, Settled, TransferState},
    posting,
};

impl Batch<'_> {
    pub(super) fn decide(&mut self, decide: &Decide) -> Outcome {
        if let Err(not_owner) = (self.fence)(&decide.credit) {
            return Outcome::NotOwner(not_owner);
        }
        if let Some(stored) = self.prior.stored()
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
        let must_wait = decide.defer_limited || self.waiting_credits.contains(&decide.credit);
        if must_wait && self.is_limited(&decide.credit) {
            return Outcome::Deferred;
        }
        let refused = self.check_arrival(decide).err();
        let refused = match self.room_for_rivals(&decide.credit, decide.amount, refused) {
            Err(rivals) if decide.patient => {
                self.waiting_credits.insert(decide.credit.clone());
                return outcome_of(rivals.aside);
            }
            // In the order in which this transfer comes before its rivals, their money is there.
            Err(rivals) => Some(rivals.refused),
            Ok(()) => refused,
        };
        let verdict = refused.map_or(Verdict::Credited, Verdict::Refused);
        let kind = if verdict == Verdict::Credited { BookingKind::Credited } else { BookingKind::Refused };
        // The shard of the original counts its reversals by their registers.
        let purpose = match decide.purpose {
            reversal @ Purpose::Reversal { .. } => reversal,
            Purpose::Payment | Purpose::Capture { .. } => Purpose::Payment,
        };
        let booked = self.book(Draft {
            kind,
            id: Some(decide.id),
            payer: &decide.debit,
            payee: Some(&decide.credit),
            asset: decide.asset,
            amount: decide.amount,
            ordered_by: decide.ordered_by.clone(),
            extra: extra_of(purpose, verdict.refused()),
        });
        let register = match booked {
            Ok(index) => StoredRegister::of(self.booking(index)),
            Err(aside) => return outcome_of(aside),
        };
        let register = match register {
            Ok(register) => register,
            Err(error) => return Outcome::Illegal(error.to_string()),
        };
        if verdict == Verdict::Credited
            && let Some(of) = decide.purpose.reversed_transfer()
        {
            self.note_reversal(of, &decide.credit, decide.amount);
        }
        let at_us = register.decided_at_us;
        if let Some(known) = self.prior.stored_mut() {
            known.registers.insert(decide.key(), register);
        }
        Outcome::Decided(Decided { verdict, at_us, replayed: false })
    }

    /// The contract's order goes on here: the credit side, then what the source presumed, then what only this shard knows.
    fn check_arrival(&mut self, decide: &Decide) -> Result<(), Refused> {
        posting::check_credit(self.accounts.get(&decide.credit), decide.asset, decide.amount)?;
        decide.presumed.map_or(Ok(()), Err)?;
        if let Some(of) = decide.purpose.reversed_transfer() {
            self.check_reversal(of, &decide.credit, &decide.debit, decide.amount)?;
        }
        self.check_in_transit(decide.asset, -i128::from(decide.amount))
    }

    pub(super) fn settle(&mut self, settle: &Settle) -> Outcome {
        if let Err(not_owner) = (self.fence)(&settle.debit) {
            return Outcome::NotOwner(not_owner);
        }
        let illegal =
            |why: &str| Outcome::Illegal(format!("INV-4: transfer {} from {}: {why}", settle.id.0, settle.debit));
        if settle.verdict == Verdict::Credited && !settle.reserved {
            return illegal("credited, but nothing was reserved");
        }
        let known = self.prior.stored().and_then(|stored| stored.transfers.get(&settle.key()));
        // Sagas under way are always known. Of any other transfer only the careful way knows.
        let Some(transfer) = known.or_else(|| self.sagas.get(&settle.key())) else {
            return illegal("settled, but it was never reserved here");
        };
        match (transfer.state, settle.verdict) {
            (TransferState::Pending, _) => {}
            (TransferState::Posted { .. }, Verdict::Credited)
            | (TransferState::Rejected { .. }, Verdict::Refused(_)) => {
                let debit_after = transfer.debit_after.filter(|_| settle.purpose.finalizes());
                return Outcome::Settled(Settled { state: transfer.state, debit_after, replayed: true });
            }
            _ => return illegal("settled with another verdict than before"),
        }
        let same = transfer.credit == settle.credit
            && transfer.asset == settle.asset
            && transfer.amount == settle.amount
            && transfer.purpose == settle.purpose
            && transfer.reserved() == settle.reserved;
        if !same {
            return illegal("settled with other content than it was reserved with");
        }
        let capture = settle
            .purpose
            .captured_hold()
            .filter(|_| settle.reserved)
            .map(|id| HoldKey { id, debit: settle.debit.clone() });
        if let Some(hold) = &capture
            && let Err(aside) = self.check_in_flight(settle, hold)
        {
            return outcome_of(aside);
        }
        let ordered_by = transfer.ordered_by.clone();
        let settled = match self.book_settlement(settle, capture.as_ref(), ordered_by) {
            Ok(settled) => settled,
            Err(aside) => return outcome_of(aside),
        };
        if let Some(known) = self.prior.stored_mut()
            && let Some(transfer) = known.transfers.get_mut(&settle.key())
        {
            settled.write_to(transfer);
        }
        if let Some(transfer) = self.sagas.get_mut(&settle.key()) {
            settled.write_to(transfer);
        }
        Outcome::Settled(settled)
    }

    /// Step 3: the transfer is posted, or the payer gets back what is in transit. The verdict reaches the hold of a
    /// capture as well: the rest of a final capture is released, or the hold is as it was before. `ordered_by`: the API key of the transfer.
    fn book_settlement(
        &mut self,
        settle: &Settle,
        capture: Option<&HoldKey>,
        ordered_by: Option<KeyName>,
    ) -> Result<Settled, Aside> {
        let kind = match settle.verdict {
            Verdict::Credited => BookingKind::Settled,
            Verdict::Refused(_) if settle.reserved => BookingKind::Compensated,
            Verdict::Refused(_) => BookingKind::SettledRefused,
        };
        let purpose = if capture.is_some() { settle.purpose } else { Purpose::Payment };
        let index = self.book(Draft {
            kind,
            id: Some(settle.id),
            payer: &settle.debit,
            payee: Some(&settle.credit),
            asset: settle.asset,
            amount: settle.amount,
            // The transfer's first booking names its key.
            ordered_by: None,
            extra: extra_of(purpose, settle.verdict.refused()),
        })?;
        let at_us = self.booking(index).at_us;
        let state = match settle.verdict {
            Verdict::Credited => TransferState::Posted { at_us },
            Verdict::Refused(refused) => TransferState::Rejected { refused, at_us },
        };
        let mut answer = index;
        if kind == BookingKind::Settled
            && let Some(hold) = capture
        {
            answer = self.end_captured_hold(hold, settle.purpose, index, ordered_by)?;
        }
        let released = (answer != index).then(|| self.booking(answer).payer_leg).flatten();
        Ok(Settled { state, debit_after: released.as_ref().map(fold::debit_after), replayed: false })
    }

    /// Is this the capture that the hold waits for?
    fn check_in_flight(&self, settle: &Settle, key: &HoldKey) -> Result<(), Aside> {
        let in_flight = self.hold(key).and_then(|hold| hold.in_flight);
        if in_flight.is_none_or(|flying| (flying.capture, flying.amount) != (settle.id, settle.amount)) {
            // Or it is settled already: the careful way knows.
            let (id, debit) = (settle.id.0, &settle.debit);
            let why = format!("INV-11: capture {id} from {debit} is not in flight for hold {}", key.id.0);
            return Err(Aside::Illegal(why));
        }
        Ok(())
    }
}

impl Settled {
    fn write_to(self, transfer: &mut StoredTransfer) {
        transfer.state = self.state;
        transfer.presumed = None;
        transfer.debit_after = self.debit_after.or(transfer.debit_after);
    }
}

fn extra_of(purpose: Purpose, refused: Option<Refused>) -> Option<Box<Extra>> {
    let extra = Extra { purpose, refused, ..Extra::default() };
    (extra != Extra::default()).then(|| Box::new(extra))
}

/// Money that may come back to the credit account leaves no room for the amount.
struct NoRoom {
    /// The answer if that money were there.
    refused: Refused,
    /// The answer of an operation that waits for the verdicts.
    aside: Aside,
}

/// Decisions that depend on rivals: reserved transfers of the same account whose verdicts are not known to this shard.
///
/// A refusal is stored for good, so it must be the result of some serial order of the operations. In every serial order, a transfer
/// that is refused in the end has no effect. Between its reserve and its verdict, however, its money is missing from the account. An
/// operation is decided only if the answer is the same whether that money comes back or not. Otherwise it is
/// [undetermined](crate::outcome::Outcome::Undetermined) until the verdicts are known. The answer may differ in two ways: the debit
/// account lacks the money, or the credit account has room below `max_balance`, only because the money is missing. Room matters to
/// refusals as well: the checks after the credit side's would not have been reached.
///
/// Each rule is monotonic in the account's money, so that the two extremes, all of it back and none of it, stand for all others.
impl Batch<'_> {
    /// Returns `Undetermined` if the transfer would be answered otherwise, had the money under way come back. `refused`: its answer
    /// without that money.
    pub(super) fn undetermined_transfer(
        &self,
        transfer: &Transfer,
        amount: i64,
        refused: Option<Refused>,
    ) -> Option<Aside> {
        match refused {
            Some(refused @ Refused { side: Some(Side::Debit), .. }) => {
                self.undetermined_debit(refused, &transfer.debit, amount)
            }
            _ if transfer.cross_shard => None,
            _ => self.room_for_rivals(&transfer.credit, amount, refused).err().map(|rivals| rivals.aside),
        }
    }

    /// Returns `Undetermined` if the debit account lacks only money that may come back.
    pub(super) fn undetermined_debit(&self, refused: Refused, debit: &AccountId, amount: i64) -> Option<Aside> {
        if refused.refusal != Refusal::InsufficientFunds {
            return None;
        }
        let (under_way, account) = (self.under_way.get(debit)?, self.accounts.get(debit)?);
        let would_suffice = account.available()? + under_way.available >= i128::from(amount);
        would_suffice.then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Checks that the credit account has room for the amount even if all money under way comes back. `refused`: the answer without that
    /// money. A refusal of the credit side itself stands in either case.
    fn room_for_rivals(&self, credit: &AccountId, amount: i64, refused: Option<Refused>) -> Result<(), NoRoom> {
        let Some((under_way, account)) = self.under_way.get(credit).zip(self.accounts.get(credit)) else {
            return Ok(());
        };
        let (max, refusal) = match account.max_balance {
            Limit::AtMost(max) => (max, Refusal::LimitExceeded),
            // Without that room, a saga could not give back what it took.
            Limit::Unlimited => (i64::MAX, Refusal::BalanceOverflow),
        };
        let after = i128::from(account.posted) + under_way.posted + i128::from(amount);
        if after <= i128::from(max) || refused.is_some_and(|refused| refused.side.is_some()) {
            return Ok(());
        }
        Err(NoRoom { refused: Refused::credit(refusal), aside: Aside::Undetermined(under_way.credits.clone()) })
    }

    /// Returns `Undetermined` if the account cannot be so changed only because money is missing that may come back. `overdraft` is the
    /// new one.
    pub(super) fn undetermined_overdraft(&self, account: &Account, overdraft: Limit) -> Option<Aside> {
        let under_way = self.under_way.get(&account.id)?;
        let available = crate::account::available(account.posted, account.held, overdraft)?;
        (available < 0 && available + under_way.available >= 0)
            .then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Returns `Undetermined` if the account could not hold so much in addition once a capture's money is held again.
    pub(super) fn undetermined_hold(&self, debit: &AccountId, amount: i64) -> Option<Aside> {
        let (under_way, account) = (self.under_way.get(debit)?, self.accounts.get(debit)?);
        let captures = under_way.posted - under_way.available;
        let after = i128::from(account.held) + captures + i128::from(amount);
        (after > i128::from(i64::MAX)).then(|| Aside::Undetermined(under_way.credits.clone()))
    }

    /// Takes in what a booking reserves, or settles.
    pub(super) fn note_under_way(&mut self, booking: &Booking) {
        if let Some(reserved) = fold::reserved(booking) {
            self.under_way.entry(reserved.debit.clone()).or_default().add(&reserved);
        } else if let Some(settled) = fold::settled(booking)
            && let Some(under_way) = self.under_way.get_mut(&settled.debit)
        {
            under_way.subtract(&settled);
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
