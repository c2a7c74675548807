//! Wire messages to the ledger's types and back.
//!
//! Every message is checked as if a stranger had sent it: a router of another version may have.

mod account;
mod identity;
mod operation;
mod outcome;

use bytes::Bytes;
use ledger::{
    AccountId, AssetCode, Limit, Refusal, Refused, Side, TransferId,
    operation::{Purpose, Verdict},
};
use shard_map::{Slot, SlotRange};
use uuid::Uuid;

use crate::generated as wire;

pub use self::{
    account::{hold_from_wire, hold_status_from_wire, hold_to_wire},
    identity::{
        assets_from_wire, assets_to_wire, marks_from_wire, marks_to_wire, shard_mark_from_wire, shard_mark_to_wire,
    },
    operation::{Submitted, name_from_wire, name_to_wire, operation_to_wire},
    outcome::{presumed_from_wire, state_from_wire, state_to_columns},
};

/// A message that no well-behaved peer sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field}: {reason}")]
    Bad { field: &'static str, reason: String },
}

fn bad(field: &'static str, reason: impl ToString) -> BadMessage {
    BadMessage::Bad { field, reason: reason.to_string() }
}

pub fn purpose_to_wire(purpose: Purpose) -> Option<wire::Purpose> {
    match purpose {
        Purpose::Payment => None,
        Purpose::Capture { hold, whole, finalize } => {
            Some(wire::Purpose { hold: id_to_wire(hold), reverses: Bytes::new(), whole, finalize })
        }
        Purpose::Reversal { of, whole } => {
            Some(wire::Purpose { hold: Bytes::new(), reverses: id_to_wire(of), whole, finalize: false })
        }
    }
}

pub fn purpose_from_wire(message: Option<wire::Purpose>) -> Result<Purpose, BadMessage> {
    let Some(wire::Purpose { hold, reverses, whole, finalize }) = message else { return Ok(Purpose::Payment) };
    match (hold.is_empty(), reverses.is_empty()) {
        (false, true) => Ok(Purpose::Capture { hold: id_from_wire(&hold)?, whole, finalize }),
        (true, false) => Ok(Purpose::Reversal { of: id_from_wire(&reverses)?, whole }),
        _ => Err(bad("purpose", "is neither of a hold nor of a transfer")),
    }
}

pub fn id_to_wire(id: TransferId) -> Bytes {
    Bytes::copy_from_slice(id.0.as_bytes())
}

pub fn id_from_wire(bytes: &[u8]) -> Result<TransferId, BadMessage> {
    Uuid::from_slice(bytes).map(TransferId).map_err(|e| bad("id", e))
}

pub fn account_id(text: &str, field: &'static str) -> Result<AccountId, BadMessage> {
    AccountId::client(text).map_err(|e| bad(field, e))
}

pub fn asset(text: &str) -> Result<AssetCode, BadMessage> {
    AssetCode::new(text).map_err(|e| bad("asset", e))
}

impl From<Limit> for wire::Limit {
    fn from(limit: Limit) -> Self {
        Self { unlimited: limit == Limit::Unlimited, minor: limit.to_nullable().unwrap_or(0) }
    }
}

impl From<wire::Limit> for Limit {
    fn from(limit: wire::Limit) -> Self {
        if limit.unlimited { Self::Unlimited } else { Self::AtMost(limit.minor) }
    }
}

/// (refusal, side) with 0 for none.
pub fn refused_to_wire(refused: Refused) -> (u32, u32) {
    (refused.refusal.code().into(), refused.side.map_or(0, |s| s.code().into()))
}

pub fn refused_from_wire(refusal: u32, side: u32) -> Result<Refused, BadMessage> {
    let known = u8::try_from(refusal).ok().and_then(Refusal::from_code);
    let refusal = known.ok_or_else(|| bad("refusal", format!("{refusal} is no refusal")))?;
    Ok(Refused { refusal, side: u8::try_from(side).ok().and_then(Side::from_code) })
}

/// (credited, refusal, side)
pub fn verdict_to_wire(verdict: Verdict) -> (bool, u32, u32) {
    match verdict {
        Verdict::Credited => (true, 0, 0),
        Verdict::Refused(refused) => {
            let (refusal, side) = refused_to_wire(refused);
            (false, refusal, side)
        }
    }
}

pub fn verdict_from_wire(credited: bool, refusal: u32, side: u32) -> Result<Verdict, BadMessage> {
    if credited { Ok(Verdict::Credited) } else { refused_from_wire(refusal, side).map(Verdict::Refused) }
}

impl From<SlotRange> for wire::SlotRange {
    fn from(range: SlotRange) -> Self {
        Self { first: range.first().index().into(), last: range.last().index().into() }
    }
}

impl TryFrom<wire::SlotRange> for SlotRange {
    type Error = BadMessage;

    fn try_from(range: wire::SlotRange) -> Result<Self, BadMessage> {
        let slot = |index: u32| Slot::try_from(index).map_err(|reason| bad("slots", reason));
        Self::new(slot(range.first)?, slot(range.last)?).map_err(|reason| bad("slots", reason))
    }
}

pub fn slots_to_wire(slots: &[SlotRange]) -> Vec<wire::SlotRange> {
    slots.iter().copied().map(wire::SlotRange::from).collect()
}

/// # Errors
/// Names the first slot that does not exist, or the first range that ends before it begins.
pub fn slots_from_wire(slots: &[wire::SlotRange]) -> Result<Vec<SlotRange>, BadMessage> {
    slots.iter().copied().map(SlotRange::try_from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_as_they_were_sent_and_bad_ones_are_refused() {
        let sent = [wire::SlotRange { first: 0, last: 4_095 }, wire::SlotRange { first: 5_000, last: 5_000 }];
        assert_eq!(slots_to_wire(&slots_from_wire(&sent).unwrap()), sent);
        for (first, last) in [(5, 4), (0, 16_384), (u32::MAX, u32::MAX)] {
            assert!(slots_from_wire(&[wire::SlotRange { first, last }]).is_err(), "{first}-{last}");
        }
    }
}
