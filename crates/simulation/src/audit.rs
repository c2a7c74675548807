//! What must be true of a cluster at the end of a run: of the books, and of what the clients were told.

use std::collections::{BTreeMap, BTreeSet};

use ledger::{AccountId, TransferId, TransferKey, account::available, booking::Role};
use shard_node::simulation::ShardDatabase;

use crate::{
    cluster::Cluster,
    record::{Answer, Moment, Order, Record},
    trace,
};

/// Balances of every account at one moment.
pub fn balances(cluster: &Cluster) -> BTreeMap<AccountId, i64> {
    let accounts = cluster.databases().flat_map(|database| database.fold().0);
    accounts.filter(|account| !account.id.is_system()).map(|account| (account.id, account.posted)).collect()
}

/// Compares the books with what the clients were told. `before` is what the accounts had at the beginning.
///
/// # Errors
/// The first finding.
pub fn audit(cluster: &Cluster, before: &BTreeMap<AccountId, i64>, records: &[Record]) -> Result<(), String> {
    let mut in_transit = 0;
    for database in cluster.databases() {
        let (accounts, under_way) = database.fold();
        if under_way > 0 {
            return Err(format!("{under_way} sagas are under way"));
        }
        in_transit +=
            accounts.iter().filter(|account| account.id.is_system()).map(|account| account.posted).sum::<i64>();
        for booking in database.bookings() {
            for (_, id, leg) in booking.legs() {
                if available(leg.posted, leg.held, leg.overdraft).is_some_and(|available| available < 0) {
                    return Err(format!("INV-10: {id} was overdrawn by {booking:?}"));
                }
            }
        }
    }
    if in_transit != 0 {
        return Err(format!("INV-1: {in_transit} is in transit, and no saga is under way"));
    }
    what_was_not_executed_has_no_effect(cluster, records)?;
    nothing_begins_after_its_time_limit(cluster, records)?;
    what_was_answered_is_what_the_accounts_have(cluster, before, records)?;
    nothing_is_taken_twice(records)
}

/// `executed: false` never has an effect.
fn what_was_not_executed_has_no_effect(cluster: &Cluster, records: &[Record]) -> Result<(), String> {
    let bookings = cluster.databases().flat_map(|database| database.bookings());
    let keys: BTreeSet<(TransferId, String)> = bookings
        .filter_map(|booking| booking.key())
        .map(|TransferKey { id, debit }| (id, debit.to_string()))
        .collect();
    for record in records.iter().filter(|record| record.is_abandoned && !record.is_doubtful) {
        let debit = match &record.order {
            Order::Transfer(order) => &order.debit,
            Order::Hold(place) => &place.debit,
            // The hold is there all the same.
            Order::Release(_) => continue,
        };
        if keys.contains(&(record.id(), debit.to_string())) {
            return Err(format!("the client was told that nothing was executed: {record:?}"));
        }
    }
    Ok(())
}

/// How far a router may be wrong about a node's clock, in microseconds: the longest usual exchange with it, and the rounding of limits.
const CLOCK_ERROR_US: Moment = 500_000;

/// A first booking falls between an attempt and its deadline.
fn nothing_begins_after_its_time_limit(cluster: &Cluster, records: &[Record]) -> Result<(), String> {
    let mut limits: BTreeMap<(TransferId, &AccountId), &Record> = BTreeMap::new();
    for record in records {
        match &record.order {
            Order::Transfer(order) => limits.insert((order.id, &order.debit), record),
            Order::Hold(place) => limits.insert((place.id, &place.debit), record),
            Order::Release(_) => None,
        };
    }
    for booking in cluster.databases().flat_map(ShardDatabase::bookings) {
        let Some(TransferKey { id, debit }) =
            booking.key().filter(|_| matches!(booking.kind.role(), Role::Transfer | Role::Hold))
        else {
            continue;
        };
        let Some(record) = limits.get(&(id, &debit)) else { continue };
        let at = trace::since_begin(booking.at_us);
        // Of two events in one microsecond, the later one has a later moment.
        let is_within = |(sent, deadline): &(Moment, Moment)| at + 1_000 >= *sent && at <= *deadline + CLOCK_ERROR_US;
        if !record.limits.iter().any(is_within) {
            return Err(format!("booked at {at} us, outside of the time limits of its attempts: {record:?}"));
        }
    }
    Ok(())
}

/// Each account has what it had, and what the posted transfers moved: none is missing, and none counts twice.
fn what_was_answered_is_what_the_accounts_have(
    cluster: &Cluster,
    before: &BTreeMap<AccountId, i64>,
    records: &[Record],
) -> Result<(), String> {
    // Only the ledger knows whether these took effect.
    if records.iter().any(|record| record.answer.is_none() && record.is_doubtful) {
        return Ok(());
    }
    let mut expected = before.clone();
    for (order, amount) in records.iter().filter_map(Record::posted) {
        *expected.entry(order.debit.clone()).or_default() -= amount;
        *expected.entry(order.credit.clone()).or_default() += amount;
    }
    for (account, posted) in balances(cluster) {
        let told = expected.get(&account).copied().unwrap_or_default();
        if told != posted {
            return Err(format!("{account} has {posted}, and by the answers it would have {told}"));
        }
    }
    Ok(())
}

/// No more is captured than was held, and no more reversed than was paid.
fn nothing_is_taken_twice(records: &[Record]) -> Result<(), String> {
    let mut taken: BTreeMap<TransferId, i64> = BTreeMap::new();
    for (order, amount) in records.iter().filter_map(Record::posted) {
        let from = order.purpose.captured_hold().or(order.purpose.reversed_transfer());
        if let Some(from) = from {
            *taken.entry(from).or_default() += amount;
        }
    }
    for record in records {
        let most = match (&record.order, &record.answer) {
            (Order::Hold(place), Some(Answer::Hold(_))) => place.amount,
            (Order::Transfer(_), Some(Answer::Transfer(answer))) => answer.amount,
            _ => continue,
        };
        let taken = taken.get(&record.id()).copied().unwrap_or(0);
        if taken > most {
            return Err(format!("{taken} was captured or reversed of {most}: {record:?}"));
        }
    }
    Ok(())
}
