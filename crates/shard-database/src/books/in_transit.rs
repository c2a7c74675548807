//! The in-transit account of one asset.
//!
//! Its legs are not recorded, and bookings that have moved away took their shares with them. The account therefore has no
//! chain to follow. Its balance must be the sum of the shares of all bookings that the shard answers for; its row must be
//! that sum as of the row's newest booking.

use ledger::{Account, AccountId, AssetCode, Booking, Position};

use super::{Difference, Report, Rule};

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
