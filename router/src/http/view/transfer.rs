//! Transfers.

use std::collections::BTreeMap;

use ledger::{
    AssetRegistry, Limit,
    outcome::{DebitAfter, TransferAnswer, TransferState},
};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;
use uuid::Uuid;
use wire::convert::id_from_wire;

use super::{Scale, limit, metadata, nonsense};
use crate::{
    http::problem::Problem,
    service::{FoundTransfer, NewTransfer},
};

/// A transfer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Transfer)]
pub struct TransferView {
    pub id: Uuid,
    /// `pending`, `posted` or `rejected`.
    pub status: &'static str,
    /// `local` (both accounts on one shard) or `cross_shard`.
    pub scope: &'static str,
    pub debit: String,
    pub credit: String,
    #[schema(example = "12.34")]
    pub amount: String,
    pub asset: String,
    pub metadata: BTreeMap<String, String>,
    /// The debit account right after this transfer took its amount; absent where the transfer is
    /// rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debit_account: Option<DebitAccountView>,
    /// Why it is rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reject_code: Option<&'static str>,
    /// Which account the rejection is about: `debit` or `credit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<&'static str>,
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub posted_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_at: Option<String>,
    /// What happened so far, for a cross-shard transfer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<StepView>>,
}

/// The debit account after a transfer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DebitAccount)]
pub struct DebitAccountView {
    pub posted: String,
    pub held: String,
    pub available: String,
    pub version: i64,
}

/// One durable step of a cross-shard transfer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
pub struct StepView {
    /// `reserve` (payer to in-transit), `decide` (the verdict at the payee's shard), then `settle` or `compensate`.
    pub step: &'static str,
    pub shard: String,
    pub at: String,
}

/// What is the same in the answer to an order and in a stored record.
struct Terms {
    id: Uuid,
    debit: String,
    credit: String,
    amount: i64,
    asset: String,
    scale: Scale,
    metadata: BTreeMap<String, String>,
}

impl TransferView {
    /// The answer to an order.
    pub fn ordered(order: &NewTransfer, answer: &TransferAnswer, assets: &AssetRegistry) -> Result<Self, Problem> {
        let terms = Terms {
            id: order.id.0,
            debit: order.debit.to_string(),
            credit: order.credit.to_string(),
            amount: order.amount,
            asset: order.asset.to_string(),
            scale: Scale::of(order.asset, assets)?,
            metadata: metadata(order.metadata.as_str())?,
        };
        Ok(Self::new(terms, answer.state, answer.cross_shard, answer.debit_after, answer.created_at_us))
    }

    /// A stored transfer, with its steps.
    pub fn stored(found: FoundTransfer, assets: &AssetRegistry) -> Result<Self, Problem> {
        let record = &found.record;
        let asset = wire::convert::asset(&record.asset).map_err(nonsense)?;
        let state =
            wire::convert_outcome::state_from_wire(record.status, record.refusal, record.side, record.finished_at_us)
                .map_err(nonsense)?;
        let debit_after = match &record.debit_after {
            None => None,
            Some(after) => Some(DebitAfter {
                posted: after.posted,
                held: after.held,
                overdraft: limit(after.overdraft, "debit_after.overdraft")?,
                version: after.version,
            }),
        };
        let terms = Terms {
            id: id_from_wire(&record.id).map_err(nonsense)?.0,
            debit: record.debit.clone(),
            credit: record.credit.clone(),
            amount: record.amount,
            asset: asset.to_string(),
            scale: Scale::of(asset, assets)?,
            metadata: metadata(&record.metadata)?,
        };
        let mut view = Self::new(terms, state, record.cross_shard, debit_after, record.created_at_us);
        if record.cross_shard {
            view.steps = Some(steps(&found, state));
        }
        Ok(view)
    }

    fn new(
        terms: Terms,
        state: TransferState,
        cross_shard: bool,
        debit_after: Option<DebitAfter>,
        created_at_us: i64,
    ) -> Self {
        let finished_at = state.finished_at_us().map(format_rfc3339);
        let (posted_at, rejected_at, refused) = match state {
            TransferState::Pending => (None, None, None),
            TransferState::Posted { .. } => (finished_at, None, None),
            TransferState::Rejected { refused, .. } => (None, finished_at, Some(refused)),
        };
        Self {
            id: terms.id,
            status: state.as_str(),
            scope: if cross_shard { "cross_shard" } else { "local" },
            debit: terms.debit,
            credit: terms.credit,
            amount: terms.scale.amount(terms.amount),
            asset: terms.asset,
            metadata: terms.metadata,
            // A compensated transfer did take its amount for a while, which one between accounts of one shard never does: it
            // is nothing to tell, because it is back.
            debit_account: debit_after
                .filter(|_| refused.is_none())
                .map(|after| DebitAccountView::new(after, terms.scale)),
            reject_code: refused.map(|refused| refused.refusal.as_str()),
            side: refused.and_then(|refused| refused.side).map(ledger::Side::as_str),
            created_at: format_rfc3339(created_at_us),
            posted_at,
            rejected_at,
            steps: None,
        }
    }
}

