//! The stable codes of the contract, each with its status, title and what it says about execution: the only such table.

use http::StatusCode;
use ledger::{Refusal, Refused, Side};
use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, OneOfBuilder, RefOr, Schema, Type},
};

/// The `code` of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// No HTTP: it never became a request.
    InvalidRequest,
    UriTooLong,
    HeadTooLarge,
    InvalidJson,
    UnknownField,
    InvalidId,
    InvalidAmount,
    InvalidAsset,
    SameAccount,
    IdempotencyRequired,
    DuplicateId,
    InvalidMetadata,
    InvalidExpiry,
    InvalidStatus,
    UnknownParameter,
    InvalidParameter,
    RequestTimeout,
    BodyTooLarge,
    BatchTooLarge,
    UnsupportedMediaType,
    /// No key, or none that is good.
    Unauthenticated,
    /// The key does not permit it.
    NotPermitted,
    NotFound,
    MethodNotAllowed,
    /// The account the URL names. One that a transfer names is a [`Code::Refused`].
    AccountNotFound,
    TransferNotFound,
    HoldNotFound,
    SagaNotFound,
    AccountExists,
    AmbiguousId,
    InvalidShardMap,
    IdempotencyMismatch,
    Refused(Refusal),
    Undetermined,
    RateLimited,
    ShardUnavailable,
    Overloaded,
    ShuttingDown,
    OutcomeUnknown,
    Internal,
}

/// What an error says about the effect of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executed {
    /// It certainly had no effect and never will.
    No,
    /// Resend the same id to learn.
    Unknown,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    pub code: &'static str,
    pub status: StatusCode,
    pub title: &'static str,
    pub retryable: bool,
    pub executed: Executed,
}

impl Code {
    /// The malformed-request codes in the order the contract answers them.
    const PRECEDENCE: [Self; 13] = [
        Self::InvalidJson,
        Self::UnknownField,
        Self::InvalidId,
        Self::InvalidAmount,
        Self::InvalidAsset,
        Self::SameAccount,
        Self::IdempotencyRequired,
        Self::DuplicateId,
        Self::InvalidMetadata,
        Self::InvalidExpiry,
        Self::InvalidStatus,
        Self::UnknownParameter,
        Self::InvalidParameter,
    ];

    /// Smaller is answered first.
    pub fn precedence(self) -> usize {
        Self::PRECEDENCE.iter().position(|code| *code == self).unwrap_or(Self::PRECEDENCE.len())
    }

