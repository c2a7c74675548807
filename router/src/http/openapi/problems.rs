//! Which errors each operation may answer: one table, from which the error responses of all operations are made.

use std::collections::{BTreeMap, BTreeSet};

use ledger::{Refusal, Refused};
use serde_json::{Value, json};

use super::{members, operations};
use crate::http::problem::{
    Code::{self, *},
    PROBLEM_JSON, Problem, refusal_detail,
};

/// The errors that any request may get.
const ALWAYS: &[Code] = &[
    InvalidRequest,
    UriTooLong,
    HeadTooLarge,
    Unauthenticated,
    NotPermitted,
    UnknownParameter,
    InvalidParameter,
    RateLimited,
    Internal,
    ShardUnavailable,
    Overloaded,
    ShuttingDown,
];
/// The errors that any request with a body may get.
const BODY: &[Code] = &[InvalidJson, UnknownField, RequestTimeout, BodyTooLarge, UnsupportedMediaType];
/// The refusals of a new account that do not depend on what is stored.
const NEW_ACCOUNT: &[Code] = &[InvalidId, InvalidAmount, InvalidAsset, InvalidMetadata];
/// The refusals of a new transfer that do not depend on what is stored.
const NEW_TRANSFER: &[Code] =
    &[InvalidId, InvalidAmount, InvalidAsset, InvalidMetadata, SameAccount, IdempotencyRequired];
/// The refusals of a capture or reversal that do not depend on what is stored.
const FOLLOW_UP: &[Code] = &[InvalidId, InvalidAmount, IdempotencyRequired];
/// The refusals of a transfer that depend on its two accounts.
const VERDICTS: &[Code] = &[
    Undetermined,
    Refused(Refusal::AccountNotFound),
    Refused(Refusal::AssetMismatch),
    Refused(Refusal::AccountClosed),
    Refused(Refusal::AccountFrozen),
    Refused(Refusal::InsufficientFunds),
    Refused(Refusal::LimitExceeded),
    Refused(Refusal::BalanceOverflow),
    // An operator has given up a transfer that was under way.
    Refused(Refusal::Cancelled),
];

/// The refusals of a hold that depend on its debit account.
const HOLD_VERDICTS: &[Code] = &[
    Undetermined,
    Refused(Refusal::AccountNotFound),
    Refused(Refusal::AssetMismatch),
    Refused(Refusal::AccountClosed),
    Refused(Refusal::AccountFrozen),
    Refused(Refusal::InsufficientFunds),
    Refused(Refusal::BalanceOverflow),
];
/// The refusals of a capture that depend on its two accounts. Its money is held already.
const CAPTURE_VERDICTS: &[Code] = &[
    Undetermined,
    Refused(Refusal::AccountNotFound),
    Refused(Refusal::AssetMismatch),
    Refused(Refusal::AccountClosed),
    Refused(Refusal::AccountFrozen),
    Refused(Refusal::LimitExceeded),
    Refused(Refusal::BalanceOverflow),
    Refused(Refusal::Cancelled),
];

