//! What the bookings of one id come to: a transfer, a register, a hold.

use crate::{
    AccountId, AssetCode, Hold, HoldStatus, KeyName, Metadata, Refused,
    booking::{Booking, BookingKind, Leg, Role},
    fold::{self, FoldError},
    operation::{Purpose, Verdict},
    outcome::{DebitAfter, TransferState},
};

/// A transfer as its bookings record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTransfer {
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units.
    pub amount: i64,
    pub metadata: Metadata,
    pub purpose: Purpose,
    pub cross_shard: bool,
    pub state: TransferState,
    /// What a pending transfer will be refused with unless its credit side refuses first: nothing was reserved.
    pub presumed: Option<Refused>,
    pub debit_after: Option<DebitAfter>,
    pub created_at_us: i64,
    /// The API key of the first request with this id.
    pub ordered_by: Option<KeyName>,
}

/// The verdict of a saga at its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRegister {
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units.
    pub amount: i64,
    pub verdict: Verdict,
    pub decided_at_us: i64,
}

/// A transfer as its reversal sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units.
    pub amount: i64,
    pub state: TransferState,
    /// The sum of its reversals, in minor units.
    pub reversed: i64,
}

impl Original {
    /// What can still be reversed, in minor units. Money that never arrived cannot be reversed.
    pub fn reversible(&self) -> i64 {
        match self.state {
            TransferState::Posted { .. } => self.amount - self.reversed,
            TransferState::Pending | TransferState::Rejected { .. } => 0,
        }
    }
}

fn content(booking: &Booking, what: &'static str) -> FoldError {
    FoldError::Content { account: booking.payer.clone(), position: booking.position, what }
}

impl StoredTransfer {
    /// The transfer that `first` answers. `settlement` is its settlement, if there is one. `answer` is the payer's leg
    /// in the booking that one of the two names as the answer ([`answer_of`]).
    ///
    /// # Errors
    /// When the bookings are not those of one transfer.
    pub fn of(first: &Booking, settlement: Option<&Booking>, answer: Option<&Leg>) -> Result<Self, FoldError> {
        let refused_by = |booking: &Booking| booking.refused().ok_or_else(|| content(booking, "no refusal"));
        let at_us = first.at_us;
        let state = match (first.kind, settlement) {
            (BookingKind::Posted, None) => TransferState::Posted { at_us },
            (BookingKind::Rejected, None) => TransferState::Rejected { refused: refused_by(first)?, at_us },
            (BookingKind::Reserved | BookingKind::Presumed, None) => TransferState::Pending,
            (BookingKind::Reserved | BookingKind::Presumed, Some(settlement)) => {
                let at_us = settlement.at_us;
                match settlement.kind {
                    BookingKind::Settled => TransferState::Posted { at_us },
                    BookingKind::Compensated | BookingKind::SettledRefused => {
                        TransferState::Rejected { refused: refused_by(settlement)?, at_us }
                    }
                    _ => return Err(content(settlement, "no settlement")),
                }
            }
            _ => return Err(content(first, "no first answer of a transfer, or one that is not settled")),
        };
        let presumed = match (first.kind, state) {
            (BookingKind::Presumed, TransferState::Pending) => Some(refused_by(first)?),
            _ => None,
        };
        Ok(Self {
            credit: first.payee.clone().ok_or_else(|| content(first, "no credit account"))?,
            asset: first.asset,
            amount: first.amount,
            metadata: first.metadata(),
            purpose: first.purpose(),
            cross_shard: is_cross_shard(first),
            state,
            presumed,
            debit_after: answer.or(first.payer_leg.as_ref()).map(fold::debit_after),
            created_at_us: first.at_us,
            ordered_by: first.ordered_by.clone(),
        })
    }

    /// Whether step 1 of the saga reserved money.
    pub fn reserved(&self) -> bool {
        self.presumed.is_none()
    }
}

fn is_cross_shard(first: &Booking) -> bool {
    match first.kind {
        BookingKind::Reserved | BookingKind::Presumed => true,
        _ => first.extra.as_ref().is_some_and(|extra| extra.cross_shard),
    }
}

/// The position of the booking whose payer leg is a transfer's answer, where it is neither of the two.
pub fn answer_of(first: &Booking, settlement: Option<&Booking>) -> Option<crate::Position> {
    let named = |booking: &Booking| booking.extra.as_ref().and_then(|extra| extra.answer);
    settlement.and_then(named).or_else(|| named(first))
}

impl StoredRegister {
    /// # Errors
    /// When the booking is no register.
    pub fn of(booking: &Booking) -> Result<Self, FoldError> {
        let verdict = match booking.kind {
            BookingKind::Credited => Verdict::Credited,
            BookingKind::Refused => {
                Verdict::Refused(booking.refused().ok_or_else(|| content(booking, "no refusal"))?)
            }
            _ => return Err(content(booking, "no register")),
        };
        Ok(Self {
            credit: booking.payee.clone().ok_or_else(|| content(booking, "no credit account"))?,
            asset: booking.asset,
            amount: booking.amount,
            verdict,
            decided_at_us: booking.at_us,
        })
    }
}

/// A hold that has ended, or was rejected, from the booking that answered it and the one that ended it.
///
/// # Errors
/// When the bookings are not those of one hold, or the hold is open.
pub fn ended_hold(first: &Booking, end: Option<&Booking>) -> Result<Hold, FoldError> {
    let mut hold = fold::place_hold(first)?;
    match end {
        Some(end) if end.kind.role() == Role::HoldEnd => {
            hold.captured = end.extra.as_ref().and_then(|extra| extra.captured).unwrap_or(0);
            fold::apply_to_hold(&mut hold, end)?;
        }
        None if hold.status != HoldStatus::Held => {}
        _ => return Err(content(first, "the hold is neither open nor ended")),
    }
    Ok(hold)
}

#[cfg(test)]
mod tests;