    pub fn as_str(self) -> &'static str {
        self.definition().code
    }

    pub fn definition(self) -> Definition {
        use Executed::{No, Unknown};
        use StatusCode as S;
        let (code, status, title, retryable, executed) = match self {
            Self::InvalidRequest => ("invalid_request", S::BAD_REQUEST, "The request is not HTTP", false, No),
            Self::UriTooLong => ("uri_too_long", S::URI_TOO_LONG, "The request's target is too long", false, No),
            Self::HeadTooLarge => (
                "head_too_large",
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request's headers are too large",
                false,
                No,
            ),
            Self::InvalidJson => ("invalid_json", S::BAD_REQUEST, "The body is not the JSON expected", false, No),
            Self::UnknownField => ("unknown_field", S::BAD_REQUEST, "Unknown field", false, No),
            Self::InvalidId => ("invalid_id", S::BAD_REQUEST, "Invalid id", false, No),
            Self::InvalidAmount => ("invalid_amount", S::BAD_REQUEST, "Invalid amount", false, No),
            Self::InvalidAsset => ("invalid_asset", S::BAD_REQUEST, "Invalid or unknown asset", false, No),
            Self::SameAccount => ("same_account", S::BAD_REQUEST, "Debit and credit are one account", false, No),
            Self::IdempotencyRequired => {
                ("idempotency_required", S::BAD_REQUEST, "An id or an Idempotency-Key is required", false, No)
            }
            Self::DuplicateId => ("duplicate_id", S::BAD_REQUEST, "The same id twice in one batch", false, No),
            Self::InvalidMetadata => ("invalid_metadata", S::BAD_REQUEST, "Invalid metadata", false, No),
            Self::InvalidExpiry => ("invalid_expiry", S::BAD_REQUEST, "Invalid time to expire", false, No),
            Self::InvalidStatus => ("invalid_status", S::BAD_REQUEST, "Invalid account status", false, No),
            Self::UnknownParameter => ("unknown_parameter", S::BAD_REQUEST, "Unknown query parameter", false, No),
            Self::InvalidParameter => ("invalid_parameter", S::BAD_REQUEST, "Invalid parameter or header", false, No),
            Self::RequestTimeout => ("request_timeout", S::REQUEST_TIMEOUT, "The body came too slowly", true, No),
            Self::BodyTooLarge => ("body_too_large", S::PAYLOAD_TOO_LARGE, "The body is too large", false, No),
            Self::BatchTooLarge => {
                ("batch_too_large", S::PAYLOAD_TOO_LARGE, "Too many items in one batch", false, No)
            }
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", S::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", false, No)
            }
            Self::Unauthenticated => ("unauthenticated", S::UNAUTHORIZED, "A valid key is required", false, No),
            Self::NotPermitted => ("not_permitted", S::FORBIDDEN, "The key does not permit this", false, No),
            Self::NotFound => ("not_found", S::NOT_FOUND, "No such resource", false, No),
            Self::MethodNotAllowed => ("method_not_allowed", S::METHOD_NOT_ALLOWED, "Method not allowed", false, No),
            Self::AccountNotFound => ("account_not_found", S::NOT_FOUND, "No such account", false, No),
            Self::HoldNotFound => ("hold_not_found", S::NOT_FOUND, "No such hold", false, No),
            Self::TransferNotFound => ("transfer_not_found", S::NOT_FOUND, "No such transfer", false, No),
            Self::SagaNotFound => ("saga_not_found", S::NOT_FOUND, "No such pending transfer", false, No),
            Self::AccountExists => {
                ("account_exists", S::CONFLICT, "The account exists with other content", false, No)
            }
            Self::AmbiguousId => ("ambiguous_id", S::CONFLICT, "Several transfers or holds have this id", false, No),
            Self::InvalidShardMap => {
                ("invalid_shard_map", S::UNPROCESSABLE_ENTITY, "The shard map was refused", false, No)
            }
            Self::IdempotencyMismatch => {
                ("idempotency_mismatch", S::UNPROCESSABLE_ENTITY, "The id is in use with other content", false, No)
            }
            Self::Refused(refusal) => (refusal.as_str(), refusal_status(refusal), refusal_title(refusal), false, No),
            Self::Undetermined => {
                ("undetermined", S::CONFLICT, "The answer depends on transfers under way", true, No)
            }
            Self::RateLimited => ("rate_limited", S::TOO_MANY_REQUESTS, "Too many requests", true, No),
            Self::ShardUnavailable => {
                ("shard_unavailable", S::SERVICE_UNAVAILABLE, "A shard is out of reach", true, No)
            }
            Self::Overloaded => ("overloaded", S::SERVICE_UNAVAILABLE, "Too much work is waiting", true, No),
            Self::ShuttingDown => ("shutting_down", S::SERVICE_UNAVAILABLE, "The router is shutting down", true, No),
            Self::OutcomeUnknown => {
                ("outcome_unknown", S::GATEWAY_TIMEOUT, "The outcome could not be learnt in time", true, Unknown)
            }
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "Internal error", true, Unknown),
        };
        Definition { code, status, title, retryable, executed }
    }
}

