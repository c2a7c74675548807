//! Bookings for the tests of this crate.

use uuid::Uuid;

use crate::{
    AccountId, AccountStatus, AssetCode, Limit, Metadata, Position, Refused, TransferId,
    booking::{Attributes, Booking, BookingKind, Extra, Leg},
    operation::Purpose,
};

pub fn usd() -> AssetCode {
    AssetCode::new("USD").unwrap()
}

pub fn account_id(name: &str) -> AccountId {
    AccountId::any(name).unwrap()
}

pub fn number(n: u128) -> TransferId {
    TransferId(Uuid::from_u128(n))
}

pub fn leg(version: i64, previous: i64, posted: i64, held: i64) -> Leg {
    Leg { version, previous: Position(previous), posted, held, overdraft: Limit::Unlimited }
}

/// A booking of `amount` from alice to bob under the id 1, without legs.
pub fn booking(position: i64, kind: BookingKind, amount: i64) -> Booking {
    Booking {
        ordered_by: None,
        position: Position(position),
        kind,
        id: Some(number(1)),
        payer: account_id("alice"),
        payee: Some(account_id("bob")),
        asset: usd(),
        amount,
        at_us: position * 10,
        payer_leg: None,
        payee_leg: None,
        extra: None,
    }
}

/// Opens an account without limits.
pub fn opening(name: &str, position: i64) -> Booking {
    let attributes = Attributes { status: AccountStatus::Open, max_balance: Limit::Unlimited };
    let extra = Extra { metadata: Some(Metadata::empty()), attributes: Some(attributes), ..Extra::default() };
    Booking {
        id: None,
        payer: account_id(name),
        payee: None,
        payer_leg: Some(leg(1, 0, 0, 0)),
        extra: Some(Box::new(extra)),
        ..booking(position, BookingKind::Opened, 0)
    }
}

pub fn with(extra: Extra) -> Option<Box<Extra>> {
    Some(Box::new(extra))
}

pub fn refusal(refused: Refused) -> Option<Box<Extra>> {
    with(Extra { refused: Some(refused), ..Extra::default() })
}

/// A capture of the hold with this number.
pub fn capture(hold: u128) -> Option<Box<Extra>> {
    let purpose = Purpose::Capture { hold: number(hold), whole: false, finalize: false };
    with(Extra { purpose, ..Extra::default() })
}
