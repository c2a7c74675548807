//! Tables of bodies of every resource, each with the code and pointer it must be answered with.

use std::collections::BTreeSet;

use ledger::{AccountId, AssetRegistry, Limit};
use utoipa::{
    PartialSchema,
    openapi::{RefOr, Schema},
};

use super::*;
use crate::http::{
    accounts::{
        AccountBatchBody, AccountBody,
        change::{AccountChanges, AccountChangesBody},
        read_account, read_account_batch,
    },
    holds::{CaptureBody, HoldBody, read_capture, read_hold, read_release},
    stored::FollowUp,
    transfers::{
        TransferBody,
        batch::{TransferBatchBody, read_transfer_batch, read_transfer_lines},
        read_transfer,
        reversal::{ReversalBody, read_reversal},
    },
};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const OTHER_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8058";

fn assets() -> AssetRegistry {
    AssetRegistry::with_declared([("BTC", 8), ("ETH", 18)]).unwrap()
}

/// A transfer with some members replaced, added, or (as `null` text "-") left out.
fn body(changes: &[(&str, &str)]) -> String {
    let mut members = vec![
        ("id", format!("\"{ID}\"")),
        ("debit", "\"alice\"".to_owned()),
        ("credit", "\"bob\"".to_owned()),
        ("amount", "\"12.34\"".to_owned()),
        ("asset", "\"USD\"".to_owned()),
    ];
    for (name, value) in changes {
        members.retain(|(key, _)| key != name);
        if *value != "-" {
            members.push((name, (*value).to_owned()));
        }
    }
    let members: Vec<_> = members.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", members.join(", "))
}

fn places(problem: &Problem) -> Vec<(String, String)> {
    let place = |place: &Place| match place {
        Place::Pointer(text) | Place::Parameter(text) => text.clone(),
        Place::Header(name) => (*name).to_owned(),
    };
    problem.errors().iter().map(|error| (error.code.as_str().to_owned(), place(&error.place))).collect()
}

fn assert_refused(text: &str, code: &str, pointer: &str) {
    let shown = text.get(..200).unwrap_or(text);
    let problem = read_transfer(text, &assets(), None).expect_err(shown);
    assert_eq!(problem.code().as_str(), code, "{shown}: {:?}", problem.errors());
    assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{shown}: {:?}", problem.errors());
}

fn batch_of(items: &[String]) -> String {
    format!("{{\"transfers\": [{}]}}", items.join(", "))
}

fn assert_batch_refused(text: &str, code: &str, pointer: &str) {
    let problem = read_transfer_batch(text, &assets()).expect_err(text.get(..200).unwrap_or(text));
    assert_eq!(problem.code().as_str(), code, "{:?}", problem.errors());
    assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{:?}", problem.errors());
}

// === transfers, and what all bodies have in common ===

