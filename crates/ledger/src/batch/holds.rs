//! Placing, releasing and expiring holds. Capturing one is a transfer.

use super::{Aside, Batch, Draft, HoldRow};
use crate::{
    Hold, HoldKey, HoldStatus, KeyName, Metadata, Position, Refusal, Refused, Side,
    booking::{Booking, BookingKind, Extra, Role},
    fold::{self, FoldError},
    operation::{PlaceHold, ReleaseHold},
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
    Placed { position: Position },
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
        let refused = posting::check_hold(account, place.asset, place.amount).err();
        let undetermined = match refused {
            Some(Refused { refusal: Refusal::AccountNotFound, side: Some(Side::Debit) }) => {
                return Outcome::Hold(HoldOutcome::DebitNotFound);
            }
            Some(refused) => self.undetermined_debit(refused, &place.debit, place.amount),
            None => self.undetermined_hold(&place.debit, place.amount),
        };
        if let Some(aside) = undetermined {
            return outcome_of(aside);
        }
        let kind = if refused.is_none() { BookingKind::HoldPlaced } else { BookingKind::HoldRejected };
        let extra = Extra {
            metadata: (!place.metadata.is_empty()).then(|| place.metadata.clone()),
            refused,
            expires_at_us: place.expires_in_s.map(|seconds| self.now_us + i64::from(seconds) * SECOND_US),
            ..Extra::default()
        };
        let booked = self.book(Draft {
            kind,
            id: Some(place.id),
            payer: &place.debit,
            payee: Some(&place.credit),
            asset: place.asset,
            amount: place.amount,
            ordered_by: place.ordered_by.clone(),
            extra: (extra != Extra::default()).then(|| Box::new(extra)),
        });
        if let Err(aside) = booked {
            return outcome_of(aside);
        }
        match self.hold(&key) {
            Some(hold) => Outcome::Hold(HoldOutcome::Placed(answer(hold, false))),
            None => Outcome::Illegal(format!("hold {} is gone right after it was placed", place.id.0)),
        }
    }

    pub(super) fn release_hold(&mut self, ReleaseHold { key, ordered_by }: &ReleaseHold) -> Outcome {
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
            return Outcome::Hold(HoldOutcome::Released {
                key: key.clone(),
                hold: Box::new(hold.clone()),
                replayed: true,
            });
        }
        if let Err(refused) = hold.check_open() {
            return Outcome::Hold(HoldOutcome::Refused(refused));
        }
        if hold.in_flight.is_some() {
            // What is left to release depends on the verdict.
            return Outcome::Deferred;
        }
        if let Err(aside) = self.end_hold(key, BookingKind::HoldReleased, ordered_by.clone()) {
            return outcome_of(aside);
        }
        match self.hold(key) {
            Some(hold) => Outcome::Hold(HoldOutcome::Released {
                key: key.clone(),
                hold: Box::new(hold.clone()),
                replayed: false,
            }),
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

    /// An operation that finds a hold whose time is over expires it first. The result does not depend on when the node expires holds.
    pub(super) fn expire_if_due(&mut self, key: &HoldKey) -> Result<(), Aside> {
        let now_us = self.now_us;
        if self.hold(key).is_some_and(|hold| hold.is_due(now_us)) {
            self.end_hold(key, BookingKind::HoldExpired, None)?;
        }
        Ok(())
    }

    /// Ends a hold: what it still reserves is available again. Returns the place of the booking among the effects.
    pub(super) fn end_hold(
        &mut self,
        key: &HoldKey,
        kind: BookingKind,
        ordered_by: Option<KeyName>,
    ) -> Result<usize, Aside> {
        let Some(hold) = self.hold(key) else {
            return Err(Aside::Illegal(format!(
                "INV-11: hold {} of {} is not there to be ended",
                key.id.0, key.debit
            )));
        };
        let (asset, payee, amount) = (hold.asset, hold.credit.clone(), hold.remaining());
        let extra = Extra { captured: Some(hold.captured), ..Extra::default() };
        self.book(Draft {
            kind,
            id: Some(key.id),
            payer: &key.debit,
            payee: Some(&payee),
            asset,
            amount,
            ordered_by,
            extra: Some(Box::new(extra)),
        })
    }

    /// Applies a booking to the hold that it is about, if any.
    pub(super) fn apply_to_holds(&mut self, booking: &Booking) -> Result<(), FoldError> {
        let Some(key) = fold::hold_key(booking) else { return Ok(()) };
        if booking.kind.role() == Role::Hold {
            let hold = fold::place_hold(booking)?;
            self.holds.insert(key, KnownHold { hold, change: Change::Placed { position: booking.position } });
            return Ok(());
        }
        let Some(known) = self.holds.get_mut(&key) else {
            return Err(FoldError::Hold { key, position: booking.position, what: "it was not loaded" });
        };
        if matches!(known.change, Change::None) {
            known.change = Change::Changed;
        }
        fold::apply_to_hold(&mut known.hold, booking)
    }

    pub(super) fn hold(&self, key: &HoldKey) -> Option<&Hold> {
        self.holds.get(key).map(|known| &known.hold)
    }

    pub(super) fn erase_hold_metadata(&mut self, key: &HoldKey) {
        if let Some(known) = self.holds.get_mut(key) {
            known.hold.metadata = Metadata::erased();
        }
    }

    /// A hold that was not refused when it was placed.
    pub(super) fn existing_hold(&self, key: &HoldKey) -> Option<&Hold> {
        self.hold(key).filter(|hold| hold.status.refused().is_none())
    }

    /// Notes the rows of open holds that the batch inserts, changes and deletes.
    pub(super) fn note_holds(&mut self) {
        for (key, KnownHold { hold, change }) in self.holds.drain() {
            let is_open = hold.status == HoldStatus::Held;
            self.effects.holds.extend(match change {
                Change::Placed { position } if is_open => Some(HoldRow::Insert { key, hold, position }),
                Change::Changed if is_open => Some(HoldRow::Update { key, hold }),
                Change::Changed => Some(HoldRow::Delete { key }),
                // Rejected, or placed and ended in one batch: it never has a row.
                Change::Placed { .. } | Change::None => None,
            });
        }
    }
}

pub(super) fn outcome_of(aside: Aside) -> Outcome {
    match aside {
        Aside::Deferred => Outcome::Deferred,
        Aside::Undetermined(credits) => Outcome::Undetermined(credits),
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
        (stored.metadata.differs_from(&place.metadata), "metadata"),
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
        ordered_by: stored.ordered_by.clone(),
    }
}
