//! Holds are placed, captured, released, and expire.

use super::{Answer, Cause, Key, Ledger, transfers::After};
use crate::{
    Named, NewHold, Release,
    posting::{Refusal, debit_allowed, debit_covered, debit_fits},
};

/// A hold as stored.
#[derive(Debug, Clone)]
pub struct Hold {
    pub order: NewHold,
    pub captured: i64,
    pub state: HoldState,
    /// The debit account right after the hold was placed. `None` if the hold was refused.
    pub after: Option<After>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldState {
    Held,
    Captured,
    Released,
    Expired,
    Refused(Refusal),
}

impl Ledger {
    pub(super) fn place_hold(&mut self, order: &NewHold) -> Answer {
        if order.debit == order.credit {
            return Answer::refused(400, "same_account");
        }
        let key = (order.debit.clone(), order.id.clone());
        if let Some(stored) = self.holds.get(&key) {
            return match difference(&stored.order, order) {
                Some(field) => Answer::mismatch(field).with("hold_id", &*order.id),
                None => self.first_answer_of_hold(stored).replay(),
            };
        }
        let mut hold = Hold { order: order.clone(), captured: 0, state: HoldState::Held, after: None };
        match self.refuse_hold(order) {
            Err(refusal) if refusal == Refusal::debit("account_not_found") => {
                return Answer::problem(&refusal).with("hold_id", &*order.id);
            }
            Err(refusal) => hold.state = HoldState::Refused(refusal),
            Ok(()) => {
                self.book(&order.debit, "held", 0, order.amount, about(order));
                hold.after = Some(self.after(&order.debit));
            }
        }
        let answer = self.first_answer_of_hold(&hold);
        self.holds.insert_mut(key, hold);
        answer
    }

    fn refuse_hold(&self, order: &NewHold) -> Result<(), Refusal> {
        let account = debit_allowed(self.accounts.get(&order.debit), order.asset)?;
        debit_covered(account, order.amount)?;
        debit_fits(account, order.amount)?;
        match account.held.checked_add(order.amount) {
            Some(_) => Ok(()),
            None => Err(Refusal::debit("balance_overflow")),
        }
    }

    pub(super) fn release(&mut self, release: &Release) -> Answer {
        let (key, state) = match self.find_hold(&release.hold) {
            Ok(hold) => (hold.key(), hold.state.clone()),
            Err(answer) => return answer,
        };
        match state {
            HoldState::Held => {
                self.end(&key, HoldState::Released, "released");
                self.show_hold(&release.hold)
            }
            HoldState::Released => self.show_hold(&release.hold).replay(),
            HoldState::Captured => Answer::refused(409, "hold_captured").with("hold_id", key.1),
            HoldState::Expired => Answer::refused(409, "hold_expired").with("hold_id", key.1),
            HoldState::Refused(_) => Answer::refused(404, "hold_not_found").with("hold_id", key.1),
        }
    }

    /// Ends a hold whose time is over, if it is open. No request asks for this.
    pub fn expire(&mut self, named: &Named) {
        self.requests += 1;
        let open = self.hold(named).filter(|hold| hold.state == HoldState::Held);
        if let Some(key) = open.map(Hold::key) {
            self.end(&key, HoldState::Expired, "expired");
        }
    }

    /// Counts a captured amount. A final capture gives the rest back.
    pub(super) fn captured(&mut self, key: &Key, amount: i64, is_final: bool) {
        let Some(hold) = self.holds.get_mut(key) else { return };
        hold.captured += amount;
        match hold.rest() {
            0 => hold.state = HoldState::Captured,
            _ if is_final => self.end(key, HoldState::Captured, "released"),
            _ => {}
        }
    }

    /// Ends a hold and gives back what it still holds.
    fn end(&mut self, key: &Key, state: HoldState, kind: &'static str) {
        let Some(hold) = self.holds.get_mut(key) else { return };
        hold.state = state;
        let (rest, cause) = (hold.rest(), about(&hold.order));
        self.book(&key.0, kind, 0, -rest, cause);
    }

    pub(super) fn find_hold(&self, named: &Named) -> Result<&Hold, Answer> {
        let mut found = self.holds.values().filter(|hold| {
            hold.order.id == named.id && named.debit.as_ref().is_none_or(|debit| *debit == hold.order.debit)
        });
        let not_found = || Answer::refused(404, "hold_not_found").with("hold_id", &*named.id);
        let first = found.next().ok_or_else(not_found)?;
        match found.next() {
            Some(_) => Err(Answer::refused(409, "ambiguous_id").with("hold_id", &*named.id)),
            None => Ok(first),
        }
    }
}

impl Hold {
    pub fn key(&self) -> Key {
        (self.order.debit.clone(), self.order.id.clone())
    }

    /// The amount that can still be captured.
    pub fn remaining(&self) -> i64 {
        if self.state == HoldState::Held { self.rest() } else { 0 }
    }

    pub(super) fn refuse_capture(&self, amount: i64) -> Result<(), Refusal> {
        match self.state {
            HoldState::Captured => Err(Refusal::whole(409, "hold_captured")),
            HoldState::Released => Err(Refusal::whole(409, "hold_released")),
            HoldState::Expired => Err(Refusal::whole(409, "hold_expired")),
            HoldState::Refused(_) => Err(Refusal::whole(404, "hold_not_found")),
            HoldState::Held if amount > self.rest() => Err(Refusal::whole(422, "exceeds_hold")),
            HoldState::Held => Ok(()),
        }
    }

    fn rest(&self) -> i64 {
        self.order.amount - self.captured
    }
}

fn about(order: &NewHold) -> Cause {
    Cause { transfer: None, hold: Some(order.id.clone()), counterparty: Some(order.credit.clone()) }
}

/// The field in which a request differs from the one stored under its id.
fn difference(stored: &NewHold, new: &NewHold) -> Option<&'static str> {
    match () {
        () if stored.credit != new.credit => Some("credit"),
        () if stored.amount != new.amount => Some("amount"),
        () if stored.asset != new.asset => Some("asset"),
        () if stored.expires_in_s != new.expires_in_s => Some("expires_in_s"),
        () if stored.metadata != new.metadata => Some("metadata"),
        () => None,
    }
}
