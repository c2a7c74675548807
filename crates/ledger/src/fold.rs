//! The fold: what a booking does to each projection of the journal.
//!
//! The lane's decisions, a starting node, a node that catches up with another writer, and `shardctl verify` all apply
//! bookings with these functions. A state that one of them computes is therefore the state that every other computes.
//! The functions verify what they apply: versions without a gap, the chain, and balances that change by exactly what
//! the booking moves.

use crate::{
    Account, AccountId, Hold, HoldKey, HoldStatus, Position, TransferKey,
    booking::{Attributes, Booking, BookingKind, Change, Leg, Party, Role},
    hold::CaptureInFlight,
    outcome::DebitAfter,
};

/// Every this-many-th version of an account is a waypoint: a place to enter the account's chain.
pub const WAYPOINT_INTERVAL: i64 = 64;

/// A booking does not continue the state that it is applied to. The journal or a projection of it is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error("INV-9: booking {position} brings account {account} from version {before} to {after}", position = .position.0)]
    Version { account: AccountId, position: Position, before: i64, after: i64 },
    #[error(
        "INV-9: booking {position} follows booking {previous} of account {account}, whose newest is {head}",
        position = .position.0, previous = .previous.0, head = .head.0
    )]
    Chain { account: AccountId, position: Position, previous: Position, head: Position },
    #[error(
        "INV-1: booking {position} leaves account {account} with {after} minor units {what} instead of {expected}",
        position = .position.0
    )]
    Balance { account: AccountId, position: Position, what: &'static str, expected: i128, after: i64 },
    #[error("booking {position} of account {account}: {what}", position = .position.0)]
    Content { account: AccountId, position: Position, what: &'static str },
    #[error("INV-11: booking {position} does not fit hold {id} of {payer}: {what}", position = .position.0, id = .key.id.0, payer = .key.debit)]
    Hold { key: HoldKey, position: Position, what: &'static str },
}

// === accounts ===

/// The account that a booking of kind [`BookingKind::Opened`] opens.
///
/// # Errors
/// When the booking is not a complete opening.
pub fn open_account(booking: &Booking) -> Result<Account, FoldError> {
    let incomplete = || FoldError::Content {
        account: booking.payer.clone(),
        position: booking.position,
        what: "an opening without its attributes",
    };
    let leg = booking.payer_leg.ok_or_else(incomplete)?;
    let Attributes { status, max_balance } =
        booking.extra.as_ref().and_then(|extra| extra.attributes).ok_or_else(incomplete)?;
    if leg.version != 1 || leg.previous != Position::NONE {
        return Err(FoldError::Version {
            account: booking.payer.clone(),
            position: booking.position,
            before: 0,
            after: leg.version,
        });
    }
    check_balance(booking, &booking.payer, "posted", 0, leg.posted)?;
    check_balance(booking, &booking.payer, "held", 0, leg.held)?;
    Ok(Account {
        id: booking.payer.clone(),
        asset: booking.asset,
        status,
        posted: 0,
        held: 0,
        overdraft: leg.overdraft,
        max_balance,
        version: 1,
        head: booking.position,
        opened: booking.position,
        metadata: booking.metadata(),
        created_at_us: booking.at_us,
        updated_at_us: booking.at_us,
    })
}

/// Applies a party's leg to its account. Returns `false` if the account includes the leg already.
///
/// # Errors
/// When the leg does not continue the account's state.
pub fn apply_leg(account: &mut Account, booking: &Booking, party: Party) -> Result<bool, FoldError> {
    let Some(leg) = booking.leg(party) else { return Ok(false) };
    let position = booking.position;
    if leg.version <= account.version {
        return Ok(false);
    }
    if leg.version != account.version + 1 {
        let (account, before) = (account.id.clone(), account.version);
        return Err(FoldError::Version { account, position, before, after: leg.version });
    }
    if leg.previous != account.head {
        let (account, head) = (account.id.clone(), account.head);
        return Err(FoldError::Chain { account, position, previous: leg.previous, head });
    }
    if booking.asset != account.asset {
        let account = account.id.clone();
        return Err(FoldError::Content { account, position, what: "it is of another asset" });
    }
    let Some(Change { posted, held }) = booking.change(party) else {
        let account = account.id.clone();
        return Err(FoldError::Content { account, position, what: "its kind has no such leg" });
    };
    check_balance(booking, &account.id, "posted", i128::from(account.posted) + i128::from(posted), leg.posted)?;
    check_balance(booking, &account.id, "held", i128::from(account.held) + i128::from(held), leg.held)?;
    if booking.kind == BookingKind::Updated {
        let Some(Attributes { status, max_balance }) = booking.extra.as_ref().and_then(|extra| extra.attributes)
        else {
            let account = account.id.clone();
            return Err(FoldError::Content { account, position, what: "an update without attributes" });
        };
        account.status = status;
        account.max_balance = max_balance;
        account.overdraft = leg.overdraft;
        account.metadata = booking.metadata();
    } else if leg.overdraft != account.overdraft {
        let account = account.id.clone();
        return Err(FoldError::Content { account, position, what: "another overdraft is in force" });
    }
    account.posted = leg.posted;
    account.held = leg.held;
    account.version = leg.version;
    account.head = position;
    account.updated_at_us = account.updated_at_us.max(booking.at_us);
    Ok(true)
}

/// Applies a booking to the shard's in-transit account of its asset. Returns `false` if the account takes no part or
/// includes the booking already. In-transit accounts have no chain: the position alone orders their bookings.
///
/// # Errors
/// When the balance would overflow.
pub fn apply_in_transit(account: &mut Account, booking: &Booking) -> Result<bool, FoldError> {
    let change = booking.in_transit_change();
    if booking.kind.in_transit() == 0 || booking.position <= account.head {
        return Ok(false);
    }
    let Some(posted) = account.posted.checked_add(change) else {
        let account = account.id.clone();
        return Err(FoldError::Content { account, position: booking.position, what: "the balance would overflow" });
    };
    account.posted = posted;
    account.version += 1;
    account.head = booking.position;
    account.updated_at_us = account.updated_at_us.max(booking.at_us);
    Ok(true)
}

fn check_balance(
    booking: &Booking,
    account: &AccountId,
    what: &'static str,
    expected: i128,
    after: i64,
) -> Result<(), FoldError> {
    if expected == i128::from(after) {
        return Ok(());
    }
    Err(FoldError::Balance { account: account.clone(), position: booking.position, what, expected, after })
}

/// The leg that brings `account` to its state after `change`. The caller has checked that nothing overflows.
pub fn leg_after(account: &Account, change: Change) -> Leg {
    Leg {
        version: account.version + 1,
        previous: account.head,
        posted: account.posted + change.posted,
        held: account.held + change.held,
        overdraft: account.overdraft,
    }
}

/// The attributes that an opening or an update of the account records.
pub fn attributes_of(account: &Account) -> Attributes {
    Attributes { status: account.status, max_balance: account.max_balance }
}

// === waypoints ===

/// Whether a leg of this version leaves a waypoint.
pub fn is_waypoint(version: i64) -> bool {
    version % WAYPOINT_INTERVAL == 0
}

// === sagas ===

/// What a booking does to the set of sagas under way at its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SagaChange {
    Begun(TransferKey),
    Ended(TransferKey),
}

/// What a booking puts in transit. The debit account gets it back if the verdict is a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub debit: AccountId,
    pub credit: AccountId,
    /// Minor units.
    pub amount: i64,
    /// The money of a capture was held before and is held again, so that what is available does not change.
    pub is_capture: bool,
}

