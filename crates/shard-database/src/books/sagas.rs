//! The sagas under way, and the in-transit account of each asset.

use std::collections::{HashMap, HashSet};

use ledger::{
    Account, AccountId, AssetCode, Booking, BookingKind, Position, TransferId, TransferKey,
    fold::{self, SagaChange},
};

use super::{Difference, Report, Rule};

#[derive(Default)]
pub(super) struct Sagas {
    shard_number: u16,
    under_way: HashMap<TransferKey, Begun>,
    /// The position that the rows reach, the rows of sagas that began here, and whether they are compared.
    at: Position,
    rows: HashSet<Position>,
    is_compared: bool,
    /// The rows of sagas that began elsewhere and came with a move. They reach the folded position or the move, whichever is later.
    foreign_rows: HashSet<Position>,
    /// Sagas that began elsewhere and were settled beyond the folded position: they may have a row still.
    settled_lately: HashSet<Position>,
    /// Sagas that began here, were under way as of the folded position, and have no row. One that another shard has settled while it
    /// had the payer needs none: its row was deleted with the payer's, and the payer came back after the settlement.
    without_row: HashSet<TransferKey>,
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
    pub fn new(shard_number: u16) -> Self {
        Self { shard_number, is_compared: true, ..Self::default() }
    }

    pub fn expect(&mut self, at: Position, positions: HashSet<Position>) {
        let is_own = |position: &Position| position.shard_number() == self.shard_number;
        (self.rows, self.foreign_rows) = positions.into_iter().partition(is_own);
        (self.at, self.is_compared) = (at, false);
    }

    /// Compares the rows of sagas that began here, if the next booking is beyond what the rows reach.
    pub fn before(&mut self, position: Position, report: Report<'_>) {
        if !self.is_compared && position > self.at {
            self.compare_own(report);
        }
    }

    pub fn finish(&mut self, report: Report<'_>) {
        if !self.is_compared {
            self.compare_own(report);
        }
        for key in std::mem::take(&mut self.without_row) {
            no_row(&key, self.at, report);
        }
        let is_own = |begun: &Begun| begun.position.shard_number() == self.shard_number;
        let mut rows = std::mem::take(&mut self.foreign_rows);
        for (key, begun) in self.under_way.iter().filter(|(_, begun)| !is_own(begun)) {
            if !rows.remove(&begun.position) {
                no_row(key, self.at, report);
            }
        }
        rows.retain(|position| !self.settled_lately.contains(position));
        too_many(rows, self.at, report);
    }

    fn compare_own(&mut self, report: Report<'_>) {
        self.is_compared = true;
        let mut rows = std::mem::take(&mut self.rows);
        let is_own = |begun: &Begun| begun.position.shard_number() == self.shard_number;
        for (key, begun) in self.under_way.iter().filter(|(_, begun)| is_own(begun)) {
            if !rows.remove(&begun.position) {
                self.without_row.insert(key.clone());
            }
        }
        too_many(rows, self.at, report);
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
                    if booking.position.shard_number() != self.shard_number {
                        self.without_row.remove(&key);
                    }
                    let is_late = self.is_compared && booking.position.shard_number() == self.shard_number;
                    if is_late && begun.position.shard_number() != self.shard_number {
                        self.settled_lately.insert(begun.position);
                    }
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

fn no_row(key: &TransferKey, at: Position, report: Report<'_>) {
    let detail = format!("debit {}: under way as of position {}, and has no row", key.debit, at.0);
    report(Difference { rule: Rule::SagaRow, subject: key.id.0.to_string(), detail });
}

fn too_many(rows: HashSet<Position>, at: Position, report: Report<'_>) {
    for position in rows {
        let detail = format!("the row is of no saga that is under way as of position {}", at.0);
        report(Difference { rule: Rule::SagaRow, subject: format!("saga {}", position.0), detail });
    }
}

#[derive(Debug, Default)]
pub(super) struct InTransit {
    /// Minor units, as is everything else.
    shares: i128,
    row: Option<Row>,
    /// What the shard's own bookings beyond the row have changed.
    since_row: i128,
    is_behind_reported: bool,
}

#[derive(Debug)]
struct Row {
    posted: i64,
    held: i64,
    head: Position,
}

impl InTransit {
    pub fn expect(&mut self, row: &Account) {
        self.row = Some(Row { posted: row.posted, held: row.held, head: row.head });
    }

    /// Adds the share of a booking that the shard answers for.
    pub fn add_share(&mut self, booking: &Booking) {
        self.shares += i128::from(booking.in_transit_share());
    }

    /// Takes in what a booking of the shard itself changed, also if another shard answers for the booking by now.
    pub fn change_row(&mut self, booking: &Booking, folded_before: Position, report: Report<'_>) {
        let head = self.row.as_ref().map_or(Position::NONE, |row| row.head);
        if booking.position <= head {
            return;
        }
        self.since_row += i128::from(booking.in_transit_change());
        if booking.position <= folded_before && self.row.is_some() && !self.is_behind_reported {
            self.is_behind_reported = true;
            let detail = format!(
                "its row is at booking {}, though booking {} is folded up to position {}",
                head.0, booking.position.0, folded_before.0
            );
            report(difference(booking.asset, detail));
        }
    }

    pub fn has_row(&self) -> bool {
        self.row.is_some()
    }

    pub fn sum(&self) -> i128 {
        self.shares
    }

    /// Compares the row with the sum.
    pub fn finish(&self, asset: AssetCode, report: Report<'_>) {
        // A missing row is reported where the rows of opened accounts are looked up.
        let Some(Row { posted, held, head }) = &self.row else { return };
        let expected = self.shares - self.since_row;
        if i128::from(*posted) != expected || *held != 0 {
            let detail = format!(
                "as of booking {}, row: posted {posted}, held {held}; journal: posted {expected}, held 0",
                head.0
            );
            report(difference(asset, detail));
        }
    }
}

fn difference(asset: AssetCode, detail: String) -> Difference {
    Difference { rule: Rule::AccountRow, subject: AccountId::in_transit(asset).to_string(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn booking(position: i64, kind: BookingKind) -> Booking {
        Booking {
            position: Position(position),
            kind,
            id: Some(TransferId(Uuid::from_u128(1))),
            payer: AccountId::any("alice").unwrap(),
            payee: Some(AccountId::any("far").unwrap()),
            asset: AssetCode::new("USD").unwrap(),
            amount: 5,
            ..Booking::marker(Position(position), position)
        }
    }

    /// What is found if the saga begins at position 1, nothing has a row as of position 2, and `settled` comes after position 3.
    fn found(settled: Option<Position>) -> usize {
        let mut differences = 0;
        let mut count = |_| differences += 1;
        let mut sagas = Sagas::new(0);
        sagas.expect(Position(2), HashSet::new());
        sagas.before(Position(1), &mut count);
        sagas.apply(&booking(1, BookingKind::Reserved), &mut count);
        sagas.before(Position(3), &mut count);
        if let Some(position) = settled {
            sagas.apply(&booking(position.0, BookingKind::Settled), &mut count);
        }
        sagas.finish(&mut count);
        differences
    }

    /// Found by the crash matrix of moves: a payer left, its saga was settled, and the payer came back before the next fold.
    #[test]
    fn a_saga_that_another_shard_has_settled_needs_no_row_here() {
        assert_eq!(found(Some(Position::first_of(1))), 0);
        assert_eq!([found(None), found(Some(Position(3)))], [1, 1]);
    }
}