/// Each operation, and the errors that it may answer in addition to [`ALWAYS`].
#[rustfmt::skip]
const TABLE: &[(&str, &[&[Code]])] = &[
    ("openAccount", &[BODY, NEW_ACCOUNT, &[AccountExists, OutcomeUnknown]]),
    ("listAccounts", &[]),
    ("sumBalances", &[]),
    ("openAccounts", &[BODY, NEW_ACCOUNT, &[BatchTooLarge, OutcomeUnknown]]),
    ("getAccount", &[&[InvalidId, AccountNotFound]]),
    ("updateAccount", &[BODY, &[InvalidId, InvalidAmount, InvalidMetadata, InvalidStatus, AccountNotFound, Undetermined,
        Refused(Refusal::AccountNotEmpty), Refused(Refusal::LimitExceeded), Refused(Refusal::BalanceOverflow),
        Refused(Refusal::InsufficientFunds), OutcomeUnknown]]),
    ("eraseAccountMetadata", &[&[InvalidId, AccountNotFound, OutcomeUnknown]]),
    ("listEntries", &[&[InvalidId, AccountNotFound]]),
    ("getBalance", &[&[InvalidId, AccountNotFound]]),
    ("createTransfer", &[BODY, NEW_TRANSFER, &[IdempotencyMismatch], VERDICTS, &[OutcomeUnknown]]),
    ("createTransfers", &[BODY, NEW_TRANSFER, &[DuplicateId, BatchTooLarge,
        Refused(Refusal::AtomicCrossShard), Undetermined, OutcomeUnknown]]),
    ("listTransfers", &[&[InvalidId, AccountNotFound]]),
    ("listHolds", &[&[InvalidId, AccountNotFound]]),
    ("getTransfer", &[&[InvalidId, TransferNotFound, AmbiguousId]]),
    ("reverseTransfer", &[BODY, FOLLOW_UP, &[TransferNotFound, AmbiguousId, IdempotencyMismatch], VERDICTS,
        &[Refused(Refusal::AlreadyReversed), OutcomeUnknown]]),
    ("eraseTransferMetadata", &[&[InvalidId, TransferNotFound, AmbiguousId, OutcomeUnknown]]),
    ("createHold", &[BODY, NEW_TRANSFER, &[InvalidExpiry, IdempotencyMismatch], HOLD_VERDICTS, &[OutcomeUnknown]]),
    ("getHold", &[&[InvalidId, HoldNotFound, AmbiguousId]]),
    ("captureHold", &[BODY, FOLLOW_UP, &[HoldNotFound, AmbiguousId, IdempotencyMismatch], CAPTURE_VERDICTS,
        &[Refused(Refusal::HoldCaptured), Refused(Refusal::HoldReleased), Refused(Refusal::HoldExpired),
        Refused(Refusal::ExceedsHold), OutcomeUnknown]]),
    ("releaseHold", &[BODY, &[InvalidId, HoldNotFound, AmbiguousId, Refused(Refusal::HoldCaptured),
        Refused(Refusal::HoldExpired), OutcomeUnknown]]),
    ("eraseHoldMetadata", &[&[InvalidId, HoldNotFound, AmbiguousId, OutcomeUnknown]]),
];

/// Gives every operation its errors, and every error its example.
pub fn add(document: &mut Value) -> Result<(), serde_json::Error> {
    let mut examples = BTreeMap::new();
    let shared = names_of_several_codes();
    for (id, mut operation) in operations(document) {
        let by_status = by_status(&id);
        let responses = operation.responses();
        // The errors of an operation are described here and nowhere else.
        responses.retain(|status, _| status.as_str() < "400");
        for (status, codes) in by_status {
            let named: Vec<_> = codes.iter().map(|code| (example_name(*code, &shared), *code)).collect();
            responses.insert(status.to_string(), response(&named));
            examples.extend(named);
        }
    }
    let examples = examples
        .into_iter()
        .map(|(name, code)| Ok((name, example(code)?)))
        .collect::<Result<_, serde_json::Error>>()?;
    members(&mut document["components"]).insert("examples".to_owned(), Value::Object(examples));
    Ok(())
}

/// The errors of an operation by status, in the order of the table.
fn by_status(operation: &str) -> BTreeMap<u16, Vec<Code>> {
    let row = TABLE.iter().find(|(name, _)| *name == operation);
    let groups = row.map(|(_, groups)| *groups).unwrap_or_default();
    let mut by_status = BTreeMap::<u16, Vec<Code>>::new();
    for code in groups.iter().copied().flatten().chain(ALWAYS) {
        by_status.entry(code.definition().status.as_u16()).or_default().push(*code);
    }
    by_status
}

