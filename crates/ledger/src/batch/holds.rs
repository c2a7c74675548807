//! Placing, releasing and expiring holds. Capturing one is a transfer.

use super::{Aside, Batch, Leg, NewHold};
use crate::{
    Hold, HoldKey, HoldStatus, Position, Refusal, Refused, Side,
    journal::EntryKind,
    operation::PlaceHold,
    outcome::{HoldAnswer, HoldOutcome, Outcome},
    posting,
};

/// Microseconds in a second.
const SECOND_US: i64 = 1_000_000;

/// A hold, and what this batch did to it.
#[derive(Debug, Clone)]
pub(super) struct KnownHold {
    hold: Hold,
    change: Change,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    None,
    Placed { debit_position: Option<Position> },
    Changed,
}

impl KnownHold {
    pub fn loaded(hold: Hold) -> Self {
        Self { hold, change: Change::None }
    }
}

impl Batch<'_> {
    pub(super) fn place_hold(&mut self, place: &PlaceHold) -> Outcome {
        if let Err(not_owner) = (self.fence)(&place.debit) {
            return Outcome::NotOwner(not_owner);
        }
        let key = place.key();
        if let Some(there) = self.hold(&key) {
            return Outcome::Hold(replay(place, there));
        }
        let account = self.accounts.get(&place.debit);
        let refused = match posting::check_hold(account, place.asset, place.amount) {
            Ok(()) => None,
            Err(Refused { refusal: Refusal::AccountNotFound, side: Some(Side::Debit) }) => {
                return Outcome::Hold(HoldOutcome::DebitNotFound);
            }
            Err(refused) => Some(refused),
        };
        if refused.is_none() {
            let leg = Leg {
                account: &place.debit,
                counterparty: &place.credit,
                kind: EntryKind::Held,
                posted: 0,
                held: place.amount,
                cause: place.id,
            };
            if let Err(aside) = self.book(place.asset, &[leg]) {
                return outcome_of(aside);
            }
        }
        let after = self.balances_now(&place.debit).filter(|_| refused.is_none());
        let hold = Hold {
            credit: place.credit.clone(),
            asset: place.asset,
            amount: place.amount,
            metadata: place.metadata.clone(),
            status: refused.map_or(HoldStatus::Held, HoldStatus::Rejected),
            captured: 0,
            in_flight: None,
            expires_at_us: place.expires_in_s.map(|seconds| self.now_us + i64::from(seconds) * SECOND_US),
            debit_after: after.map(|(balances, _)| balances),
            created_at_us: self.now_us,
            ended_at_us: refused.map(|_| self.now_us),
        };
        let outcome = HoldOutcome::Placed(answer(&hold, false));
        let change = Change::Placed { debit_position: after.map(|(_, position)| position) };
        self.holds.insert(key, KnownHold { hold, change });
        Outcome::Hold(outcome)
    }

    pub(super) fn release_hold(&mut self, key: &HoldKey) -> Outcome {
        if let Err(not_owner) = (self.fence)(&key.debit) {
            return Outcome::NotOwner(not_owner);
        }
        if let Err(aside) = self.expire_if_due(key) {
            return outcome_of(aside);
        }
        let Some(hold) = self.existing_hold(key) else {
            return Outcome::Hold(HoldOutcome::NotFound);
        };
        if hold.status == HoldStatus::Released {
            return Outcome::Hold(HoldOutcome::Released { key: key.clone(), hold: hold.clone(), replayed: true });
        }
        if let Err(refused) = hold.check_open() {
            return Outcome::Hold(HoldOutcome::Refused(refused));
        }
        if hold.in_flight.is_some() {
            // What is left to release depends on the verdict.
            return Outcome::Deferred;
        }
        if let Err(aside) = self.end_hold(key, HoldStatus::Released, EntryKind::Released) {
            return outcome_of(aside);
        }
        match self.hold(key) {
            Some(hold) => {
                Outcome::Hold(HoldOutcome::Released { key: key.clone(), hold: hold.clone(), replayed: false })
            }
            None => Outcome::Hold(HoldOutcome::NotFound),
        }
    }

    pub(super) fn expire_hold(&mut self, key: &HoldKey) -> Outcome {
        if let Err(not_owner) = (self.fence)(&key.debit) {
            return Outcome::NotOwner(not_owner);
        }
        if let Err(aside) = self.expire_if_due(key) {
            return outcome_of(aside);
        }
        Outcome::Hold(match self.hold(key).map(|hold| hold.status) {
            None => HoldOutcome::NotFound,
            Some(HoldStatus::Expired) => HoldOutcome::Expired,
            Some(_) => HoldOutcome::NotDue,
        })
    }

    /// Whoever meets a hold whose time is over expires it first: nothing depends on when the node got round to it.
    pub(super) fn expire_if_due(&mut self, key: &HoldKey) -> Result<(), Aside> {
        let now_us = self.now_us;
        if self.hold(key).is_some_and(|hold| hold.is_due(now_us)) {
            self.end_hold(key, HoldStatus::Expired, EntryKind::Expired)?;
        }
        Ok(())
    }

    fn end_hold(&mut self, key: &HoldKey, status: HoldStatus, kind: EntryKind) -> Result<(), Aside> {
        let now_us = self.now_us;
        let rest = self.change_hold(key).map_or(0, |hold| hold.end(status, now_us));
        self.release(key, rest, kind)
    }

    /// Makes what a hold no longer holds available again.
    pub(super) fn release(&mut self, key: &HoldKey, amount: i64, kind: EntryKind) -> Result<(), Aside> {
        let Some(hold) = self.hold(key).filter(|_| amount > 0) else { return Ok(()) };
        let (asset, counterparty) = (hold.asset, hold.credit.clone());
        let leg =
            Leg { account: &key.debit, counterparty: &counterparty, kind, posted: 0, held: -amount, cause: key.id };
        self.book(asset, &[leg])
    }

    pub(super) fn hold(&self, key: &HoldKey) -> Option<&Hold> {
        self.holds.get(key).map(|known| &known.hold)
    }

    /// A hold that was not refused when it was placed.
    pub(super) fn existing_hold(&self, key: &HoldKey) -> Option<&Hold> {
        self.hold(key).filter(|hold| hold.status.refused().is_none())
    }

    /// The hold to be changed in this batch.
    pub(super) fn change_hold(&mut self, key: &HoldKey) -> Option<&mut Hold> {
        let known = self.holds.get_mut(key)?;
        if matches!(known.change, Change::None) {
            known.change = Change::Changed;
        }
        Some(&mut known.hold)
    }

    /// Writes down which holds are new and which have changed.
    pub(super) fn note_holds(&mut self) {
        for (key, KnownHold { hold, change }) in self.holds.drain() {
            match change {
                Change::None => {}
                Change::Placed { debit_position } => {
                    self.effects.holds.push(NewHold { key, stored: hold, debit_position });
                }
                Change::Changed => self.effects.changed_holds.push((key, hold)),
            }
        }
    }
}

