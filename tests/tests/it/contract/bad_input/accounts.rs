//! Accounts that cannot be opened, and changes that cannot be made.

use http::Method;
use testkit::client::account_path;

use super::{Members, Tried};
use crate::contract::api::Call;

/// Field, its value as raw JSON, answer.
#[rustfmt::skip]
const OPENED: &[(&str, &str, &str)] = &[
    ("id", r#""""#, "400 invalid_id at='/id'"),
    ("id", r#""a\u0000""#, "400 invalid_id at='/id'"),
    ("id", r#""@treasury""#, "400 invalid_id at='/id'"),
    ("id", r#""a b""#, "400 invalid_id at='/id'"),
    ("id", "7", "400 invalid_id at='/id'"),
    ("id", "null", "400 invalid_id at='/id'"),
    ("asset", r#""QQQ""#, "400 invalid_asset at='/asset'"),
    ("asset", "null", "400 invalid_asset at='/asset'"),
    ("overdraft", r#""-1""#, "400 invalid_amount at='/overdraft'"),
    ("overdraft", r#""1.001""#, "400 invalid_amount at='/overdraft'"),
    ("overdraft", r#""Unlimited""#, "400 invalid_amount at='/overdraft'"),
    ("overdraft", "1", "400 invalid_amount at='/overdraft'"),
    ("max_balance", r#""-1""#, "400 invalid_amount at='/max_balance'"),
    ("max_balance", r#""unlimited""#, "400 invalid_amount at='/max_balance'"),
    ("max_balance", r#""92233720368547758.08""#, "400 invalid_amount at='/max_balance'"),
    ("max_balance", "1", "400 invalid_amount at='/max_balance'"),
    ("metadata", r#"{"a": "\u0000"}"#, "400 invalid_metadata at='/metadata'"),
    ("metadata", r#"{"a": 1}"#, "400 invalid_metadata at='/metadata/a'"),
    ("metadata", r#"["a"]"#, "400 invalid_metadata at='/metadata'"),
    ("status", r#""open""#, "400 unknown_field at='/status'"),
    ("posted", r#""1.00""#, "400 unknown_field at='/posted'"),
];

/// A change as raw JSON, answer.
#[rustfmt::skip]
const CHANGES: &[(&str, &str)] = &[
    ("{}", "400 invalid_json at=''"),
    ("[]", "400 invalid_json at=''"),
    (r#"{"status": "gone"}"#, "400 invalid_status at='/status'"),
    (r#"{"status": null}"#, "400 invalid_status at='/status'"),
    (r#"{"status": 1}"#, "400 invalid_status at='/status'"),
    (r#"{"overdraft": "-1"}"#, "400 invalid_amount at='/overdraft'"),
    (r#"{"overdraft": null}"#, "400 invalid_amount at='/overdraft'"),
    (r#"{"overdraft": "1.001"}"#, "400 invalid_amount at='/overdraft'"),
    (r#"{"max_balance": "1.001"}"#, "400 invalid_amount at='/max_balance'"),
    (r#"{"max_balance": true}"#, "400 invalid_amount at='/max_balance'"),
    (r#"{"metadata": {"a": []}}"#, "400 invalid_metadata at='/metadata/a'"),
    (r#"{"asset": "EUR"}"#, "400 unknown_field at='/asset'"),
    (r#"{"status": "open", "status": "open"}"#, "400 invalid_json at='/status'"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_cannot_be_opened_or_changed_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    openings_are_refused(&mut tried).await;
    changes_are_refused(&mut tried).await;
    tried.finish().await
}

async fn openings_are_refused(tried: &mut Tried) {
    let good = || Members::of(&[("id", "\"newcomer\"".to_owned()), ("asset", "\"USD\"".to_owned())]);
    for (field, value, expected) in OPENED {
        opened(tried, &good().replace(field, value), expected).await;
    }
    opened(tried, &good().without("id"), "400 invalid_id at='/id'").await;
    opened(tried, &good().without("asset"), "400 invalid_asset at='/asset'").await;
    opened(tried, &good().add("id", "\"newcomer\""), "400 invalid_json at='/id'").await;
    // Two mistakes at once.
    opened(tried, &good().replace("asset", "1").replace("overdraft", "\"-1\""), "400 invalid_amount at='/overdraft'")
        .await;
    opened(tried, &good().replace("id", "1").add("extra", "1"), "400 unknown_field at='/extra'").await;
}

async fn changes_are_refused(tried: &mut Tried) {
    let account = tried.debit.clone();
    for (change, expected) in CHANGES {
        tried.call(change, Call::new(Method::PATCH, &account_path(&account), *change), expected).await;
    }
    // A mistake in the body is answered before an account that does not exist.
    let nobody = |body: &'static str| Call::new(Method::PATCH, "/v1/accounts/nobody", body);
    tried.call("malformed and not there", nobody("{}"), "400 invalid_json at=''").await;
    tried.call("not there", nobody(r#"{"status": "closed"}"#), "404 account_not_found").await;
    tried.call("limits, and not there", nobody(r#"{"overdraft": "1"}"#), "404 account_not_found").await;
}

/// The same mistake alone and as the second item of a batch.
async fn opened(tried: &mut Tried, account: &Members, expected: &str) {
    let text = account.text();
    tried.call(&text, Call::new(Method::POST, "/v1/accounts", text.clone()), expected).await;
    let body = format!(r#"{{"accounts": [{{"id": "good0", "asset": "USD"}}, {text}]}}"#);
    let within = expected.replace("at='", "at='/accounts/1");
    tried.call(&body, Call::new(Method::POST, "/v1/accounts:batch", body.clone()), &within).await;
}
