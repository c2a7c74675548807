//! Results of batches, written item by item into one buffer.
//!
//! The `status` of an item says what became of it: `posted`, `pending` and `rejected` are stored under its id and will be
//! answered again; `failed` had no effect and stored nothing, so the id is as free or as taken as before; `unknown` may
//! have taken effect: the same id sent again tells.

use std::borrow::Cow;

use ledger::{Refusal, Refused, Side, outcome::TransferState};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    core::{
        call::CallError,
        reply::{AccountReply, NewTransfer, TransferReply},
    },
    http::{
        failure,
        openapi::values,
        problem::{Code, refusal_detail},
    },
};

/// Bytes of one result without a refusal, rounded up: what the buffer is reserved for.
pub const RESULT_BYTES: usize = 96;

/// The answer to a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchResults)]
pub struct BatchResultsSchema {
    /// In the order of the request.
    pub results: Vec<TransferResult<'static>>,
}

/// The answer to a batch of accounts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountBatchResults)]
pub struct AccountBatchResultsSchema {
    /// In the order of the request.
    pub results: Vec<AccountResult<'static>>,
}

/// What became of one transfer of a batch.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct TransferResult<'a> {
    #[schema(value_type = values::TransferId)]
    pub id: Uuid,
    #[schema(value_type = values::TransferResultStatus)]
    pub status: &'static str,
    /// The result is the stored one of an earlier request.
    pub replayed: bool,
    /// Why it is rejected or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub code: Option<&'static str>,
    /// Which account a refusal is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = values::Side, required = false)]
    pub side: Option<&'static str>,
    /// Which field differs from what is stored under the same id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub field: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub detail: Option<Cow<'a, str>>,
}

/// What became of one account of a batch.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct AccountResult<'a> {
    #[schema(value_type = values::AccountId)]
    pub id: Cow<'a, str>,
    #[schema(value_type = values::AccountResultStatus)]
    pub status: &'static str,
    /// The account was there: opened with equal content, or equal now.
    pub replayed: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub code: Option<&'static str>,
    /// Which field differs from the account that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub field: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub detail: Option<Cow<'a, str>>,
}

/// `{"results": [...]}` out of an iterator, without a list of results in between.
#[derive(Serialize)]
pub struct Results<I: Iterator<Item = T> + Clone, T: Serialize> {
    #[serde(serialize_with = "in_sequence")]
    pub results: I,
}

fn in_sequence<S: Serializer, T: Serialize>(
    results: &(impl Iterator<Item = T> + Clone),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(results.clone())
}

impl<'a> TransferResult<'a> {
    pub fn new(id: Uuid, reply: &'a Result<TransferReply, CallError>) -> Self {
        match reply {
            Ok(TransferReply::Done(answer) | TransferReply::Pending(answer)) => {
                let mut result = Self::plain(id, answer.state.as_str());
                result.replayed = answer.replayed;
                if let TransferState::Rejected { refused, .. } = answer.state {
                    result.refuse(refused);
                }
                result
            }
            Ok(TransferReply::Mismatch { field }) => {
                let definition = Code::IdempotencyMismatch.definition();
                Self {
                    code: Some(definition.code),
                    field: Some(Cow::Borrowed(field)),
                    detail: Some(Cow::Borrowed(definition.title)),
                    ..Self::plain(id, "failed")
                }
            }
            Ok(TransferReply::DebitNotFound) => {
                let mut result = Self::plain(id, "failed");
                result.refuse(Refused::debit(Refusal::AccountNotFound));
                result
            }
            Ok(TransferReply::HoldNotFound) => {
                let definition = Code::HoldNotFound.definition();
                let detail = Some(Cow::Borrowed(definition.title));
                Self { code: Some(definition.code), detail, ..Self::plain(id, "failed") }
            }
            Ok(TransferReply::NotStored(refused)) => {
                let mut result = Self::plain(id, "failed");
                result.refuse(*refused);
                result
            }
            Err(error) => {
                let (status, definition) = not_answered(error);
                let detail = Some(Cow::Borrowed(definition.title));
                Self { code: Some(definition.code), detail, ..Self::plain(id, status) }
            }
        }
    }

    fn plain(id: Uuid, status: &'static str) -> Self {
        Self { id, status, replayed: false, code: None, side: None, field: None, detail: None }
    }

    fn refuse(&mut self, refused: Refused) {
        self.code = Some(refused.refusal.as_str());
        self.side = refused.side.map(Side::as_str);
        self.detail = Some(Cow::Borrowed(refusal_detail(refused)));
    }
}

