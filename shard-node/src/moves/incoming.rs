//! What a target makes of the bookings that come: the rows of accounts, holds and sagas of the slots. The lane does not touch them,
//! because the shard does not own the slots yet. No I/O.
//!
//! Bookings become rows through the fold of `ledger`, as everywhere. A row that is ahead of the bookings, because it was copied later
//! than they were written, skips those that it includes.

use std::collections::{HashMap, HashSet};

use ledger::{
    Account, AccountId, Booking, BookingKind, Hold, HoldKey, Position, TransferKey,
    booking::Role,
    fold::{self, SagaChange},
};
use shard_map::SlotRange;

use super::{
    error::MoveError,
    progress::{AssetSum, Progress},
    scope::contains,
    sums::Verified,
};
use crate::store::StoreError;

/// The sums over what has come, kept up to date with each page.
#[derive(Debug, Clone)]
pub struct Incoming {
    slots: Vec<SlotRange>,
    pub sums: Verified,
    /// The newest time of an account, in microseconds since the epoch.
    pub newest_us: i64,
}

/// What a page does to the rows of the slots.
#[derive(Debug, Default)]
pub struct Changes {
    pub opened: Vec<Account>,
    pub updated: Vec<Account>,
    /// The positions of the first bookings of sagas that began and are under way, and the sagas that began before the page and have ended.
    pub begun: Vec<i64>,
    pub ended: Vec<TransferKey>,
    pub holds: HoldChanges,
}

/// What a page does to the rows of holds. A hold that is placed and ends in one page leaves no row.
#[derive(Debug, Default)]
pub struct HoldChanges {
    /// With the positions of their first bookings.
    pub placed: Vec<(HoldKey, Position, Hold)>,
    /// Holds that have a row, and still have one after the page.
    pub changed: Vec<(HoldKey, Hold)>,
    pub ended: Vec<HoldKey>,
}

impl Incoming {
    /// The sums over what is in the tables.
    pub fn summed(slots: &[SlotRange], sums: Verified, newest_us: i64) -> Self {
        Self { slots: slots.to_vec(), sums, newest_us }
    }

    /// The sums as the progress has them; `None` if it has none yet.
    pub fn of(slots: &[SlotRange], progress: &Progress) -> Option<Self> {
        if !progress.is_summed {
            return None;
        }
        let sums = |of: fn(&AssetSum) -> &str| {
            let parsed = |sum: &AssetSum| (sum.asset.clone(), of(sum).parse().unwrap_or_default());
            progress.sums.iter().map(parsed).collect()
        };
        let (posted, shares) = (sums(|sum| &sum.posted), sums(|sum| &sum.shares));
        let sums = Verified { position: progress.after, bookings: Default::default(), posted, shares };
        Some(Self { slots: slots.to_vec(), sums, newest_us: progress.newest_us })
    }

    /// Writes the sums into the progress, which is stored with the page that has changed them.
    pub fn write_to(&self, progress: &mut Progress) {
        progress.sums = self.sums.all_assets().iter().map(AssetSum::from).collect();
        progress.newest_us = self.newest_us;
        progress.is_summed = true;
    }

    /// Everything up to this position of the source has come. Writes the sums into the progress.
    pub fn reach(&mut self, position: i64, progress: &mut Progress) {
        self.sums.position = position;
        self.write_to(progress);
    }

