//! How a hold is shown.

use std::collections::BTreeMap;

use ledger::{AssetRegistry, Hold, HoldKey, HoldStatus, operation::PlaceHold, outcome::HoldAnswer};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::{
    access::Access,
    answer::{Scale, metadata},
    problem::Problem,
    schemas,
    transfers::view::{DebitAccountView, WOULD_POST},
};

/// A hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hold)]
pub struct HoldView {
    #[schema(value_type = schemas::TransferId)]
    pub id: Uuid,
    #[schema(value_type = schemas::HoldStatus)]
    pub status: &'static str,
    #[schema(value_type = schemas::AccountId)]
    pub debit: String,
    #[schema(value_type = schemas::AccountId)]
    pub credit: String,
    #[schema(value_type = schemas::PositiveAmount)]
    pub amount: String,
    #[schema(value_type = schemas::Asset)]
    pub asset: String,
    /// Posted by captures. One to another shard counts once its verdict is known.
    #[schema(value_type = schemas::Amount)]
    pub captured: String,
    /// What can still be captured, and is not available to the debit account meanwhile.
    #[schema(value_type = schemas::Amount)]
    pub remaining: String,
    #[schema(value_type = schemas::Metadata)]
    pub metadata: BTreeMap<String, String>,
    /// The debit account right after the hold was placed; absent where the hold is rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub debit_account: Option<DebitAccountView>,
    /// Null for a hold that stays until it is captured or released.
    #[schema(value_type = Option<schemas::Time>, required)]
    pub expires_at: Option<String>,
    /// Why it is rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reject_code: Option<&'static str>,
    /// Which account the rejection is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Side, required = false)]
    pub side: Option<&'static str>,
    #[schema(value_type = schemas::Time)]
    pub created_at: String,
    /// When it was captured, released, expired or rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Time, required = false)]
    pub ended_at: Option<String>,
    /// The name of the API key that placed it; shown to keys that may read the debit account, absent without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::KeyName, required = false)]
    pub ordered_by: Option<String>,
    /// The name of the API key that released it, or whose capture ended it; shown like `ordered_by`, and absent where the hold expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::KeyName, required = false)]
    pub ended_by: Option<String>,
}

impl HoldView {
    /// Without the balances of the debit account and without names of keys, unless the sender of the request may read that account.
    pub fn shown_to(mut self, access: &Access) -> Self {
        if !access.may_read_text(&self.debit) {
            self.debit_account = None;
            self.ordered_by = None;
            self.ended_by = None;
        }
        self
    }

    /// The answer to placing a hold: as it was then, whatever has become of it.
    pub fn placed(order: &PlaceHold, answer: &HoldAnswer, assets: &AssetRegistry) -> Result<Self, Problem> {
        let hold = Hold {
            credit: order.credit.clone(),
            asset: order.asset,
            amount: order.amount,
            metadata: order.metadata.clone(),
            status: answer.refused.map_or(HoldStatus::Held, HoldStatus::Rejected),
            captured: 0,
            in_flight: None,
            expires_at_us: answer.expires_at_us,
            debit_after: answer.debit_after,
            created_at_us: answer.created_at_us,
            ended_at_us: answer.refused.map(|_| answer.created_at_us),
            ordered_by: answer.ordered_by.clone(),
            ended_by: None,
        };
        Self::stored(&order.key(), &hold, assets)
    }

    /// The answer to a hold that was only tried, and would hold.
    pub fn tried(order: &PlaceHold, answer: &HoldAnswer, assets: &AssetRegistry) -> Result<Self, Problem> {
        Ok(Self { status: WOULD_POST, ordered_by: None, ..Self::placed(order, answer, assets)? })
    }

