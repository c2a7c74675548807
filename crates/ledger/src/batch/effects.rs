//! What a batch adds to the database.

use crate::{Hold, HoldKey, Position, booking::Booking};

/// What a batch adds to the database.
#[derive(Debug, Default)]
pub struct Effects {
    pub bookings: Vec<Booking>,
    /// The rows of open holds that change in the same commit.
    pub holds: Vec<HoldRow>,
    /// One past the last position used.
    pub next_position: Position,
}

/// A change of the projection of open holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldRow {
    /// `position`: of the booking that placed the hold.
    Insert {
        key: HoldKey,
        hold: Hold,
        position: Position,
    },
    Update {
        key: HoldKey,
        hold: Hold,
    },
    /// The hold has ended. What became of it is in the journal.
    Delete {
        key: HoldKey,
    },
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        self.bookings.is_empty()
    }

    /// Adds a booking that books nothing, so that the batch takes a position of its own.
    pub fn add_marker(&mut self, at_us: i64) {
        let position = self.next_position;
        self.bookings.push(Booking::marker(position, at_us));
        self.next_position = position.next();
    }
}