    /// The accounts of the slots that a page has legs of, whose rows [`Incoming::apply`] needs.
    pub fn accounts_of(&self, bookings: &[Booking]) -> Vec<AccountId> {
        let mut ids: Vec<AccountId> = Vec::new();
        for booking in bookings {
            let legs = booking.legs().filter(|(_, id, _)| contains(&self.slots, id));
            ids.extend(legs.map(|(_, id, _)| id.clone()));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The holds of the slots that a page is about, whose rows [`Incoming::apply`] needs.
    pub fn holds_of(&self, progress: &Progress, bookings: &[Booking]) -> Vec<HoldKey> {
        self.of_holds(progress, bookings).map(|(key, _)| key).collect()
    }

    fn of_holds<'b>(
        &'b self,
        progress: &'b Progress,
        bookings: &'b [Booking],
    ) -> impl Iterator<Item = (HoldKey, &'b Booking)> {
        let is_new = |booking: &&Booking| booking.position.0 > progress.holds_at;
        let of_holds = bookings.iter().filter(is_new).filter_map(|booking| Some((fold::hold_key(booking)?, booking)));
        of_holds.filter(|(key, _)| contains(&self.slots, &key.debit))
    }

    /// Applies the bookings of a page to the rows that are there: of the accounts and the holds that it needs.
    ///
    /// # Errors
    /// When a booking does not continue a row.
    pub fn apply(
        &mut self,
        progress: &Progress,
        bookings: &[Booking],
        accounts: Vec<Account>,
        holds: HashMap<HoldKey, Hold>,
    ) -> Result<Changes, MoveError> {
        let mut accounts: HashMap<AccountId, Account> =
            accounts.into_iter().map(|account| (account.id.clone(), account)).collect();
        let mut changed: HashSet<AccountId> = HashSet::new();
        let mut opened: HashSet<AccountId> = HashSet::new();
        let mut sagas = Sagas::default();
        for booking in bookings {
            self.newest_us = self.newest_us.max(booking.at_us);
            let is_owner = booking.owner().is_some_and(|owner| contains(&self.slots, owner));
            if is_owner {
                self.add_share(booking);
                if booking.position.0 > progress.sagas_at {
                    sagas.apply(booking);
                }
            }
            if booking.kind == BookingKind::Opened {
                if is_owner && !accounts.contains_key(&booking.payer) {
                    let account = fold::open_account(booking).map_err(StoreError::from)?;
                    opened.insert(account.id.clone());
                    accounts.insert(account.id.clone(), account);
                }
                continue;
            }
            for (party, id, _) in booking.legs().filter(|(_, id, _)| contains(&self.slots, id)) {
                let account = accounts.get_mut(id).ok_or_else(|| {
                    let what =
                        format!("booking {} has a leg of account {id}, which did not come", booking.position.0);
                    StoreError::Corrupt(what)
                })?;
                let before = account.posted;
                if fold::apply_leg(account, booking, party).map_err(StoreError::from)? {
                    changed.insert(id.clone());
                    let change = i128::from(account.posted) - i128::from(before);
                    *self.sums.posted.entry(booking.asset.to_string()).or_default() += change;
                }
            }
        }
        changed.retain(|id| !opened.contains(id));
        let holds = self.apply_to_holds(progress, bookings, holds)?;
        let mut changes =
            Changes { begun: sagas.begun.into_values().collect(), ended: sagas.ended, holds, ..Changes::default() };
        for (id, account) in accounts {
            if opened.contains(&id) {
                changes.opened.push(account);
            } else if changed.contains(&id) {
                changes.updated.push(account);
            }
        }
        Ok(changes)
    }

    fn add_share(&mut self, booking: &Booking) {
        let share = i128::from(booking.in_transit_change());
        if share != 0 {
            *self.sums.shares.entry(booking.asset.to_string()).or_default() += share;
        }
    }

    fn apply_to_holds(
        &self,
        progress: &Progress,
        bookings: &[Booking],
        mut open: HashMap<HoldKey, Hold>,
    ) -> Result<HoldChanges, MoveError> {
        let (mut placed, mut changed) = (HashMap::<HoldKey, Position>::new(), HashSet::new());
        let mut ended = Vec::new();
        for (key, booking) in self.of_holds(progress, bookings) {
            if booking.kind.role() == Role::Hold {
                if booking.kind == BookingKind::HoldPlaced {
                    let hold = fold::place_hold(booking).map_err(StoreError::from)?;
                    placed.insert(key.clone(), booking.position);
                    open.insert(key, hold);
                }
                continue;
            }
            let hold = open.get_mut(&key).ok_or_else(|| {
                let what = format!("booking {} is about hold {}, which did not come", booking.position.0, key.id.0);
                StoreError::Corrupt(what)
            })?;
            fold::apply_to_hold(hold, booking).map_err(StoreError::from)?;
            if booking.kind.ends_hold() {
                open.remove(&key);
                changed.remove(&key);
                if placed.remove(&key).is_none() {
                    ended.push(key);
                }
            } else if !placed.contains_key(&key) {
                changed.insert(key);
            }
        }
        let now = |key: &HoldKey| {
            let hold = open.get(key).cloned();
            hold.ok_or_else(|| StoreError::Corrupt(format!("hold {} is lost in a page", key.id.0)))
        };
        let placed = placed.into_iter().map(|(key, position)| now(&key).map(|hold| (key, position, hold)));
        let placed = placed.collect::<Result<_, StoreError>>()?;
        let changed = changed.into_iter().map(|key| now(&key).map(|hold| (key, hold)));
        Ok(HoldChanges { placed, changed: changed.collect::<Result<_, StoreError>>()?, ended })
    }
}

#[derive(Default)]
struct Sagas {
    begun: HashMap<TransferKey, i64>,
    ended: Vec<TransferKey>,
}

impl Sagas {
    fn apply(&mut self, booking: &Booking) {
        match fold::saga_change(booking) {
            Some(SagaChange::Begun(key)) => {
                self.begun.insert(key, booking.position.0);
            }
            Some(SagaChange::Ended(key)) if self.begun.remove(&key).is_none() => self.ended.push(key),
            Some(SagaChange::Ended(_)) | None => {}
        }
    }
}