    /// A stored hold as it stands.
    pub fn stored(key: &HoldKey, hold: &Hold, assets: &AssetRegistry) -> Result<Self, Problem> {
        let scale = Scale::of(hold.asset, assets)?;
        let refused = hold.status.refused();
        Ok(Self {
            id: key.id.0,
            status: hold.status.as_str(),
            debit: key.debit.to_string(),
            credit: hold.credit.to_string(),
            amount: scale.amount(hold.amount),
            asset: hold.asset.to_string(),
            captured: scale.amount(hold.captured),
            remaining: scale.amount(hold.remaining()),
            metadata: metadata(hold.metadata.as_str())?,
            debit_account: hold.debit_after.map(|after| DebitAccountView::new(after, scale)),
            expires_at: hold.expires_at_us.map(format_rfc3339),
            reject_code: refused.map(|refused| refused.refusal.as_str()),
            side: refused.and_then(|refused| refused.side).map(ledger::Side::as_str),
            created_at: format_rfc3339(hold.created_at_us),
            ended_at: hold.ended_at_us.map(format_rfc3339),
            ordered_by: hold.ordered_by.as_ref().map(ToString::to_string),
            ended_by: hold.ended_by.as_ref().map(ToString::to_string),
        })
    }
}

#[cfg(test)]
mod tests {
    use ledger::{AccountId, AssetCode, Limit, Metadata, Refusal, Refused, TransferId, outcome::DebitAfter};

    use super::*;

    fn order() -> PlaceHold {
        PlaceHold {
            ordered_by: None,
            id: TransferId(Uuid::from_u128(1)),
            debit: AccountId::client("alice").unwrap(),
            credit: AccountId::client("shop").unwrap(),
            asset: AssetCode::new("USD").unwrap(),
            amount: 2500,
            expires_in_s: Some(60),
            metadata: Metadata::empty(),
        }
    }

    fn answer() -> HoldAnswer {
        HoldAnswer {
            ordered_by: None,
            refused: None,
            debit_after: Some(DebitAfter { posted: 10_000, held: 2500, overdraft: Limit::ZERO, version: 3 }),
            expires_at_us: Some(61_000_000),
            created_at_us: 1_000_000,
            replayed: false,
        }
    }

    #[test]
    fn a_placed_hold_shows_what_it_reserved() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let view = HoldView::placed(&order(), &answer(), &assets).unwrap();
        assert_eq!((view.status, view.captured.as_str(), view.remaining.as_str()), ("held", "0.00", "25.00"));
        assert_eq!(view.expires_at.as_deref(), Some("1970-01-01T00:01:01.000000Z"));
        let debit = view.debit_account.unwrap();
        assert_eq!((debit.held.as_str(), debit.available.as_str()), ("25.00", "75.00"));
        assert!(view.ended_at.is_none() && view.reject_code.is_none());
        assert_eq!(HoldView::tried(&order(), &answer(), &assets).unwrap().status, "would_post");
    }

    #[test]
    fn nothing_remains_of_a_hold_that_has_ended() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let refused = Refused::debit(Refusal::InsufficientFunds);
        for (status, shown, code) in [
            (HoldStatus::Held, "held 15.00", None),
            (HoldStatus::Captured, "captured 0.00", None),
            (HoldStatus::Released, "released 0.00", None),
            (HoldStatus::Expired, "expired 0.00", None),
            (HoldStatus::Rejected(refused), "rejected 0.00", Some("insufficient_funds")),
        ] {
            let PlaceHold { credit, asset, amount, metadata, .. } = order();
            let hold = Hold {
                ended_by: None,
                ordered_by: None,
                credit,
                asset,
                amount,
                metadata,
                status,
                captured: 1000,
                in_flight: None,
                expires_at_us: None,
                debit_after: None,
                created_at_us: 1,
                ended_at_us: Some(2),
            };
            let view = HoldView::stored(&order().key(), &hold, &assets).unwrap();
            assert_eq!(format!("{} {}", view.status, view.remaining), shown);
            assert_eq!((view.captured.as_str(), view.reject_code), ("10.00", code));
        }
    }
}