/// What a booking reserves; `None`: nothing.
pub fn reserved(booking: &Booking) -> Option<Reserved> {
    let credit = booking.payee.clone().filter(|_| booking.kind == BookingKind::Reserved)?;
    let purpose = booking.extra.as_ref().map_or_else(Default::default, |extra| extra.purpose);
    let is_capture = purpose.captured_hold().is_some();
    Some(Reserved { debit: booking.payer.clone(), credit, amount: booking.amount, is_capture })
}

/// What is under way no more after a settlement: posted for good, or back at its payer; `None`: nothing was reserved.
pub fn settled(booking: &Booking) -> Option<Reserved> {
    let is_settled = matches!(booking.kind, BookingKind::Settled | BookingKind::Compensated);
    let credit = booking.payee.clone().filter(|_| is_settled)?;
    let purpose = booking.extra.as_ref().map_or_else(Default::default, |extra| extra.purpose);
    let is_capture = purpose.captured_hold().is_some();
    Some(Reserved { debit: booking.payer.clone(), credit, amount: booking.amount, is_capture })
}

/// What the booking does to the set of sagas under way; `None`: nothing.
pub fn saga_change(booking: &Booking) -> Option<SagaChange> {
    match booking.kind {
        BookingKind::Reserved | BookingKind::Presumed => booking.key().map(SagaChange::Begun),
        kind if kind.role() == Role::Settlement => booking.key().map(SagaChange::Ended),
        _ => None,
    }
}

