//! Whether every read of a run shows what was there between its question and its answer.
//!
//! The journal has a leg for each version of each account. A read of an account must show the balances of the leg with the version that it
//! shows. It must include everything that was acknowledged before the question, and nothing that was sent after the answer. Transfers and holds
//! have no version: what they show must agree with the answers, and must not go back.

use std::collections::{BTreeMap, HashMap};

use ledger::{
    AccountId, Booking, Hold, HoldStatus, TransferId,
    booking::Role,
    outcome::{TransferAnswer, TransferState},
};

use crate::{
    reader::{Named, Read, Shown, ShownAccount, ShownTransfer, describe},
    record::{Answer, Moment, Order, Record},
};

/// The legs of accounts, and the bookings of each order.
struct Journal {
    legs: BTreeMap<(AccountId, i64), (i64, i64)>,
    /// The versions that the first booking of an order and its register gave to accounts.
    versions: HashMap<(TransferId, AccountId), Vec<(AccountId, i64)>>,
}

impl Journal {
    fn of(bookings: &[Booking]) -> Self {
        let mut journal = Self { legs: BTreeMap::new(), versions: HashMap::new() };
        for booking in bookings {
            for (_, id, leg) in booking.legs() {
                journal.legs.insert((id.clone(), leg.version), (leg.posted, leg.held));
                let is_of_order = matches!(booking.kind.role(), Role::Transfer | Role::Register | Role::Hold);
                if let Some(key) = booking.key().filter(|_| is_of_order) {
                    journal.versions.entry((key.id, key.debit)).or_default().push((id.clone(), leg.version));
                }
            }
        }
        journal
    }
}

/// Compares what reads showed with the journals and with what clients were told.
///
/// # Errors
/// The first finding.
pub fn check(bookings: &[Booking], records: &[Record], reads: &[Read]) -> Result<(), String> {
    let journal = Journal::of(bookings);
    let wrong = |read: &Read, why: String| {
        let Read { invoked, returned, shown } = read;
        format!("INV-12: a read of {invoked} to {returned} us is wrong: {}: {why}", describe(shown))
    };
    for read in reads {
        let verdict = match &read.shown {
            Shown::Account(id, shown) => account(&journal, records, read, id, *shown),
            Shown::Transfer(named, shown) => transfer(records, read, named, shown.as_ref()),
            Shown::Hold(named, shown) => hold(records, read, named, shown.as_ref()),
        };
        verdict.map_err(|why| wrong(read, why))?;
    }
    for later in reads {
        let earlier = reads.iter().filter(|earlier| earlier.returned < later.invoked);
        if let Some(earlier) = earlier.clone().find(|earlier| goes_back(&earlier.shown, &later.shown)) {
            return Err(wrong(later, format!("an earlier read showed {}", describe(&earlier.shown))));
        }
    }
    Ok(())
}

/// Whether the client had the answer to an order at this moment. What is read later includes the order.
fn is_acknowledged_before(record: &Record, moment: Moment) -> bool {
    record.returned.is_some_and(|returned| returned < moment)
}

fn has_effect(record: &Record) -> bool {
    record.posted().is_some() || matches!(&record.answer, Some(Answer::Hold(answer)) if answer.refused.is_none())
}

fn debit_of(record: &Record) -> Option<&AccountId> {
    match &record.order {
        Order::Transfer(transfer) => Some(&transfer.debit),
        Order::Hold(place) => Some(&place.debit),
        Order::Release(_) => None,
    }
}

fn account(
    journal: &Journal,
    records: &[Record],
    read: &Read,
    id: &AccountId,
    ShownAccount { version, posted, held }: ShownAccount,
) -> Result<(), String> {
    match journal.legs.get(&(id.clone(), version)) {
        None => return Err("the journal has no such version".to_owned()),
        Some(leg) if *leg != (posted, held) => return Err(format!("the journal has (posted, held) {leg:?} there")),
        Some(_) => {}
    }
    for record in records.iter().filter(|record| has_effect(record)) {
        let Some(debit) = debit_of(record) else { continue };
        let versions = journal.versions.get(&(record.id(), debit.clone()));
        for (_, of_order) in versions.into_iter().flatten().filter(|(account, _)| account == id) {
            if is_acknowledged_before(record, read.invoked) && version < *of_order {
                return Err(format!("version {of_order} was acknowledged before: {record:?}"));
            }
            if record.sent.is_some_and(|sent| sent > read.returned) && version >= *of_order {
                return Err(format!("version {of_order} was ordered afterwards: {record:?}"));
            }
        }
    }
    Ok(())
}

