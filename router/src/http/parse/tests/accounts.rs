//! Accounts to open and changes of accounts.

use super::*;

#[test]
fn accounts_are_read_and_checked() {
    use ledger::Limit;
    let rulebook = rulebook();
    let plain = account(r#"{"id": "alice", "asset": "USD"}"#, &rulebook).unwrap();
    assert_eq!((plain.overdraft, plain.max_balance), (Limit::ZERO, Limit::Unlimited));
    let limited =
        r#"{"id": "a", "asset": "USD", "overdraft": "unlimited", "max_balance": "10.00", "metadata": {"k": "v"}}"#;
    let limited = account(limited, &rulebook).unwrap();
    assert_eq!((limited.overdraft, limited.max_balance), (Limit::Unlimited, Limit::AtMost(1000)));
    assert!(account(r#"{"id": "a", "asset": "USD", "max_balance": null}"#, &rulebook).is_ok());

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
        let problem = account(text, &rulebook).expect_err(text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
        let batch = account_batch(&format!("{{\"accounts\": [{text}]}}"), &rulebook).unwrap_err();
        assert!(places(&batch).contains(&(code.to_owned(), format!("/accounts/0{pointer}"))), "{text}");
    }
}

#[test]
fn changes_are_read_and_checked() {
    use ledger::Limit;
    let rulebook = rulebook();
    let read = |text| account_changes(text, &rulebook).unwrap().limits(2).unwrap();
    assert_eq!(read(r#"{"status": "frozen"}"#), (None, None));
    assert_eq!(
        read(r#"{"overdraft": "100.00", "max_balance": null}"#),
        (Some(Limit::AtMost(10_000)), Some(Limit::Unlimited))
    );
    assert_eq!(
        read(r#"{"overdraft": "unlimited", "max_balance": "5"}"#),
        (Some(Limit::Unlimited), Some(Limit::AtMost(500)))
    );
    assert!(account_changes(r#"{"metadata": null}"#, &rulebook).unwrap().metadata.is_some_and(|m| m.is_empty()));
    // Too precise for the asset: only known once the account is.
    let changes = account_changes(r#"{"overdraft": "1.005"}"#, &rulebook).unwrap();
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
        let problem = account_changes(text, &rulebook).expect_err(text);
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
}
