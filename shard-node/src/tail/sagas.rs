//! The sagas under way whose payers live on this shard.

use std::collections::{HashMap, HashSet};

use ledger::{AccountId, AssetCode, Booking, TransferId, TransferKey, batch::UnderWay, booking::Erasure, fold};
use shard_map::SlotRange;

/// Each failed attempt at a saga doubles the pause, up to this many microseconds.
const LONGEST_PAUSE_US: i64 = 10_000_000;
/// Longer than any pause. A saga that is due later than this was written while the clock was ahead. It counts as due now; otherwise it
/// would wait without need.
const CLOCK_WENT_BACK_US: i64 = 60_000_000;
/// A saga younger than this, in microseconds, is left to the router that began it. The time is longer than the default
/// request deadline, so that recovery seldom repeats the work of a live coordinator; repeating it is harmless.
const FIRST_ATTEMPT_AFTER_US: i64 = 6_000_000;
/// Items of a batch take effect in their order, so each is left to its router for the whole request, and for this long
/// afterwards.
const FIRST_ATTEMPT_AFTER_DEADLINE_US: i64 = 1_000_000;
/// Upper bound on the deadline of a request. Clients may ask for at most 30 s.
const FIRST_ATTEMPT_AT_LAST_US: i64 = 40_000_000;

/// A saga under way.
#[derive(Debug, Clone)]
pub struct OpenSaga {
    /// The booking that began the saga: `Reserved`, or `Presumed` if nothing was reserved.
    pub first: Booking,
    pub attempts: u32,
    /// Microseconds since the epoch.
    pub next_attempt_us: i64,
}

/// The sagas under way, by transfer and by payer.
#[derive(Debug, Default)]
pub struct OpenSagas {
    by_key: HashMap<TransferKey, OpenSaga>,
    by_debit: HashMap<AccountId, OfAccount>,
}

/// The sagas of one payer.
#[derive(Debug, Default)]
struct OfAccount {
    ids: HashSet<TransferId>,
    /// What comes back if every verdict is a refusal. The credit accounts are looked up when they are needed.
    under_way: UnderWay,
}

/// What a coordinator gets to drive.
#[derive(Debug, Default)]
pub struct DueSagas {
    pub claimed: Vec<OpenSaga>,
    /// Due sagas that wait for the shards of their credit accounts.
    pub left_out: u64,
    /// When the oldest of these began, in microseconds since the epoch.
    pub oldest_left_out_us: Option<i64>,
}

/// The sagas under way, summed up.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SagaTotals {
    pub open: usize,
    /// When the oldest began, in microseconds since the epoch.
    pub oldest_us: Option<i64>,
    /// What they have reserved, by asset, in minor units.
    pub reserved: HashMap<AssetCode, i128>,
}

impl OpenSaga {
    pub fn new(first: Booking) -> Self {
        let coordinated_until_us = first.extra.as_ref().and_then(|extra| extra.first_attempt_us).unwrap_or(0);
        let next_attempt_us = first_attempt_us(first.at_us, coordinated_until_us);
        Self { first, attempts: 0, next_attempt_us }
    }

    fn pays_into(&self, slots: &[SlotRange]) -> bool {
        let Some(payee) = &self.first.payee else { return false };
        let slot = shard_map::slot_of(payee.as_str());
        slots.iter().any(|range| range.contains(slot))
    }

    pub fn is_due(&self, now_us: i64) -> bool {
        self.next_attempt_us <= now_us || self.next_attempt_us > now_us + CLOCK_WENT_BACK_US
    }
}

impl OpenSagas {
    pub fn insert(&mut self, key: TransferKey, saga: OpenSaga) {
        self.remove(&key);
        let of_account = self.by_debit.entry(key.debit.clone()).or_default();
        of_account.ids.insert(key.id);
        if let Some(reserved) = fold::reserved(&saga.first) {
            of_account.under_way.add(&reserved);
        }
        self.by_key.insert(key, saga);
    }

    /// Erases the metadata of the saga that the erasure names, if it is under way.
    pub fn erase(&mut self, erasure: &Erasure<'_>) {
        if let Erasure::Transfer(key) = erasure
            && let Some(saga) = self.by_key.get_mut(key)
        {
            saga.first.erase(erasure);
        }
    }

