//! Tests of malformed requests. Each is answered with its code and the place of the mistake, and none leaves a row.

mod orders;
mod requests;

use anyhow::ensure;
use http::Method;
use testkit::client::account_path;

use super::{
    api::Call,
    stage::{Findings, Stage},
};

/// A cluster with two accounts, whose rows are counted before and after the requests. Both accounts exist, so that an order is refused only
/// for its mistake.
struct Tried {
    stage: Stage,
    debit: String,
    credit: String,
    rows: i64,
    findings: Findings,
}

impl Tried {
    async fn new() -> anyhow::Result<Self> {
        let stage = Stage::quiet().await?;
        let debit = stage.account(0, "USD posted=100").await?;
        let credit = stage.account(1, "USD").await?;
        let rows = stage.rows().await?;
        Ok(Self { stage, debit, credit, rows, findings: Findings::default() })
    }

    /// Sends a request and compares the summary of its answer.
    async fn call(&mut self, what: &str, call: Call, expected: &str) {
        let sent = match self.stage.api.send(call).await {
            Ok(reply) => reply.expect(expected),
            Err(error) => Err(error),
        };
        self.findings.note(shortened(what), sent);
    }

    fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        self.findings.note(shortened(what), result);
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.findings.conclude()?;
        let rows = self.stage.rows().await? - self.rows;
        ensure!(rows == 0, "bad requests left {rows} rows");
        self.stage.finish().await
    }
}

/// The beginning of a text. Some bodies are megabytes.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 160;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// An object whose members are raw JSON. `replace` and `add` make it wrong in one place.
#[derive(Debug, Clone)]
pub struct Members(Vec<(String, String)>);

impl Members {
    pub fn of(members: &[(&str, String)]) -> Self {
        Self(members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    pub fn replace(mut self, name: &str, value: &str) -> Self {
        self.0.retain(|(there, _)| there != name);
        self.add(name, value)
    }

    /// Adds a member, even if there is one of this name.
    pub fn add(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(there, _)| there != name);
        self
    }

    pub fn text(&self) -> String {
        let members: Vec<String> = self.0.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    }
}

/// Each row has a field of a new account, its value as raw JSON, and the answer.
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

/// Each row has a change of an account as raw JSON, and the answer.
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
async fn an_account_with_a_mistake_is_not_opened() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let good = || Members::of(&[("id", "\"newcomer\"".to_owned()), ("asset", "\"USD\"".to_owned())]);
    for (field, value, expected) in OPENED {
        opened(&mut tried, &good().replace(field, value), expected).await;
    }
    opened(&mut tried, &good().without("id"), "400 invalid_id at='/id'").await;
    opened(&mut tried, &good().without("asset"), "400 invalid_asset at='/asset'").await;
    opened(&mut tried, &good().add("id", "\"newcomer\""), "400 invalid_json at='/id'").await;
    // A request with two mistakes is answered with both.
    opened(
        &mut tried,
        &good().replace("asset", "1").replace("overdraft", "\"-1\""),
        "400 invalid_amount at='/overdraft'",
    )
    .await;
    opened(&mut tried, &good().replace("id", "1").add("extra", "1"), "400 unknown_field at='/extra'").await;
    tried.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_account_with_a_mistake_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let account = tried.debit.clone();
    for (change, expected) in CHANGES {
        tried.call(change, Call::new(Method::PATCH, &account_path(&account), *change), expected).await;
    }
    // A mistake in the body is answered before an account that does not exist.
    let nobody = |body: &'static str| Call::new(Method::PATCH, "/v1/accounts/nobody", body);
    tried.call("malformed and not there", nobody("{}"), "400 invalid_json at=''").await;
    tried.call("not there", nobody(r#"{"status": "closed"}"#), "404 account_not_found").await;
    tried.call("limits, and not there", nobody(r#"{"overdraft": "1"}"#), "404 account_not_found").await;
    tried.finish().await
}

/// Sends the same mistake alone and as the second item of a batch.
async fn opened(tried: &mut Tried, account: &Members, expected: &str) {
    let text = account.text();
    tried.call(&text, Call::new(Method::POST, "/v1/accounts", text.clone()), expected).await;
    let body = format!(r#"{{"accounts": [{{"id": "good0", "asset": "USD"}}, {text}]}}"#);
    let within = expected.replace("at='", "at='/accounts/1");
    tried.call(&body, Call::new(Method::POST, "/v1/accounts:batch", body.clone()), &within).await;
}