impl<'a> AccountResult<'a> {
    pub fn new(id: &'a str, reply: &'a Result<AccountReply, CallError>) -> Self {
        let plain =
            |status| Self { id: Cow::Borrowed(id), status, replayed: false, code: None, field: None, detail: None };
        match reply {
            Ok(AccountReply::Created(_)) => plain("created"),
            Ok(AccountReply::Replayed(_)) => Self { replayed: true, ..plain("created") },
            Ok(AccountReply::Conflict { field }) => {
                let definition = Code::AccountExists.definition();
                let detail = Some(Cow::Borrowed(definition.title));
                let field = Some(Cow::Borrowed(*field));
                Self { code: Some(definition.code), field, detail, ..plain("failed") }
            }
            Ok(AccountReply::Updated(_) | AccountReply::NotFound | AccountReply::Refused { .. }) => {
                tracing::error!(?reply, "opening an account was answered as something else");
                Self { code: Some(Code::Internal.as_str()), ..plain("unknown") }
            }
            Err(error) => {
                let (status, definition) = not_answered(error);
                let detail = Some(Cow::Borrowed(definition.title));
                Self { code: Some(definition.code), detail, ..plain(status) }
            }
        }
    }
}

/// Status and code of an item without an answer.
fn not_answered(error: &CallError) -> (&'static str, crate::http::problem::Definition) {
    let status = if error.is_not_executed() { "failed" } else { "unknown" };
    (status, failure::code(error).definition())
}

/// Results of transfers beside their orders' ids.
pub fn transfer_results<'a>(
    ids: &'a [Uuid],
    replies: &'a [Result<TransferReply, CallError>],
) -> Results<impl Iterator<Item = TransferResult<'a>> + Clone, TransferResult<'a>> {
    Results { results: ids.iter().zip(replies).map(|(id, reply)| TransferResult::new(*id, reply)) }
}

/// The ids of a batch, in order: the orders themselves go to the core.
pub fn ids(transfers: &[NewTransfer]) -> Vec<Uuid> {
    transfers.iter().map(|transfer| transfer.id.0).collect()
}

#[cfg(test)]
mod tests {
    use ledger::outcome::TransferAnswer;

    use super::*;

    fn answer(state: TransferState, replayed: bool) -> TransferAnswer {
        TransferAnswer {
            ordered_by: None,
            state,
            amount: 1,
            presumed: None,
            cross_shard: false,
            debit_after: None,
            created_at_us: 1,
            replayed,
        }
    }

    #[test]
    fn each_reply_has_its_words() {
        let unknown = CallError::OutcomeUnknown { shard: "s0".into() };
        let unavailable = CallError::Unavailable { shard: "s0".into() };
        let rejected = TransferState::Rejected { refused: Refused::debit(Refusal::InsufficientFunds), at_us: 2 };
        let replies = [
            (Ok(TransferReply::Done(answer(TransferState::Posted { at_us: 2 }, true))), "posted", None, true),
            (Ok(TransferReply::Done(answer(rejected, false))), "rejected", Some("insufficient_funds"), false),
            (Ok(TransferReply::Pending(answer(TransferState::Pending, false))), "pending", None, false),
            (Ok(TransferReply::Mismatch { field: "amount" }), "failed", Some("idempotency_mismatch"), false),
            (Ok(TransferReply::DebitNotFound), "failed", Some("account_not_found"), false),
            (
                Ok(TransferReply::NotStored(Refused::whole(Refusal::BatchFailed))),
                "failed",
                Some("batch_failed"),
                false,
            ),
            (Err(unknown), "unknown", Some("outcome_unknown"), false),
            (Err(unavailable), "failed", Some("shard_unavailable"), false),
        ];
        for (reply, status, code, replayed) in replies {
            let result = TransferResult::new(Uuid::from_u128(1), &reply);
            assert_eq!((result.status, result.code, result.replayed), (status, code, replayed));
        }
    }

    #[test]
    fn results_are_one_json_document() {
        let replies = [
            Ok(TransferReply::Done(answer(TransferState::Posted { at_us: 2 }, false))),
            Ok(TransferReply::Mismatch { field: "amount" }),
        ];
        let ids = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let text = serde_json::to_string(&transfer_results(&ids, &replies)).unwrap();
        assert!(text.starts_with(
            r#"{"results":[{"id":"00000000-0000-0000-0000-000000000001","status":"posted","replayed":false},{"#
        ));
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["results"][1]["field"], "amount");
    }
}