/// The record of what a read is about. The order of the same id with another amount has none.
fn of<'r>(records: &'r [Record], named: &Named) -> Option<&'r Record> {
    records.iter().find(|record| {
        record.id() == named.id
            && debit_of(record) == Some(&named.debit)
            && matches!(record.order, Order::Hold(_)) == named.is_hold
    })
}

fn transfer(records: &[Record], read: &Read, named: &Named, shown: Option<&ShownTransfer>) -> Result<(), String> {
    let Some(record) = of(records, named) else { return Ok(()) };
    let Some(shown) = shown else {
        return match is_acknowledged_before(record, read.invoked) {
            true => Err(format!("it was acknowledged before: {record:?}")),
            false => Ok(()),
        };
    };
    if record.sent.is_some_and(|sent| sent > read.returned) {
        return Err(format!("it was ordered afterwards: {record:?}"));
    }
    let Some(Answer::Transfer(TransferAnswer { state, amount, cross_shard, .. })) = &record.answer else {
        return Ok(());
    };
    let is_pending = shown.status == u32::from(TransferState::PENDING);
    if is_pending {
        // The source learns the verdict after the client.
        return match !cross_shard && is_acknowledged_before(record, read.invoked) {
            true => Err(format!("it had ended: {record:?}")),
            false => Ok(()),
        };
    }
    let refusal = state.refused().map_or(0, |refused| u32::from(refused.refusal.code()));
    if (shown.status, shown.refusal, shown.amount) != (u32::from(state.code()), refusal, *amount) {
        return Err(format!("the client was told otherwise: {record:?}"));
    }
    let reversed_by = |other: &&Record| {
        let is_local = matches!(&other.answer, Some(Answer::Transfer(answer)) if !answer.cross_shard);
        let of = other.posted().and_then(|(order, _)| order.purpose.reversed_transfer());
        is_local && of == Some(named.id) && is_acknowledged_before(other, read.invoked)
    };
    let reversed: i64 = records.iter().filter(reversed_by).filter_map(Record::posted).map(|(_, amount)| amount).sum();
    match reversed <= shown.reversed && shown.reversed <= shown.amount {
        true => Ok(()),
        false => Err(format!("{reversed} had been reversed")),
    }
}

fn hold(records: &[Record], read: &Read, named: &Named, shown: Option<&Hold>) -> Result<(), String> {
    let Some(record) = of(records, named) else { return Ok(()) };
    let Some(shown) = shown else {
        return match is_acknowledged_before(record, read.invoked) {
            true => Err(format!("it was acknowledged before: {record:?}")),
            false => Ok(()),
        };
    };
    if record.sent.is_some_and(|sent| sent > read.returned) {
        return Err(format!("it was ordered afterwards: {record:?}"));
    }
    let Some(Answer::Hold(answer)) = &record.answer else { return Ok(()) };
    if answer.refused != shown.status.refused() {
        return Err(format!("the client was told otherwise: {record:?}"));
    }
    let before = || records.iter().filter(|other| is_acknowledged_before(other, read.invoked));
    let is_released = |other: &Record| {
        other.answer == Some(Answer::Released) && matches!(&other.order, Order::Release(key) if key.id == named.id)
    };
    if before().any(is_released) && shown.status != HoldStatus::Released {
        return Err("it had been released".to_owned());
    }
    let of_hold = |other: &&Record| {
        let is_local = matches!(&other.answer, Some(Answer::Transfer(answer)) if !answer.cross_shard);
        let of = other.posted().and_then(|(order, _)| order.purpose.captured_hold());
        is_local && of == Some(named.id)
    };
    let captured: i64 = before().filter(of_hold).filter_map(Record::posted).map(|(_, amount)| amount).sum();
    match captured <= shown.captured && shown.captured <= shown.amount {
        true => Ok(()),
        false => Err(format!("{captured} had been captured")),
    }
}

