//! Bodies about something that is stored already: captures and releases of a hold, reversals of a transfer.
//!
//! Accounts and asset come from what is stored. Until it is found, a derived id and the scale of an amount are not known.

use std::borrow::Cow;

use ledger::{AccountId, TransferId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{IdSource, explain},
    fields, rules, typed,
};
use crate::http::{
    openapi::values,
    problem::{Code, Problem},
};

/// What to capture of a hold.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewCapture)]
#[serde(deny_unknown_fields)]
pub struct CaptureBody<'a> {
    /// The capture's own, as a transfer of the hold's debit account. `Idempotency-Key` may stand for it.
    #[serde(default, deserialize_with = "fields::transfer_id")]
    #[schema(value_type = Option<values::TransferId>)]
    id: Option<TransferId>,
    /// All that remains, unless given.
    #[serde(borrow, default)]
    #[schema(value_type = Option<values::PositiveAmount>)]
    amount: Option<Cow<'a, str>>,
    /// Whether what then remains of the hold is released, which it is unless this is `false`: then it stays held for further captures.
    // No `default` in the description: some generators of clients make a member with a default mandatory.
    #[serde(rename = "final", default = "released_unless_told")]
    #[schema(required = false)]
    finalize: bool,
}

const CAPTURE_FIELDS: &[&str] = &["id", "amount", "final"];

fn released_unless_told() -> bool {
    true
}

/// What to reverse of a transfer.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewReversal)]
#[serde(deny_unknown_fields)]
pub struct ReversalBody<'a> {
    /// The reversal's own, as a transfer of the original's credit account. `Idempotency-Key` may stand for it.
    #[serde(default, deserialize_with = "fields::transfer_id")]
    #[schema(value_type = Option<values::TransferId>)]
    id: Option<TransferId>,
    /// All that is left to reverse, unless given.
    #[serde(borrow, default)]
    #[schema(value_type = Option<values::PositiveAmount>)]
    amount: Option<Cow<'a, str>>,
}

const REVERSAL_FIELDS: &[&str] = &["id", "amount"];

/// A release has nothing to say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseBody {}

/// A capture or reversal as ordered.
#[derive(Debug)]
pub struct FollowUp {
    name: Name,
    amount: Option<String>,
    /// Of a capture.
    pub finalize: bool,
}

#[derive(Debug)]
enum Name {
    Id(TransferId),
    Key(String),
}

/// Reads a capture. Without an id of its own it takes the one derived from `key`.
pub fn capture(text: &str, rulebook: &Rulebook, key: Option<&str>) -> Result<FollowUp, Problem> {
    let fast = || {
        let CaptureBody { id, amount, finalize } = typed(text)?;
        FollowUp::new(id, key, amount, finalize)
    };
    fast().ok_or_else(|| explain_follow_up(text, rulebook, CAPTURE_FIELDS, key))
}

/// Reads a reversal. Without an id of its own it takes the one derived from `key`.
pub fn reversal(text: &str, rulebook: &Rulebook, key: Option<&str>) -> Result<FollowUp, Problem> {
    let fast = || {
        let ReversalBody { id, amount } = typed(text)?;
        FollowUp::new(id, key, amount, false)
    };
    fast().ok_or_else(|| explain_follow_up(text, rulebook, REVERSAL_FIELDS, key))
}

/// Checks the body of a release.
pub fn release(text: &str, rulebook: &Rulebook) -> Result<(), Problem> {
    match typed(text) {
        Some(ReleaseBody {}) => Ok(()),
        None => Err(explain(text, rulebook, |explanation, node| {
            explanation.object(node, "", &[]);
        })),
    }
}

impl FollowUp {
    /// `None` where something is wrong with it.
    fn new(id: Option<TransferId>, key: Option<&str>, amount: Option<Cow<'_, str>>, finalize: bool) -> Option<Self> {
        let name = match id {
            Some(id) => Name::Id(id),
            None => Name::Key(key?.to_owned()),
        };
        let plausible = |text: &str| rules::positive_amount(text, rules::written_scale(text)).is_ok();
        let amount = amount.map(Cow::into_owned);
        amount.as_deref().is_none_or(plausible).then_some(Self { name, amount, finalize })
    }

    /// Its id as a transfer of this account.
    pub fn id(&self, debit: &AccountId) -> TransferId {
        match &self.name {
            Name::Id(id) => *id,
            Name::Key(key) => rules::derived_transfer_id(debit, key),
        }
    }

    /// The amount in minor units, now that the scale is known; `None` for all there is.
    pub fn amount(&self, scale: u32) -> Result<Option<i64>, Problem> {
        let Some(text) = &self.amount else { return Ok(None) };
        rules::positive_amount(text, scale)
            .map(Some)
            .map_err(|detail| Problem::body(Code::InvalidAmount, "/amount", detail))
    }
}

fn explain_follow_up(text: &str, rulebook: &Rulebook, known: &[&str], key: Option<&str>) -> Problem {
    explain(text, rulebook, |explanation, node| {
        let Some(members) = explanation.object(node, "", known) else { return };
        explanation.transfer_id(members, IdSource::body_or(key));
        explanation.optional_amount(members);
        explanation.boolean(members, "final");
    })
}
