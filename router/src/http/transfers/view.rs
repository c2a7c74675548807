//! How a transfer is shown, with the steps of one between shards.

use std::collections::BTreeMap;

use ledger::{
    AssetRegistry,
    operation::Purpose,
    outcome::{DebitAfter, TransferAnswer, TransferState},
};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;
use uuid::Uuid;
use wire::convert::{id_from_wire, purpose_from_wire};

use crate::{
    core::reply::{FoundTransfer, NewTransfer},
    http::{
        access::Access,
        answer::{Scale, limit, metadata, nonsense},
        problem::Problem,
        schemas,
    },
};

/// The status of what a dry run would post or hold.
pub const WOULD_POST: &str = "would_post";
/// The status of a posted transfer of which nothing is left to be reversed.
const REVERSED: &str = "reversed";

/// A transfer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Transfer)]
pub struct TransferView {
    #[schema(value_type = schemas::TransferId)]
    pub id: Uuid,
    #[schema(value_type = schemas::TransferStatus)]
    pub status: &'static str,
    #[schema(value_type = schemas::Scope)]
    pub scope: &'static str,
    #[schema(value_type = schemas::AccountId)]
    pub debit: String,
    #[schema(value_type = schemas::AccountId)]
    pub credit: String,
    /// Of a capture of all that remains, refused because nothing did: zero.
    #[schema(value_type = schemas::Amount)]
    pub amount: String,
    #[schema(value_type = schemas::Asset)]
    pub asset: String,
    #[schema(value_type = schemas::Metadata)]
    pub metadata: BTreeMap<String, String>,
    /// Of a capture: the hold that it took its amount from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::TransferId, required = false)]
    pub hold: Option<Uuid>,
    /// Of a capture: whether it released what was left of the hold.
    #[serde(rename = "final", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub finalizes: Option<bool>,
    /// Of a reversal: the transfer it reverses, which belongs to the credit account.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::TransferId, required = false)]
    pub reverses: Option<Uuid>,
    /// How much of it was reversed; absent while nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::PositiveAmount, required = false)]
    pub reversed_amount: Option<String>,
    /// The reversals, which belong to the credit account: the first hundred.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<schemas::TransferId>, required = false)]
    pub reversed_by: Option<Vec<Uuid>>,
    /// The debit account right after this transfer took its amount and, of a final capture, released the rest; absent where
    /// the transfer is rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub debit_account: Option<DebitAccountView>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Time, required = false)]
    pub posted_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Time, required = false)]
    pub rejected_at: Option<String>,
    /// The name of the API key of the first request with this id; shown to keys that may read the debit account, absent without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::KeyName, required = false)]
    pub ordered_by: Option<String>,
    /// What happened so far, for a cross-shard transfer; absent in lists, and while the shard of the verdict does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub steps: Option<Vec<StepView>>,
}

/// The debit account after a transfer or hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DebitAccount)]
pub struct DebitAccountView {
    #[schema(value_type = schemas::Amount)]
    pub posted: String,
    #[schema(value_type = schemas::Amount)]
    pub held: String,
    #[schema(value_type = schemas::Available)]
    pub available: String,
    #[schema(minimum = 1)]
    pub version: i64,
}

/// What is the same in the answer to an order and in a stored record.
struct OrderView {
    id: Uuid,
    debit: String,
    credit: String,
    amount: i64,
    asset: String,
    scale: Scale,
    metadata: BTreeMap<String, String>,
    purpose: Purpose,
    ordered_by: Option<String>,
}

impl TransferView {
    /// Without the balances of the debit account and without the key's name, unless the sender of the request may read that account.
    pub fn shown_to(mut self, access: &Access) -> Self {
        if !access.may_read_text(&self.debit) {
            self.debit_account = None;
            self.ordered_by = None;
        }
        self
    }

    /// The answer to an order.
    pub fn ordered(order: &NewTransfer, answer: &TransferAnswer, assets: &AssetRegistry) -> Result<Self, Problem> {
        let terms = OrderView {
            id: order.id.0,
            debit: order.debit.to_string(),
            credit: order.credit.to_string(),
            // A capture of all that remains learns its amount from the ledger.
            amount: answer.amount,
            asset: order.asset.to_string(),
            scale: Scale::of(order.asset, assets)?,
            metadata: metadata(order.metadata.as_str())?,
            purpose: order.purpose,
            ordered_by: answer.ordered_by.as_ref().map(ToString::to_string),
        };
        Ok(Self::new(terms, answer.state, answer.cross_shard, answer.debit_after, answer.created_at_us))
    }