/// Whether what a later read shows was over when the earlier one was answered.
fn goes_back(earlier: &Shown, later: &Shown) -> bool {
    match (earlier, later) {
        (Shown::Account(one, earlier), Shown::Account(other, later)) => {
            one == other && later.version < earlier.version
        }
        (Shown::Transfer(one, Some(earlier)), Shown::Transfer(other, later)) if one == other => {
            let pending = u32::from(TransferState::PENDING);
            later.as_ref().is_none_or(|later| {
                (later.status == pending && earlier.status != pending) || later.reversed < earlier.reversed
            })
        }
        (Shown::Hold(one, Some(earlier)), Shown::Hold(other, later)) if one == other => {
            later.as_ref().is_none_or(|later| {
                (earlier.status != HoldStatus::Held && later.status != earlier.status)
                    || later.captured < earlier.captured
            })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use ledger::{AssetCode, BookingKind, Limit, Position, booking::Leg, operation::Purpose};
    use router::simulation::NewTransfer;
    use uuid::Uuid;

    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::client(name).expect("a valid id")
    }

    /// A payment of 10 from `alice`, who has 100: its booking, and what its client was told between 10 and 20.
    fn payment() -> (Booking, Record) {
        let (id, asset) = (TransferId(Uuid::from_u128(1)), AssetCode::new("USD").expect("a currency code"));
        let leg = Leg { version: 3, previous: Position(1), posted: 90, held: 0, overdraft: Limit::ZERO };
        let booking = Booking {
            kind: BookingKind::Posted,
            id: Some(id),
            payer: account("alice"),
            payee: Some(account("bob")),
            asset,
            amount: 10,
            payer_leg: Some(leg),
            ..Booking::marker(Position(2), 0)
        };
        let order = NewTransfer {
            ordered_by: None,
            id,
            debit: account("alice"),
            credit: account("bob"),
            asset,
            amount: 10,
            metadata: ledger::Metadata::empty(),
            purpose: Purpose::Payment,
        };
        let answer = TransferAnswer {
            ordered_by: None,
            state: TransferState::Posted { at_us: 0 },
            amount: 10,
            cross_shard: false,
            presumed: None,
            debit_after: None,
            created_at_us: 0,
            replayed: false,
        };
        let (sent, returned) = (Some(10), Some(20));
        let answer = Some(Answer::Transfer(answer));
        (booking, Record { sent, returned, answer, ..Record::new(Order::Transfer(order)) })
    }

    fn verdict(reads: &[(Moment, Moment, Shown)]) -> Result<(), String> {
        let (booking, record) = payment();
        let before = Leg { version: 2, posted: 100, ..booking.payer_leg.expect("a leg") };
        let earlier =
            Booking { id: None, position: Position(1), payee: None, payer_leg: Some(before), ..booking.clone() };
        let read = |(invoked, returned, shown): &(Moment, Moment, Shown)| Read {
            invoked: *invoked,
            returned: *returned,
            shown: shown.clone(),
        };
        check(&[earlier, booking], &[record], &reads.iter().map(read).collect::<Vec<_>>())
    }

    fn shows(version: i64, posted: i64) -> Shown {
        Shown::Account(account("alice"), ShownAccount { version, posted, held: 0 })
    }

    fn shows_transfer(status: Option<u8>) -> Shown {
        let named = Named { id: TransferId(Uuid::from_u128(1)), debit: account("alice"), is_hold: false };
        let shown = |status: u8| ShownTransfer { status: status.into(), refusal: 0, amount: 10, reversed: 0 };
        Shown::Transfer(named, status.map(shown))
    }

    #[test]
    fn a_read_of_an_account_shows_the_payment_that_was_acknowledged_before_and_none_that_was_sent_afterwards() {
        let (old, new) = (shows(2, 100), shows(3, 90));
        assert_eq!(
            verdict(&[(5, 12, old.clone()), (12, 15, old.clone()), (12, 16, new.clone()), (21, 25, new.clone())]),
            Ok(())
        );
        assert!(
            verdict(&[(21, 25, old.clone())]).is_err_and(|why| why.contains("version 3 was acknowledged before"))
        );
        assert!(verdict(&[(1, 9, new.clone())]).is_err_and(|why| why.contains("version 3 was ordered afterwards")));
        assert!(verdict(&[(12, 13, new), (14, 15, old)]).is_err_and(|why| why.contains("an earlier read showed")));
    }

    #[test]
    fn a_read_of_an_account_shows_the_balances_of_its_version() {
        assert!(verdict(&[(12, 13, shows(3, 100))]).is_err_and(|why| why.contains("the journal has (posted, held)")));
        assert!(verdict(&[(12, 13, shows(4, 90))]).is_err_and(|why| why.contains("no such version")));
    }

    #[test]
    fn a_read_of_a_transfer_agrees_with_its_answer_and_does_not_go_back() {
        let (posted, rejected) = (Some(TransferState::POSTED), Some(TransferState::REJECTED));
        assert_eq!(verdict(&[(12, 13, shows_transfer(None)), (14, 15, shows_transfer(posted))]), Ok(()));
        assert!(verdict(&[(21, 25, shows_transfer(None))]).is_err());
        assert!(verdict(&[(12, 13, shows_transfer(rejected))]).is_err());
        assert!(verdict(&[(21, 25, shows_transfer(Some(TransferState::PENDING)))]).is_err());
        assert!(verdict(&[(12, 13, shows_transfer(posted)), (14, 15, shows_transfer(None))]).is_err());
    }
}