fn refusal_status(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::AccountNotEmpty | Refusal::HoldCaptured | Refusal::HoldReleased | Refusal::HoldExpired => {
            StatusCode::CONFLICT
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

fn refusal_title(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::AccountNotFound => "No such account",
        Refusal::AssetMismatch => "The account holds another asset",
        Refusal::AccountClosed => "The account is closed",
        Refusal::AccountFrozen => "The account is frozen",
        Refusal::InsufficientFunds => "Insufficient funds",
        Refusal::LimitExceeded => "The balance limit would be exceeded",
        Refusal::BalanceOverflow => "The balance would overflow",
        Refusal::ExceedsHold => "More than the hold has left",
        Refusal::AlreadyReversed => "Already reversed",
        Refusal::AtomicCrossShard => "An atomic batch spans shards",
        Refusal::BatchFailed => "Another item failed the batch",
        Refusal::AccountNotEmpty => "The account is not empty",
        Refusal::Cancelled => "The transfer was given up",
        Refusal::HoldCaptured => "The hold is captured",
        Refusal::HoldReleased => "The hold is released",
        Refusal::HoldExpired => "The hold has expired",
    }
}

/// One sentence about a refusal, for people.
pub fn refusal_detail(refused: Refused) -> &'static str {
    let debit = refused.side == Some(Side::Debit);
    match refused.refusal {
        Refusal::AccountNotFound if debit => "the debit account does not exist; nothing is stored, the id stays free",
        Refusal::AccountNotFound => "the credit account does not exist",
        Refusal::AssetMismatch if debit => "the debit account holds another asset than the transfer's",
        Refusal::AssetMismatch => "the credit account holds another asset than the transfer's",
        Refusal::AccountClosed if debit => "the debit account is closed",
        Refusal::AccountClosed => "the credit account is closed",
        Refusal::AccountFrozen => "the debit account is frozen",
        Refusal::InsufficientFunds if debit => "the account has less available than that",
        Refusal::InsufficientFunds => "more than that overdraft is in use",
        Refusal::LimitExceeded => "the credit account's max_balance would be exceeded",
        Refusal::BalanceOverflow if debit => "the debit account's balance would leave the range the ledger can hold",
        Refusal::BalanceOverflow if refused.side.is_none() => {
            "the net that one of the two shards ever paid to the others would leave the range the ledger can hold"
        }
        Refusal::BalanceOverflow => "the credit account's balance would leave the range the ledger can hold",
        Refusal::ExceedsHold => "the amount exceeds what remains of the hold",
        Refusal::AlreadyReversed => {
            "less than that of the transfer is left to be reversed; nothing is of one that was rejected"
        }
        Refusal::AtomicCrossShard => "all accounts of an atomic batch must live on one shard; nothing is stored",
        Refusal::BatchFailed => "another item failed the atomic batch; nothing is stored, the id stays free",
        Refusal::AccountNotEmpty => {
            "an account can be closed only with a zero balance, no open hold and no transfer of its own in flight"
        }
        Refusal::Cancelled => "the transfer was given up before its credit side decided; the money is back",
        Refusal::HoldCaptured => "the hold is captured; nothing of it remains",
        Refusal::HoldReleased => "the hold is released; its money is available again",
        Refusal::HoldExpired => "the hold's time is over; its money is available again",
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for Executed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

impl PartialSchema for Executed {
    fn schema() -> RefOr<Schema> {
        let unknown = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["unknown"]));
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([false])))
            .item(unknown)
            .description(Some("`false`: it had no effect and never will. `unknown`: resend the same id to learn."))
            .into()
    }
}

impl ToSchema for Executed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_codes_and_are_never_retryable() {
        for refusal in Refusal::ALL {
            let definition = Code::Refused(refusal).definition();
            assert_eq!(definition.code, refusal.as_str());
            assert!(!definition.retryable);
            assert_eq!(definition.executed, Executed::No);
            assert!(definition.status.is_client_error());
        }
    }

    #[test]
    fn only_errors_after_a_possible_write_are_unknown() {
        for code in
            [Code::Undetermined, Code::RateLimited, Code::ShardUnavailable, Code::Overloaded, Code::ShuttingDown]
        {
            assert_eq!(code.definition().executed, Executed::No, "{}", code.as_str());
            assert!(code.definition().retryable);
        }
        assert_eq!(Code::OutcomeUnknown.definition().executed, Executed::Unknown);
        assert_eq!(Code::Internal.definition().executed, Executed::Unknown);
    }
}