#[test]
fn good_transfers_are_read() {
    let assets = assets();
    let order = read_transfer(&body(&[]), &assets, None).unwrap();
    assert_eq!(order.id.0.to_string(), ID);
    assert_eq!((order.debit.as_str(), order.credit.as_str(), order.amount), ("alice", "bob", 1234));
    assert!(order.metadata.is_empty());

    for (changes, amount) in [
        (&[("amount", "\"12\"")][..], 1200),
        (&[("amount", "\"0.01\"")], 1),
        (&[("asset", "\"JPY\""), ("amount", "\"5\"")], 5),
        (&[("asset", "\"BTC\""), ("amount", "\"0.00000001\"")], 1),
        (&[("asset", "\"ETH\""), ("amount", "\"9.2\"")], 9_200_000_000_000_000_000),
        (&[("amount", "\"92233720368547758.07\"")], i64::MAX),
        // Escapes are part of JSON: this is "alice" and "1.00".
        (&[("debit", r#""\u0061lice""#), ("amount", r#""\u0031.00""#)], 100),
        (&[("metadata", "{}")], 1234),
        (&[("metadata", "null")], 1234),
        (&[("metadata", r#"{"a": "\u0001", "á": ""}"#)], 1234),
        (&[("id", &format!("\"{}\"", ID.to_uppercase()))], 1234),
    ] {
        let order = read_transfer(&body(changes), &assets, None).unwrap();
        assert_eq!((order.debit.as_str(), order.amount), ("alice", amount), "{changes:?}");
    }
}

#[test]
fn a_key_stands_for_an_id() {
    let assets = assets();
    for absent in ["-", "null"] {
        let text = body(&[("id", absent)]);
        let order = read_transfer(&text, &assets, Some("key")).unwrap();
        assert_eq!(order.id, values::derived_transfer_id(&order.debit, "key"));
        assert_refused(&text, "idempotency_required", "/id");
    }
    assert_eq!(read_transfer(&body(&[]), &assets, Some("key")).unwrap().id.0.to_string(), ID);
}

#[test]
fn metadata_has_one_canonical_form() {
    let assets = assets();
    let read = |metadata| read_transfer(&body(&[("metadata", metadata)]), &assets, None).unwrap().metadata;
    assert_eq!(read(r#"{"b": "2", "a": "1"}"#), read(r#"{ "a":"1","b":"\u0032" }"#));
    assert_eq!(read("{}"), read("null"));
}

#[test]
fn what_is_no_json_says_so() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    for text in [
        "",
        " ",
        "{",
        "nonsense",
        "{\"id\": }",
        &body(&[("amount", "NaN")]),
        &body(&[("amount", "Infinity")]),
        &body(&[("amount", "01")]),
        &body(&[("amount", "'12'")]),
        &body(&[("debit", "\"a\u{0}\"")]),
        &body(&[("debit", "\"a\n\"")]),
        &body(&[("debit", r#""\ud800""#)]),
        &format!("{} {}", body(&[]), body(&[])),
        &format!("{},", body(&[])),
        &deep("[", "]"),
        &deep("{\"a\":", "}"),
        &body(&[("metadata", &deep("[", "]"))]),
    ] {
        assert_refused(text, "invalid_json", "");
    }
    for text in ["null", "1", "\"text\"", "[]", "true"] {
        assert_refused(text, "invalid_json", "");
    }
}

#[test]
fn every_member_is_checked() {
    let long = format!("\"{}\"", "a".repeat(129));
    for (changes, code, pointer) in [
        (&[("memo", "1")][..], "unknown_field", "/memo"),
        (&[("a/b~c", "1")], "unknown_field", "/a~1b~0c"),
        (&[("Amount", "\"1\"")], "unknown_field", "/Amount"),
        (&[("id", "5")], "invalid_id", "/id"),
        (&[("id", "\"\"")], "invalid_id", "/id"),
        (&[("id", "\"x\"")], "invalid_id", "/id"),
        (&[("id", "\"00000000-0000-0000-0000-000000000000\"")], "invalid_id", "/id"),
        (&[("id", "{}")], "invalid_id", "/id"),
        (&[("debit", "-")], "invalid_id", "/debit"),
        (&[("debit", "null")], "invalid_id", "/debit"),
        (&[("debit", "7")], "invalid_id", "/debit"),
        (&[("debit", "\"\"")], "invalid_id", "/debit"),
        (&[("debit", "\"a b\"")], "invalid_id", "/debit"),
        (&[("debit", r#""a\u0000""#)], "invalid_id", "/debit"),
        (&[("debit", "\"@in-transit:USD\"")], "invalid_id", "/debit"),
        (&[("credit", &long)], "invalid_id", "/credit"),
        (&[("credit", "[\"bob\"]")], "invalid_id", "/credit"),
        (&[("amount", "-")], "invalid_amount", "/amount"),
        (&[("amount", "null")], "invalid_amount", "/amount"),
        (&[("amount", "12.34")], "invalid_amount", "/amount"),
        (&[("amount", "1e400")], "invalid_json", ""),
        (&[("amount", "\"NaN\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"1e3\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"0x10\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"-1.00\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"+1.00\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"0\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"0.00\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"\"")], "invalid_amount", "/amount"),
        (&[("amount", "\" 1\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"1,000\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"1.234\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"92233720368547758.08\"")], "invalid_amount", "/amount"),
        (&[("amount", "\"99999999999999999999999999999999999999999\"")], "invalid_amount", "/amount"),
        (&[("asset", "\"JPY\""), ("amount", "\"1.0\"")], "invalid_amount", "/amount"),
        (&[("asset", "-")], "invalid_asset", "/asset"),
        (&[("asset", "\"usd\"")], "invalid_asset", "/asset"),
        (&[("asset", "\"DOGE\"")], "invalid_asset", "/asset"),
        (&[("asset", "840")], "invalid_asset", "/asset"),
        (&[("credit", "\"alice\"")], "same_account", "/credit"),
        (&[("credit", r#""\u0061lice""#)], "same_account", "/credit"),
        (&[("metadata", "[]")], "invalid_metadata", "/metadata"),
        (&[("metadata", "\"a\"")], "invalid_metadata", "/metadata"),
        (&[("metadata", "{\"k\": 1}")], "invalid_metadata", "/metadata/k"),
        (&[("metadata", "{\"k\": null}")], "invalid_metadata", "/metadata/k"),
        (&[("metadata", r#"{"k": "\u0000"}"#)], "invalid_metadata", "/metadata"),
    ] {
        assert_refused(&body(changes), code, pointer);
    }
}

#[test]
fn metadata_is_bounded() {
    let keys = |count: usize| {
        let members: Vec<_> = (0..count).map(|i| format!("\"k{i}\": \"v\"")).collect();
        format!("{{{}}}", members.join(","))
    };
    assert!(read_transfer(&body(&[("metadata", &keys(16))]), &assets(), None).is_ok());
    assert_refused(&body(&[("metadata", &keys(17))]), "invalid_metadata", "/metadata");
    let sized = |len: usize| format!("{{\"k\": \"{}\"}}", "x".repeat(len));
    assert!(read_transfer(&body(&[("metadata", &sized(4095))]), &assets(), None).is_ok());
    assert_refused(&body(&[("metadata", &sized(4096))]), "invalid_metadata", "/metadata");
}

#[test]
fn a_key_twice_is_refused_wherever_it_stands() {
    let twice = body(&[]).replace("\"amount\"", "\"debit\": \"carol\", \"amount\"");
    assert_refused(&twice, "invalid_json", "/debit");
    let escaped = body(&[]).replace("\"amount\"", "\"\\u0064ebit\": \"carol\", \"amount\"");
    assert_refused(&escaped, "invalid_json", "/debit");
    assert_refused(&body(&[("metadata", r#"{"k": "1", "k": "2"}"#)]), "invalid_json", "/metadata/k");
}

#[test]
fn all_errors_are_told_and_the_first_in_precedence_is_the_code() {
    let all = body(&[("id", "-"), ("debit", "\"a b\""), ("amount", "\"0\""), ("asset", "\"usd\""), ("memo", "1")]);
    let problem = read_transfer(&all, &assets(), None).unwrap_err();
    assert_eq!(problem.code(), Code::UnknownField);
    let codes: Vec<_> = places(&problem).into_iter().map(|(code, _)| code).collect();
    for code in ["unknown_field", "invalid_id", "invalid_amount", "invalid_asset", "idempotency_required"] {
        assert!(codes.iter().any(|found| found == code), "{code} in {codes:?}");
    }
    assert_refused(&body(&[("amount", "\"0\""), ("asset", "\"x\"")]), "invalid_amount", "/amount");
    assert_refused(&body(&[("asset", "\"x\""), ("credit", "\"alice\"")]), "invalid_asset", "/asset");
    assert_refused(&body(&[("credit", "\"alice\""), ("id", "-")]), "same_account", "/credit");
}

#[test]
fn an_array_is_no_object() {
    let values = format!("[\"{ID}\", \"alice\", \"bob\", \"12.34\", \"USD\", null]");
    assert_refused(&values, "invalid_json", "");
    assert_batch_refused(&batch_of(std::slice::from_ref(&values)), "invalid_json", "/transfers/0");
    assert_eq!(read_transfer_lines(&values, &assets()).unwrap_err().code(), Code::InvalidJson);
    assert_batch_refused(&format!("[[{}], false]", body(&[])), "invalid_json", "");
}

#[test]
fn a_body_that_is_refused_has_an_error() {
    // A reader that returned nothing and reported nothing would answer without a single error.
    let mut bodies: Vec<String> = Vec::new();
    for value in ["null", "1", "true", "\"\"", "[]", "{}", "\"12.34\"", "\"USD\"", "\"alice\"", "1.5", "-"] {
        for name in ["id", "debit", "credit", "amount", "asset", "metadata", "other"] {
            bodies.push(body(&[(name, value)]));
        }
    }
    for text in bodies {
        if let Err(problem) = read_transfer(&text, &assets(), None) {
            assert!(!problem.errors().is_empty(), "{text}");
        }
        if let Err(problem) = read_transfer_batch(&batch_of(std::slice::from_ref(&text)), &assets()) {
            assert!(!problem.errors().is_empty(), "{text}");
        }
    }
}

/// The members in the description of a body.
fn described(schema: RefOr<Schema>) -> BTreeSet<String> {
    match schema {
        RefOr::T(Schema::Object(object)) => object.properties.into_keys().collect(),
        _ => panic!("the body is not described as an object"),
    }
}

#[test]
fn the_description_of_a_body_has_the_members_that_are_read() {
    // A member that a body does not have is refused with the list of those that it has.
    let known = |problem: Problem| -> BTreeSet<String> {
        let unknown =
            problem.errors().iter().find(|error| error.code == Code::UnknownField).expect("an unknown member");
        let list = unknown.detail.strip_prefix("known here: ").expect("a list of members");
        list.split(", ").map(str::to_owned).collect()
    };
    let (text, assets) = (r#"{"no_such_member": 1}"#, assets());
    for (schema, problem) in [
        (TransferBody::schema(), read_transfer(text, &assets, None).unwrap_err()),
        (TransferBatchBody::schema(), read_transfer_batch(text, &assets).unwrap_err()),
        (ReversalBody::schema(), read_reversal(text, &assets, None).unwrap_err()),
        (HoldBody::schema(), read_hold(text, &assets, None).unwrap_err()),
        (CaptureBody::schema(), read_capture(text, &assets, None).unwrap_err()),
        (AccountBody::schema(), read_account(text, &assets).unwrap_err()),
        (AccountBatchBody::schema(), read_account_batch(text, &assets).unwrap_err()),
        (AccountChangesBody::schema(), AccountChanges::read(text, &assets).unwrap_err()),
    ] {
        assert_eq!(described(schema), known(problem));
    }
}

// === batches ===

fn with_id(number: u32) -> String {
    body(&[("id", &format!("\"01890a5d-ac96-774b-bcce-{number:012x}\""))])
}

#[test]
fn batches_are_read() {
    let assets = assets();
    let batch = read_transfer_batch(&batch_of(&[with_id(1), with_id(2)]), &assets).unwrap();
    assert_eq!((batch.transfers.len(), batch.atomic), (2, false));
    let atomic = format!("{{\"atomic\": true, \"transfers\": [{}]}}", with_id(1));
    assert!(read_transfer_batch(&atomic, &assets).unwrap().atomic);

    let most: Vec<_> = (1..=10_000).map(with_id).collect();
    assert_eq!(read_transfer_batch(&batch_of(&most), &assets).unwrap().transfers.len(), 10_000);
}

#[test]
fn batches_are_checked_item_by_item() {
    let bad = body(&[("id", &format!("\"{OTHER_ID}\"")), ("amount", "\"-1\"")]);
    assert_batch_refused(&batch_of(&[body(&[]), bad]), "invalid_amount", "/transfers/1/amount");
    assert_batch_refused(&batch_of(&[body(&[]), body(&[])]), "duplicate_id", "/transfers/1/id");
    // One id in two spellings is one id.
    let upper = body(&[("id", &format!("\"{}\"", ID.to_uppercase()))]);
    assert_batch_refused(&batch_of(&[body(&[]), upper]), "duplicate_id", "/transfers/1/id");
    assert_batch_refused(&batch_of(&[body(&[("id", "-")])]), "idempotency_required", "/transfers/0/id");
    assert_batch_refused(&batch_of(&["5".to_owned()]), "invalid_json", "/transfers/0");
    for (text, pointer) in [
        ("{}", "/transfers"),
        ("{\"transfers\": []}", "/transfers"),
        ("{\"transfers\": {}}", "/transfers"),
        ("{\"transfers\": null}", "/transfers"),
        ("[]", ""),
    ] {
        assert_batch_refused(text, "invalid_json", pointer);
    }
    let atomic = format!("{{\"atomic\": \"yes\", \"transfers\": [{}]}}", body(&[]));
    assert_batch_refused(&atomic, "invalid_json", "/atomic");
    let unknown = format!("{{\"dry_run\": true, \"transfers\": [{}]}}", body(&[]));
    assert_batch_refused(&unknown, "unknown_field", "/dry_run");
}

#[test]
fn batches_are_bounded_and_so_are_their_errors() {
    let many = |count: usize, item: &str| batch_of(&vec![item.to_owned(); count]);
    let problem = read_transfer_batch(&many(10_001, "{}"), &assets()).unwrap_err();
    assert_eq!(problem.code(), Code::BatchTooLarge);
    let problem = read_transfer_batch(&many(600_000, "1"), &assets()).unwrap_err();
    assert_eq!(problem.code(), Code::BatchTooLarge);
    let problem = read_transfer_batch(&many(10_000, "{}"), &assets()).unwrap_err();
    assert!(problem.errors().len() <= 110, "{}", problem.errors().len());

    // A code that only shows up after the list is full still decides.
    let mut items = vec![body(&[("asset", "\"x\"")]); 500];
    items.push(body(&[("memo", "1")]));
    assert_batch_refused(&batch_of(&items), "unknown_field", "/transfers/500/memo");
}

#[test]
fn ndjson_is_a_batch_by_lines() {
    let assets = assets();
    let lines = format!("{}\r\n\n{}\n", with_id(1), with_id(2));
    assert_eq!(read_transfer_lines(&lines, &assets).unwrap().len(), 2);
    assert_eq!(read_transfer_lines(with_id(1).as_str(), &assets).unwrap().len(), 1);

    for (text, code, pointer) in [
        (String::new(), "invalid_json", ""),
        ("\n \n".to_owned(), "invalid_json", ""),
        (format!("{}\n{{", with_id(1)), "invalid_json", "/1"),
        (format!("{}\n{}", with_id(1), with_id(1)), "duplicate_id", "/1/id"),
        (format!("{}\n\n{}", with_id(1), body(&[("amount", "5")])), "invalid_amount", "/1/amount"),
        (format!("[{}]", with_id(1)), "invalid_json", "/0"),
    ] {
        let problem = read_transfer_lines(&text, &assets).unwrap_err();
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
    let many = format!("{}\n", "{}").repeat(10_001);
    assert_eq!(read_transfer_lines(&many, &assets).unwrap_err().code(), Code::BatchTooLarge);
}

// === accounts ===

#[test]
fn accounts_are_read_and_checked() {
    let assets = assets();
    let plain = read_account(r#"{"id": "alice", "asset": "USD"}"#, &assets).unwrap();
    assert_eq!((plain.overdraft, plain.max_balance), (Limit::ZERO, Limit::Unlimited));
    let limited =
        r#"{"id": "a", "asset": "USD", "overdraft": "unlimited", "max_balance": "10.00", "metadata": {"k": "v"}}"#;
    let limited = read_account(limited, &assets).unwrap();
    assert_eq!((limited.overdraft, limited.max_balance), (Limit::Unlimited, Limit::AtMost(1000)));
    assert!(read_account(r#"{"id": "a", "asset": "USD", "max_balance": null}"#, &assets).is_ok());

    for (text, code, pointer) in [
        (r#"{"asset": "USD"}"#, "invalid_id", "/id"),
        (r#"{"id": "@x", "asset": "USD"}"#, "invalid_id", "/id"),
        (r#"{"id": "a"}"#, "invalid_asset", "/asset"),
        (r#"{"id": "a", "asset": "USD", "overdraft": 5}"#, "invalid_amount", "/overdraft"),
        (r#"{"id": "a", "asset": "USD", "overdraft": "-1"}"#, "invalid_amount", "/overdraft"),
        (r#"{"id": "a", "asset": "USD", "max_balance": "unlimited"}"#, "invalid_amount", "/max_balance"),
        (r#"{"id": "a", "asset": "USD", "max_balance": "1.001"}"#, "invalid_amount", "/max_balance"),
        (r#"{"id": "a", "asset": "USD", "status": "open"}"#, "unknown_field", "/status"),
        (r#"{"id": "a", "asset": "USD", "id": "b"}"#, "invalid_json", "/id"),
    ] {
        let problem = read_account(text, &assets).expect_err(text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
        let batch = read_account_batch(&format!("{{\"accounts\": [{text}]}}"), &assets).unwrap_err();
        assert!(places(&batch).contains(&(code.to_owned(), format!("/accounts/0{pointer}"))), "{text}");
    }
}

#[test]
fn changes_are_read_and_checked() {
    let assets = assets();
    let read = |text| AccountChanges::read(text, &assets).unwrap().limits(2).unwrap();
    assert_eq!(read(r#"{"status": "frozen"}"#), (None, None));
    assert_eq!(
        read(r#"{"overdraft": "100.00", "max_balance": null}"#),
        (Some(Limit::AtMost(10_000)), Some(Limit::Unlimited))
    );
    assert_eq!(
        read(r#"{"overdraft": "unlimited", "max_balance": "5"}"#),
        (Some(Limit::Unlimited), Some(Limit::AtMost(500)))
    );
    assert!(AccountChanges::read(r#"{"metadata": null}"#, &assets).unwrap().metadata.is_some_and(|m| m.is_empty()));
    // Too precise for the asset: only known once the account is.
    let changes = AccountChanges::read(r#"{"overdraft": "1.005"}"#, &assets).unwrap();
    assert_eq!(changes.limits(2).unwrap_err().code(), Code::InvalidAmount);

    for (text, code, pointer) in [
        ("{}", "invalid_json", ""),
        (r#"{"status": "gone"}"#, "invalid_status", "/status"),
        (r#"{"status": null}"#, "invalid_status", "/status"),
        (r#"{"overdraft": null}"#, "invalid_amount", "/overdraft"),
        (r#"{"overdraft": "x"}"#, "invalid_amount", "/overdraft"),
        (r#"{"max_balance": "99999999999999999999999999999999999999999"}"#, "invalid_amount", "/max_balance"),
        (r#"{"asset": "USD"}"#, "unknown_field", "/asset"),
        (r#"{"metadata": 1}"#, "invalid_metadata", "/metadata"),
    ] {
        let problem = AccountChanges::read(text, &assets).expect_err(text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
}

// === holds, captures and reversals ===

#[test]
fn holds_are_read_and_checked() {
    let assets = assets();
    let plain = read_hold(&body(&[]), &assets, None).unwrap();
    assert_eq!((plain.id.0.to_string().as_str(), plain.amount, plain.expires_in_s), (ID, 1234, None));
    for (value, seconds) in
        [("null", None), ("1", Some(1)), ("60.0", Some(60)), ("6e1", Some(60)), ("31622400", Some(31_622_400))]
    {
        assert_eq!(read_hold(&body(&[("expires_in_s", value)]), &assets, None).unwrap().expires_in_s, seconds);
    }
    let derived = read_hold(&body(&[("id", "-")]), &assets, Some("key")).unwrap();
    assert_eq!(derived.id, values::derived_transfer_id(&derived.debit, "key"));

    for (changes, code, pointer) in [
        (&[("id", "-")][..], "idempotency_required", "/id"),
        (&[("expires_in_s", "0")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "31622401")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "18446744073709551616")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "-1")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "1.5")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "-1.0")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "1e30")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "\"60\"")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_in_s", "true")], "invalid_expiry", "/expires_in_s"),
        (&[("expires_at", "\"2026-01-01T00:00:00Z\"")], "unknown_field", "/expires_at"),
        (&[("amount", "\"0\""), ("expires_in_s", "0")], "invalid_amount", "/amount"),
        (&[("metadata", "1"), ("expires_in_s", "0")], "invalid_metadata", "/metadata"),
        (&[("credit", "\"alice\"")], "same_account", "/credit"),
        (&[("asset", "\"JPY\"")], "invalid_amount", "/amount"),
    ] {
        let text = body(changes);
        let problem = read_hold(&text, &assets, None).expect_err(&text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
}

#[test]
fn captures_and_reversals_are_read_and_checked() {
    let assets = assets();
    let debit = AccountId::client("alice").unwrap();
    let all = read_capture(&format!("{{\"id\": \"{ID}\"}}"), &assets, Some("key")).unwrap();
    assert_eq!((all.id(&debit).0.to_string().as_str(), all.finalize), (ID, true));
    assert_eq!(all.amount(2).unwrap(), None);
    let part = read_capture(r#"{"id": null, "amount": "5.5", "final": false}"#, &assets, Some("key")).unwrap();
    assert_eq!((part.id(&debit), part.finalize), (values::derived_transfer_id(&debit, "key"), false));
    assert_eq!(part.amount(2).unwrap(), Some(550));
    assert_eq!(read_reversal("{}", &assets, Some("key")).unwrap().amount(2).unwrap(), None);
    assert_eq!(read_reversal(r#"{"amount": null}"#, &assets, Some("key")).unwrap().amount(2).unwrap(), None);
    // Too precise for the asset: only known once the hold is.
    let precise = read_capture(r#"{"amount": "1.005"}"#, &assets, Some("key")).unwrap();
    assert_eq!(precise.amount(2).unwrap_err().code(), Code::InvalidAmount);

    type Reader = fn(&str, &AssetRegistry, Option<&str>) -> Result<FollowUp, Problem>;
    for (reader, text, code, pointer) in [
        (read_capture as Reader, "{}", "idempotency_required", "/id"),
        (read_capture, r#"{"id": 5}"#, "invalid_id", "/id"),
        (read_capture, r#"{"amount": "0.00"}"#, "invalid_amount", "/amount"),
        (read_capture, r#"{"amount": 5}"#, "invalid_amount", "/amount"),
        (read_capture, r#"{"amount": "-1"}"#, "invalid_amount", "/amount"),
        (read_capture, r#"{"final": "yes"}"#, "invalid_json", "/final"),
        (read_capture, r#"{"final": null}"#, "invalid_json", "/final"),
        (read_capture, r#"{"final": true, "final": false}"#, "invalid_json", "/final"),
        (read_capture, r#"{"finalize": true}"#, "unknown_field", "/finalize"),
        (read_capture, "[]", "invalid_json", ""),
        (read_reversal, "{}", "idempotency_required", "/id"),
        (read_reversal, r#"{"final": true}"#, "unknown_field", "/final"),
        (read_reversal, "null", "invalid_json", ""),
    ] {
        let problem = reader(text, &assets, None).expect_err(text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
    assert!(read_release("{}", &assets).is_ok() && read_release(" { } ", &assets).is_ok());
    for (text, code) in [("[]", "invalid_json"), ("{", "invalid_json"), (r#"{"id": 1}"#, "unknown_field")] {
        assert_eq!(read_release(text, &assets).unwrap_err().code().as_str(), code, "{text}");
    }
}
