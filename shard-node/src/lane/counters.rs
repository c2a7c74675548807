//! What the lane counts of the bookings that it has committed.

use ledger::{Booking, BookingKind, Refusal};
use metrics::{Counter, counter};

use crate::metric_definitions as m;

/// The handles are looked up once: a batch has thousands of bookings.
pub struct Counters {
    by_kind: [Counter; BookingKind::ALL.len()],
    by_refusal: [Counter; Refusal::ALL.len()],
}

impl Counters {
    pub fn new() -> Self {
        Self {
            by_kind: BookingKind::ALL.map(|kind| counter!(m::BOOKINGS, "kind" => m::kind_label(kind))),
            by_refusal: Refusal::ALL.map(|code| counter!(m::REJECTIONS, "code" => code.as_str())),
        }
    }

    /// Counts the bookings of a batch. A booking whose COMMIT was not answered is not among them: its operation runs again, and is answered as a
    /// replay.
    pub fn count(&self, bookings: &[Booking]) {
        let (mut kinds, mut refusals) = ([0; BookingKind::ALL.len()], [0; Refusal::ALL.len()]);
        for booking in bookings {
            if let Some(place) = BookingKind::ALL.iter().position(|kind| *kind == booking.kind) {
                kinds[place] += 1;
            }
            if let Some(place) =
                refused_for_good(booking).and_then(|code| Refusal::ALL.iter().position(|c| *c == code))
            {
                refusals[place] += 1;
            }
        }
        for (counter, more) in self.by_kind.iter().zip(kinds) {
            counter.increment(more);
        }
        for (counter, more) in self.by_refusal.iter().zip(refusals) {
            counter.increment(more);
        }
    }
}

/// The code of a refusal that this booking decides. The source of a refused saga has the code as well: it is counted once, with the register.
fn refused_for_good(booking: &Booking) -> Option<Refusal> {
    match booking.kind {
        BookingKind::Rejected | BookingKind::HoldRejected | BookingKind::Refused => Some(booking.refused()?.refusal),
        _ => None,
    }
}