    /// The answer to an order that was only tried, and would be posted.
    pub fn tried(order: &NewTransfer, answer: &TransferAnswer, assets: &AssetRegistry) -> Result<Self, Problem> {
        let posted = Self::ordered(order, answer, assets)?;
        Ok(Self { status: WOULD_POST, posted_at: None, ordered_by: None, ..posted })
    }

    /// A stored transfer, with its steps and what was reversed of it.
    pub fn stored(found: FoundTransfer, assets: &AssetRegistry) -> Result<Self, Problem> {
        let record = &found.record;
        let asset = wire::convert::asset(&record.asset).map_err(nonsense)?;
        let state = wire::convert::state_from_wire(record.status, record.refusal, record.side, record.finished_at_us)
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
        let terms = OrderView {
            id: id_from_wire(&record.id).map_err(nonsense)?.0,
            debit: record.debit.clone(),
            credit: record.credit.clone(),
            amount: record.amount,
            asset: asset.to_string(),
            scale: Scale::of(asset, assets)?,
            metadata: metadata(&record.metadata)?,
            purpose: purpose_from_wire(record.purpose.clone()).map_err(nonsense)?,
            ordered_by: Some(record.ordered_by.clone()).filter(|name| !name.is_empty()),
        };
        let scale = terms.scale;
        let mut view = Self::new(terms, state, record.cross_shard, debit_after, record.created_at_us);
        if record.reversed > 0 {
            let reversals = record.reversals.iter().map(|id| id_from_wire(id).map(|id| id.0));
            view.reversed_amount = Some(scale.amount(record.reversed));
            view.reversed_by = Some(reversals.collect::<Result<_, _>>().map_err(nonsense)?);
            if record.reversed == record.amount {
                view.status = REVERSED;
            }
        }
        if record.cross_shard {
            view.steps = steps(&found, state);
        }
        Ok(view)
    }

    fn new(
        terms: OrderView,
        state: TransferState,
        cross_shard: bool,
        debit_after: Option<DebitAfter>,
        created_at_us: i64,
    ) -> Self {
        let finished_at = state.finished_at_us().map(format_rfc3339);
        let refused = state.refused();
        let (posted_at, rejected_at) = if refused.is_none() { (finished_at, None) } else { (None, finished_at) };
        Self {
            id: terms.id,
            status: state.as_str(),
            scope: if cross_shard { "cross_shard" } else { "local" },
            debit: terms.debit,
            credit: terms.credit,
            amount: terms.scale.amount(terms.amount),
            asset: terms.asset,
            metadata: terms.metadata,
            hold: terms.purpose.captured_hold().map(|id| id.0),
            finalizes: terms.purpose.captured_hold().map(|_| terms.purpose.finalizes()),
            reverses: terms.purpose.reversed_transfer().map(|id| id.0),
            reversed_amount: None,
            reversed_by: None,
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
            ordered_by: terms.ordered_by,
            steps: None,
        }
    }
}

impl DebitAccountView {
    pub fn new(after: DebitAfter, scale: Scale) -> Self {
        Self {
            posted: scale.amount(after.posted),
            held: scale.amount(after.held),
            available: scale.available(after.posted, after.held, after.overdraft),
            version: after.version,
        }
    }
}

// === steps ===

/// One durable step of a cross-shard transfer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
pub struct StepView {
    #[schema(value_type = schemas::StepName)]
    pub step: &'static str,
    pub shard: String,
    #[schema(value_type = schemas::Time)]
    pub at: String,
}

