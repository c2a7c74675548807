//! The sagas under way.

use std::collections::{HashMap, HashSet};

use ledger::{
    AccountId, AssetCode, Booking, BookingKind, Position, TransferId, TransferKey,
    fold::{self, SagaChange},
};

use super::{Difference, Report, Rule};

#[derive(Default)]
pub(super) struct Sagas {
    under_way: HashMap<TransferKey, Begun>,
    /// The rows, and the position that they reach.
    expected: Option<(Position, HashSet<Position>)>,
}

/// What the first booking of a saga says.
#[derive(Debug, PartialEq, Eq)]
struct Begun {
    position: Position,
    is_reserved: bool,
    payee: Option<AccountId>,
    asset: AssetCode,
    /// Minor units.
    amount: i64,
    /// Of a reserved capture.
    hold: Option<TransferId>,
}

impl Sagas {
    pub fn expect(&mut self, at: Position, positions: HashSet<Position>) {
        self.expected = Some((at, positions));
    }

    /// Compares the rows, if the next booking is beyond what they reach.
    pub fn before(&mut self, position: Position, report: Report<'_>) {
        if self.expected.as_ref().is_some_and(|(at, _)| position > *at) {
            self.finish(report);
        }
    }

    pub fn finish(&mut self, report: Report<'_>) {
        let Some((at, mut rows)) = self.expected.take() else { return };
        for (key, begun) in &self.under_way {
            if !rows.remove(&begun.position) {
                let detail = format!("debit {}: under way as of position {}, and has no row", key.debit, at.0);
                report(Difference { rule: Rule::SagaRow, subject: key.id.0.to_string(), detail });
            }
        }
        for position in rows {
            let detail = format!("the row is of no saga that is under way as of position {}", at.0);
            report(Difference { rule: Rule::SagaRow, subject: format!("saga {}", position.0), detail });
        }
    }

    pub fn apply(&mut self, booking: &Booking, report: Report<'_>) {
        let mut wrong = |key: &TransferKey, what: &str| {
            let detail = format!("debit {}: booking {} {what}", key.debit, booking.position.0);
            report(Difference { rule: Rule::Saga, subject: key.id.0.to_string(), detail });
        };
        match fold::saga_change(booking) {
            None => {}
            Some(SagaChange::Begun(key)) => {
                let begun = Begun {
                    position: booking.position,
                    is_reserved: booking.kind == BookingKind::Reserved,
                    payee: booking.payee.clone(),
                    asset: booking.asset,
                    amount: booking.amount,
                    hold: booking.purpose().captured_hold().filter(|_| booking.kind == BookingKind::Reserved),
                };
                if self.under_way.contains_key(&key) {
                    wrong(&key, "begins it a second time");
                }
                self.under_way.insert(key, begun);
            }
            Some(SagaChange::Ended(key)) => match self.under_way.remove(&key) {
                None => wrong(&key, "settles it, and no booking began it"),
                Some(begun) => {
                    let settled = Begun {
                        position: begun.position,
                        is_reserved: booking.kind != BookingKind::SettledRefused,
                        payee: booking.payee.clone(),
                        asset: booking.asset,
                        amount: booking.amount,
                        hold: booking.purpose().captured_hold(),
                    };
                    if settled != begun {
                        wrong(&key, &format!("settles {settled:?}, it began as {begun:?}"));
                    }
                }
            },
        }
    }
}
