//! Tests of orders with one mistake, and of orders with two mistakes, of which the first in the contract's order is answered.

use http::Method;
use uuid::Uuid;

use super::{Members, Tried};
use crate::contract::api::{Call, NDJSON};

/// Each row has a field of an order, its value as raw JSON, and the answer.
#[rustfmt::skip]
const FIELDS: &[(&str, &str, &str)] = &[
    ("id", r#""x""#, "400 invalid_id at='/id'"),
    ("id", r#""""#, "400 invalid_id at='/id'"),
    ("id", "7", "400 invalid_id at='/id'"),
    ("id", "true", "400 invalid_id at='/id'"),
    ("id", "[]", "400 invalid_id at='/id'"),
    ("id", r#""00000000-0000-0000-0000-000000000000""#, "400 invalid_id at='/id'"),
    ("id", r#""01890a5d-ac96-774b-bcce-b302099a805""#, "400 invalid_id at='/id'"),
    ("id", r#""{01890a5d-ac96-774b-bcce-b302099a8057}""#, "400 invalid_id at='/id'"),
    ("id", r#""01890a5dac96774bbcceb302099a8057""#, "400 invalid_id at='/id'"),
    ("id", r#""01890a5d-ac96-774b-bcce-b302099a805\u0000""#, "400 invalid_id at='/id'"),
    ("id", "null", "400 idempotency_required at='/id'"),
    ("debit", r#""""#, "400 invalid_id at='/debit'"),
    ("debit", r#""a b""#, "400 invalid_id at='/debit'"),
    ("debit", r#""a/b""#, "400 invalid_id at='/debit'"),
    ("debit", r#""a\u0000""#, "400 invalid_id at='/debit'"),
    ("debit", r#""ä""#, "400 invalid_id at='/debit'"),
    ("debit", r#""@in-transit:USD""#, "400 invalid_id at='/debit'"),
    ("debit", "null", "400 invalid_id at='/debit'"),
    ("debit", "1", "400 invalid_id at='/debit'"),
    ("debit", r#"{"id": "alice"}"#, "400 invalid_id at='/debit'"),
    ("credit", r#""@in-transit:USD""#, "400 invalid_id at='/credit'"),
    ("credit", r#""b\u0000""#, "400 invalid_id at='/credit'"),
    ("credit", "[1]", "400 invalid_id at='/credit'"),
    ("amount", "1", "400 invalid_amount at='/amount'"),
    ("amount", "1.5", "400 invalid_amount at='/amount'"),
    ("amount", "1e400", "400 invalid_json at=''"),
    ("amount", "NaN", "400 invalid_json at=''"),
    ("amount", "-Infinity", "400 invalid_json at=''"),
    ("amount", "null", "400 invalid_amount at='/amount'"),
    ("amount", "true", "400 invalid_amount at='/amount'"),
    ("amount", r#"["1.00"]"#, "400 invalid_amount at='/amount'"),
    ("amount", r#"{"value": "1.00"}"#, "400 invalid_amount at='/amount'"),
    ("amount", r#""""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""NaN""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""inf""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""-1.00""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""+1.00""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""0""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""0.00""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""-0""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1.001""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1.000""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1e2""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1E2""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1_000""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1,000.00""#, "400 invalid_amount at='/amount'"),
    ("amount", r#"" 1""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1.""#, "400 invalid_amount at='/amount'"),
    ("amount", r#"".5""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""0x10""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""١""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""1\u0000""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""92233720368547758.08""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""99999999999999999999999999999999999999999""#, "400 invalid_amount at='/amount'"),
    ("amount", r#""0.0000000000000000000000000000000000000001""#, "400 invalid_amount at='/amount'"),
    ("asset", r#""""#, "400 invalid_asset at='/asset'"),
    ("asset", r#""usd""#, "400 invalid_asset at='/asset'"),
    ("asset", r#""QQQ""#, "400 invalid_asset at='/asset'"),
    ("asset", r#""USD\u0000""#, "400 invalid_asset at='/asset'"),
    ("asset", r#""ABCDEFGHIJKLM""#, "400 invalid_asset at='/asset'"),
    ("asset", "840", "400 invalid_asset at='/asset'"),
    ("asset", "null", "400 invalid_asset at='/asset'"),
    ("metadata", r#""x""#, "400 invalid_metadata at='/metadata'"),
    ("metadata", "[]", "400 invalid_metadata at='/metadata'"),
    ("metadata", "7", "400 invalid_metadata at='/metadata'"),
    ("metadata", r#"{"a": 1}"#, "400 invalid_metadata at='/metadata/a'"),
    ("metadata", r#"{"a": null}"#, "400 invalid_metadata at='/metadata/a'"),
    ("metadata", r#"{"a/b": {}}"#, "400 invalid_metadata at='/metadata/a~1b'"),
    ("metadata", r#"{"a": "\u0000"}"#, "400 invalid_metadata at='/metadata'"),
    ("metadata", r#"{"\u0000": "a"}"#, "400 invalid_metadata at='/metadata'"),
    ("metadata", r#"{"a": "1", "a": "1"}"#, "400 invalid_json at='/metadata/a'"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_with_a_mistake_is_refused() -> anyhow::Result<()> {
    let mut stage = Tried::new().await?;
    let tried = &mut stage;
    let (debit, credit) = (tried.debit.clone(), tried.credit.clone());
    let good = || good(&debit, &credit);
    for (field, value, expected) in FIELDS {
        everywhere(tried, &good().replace(field, value), expected).await;
    }
    for field in ["debit", "credit"] {
        let long = format!("\"{}\"", "a".repeat(129));
        everywhere(tried, &good().replace(field, &long), &format!("400 invalid_id at='/{field}'")).await;
        everywhere(tried, &good().without(field), &format!("400 invalid_id at='/{field}'")).await;
    }
    everywhere(tried, &good().without("id"), "400 idempotency_required at='/id'").await;
    everywhere(tried, &good().without("amount"), "400 invalid_amount at='/amount'").await;
    everywhere(tried, &good().without("asset"), "400 invalid_asset at='/asset'").await;
    everywhere(tried, &good().replace("credit", &format!("\"{debit}\"")), "400 same_account at='/credit'").await;
    everywhere(tried, &good().add("extra", "1"), "400 unknown_field at='/extra'").await;
    everywhere(tried, &good().add("Amount", "\"1\""), "400 unknown_field at='/Amount'").await;
    everywhere(tried, &good().add("amount", "\"1.00\""), "400 invalid_json at='/amount'").await;
    let many: Vec<String> = (0..17).map(|key| format!("\"{key}\": \"\"")).collect();
    let many = format!("{{{}}}", many.join(","));
    everywhere(tried, &good().replace("metadata", &many), "400 invalid_metadata at='/metadata'").await;
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(4096));
    everywhere(tried, &good().replace("metadata", &large), "400 invalid_metadata at='/metadata'").await;
    stage.finish().await
}

/// An order without a mistake.
fn good(debit: &str, credit: &str) -> Members {
    Members::of(&[
        ("id", format!("\"{}\"", Uuid::now_v7())),
        ("debit", format!("\"{debit}\"")),
        ("credit", format!("\"{credit}\"")),
        ("amount", "\"1.00\"".to_owned()),
        ("asset", "\"USD\"".to_owned()),
    ])
}

/// The pairs are neighbours in the contract's order of mistakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_with_two_mistakes_is_refused_for_the_first_one() -> anyhow::Result<()> {
    let mut stage = Tried::new().await?;
    let tried = &mut stage;
    let (debit, credit) = (tried.debit.clone(), tried.credit.clone());
    let good = || good(&debit, &credit);
    let itself = format!("\"{debit}\"");
    let pairs = [
        (good().add("amount", "\"1.00\"").add("extra", "1"), "400 invalid_json at='/amount'"),
        (good().add("extra", "1").replace("id", "7"), "400 unknown_field at='/extra'"),
        (good().replace("amount", "\"0\"").replace("credit", "\"@\""), "400 invalid_id at='/credit'"),
        (good().replace("asset", "\"usd\"").replace("amount", "\"-1\""), "400 invalid_amount at='/amount'"),
        (good().replace("credit", &itself).replace("asset", "\"usd\""), "400 invalid_asset at='/asset'"),
        (good().without("id").replace("credit", &itself), "400 same_account at='/credit'"),
        (good().replace("metadata", "7").without("id"), "400 idempotency_required at='/id'"),
    ];
    for (order, expected) in pairs {
        everywhere(tried, &order, expected).await;
    }
    // Of three items, one has no id, and two have the same id.
    let twice = good();
    let items = [good().without("id").text(), twice.text(), twice.text()];
    let body = format!("{{\"transfers\": [{}]}}", items.join(","));
    tried.call(&body, batch(body.clone()), "400 idempotency_required at='/transfers/0/id'").await;
    let body = format!("{{\"transfers\": [{}]}}", items[1..].join(","));
    tried.call(&body, batch(body.clone()), "400 duplicate_id at='/transfers/1/id'").await;
    let lines = items[1..].join("\n");
    tried.call(&lines, lines_of(lines.clone()), "400 duplicate_id at='/1/id'").await;
    // A mistake is answered before the ledger's rules: the debit account does not exist.
    let order = good().replace("debit", "\"nobody\"").replace("amount", "\"0\"");
    everywhere(tried, &order, "400 invalid_amount at='/amount'").await;
    stage.finish().await
}

/// Sends the same mistake alone, as the second item of a batch, and as the second line of NDJSON.
async fn everywhere(tried: &mut Tried, order: &Members, expected: &str) {
    let text = order.text();
    tried.call(&text, Call::new(Method::POST, "/v1/transfers", text.clone()), expected).await;
    let good = format!(
        r#"{{"id": "{}", "debit": "good0", "credit": "good1", "amount": "1.00", "asset": "USD"}}"#,
        Uuid::now_v7()
    );
    let syntax = expected.ends_with("at=''");
    let body = format!("{{\"transfers\": [{good}, {text}]}}");
    let within = if syntax { expected.to_owned() } else { expected.replace("at='", "at='/transfers/1") };
    tried.call(&body, batch(body.clone()), &within).await;
    let lines = format!("{good}\n{text}\n");
    tried.call(&lines, lines_of(lines.clone()), &expected.replace("at='", "at='/1")).await;
}

fn batch(body: String) -> Call {
    Call::new(Method::POST, "/v1/transfers:batch", body)
}

fn lines_of(body: String) -> Call {
    Call::bare(Method::POST, "/v1/transfers:batch", body).header("content-type", NDJSON)
}
