//! A hold: money reserved at its debit account and not yet posted, and the rules of what may become of it.
//!
//! ```text
//!           capture (final, or of all that remains)
//! Held ────────────────────────────────────────────> Captured
//!  │ ├──── release ────────────────────────────────> Released
//!  │ └──── expires_at, unless a capture is in flight > Expired
//!  └─ capture (partial, not final): stays Held
//! ```
//!
//! Why a hold is decided where it is: `docs/adr/0006`.

use crate::{AccountId, AssetCode, KeyName, Metadata, Refusal, Refused, TransferId, outcome::DebitAfter};

/// One hold, under its (id, debit account).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units, positive.
    pub amount: i64,
    pub metadata: Metadata,
    pub status: HoldStatus,
    /// Posted by captures, in minor units.
    pub captured: i64,
    /// A capture to another shard whose verdict is not known yet. There is one at a time.
    pub in_flight: Option<CaptureInFlight>,
    /// Microseconds since the epoch.
    pub expires_at_us: Option<i64>,
    /// The debit account right after the hold was placed; absent when it was refused.
    pub debit_after: Option<DebitAfter>,
    pub created_at_us: i64,
    /// When it left [`HoldStatus::Held`].
    pub ended_at_us: Option<i64>,
    /// The API key that placed it.
    pub ordered_by: Option<KeyName>,
    /// The API key that released it, or whose capture ended it.
    pub ended_by: Option<KeyName>,
}

/// A capture between its reserve and its settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureInFlight {
    pub capture: TransferId,
    /// Minor units, out of the account's `held` and `posted` already.
    pub amount: i64,
}

/// What has become of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldStatus {
    Held,
    Captured,
    Released,
    Expired,
    /// Refused when it was placed; kept so that a replay gets the same answer.
    Rejected(Refused),
}

/// Status codes, as they travel on the wire. Never reuse one.
impl HoldStatus {
    pub const HELD: u8 = 1;
    pub const CAPTURED: u8 = 2;
    pub const RELEASED: u8 = 3;
    pub const EXPIRED: u8 = 4;
    pub const REJECTED: u8 = 5;

    pub fn code(self) -> u8 {
        match self {
            Self::Held => Self::HELD,
            Self::Captured => Self::CAPTURED,
            Self::Released => Self::RELEASED,
            Self::Expired => Self::EXPIRED,
            Self::Rejected(_) => Self::REJECTED,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Captured => "captured",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Rejected(_) => "rejected",
        }
    }

    /// Why it was refused, if it was.
    pub fn refused(self) -> Option<Refused> {
        match self {
            Self::Rejected(refused) => Some(refused),
            Self::Held | Self::Captured | Self::Released | Self::Expired => None,
        }
    }
}

impl Hold {
    /// What can still be captured, and what the account's `held` carries for this hold. In minor units.
    pub fn remaining(&self) -> i64 {
        match self.status {
            HoldStatus::Held => self.amount - self.captured - self.in_flight.map_or(0, |capture| capture.amount),
            HoldStatus::Captured | HoldStatus::Released | HoldStatus::Expired | HoldStatus::Rejected(_) => 0,
        }
    }

    /// Whether its time is over. Not while a capture is in flight: if that is refused, the hold expires then.
    pub fn is_due(&self, now_us: i64) -> bool {
        self.status == HoldStatus::Held
            && self.in_flight.is_none()
            && self.expires_at_us.is_some_and(|expires_at_us| expires_at_us <= now_us)
    }

    /// Why nothing can be done with it any more, if so.
    pub fn check_open(&self) -> Result<(), Refused> {
        match self.status {
            HoldStatus::Held => Ok(()),
            HoldStatus::Captured => Err(Refused::whole(Refusal::HoldCaptured)),
            HoldStatus::Released => Err(Refused::whole(Refusal::HoldReleased)),
            HoldStatus::Expired => Err(Refused::whole(Refusal::HoldExpired)),
            HoldStatus::Rejected(refused) => Err(refused),
        }
    }

    /// May so much be captured now?
    pub fn check_capture(&self, amount: i64) -> Result<(), Refused> {
        self.check_open()?;
        if (1..=self.remaining()).contains(&amount) { Ok(()) } else { Err(Refused::whole(Refusal::ExceedsHold)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(captured: i64, in_flight: i64, expires_at_us: Option<i64>) -> Hold {
        let capture = TransferId(uuid::Uuid::from_u128(9));
        Hold {
            ended_by: None,
            ordered_by: None,
            credit: AccountId::client("shop").unwrap(),
            asset: AssetCode::new("USD").unwrap(),
            amount: 100,
            metadata: Metadata::empty(),
            status: HoldStatus::Held,
            captured,
            in_flight: (in_flight > 0).then_some(CaptureInFlight { capture, amount: in_flight }),
            expires_at_us,
            debit_after: None,
            created_at_us: 0,
            ended_at_us: None,
        }
    }

    #[test]
    fn captures_take_what_remains_and_not_more() {
        let refusal = |hold: &Hold, amount| hold.check_capture(amount).err().map(|refused| refused.refusal);
        let partly = hold(30, 0, None);
        assert_eq!(partly.remaining(), 70);
        assert_eq!(refusal(&partly, 70), None);
        assert_eq!(refusal(&partly, 71), Some(Refusal::ExceedsHold));
        assert_eq!(refusal(&partly, 0), Some(Refusal::ExceedsHold));
        let captured = Hold { status: HoldStatus::Captured, ..hold(100, 0, None) };
        assert_eq!((captured.remaining(), refusal(&captured, 1)), (0, Some(Refusal::HoldCaptured)));
    }

    #[test]
    fn what_is_in_flight_neither_remains_nor_expires() {
        let flying = hold(30, 50, Some(10));
        assert_eq!(flying.remaining(), 20);
        assert!(!flying.is_due(10));
        assert!(hold(30, 0, Some(10)).is_due(10) && !hold(30, 0, Some(10)).is_due(9));
        assert!(!hold(0, 0, None).is_due(i64::MAX));
    }

    /// What brings a hold to its end is tested with the fold.
    #[test]
    fn nothing_can_be_done_with_a_hold_that_has_ended() {
        for (status, refusal) in [
            (HoldStatus::Captured, Refusal::HoldCaptured),
            (HoldStatus::Released, Refusal::HoldReleased),
            (HoldStatus::Expired, Refusal::HoldExpired),
        ] {
            let ended = Hold { status, ..hold(40, 0, Some(1)) };
            assert_eq!(ended.check_open(), Err(Refused::whole(refusal)));
            assert!(ended.remaining() == 0 && !ended.is_due(100));
        }
    }
}
