//! Holds, and what is done with what is stored.

use super::*;

#[test]
fn holds_are_read_and_checked() {
    let rulebook = rulebook();
    let plain = hold(&body(&[]), &rulebook, None).unwrap();
    assert_eq!((plain.id.0.to_string().as_str(), plain.amount, plain.expires_in_s), (ID, 1234, None));
    for (value, seconds) in
        [("null", None), ("1", Some(1)), ("60.0", Some(60)), ("6e1", Some(60)), ("31622400", Some(31_622_400))]
    {
        assert_eq!(hold(&body(&[("expires_in_s", value)]), &rulebook, None).unwrap().expires_in_s, seconds);
    }
    let derived = hold(&body(&[("id", "-")]), &rulebook, Some("key")).unwrap();
    assert_eq!(derived.id, rules::derived_transfer_id(&derived.debit, "key"));

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
        let problem = hold(&text, &rulebook, None).expect_err(&text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
}

#[test]
fn captures_and_reversals_are_read_and_checked() {
    let rulebook = rulebook();
    let debit = AccountId::client("alice").unwrap();
    let all = capture(&format!("{{\"id\": \"{ID}\"}}"), &rulebook, Some("key")).unwrap();
    assert_eq!((all.id(&debit).0.to_string().as_str(), all.finalize), (ID, true));
    assert_eq!(all.amount(2).unwrap(), None);
    let part = capture(r#"{"id": null, "amount": "5.5", "final": false}"#, &rulebook, Some("key")).unwrap();
    assert_eq!((part.id(&debit), part.finalize), (rules::derived_transfer_id(&debit, "key"), false));
    assert_eq!(part.amount(2).unwrap(), Some(550));
    assert_eq!(reversal("{}", &rulebook, Some("key")).unwrap().amount(2).unwrap(), None);
    assert_eq!(reversal(r#"{"amount": null}"#, &rulebook, Some("key")).unwrap().amount(2).unwrap(), None);
    // Too precise for the asset: only known once the hold is.
    let precise = capture(r#"{"amount": "1.005"}"#, &rulebook, Some("key")).unwrap();
    assert_eq!(precise.amount(2).unwrap_err().code(), Code::InvalidAmount);

    type Reader = fn(&str, &Rulebook, Option<&str>) -> Result<FollowUp, Problem>;
    for (reader, text, code, pointer) in [
        (capture as Reader, "{}", "idempotency_required", "/id"),
        (capture, r#"{"id": 5}"#, "invalid_id", "/id"),
        (capture, r#"{"amount": "0.00"}"#, "invalid_amount", "/amount"),
        (capture, r#"{"amount": 5}"#, "invalid_amount", "/amount"),
        (capture, r#"{"amount": "-1"}"#, "invalid_amount", "/amount"),
        (capture, r#"{"final": "yes"}"#, "invalid_json", "/final"),
        (capture, r#"{"final": null}"#, "invalid_json", "/final"),
        (capture, r#"{"final": true, "final": false}"#, "invalid_json", "/final"),
        (capture, r#"{"finalize": true}"#, "unknown_field", "/finalize"),
        (capture, "[]", "invalid_json", ""),
        (reversal, "{}", "idempotency_required", "/id"),
        (reversal, r#"{"final": true}"#, "unknown_field", "/final"),
        (reversal, "null", "invalid_json", ""),
    ] {
        let problem = reader(text, &rulebook, None).expect_err(text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
    assert!(release("{}", &rulebook).is_ok() && release(" { } ", &rulebook).is_ok());
    for (text, code) in [("[]", "invalid_json"), ("{", "invalid_json"), (r#"{"id": 1}"#, "unknown_field")] {
        assert_eq!(release(text, &rulebook).unwrap_err().code().as_str(), code, "{text}");
    }
}