impl DebitAccountView {
    fn new(after: DebitAfter, scale: Scale) -> Self {
        let overdraft: Limit = after.overdraft;
        Self {
            posted: scale.amount(after.posted),
            held: scale.amount(after.held),
            available: scale.available(after.posted, after.held, overdraft),
            version: after.version,
        }
    }
}

/// The steps that left a trace: the record and the register are all there is, nothing is inferred from time.
fn steps(found: &FoundTransfer, state: TransferState) -> Vec<StepView> {
    let record = &found.record;
    let at_source = |step, at_us| StepView { step, shard: found.shard.to_string(), at: format_rfc3339(at_us) };
    // Refused by its debit side: nothing was reserved, so there was no saga.
    if record.debit_after.is_none() {
        return Vec::new();
    }
    let mut steps = vec![at_source("reserve", record.created_at_us)];
    if let Some((register, shard)) = &found.register {
        let at = format_rfc3339(register.decided_at_us);
        steps.push(StepView { step: "decide", shard: shard.to_string(), at });
    }
    match state {
        TransferState::Pending => {}
        TransferState::Posted { at_us } => steps.push(at_source("settle", at_us)),
        TransferState::Rejected { at_us, .. } => steps.push(at_source("compensate", at_us)),
    }
    steps
}

#[cfg(test)]
mod tests {
    use ledger::{Refusal, Refused};

    use super::*;

    fn found(status: u8, refusal: Option<Refusal>, reserved: bool, decided: bool) -> FoundTransfer {
        let register = wire::RegisterRecord { decided_at_us: 2_000_000, ..Default::default() };
        FoundTransfer {
            record: wire::TransferRecord {
                id: vec![7; 16].into(),
                debit: "a".into(),
                credit: "b".into(),
                asset: "USD".into(),
                amount: 1234,
                cross_shard: true,
                status: status.into(),
                refusal: refusal.map_or(0, |r| r.code().into()),
                debit_after: reserved.then(|| wire::DebitAfter {
                    posted: -500,
                    held: 0,
                    overdraft: Some(Limit::AtMost(1000).into()),
                    version: 3,
                }),
                created_at_us: 1_000_000,
                finished_at_us: if status == TransferState::PENDING { 0 } else { 3_000_000 },
                ..Default::default()
            },
            shard: "s0".into(),
            register: decided.then(|| (register, "s1".into())),
        }
    }

    #[test]
    fn steps_follow_what_is_stored() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        for (found, expected) in [
            (found(TransferState::PENDING, None, true, false), vec!["reserve s0"]),
            (found(TransferState::PENDING, None, true, true), vec!["reserve s0", "decide s1"]),
            (found(TransferState::POSTED, None, true, true), vec!["reserve s0", "decide s1", "settle s0"]),
            (
                found(TransferState::REJECTED, Some(Refusal::AccountClosed), true, true),
                vec!["reserve s0", "decide s1", "compensate s0"],
            ),
            (found(TransferState::REJECTED, Some(Refusal::InsufficientFunds), false, false), vec![]),
        ] {
            let view = TransferView::stored(found, &assets).unwrap();
            let steps: Vec<_> = view.steps.unwrap().iter().map(|s| format!("{} {}", s.step, s.shard)).collect();
            assert_eq!(steps, expected);
        }
    }

    #[test]
    fn amounts_carry_the_full_scale() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let view = TransferView::stored(found(TransferState::POSTED, None, true, true), &assets).unwrap();
        assert_eq!(view.amount, "12.34");
        let debit = view.debit_account.unwrap();
        assert_eq!((debit.posted.as_str(), debit.available.as_str()), ("-5.00", "5.00"));
        assert_eq!(view.posted_at.as_deref(), Some("1970-01-01T00:00:03.000000Z"));
    }

    #[test]
    fn a_rejection_says_why() {
        let refused = Refused::credit(Refusal::LimitExceeded);
        let order = NewTransfer {
            id: ledger::TransferId(Uuid::from_u128(1)),
            debit: ledger::AccountId::client("a").unwrap(),
            credit: ledger::AccountId::client("b").unwrap(),
            asset: ledger::AssetCode::new("USD").unwrap(),
            amount: 1,
            metadata: ledger::Metadata::empty(),
        };
        let answer = TransferAnswer {
            state: TransferState::Rejected { refused, at_us: 5 },
            cross_shard: false,
            debit_after: None,
            created_at_us: 5,
            replayed: false,
        };
        let view = TransferView::ordered(&order, &answer, &AssetRegistry::with_declared([]).unwrap()).unwrap();
        assert_eq!((view.reject_code, view.side), (Some("limit_exceeded"), Some("credit")));
        assert!(view.rejected_at.is_some() && view.posted_at.is_none());
    }
}
