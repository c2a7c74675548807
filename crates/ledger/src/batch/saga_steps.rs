//! Steps 2 and 3 of a saga: the verdict at the credit account's shard, and its consequence at the debit account's.

use super::{Aside, Batch, Leg, NewRegister, Prior, Settlement, StoredRegister, holds::outcome_of};
use crate::{
    HoldKey, Position, Refused,
    journal::EntryKind,
    operation::{Decide, Settle, Verdict},
    outcome::{DebitAfter, Decided, Outcome, Settled, TransferState},
    posting,
};

impl Batch<'_> {
    pub(super) fn decide(&mut self, decide: &Decide) -> Outcome {
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
        if decide.defer_limited && self.is_limited(&decide.credit) {
            return Outcome::Deferred;
        }
        let verdict = match self.check_arrival(decide) {
            Ok(()) => Verdict::Credited,
            Err(refused) => Verdict::Refused(refused),
        };
        if verdict == Verdict::Credited {
            let transit = self.in_transit(decide.asset);
            let leg = |account, posted| Leg {
                account,
                counterparty: &decide.debit,
                kind: EntryKind::Posted,
                posted,
                held: 0,
                cause: decide.id,
            };
            let legs = [leg(&transit, -decide.amount), leg(&decide.credit, decide.amount)];
            if let Err(aside) = self.book(decide.asset, &legs) {
                return outcome_of(aside);
            }
            if let Some(of) = decide.purpose.reversed_transfer() {
                self.note_reversal(of, &decide.credit, decide.id, decide.amount);
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
        let state = match settle.verdict {
            Verdict::Credited if !settle.reserved => return illegal("credited, but nothing was reserved"),
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
                    let debit_after = transfer.debit_after.filter(|_| settle.purpose.finalizes());
                    return Outcome::Settled(Settled { state: transfer.state, debit_after, replayed: true });
                }
                _ => return illegal("settled with another verdict than before"),
            }
            let same = transfer.credit == settle.credit
                && transfer.asset == settle.asset
                && transfer.amount == settle.amount
                && transfer.purpose == settle.purpose
                && transfer.presumed.is_none() == settle.reserved;
            if !same {
                return illegal("settled with other content than it was reserved with");
            }
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
        // Before the hold is touched: where the account has no room for what comes back, nothing of this may be written.
        if settle.compensates()
            && let Err(aside) = self.compensate(settle)
        {
            return outcome_of(aside);
        }
        let later = match capture.map(|hold| self.settle_capture(settle, &hold)).transpose() {
            Ok(later) => later.flatten(),
            Err(aside) => return outcome_of(aside),
        };
        let debit_after = later.map(|(balances, _)| balances);
        if let Prior::Loaded(known) = &mut self.prior
            && let Some(transfer) = known.transfers.get_mut(&settle.key())
        {
            transfer.state = state;
            transfer.debit_after = debit_after.or(transfer.debit_after);
        }
        self.effects.settlements.push(Settlement {
            key: settle.key(),
            credit: settle.credit.clone(),
            amount: settle.amount,
            reserved: settle.reserved,
            state,
            debit_position: later.map(|(_, position)| position),
        });
        Outcome::Settled(Settled { state, debit_after, replayed: false })
    }

    /// Gives the payer back what is in transit.
    fn compensate(&mut self, settle: &Settle) -> Result<(), Aside> {
        let transit = self.in_transit(settle.asset);
        let held = if settle.purpose.captured_hold().is_some() { settle.amount } else { 0 };
        let leg = |account, counterparty, posted, held| Leg {
            account,
            counterparty,
            kind: EntryKind::Compensated,
            posted,
            held,
            cause: settle.id,
        };
        let legs = [
            leg(&transit, &settle.debit, -settle.amount, 0),
            leg(&settle.debit, &settle.credit, settle.amount, held),
        ];
        self.book(settle.asset, &legs)
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

    /// The verdict reaches the hold: the capture is certain and the rest of a final one is released, or the hold is as it
    /// was before. Gives the debit account after the release, if there was one.
    fn settle_capture(&mut self, settle: &Settle, key: &HoldKey) -> Result<Option<(DebitAfter, Position)>, Aside> {
        let now_us = self.now_us;
        let Some(hold) = self.change_hold(key) else { return Ok(None) };
        hold.in_flight = None;
        if settle.verdict != Verdict::Credited {
            return Ok(None);
        }
        let rest = hold.capture(settle.amount, settle.purpose.finalizes(), now_us);
        if rest == 0 {
            return Ok(None);
        }
        self.release(key, rest, EntryKind::Released)?;
        Ok(self.balances_now(&settle.debit))
    }
}