/// The steps that the record and the register prove; nothing is inferred from time. `None`: the register could not be read, or was read before
/// the record. A list with a hole would look whole.
fn steps(found: &FoundTransfer, state: TransferState) -> Option<Vec<StepView>> {
    let record = &found.record;
    let at_source = |step, at_us| StepView { step, shard: found.shard.to_string(), at: format_rfc3339(at_us) };
    let reserved = record.debit_after.is_some();
    let decided = match state {
        TransferState::Posted { .. } => true,
        TransferState::Rejected { .. } => reserved,
        TransferState::Pending => false,
    };
    if found.register.is_none() && (decided || found.verdict_unread) {
        return None;
    }
    let mut steps = Vec::new();
    if reserved {
        steps.push(at_source("reserve", record.created_at_us));
    }
    if let Some((register, shard)) = &found.register {
        let at = format_rfc3339(register.decided_at_us);
        steps.push(StepView { step: "decide", shard: shard.to_string(), at });
    }
    match state {
        TransferState::Pending => {}
        TransferState::Posted { at_us } => steps.push(at_source("settle", at_us)),
        TransferState::Rejected { at_us, .. } if reserved => steps.push(at_source("compensate", at_us)),
        // Presumed to be refused, and the verdict was: there is nothing to give back.
        TransferState::Rejected { at_us, .. } if found.register.is_some() => steps.push(at_source("settle", at_us)),
        // Refused by its debit side outright: there was no saga.
        TransferState::Rejected { .. } => {}
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use ledger::{Limit, Refusal, Refused};

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
            verdict_unread: false,
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
    fn captures_and_reversals_name_what_they_are_of() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let (hold, original) = (ledger::TransferId(Uuid::from_u128(8)), ledger::TransferId(Uuid::from_u128(9)));
        let with = |purpose| {
            let mut found = found(TransferState::POSTED, None, true, true);
            found.record.purpose = wire::convert::purpose_to_wire(purpose);
            TransferView::stored(found, &assets).unwrap()
        };
        let capture = with(Purpose::Capture { hold, whole: true, finalize: false });
        assert_eq!((capture.hold, capture.finalizes, capture.reverses), (Some(hold.0), Some(false), None));
        let reversal = with(Purpose::Reversal { of: original, whole: false });
        assert_eq!((reversal.hold, reversal.finalizes, reversal.reverses), (None, None, Some(original.0)));
    }

    #[test]
    fn what_was_reversed_shows_and_all_of_it_is_a_status() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        for (reversed, status, amount) in
            [(0, "posted", None), (500, "posted", Some("5.00")), (1234, "reversed", Some("12.34"))]
        {
            let mut found = found(TransferState::POSTED, None, true, true);
            found.record.reversed = reversed;
            found.record.reversals = vec![vec![3; 16].into()];
            let view = TransferView::stored(found, &assets).unwrap();
            assert_eq!((view.status, view.reversed_amount.as_deref()), (status, amount));
            assert_eq!(view.reversed_by.map(|ids| ids.len()), amount.map(|_| 1));
        }
    }

    #[test]
    fn a_rejection_says_why() {
        let refused = Refused::credit(Refusal::LimitExceeded);
        let order = NewTransfer {
            ordered_by: None,
            id: ledger::TransferId(Uuid::from_u128(1)),
            debit: ledger::AccountId::client("a").unwrap(),
            credit: ledger::AccountId::client("b").unwrap(),
            asset: ledger::AssetCode::new("USD").unwrap(),
            amount: 1,
            metadata: ledger::Metadata::empty(),
            purpose: Purpose::Payment,
        };
        let answer = TransferAnswer {
            ordered_by: None,
            state: TransferState::Rejected { refused, at_us: 5 },
            amount: 1,
            presumed: None,
            cross_shard: false,
            debit_after: None,
            created_at_us: 5,
            replayed: false,
        };
        let view = TransferView::ordered(&order, &answer, &AssetRegistry::with_declared([]).unwrap()).unwrap();
        assert_eq!((view.reject_code, view.side), (Some("limit_exceeded"), Some("credit")));
        assert!(view.rejected_at.is_some() && view.posted_at.is_none());
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
            (found(TransferState::REJECTED, Some(Refusal::ExceedsHold), false, true), vec!["decide s1", "settle s0"]),
        ] {
            let view = TransferView::stored(found, &assets).unwrap();
            let steps: Vec<_> = view.steps.unwrap().iter().map(|s| format!("{} {}", s.step, s.shard)).collect();
            assert_eq!(steps, expected);
        }
    }

    #[test]
    fn steps_with_a_hole_are_not_shown() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let steps = |found| TransferView::stored(found, &assets).unwrap().steps;
        assert!(steps(found(TransferState::POSTED, None, true, false)).is_none(), "settled without its verdict");
        let unread = |status| FoundTransfer { verdict_unread: true, ..found(status, None, true, false) };
        assert!(steps(unread(TransferState::PENDING)).is_none(), "the verdict is not known");
    }
}