pub(super) fn outcome_of(aside: Aside) -> Outcome {
    match aside {
        Aside::Deferred => Outcome::Deferred,
        Aside::NotOwner(not_owner) => Outcome::NotOwner(not_owner),
        Aside::Illegal(why) => Outcome::Illegal(why),
    }
}

/// INV-6: the answer to a hold placed before, or the field in which the new request differs from it.
fn replay(place: &PlaceHold, stored: &Hold) -> HoldOutcome {
    let expires_in_us = stored.expires_at_us.map(|expires_at_us| expires_at_us - stored.created_at_us);
    let differs = [
        (stored.credit != place.credit, "credit"),
        (stored.amount != place.amount, "amount"),
        (stored.asset != place.asset, "asset"),
        (expires_in_us != place.expires_in_s.map(|seconds| i64::from(seconds) * SECOND_US), "expires_in_s"),
        (stored.metadata != place.metadata, "metadata"),
    ];
    match differs.into_iter().find_map(|(differs, field)| differs.then_some(field)) {
        Some(field) => HoldOutcome::Mismatch { field },
        None => HoldOutcome::Placed(answer(stored, true)),
    }
}

fn answer(stored: &Hold, replayed: bool) -> HoldAnswer {
    HoldAnswer {
        refused: stored.status.refused(),
        debit_after: stored.debit_after,
        expires_at_us: stored.expires_at_us,
        created_at_us: stored.created_at_us,
        replayed,
    }
}