/// Texts that stand for codes of different statuses: an account that a path names is 404, one that a transfer names 422.
fn names_of_several_codes() -> BTreeSet<&'static str> {
    let mut statuses = BTreeMap::<&str, BTreeSet<u16>>::new();
    for code in TABLE.iter().flat_map(|(_, groups)| groups.iter().copied().flatten()).chain(ALWAYS) {
        statuses.entry(code.as_str()).or_default().insert(code.definition().status.as_u16());
    }
    statuses.retain(|_, statuses| statuses.len() > 1);
    statuses.into_keys().collect()
}

/// The key of a code's example in the components.
fn example_name(code: Code, shared: &BTreeSet<&str>) -> String {
    let definition = code.definition();
    if shared.contains(definition.code) {
        format!("{}_{}", definition.code, definition.status.as_u16())
    } else {
        definition.code.to_owned()
    }
}

/// The response of one status. Its schema is `Problem` itself: generators of clients make a type of each narrower schema, and would make
/// one for each operation and status. The codes stand in the description for people, and in `x-problem-codes` for programs.
fn response(codes: &[(String, Code)]) -> Value {
    let names: Vec<_> = codes.iter().map(|(_, code)| code.as_str()).collect();
    let lines: Vec<_> =
        codes.iter().map(|(_, code)| format!("`{}`: {}.", code.as_str(), code.definition().title)).collect();
    let examples: serde_json::Map<_, _> = codes
        .iter()
        .map(|(name, _)| (name.clone(), json!({"$ref": format!("#/components/examples/{name}")})))
        .collect();
    json!({
        "description": lines.join("\n\n"),
        "x-problem-codes": names,
        "content": {PROBLEM_JSON.to_str().unwrap_or_default(): {
            "schema": {"$ref": "#/components/schemas/Problem"},
            "examples": examples,
        }},
    })
}

/// A problem of this code as it is sent, so that its example cannot differ from it.
fn example(code: Code) -> Result<Value, serde_json::Error> {
    let title = code.definition().title;
    let problem = match code {
        Refused(refusal) => {
            let refused = about(refusal);
            Problem::new(code, refusal_detail(refused)).with_side(refused.side)
        }
        InvalidParameter => Problem::parameter(code, "limit", "limit: a number from 1 to 500"),
        UnknownParameter => Problem::parameter(code, "sort", "sort: unknown parameter"),
        IdempotencyMismatch | AccountExists => Problem::new(code, title).with_field("amount"),
        ShardUnavailable | OutcomeUnknown => Problem::new(code, title).with_shard("s1"),
        _ => Problem::new(code, title),
    };
    let body = problem.render("/v1/transfers", "0199f7c5-6a1e-7000-8000-5d1f0f8c2a11");
    Ok(json!({"summary": title, "value": serde_json::from_slice::<Value>(&body)?}))
}

/// The refusal with the side that it is about in the example.
fn about(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::AccountNotEmpty
        | Refusal::AtomicCrossShard
        | Refusal::BatchFailed
        | Refusal::ExceedsHold
        | Refusal::AlreadyReversed
        | Refusal::HoldCaptured
        | Refusal::HoldReleased
        | Refusal::HoldExpired
        | Refusal::Cancelled => Refused::whole(refusal),
        Refusal::LimitExceeded | Refusal::BalanceOverflow => Refused::credit(refusal),
        _ => Refused::debit(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_row() {
        let document = crate::http::openapi::document().unwrap();
        let paths =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
        let operations: BTreeSet<_> = paths.map(|operation| operation["operationId"].as_str().unwrap()).collect();
        assert_eq!(TABLE.iter().map(|(operation, _)| *operation).collect::<BTreeSet<_>>(), operations);
    }

    #[test]
    fn every_refusal_is_some_operations() {
        let codes: Vec<_> = TABLE.iter().flat_map(|(_, groups)| groups.iter().copied().flatten()).collect();
        for refusal in Refusal::ALL {
            // Returned only for items of a batch.
            let expected = refusal != Refusal::BatchFailed;
            assert_eq!(codes.contains(&&Refused(refusal)), expected, "{}", refusal.as_str());
        }
    }
}