    pub fn remove(&mut self, key: &TransferKey) -> Option<OpenSaga> {
        let saga = self.by_key.remove(key)?;
        if let Some(of_account) = self.by_debit.get_mut(&key.debit) {
            of_account.ids.remove(&key.id);
            if let Some(reserved) = fold::reserved(&saga.first) {
                of_account.under_way.subtract(&reserved);
            }
            if of_account.ids.is_empty() {
                self.by_debit.remove(&key.debit);
            }
        }
        Some(saga)
    }

    pub fn get(&self, key: &TransferKey) -> Option<&OpenSaga> {
        self.by_key.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &OpenSaga> {
        self.by_key.values()
    }

    pub fn totals(&self) -> SagaTotals {
        let mut totals = SagaTotals { open: self.by_key.len(), ..SagaTotals::default() };
        for saga in self.by_key.values() {
            totals.oldest_us = Some(totals.oldest_us.unwrap_or(i64::MAX).min(saga.first.at_us));
            if let Some(reserved) = fold::reserved(&saga.first) {
                *totals.reserved.entry(saga.first.asset).or_default() += i128::from(reserved.amount);
            }
        }
        totals
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Drops the sagas of payers that `owns` does not know.
    pub fn retain(&mut self, owns: impl Fn(&AccountId) -> bool) {
        self.by_key.retain(|key, _| owns(&key.debit));
        self.by_debit.retain(|debit, _| owns(debit));
    }

    pub fn are_of(&self, debit: &AccountId) -> bool {
        self.by_debit.contains_key(debit)
    }

    /// The reserved money that may come back to an account; `None`: nothing.
    pub fn under_way(&self, debit: &AccountId) -> Option<UnderWay> {
        let of_account = self.by_debit.get(debit).filter(|of_account| of_account.under_way.posted > 0)?;
        let mut under_way = UnderWay::default();
        let key = |id: &TransferId| TransferKey { id: *id, debit: debit.clone() };
        let sagas = of_account.ids.iter().filter_map(|id| self.by_key.get(&key(id)));
        for reserved in sagas.filter_map(|saga| fold::reserved(&saga.first)).take(UnderWay::MOST_CREDITS) {
            under_way.add(&reserved);
        }
        let UnderWay { posted, available, .. } = of_account.under_way;
        Some(UnderWay { posted, available, ..under_way })
    }

    /// As [`super::Tail::claim_due`].
    pub fn claim_due(&mut self, now_us: i64, limit: usize, left_out: &[SlotRange]) -> DueSagas {
        let mut found = DueSagas::default();
        let mut due: Vec<&mut OpenSaga> = Vec::new();
        for saga in self.by_key.values_mut().filter(|saga| saga.is_due(now_us)) {
            if !left_out.is_empty() && saga.pays_into(left_out) {
                found.left_out += 1;
                found.oldest_left_out_us = Some(found.oldest_left_out_us.unwrap_or(i64::MAX).min(saga.first.at_us));
            } else {
                due.push(saga);
            }
        }
        due.sort_unstable_by_key(|saga| saga.first.position);
        due.truncate(limit);
        for saga in due {
            let pause = 1_000_000_i64.saturating_mul(1 << saga.attempts.min(20)).min(LONGEST_PAUSE_US);
            saga.attempts += 1;
            saga.next_attempt_us = now_us + pause;
            found.claimed.push(saga.clone());
        }
        found
    }

    /// Makes the sagas of one id due at once.
    pub fn retry_now(&mut self, id: TransferId, now_us: i64) {
        for (_, saga) in self.by_key.iter_mut().filter(|(key, _)| key.id == id) {
            saga.next_attempt_us = now_us;
        }
    }
}

fn first_attempt_us(created_at_us: i64, coordinated_until_us: i64) -> i64 {
    let (earliest, latest) = (created_at_us + FIRST_ATTEMPT_AFTER_US, created_at_us + FIRST_ATTEMPT_AT_LAST_US);
    coordinated_until_us.saturating_add(FIRST_ATTEMPT_AFTER_DEADLINE_US).clamp(earliest, latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_waits_for_the_router_of_a_batch() {
        const S: i64 = 1_000_000;
        for (coordinated_until, first_attempt) in
            [(0, 106 * S), (101 * S, 106 * S), (105 * S, 106 * S), (130 * S, 131 * S), (i64::MAX, 140 * S)]
        {
            assert_eq!(first_attempt_us(100 * S, coordinated_until), first_attempt, "{coordinated_until}");
        }
    }
}
