//! What one shard's journal says about sagas, collected booking by booking for the comparison between shards.
//!
//! The journal is immutable, so a position is as good as a snapshot. On every shard, three positions are fixed one after
//! the other: `early` on all shards, then `end` on all shards, then `late` on all shards. The books are those up to `end`.
//! Registers up to `early` are the early verdicts of [`super::sagas`], those between `early` and `late` the late ones.

use std::collections::HashMap;

use ledger::{Booking, BookingKind, Position};
use shard_database::OwnedSlots;
use twox_hash::XxHash3_64;

use super::{
    between_shards::InTransit,
    sagas::{Comparison, Reserve, ReserveState, SagaKey, SagaVerdict, ShardIndex},
};

/// The positions of one shard that the comparison depends on.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    pub early: Position,
    pub end: Position,
    pub late: Position,
}

#[derive(Debug)]
pub struct SagaBookings {
    shard_number: u16,
    owned: OwnedSlots,
    cuts: Cuts,
    under_way: HashMap<SagaKey, Reserve>,
    finished: Vec<Reserve>,
    early: Vec<SagaVerdict>,
    late: Vec<SagaVerdict>,
    in_transit: InTransit,
}

impl SagaBookings {
    pub fn new(shard_number: u16, owned: OwnedSlots, cuts: Cuts) -> Self {
        Self {
            shard_number,
            owned,
            cuts,
            under_way: HashMap::new(),
            finished: Vec::new(),
            early: Vec::new(),
            late: Vec::new(),
            in_transit: InTransit::new(),
        }
    }

    /// Takes in the bookings up to the late position, in the order of their positions. A booking counts at the shard that owns the slot of
    /// the booking's owner, because a move leaves copies behind. Bookings that came with a move existed before the three positions were
    /// fixed.
    pub fn take(&mut self, booking: &Booking) {
        if !self.owned.answers_for(booking, self.shard_number) {
            return;
        }
        let is_own = booking.position.shard_number() == self.shard_number;
        let position = if is_own { booking.position } else { Position::NONE };
        if let BookingKind::Credited | BookingKind::Refused = booking.kind
            && let Some((key, content)) = identity(booking)
        {
            let verdict = SagaVerdict { key, content, credited: booking.kind == BookingKind::Credited };
            let verdicts = if position <= self.cuts.early { &mut self.early } else { &mut self.late };
            verdicts.push(verdict);
        }
        if position > self.cuts.end {
            return;
        }
        let share = booking.in_transit_share();
        if share != 0 {
            *self.in_transit.entry(booking.asset.to_string()).or_default() += i128::from(share);
        }
        let state = match booking.kind {
            BookingKind::Reserved | BookingKind::Presumed => ReserveState::Pending,
            BookingKind::Settled => ReserveState::Posted,
            BookingKind::Compensated | BookingKind::SettledRefused => ReserveState::Rejected,
            _ => return,
        };
        let Some((key, content)) = identity(booking) else { return };
        if state == ReserveState::Pending {
            self.under_way.insert(key, Reserve { key, content, state });
        } else if let Some(begun) = self.under_way.remove(&key) {
            self.finished.push(Reserve { state, ..begun });
        }
    }

    /// Whether no verdict was given between the early and the late position.
    pub fn is_quiet(&self) -> bool {
        self.late.is_empty()
    }

    pub fn add_early_verdicts(&mut self, comparison: &mut Comparison, shard: ShardIndex) {
        self.early.drain(..).for_each(|verdict| comparison.early_verdict(shard, verdict));
    }

    pub fn add_reserves(&mut self, comparison: &mut Comparison, shard: ShardIndex) {
        let all = self.finished.drain(..).chain(self.under_way.drain().map(|(_, reserve)| reserve));
        all.for_each(|reserve| comparison.reserve(shard, reserve));
    }

    pub fn add_late_verdicts(&mut self, comparison: &mut Comparison, shard: ShardIndex) {
        self.late.drain(..).for_each(|verdict| comparison.late_verdict(shard, verdict));
    }

    pub fn add_in_transit(&self, sums: &mut InTransit) {
        for (asset, sum) in &self.in_transit {
            *sums.entry(asset.clone()).or_default() += sum;
        }
    }
}

/// The key of a saga, and a hash of what both of its shards must agree on.
fn identity(booking: &Booking) -> Option<(SagaKey, i64)> {
    let debit = hash(booking.payer.as_str());
    let payee = booking.payee.as_ref()?;
    let content = hash(&format!("{payee} {} {}", booking.asset, booking.amount));
    Some((SagaKey { id: booking.id?.0, debit }, content))
}

fn hash(text: &str) -> i64 {
    XxHash3_64::oneshot(text.as_bytes()).cast_signed()
}

#[cfg(test)]
mod tests {
    use ledger::{AccountId, AssetCode, TransferId};
    use uuid::Uuid;

    use super::*;
    use crate::verify::report::{Invariant, SagaCounts};

