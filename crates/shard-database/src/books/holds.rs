//! The open holds.

use std::collections::HashMap;

use ledger::{AccountId, Booking, Hold, HoldKey, HoldStatus, Position, TransferId, booking::Role, fold};

use super::{Difference, Key, Report, Rule, of_fold_error};

#[derive(Default)]
pub(super) struct Holds {
    open: HashMap<HoldKey, (Hold, Position)>,
    /// The rows, and the position that they reach.
    expected: Option<(Position, HashMap<HoldKey, HoldRow>)>,
}

/// A row of `hold`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRow {
    /// Of the booking that placed the hold.
    pub position: Position,
    /// Minor units, as are the others.
    pub amount: i64,
    pub captured: i64,
    pub in_flight: Option<(TransferId, i64)>,
    pub expires_at_us: Option<i64>,
}

impl HoldRow {
    fn of(hold: &Hold, position: Position) -> Self {
        Self {
            position,
            amount: hold.amount,
            captured: hold.captured,
            in_flight: hold.in_flight.map(|capture| (capture.capture, capture.amount)),
            expires_at_us: hold.expires_at_us,
        }
    }
}

impl Holds {
    pub fn expect(&mut self, at: Position, rows: HashMap<HoldKey, HoldRow>) {
        self.expected = Some((at, rows));
    }

    /// Compares the rows, if the next booking is beyond what they reach.
    pub fn before(&mut self, position: Position, report: Report<'_>) {
        if self.expected.as_ref().is_some_and(|(at, _)| position > *at) {
            self.finish(report);
        }
    }

    pub fn finish(&mut self, report: Report<'_>) {
        let Some((at, mut rows)) = self.expected.take() else { return };
        let mut differs = |key: &HoldKey, what: String| {
            let detail = format!("debit {}, as of position {}: {what}", key.debit, at.0);
            report(Difference { rule: Rule::HoldRow, subject: key.id.0.to_string(), detail });
        };
        for (key, (hold, position)) in &self.open {
            let expected = HoldRow::of(hold, *position);
            match rows.remove(key) {
                Some(row) if row == expected => {}
                Some(row) => differs(key, format!("the row is {row:?}, the journal says {expected:?}")),
                None => differs(key, "the hold is open, and has no row".to_owned()),
            }
        }
        for key in rows.into_keys() {
            differs(&key, "the row is of no open hold".to_owned());
        }
    }

    pub fn apply(&mut self, booking: &Booking, report: Report<'_>) {
        let Some(key) = fold::hold_key(booking) else { return };
        let applied = if booking.kind.role() == Role::Hold {
            fold::place_hold(booking).map(|hold| {
                if hold.status == HoldStatus::Held {
                    self.open.insert(key.clone(), (hold, booking.position));
                }
            })
        } else {
            let Some((hold, _)) = self.open.get_mut(&key) else {
                return report(wrong(&key, booking, "is about it, and it is not open"));
            };
            if booking.payee.as_ref() != Some(&hold.credit) || booking.asset != hold.asset {
                report(wrong(&key, booking, "has another credit account or asset"));
            }
            fold::apply_to_hold(hold, booking)
        };
        if let Err(error) = applied {
            let Difference { detail, .. } = of_fold_error(&key.debit, &error);
            report(Difference { rule: Rule::Hold, subject: key.id.0.to_string(), detail });
        }
        // A hold that ends is gone, whether or not the end fits.
        if booking.kind.ends_hold()
            && let Some((hold, _)) = self.open.remove(&key)
            && booking.extra.as_ref().and_then(|extra| extra.captured) != Some(hold.captured)
        {
            report(wrong(&key, booking, &format!("ends it with another total than {} captured", hold.captured)));
        }
    }

    /// What remains of the open holds, in minor units, by account.
    pub fn remaining(&self) -> HashMap<Key, (AccountId, i128)> {
        let mut remaining: HashMap<Key, (AccountId, i128)> = HashMap::new();
        for (key, (hold, _)) in &self.open {
            let of_account = remaining.entry(Key::of(key.debit.as_str())).or_insert_with(|| (key.debit.clone(), 0));
            of_account.1 += i128::from(hold.remaining());
        }
        remaining
    }
}

fn wrong(key: &HoldKey, booking: &Booking, what: &str) -> Difference {
    let detail = format!("debit {}: booking {} {what}", key.debit, booking.position.0);
    Difference { rule: Rule::Hold, subject: key.id.0.to_string(), detail }
}