// === holds ===

/// The hold that the booking places, changes or ends.
pub fn hold_key(booking: &Booking) -> Option<HoldKey> {
    match booking.kind.role() {
        Role::Hold | Role::HoldEnd => booking.key(),
        Role::Transfer | Role::Settlement
            if matches!(
                booking.kind,
                BookingKind::Posted | BookingKind::Reserved | BookingKind::Settled | BookingKind::Compensated
            ) =>
        {
            let id = booking.purpose().captured_hold()?;
            Some(HoldKey { id, debit: booking.payer.clone() })
        }
        _ => None,
    }
}

/// The hold that a booking of role [`Role::Hold`] places or rejects.
///
/// # Errors
/// When the booking is not a complete answer to a hold.
pub fn place_hold(booking: &Booking) -> Result<Hold, FoldError> {
    let content = |what| FoldError::Content { account: booking.payer.clone(), position: booking.position, what };
    let status = match (booking.kind, booking.refused()) {
        (BookingKind::HoldPlaced, None) => HoldStatus::Held,
        (BookingKind::HoldRejected, Some(refused)) => HoldStatus::Rejected(refused),
        _ => return Err(content("neither a hold nor its refusal")),
    };
    Ok(Hold {
        credit: booking.payee.clone().ok_or_else(|| content("a hold without a credit account"))?,
        asset: booking.asset,
        amount: booking.amount,
        metadata: booking.metadata(),
        status,
        captured: 0,
        in_flight: None,
        expires_at_us: booking.extra.as_ref().and_then(|extra| extra.expires_at_us),
        debit_after: booking.payer_leg.as_ref().map(debit_after),
        created_at_us: booking.at_us,
        ended_at_us: status.refused().map(|_| booking.at_us),
        ordered_by: booking.ordered_by.clone(),
        ended_by: None,
    })
}

/// Applies a booking to the hold that [`hold_key`] names.
///
/// # Errors
/// When the booking does not continue the hold's state.
pub fn apply_to_hold(hold: &mut Hold, booking: &Booking) -> Result<(), FoldError> {
    let wrong = |what| match hold_key(booking) {
        Some(key) => FoldError::Hold { key, position: booking.position, what },
        None => FoldError::Content { account: booking.payer.clone(), position: booking.position, what },
    };
    if hold.status != HoldStatus::Held {
        return Err(wrong("the hold has ended"));
    }
    let flying = |hold: &Hold| hold.in_flight.map(|capture| (Some(capture.capture), capture.amount));
    match booking.kind {
        BookingKind::Posted => {
            if hold.in_flight.is_some() || booking.amount > hold.remaining() {
                return Err(wrong("it captures more than remains, or while another capture is in flight"));
            }
            hold.captured += booking.amount;
        }
        BookingKind::Reserved => {
            let capture = booking.id.ok_or_else(|| wrong("a capture without an id"))?;
            if hold.in_flight.is_some() || booking.amount > hold.remaining() {
                return Err(wrong("it captures more than remains, or while another capture is in flight"));
            }
            hold.in_flight = Some(CaptureInFlight { capture, amount: booking.amount });
        }
        BookingKind::Settled | BookingKind::Compensated => {
            if flying(hold) != Some((booking.id, booking.amount)) {
                return Err(wrong("it settles a capture that is not in flight"));
            }
            hold.in_flight = None;
            if booking.kind == BookingKind::Settled {
                hold.captured += booking.amount;
            }
        }
        BookingKind::HoldCaptured | BookingKind::HoldReleased | BookingKind::HoldExpired => {
            if hold.in_flight.is_some() || booking.amount != hold.remaining() {
                return Err(wrong("it releases another amount than remains"));
            }
            hold.status = match booking.kind {
                BookingKind::HoldCaptured => HoldStatus::Captured,
                BookingKind::HoldReleased => HoldStatus::Released,
                _ => HoldStatus::Expired,
            };
            hold.ended_at_us = Some(booking.at_us);
            hold.ended_by.clone_from(&booking.ordered_by);
        }
        _ => return Err(wrong("its kind changes no hold")),
    }
    Ok(())
}

/// A payer's balances as an answer shows them.
pub fn debit_after(leg: &Leg) -> DebitAfter {
    DebitAfter { posted: leg.posted, held: leg.held, overdraft: leg.overdraft, version: leg.version }
}

#[cfg(test)]
mod tests;