    fn booking(shard: u16, sequence: i64, kind: BookingKind) -> Booking {
        Booking {
            ordered_by: None,
            position: Position(Position::first_of(shard).0 + sequence - 1),
            kind,
            id: Some(TransferId(Uuid::from_u128(1))),
            payer: AccountId::client("payer").unwrap(),
            payee: Some(AccountId::client("payee").unwrap()),
            asset: AssetCode::new("USD").unwrap(),
            amount: 5,
            at_us: 0,
            payer_leg: None,
            payee_leg: None,
            extra: None,
        }
    }

    /// Compares the bookings of s0 and s1, each with its sequence. The three positions are 10, 20 and 30.
    fn compare(bookings: &[(u16, i64, BookingKind)]) -> (SagaCounts, Vec<Invariant>, bool, InTransit) {
        let mut shards: Vec<SagaBookings> = [0, 1]
            .map(|number| {
                let at = |sequence| booking(number, sequence, BookingKind::Marker).position;
                let payer_or_payee = ["payer", "payee"].map(|id| shard_map::slot_of(id).index());
                let owned = OwnedSlots::new(1, payer_or_payee);
                SagaBookings::new(number, owned, Cuts { early: at(10), end: at(20), late: at(30) })
            })
            .into();
        for (shard, sequence, kind) in bookings {
            shards[usize::from(*shard)].take(&booking(*shard, *sequence, *kind));
        }
        let mut comparison = Comparison::new(vec!["s0".to_owned(), "s1".to_owned()]);
        let quiet = shards.iter().all(SagaBookings::is_quiet);
        let mut sums = InTransit::new();
        shards.iter().for_each(|shard| shard.add_in_transit(&mut sums));
        shards.iter_mut().enumerate().for_each(|(index, shard)| shard.add_early_verdicts(&mut comparison, index));
        shards.iter_mut().enumerate().for_each(|(index, shard)| shard.add_reserves(&mut comparison, index));
        shards.iter_mut().enumerate().for_each(|(index, shard)| shard.add_late_verdicts(&mut comparison, index));
        let (counts, findings) = comparison.finish();
        (counts, findings.invariants(), quiet, sums)
    }

    #[test]
    fn positions_stand_for_snapshots() {
        use BookingKind::{Compensated, Credited, Presumed, Refused, Reserved, Settled, SettledRefused};
        let none = SagaCounts::default();
        let finished = SagaCounts { finished: 1, ..none };
        let undecided = SagaCounts { undecided: 1, ..none };
        for (bookings, counts, violated, quiet, in_transit) in [
            (&[(0, 1, Reserved), (1, 1, Credited), (0, 2, Settled)][..], finished, &[][..], true, 0),
            (&[(0, 1, Reserved), (1, 1, Refused), (0, 2, Compensated)], finished, &[], true, 0),
            (&[(0, 1, Presumed), (1, 1, Refused), (0, 2, SettledRefused)], finished, &[], true, 0),
            // The saga was decided between the early position and the end.
            (&[(0, 1, Reserved), (1, 15, Credited), (0, 15, Settled)], finished, &[], false, 0),
            (&[(0, 1, Reserved), (1, 15, Credited), (0, 25, Settled)], undecided, &[], false, 0),
            // The saga was decided beyond the end of its shard, but before the end of the source.
            (&[(0, 1, Reserved), (1, 25, Credited), (0, 15, Settled)], finished, &[], false, 5),
            (&[(0, 25, Reserved), (1, 25, Credited)], none, &[], false, 0),
            (&[(0, 1, Reserved), (1, 1, Credited)], SagaCounts { credited_not_settled: 1, ..none }, &[], true, 0),
            (&[(1, 1, Credited)], none, &[Invariant::SagasUnderWay], true, -5),
            (&[(0, 1, Reserved), (0, 2, Settled)], none, &[Invariant::SettledOnce], true, 5),
            (&[(0, 1, Reserved), (1, 1, Credited), (0, 2, Compensated)], none, &[Invariant::SettledOnce], true, -5),
            (
                &[(0, 1, Presumed), (1, 1, Credited), (0, 2, SettledRefused)],
                none,
                &[Invariant::SettledOnce],
                true,
                -5,
            ),
        ] {
            let (found_counts, found, found_quiet, sums) = compare(bookings);
            assert_eq!((found_counts, found.as_slice(), found_quiet), (counts, violated, quiet), "{bookings:?}");
            assert_eq!(sums.get("USD").copied().unwrap_or_default(), in_transit, "{bookings:?}");
        }
    }

    #[test]
    fn a_copy_that_a_move_left_behind_counts_nowhere() {
        let cuts = Cuts { early: Position(i64::MAX), end: Position(i64::MAX), late: Position(i64::MAX) };
        let payer = shard_map::slot_of("payer").index();
        for (owned, expected) in [(vec![payer], 5), (vec![], 0)] {
            let mut shard = SagaBookings::new(1, OwnedSlots::new(1, owned), cuts);
            shard.take(&booking(0, 1, BookingKind::Reserved));
            assert_eq!(shard.in_transit.get("USD").copied().unwrap_or_default(), expected);
        }
    }
}
