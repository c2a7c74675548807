//! What slots come to: the sums that both shards compare, and that are booked when the slots change hands. No I/O.

use std::collections::BTreeMap;

use super::scope::Part;

/// What slots come to at one position. The source keeps the sums of the last verification, and releases only what it has summed up.
#[derive(Debug, Clone)]
pub struct Verified {
    /// `posted` and `shares` are as of this position.
    pub position: i64,
    /// As of the last verification.
    pub bookings: BookingsDigest,
    /// By asset, in minor units: what the accounts hold, and the in-transit shares.
    pub posted: BTreeMap<String, i128>,
    pub shares: BTreeMap<String, i128>,
}

/// What the slots come to at one position.
#[derive(Debug)]
pub struct Summed {
    pub verified: Verified,
    pub slots: Vec<wire::SlotSum>,
    /// Of one slot, if it was asked for.
    pub accounts: Vec<wire::AccountState>,
    pub holds: wire::HoldsSum,
}

/// What a journal has about the slots: the sums over its bookings, and the in-transit shares by asset, in minor units.
#[derive(Debug, Default)]
pub struct JournalSums {
    pub bookings: BookingsDigest,
    pub shares: BTreeMap<String, i128>,
}

impl JournalSums {
    /// The sums of an earlier verification, and the ranges of positions (after, up to) that are still to be added so that they reach `position`. Without
    /// an earlier one, these are the journal of the shard `number` and the parts that have come from other shards.
    pub fn to_complete(before: Option<Verified>, number: u16, position: i64) -> (Self, Vec<(i64, i64)>) {
        let own = Part::own(number);
        let Some(Verified { bookings, shares, position: reached, .. }) = before else {
            let parts = [0, 1].into_iter().filter_map(|part| Part::of(part, number));
            let foreign = parts.map(|part| (part.after, part.last));
            return (Self::default(), foreign.chain([(own.after, position)]).collect());
        };
        (Self { bookings, shares }, vec![(reached, position)])
    }

    /// Adds the sums over a range.
    pub fn add(&mut self, bookings: &BookingsDigest, shares: impl IntoIterator<Item = (String, i128)>) {
        self.bookings.add(bookings);
        for (asset, share) in shares {
            *self.shares.entry(asset).or_default() += share;
        }
    }
}

/// Sums over bookings, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BookingsDigest {
    pub count: i64,
    pub positions: i128,
    pub amounts: i128,
    pub times: i128,
    pub balances: i128,
    /// Hashes of the names of keys, each with its booking's position.
    pub names: i128,
}

impl Summed {
    /// Sums the accounts of each asset up over the slots.
    pub fn of(
        position: i64,
        JournalSums { bookings, shares }: JournalSums,
        slots: Vec<wire::SlotSum>,
        accounts: Vec<wire::AccountState>,
        holds: wire::HoldsSum,
    ) -> Self {
        let mut posted: BTreeMap<String, i128> = BTreeMap::new();
        for sum in &slots {
            let of_slot: i128 = sum.posted.parse().unwrap_or_default();
            *posted.entry(sum.asset.clone()).or_default() += of_slot;
        }
        Self { verified: Verified { position, bookings, posted, shares }, slots, accounts, holds }
    }
}

impl BookingsDigest {
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.positions += other.positions;
        self.amounts += other.amounts;
        self.times += other.times;
        self.balances += other.balances;
        self.names += other.names;
    }
}

impl Verified {
    /// The sums by asset, for the wire. Assets whose sums are zero are left out: one side may never have seen the asset.
    pub fn assets(&self) -> Vec<wire::MoveAssetSum> {
        let is_not_zero = |sum: &wire::MoveAssetSum| sum.posted != "0" || sum.shares != "0";
        self.all_assets().into_iter().filter(is_not_zero).collect()
    }

    /// The sums of every asset that was seen.
    pub fn all_assets(&self) -> Vec<wire::MoveAssetSum> {
        let assets: std::collections::BTreeSet<&String> = self.posted.keys().chain(self.shares.keys()).collect();
        let sum = |sums: &BTreeMap<String, i128>, asset: &String| sums.get(asset).copied().unwrap_or(0).to_string();
        assets
            .into_iter()
            .map(|asset| wire::MoveAssetSum {
                asset: asset.clone(),
                posted: sum(&self.posted, asset),
                shares: sum(&self.shares, asset),
            })
            .collect()
    }

    /// Takes in a booking that was appended since.
    pub fn add(&mut self, booking: &ledger::Booking, is_of_slots: impl Fn(&ledger::AccountId) -> bool) {
        for (party, id, _) in booking.legs() {
            if is_of_slots(id)
                && let Some(change) = booking.change(party)
            {
                *self.posted.entry(booking.asset.to_string()).or_default() += i128::from(change.posted);
            }
        }
        if booking.owner().is_some_and(is_of_slots) {
            let share = i128::from(booking.in_transit_change());
            if share != 0 {
                *self.shares.entry(booking.asset.to_string()).or_default() += share;
            }
        }
        self.position = self.position.max(booking.position.0);
    }
}

impl From<&BookingsDigest> for wire::BookingsDigest {
    fn from(digest: &BookingsDigest) -> Self {
        Self {
            count: digest.count,
            positions: digest.positions.to_string(),
            amounts: digest.amounts.to_string(),
            times: digest.times.to_string(),
            balances: digest.balances.to_string(),
            names: digest.names.to_string(),
        }
    }
}
