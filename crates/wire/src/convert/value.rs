//! Single values: ids, assets, limits, purposes, refusals and verdicts.

use bytes::Bytes;
use ledger::{
    AccountId, AssetCode, Limit, Refusal, Refused, Side, TransferId,
    operation::{Purpose, Verdict},
};
use uuid::Uuid;

use super::{BadMessage, bad};
use crate::generated as wire;

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
