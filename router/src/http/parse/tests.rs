//! Tables of bodies, each with the code and pointer it must be answered with. Here: transfers, and what all bodies have in
//! common.

mod accounts;
mod batches;
mod holds;

use super::*;
use crate::http::problem::Place;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const OTHER_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8058";

fn rulebook() -> Rulebook {
    Rulebook::new(AssetRegistry::with_declared([("BTC", 8), ("ETH", 18)]).unwrap())
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
    let problem = transfer(text, &rulebook(), None).expect_err(shown);
    assert_eq!(problem.code().as_str(), code, "{shown}: {:?}", problem.errors());
    assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{shown}: {:?}", problem.errors());
}

fn batch_of(items: &[String]) -> String {
    format!("{{\"transfers\": [{}]}}", items.join(", "))
}

fn assert_batch_refused(text: &str, code: &str, pointer: &str) {
    let problem = transfer_batch(text, &rulebook()).expect_err(text.get(..200).unwrap_or(text));
    assert_eq!(problem.code().as_str(), code, "{:?}", problem.errors());
    assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{:?}", problem.errors());
}

#[test]
fn good_transfers_are_read() {
    let rulebook = rulebook();
    let order = transfer(&body(&[]), &rulebook, None).unwrap();
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
        let order = transfer(&body(changes), &rulebook, None).unwrap();
        assert_eq!((order.debit.as_str(), order.amount), ("alice", amount), "{changes:?}");
    }
}

#[test]
fn a_key_stands_for_an_id() {
    let rulebook = rulebook();
    for absent in ["-", "null"] {
        let text = body(&[("id", absent)]);
        let order = transfer(&text, &rulebook, Some("key")).unwrap();
        assert_eq!(order.id, rules::derived_transfer_id(&order.debit, "key"));
        assert_refused(&text, "idempotency_required", "/id");
    }
    assert_eq!(transfer(&body(&[]), &rulebook, Some("key")).unwrap().id.0.to_string(), ID);
}

#[test]
fn metadata_has_one_canonical_form() {
    let rulebook = rulebook();
    let read = |metadata| transfer(&body(&[("metadata", metadata)]), &rulebook, None).unwrap().metadata;
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
    assert!(transfer(&body(&[("metadata", &keys(16))]), &rulebook(), None).is_ok());
    assert_refused(&body(&[("metadata", &keys(17))]), "invalid_metadata", "/metadata");
    let sized = |len: usize| format!("{{\"k\": \"{}\"}}", "x".repeat(len));
    assert!(transfer(&body(&[("metadata", &sized(4095))]), &rulebook(), None).is_ok());
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
    let problem = transfer(&all, &rulebook(), None).unwrap_err();
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
    assert_eq!(transfer_lines(&values, &rulebook()).unwrap_err().code(), Code::InvalidJson);
    assert_batch_refused(&format!("[[{}], false]", body(&[])), "invalid_json", "");
}

#[test]
fn the_explaining_reader_always_has_an_explanation() {
    // What the fast reader refuses without the other finding anything would be answered without a single error.
    let mut bodies: Vec<String> = Vec::new();
    for value in ["null", "1", "true", "\"\"", "[]", "{}", "\"12.34\"", "\"USD\"", "\"alice\"", "1.5", "-"] {
        for name in ["id", "debit", "credit", "amount", "asset", "metadata", "other"] {
            bodies.push(body(&[(name, value)]));
        }
    }
    for text in bodies {
        if let Err(problem) = transfer(&text, &rulebook(), None) {
            assert!(!problem.errors().is_empty(), "{text}");
        }
        if let Err(problem) = transfer_batch(&batch_of(std::slice::from_ref(&text)), &rulebook()) {
            assert!(!problem.errors().is_empty(), "{text}");
        }
    }
}
